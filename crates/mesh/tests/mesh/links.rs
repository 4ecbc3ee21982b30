//! Interfaces, addresses, routes and sizes; what is in the way, and what is left of a daemon that was killed.

use std::net::SocketAddr;

use toft_mesh::MeshError;
use toft_model::mesh::{DEFAULT_PORT, MeshEndpoint, MeshPath};

use crate::lab::{INTERFACE, Lab, Which, eventually, inner, underlay};

fn routes_and_addresses_are_those_of_the_configuration(which: Which) {
    let mut lab = Lab::connected(which, 3);
    let namespace = lab.namespace(0);
    let shown = || (namespace.ip("-br addr show dev toft-wg"), namespace.ip("route show dev toft-wg"));
    let (addresses, routes) = shown();
    assert!(addresses.contains("10.99.1.1/32") && addresses.contains("fd99:0:0:1::1/128"), "{addresses}");
    assert!(routes.contains("10.99.2.0/24") && routes.contains("10.99.3.0/24"), "{routes}");
    assert!(namespace.ip("-6 route show dev toft-wg").contains("fd99:0:0:2::/64"));
    // What somebody else put there goes, what is missing comes back.
    namespace.ip("addr add 10.97.0.1/32 dev toft-wg");
    namespace.ip("route add 10.97.5.0/24 dev toft-wg proto static");
    namespace.ip("route del 10.99.2.0/24 dev toft-wg");
    lab.set(0).unwrap();
    assert_eq!(shown(), (addresses, routes));
    let third = lab.key(2);
    lab.nodes[0].config.peers.remove(&third);
    lab.nodes[0].config.addresses.remove(&inner(0));
    lab.set(0).unwrap();
    let namespace = lab.namespace(0);
    assert!(!namespace.ip("route show dev toft-wg").contains("10.99.3.0/24"));
    assert!(!namespace.ip("-br addr show dev toft-wg").contains("10.99.1.1"));
    lab.remove(0);
    assert!(!namespace.has_link(INTERFACE));
    assert!(!namespace.ip("route show").contains("10.99."));
}

fn packets_are_as_large_as_the_way_allows(which: Which) {
    let mut lab = Lab::new(which, 3);
    lab.introduce(0, 1, true);
    lab.introduce(0, 2, true);
    let small = |mtu: u16| format!("route replace {}/32 dev under mtu lock {mtu}", underlay(2));
    lab.namespace(0).ip(&small(1_400));
    lab.set(0).unwrap();
    assert_eq!(lab.status(0).unwrap().mtu, 1_420);
    let route = |lab: &Lab, n: usize| lab.namespace(0).ip(&format!("route get {}", inner(n)));
    assert!(route(&lab, 2).contains("mtu 1320") && !route(&lab, 1).contains("mtu"), "{}", route(&lab, 2));
    // It is asked again, and nothing smaller than what IPv6 needs is offered.
    lab.namespace(0).ip(&small(1_300));
    lab.set(0).unwrap();
    assert!(route(&lab, 2).contains("mtu 1280"), "{}", route(&lab, 2));
    lab.nodes[0].config.mtu = Some(1_350);
    lab.set(0).unwrap();
    assert_eq!(lab.status(0).unwrap().mtu, 1_350);
    assert!(!route(&lab, 2).contains("mtu"));
    assert!(lab.namespace(0).ip("link show toft-wg").contains("mtu 1350"));
}

fn an_interface_of_others_is_left_alone(which: Which) {
    let lab = Lab::connected(which, 2);
    lab.remove(0);
    lab.namespace(0).ip("link add toft-wg type bridge");
    let refused = lab.set(0).unwrap_err();
    assert!(matches!(refused, MeshError::NameTaken { .. }) && refused.hint().is_some(), "{refused}");
    assert!(lab.namespace(0).ip("-d link show toft-wg").contains("bridge"));
    lab.namespace(0).ip("link del toft-wg");
    lab.set(0).unwrap();
    assert!(lab.reaches(0, inner(1)));
}

fn a_route_of_others_is_left_alone(which: Which) {
    let lab = Lab::connected(which, 2);
    lab.remove(0);
    lab.namespace(0).ip("route add 10.99.2.0/24 dev under");
    let refused = lab.set(0).unwrap_err();
    assert!(matches!(refused, MeshError::RouteTaken { net } if net.to_string() == "10.99.2.0/24"), "{refused}");
    assert!(lab.namespace(0).ip("route show 10.99.2.0/24").contains("dev under"));
    lab.namespace(0).ip("route del 10.99.2.0/24 dev under");
    lab.set(0).unwrap();
    assert!(lab.reaches(0, inner(1)));
}

fn a_taken_port_is_named(which: Which) {
    let mut lab = Lab::connected(which, 2);
    lab.remove(0);
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let (ready, bound) = std::sync::mpsc::channel();
    let holder = lab.namespace(0).spawn(move || {
        let sockets = [("0.0.0.0", 51_820), ("::", 51_821)].map(|address| std::net::UdpSocket::bind(address).unwrap());
        ready.send(()).unwrap();
        let _ = stopped.recv();
        drop(sockets);
    });
    bound.recv().unwrap();
    for port in [51_820, 51_821] {
        lab.nodes[0].config.listen_port = port;
        let refused = lab.set(0).unwrap_err();
        assert!(matches!(refused, MeshError::PortTaken { port: taken } if taken == port), "{refused}");
    }
    drop(stop);
    holder.join().unwrap();
    lab.nodes[0].config.listen_port = 51_820;
    lab.set(0).unwrap();
    assert!(lab.reaches(0, inner(1)));
    // Another port, on a device that is there.
    lab.nodes[0].config.listen_port = 51_822;
    lab.set(0).unwrap();
    assert_eq!(lab.status(0).unwrap().listen_port, 51_822);
    assert!(lab.reaches(0, inner(1)), "the other one learns the new port");
}

fn a_link_that_somebody_removed_is_made_again(which: Which) {
    let lab = Lab::connected(which, 2);
    assert!(lab.reaches(0, inner(1)));
    lab.namespace(0).ip("link del toft-wg");
    assert!(!lab.reaches_nevertheless(0, inner(1)));
    lab.set(0).unwrap();
    assert!(lab.reaches(0, inner(1)));
}

fn a_peer_that_moves_is_followed(which: Which) {
    let lab = Lab::connected(which, 2);
    assert!(lab.reaches(1, inner(0)));
    let namespace = lab.namespace(1);
    namespace.ip("addr add 192.0.2.77/24 dev under");
    namespace.ip(&format!("addr del {}/24 dev under", underlay(1)));
    namespace.ip("addr add 192.0.2.77/24 dev under");
    // It asks from its new address, and the answer goes there.
    assert!(lab.reaches(1, inner(0)));
    let moved = SocketAddr::from(([192, 0, 2, 77], DEFAULT_PORT));
    eventually("the new address", || lab.seen(0, 1).endpoint == Some(moved));
    assert!(lab.reaches(0, inner(1)));
}

fn keepalives_make_and_keep_a_session_without_traffic(which: Which) {
    let mut lab = Lab::new(which, 2);
    lab.introduce(0, 1, false);
    lab.introduce(1, 0, true);
    let first = lab.key(0);
    lab.nodes[1].config.peers.get_mut(&first).unwrap().keepalive_s = Some(1);
    lab.set(0).unwrap();
    lab.set(1).unwrap();
    eventually("a session", || lab.seen(0, 1).is_live());
    let before = lab.seen(0, 1).rx_bytes;
    eventually("keepalives", || lab.seen(0, 1).rx_bytes >= before + 64);
}

macro_rules! of_kernels {
    ($($name:ident),* $(,)?) => {
        mod userspace { $(#[test] fn $name() { super::$name(super::Which::Userspace); })* }
        mod kernel { $(#[test] #[ignore = "needs a kernel with WireGuard"] fn $name() { super::$name(super::Which::Kernel); })* }
    };
}

of_kernels!(
    routes_and_addresses_are_those_of_the_configuration,
    packets_are_as_large_as_the_way_allows,
    an_interface_of_others_is_left_alone,
    a_route_of_others_is_left_alone,
    a_taken_port_is_named,
    a_link_that_somebody_removed_is_made_again,
    a_peer_that_moves_is_followed,
    keepalives_make_and_keep_a_session_without_traffic,
);

#[test]
fn a_stale_tun_interface_is_taken_over() {
    let lab = Lab::connected(Which::Userspace, 2);
    lab.remove(0);
    lab.namespace(0).ip("tuntap add dev toft-wg mode tun");
    lab.namespace(0).ip("addr add 10.97.0.1/32 dev toft-wg");
    lab.set(0).unwrap();
    assert!(lab.reaches(0, inner(1)));
    assert!(!lab.namespace(0).ip("addr show dev toft-wg").contains("10.97.0.1"));
}

#[test]
#[ignore = "needs a kernel with WireGuard"]
fn a_kernels_device_outlives_the_daemon_with_its_sessions() {
    let mut lab = Lab::connected(Which::Kernel, 2);
    assert!(lab.reaches(0, inner(1)));
    let before = lab.seen(0, 1);
    // Another object for the same interface, as a new daemon has.
    lab.renew(0);
    assert!(lab.reaches(1, inner(0)), "packets go on without a daemon");
    lab.set(0).unwrap();
    let after = lab.seen(0, 1);
    assert!(after.handshake_age_ms >= before.handshake_age_ms && after.rx_bytes >= before.rx_bytes, "{after:?}");
    assert!(lab.reaches(0, inner(1)));
    // The other way to carry the mesh takes its place.
    lab.nodes[0].device = std::sync::Arc::new(toft_mesh::userspace::UserspaceDevice::new(lab.settings(0)));
    lab.set(0).unwrap();
    assert!(lab.reaches(0, inner(1)));
    assert!(lab.namespace(0).ip("-d link show toft-wg").contains("tun"));
    lab.renew(0);
    lab.set(0).unwrap();
    // gotatun's timestamps are 27 seconds ahead of the kernel's, and peers take no older one for a while.
    assert!((0..3).any(|_| lab.reaches(0, inner(1))));
    assert!(lab.namespace(0).ip("-d link show toft-wg").contains("wireguard"));
}

#[test]
fn the_machine_chooses_what_carries_the_mesh() {
    let mut lab = Lab::connected(Which::Userspace, 2);
    lab.remove(0);
    lab.nodes[0].device = std::sync::Arc::new(toft_mesh::choice::ChosenDevice::new(lab.settings(0)));
    lab.set(0).unwrap();
    assert!(lab.reaches(0, inner(1)));
    let kernel = lab.namespace(1).inside(|| {
        let made = std::process::Command::new("ip").args(["link", "add", "probe", "type", "wireguard"]).output();
        made.unwrap().status.success()
    });
    let device = lab.status(0).unwrap().device;
    assert_eq!(device == toft_model::mesh::MeshDevice::Kernel, kernel, "{device:?}");
    lab.remove(0);
    assert!(!lab.namespace(0).has_link(INTERFACE));
}

#[test]
fn what_goes_through_a_relay_is_called_so() {
    let mut lab = Lab::new(Which::Userspace, 3);
    lab.introduce(0, 1, true);
    lab.introduce(1, 0, false);
    // Node 2 passes on what it gets, between two ports.
    let relay = SocketAddr::new(underlay(2), 4_000);
    let second = lab.key(1);
    lab.nodes[0].config.peers.get_mut(&second).unwrap().endpoints =
        vec![MeshEndpoint { address: relay, path: MeshPath::Relayed }];
    let (ready, bound) = std::sync::mpsc::channel();
    let thread = lab.namespace(2).spawn(move || {
        let near = std::net::UdpSocket::bind(relay).unwrap();
        let far = std::net::UdpSocket::bind((underlay(2), 4_001)).unwrap();
        for socket in [&near, &far] {
            socket.set_read_timeout(Some(std::time::Duration::from_millis(5))).unwrap();
        }
        ready.send(()).unwrap();
        let (mut bytes, mut from) = (vec![0; 2_000], None);
        let target = SocketAddr::new(underlay(1), DEFAULT_PORT);
        let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while std::time::Instant::now() < end {
            match near.recv_from(&mut bytes) {
                // The end of the test.
                Ok((0, _)) => return,
                Ok((length, sender)) => {
                    from = Some(sender);
                    far.send_to(&bytes[..length], target).unwrap();
                }
                Err(_) => {}
            }
            if let (Ok((length, _)), Some(to)) = (far.recv_from(&mut bytes), from) {
                near.send_to(&bytes[..length], to).unwrap();
            }
        }
    });
    bound.recv().unwrap();
    lab.set(0).unwrap();
    lab.set(1).unwrap();
    assert!(lab.reaches(0, inner(1)));
    let seen = lab.seen(0, 1);
    assert_eq!((seen.endpoint, seen.path), (Some(relay), Some(MeshPath::Relayed)));
    lab.namespace(2).inside(move || {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.send_to(&[], relay).unwrap();
    });
    thread.join().unwrap();
}
