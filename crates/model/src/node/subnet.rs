//! Networks of addresses: the cluster's range and the part of it that each node gives its containers.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use crate::{ids::ClusterId, invalid::Invalid};

/// Prefix length of the network one node gets.
const NODE_PREFIX: u8 = 24;

/// An IPv4 network in CIDR form; the host bits are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet {
    /// First address.
    pub base: Ipv4Addr,
    /// Prefix length, 8 to 30.
    pub prefix: u8,
}

impl Subnet {
    /// Number of addresses, the network's and the broadcast address included.
    pub fn size(self) -> u32 {
        1 << (32 - u32::from(self.prefix))
    }

    /// The address `offset` places after the base, if it lies inside.
    pub fn nth(self, offset: u32) -> Option<Ipv4Addr> {
        (offset < self.size()).then(|| Ipv4Addr::from(u32::from(self.base) + offset))
    }

    /// The bridge's own address, the first usable one.
    pub fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.base) + 1)
    }

    /// Whether `address` lies inside.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address) & !(self.size() - 1) == u32::from(self.base)
    }

    /// Whether all of `other` lies inside.
    pub fn holds(self, other: Self) -> bool {
        self.prefix <= other.prefix && self.contains(other.base)
    }

    /// Whether two networks share an address.
    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other.base) || other.contains(self.base)
    }
}

impl FromStr for Subnet {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let shown: String = text.chars().take(40).collect();
        let bad =
            |why: &str| Invalid::value(format!("`{shown}` is no network: {why}"), "write it like `10.210.0.0/16`");
        let (base, prefix) = text.split_once('/').ok_or_else(|| bad("there is no `/`"))?;
        let base: Ipv4Addr = base.parse().map_err(|_| bad("the address is malformed"))?;
        let prefix: u8 = prefix.parse().map_err(|_| bad("the prefix length is no number"))?;
        if !(8..=30).contains(&prefix) {
            return Err(bad("the prefix length is not from 8 to 30"));
        }
        let subnet = Self { base, prefix };
        if !subnet.contains(base) || u32::from(base) & (subnet.size() - 1) != 0 {
            return Err(bad("bits of the address behind the prefix are set"));
        }
        Ok(subnet)
    }
}

impl TryFrom<String> for Subnet {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<Subnet> for String {
    fn from(subnet: Subnet) -> Self {
        subnet.to_string()
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

/// An IPv6 network of 64 bits, of addresses that are unique to one place (RFC 4193).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet6 {
    /// First address.
    pub base: Ipv6Addr,
}

impl Subnet6 {
    /// Prefix length.
    pub const PREFIX: u8 = 64;
    /// Prefix length of all that a cluster has.
    pub const CLUSTER_PREFIX: u8 = 48;

    /// The network that belongs to a node's IPv4 network: 40 bits say which cluster, 16 which /24.
    pub fn of(cluster: ClusterId, subnet: Subnet) -> Self {
        // The end of a version 7 UUID is random.
        let random = cluster.0.as_u128() & 0xff_ffff_ffff;
        let number = u128::from(u32::from(subnet.base) >> 8) & 0xffff;
        Self { base: Ipv6Addr::from(0xfd << 120 | random << 80 | number << 64) }
    }

    /// The address that belongs to an IPv4 address of `subnet`: the same number of places after the base.
    pub fn address(self, subnet: Subnet, address: Ipv4Addr) -> Ipv6Addr {
        let offset = u32::from(address).wrapping_sub(u32::from(subnet.base));
        Ipv6Addr::from(u128::from(self.base) | u128::from(offset))
    }

    /// The bridge's own address, the first usable one.
    pub fn gateway(self) -> Ipv6Addr {
        Ipv6Addr::from(u128::from(self.base) | 1)
    }

    /// Whether `address` is one of the cluster's.
    pub fn is_of_cluster(self, address: Ipv6Addr) -> bool {
        (u128::from(self.base) ^ u128::from(address)) >> (128 - Self::CLUSTER_PREFIX) == 0
    }
}

impl FromStr for Subnet6 {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let shown: String = text.chars().take(60).collect();
        let base = text.strip_suffix("/64").and_then(|base| base.parse::<Ipv6Addr>().ok());
        match base.filter(|base| u128::from(*base) & u128::from(u64::MAX) == 0) {
            Some(base) => Ok(Self { base }),
            None => {
                Err(Invalid::value(format!("`{shown}` is no network of 64 bits"), "write it like `fd00:1:2:3::/64`"))
            }
        }
    }
}

impl TryFrom<String> for Subnet6 {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<Subnet6> for String {
    fn from(subnet: Subnet6) -> Self {
        subnet.to_string()
    }
}

impl fmt::Display for Subnet6 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, Self::PREFIX)
    }
}

/// The first /24 of `range` that overlaps none of `taken`; a smaller range is taken as a whole or not at all. The search
/// begins at the one numbered `from`, wherever that falls in the range: appliances beside each other begin at different
/// ones, because one that has no container yet has no route that others could see.
pub fn pick_subnet(range: Subnet, taken: &[Subnet], from: u32) -> Option<Subnet> {
    let prefix = range.prefix.max(NODE_PREFIX);
    let step = 1_u32 << (32 - u32::from(prefix));
    let count = range.size() / step;
    (0..count)
        .filter_map(|number| range.nth((number + from % count) % count * step))
        .map(|base| Subnet { base, prefix })
        .find(|candidate| !taken.iter().any(|other| other.overlaps(*candidate)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets_parse_and_compare() {
        let a: Subnet = "10.210.0.0/16".parse().unwrap();
        let b: Subnet = "10.210.3.0/24".parse().unwrap();
        assert!(a.overlaps(b) && b.overlaps(a));
        assert!(a.holds(b) && a.holds(a) && !b.holds(a));
        assert_eq!(b.gateway().to_string(), "10.210.3.1");
        assert_eq!(b.nth(255).unwrap().to_string(), "10.210.3.255");
        assert_eq!(b.nth(256), None);
        assert!(!b.overlaps("10.211.0.0/16".parse().unwrap()));
        for bad in ["", "10.0.0.0", "10.0.0.1/24", "10.0.0.0/7", "10.0.0.0/31", "300.0.0.0/8", "a/8"] {
            assert!(bad.parse::<Subnet>().is_err(), "{bad}");
        }
    }

    fn subnet(text: &str) -> Subnet {
        text.parse().unwrap()
    }

    #[test]
    fn every_network_has_its_own_of_ipv6() {
        let cluster = ClusterId("0199c0de-0000-7000-8000-0123456789ab".parse().unwrap());
        let of = |text: &str| Subnet6::of(cluster, subnet(text));
        assert_eq!(of("10.210.3.0/24").to_string(), "fd23:4567:89ab:d203::/64");
        assert_ne!(of("10.210.3.0/24"), of("10.211.3.0/24"));
        let six = of("10.210.3.0/24");
        assert_eq!(
            six.address(subnet("10.210.3.0/24"), "10.210.3.17".parse().unwrap()).to_string(),
            "fd23:4567:89ab:d203::11"
        );
        assert_eq!(six.gateway(), six.address(subnet("10.210.3.0/24"), subnet("10.210.3.0/24").gateway()));
        assert!(six.is_of_cluster(of("10.9.9.0/24").base) && !six.is_of_cluster("fd00::1".parse().unwrap()));
        assert_eq!(six.to_string().parse::<Subnet6>().unwrap(), six);
        for bad in ["", "fd00::/48", "fd00::1/64", "10.0.0.0/24", "x/64"] {
            assert!(bad.parse::<Subnet6>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_first_free_network_is_picked() {
        let check = |range: &str, taken: &[&str], want: Option<&str>| {
            let taken: Vec<Subnet> = taken.iter().map(|text| subnet(text)).collect();
            assert_eq!(pick_subnet(subnet(range), &taken, 0), want.map(subnet), "{range} without {taken:?}");
        };
        check("10.210.0.0/16", &[], Some("10.210.0.0/24"));
        check("10.210.0.0/16", &["10.210.0.0/24", "10.210.1.128/25"], Some("10.210.2.0/24"));
        check("10.210.0.0/16", &["10.210.0.4/30"], Some("10.210.1.0/24"));
        check("10.210.0.0/16", &["10.0.0.0/8"], None);
        check("10.210.0.0/23", &["10.210.0.0/24", "10.210.1.0/24"], None);
        check("10.210.0.64/26", &["10.210.0.0/26"], Some("10.210.0.64/26"));
        check("10.210.0.64/26", &["10.210.0.100/30"], None);
        check("10.0.0.0/8", &["10.0.0.0/9", "192.168.0.0/16"], Some("10.128.0.0/24"));
    }

    #[test]
    fn the_search_begins_where_it_is_told_and_goes_round() {
        let check = |from: u32, taken: &str, want: &str| {
            let picked = pick_subnet(subnet("10.210.0.0/16"), &[subnet(taken)], from);
            assert_eq!(picked, Some(subnet(want)), "from {from} without {taken}");
        };
        check(7, "10.0.0.0/24", "10.210.7.0/24");
        check(256 + 7, "10.210.7.0/24", "10.210.8.0/24");
        check(255, "10.210.255.0/24", "10.210.0.0/24");
        check(u32::MAX, "10.0.0.0/24", "10.210.255.0/24");
    }
}
