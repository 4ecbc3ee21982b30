//! What a node says of itself so that the others find it.

use std::{collections::BTreeSet, net::SocketAddr};

use serde::{Deserialize, Serialize};

use super::{PublicKey, canonical};
use crate::invalid::Invalid;

/// Most addresses that one node tells of itself.
pub const MAX_TOLD: usize = 8;

/// A node's end of the mesh, as it tells the others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshNode {
    /// The key it speaks with.
    pub key: PublicKey,
    /// The key it will speak with soon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_key: Option<PublicKey>,
    /// UDP port at which it listens.
    pub port: u16,
    /// Where it may be reached, most likely first. A router in between can make a port another one.
    pub endpoints: Vec<SocketAddr>,
    /// TCP port at which it relays for others, beside the one at which members speak with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relay_port: Option<u16>,
}

impl MeshNode {
    /// What is wrong with it, if anything.
    pub fn check(&self) -> Result<(), Invalid> {
        if self.port == 0 {
            return Err(Invalid::value("port 0 is no port", "use 1 to 65535").at("port"));
        }
        if self.relay_port == Some(0) {
            return Err(Invalid::value("port 0 is no port", "use 1 to 65535").at("relay_port"));
        }
        if self.next_key == Some(self.key) {
            return Err(Invalid::value("the next key is the present one", "make a new key").at("next_key"));
        }
        if self.endpoints.len() > MAX_TOLD {
            let message = format!("{} addresses are too many", self.endpoints.len());
            return Err(Invalid::value(message, format!("tell at most {MAX_TOLD}")).at("endpoints"));
        }
        let mut seen = BTreeSet::new();
        for endpoint in &self.endpoints {
            if !is_somebodys(*endpoint) {
                let message = format!("{endpoint} is nobody's address");
                return Err(Invalid::value(message, "write it like `192.0.2.7:51820`").at("endpoints"));
            }
            if !seen.insert(canonical(*endpoint)) {
                let message = format!("{endpoint} is told twice");
                return Err(Invalid::value(message, "tell every address once").at("endpoints"));
            }
        }
        Ok(())
    }
}

/// Whether another machine can be behind an address.
pub fn is_somebodys(address: SocketAddr) -> bool {
    let ip = address.ip().to_canonical();
    address.port() != 0 && !(ip.is_unspecified() || ip.is_multicast() || ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_can_use_is_refused_with_its_field() {
        let good = MeshNode {
            key: PublicKey([1; 32]),
            next_key: Some(PublicKey([2; 32])),
            port: 51820,
            endpoints: vec!["192.0.2.7:51820".parse().unwrap(), "[2001:db8::7]:51820".parse().unwrap()],
            relay_port: Some(443),
        };
        assert_eq!(good.check(), Ok(()));
        let check = |change: &dyn Fn(&mut MeshNode), field: &str| {
            let mut node = good.clone();
            change(&mut node);
            assert_eq!(node.check().unwrap_err().field, field);
        };
        check(&|node| node.port = 0, "port");
        check(&|node| node.relay_port = Some(0), "relay_port");
        check(&|node| node.next_key = Some(node.key), "next_key");
        for bad in ["0.0.0.0:1", "127.0.0.1:1", "192.0.2.7:0", "224.0.0.1:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            check(&|node| node.endpoints.push(bad.parse().unwrap()), "endpoints");
        }
        check(&|node| node.endpoints.push("[::ffff:192.0.2.7]:51820".parse().unwrap()), "endpoints");
        let many = |node: &mut MeshNode| {
            node.endpoints = (1..=9).map(|last| format!("192.0.2.{last}:1").parse().unwrap()).collect();
        };
        check(&many, "endpoints");
    }
}
