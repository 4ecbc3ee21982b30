//! Who this node is, and the first password.

use std::{fs, io::Read, path::Path};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use toft_model::{ids::NodeId, node::Subnet};
use uuid::Uuid;

use super::directories::Directories;
use crate::files::write_whole;

/// What a node decides once and keeps.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Identity {
    /// Its id.
    pub(super) node_id: NodeId,
    /// The network of its containers.
    pub(super) subnet: Option<Subnet>,
    /// Whether the cluster gave it that network.
    #[serde(default)]
    pub(super) claimed: bool,
}

impl Identity {
    /// Reads it, or decides it.
    pub(super) fn load_or_make(directories: &Directories) -> anyhow::Result<Self> {
        if let Some(identity) = Self::read(&directories.node_file())? {
            return Ok(identity);
        }
        let identity = Self { node_id: NodeId(Uuid::now_v7()), subnet: None, claimed: false };
        identity.save(directories)?;
        Ok(identity)
    }

    /// Reads it, if it is there.
    pub(super) fn read(path: &Path) -> anyhow::Result<Option<Self>> {
        match fs::read(path) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).map(Some).with_context(|| format!("reading `{}`", path.display()))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("reading `{}`", path.display())),
        }
    }

    /// Writes it down.
    pub(super) fn save(&self, directories: &Directories) -> anyhow::Result<()> {
        self.write(&directories.node_file())
    }

    /// The same at that path.
    pub(super) fn write(&self, path: &Path) -> anyhow::Result<()> {
        let bytes = serde_json::to_vec_pretty(self).context("encoding the node's identity")?;
        write_whole(path, 0o600, &bytes).with_context(|| format!("writing `{}`", path.display()))
    }
}

/// The password of `admin`, and whether it was made just now. It lies in a file that only root can read.
pub(super) fn admin_password(directories: &Directories) -> anyhow::Result<(String, bool)> {
    let path = directories.password_file();
    match fs::read_to_string(&path) {
        Ok(text) if text.trim().len() >= 12 => return Ok((text.trim().to_owned(), false)),
        Ok(_) => anyhow::bail!("`{}` holds less than 12 characters; remove it to get a new password", path.display()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("reading `{}`", path.display())),
    }
    // 20 of 32 letters that nobody confuses: 100 bits.
    const LETTERS: &[u8; 32] = b"abcdefghjkmnpqrstuvwxyz234567899";
    let mut random = [0; 20];
    fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut random)).context("reading /dev/urandom")?;
    let mut password = String::new();
    for (i, byte) in random.iter().enumerate() {
        if i > 0 && i % 5 == 0 {
            password.push('-');
        }
        password.push(char::from(LETTERS[usize::from(byte % 32)]));
    }
    write_whole(&path, 0o600, format!("{password}\n").as_bytes())
        .with_context(|| format!("writing `{}`", path.display()))?;
    Ok((password, true))
}
