//! Which appliance is meant: flag, environment, context, or the machine's own.

use std::{collections::BTreeMap, path::PathBuf};

use serde::Deserialize;

use super::{Failure, args::Global};
use crate::config::DEFAULT_SOCKET;

/// Where an appliance answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// A unix socket.
    Unix(PathBuf),
    /// TCP without TLS, with the password of `admin` if one was given.
    Http {
        /// Host and port.
        authority: String,
        /// The password.
        password: Option<String>,
    },
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
}

pub(super) fn target(global: &Global) -> Result<Target, Failure> {
    if let Some(url) = &global.connect {
        return parse(url, global.password_file.as_deref());
    }
    let file = read()?;
    let Some(name) = global.context.as_ref().or(file.current.as_ref()) else {
        return Ok(Target::Unix(DEFAULT_SOCKET.into()));
    };
    let context = file.contexts.get(name).ok_or_else(|| {
        let known: Vec<_> = file.contexts.keys().map(String::as_str).collect();
        Failure::of(2, format!("there is no context `{name}`")).hint(format!("the contexts are: {}", known.join(", ")))
    })?;
    parse(&context.connect, global.password_file.as_deref().or(context.password_file.as_deref()))
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

fn parse(url: &str, password_file: Option<&std::path::Path>) -> Result<Target, Failure> {
    if let Some(path) = url.strip_prefix("unix://") {
        return Ok(Target::Unix(path.into()));
    }
    let authority = url.strip_prefix("http://").map(|rest| rest.trim_end_matches('/')).filter(|rest| {
        rest.parse::<axum::http::uri::Authority>().is_ok_and(|authority| !authority.as_str().contains('@'))
    });
    let Some(authority) = authority else {
        return Err(Failure::of(2, format!("`{url}` is no address of an appliance"))
            .hint("write unix:///run/toft/toft.sock or http://127.0.0.1:7443"));
    };
    let password = password_file
        .map(|path| {
            std::fs::read_to_string(path)
                .map(|text| text.trim().to_owned())
                .map_err(|e| Failure::of(2, format!("the password file `{}` cannot be read: {e}", path.display())))
        })
        .transpose()?;
    Ok(Target::Http { authority: authority.to_owned(), password })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_parse() {
        assert_eq!(parse("unix:///a/b", None).unwrap(), Target::Unix("/a/b".into()));
        let http = parse("http://127.0.0.1:7443/", None).unwrap();
        assert_eq!(http, Target::Http { authority: "127.0.0.1:7443".into(), password: None });
        for bad in ["", "ftp://x", "127.0.0.1:1", "http://", "http://a b", "http://admin:x@h:1"] {
            assert!(parse(bad, None).is_err(), "{bad}");
        }
    }
}
