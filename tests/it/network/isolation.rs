//! Who reaches whom: containers that share a network, and nobody else, whatever they send.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use toft::agent::network::{Network, kernel::KernelNetwork};
use toft_model::workload::Protocol::{Tcp, Udp};

use super::lab::{HOST, Namespace, config, ip, network, networks, nft, on_host};

const SUBNET: &str = "10.210.3.0/24";
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 210, 3, 1);
const A: Ipv4Addr = Ipv4Addr::new(10, 210, 3, 2);
const B: Ipv4Addr = Ipv4Addr::new(10, 210, 3, 3);
const C: Ipv4Addr = Ipv4Addr::new(10, 210, 3, 4);

/// `A` and `B` share a network, `C` is in another.
async fn three() -> (KernelNetwork, [Namespace; 3]) {
    let toft = network("toft0", "toft");
    toft.set(&networks(SUBNET, &[(A, &["shop"]), (B, &["shop"]), (C, &["other"])])).await.unwrap();
    let spaces = [Namespace::new(), Namespace::new(), Namespace::new()];
    for (space, address) in spaces.iter().zip([A, B, C]) {
        toft.attach(space.pid(), address).await.unwrap();
    }
    (toft, spaces)
}

/// Whether the kernel sends bridged frames through the packet rules, as it does beside Docker.
fn bridged(on: bool) {
    let _ = std::fs::write("/proc/sys/net/bridge/bridge-nf-call-iptables", if on { "1" } else { "0" });
}

#[test]
fn only_those_who_share_a_network_reach_each_other() {
    on_host(async || {
        let (toft, [a, b, c]) = three().await;
        let _servers = [a.serve("a", 80), b.serve("b", 80), c.serve("c", 80)];
        for on in [true, false] {
            bridged(on);
            for protocol in [Tcp, Udp] {
                assert_eq!(a.ask(protocol, B, 80).unwrap(), format!("b {A}"));
                assert_eq!(b.ask(protocol, A, 80).unwrap(), format!("a {B}"));
                assert!(!a.reaches(protocol, C, 80) && !c.reaches(protocol, A, 80), "{protocol}, bridged: {on}");
            }
        }
        // A second network joins them, and leaves again.
        toft.set(&networks(SUBNET, &[(A, &["shop"]), (B, &["shop", "lan"]), (C, &["other", "lan"])])).await.unwrap();
        assert_eq!(c.ask(Tcp, B, 80).unwrap(), format!("b {C}"));
        assert!(!c.reaches(Tcp, A, 80) && !c.reaches(Udp, A, 80));
        toft.set(&networks(SUBNET, &[(A, &["shop"]), (C, &["other"])])).await.unwrap();
        assert!(!a.reaches(Tcp, B, 80) && !c.reaches(Tcp, B, 80), "who left is reached by nobody");
        assert!(!b.reaches(Udp, A, 80) && !b.reaches(Tcp, GATEWAY, 80));
    });
}

#[test]
fn another_address_does_not_open_the_way() {
    on_host(async || {
        let (_toft, [a, b, c]) = three().await;
        let _server = a.serve("a", 80);
        let _victim = b.serve("b", 80);
        for on in [true, false] {
            bridged(on);
            // The address of one who may.
            c.inside(|| {
                ip("addr add 10.210.3.3/32 dev eth0");
                ip("route replace 10.210.3.2/32 via 10.210.3.1 src 10.210.3.3");
            });
            assert!(!c.reaches(Udp, A, 80) && !c.reaches(Tcp, A, 80), "bridged: {on}");
            // With the hardware address too.
            c.inside(|| ip("link set eth0 address 02:74:0a:d2:03:03"));
            assert!(!c.reaches(Udp, A, 80) && !c.reaches(Tcp, A, 80));
            assert_eq!(a.ask(Tcp, B, 80).unwrap(), format!("b {A}"), "and nothing is led away from its owner");
            c.inside(|| {
                ip("link set eth0 address 02:74:0a:d2:03:04");
                // The route goes with its source.
                ip("addr del 10.210.3.3/32 dev eth0");
            });
        }
    });
}

#[test]
fn frames_that_pass_the_host_by_do_not_arrive() {
    on_host(async || {
        let (_toft, [a, _b, c]) = three().await;
        let _server = a.serve("a", 80);
        for on in [true, false] {
            bridged(on);
            // Straight to the other's hardware address, in both directions.
            c.inside(|| {
                ip("route replace 10.210.3.2/32 dev eth0 scope link");
                ip("neigh replace 10.210.3.2 lladdr 02:74:0a:d2:03:02 dev eth0 nud permanent");
            });
            a.inside(|| {
                ip("route replace 10.210.3.4/32 dev eth0 scope link");
                ip("neigh replace 10.210.3.4 lladdr 02:74:0a:d2:03:04 dev eth0 nud permanent");
            });
            assert!(!c.reaches(Udp, A, 80) && !c.reaches(Tcp, A, 80), "bridged: {on}");
        }
        nft("flush chain bridge toft forward");
        nft("insert rule inet toft between accept");
        assert!(c.reaches(Tcp, A, 80), "the attack must be one that only the rules stop");
    });
}

#[test]
fn nobody_answers_for_anothers_address() {
    on_host(async || {
        let (_toft, [a, b, c]) = three().await;
        let _servers = [b.serve("b", 80), c.serve("thief", 80)];
        // Tells everybody that the address is here, before anybody has asked for it.
        c.inside(|| {
            ip("addr add 10.210.3.3/32 dev eth0");
            std::fs::write("/proc/sys/net/ipv4/conf/eth0/arp_notify", "1").unwrap();
            ip("link set eth0 down");
            ip("link set eth0 up");
            ip("route add 10.210.3.1 dev eth0 scope link");
            ip("route add default via 10.210.3.1");
        });
        for _ in 0..3 {
            assert_eq!(a.ask(Tcp, B, 80).unwrap(), format!("b {A}"));
            assert_eq!(super::ask_from_host(Tcp, B, 80).unwrap(), format!("b {GATEWAY}"));
        }
    });
}

#[test]
fn published_ports_lead_into_every_network_and_back_to_oneself() {
    on_host(async || {
        let _lan = Namespace::lan();
        let (toft, [a, b, c]) = three().await;
        let mut wanted = networks(SUBNET, &[(A, &["shop"]), (B, &["shop"]), (C, &["other"])]);
        wanted.ports = config(SUBNET, &[(8080, 80, Tcp, A), (8080, 80, Udp, A)]).ports;
        toft.set(&wanted).await.unwrap();
        let _server = a.serve("a", 80);
        for on in [true, false] {
            bridged(on);
            for protocol in [Tcp, Udp] {
                for (who, asker) in [("itself", &a), ("a friend", &b), ("a stranger", &c)] {
                    for to in [HOST, GATEWAY] {
                        let told = asker.ask(protocol, to, 8080);
                        assert_eq!(told.unwrap(), format!("a {GATEWAY}"), "{who} at {to}, {protocol}, bridged: {on}");
                    }
                }
            }
        }
        assert!(!c.reaches(Tcp, A, 80));
    });
}

#[test]
fn nobody_outside_speaks_with_a_containers_address() {
    on_host(async || {
        let lan = Namespace::lan();
        let (_toft, [a, ..]) = three().await;
        let _server = a.serve("a", 80);
        // A service of the host that trusts the containers.
        let host = std::net::UdpSocket::bind((GATEWAY, 7000)).unwrap();
        host.set_read_timeout(Some(std::time::Duration::from_millis(400))).unwrap();
        lan.inside(|| {
            ip("addr add 10.210.3.2/32 dev eth0");
            ip("route add 10.210.3.1/32 via 192.0.2.1 src 10.210.3.2");
            let socket = std::net::UdpSocket::bind("10.210.3.2:0").unwrap();
            socket.send_to(b"let me in", "10.210.3.1:7000").unwrap();
        });
        assert!(host.recv(&mut [0; 16]).is_err());
        nft("flush chain inet toft guard");
        for interface in ["all", "lan0"] {
            std::fs::write(format!("/proc/sys/net/ipv4/conf/{interface}/rp_filter"), "0").unwrap();
        }
        lan.inside(|| {
            std::net::UdpSocket::bind("10.210.3.2:0").unwrap().send_to(b"let me in", "10.210.3.1:7000").unwrap()
        });
        assert!(host.recv(&mut [0; 16]).is_ok(), "the attack must be one that only the guard stops");
    });
}

/// The addresses of `A`, `B` and `C` in IPv6.
fn six(last: u8) -> Ipv6Addr {
    format!("fd23:4567:89ab:d203::{last}").parse().unwrap()
}

/// Serves one word over TCP, on IPv6 alone.
fn serve_six(space: &Namespace, word: &'static str) {
    let (ready, started) = std::sync::mpsc::channel();
    space.spawn(move || {
        let listener = TcpListener::bind("[::]:80").unwrap();
        ready.send(()).unwrap();
        for mut stream in listener.incoming().map_while(Result::ok) {
            let told = format!("{word} {}", stream.peer_addr().unwrap().ip());
            let _ = stream.write_all(told.as_bytes());
        }
    });
    started.recv().unwrap();
}

fn ask_six(address: Ipv6Addr, port: u16) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from((address, port)), Duration::from_millis(1_500))?;
    stream.set_read_timeout(Some(Duration::from_secs(3)))?;
    let mut told = String::new();
    stream.read_to_string(&mut told)?;
    Ok(told)
}

#[test]
fn ipv6_is_kept_apart_and_published_the_same_way() {
    on_host(async || {
        let lan = Namespace::lan();
        let (lan_host, lan_client) = ("2001:db8::1", "2001:db8::2");
        ip(&format!("-6 addr add {lan_host}/64 dev lan0 nodad"));
        lan.inside(move || ip(&format!("-6 addr add {lan_client}/64 dev eth0 nodad")));
        let toft = network("toft0", "toft");
        let mut wanted = networks(SUBNET, &[(A, &["shop"]), (B, &["shop"]), (C, &["other"])]);
        wanted.subnet6 = Some("fd23:4567:89ab:d203::/64".parse().unwrap());
        wanted.ports = config(SUBNET, &[(8080, 80, Tcp, A)]).ports;
        toft.set(&wanted).await.unwrap();
        let spaces = [Namespace::new(), Namespace::new(), Namespace::new()];
        for (space, address) in spaces.iter().zip([A, B, C]) {
            toft.attach(space.pid(), address).await.unwrap();
            toft.attach(space.pid(), address).await.unwrap();
        }
        let [a, b, c] = spaces;
        serve_six(&a, "a");
        serve_six(&b, "b");
        serve_six(&lan, "lan");
        assert_eq!(a.inside(|| ask_six(six(3), 80)).unwrap(), format!("b {}", six(2)));
        assert!(c.inside(|| ask_six(six(2), 80)).is_err(), "no shared network");
        // With the address of one who may, and straight to the other's hardware address.
        c.inside(|| {
            ip(&format!("-6 addr add {}/128 dev eth0 nodad", six(3)));
            ip(&format!("-6 route replace {}/128 via {} src {}", six(2), six(1), six(3)));
        });
        assert!(c.inside(|| ask_six(six(2), 80)).is_err());
        c.inside(|| {
            ip(&format!("-6 addr del {}/128 dev eth0", six(3)));
            ip(&format!("-6 route replace {}/128 dev eth0", six(2)));
            ip(&format!("-6 neigh replace {} lladdr 02:74:0a:d2:03:02 dev eth0 nud permanent", six(2)));
        });
        assert!(c.inside(|| ask_six(six(2), 80)).is_err());
        assert_eq!(a.inside(|| ask_six(six(3), 80)).unwrap(), format!("b {}", six(2)), "and nothing was led away");

        let host: Ipv6Addr = lan_host.parse().unwrap();
        let from = |address: &dyn std::fmt::Display| format!("a {address}");
        assert_eq!(lan.inside(move || ask_six(host, 8080)).unwrap(), from(&lan_client));
        assert_eq!(ask_six(host, 8080).unwrap(), from(&lan_host));
        for asker in [&a, &b, &c] {
            assert_eq!(asker.inside(move || ask_six(host, 8080)).unwrap(), from(&six(1)), "hairpin");
        }
        let client: Ipv6Addr = lan_client.parse().unwrap();
        assert_eq!(
            b.inside(move || ask_six(client, 80)).unwrap(),
            format!("lan {lan_host}"),
            "out under the host's address"
        );
        lan.inside(move || ip(&format!("-6 route add fd23:4567:89ab:d203::/64 via {lan_host}")));
        assert!(lan.inside(|| ask_six(six(3), 80)).is_err(), "what is not published is closed");

        wanted.subnet6 = None;
        toft.set(&wanted).await.unwrap();
        assert!(!ip("-6 addr show dev toft0").contains("fd23:"), "switched off again");
        assert!(a.inside(|| ask_six(six(3), 80)).is_err());
        toft.remove_all().await.unwrap();
        assert_eq!(nft("list ruleset"), "");
    });
}
