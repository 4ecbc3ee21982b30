//! The networks that routes and addresses of this machine stand for. Pure.

use std::net::Ipv4Addr;

use toft_model::node::Subnet;

/// The longest and shortest prefix a [`Subnet`] can have.
const LONGEST: u8 = 30;
const SHORTEST: u8 = 8;

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

    #[test]
    fn routes_become_networks() {
        let check = |address: &str, prefix, want: Option<&str>| {
            assert_eq!(
                covered(address.parse().unwrap(), prefix),
                want.map(|text| text.parse().unwrap()),
                "{address}/{prefix}"
            );
        };
        check("0.0.0.0", 0, None);
        check("128.0.0.0", 1, None);
        check("10.1.2.3", 24, Some("10.1.2.0/24"));
        check("10.1.2.3", 32, Some("10.1.2.0/30"));
        check("10.1.2.6", 31, Some("10.1.2.4/30"));
    }
}
