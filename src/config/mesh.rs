//! `[mesh]`: the encrypted network between nodes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use serde::Deserialize;
use toft_model::{
    invalid::Invalid,
    mesh::{
        DEFAULT_PORT, MAX_MTU, MIN_MTU, MeshConfig as Whole, MeshEndpoint, MeshNet, MeshPeer, PublicKey, is_somebodys,
    },
    name::Name,
    units::parse_span_ms,
};

/// Most addresses that somebody can write down for this node.
const MAX_ADVERTISED: usize = 4;
/// Longest name of an interface.
const NAME_LENGTH: usize = 15;

/// The encrypted network between nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeshConfig {
    /// Whether there may be one.
    pub enabled: bool,
    /// Name of its interface; absent: the usual one of this appliance.
    pub interface: Option<String>,
    /// UDP port at which it listens.
    pub listen_port: u16,
    /// Size in bytes of the packets it carries; absent: what the ways to the peers have room for.
    pub mtu: Option<u16>,
    /// Where others reach this node, when that cannot be seen here: behind a router that forwards a port.
    pub advertise: Vec<SocketAddr>,
    /// Where members are answered besides, for those whose network lets out little: 443 as a rule.
    pub relay_listen: Option<SocketAddr>,
    /// Peers that somebody wrote down, by their key. They need not be nodes.
    pub peers: BTreeMap<PublicKey, MeshPeer>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct MeshSection {
    enabled: Option<bool>,
    interface: Option<String>,
    listen_port: Option<u16>,
    mtu: Option<u16>,
    advertise: Vec<String>,
    relay_listen: Option<String>,
    peers: BTreeMap<String, PeerSection>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PeerSection {
    key: String,
    endpoint: Option<String>,
    allowed: Vec<String>,
    keepalive: Option<String>,
}

impl MeshSection {
    /// What is meant. Faults are told to `note` with their key; then what is given is not used.
    pub(super) fn resolve(self, note: &mut impl FnMut(&str, Invalid)) -> MeshConfig {
        if let Some(name) = self.interface.as_deref().filter(|name| !is_name(name)) {
            let hint = format!("use 1 to {NAME_LENGTH} letters, digits and hyphens");
            note("mesh.interface", Invalid::value(format!("`{name}` is no name of an interface"), hint));
        }
        let listen_port = self.listen_port.unwrap_or(DEFAULT_PORT);
        if listen_port == 0 {
            note("mesh.listen_port", Invalid::value("port 0 is no port", "use 1 to 65535"));
        }
        if let Some(mtu) = self.mtu.filter(|mtu| !(MIN_MTU..=MAX_MTU).contains(mtu)) {
            let hint = format!("use {MIN_MTU} to {MAX_MTU}, or leave it out");
            note("mesh.mtu", Invalid::value(format!("{mtu} is out of range"), hint));
        }
        let mut advertise = Vec::new();
        for text in &self.advertise {
            match place(text, listen_port) {
                Some(place) => advertise.push(place),
                None => {
                    let hint = "write it like `203.0.113.7` or `203.0.113.7:51820`";
                    note("mesh.advertise", Invalid::value(format!("`{text}` is no address of this node"), hint));
                }
            }
        }
        if advertise.len() > MAX_ADVERTISED {
            let hint = format!("write at most {MAX_ADVERTISED}");
            note("mesh.advertise", Invalid::value(format!("{} addresses are too many", advertise.len()), hint));
        }
        let relay_listen = self.relay_listen.as_deref().and_then(|text| {
            let address = text.parse::<SocketAddr>().ok().filter(|address| address.port() != 0);
            if address.is_none() {
                let hint = "write it like `0.0.0.0:443` or `[::]:443`";
                note("mesh.relay_listen", Invalid::value(format!("`{text}` is no address with a port"), hint));
            }
            address
        });
        let mut peers = BTreeMap::new();
        for (name, section) in self.peers {
            let key = format!("mesh.peers.{name}");
            if let Err(error) = name.parse::<Name>() {
                note(&key, error);
            }
            match section.resolve() {
                Ok((public, peer)) => {
                    if peers.insert(public, peer).is_some() {
                        note(&key, Invalid::value("its key is another peer's too", "give every peer a key of its own"));
                    }
                }
                Err(error) => note(&format!("{key}.{}", error.field), error),
            }
        }
        let whole = Whole {
            key: PublicKey([0; 32]),
            listen_port: DEFAULT_PORT,
            addresses: BTreeSet::new(),
            networks: BTreeSet::new(),
            mtu: None,
            peers,
        };
        if let Err(error) = whole.check() {
            note(&format!("mesh.{}", error.field), error);
        }
        let enabled = self.enabled.unwrap_or(true);
        let Whole { peers, .. } = whole;
        MeshConfig { enabled, interface: self.interface, listen_port, mtu: self.mtu, advertise, relay_listen, peers }
    }
}

impl PeerSection {
    fn resolve(self) -> Result<(PublicKey, MeshPeer), Invalid> {
        let key = self.key.parse().map_err(|error: Invalid| error.at("key"))?;
        let endpoint: Option<SocketAddr> = match &self.endpoint {
            None => None,
            Some(text) => Some(text.parse().map_err(|_| {
                Invalid::value(format!("`{text}` is no address with a port"), "write it like `192.0.2.7:51820`")
                    .at("endpoint")
            })?),
        };
        let allowed: Result<BTreeSet<MeshNet>, Invalid> = self.allowed.iter().map(|net| net.parse()).collect();
        let keepalive_s = match self.keepalive.as_deref().map(parse_span_ms).transpose() {
            Ok(None) => None,
            Ok(Some(ms)) => Some(
                u16::try_from(ms / 1_000)
                    .ok()
                    .filter(|seconds| *seconds > 0)
                    .ok_or_else(|| Invalid::value("the time is out of range", "use 1s to 18h").at("keepalive"))?,
            ),
            Err(error) => return Err(error.at("keepalive")),
        };
        let endpoints = endpoint.map(MeshEndpoint::direct).into_iter().collect();
        let allowed = allowed.map_err(|error| error.at("allowed"))?;
        Ok((key, MeshPeer { next_key: None, endpoints, allowed, keepalive_s }))
    }
}

/// An address with or without a port, if others can reach somebody there.
fn place(text: &str, port: u16) -> Option<SocketAddr> {
    let alone = || text.parse::<IpAddr>().ok().map(|address| SocketAddr::new(address, port));
    text.parse::<SocketAddr>().ok().or_else(alone).filter(|place| is_somebodys(*place))
}

fn is_name(name: &str) -> bool {
    (1..=NAME_LENGTH).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(text: &str) -> (MeshConfig, Vec<String>) {
        let mut faults = Vec::new();
        let section: MeshSection = toml::from_str(text).unwrap();
        let config = section.resolve(&mut |key, invalid| faults.push(format!("{key}: {}", invalid.message)));
        (config, faults)
    }

    const KEY: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";

    #[test]
    fn peers_can_be_written_down() {
        let text = format!(
            "[peers.laptop]\nkey = '{KEY}'\nendpoint = '192.0.2.7:51820'\nallowed = ['10.8.0.2', 'fd08::/64']\nkeepalive = '25s'\n"
        );
        let (config, faults) = resolve(&text);
        assert_eq!(faults, Vec::<String>::new());
        let peer = &config.peers[&KEY.parse().unwrap()];
        assert_eq!(peer.endpoints, [MeshEndpoint::direct("192.0.2.7:51820".parse().unwrap())]);
        assert_eq!((peer.allowed.len(), peer.keepalive_s), (2, Some(25)));
        let (config, faults) = resolve("listen_port = 7\nadvertise = ['192.0.2.7', '[2001:db8::7]:9']");
        assert_eq!(faults, Vec::<String>::new());
        assert_eq!(config.advertise, ["192.0.2.7:7".parse().unwrap(), "[2001:db8::7]:9".parse().unwrap()]);
        let (config, _) = resolve("relay_listen = '[::]:443'");
        assert_eq!(config.relay_listen, Some("[::]:443".parse().unwrap()));
        let (config, faults) = resolve("");
        assert!(faults.is_empty() && config.enabled && config.peers.is_empty());
        assert_eq!((config.listen_port, config.mtu), (51820, None));
    }

    #[test]
    fn faults_name_their_key() {
        let check = |text: &str, key: &str| {
            let (_, faults) = resolve(text);
            assert!(faults.len() == 1 && faults[0].starts_with(key), "{key}: {faults:?}");
        };
        check("interface = 'a/b'", "mesh.interface");
        check("interface = 'a-name-that-is-too-long'", "mesh.interface");
        check("listen_port = 0", "mesh.listen_port");
        check("mtu = 1279", "mesh.mtu");
        check("relay_listen = '443'", "mesh.relay_listen");
        check("relay_listen = '0.0.0.0:0'", "mesh.relay_listen");
        check("advertise = ['home']", "mesh.advertise");
        check("advertise = ['127.0.0.1']", "mesh.advertise");
        check("advertise = ['192.0.2.7:0']", "mesh.advertise");
        check("advertise = ['192.0.2.1', '192.0.2.2', '192.0.2.3', '192.0.2.4', '192.0.2.5']", "mesh.advertise");
        check("[peers.a]\nkey = 'x'\nallowed = []", "mesh.peers.a.key");
        let peer = |name: &str, key: &str, rest: &str| format!("[peers.{name}]\nkey = '{key}'\n{rest}\n");
        check(&peer("a", KEY, "allowed = ['10.0.0.1/8']"), "mesh.peers.a.allowed");
        check(&peer("a", KEY, "allowed = []\nendpoint = 'home'"), "mesh.peers.a.endpoint");
        check(&peer("a", KEY, "allowed = []\nendpoint = '0.0.0.0:5'"), "mesh.peers");
        check(&peer("a", KEY, "allowed = []\nkeepalive = '10ms'"), "mesh.peers.a.keepalive");
        check(&peer("'A B'", KEY, "allowed = []"), "mesh.peers.A B");
        let other = "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=";
        let both = |key: &str| peer("a", KEY, "allowed = ['10.8.0.0/24']") + &peer("b", key, "allowed = ['10.8.0.9']");
        check(&both(other), "mesh.peers");
        check(&both(KEY), "mesh.peers.b");
    }
}
