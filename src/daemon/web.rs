//! The certificate of the TCP door: signed by the cluster's authority, or one's own. It is renewed, and read again when its files change,
//! while the door is open.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use anyhow::Context;
use nix::ifaddrs::getifaddrs;
use rustls::{
    ServerConfig,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio_util::sync::CancellationToken;

use super::{Hinted, directories::Directories};
use crate::{
    config::{Config, TlsConfig},
    control::ops::TrustRoot,
    enroll::{Site, SiteCertificate},
};

/// Time between two looks at the certificate.
const PERIOD: Duration = Duration::from_secs(30);
/// Most addresses in a certificate.
const MOST_ADDRESSES: usize = 64;

/// What the door shows to those who come, as it is now.
#[derive(Debug)]
struct Shown {
    now: RwLock<Arc<CertifiedKey>>,
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.now.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

/// The certificate of the TCP door, and what renews it.
pub(super) struct Web {
    shown: Arc<Shown>,
    provider: Arc<CryptoProvider>,
    source: Source,
}

#[expect(clippy::large_enum_variant, reason = "there is one in the whole process")]
enum Source {
    Signed { site: Site, tls: TlsConfig, node: String, made: SiteCertificate },
    Own { files: (PathBuf, PathBuf), seen: [Option<(SystemTime, u64)>; 2] },
}

impl Web {
    /// Makes or reads the certificate.
    pub(super) fn open(config: &Config, tls: &TlsConfig, directories: &Directories) -> anyhow::Result<Self> {
        let provider = CryptoProvider::get_default().cloned();
        let provider = provider.unwrap_or_else(|| Arc::new(rustls::crypto::ring::default_provider()));
        let (source, certified) = match &tls.own {
            Some(files) => {
                let seen = looked_at(files);
                let certified = read(files, &provider).map_err(|error| {
                    let hint = "mend `certificate` and `key` in `[api]`, or leave them out: the cluster signs one then";
                    Hinted { hint: hint.to_owned(), source: error.into() }
                })?;
                (Source::Own { files: files.clone(), seen }, certified)
            }
            None => {
                let site = Site::load(&directories.cluster()).context("reading the cluster's authority")?;
                let node = config.node.name.to_string();
                let made = site.certify(&names(&node, tls), today()).context("signing this node's certificate")?;
                let certified = certified(made.chain.as_bytes(), made.key.as_bytes(), &provider)?;
                (Source::Signed { site, tls: tls.clone(), node, made }, certified)
            }
        };
        Ok(Self { shown: Arc::new(Shown { now: RwLock::new(Arc::new(certified)) }), provider, source })
    }

    /// How the door speaks TLS.
    pub(super) fn server(&self) -> anyhow::Result<Arc<ServerConfig>> {
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()
            .context("choosing the versions of TLS")?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&self.shown) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// Renews until `cancel`. What fails is tried again, and the certificate that is there stays.
    pub(super) async fn run(mut self, cancel: CancellationToken) {
        let mut told = false;
        while cancel.run_until_cancelled(tokio::time::sleep(PERIOD)).await.is_some() {
            match self.renew() {
                Ok(Some(certified)) => {
                    *self.shown.now.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(certified);
                    tracing::info!("the dashboard's certificate is another now");
                    told = false;
                }
                Ok(None) => {}
                Err(error) if !told => {
                    told = true;
                    tracing::error!("the dashboard's certificate cannot be renewed; the present one stays: {error:#}");
                }
                Err(_) => {}
            }
        }
    }

    fn renew(&mut self) -> anyhow::Result<Option<CertifiedKey>> {
        match &mut self.source {
            Source::Signed { site, tls, node, made } => {
                let (names, today) = (names(node, tls), today());
                if !made.is_due(&names, today) {
                    return Ok(None);
                }
                *made = site.certify(&names, today).context("signing this node's certificate")?;
                certified(made.chain.as_bytes(), made.key.as_bytes(), &self.provider).map(Some)
            }
            Source::Own { files, seen } => {
                let now = looked_at(files);
                if now == *seen {
                    return Ok(None);
                }
                let certified = read(files, &self.provider)?;
                *seen = now;
                Ok(Some(certified))
            }
        }
    }
}

/// The cluster's authority, as devices are told to trust it.
pub(super) fn trust_root(directories: &Directories) -> anyhow::Result<TrustRoot> {
    let site = Site::load(&directories.cluster()).context("reading the cluster's authority")?;
    Ok(TrustRoot { pem: site.authority().to_owned(), der: site.authority_der(), sha256: site.fingerprint() })
}

fn today() -> jiff::civil::Date {
    jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date()
}

/// What this node is called: its name, loopback, its addresses now, and what the configuration says.
fn names(node: &str, tls: &TlsConfig) -> Vec<String> {
    let mut addresses = BTreeSet::new();
    for interface in getifaddrs().into_iter().flatten().filter(|one| !one.interface_name.starts_with("toft")) {
        let Some(address) = interface.address else { continue };
        let four = address.as_sockaddr_in().filter(|address| !address.ip().is_link_local());
        let six = address.as_sockaddr_in6().filter(|address| !address.ip().is_unicast_link_local());
        addresses.extend(four.map(|address| address.ip().to_string()).or(six.map(|address| address.ip().to_string())));
    }
    let mut names = vec![node.to_owned(), format!("{node}.local"), "localhost".to_owned()];
    names.extend(["127.0.0.1", "::1"].map(str::to_owned));
    names.extend(tls.names.iter().cloned());
    names.extend(addresses.into_iter().take(MOST_ADDRESSES));
    let mut known = BTreeSet::new();
    names.retain(|name| known.insert(name.clone()));
    names
}

fn looked_at(files: &(PathBuf, PathBuf)) -> [Option<(SystemTime, u64)>; 2] {
    [&files.0, &files.1].map(|path| {
        let about = fs::metadata(path).ok()?;
        Some((about.modified().ok()?, about.len()))
    })
}

fn read(files: &(PathBuf, PathBuf), provider: &CryptoProvider) -> anyhow::Result<CertifiedKey> {
    let read = |path: &Path| fs::read(path).with_context(|| format!("reading `{}`", path.display()));
    let key = zeroize::Zeroizing::new(read(&files.1)?);
    certified(&read(&files.0)?, &key, provider)
        .with_context(|| format!("taking `{}` with the key `{}`", files.0.display(), files.1.display()))
}

fn certified(chain: &[u8], key: &[u8], provider: &CryptoProvider) -> anyhow::Result<CertifiedKey> {
    let chain = CertificateDer::pem_slice_iter(chain).collect::<Result<Vec<_>, _>>();
    let chain = chain.context("the file holds no certificates (PEM)")?;
    anyhow::ensure!(!chain.is_empty(), "the file holds no certificate (PEM)");
    let key = PrivateKeyDer::from_pem_slice(key).context("the file holds no private key (PEM)")?;
    CertifiedKey::from_der(chain, key, provider).context("certificate and key do not belong together")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::enroll::Keys;

    fn pair(folder: &Path, member: u64) -> SiteCertificate {
        let folder = folder.join(member.to_string());
        Keys::load_or_make(&folder, member).unwrap();
        Site::load(&folder).unwrap().certify(&["box".to_owned()], today()).unwrap()
    }

    #[test]
    fn a_certificate_of_ones_own_is_read_again_when_its_files_change() {
        let folder = tempfile::tempdir().unwrap();
        let files = (folder.path().join("box.pem"), folder.path().join("box.key"));
        let (one, other) = (pair(folder.path(), 1), pair(folder.path(), 2));
        let put = |certificate: &SiteCertificate, key: &SiteCertificate| {
            fs::write(&files.0, &certificate.chain).unwrap();
            fs::write(&files.1, key.key.as_bytes()).unwrap();
        };
        put(&one, &one);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let certified = read(&files, &provider).unwrap();
        let shown = Arc::new(Shown { now: RwLock::new(Arc::new(certified)) });
        let source = Source::Own { files: files.clone(), seen: looked_at(&files) };
        let mut web = Web { shown, provider: Arc::clone(&provider), source };
        assert!(web.renew().unwrap().is_none());
        // While the two do not belong together, what is there stays.
        fs::write(&files.0, format!("{}\n", other.chain)).unwrap();
        let error = web.renew().map(drop).unwrap_err();
        assert!(format!("{error:#}").contains("do not belong together"), "{error:#}");
        put(&other, &other);
        let renewed = web.renew().unwrap().expect("it is another");
        assert!(other.chain.contains("BEGIN CERTIFICATE") && renewed.cert.len() == 2);
        assert!(web.renew().unwrap().is_none());
        fs::write(&files.0, "nonsense").unwrap();
        assert!(web.renew().is_err());
        assert!(read(&(folder.path().join("none"), files.1.clone()), &provider).is_err());
    }

    #[test]
    fn a_node_is_called_by_its_name_and_its_addresses() {
        let tls = TlsConfig { names: vec!["box.example.org".into(), "localhost".into()], ..TlsConfig::default() };
        let names = names("attic", &tls);
        for name in ["attic", "attic.local", "localhost", "127.0.0.1", "::1", "box.example.org"] {
            assert_eq!(names.iter().filter(|known| *known == name).count(), 1, "{name} in {names:?}");
        }
    }
}
