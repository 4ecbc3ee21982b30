//! Published ports: `[host:]container[/tcp|udp]`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::invalid::Invalid;

/// Transport protocol of a published port.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP, the default.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// A port of the container that the host shall publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PortSpec {
    /// Port on the host; when absent the scheduler picks a free one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub host: Option<u16>,
    /// Port inside the container, 1 to 65535.
    #[schema(minimum = 1)]
    pub container: u16,
    /// Transport protocol.
    #[serde(default)]
    pub protocol: Protocol,
}

impl FromStr for PortSpec {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let shown: String = text.chars().take(40).collect();
        let bad = |why: String| {
            Invalid::value(
                format!("`{shown}` is no port mapping: {why}"),
                "write `[host:]container[/tcp|udp]`, such as `8080`, `18080:8080` or `53:53/udp`",
            )
        };
        let (ports, protocol) = match text.split_once('/') {
            None | Some((_, "tcp")) => (text.split('/').next().unwrap_or(text), Protocol::Tcp),
            Some((ports, "udp")) => (ports, Protocol::Udp),
            Some((_, other)) => return Err(bad(format!("the protocol `{other}` is unknown"))),
        };
        let number = |part: &str| match part.parse::<u16>() {
            Ok(port) if port > 0 && part.chars().all(|c| c.is_ascii_digit()) => Ok(port),
            _ => Err(bad(format!("`{part}` is no number from 1 to 65535"))),
        };
        let (host, container) = match ports.split_once(':') {
            Some((host, container)) => (Some(number(host)?), number(container)?),
            None => (None, number(ports)?),
        };
        Ok(Self { host, container, protocol })
    }
}

impl fmt::Display for PortSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(host) = self.host {
            write!(f, "{host}:")?;
        }
        write!(f, "{}/{}", self.container, self.protocol)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_parse_and_print() {
        for (text, want) in [
            ("8080", (None, 8080, Protocol::Tcp)),
            ("18080:8080", (Some(18080), 8080, Protocol::Tcp)),
            ("53:53/udp", (Some(53), 53, Protocol::Udp)),
            ("1:65535/tcp", (Some(1), 65535, Protocol::Tcp)),
        ] {
            let port: PortSpec = text.parse().unwrap();
            assert_eq!((port.host, port.container, port.protocol), want);
            assert_eq!(port.to_string().parse::<PortSpec>().unwrap(), port);
        }
        for bad in ["", ":", "a", "0", "65536", "1:2:3", "80/sctp", "80/", "+80", "8080:", ":80", "80-90", "-1"] {
            assert!(bad.parse::<PortSpec>().is_err(), "{bad}");
        }
    }
}
