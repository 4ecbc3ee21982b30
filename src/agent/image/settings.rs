//! How registries are spoken to: what the configuration says of each, and what holds for those it does not name.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, time::Duration};

use super::proxy::ProxySettings;

/// What the configuration says of one registry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RegistrySettings {
    /// Whether it speaks HTTP without TLS. Unsaid: no; on loopback, what it answers to.
    pub plain_http: Option<bool>,
    /// File with certificates that may sign its own, beside those of the system.
    pub ca_file: Option<PathBuf>,
    /// Who logs in, and the file with the password.
    pub login: Option<(String, PathBuf)>,
    /// Asked before it, in this order: `HOST[:PORT]`.
    pub mirrors: Vec<String>,
}

/// How long trouble that may pass is sat out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Tries of one question without progress in between.
    pub tries: u32,
    /// Wait after the first; doubles up to [`Patience::LONGEST`].
    pub first_wait: Duration,
    /// Longest time without a byte of an answer.
    pub silence: Duration,
}

impl Patience {
    /// Longest wait between two tries, whatever the registry asks for.
    pub const LONGEST: Duration = Duration::from_secs(30);

    /// The wait after a number of tries in vain.
    pub(super) fn wait(&self, tries: u32, asked: Option<Duration>) -> Duration {
        let doubled = self.first_wait.saturating_mul(1 << tries.saturating_sub(1).min(16));
        asked.unwrap_or(doubled).min(Self::LONGEST)
    }
}

impl Default for Patience {
    fn default() -> Self {
        Self { tries: 4, first_wait: Duration::from_millis(500), silence: Duration::from_secs(30) }
    }
}

/// How registries are spoken to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// By registry, `HOST[:PORT]`.
    pub registries: BTreeMap<String, RegistrySettings>,
    /// The way there.
    pub proxies: ProxySettings,
    /// How long trouble is sat out.
    pub patience: Patience,
}

/// With or without TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scheme {
    Https,
    Http,
    /// With TLS if it answers so, else without.
    Either,
}

impl Settings {
    pub(super) fn scheme(&self, host: &str) -> Scheme {
        match self.registries.get(host).and_then(|settings| settings.plain_http) {
            Some(true) => Scheme::Http,
            Some(false) => Scheme::Https,
            None if is_loopback(host) => Scheme::Either,
            None => Scheme::Https,
        }
    }
}

/// Whether `HOST[:PORT]` is this machine by its very name.
fn is_loopback(host: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_loopback_and_what_the_configuration_names() {
        let plain = |plain_http| RegistrySettings { plain_http, ..RegistrySettings::default() };
        let settings = Settings {
            registries: [("nas:5000".to_owned(), plain(Some(true))), ("localhost:1".to_owned(), plain(Some(false)))]
                .into(),
            ..Settings::default()
        };
        for (host, scheme) in [
            ("docker.io", Scheme::Https),
            ("127.0.0.1.example.org", Scheme::Https),
            ("localhost.example.org:5000", Scheme::Https),
            ("nas", Scheme::Https),
            ("nas:5000", Scheme::Http),
            ("localhost:1", Scheme::Https),
            ("localhost:5000", Scheme::Either),
            ("127.9.9.9", Scheme::Either),
        ] {
            assert_eq!(settings.scheme(host), scheme, "{host}");
        }
    }

    #[test]
    fn waits_grow_and_are_bounded() {
        let patience = Patience::default();
        assert_eq!(patience.wait(1, None), Duration::from_millis(500));
        assert_eq!(patience.wait(3, None), Duration::from_secs(2));
        assert_eq!(patience.wait(30, None), Patience::LONGEST);
        assert_eq!(patience.wait(1, Some(Duration::from_secs(86_400))), Patience::LONGEST);
    }
}
