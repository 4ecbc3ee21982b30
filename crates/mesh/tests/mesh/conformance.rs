//! What every device does, whatever carries it.

use std::{net::SocketAddr, time::Instant};

use toft_mesh::MeshError;
use toft_model::mesh::{DEFAULT_PORT, MeshDevice, MeshEndpoint, MeshPath, MeshPeerStatus, PublicKey};

use crate::lab::{Lab, Which, eventually, inner, inner6, underlay};

fn never_set(which: Which) {
    let mut lab = Lab::new(which, 2);
    assert!(lab.status(0).is_none());
    lab.remove(0);
    lab.introduce(0, 1, true);
    lab.nodes[0].config.key = PublicKey([9; 32]);
    assert!(matches!(lab.set(0), Err(MeshError::NoKey { .. })));
    lab.nodes[0].config.key = lab.key(0);
    lab.nodes[0].config.listen_port = 0;
    assert!(matches!(lab.set(0), Err(MeshError::Invalid(_))));
    assert!(lab.status(0).is_none());
}

fn who_know_each_other_reach_each_other(which: Which) {
    let lab = Lab::connected(which, 2);
    let before = lab.status(0).unwrap();
    let device = match which {
        Which::Fake => MeshDevice::Fake,
        Which::Userspace => MeshDevice::Userspace,
        Which::Kernel => MeshDevice::Kernel,
    };
    assert_eq!((before.device, before.key, before.listen_port), (device, lab.key(0), DEFAULT_PORT));
    assert_eq!(before.mtu, 1_420);
    let at = Some(SocketAddr::new(underlay(1), DEFAULT_PORT));
    let new = MeshPeerStatus { endpoint: at, path: Some(MeshPath::Direct), ..MeshPeerStatus::default() };
    assert_eq!(before.peers[&lab.key(1)], new);
    for (from, to) in [(0, inner(1)), (1, inner(0)), (0, inner6(1)), (1, inner6(0))] {
        assert!(lab.reaches(from, to), "{from} to {to}");
    }
    let seen = lab.seen(0, 1);
    assert!(seen.is_live() && seen.endpoint == at && seen.path == Some(MeshPath::Direct), "{seen:?}");
    assert!(seen.rx_bytes > 100 && seen.tx_bytes > 100 && !seen.uses_next_key, "{seen:?}");
}

fn setting_again_disturbs_nobody(which: Which) {
    let mut lab = Lab::connected(which, 3);
    assert!(lab.reaches(0, inner(1)) && lab.reaches(0, inner(2)));
    let (first, begun) = (lab.seen(0, 1), Instant::now());
    let stays = |lab: &Lab, what: &str| {
        // Rounding aside, a session ages as time goes by.
        let least = first.handshake_age_ms.map(|age| (age + begun.elapsed().as_millis() as u64).saturating_sub(20));
        let now = lab.seen(0, 1);
        assert!(now.handshake_age_ms >= least, "{what}: a new session was made: {first:?}, {now:?}");
        assert!(now.rx_bytes >= first.rx_bytes, "{what}: what was counted is lost");
        assert!(lab.reaches(0, inner(1)), "{what}");
    };
    lab.set(0).unwrap();
    stays(&lab, "the same again");
    let third = lab.key(2);
    lab.nodes[0].config.peers.get_mut(&third).unwrap().keepalive_s = Some(20);
    lab.nodes[0].config.peers.get_mut(&third).unwrap().allowed.insert("10.98.0.0/24".parse().unwrap());
    lab.set(0).unwrap();
    stays(&lab, "another peer's change");
    lab.nodes[0].config.peers.remove(&third);
    lab.set(0).unwrap();
    stays(&lab, "another peer's end");
    assert!(!lab.reaches_nevertheless(2, inner(0)), "who was removed is refused at once");
    assert!(!lab.reaches_nevertheless(0, inner(2)));
    lab.introduce(0, 2, true);
    lab.set(0).unwrap();
    stays(&lab, "another peer's return");
    assert!(lab.reaches(0, inner(2)));
}

fn a_refused_configuration_changes_nothing(which: Which) {
    let mut lab = Lab::connected(which, 2);
    assert!(lab.reaches(0, inner(1)));
    let good = lab.nodes[0].config.clone();
    let other = lab.key(1);
    lab.nodes[0].config.peers.get_mut(&other).unwrap().allowed.insert("10.99.1.0/24".parse().unwrap());
    let refused = lab.set(0).unwrap_err();
    assert!(refused.to_string().contains("overlaps"), "{refused}");
    assert!(lab.reaches(0, inner(1)));
    lab.nodes[0].config = good;
    lab.set(0).unwrap();
    assert!(lab.reaches(0, inner(1)));
}

fn where_a_peer_is_is_learned_from_it(which: Which) {
    let mut lab = Lab::new(which, 2);
    lab.introduce(0, 1, false);
    lab.introduce(1, 0, true);
    lab.set(0).unwrap();
    lab.set(1).unwrap();
    assert_eq!(lab.seen(0, 1).endpoint, None);
    assert!(!lab.reaches_nevertheless(0, inner(1)), "nobody knows where it is yet");
    assert!(lab.reaches(1, inner(0)));
    assert_eq!(lab.seen(0, 1).endpoint, Some(SocketAddr::new(underlay(1), DEFAULT_PORT)));
    assert!(lab.reaches(0, inner(1)));
    // It stays known when the same is said again, and another address counts when it is said.
    lab.set(0).unwrap();
    assert!(lab.reaches(0, inner(1)));
    let elsewhere = SocketAddr::new(underlay(1), 9);
    let other = lab.key(1);
    lab.nodes[0].config.peers.get_mut(&other).unwrap().endpoints = vec![MeshEndpoint::direct(elsewhere)];
    lab.set(0).unwrap();
    assert_eq!(lab.seen(0, 1).endpoint, Some(elsewhere));
}

fn a_strangers_key_opens_nothing(which: Which) {
    let mut lab = Lab::new(which, 3);
    lab.introduce(0, 1, true);
    // Node 2 knows node 0, who does not know it.
    lab.introduce(2, 0, true);
    lab.set(0).unwrap();
    lab.set(2).unwrap();
    assert!(!lab.reaches_nevertheless(2, inner(0)));
    assert!(!lab.seen(2, 0).is_live());
    let seen = lab.seen(0, 1);
    assert!(seen.handshake_age_ms.is_none() && seen.rx_bytes == 0, "{seen:?}");
}

fn nothing_is_left_after_removal(which: Which) {
    let lab = Lab::connected(which, 2);
    assert!(lab.reaches(0, inner(1)));
    lab.remove(0);
    assert!(lab.status(0).is_none());
    assert!(!lab.reaches_nevertheless(1, inner(0)));
    lab.remove(0);
    lab.set(0).unwrap();
    assert!(lab.reaches(0, inner(1)), "it can be made again");
}

fn a_node_changes_its_key_without_being_lost(which: Which) {
    let mut lab = Lab::connected(which, 2);
    assert!(lab.reaches(0, inner(1)));
    let old = lab.key(1);
    let step = lab.nodes[1].keys.step(std::time::Duration::ZERO, false).unwrap();
    let toft_mesh::keys::Step::Announce(next) = step else { panic!("{step:?}") };
    lab.nodes[0].config.peers.get_mut(&old).unwrap().next_key = Some(next);
    lab.set(0).unwrap();
    assert!(lab.reaches(0, inner(1)) && lab.reaches(1, inner(0)));
    assert!(!lab.status(0).unwrap().peers[&old].uses_next_key);
    lab.nodes[1].keys.switch().unwrap();
    lab.nodes[1].config.key = next;
    lab.set(1).unwrap();
    // The kernel's device follows when it is set again.
    eventually("the next key in use", || {
        lab.set(0).unwrap();
        lab.reaches_nevertheless(1, inner(0))
    });
    assert!(lab.reaches(0, inner(1)));
    assert!(lab.status(0).unwrap().peers[&old].uses_next_key);
    let peer = lab.nodes[0].config.peers.remove(&old).unwrap();
    lab.nodes[0].config.peers.insert(next, toft_model::mesh::MeshPeer { next_key: None, ..peer });
    lab.set(0).unwrap();
    assert!(lab.reaches(0, inner(1)) && lab.reaches(1, inner(0)));
    let seen = lab.status(0).unwrap().peers[&next].clone();
    assert!(seen.is_live() && !seen.uses_next_key, "{seen:?}");
}

macro_rules! conformance {
    ($($name:ident),* $(,)?) => {
        mod fake { $(#[test] fn $name() { super::$name(super::Which::Fake); })* }
        mod userspace { $(#[test] fn $name() { super::$name(super::Which::Userspace); })* }
        mod kernel { $(#[test] #[ignore = "needs a kernel with WireGuard"] fn $name() { super::$name(super::Which::Kernel); })* }
    };
}

conformance!(
    never_set,
    who_know_each_other_reach_each_other,
    setting_again_disturbs_nobody,
    a_refused_configuration_changes_nothing,
    where_a_peer_is_is_learned_from_it,
    a_strangers_key_opens_nothing,
    nothing_is_left_after_removal,
    a_node_changes_its_key_without_being_lost,
);
