//! Which appliance is meant: flag, environment, context, or the machine's own.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::{Failure, args::Global};
use crate::config::DEFAULT_SOCKET;

/// Port when an address names none.
const USUAL_PORT: u16 = 7443;

/// Where an appliance answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// A unix socket.
    Unix(PathBuf),
    /// TCP.
    Http {
        /// Host and port.
        authority: String,
        /// Whom it has to be signed by; without, TLS is not spoken.
        trust: Option<Trust>,
        /// What proves who asks, as the header has it.
        proof: Option<Proof>,
    },
}

/// The value of an `Authorization` header. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Proof(pub(super) Zeroizing<String>);

impl std::fmt::Debug for Proof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Proof(..)")
    }
}

/// By whom a certificate has to be signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trust {
    /// By those the system trusts.
    System,
    /// By the certificate in this file.
    File(PathBuf),
    /// By the certificate with this SHA-256.
    Sha256([u8; 32]),
}

/// What somebody has to prove who they are, and wants to see proved.
#[derive(Debug, Clone, Copy, Default)]
struct Shown<'a> {
    password_file: Option<&'a Path>,
    user: Option<&'a str>,
    api_token_file: Option<&'a Path>,
    ca_file: Option<&'a Path>,
    ca_sha256: Option<&'a str>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ContextFile {
    current: Option<String>,
    contexts: BTreeMap<String, Context>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Context {
    connect: String,
    password_file: Option<PathBuf>,
    user: Option<String>,
    api_token_file: Option<PathBuf>,
    ca_file: Option<PathBuf>,
    ca_sha256: Option<String>,
}

pub(super) fn target(global: &Global) -> Result<Target, Failure> {
    if let Some(url) = &global.connect {
        return parse(url, shown(global, None));
    }
    let file = read()?;
    let Some(name) = global.context.as_ref().or(file.current.as_ref()) else {
        return Ok(Target::Unix(DEFAULT_SOCKET.into()));
    };
    let context = file.contexts.get(name).ok_or_else(|| {
        let known: Vec<_> = file.contexts.keys().map(String::as_str).collect();
        Failure::of(2, format!("there is no context `{name}`")).hint(format!("the contexts are: {}", known.join(", ")))
    })?;
    parse(&context.connect, shown(global, Some(context)))
}

/// What was said on the command line beats what the context says.
fn shown<'a>(global: &'a Global, context: Option<&'a Context>) -> Shown<'a> {
    let said = Shown {
        password_file: global.password_file.as_deref(),
        user: global.as_user.as_deref(),
        api_token_file: global.api_token_file.as_deref(),
        ca_file: global.ca_file.as_deref(),
        ca_sha256: global.ca_sha256.as_deref(),
    };
    let Some(context) = context else { return said };
    let proves = said.password_file.is_some() || said.api_token_file.is_some();
    let trusts = said.ca_file.is_some() || said.ca_sha256.is_some();
    Shown {
        ca_file: said.ca_file.or(context.ca_file.as_deref().filter(|_| !trusts)),
        ca_sha256: said.ca_sha256.or(context.ca_sha256.as_deref().filter(|_| !trusts)),
        password_file: said.password_file.or(context.password_file.as_deref().filter(|_| !proves)),
        user: said.user.or(context.user.as_deref()),
        api_token_file: said.api_token_file.or(context.api_token_file.as_deref().filter(|_| !proves)),
    }
}

fn read() -> Result<ContextFile, Failure> {
    let home = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from);
    let home = home.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config")));
    let Some(path) = home.map(|home| home.join("toft/config.toml")) else { return Ok(ContextFile::default()) };
    match std::fs::read_to_string(&path) {
        Ok(text) => toml::from_str(&text)
            .map_err(|e| Failure::of(2, format!("{}: {}", path.display(), e.to_string().trim_end()))),
        Err(_) => Ok(ContextFile::default()),
    }
}

fn parse(url: &str, shown: Shown<'_>) -> Result<Target, Failure> {
    if let Some(path) = url.strip_prefix("unix://") {
        return Ok(Target::Unix(path.into()));
    }
    let secure = url.starts_with("https://");
    let rest = url.strip_prefix("https://").or(url.strip_prefix("http://"));
    let authority = rest.map(|rest| rest.trim_end_matches('/')).filter(|rest| {
        rest.parse::<axum::http::uri::Authority>().is_ok_and(|authority| !authority.as_str().contains('@'))
    });
    let Some(authority) = authority else {
        return Err(Failure::of(2, format!("`{url}` is no address of an appliance"))
            .hint("write unix:///run/toft/toft.sock or https://127.0.0.1:7443"));
    };
    let trust = if secure { Some(trust(shown)?) } else { None };
    let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let authority = if has_port { authority.to_owned() } else { format!("{authority}:{USUAL_PORT}") };
    Ok(Target::Http { authority, trust, proof: proof(shown)? })
}

fn trust(shown: Shown<'_>) -> Result<Trust, Failure> {
    if let Some(path) = shown.ca_file {
        return Ok(Trust::File(path.to_owned()));
    }
    let Some(text) = shown.ca_sha256 else { return Ok(Trust::System) };
    let digits: String = text.chars().filter(|c| *c != ':').collect();
    let bytes = hex::decode(digits).ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
    bytes.map(Trust::Sha256).ok_or_else(|| {
        Failure::of(2, "--ca-sha256 is no SHA-256").hint("write the 64 digits that `toft ca show` prints on a node")
    })
}

fn proof(shown: Shown<'_>) -> Result<Option<Proof>, Failure> {
    let read = |what: &str, path: &Path| {
        let text = std::fs::read_to_string(path).map(Zeroizing::new);
        let text =
            text.map_err(|e| Failure::of(2, format!("the {what} file `{}` cannot be read: {e}", path.display())))?;
        Ok::<_, Failure>(Zeroizing::new(text.trim().to_owned()))
    };
    if let Some(path) = shown.api_token_file {
        let token = read("token", path)?;
        return Ok(Some(Proof(Zeroizing::new(format!("Bearer {}", *token)))));
    }
    let Some(path) = shown.password_file else { return Ok(None) };
    let pair = Zeroizing::new(format!("{}:{}", shown.user.unwrap_or("admin"), *read("password", path)?));
    Ok(Some(Proof(Zeroizing::new(format!("Basic {}", BASE64_STANDARD.encode(pair.as_bytes()))))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_parse() {
        let none = Shown::default();
        assert_eq!(parse("unix:///a/b", none).unwrap(), Target::Unix("/a/b".into()));
        let http = parse("http://127.0.0.1:7443/", none).unwrap();
        assert_eq!(http, Target::Http { authority: "127.0.0.1:7443".into(), trust: None, proof: None });
        let https = parse("https://box", Shown { ca_sha256: Some(&"AB:".repeat(32)), ..none }).unwrap();
        let trust = Some(Trust::Sha256([0xab; 32]));
        assert_eq!(https, Target::Http { authority: "box:7443".into(), trust, proof: None });
        for bad in ["", "ftp://x", "127.0.0.1:1", "http://", "http://a b", "http://admin:x@h:1", "https://"] {
            assert!(parse(bad, none).is_err(), "{bad}");
        }
        for bad in ["", "ab", &"g".repeat(64), &"a".repeat(65)] {
            assert!(parse("https://box", Shown { ca_sha256: Some(bad), ..none }).is_err(), "{bad}");
        }
    }
}
