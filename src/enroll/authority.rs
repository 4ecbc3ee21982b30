//! The authority that certifies members.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, date_time_ymd,
};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use sha2::{Digest, Sha256};

use crate::consensus::{network::SERVER_NAME, types::MemberId};

/// Its certificate and key.
pub(super) struct Authority {
    pub(super) certificate: String,
    key: KeyPair,
}

/// Homelab machines often start with a wrong clock, so certificates do not depend on it; a member that is removed is
/// refused by its number.
fn always(mut params: CertificateParams) -> CertificateParams {
    params.not_before = date_time_ymd(2000, 1, 1);
    params.not_after = date_time_ymd(2120, 1, 1);
    params
}

/// From the beginning of which day to the beginning of which a certificate holds: years, months, days.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Valid {
    pub(super) from: (i32, u8, u8),
    pub(super) until: (i32, u8, u8),
}

fn member(member_id: MemberId) -> Result<CertificateParams, rcgen::Error> {
    let mut params = always(CertificateParams::new(vec![SERVER_NAME.to_owned()])?);
    params.distinguished_name.push(DnType::CommonName, format!("member {member_id}"));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}

impl Authority {
    pub(super) fn make() -> Result<Self, rcgen::Error> {
        let key = KeyPair::generate()?;
        let mut params = always(CertificateParams::new(Vec::new())?);
        params.distinguished_name.push(DnType::CommonName, "toft cluster");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        Ok(Self { certificate: params.self_signed(&key)?.pem(), key })
    }

    pub(super) fn load(certificate: String, key: &str) -> Result<Self, rcgen::Error> {
        Ok(Self { certificate, key: KeyPair::from_pem(key)? })
    }

    pub(super) fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }

    /// SHA-256 of the certificate.
    pub(super) fn hash(&self) -> Result<[u8; 32], rcgen::Error> {
        let der = CertificateDer::from_pem_slice(self.certificate.as_bytes())
            .map_err(|_| rcgen::Error::CouldNotParseCertificate)?;
        Ok(hash(&der))
    }

    fn issuer(&self) -> Result<Issuer<'static, &KeyPair>, rcgen::Error> {
        Issuer::from_ca_cert_pem(&self.certificate, &self.key)
    }

    /// A certificate with a key of its own, both PEM.
    pub(super) fn certify_new(&self, member_id: MemberId) -> Result<(String, String), rcgen::Error> {
        let key = KeyPair::generate()?;
        let certificate = member(member_id)?.signed_by(&key, &self.issuer()?)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }

    /// A certificate for browsers and programs that call this node by one of `names`, with a key of its own, both PEM. It proves no
    /// member: it is for servers alone, and bears no number.
    pub(super) fn certify_site(&self, names: &[String], valid: Valid) -> Result<(String, String), rcgen::Error> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(names.to_vec())?;
        let [from, until] = [valid.from, valid.until].map(|(year, month, day)| date_time_ymd(year, month, day));
        (params.not_before, params.not_after) = (from, until);
        params
            .distinguished_name
            .push(DnType::CommonName, format!("toft on {}", names.first().map_or("", String::as_str)));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &self.issuer()?)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }

    /// A certificate for the key in a signing request. What else the request wishes for is not granted.
    pub(super) fn certify(&self, request: &str, member_id: MemberId) -> Result<String, rcgen::Error> {
        let mut request = CertificateSigningRequestParams::from_pem(request)?;
        request.params = member(member_id)?;
        Ok(request.signed_by(&self.issuer()?)?.pem())
    }
}

/// SHA-256 of the public key in a signing request, whose signature shows that who made it has the private one.
pub(super) fn request_key(request: &str) -> Result<toft_model::token::Digest, rcgen::Error> {
    let request = CertificateSigningRequestParams::from_pem(request)?;
    Ok(toft_model::token::Digest(Sha256::digest(request.public_key.subject_public_key_info()).into()))
}

/// SHA-256 of a certificate.
pub(super) fn hash(certificate: &CertificateDer<'_>) -> [u8; 32] {
    Sha256::digest(certificate.as_ref()).into()
}

/// A signing request and the key it is for, both PEM.
pub(super) fn signing_request() -> Result<(String, String), rcgen::Error> {
    let key = KeyPair::generate()?;
    let request = CertificateParams::new(Vec::new())?.serialize_request(&key)?;
    Ok((request.pem()?, key.serialize_pem()))
}

#[cfg(test)]
mod tests {
    use x509_parser::prelude::{FromDer, X509Certificate};

    use super::*;

    #[test]
    fn certificates_hold_whatever_the_clock_of_a_machine_says() {
        let authority = Authority::make().unwrap();
        let (request, _) = signing_request().unwrap();
        for pem in [authority.certificate.clone(), authority.certify(&request, 7).unwrap()] {
            let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
            let (_, certificate) = X509Certificate::from_der(&der).unwrap();
            let validity = certificate.validity();
            // From 2001 to 2100, and so five minutes before it was made.
            assert!(validity.not_before.timestamp() < 978_307_200 && validity.not_after.timestamp() > 4_102_444_800);
        }
        assert_eq!(request_key(&request).unwrap(), request_key(&request).unwrap());
        assert!(request_key("no request").is_err());
    }
}
