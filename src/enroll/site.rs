//! What browsers and programs see of the cluster's authority: its certificate, which they can trust, and certificates of nodes that it
//! has signed for them. Each node signs its own. They are told from those of members by what they are for.

use std::{fs, path::Path};

use jiff::{ToSpan, civil::Date};
use sha2::{Digest, Sha256};

use rustls::pki_types::{CertificateDer, pem::PemObject};

use super::{AUTHORITY, AUTHORITY_KEY, KeyError, authority::Authority, authority::Valid, file};
use crate::consensus::network::SERVER_NAME;

/// Days a certificate holds, and days before its end from which on there is to be another. Browsers refuse longer ones.
const DAYS: i64 = 397;
const RENEW_BEFORE: i64 = 120;
/// Days before today from which on it holds: clocks differ.
const BACKDATED: i64 = 2;

/// The authority, for certificates of this node.
pub struct Site {
    authority: Authority,
}

/// A certificate of this node and its key.
pub struct SiteCertificate {
    /// The certificate and the authority's, PEM.
    pub chain: String,
    /// The key, PEM.
    pub key: zeroize::Zeroizing<String>,
    names: Vec<String>,
    made: Date,
}

impl SiteCertificate {
    /// Whether there is to be another: for other names, or because its time ends, or the clock was set.
    pub fn is_due(&self, names: &[String], today: Date) -> bool {
        let age = self.made.until(today).map_or(i64::MAX, |span| i64::from(span.get_days()));
        names != self.names || !(0..DAYS - RENEW_BEFORE).contains(&age)
    }
}

impl Site {
    /// Reads the authority of the keys in `folder`.
    pub fn load(folder: &Path) -> Result<Self, KeyError> {
        let text = |name: &str| {
            let path = folder.join(name);
            fs::read_to_string(&path).map_err(|source| file("read", &path, source))
        };
        let authority = Authority::load(text(AUTHORITY)?, &zeroize::Zeroizing::new(text(AUTHORITY_KEY)?))?;
        Ok(Self { authority })
    }

    /// The authority's certificate, PEM: what devices are told to trust.
    pub fn authority(&self) -> &str {
        &self.authority.certificate
    }

    /// The same as bytes (DER).
    pub fn authority_der(&self) -> Vec<u8> {
        let der = CertificateDer::from_pem_slice(self.authority.certificate.as_bytes());
        der.map(|der| der.as_ref().to_vec()).unwrap_or_default()
    }

    /// SHA-256 of the authority's certificate, hexadecimal.
    pub fn fingerprint(&self) -> String {
        hex::encode(Sha256::digest(self.authority_der()))
    }

    /// Signs a certificate for a node that is called by these names and addresses. The name that members know each other by is left
    /// out, whoever wishes for it.
    pub fn certify(&self, names: &[String], today: Date) -> Result<SiteCertificate, KeyError> {
        let wished: Vec<String> = names.iter().filter(|name| *name != SERVER_NAME).cloned().collect();
        let day = |date: Date| (i32::from(date.year()), date.month().unsigned_abs(), date.day().unsigned_abs());
        let from = today.saturating_sub(BACKDATED.days());
        let until = from.saturating_add(DAYS.days());
        let (certificate, key) = self.authority.certify_site(&wished, Valid { from: day(from), until: day(until) })?;
        Ok(SiteCertificate {
            chain: certificate + &self.authority.certificate,
            key: key.into(),
            names: names.to_vec(),
            made: today,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use jiff::civil::date;
    use rustls::{
        RootCertStore,
        pki_types::{ServerName, UnixTime},
        server::WebPkiClientVerifier,
    };

    use super::*;
    use crate::enroll::Keys;

    fn site() -> (tempfile::TempDir, Site) {
        let folder = tempfile::tempdir().unwrap();
        Keys::load_or_make(folder.path(), 7).unwrap();
        let site = Site::load(folder.path()).unwrap();
        (folder, site)
    }

    #[test]
    fn browsers_take_it_for_the_node_and_members_do_not_take_it_for_a_member() {
        let (_folder, site) = site();
        let names = ["box", "box.local", "192.0.2.1", "::1", SERVER_NAME].map(str::to_owned);
        let made = site.certify(&names, date(2026, 1, 31)).unwrap();
        let chain: Vec<CertificateDer<'_>> =
            CertificateDer::pem_slice_iter(made.chain.as_bytes()).collect::<Result<_, _>>().unwrap();
        assert_eq!(chain.len(), 2);
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(site.authority().as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let roots = Arc::new(roots);
        let servers =
            rustls::client::WebPkiServerVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider));
        let servers = servers.build().unwrap();
        let at = |text: &str| {
            let seconds = text.parse::<jiff::Timestamp>().unwrap().as_second();
            UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds.unsigned_abs()))
        };
        use rustls::client::danger::ServerCertVerifier;
        let takes = |name: &str, when: &str| {
            let name = ServerName::try_from(name.to_owned()).unwrap();
            servers.verify_server_cert(&chain[0], &chain[1..], &name, &[], at(when)).is_ok()
        };
        for name in ["box", "box.local", "192.0.2.1", "::1"] {
            assert!(takes(name, "2026-02-01T00:00:00Z"), "{name}");
        }
        for name in ["other", "192.0.2.2", SERVER_NAME] {
            assert!(!takes(name, "2026-02-01T00:00:00Z"), "{name}");
        }
        assert!(!takes("box", "2026-01-20T00:00:00Z") && !takes("box", "2027-04-01T00:00:00Z"));
        let members = WebPkiClientVerifier::builder_with_provider(roots, provider).build().unwrap();
        assert!(members.verify_client_cert(&chain[0], &chain[1..], at("2026-02-01T00:00:00Z")).is_err());
    }

    #[test]
    fn it_is_renewed_in_time_and_for_other_names() {
        let (_folder, site) = site();
        let names = vec!["box".to_owned()];
        let made = site.certify(&names, date(2026, 1, 31)).unwrap();
        assert!(!made.is_due(&names, date(2026, 1, 31)) && !made.is_due(&names, date(2026, 10, 1)));
        assert!(made.is_due(&names, date(2026, 12, 1)));
        assert!(made.is_due(&names, date(2026, 1, 30)), "the clock was set back");
        assert!(made.is_due(&["other".to_owned()], date(2026, 2, 1)));
        assert_eq!(site.fingerprint().len(), 64);
    }
}
