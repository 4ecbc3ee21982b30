use proptest::prelude::*;

use super::*;

fn key(byte: u8) -> PublicKey {
    PublicKey([byte; 32])
}

fn peer(allowed: &[&str]) -> MeshPeer {
    MeshPeer { allowed: allowed.iter().map(|net| net.parse().unwrap()).collect(), ..MeshPeer::default() }
}

fn config(peers: &[(u8, &[&str])]) -> MeshConfig {
    MeshConfig {
        key: key(0),
        listen_port: DEFAULT_PORT,
        addresses: BTreeSet::from(["10.210.0.1".parse().unwrap(), "fd00::1".parse().unwrap()]),
        networks: BTreeSet::from(["10.220.1.0/24".parse().unwrap()]),
        mtu: None,
        peers: peers.iter().map(|(byte, allowed)| (key(*byte), peer(allowed))).collect(),
    }
}

#[test]
fn keys_are_written_as_wireguard_writes_them() {
    let text = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
    let key: PublicKey = text.parse().unwrap();
    assert_eq!(key.to_string(), text);
    assert_eq!(serde_json::from_str::<PublicKey>(&format!("\"{text}\"")).unwrap(), key);
    for wrong in ["", "AAAA", "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg", "!!", &"A".repeat(10_000)] {
        assert!(wrong.parse::<PublicKey>().is_err(), "{wrong}");
    }
}

#[test]
fn networks_have_one_way_to_be_written() {
    let check = |text: &str, want: Option<&str>| {
        let found = text.parse::<MeshNet>().ok().map(|net| net.to_string());
        assert_eq!(found.as_deref(), want, "{text}");
    };
    check("10.1.2.0/24", Some("10.1.2.0/24"));
    check("10.1.2.3", Some("10.1.2.3/32"));
    check("fd00::/64", Some("fd00::/64"));
    check("fd00::5", Some("fd00::5/128"));
    check("10.1.2.3/24", None);
    check("10.1.2.0/33", None);
    check("0.0.0.0/0", None);
    check("128.0.0.0/1", None);
    check("::/0", None);
    check("10.1.2.0/", None);
    check("x", None);
}

#[test]
fn a_peer_cannot_claim_what_is_anothers() {
    config(&[(1, &["10.210.1.0/24", "10.210.1.1/32", "fd00:0:0:1::/64"]), (2, &["10.210.2.0/24"])]).check().unwrap();
    for (peers, words) in [
        (&[(1, &["10.210.1.0/24"][..]), (2, &["10.210.1.7/32"][..])][..], "overlaps 10.210.1.0/24"),
        (&[(1, &["10.210.0.0/16"][..]), (2, &["10.211.0.0/16"][..])][..], "of this node"),
        (&[(1, &["10.211.0.0/16", "10.211.9.0/24"][..]), (2, &["10.211.200.0/24"][..])][..], "overlaps 10.211.0.0/16"),
        (&[(1, &["fd00::/64"][..])][..], "of this node"),
        (&[(1, &["10.220.1.9"][..])][..], "of this node"),
        (&[(0, &["10.9.0.0/16"][..])][..], "used twice"),
    ] {
        let refused = config(peers).check().unwrap_err();
        assert!(refused.message.contains(words), "{words}: {}", refused.message);
    }
    let mut twice = config(&[(1, &[]), (2, &[])]);
    twice.peers.get_mut(&key(1)).unwrap().next_key = Some(key(2));
    assert!(twice.check().unwrap_err().message.contains("used twice"));
}

#[test]
fn limits_are_named_with_their_field() {
    let check = |change: &dyn Fn(&mut MeshConfig), field: &str| {
        let mut config = config(&[(1, &["10.210.1.0/24"])]);
        change(&mut config);
        let refused = config.check().unwrap_err();
        assert!(refused.field.contains(field) && !refused.hint.is_empty(), "{field}: {refused:?}");
    };
    let first =
        |config: &mut MeshConfig, change: &dyn Fn(&mut MeshPeer)| change(config.peers.get_mut(&key(1)).unwrap());
    check(&|config| config.listen_port = 0, "listen_port");
    check(&|config| config.mtu = Some(1_279), "mtu");
    check(&|config| config.mtu = Some(9_001), "mtu");
    check(&|config| first(config, &|peer| peer.keepalive_s = Some(0)), "keepalive_s");
    let at = |address: &str| MeshEndpoint::direct(address.parse().unwrap());
    for wrong in ["0.0.0.0:1", "[::]:1", "192.0.2.1:0", "224.0.0.1:5"] {
        check(&|config| first(config, &|peer| peer.endpoints = vec![at(wrong)]), "endpoints");
    }
    check(&|config| first(config, &|peer| peer.endpoints = vec![at("192.0.2.1:5"); MAX_ENDPOINTS + 1]), "endpoints");
    let many =
        |count: u32| (0..count).map(|n| MeshNet::of(from_number(number("10.9.0.0".parse().unwrap()) + u128::from(n))));
    check(&|config| first(config, &|peer| peer.allowed = many(65).collect()), "allowed");
    let crowd = |n: u16| PublicKey(std::array::from_fn(|at| if at < 2 { n.to_be_bytes()[at] } else { 7 }));
    check(&|config| config.peers = (0..1_025).map(|n| (crowd(n), MeshPeer::default())).collect(), "peers");
}

#[test]
fn relays_are_told_and_never_learned() {
    let relay = MeshEndpoint { address: "127.0.0.1:4000".parse().unwrap(), path: MeshPath::Relayed };
    let peer = MeshPeer { endpoints: vec![relay], ..MeshPeer::default() };
    assert_eq!(peer.path_of("[::ffff:127.0.0.1]:4000".parse().unwrap()), MeshPath::Relayed);
    assert_eq!(peer.path_of("192.0.2.1:4000".parse().unwrap()), MeshPath::Direct);
}

proptest! {
    #[test]
    fn overlap_is_what_the_addresses_say(a in any::<u32>(), b in any::<u32>(), p in 8_u8..=32, q in 8_u8..=32) {
        let net = |address: u32, prefix: u8| {
            let mask = u32::MAX << (32 - u32::from(prefix));
            MeshNet::new(IpAddr::V4((address & mask).into()), prefix).unwrap()
        };
        // Near each other, so that both answers are frequent.
        let b = a ^ (b >> 12);
        let (one, other) = (net(a, p), net(b, q));
        let shared = p.min(q);
        let mask = u32::MAX << (32 - u32::from(shared));
        prop_assert_eq!(one.overlaps(other), a & mask == b & mask);
        prop_assert_eq!(one.overlaps(other), other.overlaps(one));
    }
}
