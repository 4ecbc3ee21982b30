//! `[registries."HOST[:PORT]"]`: how single registries are spoken to.

use std::{collections::BTreeMap, path::PathBuf};

use serde::Deserialize;
use toft_model::{image::ImageRef, invalid::Invalid};

/// Most mirrors of one registry.
const MOST_MIRRORS: usize = 8;

/// What is written of one registry, and meant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegistryConfig {
    /// Whether it speaks HTTP without TLS. Unsaid: no; on loopback, what it answers to.
    pub plain_http: Option<bool>,
    /// File with certificates that may sign its own, beside those of the system.
    pub ca_file: Option<PathBuf>,
    /// Who logs in to it, with the password of `password_file`.
    pub username: Option<String>,
    /// File with the password, which only root should be able to read.
    pub password_file: Option<PathBuf>,
    /// Registries asked before it, in this order.
    pub mirrors: Vec<String>,
}

/// Checks what is written; faults go to `note` with their key.
pub(super) fn check(registries: &BTreeMap<String, RegistryConfig>, note: &mut impl FnMut(&str, Invalid)) {
    for (name, registry) in registries {
        let key = format!("registries.\"{name}\"");
        for host in std::iter::once(name).chain(&registry.mirrors) {
            let image: Result<ImageRef, _> = format!("{host}/a").parse();
            if !image.is_ok_and(|image| image.registry() == host) {
                let hint = "write it like `docker.io`, `registry.lan` or `192.168.1.10:5000`";
                note(&key, Invalid::value(format!("`{host}` is no name of a registry"), hint));
            }
        }
        if registry.mirrors.len() > MOST_MIRRORS {
            let hint = format!("name at most {MOST_MIRRORS}");
            note(&key, Invalid::value(format!("{} mirrors are too many", registry.mirrors.len()), hint));
        }
        for (field, path) in [("ca_file", &registry.ca_file), ("password_file", &registry.password_file)] {
            if let Some(path) = path.as_ref().filter(|path| !path.is_absolute()) {
                let why = format!("`{}` is no absolute path", path.display());
                note(&format!("{key}.{field}"), Invalid::value(why, "begin it with `/`"));
            }
        }
        match &registry.username {
            Some(name) if name.is_empty() || name.contains(':') => {
                note(&key, Invalid::value(format!("`{name}` is no user name"), "leave out `:`; it cannot be empty"));
            }
            name if name.is_some() != registry.password_file.is_some() => {
                note(&key, Invalid::value("half a login", "name both `username` and `password_file`"));
            }
            _ => {}
        }
    }
}
