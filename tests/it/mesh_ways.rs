//! Nodes behind routers, and where no datagram passes.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    harness::{
        lan::Capture,
        machine::wait_until,
        nat::{
            Internet,
            Place::{Behind, Open, Symmetric},
            Spot, outside,
        },
        slowness,
    },
    mesh_nodes::{ask, ip, on, running},
};

const SERVER: &str = "server";

/// A workload on each of two nodes, which share a network; the address at which the second one answers.
fn pair(internet: &Internet, [one, other]: [&str; 2]) -> (Value, SocketAddr) {
    let a = &internet.nodes[0];
    a.good(&format!("run -n shop-web --deployment shop {}toft/demo", on(one)));
    a.good(&format!("run -n shop-db --deployment shop {}toft/demo", on(other)));
    let [web, db] = [running(a, "shop-web"), running(a, "shop-db")];
    assert_eq!([&web["node"], &db["node"]], [one, other]);
    let to = SocketAddr::new(ip(&db), 8080);
    (web, to)
}

/// Waits until the one reaches the other; gives the time that took.
fn until_reached(web: &Value, db: SocketAddr, most: Duration) -> Duration {
    let began = Instant::now();
    while ask(web, db, "/the-secret-of-the-shop").is_err() {
        assert!(began.elapsed() < most * slowness(), "not reached within {most:?}");
    }
    began.elapsed()
}

fn until_way(internet: &Internet, i: usize, other: &str, way: &str) -> Duration {
    let began = Instant::now();
    wait_until(&format!("{i} reaches `{other}`: {way}"), || {
        internet.way(i, other).is_some_and(|told| told.starts_with(way)).then_some(())
    });
    began.elapsed()
}

#[test]
fn two_nodes_behind_two_routers_reach_each_other_directly() {
    let internet = Internet::start(&[Spot(Open, SERVER), Spot(Behind, SERVER), Spot(Behind, SERVER)]);
    let (web, db) = pair(&internet, ["b", "c"]);
    let took = until_reached(&web, db, Duration::from_secs(15));
    let direct =
        until_way(&internet, 1, "c", "is reached directly") + until_way(&internet, 2, "b", "is reached directly");
    println!("reached after {took:?}, directly {direct:?} later");
    // Not through the third one: it may go.
    internet.cut(0);
    for _ in 0..5 {
        ask(&web, db, "/json").unwrap();
    }
    // The routers forget whom they let through, while nobody is there to ask.
    internet.forget(1);
    internet.forget(2);
    let took = until_reached(&web, db, Duration::from_secs(20));
    println!("reached again after the routers forgot after {took:?}");
    internet.mend(0);
    wait_until("a change is taken", || {
        (internet.nodes[1].toft(&["scale", "shop-web=2", "--no-wait"]).code == 0).then_some(())
    });
}

#[test]
fn where_routers_let_nothing_through_another_member_relays_and_yet_another_when_that_dies() {
    let spots = [Spot(Open, SERVER), Spot(Symmetric, SERVER), Spot(Symmetric, SERVER), Spot(Open, "witness")];
    let mut internet = Internet::start(&spots);
    let (web, db) = pair(&internet, ["b", "c"]);
    let took = until_reached(&web, db, Duration::from_secs(20));
    println!("relayed after {took:?}");
    until_way(&internet, 1, "c", "is reached through");
    let way = internet.way(1, "c").unwrap();
    let (relay, other) = if way.contains("`a`") { (0, "`d`") } else { (3, "`a`") };
    internet.nodes[relay].kill();
    let took = until_reached(&web, db, Duration::from_secs(15));
    until_way(&internet, 1, "c", &format!("is reached through {other}"));
    println!("another relay after {took:?}");
}

#[test]
fn where_no_datagram_passes_packets_go_inside_tls_and_directly_again_when_they_do() {
    let internet = Internet::start(&[Spot(Open, SERVER), Spot(Open, SERVER), Spot(Open, SERVER)]);
    let (web, db) = pair(&internet, ["b", "c"]);
    until_reached(&web, db, Duration::from_secs(15));
    until_way(&internet, 1, "c", "is reached directly");
    internet.block_udp(2);
    let capture = Capture::on(&internet.switch, "port2");
    let took = until_reached(&web, db, Duration::from_secs(20));
    println!("relayed after {took:?}");
    for i in [0, 1] {
        wait_until("no datagram is needed", || internet.way(i, "c").filter(|way| !way.contains("directly")));
    }
    for _ in 0..20 {
        assert!(ask(&web, db, "/the-secret-of-the-shop").unwrap().contains("HTTP/1."));
    }
    // The members go on too.
    internet.nodes[2].good("scale shop-web=1");
    let frames = capture.end();
    let own: std::net::Ipv4Addr = outside(2).parse().unwrap();
    let from_here = |frame: &&Vec<u8>| frame.len() > 34 && frame[12..14] == [8, 0] && frame[26..30] == own.octets();
    let sent: Vec<_> = frames.iter().filter(from_here).collect();
    assert!(sent.iter().filter(|frame| frame[23] == 6).count() > 20, "it went over the switch");
    assert!(sent.iter().all(|frame| frame[23] != 17), "a datagram left the node");
    let holds = |frame: &Vec<u8>, text: &[u8]| frame.windows(text.len()).any(|window| window == text);
    for plain in [&b"the-secret-of-the-shop"[..], b"shop-db-0"] {
        assert!(!frames.iter().any(|frame| holds(frame, plain)), "{plain:?} was to be read on the switch");
    }
    internet.unblock_udp(2);
    let back = Instant::now();
    for i in [0, 1] {
        until_way(&internet, i, "c", "is reached directly");
    }
    println!("directly again after {:?}", back.elapsed());
    assert!(back.elapsed() < Duration::from_secs(30) * slowness());
    ask(&web, db, "/json").unwrap();
}
