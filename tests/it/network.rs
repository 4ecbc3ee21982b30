//! The container network in a real kernel, each test in network namespaces of its own.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    time::{Duration, Instant},
};

use toft::agent::network::{Network, NetworkError, fake::FakeNetwork, kernel::KernelNetwork};
use toft_model::{
    instance::PublishedPort,
    workload::Protocol::{self, Tcp, Udp},
};

mod isolation;
mod lab;

use lab::{
    CLIENT, HOST, Namespace, ask_from_host, ask_with, config, eventually, host_reaches, ip, links, network, nft,
    on_host,
};

const SUBNET: &str = "10.210.3.0/24";
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 210, 3, 1);
const WEB: Ipv4Addr = Ipv4Addr::new(10, 210, 3, 2);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 210, 3, 3);
const LOCALHOST: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// An appliance with two containers, of which `WEB` has port 80 published as 8080.
async fn two_containers() -> (KernelNetwork, Namespace, Namespace) {
    let toft = network("toft0", "toft");
    toft.set(&config(SUBNET, &[(8080, 80, Tcp, WEB), (8080, 80, Udp, WEB)])).await.unwrap();
    let (web, other) = (Namespace::new(), Namespace::new());
    toft.attach(web.pid(), WEB).await.unwrap();
    toft.attach(other.pid(), OTHER).await.unwrap();
    (toft, web, other)
}

#[test]
fn a_published_port_answers_from_everywhere() {
    on_host(async || {
        let lan = Namespace::lan();
        let (_toft, web, other) = two_containers().await;
        let _server = web.serve("web", 80);
        // With the first, the kernel sends even what stays on the bridge through the packet rules, once its module is
        // loaded, as Docker does.
        for (bridged, protocol) in [("1", Tcp), ("1", Udp), ("0", Tcp), ("0", Udp)] {
            let _ = std::fs::write("/proc/sys/net/bridge/bridge-nf-call-iptables", bridged);
            let from = |asker: Ipv4Addr| format!("web {asker}");
            // The asker's own address arrives, wherever the way back allows it.
            assert_eq!(lan.ask(protocol, HOST, 8080).unwrap(), from(CLIENT), "from the LAN, {protocol}");
            assert_eq!(ask_from_host(protocol, HOST, 8080).unwrap(), from(HOST), "from the host, {protocol}");
            assert_eq!(ask_from_host(protocol, LOCALHOST, 8080).unwrap(), from(GATEWAY), "by localhost, {protocol}");
            assert_eq!(other.ask(protocol, HOST, 8080).unwrap(), from(GATEWAY), "from a neighbour, {protocol}");
            assert_eq!(other.ask(protocol, GATEWAY, 8080).unwrap(), from(GATEWAY), "by the gateway, {protocol}");
            assert_eq!(web.ask(protocol, HOST, 8080).unwrap(), from(GATEWAY), "from itself, {protocol}");
            assert_eq!(other.ask(protocol, WEB, 80).unwrap(), from(OTHER), "over the bridge, {protocol}");
            assert_eq!(ask_from_host(protocol, WEB, 80).unwrap(), from(GATEWAY), "from the host directly, {protocol}");
        }
    });
}

#[test]
fn a_container_goes_out_under_the_hosts_address() {
    on_host(async || {
        let lan = Namespace::lan();
        let (_toft, web, _other) = two_containers().await;
        let _server = lan.serve("lan", 7000);
        for protocol in [Tcp, Udp] {
            assert_eq!(web.ask(protocol, CLIENT, 7000).unwrap(), format!("lan {HOST}"), "{protocol}");
        }
    });
}

#[test]
fn ports_that_are_not_published_stay_closed_to_the_lan() {
    on_host(async || {
        let lan = Namespace::lan();
        let (_toft, web, _other) = two_containers().await;
        let _server = web.serve("web", 81);
        lan.inside(|| ip(&format!("route add {SUBNET} via {HOST}")));
        assert!(!lan.reaches(Tcp, WEB, 81));
        assert!(!lan.reaches(Tcp, HOST, 81));
    });
}

#[test]
fn a_container_cannot_reach_the_hosts_localhost() {
    on_host(async || {
        let (_toft, web, _other) = two_containers().await;
        let listener = TcpListener::bind((LOCALHOST, 9000)).unwrap();
        let answering = listener.try_clone().unwrap();
        let accepted = std::thread::spawn(move || answering.accept().map(drop));
        // What a hostile container can do: send packets for 127.0.0.1 out of its own interface.
        web.inside(|| {
            ip("addr del 127.0.0.1/8 dev lo");
            ip(&format!("route add 127.0.0.1/32 via {GATEWAY} src {WEB}"));
            std::fs::write("/proc/sys/net/ipv4/conf/all/route_localnet", "1").unwrap();
        });
        assert!(!web.reaches(Tcp, LOCALHOST, 9000));
        nft("flush chain inet toft guard");
        assert!(web.reaches(Tcp, LOCALHOST, 9000), "the attack must be one that only the guard stops");
        accepted.join().unwrap().unwrap();
    });
}

#[test]
fn a_port_that_left_the_configuration_stops_answering() {
    on_host(async || {
        let lan = Namespace::lan();
        let (toft, web, _other) = two_containers().await;
        let _server = web.serve("web", 80);
        assert!(lan.ask(Tcp, HOST, 8080).is_ok());
        toft.set(&config(SUBNET, &[(8081, 80, Tcp, WEB)])).await.unwrap();
        for protocol in [Tcp, Udp] {
            assert!(!lan.reaches(protocol, HOST, 8080), "{protocol}");
            assert!(!host_reaches(protocol, LOCALHOST, 8080), "{protocol}");
        }
        assert_eq!(lan.ask(Tcp, HOST, 8081).unwrap(), format!("web {CLIENT}"));
    });
}

#[test]
fn a_udp_sender_that_never_pauses_finds_a_port_that_moves() {
    on_host(async || {
        let (toft, web, other) = two_containers().await;
        let (_web, _other) = (web.serve("web", 80), other.serve("other", 80));
        let socket = UdpSocket::bind((LOCALHOST, 0)).unwrap();
        let asks_for = |port, time| ask_with(&socket, SocketAddr::from((LOCALHOST, port)), time);
        let asks = |port| asks_for(port, Duration::from_secs(10));
        assert!(asks(8080).unwrap().starts_with("web "));
        let nobody = asks_for(8090, Duration::from_millis(400));
        assert!(nobody.is_err(), "nobody is there yet, but the kernel remembers the flow");
        toft.set(&config(SUBNET, &[(8080, 80, Udp, OTHER), (8090, 80, Udp, WEB)])).await.unwrap();
        assert!(asks(8080).unwrap().starts_with("other "));
        assert!(asks(8090).unwrap().starts_with("web "));
    });
}

#[test]
fn setting_the_same_again_changes_nothing() {
    on_host(async || {
        let (toft, web, _other) = two_containers().await;
        let seen = || (nft("-a list ruleset"), ip("-br addr"), ip("route show table all"));
        let before = seen();
        toft.set(&config(SUBNET, &[(8080, 80, Udp, WEB), (8080, 80, Tcp, WEB)])).await.unwrap();
        toft.attach(web.pid(), WEB).await.unwrap();
        assert_eq!(seen(), before);
    });
}

#[test]
fn a_connection_survives_new_rules() {
    on_host(async || {
        let lan = Namespace::lan();
        let (toft, web, _other) = two_containers().await;
        let echo = web.spawn(|| {
            let (mut stream, _) = TcpListener::bind(("0.0.0.0", 80)).unwrap().accept().unwrap();
            std::io::copy(&mut stream.try_clone().unwrap(), &mut stream).unwrap();
        });
        let mut stream = None;
        eventually("a connection", || lan.connect(HOST, 8080).is_ok_and(|made| stream.replace(made).is_none()));
        let mut stream = stream.unwrap();
        let mut answer = [0; 4];
        for round in 0..10_u16 {
            toft.set(&config(SUBNET, &[(8080, 80, Tcp, WEB), (9000 + round, 80, Tcp, OTHER)])).await.unwrap();
            stream.write_all(b"ping").unwrap();
            stream.read_exact(&mut answer).unwrap();
            assert_eq!(&answer, b"ping");
        }
        drop(stream);
        echo.join().unwrap();
    });
}

#[test]
fn rules_that_somebody_flushed_come_back() {
    on_host(async || {
        let (toft, web, _other) = two_containers().await;
        let _server = web.serve("web", 80);
        nft("flush ruleset");
        toft.set(&config(SUBNET, &[(8080, 80, Tcp, WEB), (8080, 80, Udp, WEB)])).await.unwrap();
        assert!(ask_from_host(Tcp, LOCALHOST, 8080).is_ok());
    });
}

#[test]
fn a_restarted_appliance_takes_over_what_is_there() {
    on_host(async || {
        let (toft, web, _other) = two_containers().await;
        let _server = web.serve("web", 80);
        drop(toft);
        let toft = network("toft0", "toft");
        toft.set(&config(SUBNET, &[(8081, 80, Tcp, WEB)])).await.unwrap();
        assert!(ask_from_host(Tcp, LOCALHOST, 8081).is_ok());
        assert!(!host_reaches(Tcp, LOCALHOST, 8080));
        toft.attach(web.pid(), WEB).await.unwrap();
        assert!(ask_from_host(Tcp, LOCALHOST, 8081).is_ok());
    });
}

#[test]
fn foreign_tables_and_links_survive() {
    on_host(async || {
        nft("add table inet foreign");
        nft("add table ip foreign4");
        let (toft, ..) = two_containers().await;
        ip("link add foreign0 type veth peer name foreign1");
        ip("link set foreign0 master toft0");
        toft.remove_all().await.unwrap();
        let rules = nft("list tables");
        assert!(rules.contains("table inet foreign") && rules.contains("table ip foreign4"), "{rules}");
        assert!(links().contains(&"foreign0".to_owned()));
    });
}

#[test]
fn two_appliances_live_side_by_side() {
    on_host(async || {
        let lan = Namespace::lan();
        let (a, web, _other) = two_containers().await;
        let b = network("toft1", "toft_b");
        let address = Ipv4Addr::new(10, 210, 4, 2);
        b.set(&config("10.210.4.0/24", &[(9090, 80, Tcp, address)])).await.unwrap();
        let second = Namespace::new();
        b.attach(second.pid(), address).await.unwrap();
        let (_web, _second) = (web.serve("web", 80), second.serve("second", 80));
        assert_eq!(lan.ask(Tcp, HOST, 8080).unwrap(), format!("web {CLIENT}"));
        assert_eq!(lan.ask(Tcp, HOST, 9090).unwrap(), format!("second {CLIENT}"));
        assert!(ask_from_host(Tcp, LOCALHOST, 8080).unwrap().starts_with("web "));
        assert!(ask_from_host(Tcp, LOCALHOST, 9090).unwrap().starts_with("second "));
        assert!(second.ask(Tcp, HOST, 8080).unwrap().starts_with("web "), "published ports are open to the other");
        assert!(!second.reaches(Tcp, WEB, 80), "everything else is not");
        a.remove_all().await.unwrap();
        assert_eq!(lan.ask(Tcp, HOST, 9090).unwrap(), format!("second {CLIENT}"));
    });
}

#[test]
fn removing_everything_leaves_nothing() {
    on_host(async || {
        let (toft, web, _other) = two_containers().await;
        toft.remove_all().await.unwrap();
        assert_eq!(nft("list ruleset"), "");
        assert_eq!(links(), ["lo"]);
        assert_eq!(web.inside(links), ["lo"]);
        toft.remove_all().await.unwrap();
    });
}

#[test]
fn links_end_with_their_containers() {
    on_host(async || {
        let toft = network("toft0", "toft");
        toft.set(&config(SUBNET, &[])).await.unwrap();
        for round in 0..4_u8 {
            let containers: Vec<Namespace> = (0..50).map(|_| Namespace::new()).collect();
            for (number, container) in (2_u8..).zip(&containers) {
                toft.attach(container.pid(), Ipv4Addr::new(10, 210, 3, number)).await.unwrap();
            }
            assert_eq!(links().len(), 52, "round {round}");
            drop(containers);
            eventually("no link left", || links().len() == 2);
        }
    });
}

#[test]
fn an_address_can_move_to_a_new_container_at_once() {
    on_host(async || {
        let (toft, web, other) = two_containers().await;
        let successor = Namespace::new();
        // The old namespace still holds the old link: its container died a moment ago.
        toft.attach(successor.pid(), WEB).await.unwrap();
        assert_eq!(web.inside(links), ["lo"]);
        let _server = successor.serve("successor", 80);
        assert_eq!(other.ask(Tcp, WEB, 80).unwrap(), format!("successor {OTHER}"));
        // A container that gets another address loses the old one.
        let moved = Ipv4Addr::new(10, 210, 3, 9);
        toft.attach(successor.pid(), moved).await.unwrap();
        assert_eq!(other.ask(Tcp, moved, 80).unwrap(), format!("successor {OTHER}"));
        assert!(!other.reaches(Tcp, WEB, 80));
    });
}

#[test]
fn a_question_that_came_too_early_does_not_wait_for_another_second() {
    on_host(async || {
        let toft = network("toft0", "toft");
        toft.set(&config(SUBNET, &[(8080, 80, Tcp, WEB)])).await.unwrap();
        for (container, address, port) in [(WEB, LOCALHOST, 8080), (OTHER, OTHER, 80)] {
            // The kernel asks who has the address, and nobody is there yet.
            let early = std::thread::spawn(move || host_reaches(Tcp, address, port));
            eventually("a neighbour that is looked for", || ip("neigh show dev toft0").contains("INCOMPLETE"));
            let web = Namespace::new();
            let _server = web.serve("web", 80);
            toft.attach(web.pid(), container).await.unwrap();
            let begun = Instant::now();
            assert_eq!(ask_from_host(Tcp, address, port).unwrap(), format!("web {GATEWAY}"));
            assert!(begun.elapsed() < Duration::from_millis(500), "{:?}", begun.elapsed());
            let _ = early.join().unwrap();
        }
    });
}

#[test]
fn the_bridge_follows_its_subnet() {
    on_host(async || {
        let toft = network("toft0", "toft");
        toft.set(&config("10.210.9.0/24", &[])).await.unwrap();
        toft.set(&config(SUBNET, &[])).await.unwrap();
        let addresses = ip("-4 -br addr show toft0");
        assert!(addresses.contains("10.210.3.1/24") && !addresses.contains("10.210.9.1"), "{addresses}");
    });
}

#[test]
fn a_foreign_link_with_the_bridges_name_is_refused() {
    on_host(async || {
        ip("link add toft0 type veth peer name toft1");
        let toft = network("toft0", "toft");
        let error = toft.set(&config(SUBNET, &[])).await.unwrap_err().to_string();
        assert_eq!(error, "setting up the bridge failed: `toft0` exists and is no bridge");
        toft.remove_all().await.unwrap();
        assert!(links().contains(&"toft0".to_owned()));
    });
}

#[test]
fn the_hosts_own_namespace_is_never_attached() {
    on_host(async || {
        let toft = network("toft0", "toft");
        toft.set(&config(SUBNET, &[])).await.unwrap();
        // A process that shares this host's network, as one with `network: host` does.
        let mut process = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let error = toft.attach(process.id(), WEB).await.unwrap_err().to_string();
        let looped = toft.loopback(process.id()).await;
        process.kill().unwrap();
        process.wait().unwrap();
        assert!(error.ends_with("has the network of the host"), "{error}");
        assert!(looped.is_err());
        assert_eq!(links(), ["lo", "toft0"]);
    });
}

#[test]
fn networks_in_use_are_seen() {
    on_host(async || {
        let _lan = Namespace::lan();
        ip("route add 10.210.1.0/25 dev lan0");
        ip("route add default via 192.0.2.2");
        ip("link add down0 type bridge");
        ip("addr add 10.210.0.77/32 dev down0");
        let toft = network("toft0", "toft");
        toft.set(&config("10.210.2.0/24", &[])).await.unwrap();
        let beside = network("toft-1a2b3c4d", "toft_1a2b3c4d");
        beside.set(&config("10.210.5.0/24", &[])).await.unwrap();
        let taken = toft.host_networks().await.unwrap();
        let seen: Vec<String> = taken.iter().map(|used| format!("{} {}", used.subnet, used.link)).collect();
        for wanted in ["10.210.0.76/30 down0", "10.210.1.0/25 lan0", "192.0.2.0/24 lan0", "127.0.0.0/8 lo"] {
            assert!(seen.contains(&wanted.to_owned()), "{wanted} in {seen:?}");
        }
        let of_toft: Vec<String> =
            taken.iter().filter(|used| used.of_toft).map(|used| used.subnet.to_string()).collect();
        assert!(
            of_toft.contains(&"10.210.5.0/24".to_owned()) && of_toft.iter().all(|net| net.starts_with("10.210.5."))
        );
        assert!(!seen.iter().any(|used| used.starts_with("10.210.2.")), "our own bridge: {seen:?}");
    });
}

/// What the agent relies on, whichever network it has. `processes` are two live ones and one that has ended.
async fn conformance(network: &dyn Network, processes: [u32; 3], taken: u16) {
    let [first, second, ended] = processes;
    assert!(network.attach(first, WEB).await.is_err(), "before the first set");
    network.remove_all().await.unwrap();
    network.set(&config(SUBNET, &[(8080, 80, Tcp, WEB)])).await.unwrap();
    network.set(&config(SUBNET, &[(8080, 80, Tcp, WEB)])).await.unwrap();
    network.loopback(second).await.unwrap();
    for (pid, address) in [(first, WEB), (first, WEB), (second, OTHER)] {
        network.attach(pid, address).await.unwrap();
    }
    for outside in [GATEWAY, Ipv4Addr::new(10, 210, 3, 255), Ipv4Addr::new(10, 211, 0, 2)] {
        assert!(network.attach(second, outside).await.is_err(), "{outside}");
    }
    assert!(matches!(network.attach(ended, WEB).await, Err(NetworkError::ProcessGone { pid }) if pid == ended));
    assert!(matches!(network.loopback(ended).await, Err(NetworkError::ProcessGone { pid }) if pid == ended));
    let port = |host, protocol: Protocol| PublishedPort { host, container: 80, protocol };
    network.check_port_free(port(8080, Tcp)).await.unwrap();
    network.check_port_free(port(taken, Udp)).await.unwrap();
    let refusal = network.check_port_free(port(taken, Tcp)).await.unwrap_err();
    assert_eq!(refusal.to_string(), format!("host port {taken}/tcp is taken by another process"));
    network.remove_all().await.unwrap();
    assert!(network.attach(first, WEB).await.is_err(), "after everything was removed");
    network.set(&config(SUBNET, &[])).await.unwrap();
    network.attach(first, OTHER).await.unwrap();
}

#[tokio::test]
async fn the_fake_conforms() {
    let fake = FakeNetwork::default();
    fake.end_process(3);
    fake.take_port(Tcp, 9000);
    conformance(&fake, [1, 2, 3], 9000).await;
}

#[test]
fn the_kernel_conforms() {
    on_host(async || {
        let (first, second) = (Namespace::new(), Namespace::new());
        let ended = Namespace::new().pid();
        let _listener = TcpListener::bind((LOCALHOST, 9000)).unwrap();
        conformance(&network("toft0", "toft"), [first.pid(), second.pid(), ended], 9000).await;
    });
}

/// Not a test: prints how long things take. `cargo test --release -- --ignored --nocapture network_costs`
#[test]
#[ignore = "measures"]
fn network_costs() {
    on_host(async || {
        let toft = network("toft0", "toft");
        let ports = |count: u16| -> Vec<_> { (0..count).map(|n| (10_000 + n, 80, Tcp, WEB)).collect() };
        let mut took = Vec::new();
        let median = |took: &mut Vec<Duration>| {
            took.sort();
            let (half, last) = (took[took.len() / 2], took[took.len() - 1]);
            took.clear();
            format!("median {half:?}, worst {last:?}")
        };
        for count in [1, 200] {
            for round in 0..21 {
                let start = Instant::now();
                toft.set(&config(SUBNET, &ports(count + round % 2))).await.unwrap();
                took.push(start.elapsed());
            }
            println!("set {count} ports, changed: {}", median(&mut took));
            for _ in 0..21 {
                let start = Instant::now();
                toft.set(&config(SUBNET, &ports(count))).await.unwrap();
                took.push(start.elapsed());
            }
            println!("set {count} ports, unchanged: {}", median(&mut took));
        }
        let containers: Vec<Namespace> = (0..100).map(|_| Namespace::new()).collect();
        for what in ["attach", "attach again"] {
            for (number, container) in (2_u8..).zip(&containers) {
                let start = Instant::now();
                toft.attach(container.pid(), Ipv4Addr::new(10, 210, 3, number)).await.unwrap();
                took.push(start.elapsed());
            }
            println!("{what}: {}", median(&mut took));
        }
    });
}
