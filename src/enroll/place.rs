//! What a member remembers of how it became one: the file `place.json` beside its keys.

use std::{fs, net::SocketAddr, path::Path};

use serde::{Deserialize, Serialize};
use toft_model::{ids::NodeId, name::Name};

use super::{KeyError, file, write};
use crate::consensus::{
    network::Contact,
    types::{Identity, MemberId, Role},
};

const FILE: &str = "place.json";

/// What a member remembers. What its configuration says goes before.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Place {
    /// Where it listens for the others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
    /// What it was called when it joined.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// What it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// Who it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_id: Option<NodeId>,
    /// The membership that has no log yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adopt: Option<Identity>,
    /// The members there were when it joined.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<MemberId>,
    /// The member that let it in, and where that was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub contact: Option<Contact>,
}

impl Place {
    /// Reads it; nothing is remembered where there is none.
    pub fn load(folder: &Path) -> Result<Self, KeyError> {
        Ok(Self::find(folder)?.unwrap_or_default())
    }

    /// Reads it, if it is there.
    pub fn find(folder: &Path) -> Result<Option<Self>, KeyError> {
        let path = folder.join(FILE);
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|_| KeyError::Content { path, what: "what this member remembers" }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(file("read", &path, source)),
        }
    }

    /// Writes it, whole or not at all.
    pub fn save(&self, folder: &Path) -> Result<(), KeyError> {
        let path = folder.join(FILE);
        let text = serde_json::to_string_pretty(self)
            .map_err(|_| KeyError::Content { path: path.clone(), what: "what can be written" })?;
        write(&path, &text)
    }
}
