//! Lines of a container's `/etc/hosts`: `name:address`.

use std::{fmt, net::IpAddr, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{shown, validate_hostname};
use crate::invalid::Invalid;

/// Where a name leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum HostAddress {
    /// This address.
    Address(IpAddr),
    /// The node, as the container reaches it; written `host-gateway`.
    Gateway,
}

impl FromStr for HostAddress {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        if text == "host-gateway" {
            return Ok(Self::Gateway);
        }
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        bare.parse().map(Self::Address).map_err(|_| {
            Invalid::value(format!("`{}` is no address", shown(text)), "write an IP address, or `host-gateway`")
        })
    }
}

impl TryFrom<String> for HostAddress {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<HostAddress> for String {
    fn from(address: HostAddress) -> Self {
        address.to_string()
    }
}

impl fmt::Display for HostAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Gateway => f.write_str("host-gateway"),
        }
    }
}

/// A name that a container knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HostEntry {
    /// The name.
    #[schema(example = "nas")]
    pub name: String,
    /// An IP address, or `host-gateway` for the node.
    #[schema(value_type = String, example = "192.168.1.5")]
    pub address: HostAddress,
}

impl FromStr for HostEntry {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let (name, address) = text.split_once([':', '=']).ok_or_else(|| {
            Invalid::value(format!("`{}` names no address", shown(text)), "write it like `nas:192.168.1.5`")
        })?;
        validate_hostname(name)?;
        Ok(Self { name: name.to_owned(), address: address.parse()? })
    }
}
