//! Choosing a network for the bridge that nothing on this machine uses yet. Pure.

use std::net::Ipv4Addr;

use toft_model::node::Subnet;

/// Prefix length of the network one node gets.
const NODE_PREFIX: u8 = 24;

/// The longest and shortest prefix a [`Subnet`] can have.
const LONGEST: u8 = 30;
const SHORTEST: u8 = 8;

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

/// The network a route or an address stands for. One smaller than a [`Subnet`] can be is widened; one that covers so
/// much that it can only be a default route in disguise (`0.0.0.0/1` of a VPN) is none.
pub(super) fn covered(address: Ipv4Addr, prefix: u8) -> Option<Subnet> {
    if prefix < SHORTEST {
        return None;
    }
    let prefix = prefix.min(LONGEST);
    let mask = u32::MAX << (32 - u32::from(prefix));
    Some(Subnet { base: Ipv4Addr::from(u32::from(address) & mask), prefix })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(text: &str) -> Subnet {
        text.parse().unwrap()
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
    fn routes_become_networks() {
        let check = |address: &str, prefix, want: Option<&str>| {
            assert_eq!(covered(address.parse().unwrap(), prefix), want.map(subnet), "{address}/{prefix}");
        };
        check("0.0.0.0", 0, None);
        check("128.0.0.0", 1, None);
        check("10.1.2.3", 24, Some("10.1.2.0/24"));
        check("10.1.2.3", 32, Some("10.1.2.0/30"));
        check("10.1.2.6", 31, Some("10.1.2.4/30"));
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
