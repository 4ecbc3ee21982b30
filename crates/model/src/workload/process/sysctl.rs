//! Kernel settings that belong to a container's own namespaces. All others would change the node.

use super::shown;
use crate::{invalid::Invalid, workload::NetworkMode};

/// Settings of the IPC namespace.
const IPC: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

pub(super) fn validate(name: &str, value: &str, network: NetworkMode) -> Result<(), Invalid> {
    let letters = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte);
    let parts_fit = name.split(['.', '/']).all(|part| !part.is_empty());
    if name.len() > 128 || !name.bytes().all(letters) || !parts_fit {
        return Err(Invalid::value(
            format!("`{}` is no kernel setting", shown(name)),
            "write it like `net.core.somaxconn`",
        ));
    }
    if value.len() > 1024 || value.chars().any(char::is_control) {
        return Err(Invalid::value(
            format!("the value of `{name}` is too long or holds a control character"),
            "use at most 1024 plain characters",
        ));
    }
    let net = name.starts_with("net.");
    if net && network == NetworkMode::Host {
        return Err(Invalid::value(
            format!("`{name}` would change the node's own network"),
            "remove it, or set `network` to `bridge` or `none`",
        ));
    }
    if net || name.starts_with("fs.mqueue.") || IPC.contains(&name) {
        return Ok(());
    }
    Err(Invalid::value(
        format!("`{}` is a setting of the whole node", shown(name)),
        "a container has `net.*`, `fs.mqueue.*` and the `kernel.*` of System V communication of its own",
    ))
}
