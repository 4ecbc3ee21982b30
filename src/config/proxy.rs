//! `[images]` `http_proxy`, `https_proxy`, `no_proxy`: the way that pulls take out of this network. What the file does not
//! say, the environment variables of these names say, as for other programs.

use std::{net::IpAddr, path::PathBuf};

use hyper::Uri;
use toft_model::invalid::Invalid;
use zeroize::Zeroizing;

use super::file::ImagesSection;

/// Most hosts that are reached without a proxy.
const MOST_EXCEPTIONS: usize = 256;
/// Longest address of a proxy, and longest name of a host.
const LONGEST: usize = 1_024;

/// The environment variables, by which other programs find their proxies too.
#[derive(Clone, Default)]
pub struct ProxyVariables {
    /// `HTTP_PROXY` or `http_proxy`.
    pub http: Option<Zeroizing<String>>,
    /// `HTTPS_PROXY` or `https_proxy`.
    pub https: Option<Zeroizing<String>>,
    /// `NO_PROXY` or `no_proxy`.
    pub no: Option<String>,
}

impl ProxyVariables {
    /// Those of this process.
    pub fn of_this_process() -> Self {
        let first = |names: [&str; 2]| names.into_iter().find_map(|name| std::env::var(name).ok());
        Self {
            http: first(["HTTP_PROXY", "http_proxy"]).map(Zeroizing::new),
            https: first(["HTTPS_PROXY", "https_proxy"]).map(Zeroizing::new),
            no: first(["NO_PROXY", "no_proxy"]),
        }
    }
}

impl std::fmt::Debug for ProxyVariables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Passwords may stand in the addresses.
        let Self { http, https, no } = self;
        let (http, https) = (http.is_some(), https.is_some());
        f.debug_struct("ProxyVariables").field("http", &http).field("https", &https).field("no", no).finish()
    }
}

/// How pulls leave this network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProxyConfig {
    /// For registries without TLS.
    pub http: Option<ProxyAddress>,
    /// For registries with TLS.
    pub https: Option<ProxyAddress>,
    /// Hosts, domains, addresses and networks that are reached without; never with a port.
    pub exceptions: Vec<String>,
    /// Who logs in to the proxies, and the file with the password.
    pub login: Option<(String, PathBuf)>,
}

/// Where a proxy is.
#[derive(Clone, PartialEq, Eq)]
pub struct ProxyAddress {
    /// `http://HOST[:PORT]` or `https://HOST[:PORT]`.
    pub url: String,
    /// `NAME[:PASSWORD]` as it stood in the address, percent-encoded.
    pub credentials: Option<Zeroizing<String>>,
}

impl std::fmt::Debug for ProxyAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ProxyAddress({})", self.url)
    }
}

impl ProxyConfig {
    /// What the file and the environment say together; faults go to `note` with their key.
    pub(super) fn resolve(
        file: &ImagesSection,
        variables: ProxyVariables,
        note: &mut impl FnMut(&str, Invalid),
    ) -> Self {
        let mut address = |written: &Option<String>, key: &str, variable: Option<Zeroizing<String>>, name: &str| {
            let (text, key, from_file) = match (written, variable) {
                (Some(text), _) => (Zeroizing::new(text.clone()), key, true),
                (None, Some(text)) => (text, name, false),
                (None, None) => return None,
            };
            let parsed = if text.is_empty() { Ok(None) } else { proxy(&text).map(Some) };
            match parsed {
                Ok(Some(ProxyAddress { credentials: Some(_), .. })) if from_file => {
                    let hint = "name them with proxy_username and proxy_password_file";
                    note(key, Invalid::value("a password does not belong into this file", hint));
                    None
                }
                Ok(address) => address,
                Err(invalid) => {
                    note(key, invalid);
                    None
                }
            }
        };
        let http = address(&file.http_proxy, "images.http_proxy", variables.http, "HTTP_PROXY");
        let https = address(&file.https_proxy, "images.https_proxy", variables.https, "HTTPS_PROXY");
        let (written, key) = match (&file.no_proxy, variables.no) {
            (Some(list), _) => (list.clone(), "images.no_proxy"),
            (None, text) => (text.unwrap_or_default().split(',').map(str::to_owned).collect(), "NO_PROXY"),
        };
        let mut exceptions = Vec::new();
        if written.len() > MOST_EXCEPTIONS {
            let hint = format!("name at most {MOST_EXCEPTIONS}; a domain stands for all below it");
            note(key, Invalid::value(format!("{} hosts are too many", written.len()), hint));
        }
        for text in written.iter().take(MOST_EXCEPTIONS).map(|text| text.trim()).filter(|text| !text.is_empty()) {
            match exception(text) {
                Ok(exception) => exceptions.push(exception),
                Err(invalid) => note(key, invalid),
            }
        }
        let login = match (&file.proxy_username, &file.proxy_password_file) {
            (None, None) => None,
            (Some(name), _) if name.is_empty() || name.contains(':') => {
                let invalid = Invalid::value("it is no user name", "leave out `:`; it cannot be empty");
                note("images.proxy_username", invalid);
                None
            }
            (Some(_), Some(path)) if !path.is_absolute() => {
                let invalid = Invalid::value(format!("`{}` is no absolute path", path.display()), "begin it with `/`");
                note("images.proxy_password_file", invalid);
                None
            }
            (Some(name), Some(path)) => Some((name.clone(), path.clone())),
            _ => {
                let hint = "name both `proxy_username` and `proxy_password_file`";
                note("images.proxy_username", Invalid::value("half a login", hint));
                None
            }
        };
        if login.is_some() && http.is_none() && https.is_none() {
            note("images.proxy_username", Invalid::value("there is no proxy", "set images.https_proxy too"));
        }
        Self { http, https, exceptions, login }
    }
}

/// Reads the address of a proxy. What is wrong with it is told without it, for a password may be in it.
fn proxy(text: &str) -> Result<ProxyAddress, Invalid> {
    let hint = "write it like `http://proxy.lan:3128`";
    let refuse = |why: &str| Err(Invalid::value(why, hint));
    if text.len() > LONGEST {
        return refuse("it is too long for the address of a proxy");
    }
    let (scheme, rest) = match text.split_once("://") {
        Some((scheme, rest)) => (scheme.to_ascii_lowercase(), rest),
        None => ("http".to_owned(), text),
    };
    if scheme != "http" && scheme != "https" {
        return refuse("it is no proxy that speaks HTTP");
    }
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (credentials, host) = match rest.rsplit_once('@') {
        Some((credentials, host)) => (Some(credentials), host),
        None => (None, rest),
    };
    let url = format!("{scheme}://{host}");
    let known = url.parse::<Uri>().ok().and_then(|uri| uri.into_parts().authority);
    let Some(authority) = known.filter(|authority| authority.as_str() == host && !authority.host().is_empty()) else {
        return refuse("it is no address of a proxy");
    };
    // The port is read as a text until it is asked for.
    if authority.as_str().len() > authority.host().len() && authority.port_u16().is_none_or(|port| port == 0) {
        return refuse("its port is no number between 1 and 65535");
    }
    let plain = |byte: u8| byte.is_ascii_graphic() && !b"@/?#[]\"<>\\^`{|}".contains(&byte);
    if credentials.is_some_and(|text| text.starts_with(':') || text.is_empty() || !text.bytes().all(plain)) {
        return refuse("what stands before its `@` is no name and password; write other signs as `%40`");
    }
    Ok(ProxyAddress { url, credentials: credentials.map(|text| Zeroizing::new(text.to_owned())) })
}

/// Reads what is reached without a proxy, as curl, Docker and k3s have it: a host or domain (with all below it), an
/// address, a network, `*`. A port is left out: it is the host that is near.
fn exception(text: &str) -> Result<String, Invalid> {
    let refuse = || {
        let shown: String = text.chars().filter(|c| !c.is_control()).take(80).collect();
        let hint = "write it like `nas.lan`, `.lan`, `192.168.1.10`, `192.168.0.0/16` or `*`";
        Err(Invalid::value(format!("`{shown}` is no host, domain, address or network"), hint))
    };
    if text == "*" || text.parse::<IpAddr>().is_ok() {
        return Ok(text.to_owned());
    }
    if let Some((address, length)) = text.split_once('/') {
        let most = match address.parse() {
            Ok(IpAddr::V4(_)) => 32,
            Ok(IpAddr::V6(_)) => 128,
            Err(_) => return refuse(),
        };
        return if length.parse::<u8>().is_ok_and(|length| length <= most) { Ok(text.to_owned()) } else { refuse() };
    }
    let host = match text.rsplit_once(':') {
        Some((host, port)) if port.parse::<u16>().is_ok() => host,
        _ => text,
    };
    let host = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    if host.parse::<IpAddr>().is_ok() {
        return Ok(host.to_owned());
    }
    let domain = host.strip_prefix("*.").or(host.strip_prefix('.')).unwrap_or(host);
    let label = |label: &str| {
        !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    if host.len() > LONGEST || !domain.split('.').all(label) {
        return refuse();
    }
    Ok(domain.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(file: &str, variables: ProxyVariables) -> (ProxyConfig, Vec<String>) {
        let section: ImagesSection = toml::from_str(file).unwrap();
        let mut faults = Vec::new();
        let mut note =
            |key: &str, invalid: Invalid| faults.push(format!("{key}: {} {}", invalid.message, invalid.hint));
        (ProxyConfig::resolve(&section, variables, &mut note), faults)
    }

    fn variables(http: &str, https: &str, no: &str) -> ProxyVariables {
        let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        ProxyVariables { http: given(http).map(Zeroizing::new), https: given(https).map(Zeroizing::new), no: given(no) }
    }

    #[test]
    fn the_file_wins_over_the_environment() {
        let environment = || variables("proxy:3128", "https://me:p%40ss@proxy.lan", " nas.lan:5000, ,*.home,::1");
        let (config, faults) = resolve("", environment());
        assert_eq!(faults, [] as [String; 0]);
        assert_eq!(config.http.as_ref().unwrap().url, "http://proxy:3128");
        let https = config.https.as_ref().unwrap();
        assert_eq!(
            (https.url.as_str(), https.credentials.as_ref().unwrap().as_str()),
            ("https://proxy.lan", "me:p%40ss")
        );
        assert_eq!(config.exceptions, ["nas.lan", "home", "::1"]);
        assert!(!format!("{config:?} {:?}", environment()).contains("p%40ss"), "the password is shown");

        let file = "http_proxy = ''\nhttps_proxy = 'http://[fd00::1]:8080/'\nno_proxy = ['192.168.0.0/16', '.lan', '*']\n\
            proxy_username = 'me'\nproxy_password_file = '/x'";
        let (config, faults) = resolve(file, environment());
        assert_eq!(faults, [] as [String; 0]);
        assert_eq!(config.http, None, "an empty text is none");
        assert_eq!(config.https.unwrap().url, "http://[fd00::1]:8080");
        assert_eq!(config.exceptions, ["192.168.0.0/16", "lan", "*"]);
        assert_eq!(config.login, Some(("me".into(), "/x".into())));
        assert_eq!(resolve("", ProxyVariables::default()), (ProxyConfig::default(), Vec::new()));
    }

    #[test]
    fn faults_are_told_with_their_key_and_without_a_password() {
        for (file, words) in [
            ("http_proxy = 'socks5://proxy:1'", "images.http_proxy: it is no proxy that speaks HTTP"),
            ("https_proxy = 'http://'", "images.https_proxy: it is no address"),
            ("https_proxy = 'http://proxy:port'", "images.https_proxy: it"),
            ("https_proxy = 'http://proxy:0'", "its port"),
            ("https_proxy = 'http://proxy:99999'", "images.https_proxy: it"),
            ("https_proxy = 'http://a b'", "it is no address"),
            ("https_proxy = 'http://proxy/path'", "it is no address"),
            ("https_proxy = 'http://me:secret@proxy'", "images.https_proxy: a password does not belong"),
            ("no_proxy = ['a b']", "images.no_proxy: `a b` is no host"),
            ("no_proxy = ['10.0.0.0/33']", "`10.0.0.0/33` is no host"),
            ("no_proxy = ['http://nas']", "is no host"),
            ("no_proxy = ['a..b']", "is no host"),
            ("no_proxy = ['*.*']", "is no host"),
            ("https_proxy = 'http://p'\nproxy_username = 'me'", "images.proxy_username: half a login"),
            ("https_proxy = 'http://p'\nproxy_username = 'a:b'\nproxy_password_file = '/x'", "no user name"),
            ("https_proxy = 'http://p'\nproxy_username = 'a'\nproxy_password_file = 'x'", "no absolute path"),
            ("proxy_username = 'a'\nproxy_password_file = '/x'", "there is no proxy"),
        ] {
            let (_, faults) = resolve(file, ProxyVariables::default());
            assert!(faults.len() == 1 && faults[0].contains(words), "{file}: {faults:?}");
            assert!(!faults[0].contains("secret"), "{faults:?}");
        }
        let long = format!("no_proxy = [{}]", "'a',".repeat(300));
        assert!(resolve(&long, ProxyVariables::default()).1[0].contains("300 hosts are too many"));
        for bad in ["socks5://me:secret@proxy", "http://me:secret@pro xy", "http://me:sec\u{1}ret@proxy", "http://:@x"]
        {
            let (_, faults) = resolve("", variables("", bad, ""));
            assert!(faults.len() == 1 && faults[0].starts_with("HTTPS_PROXY: "), "{bad}: {faults:?}");
            assert!(!faults[0].contains("secret") && !faults[0].contains("ret@"), "{faults:?}");
        }
        let many = "x".repeat(5_000);
        assert!(resolve("", variables(&many, "", "")).1[0].contains("too long"));
    }
}
