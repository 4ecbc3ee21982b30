//! Nodes that find each other, and containers that reach each other from node to node.

use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    time::{Duration, Instant, SystemTime},
};

use serde_json::Value;

use crate::{
    harness::{
        appliance::Appliance,
        lan::{Capture, Lan, MEMBERS, address},
        machine::wait_until,
    },
    names::{found, inside},
};

/// Whoever asks waits so long.
const PATIENCE: Duration = Duration::from_secs(3);

/// The only instance of a workload, once it runs.
pub fn running(toft: &Appliance, workload: &str) -> Value {
    toft.instance_until(workload, "runs", |instance| instance["state"] == "running")
}

pub fn ip(instance: &Value) -> IpAddr {
    instance["address"].as_str().unwrap().parse().unwrap()
}

/// What a container is answered by whoever listens there over HTTP, or why nothing.
pub fn ask(instance: &Value, to: SocketAddr, path: &str) -> Result<String, String> {
    let path = path.to_owned();
    inside(instance, move |_| {
        let asked = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            write!(stream, "GET {path} HTTP/1.0\r\nHost: x\r\nConnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        asked().map_err(|error| error.to_string())
    })
}

pub fn on(node: &str) -> String {
    format!("--constraint node.hostname=={node} ")
}

#[test]
fn containers_of_three_nodes_reach_each_other_by_name_and_nobody_else_does() {
    let mut lan = Lan::start(&["server", "server", "server"]);
    let [a, b, c] = [0, 1, 2].map(|i| &lan.nodes[i]);
    a.good(&format!("run -n shop-web --deployment shop {}toft/demo", on("a")));
    a.good(&format!("run -n shop-db --deployment shop {}toft/demo", on("b")));
    a.good(&format!("run -n vault --network vault -p 18080:8080 {}toft/demo", on("c")));
    let [web, db, vault] = [running(a, "shop-web"), running(b, "shop-db"), running(c, "vault")];
    assert_eq!([&web["node"], &db["node"], &vault["node"]], ["a", "b", "c"]);
    let http = |instance: &Value| SocketAddr::new(ip(instance), 8080);

    let capture = Capture::start(&lan.switch);
    let to_db = http(&db);
    wait_until("the way from a to b", || ask(&web, to_db, "/json").ok());
    wait_until("its name", || (found(&web, "db.shop.toft.internal") == ip(&db).to_string()).then_some(()));
    for _ in 0..20 {
        let answer = ask(&web, to_db, "/the-secret-of-the-shop").unwrap();
        assert!(answer.contains("HTTP/1."), "{answer}");
    }
    assert!(ask(&web, to_db, "/json").unwrap().contains("shop-db-0"));
    assert!(ask(&db, http(&web), "/json").unwrap().contains("shop-web-0"));
    let frames = capture.end();
    let holds = |frame: &Vec<u8>, text: &[u8]| frame.windows(text.len()).any(|window| window == text);
    let port = 51820_u16.to_be_bytes();
    assert!(frames.iter().filter(|frame| holds(frame, &port)).count() > 20, "it went over the switch");
    for plain in [&b"the-secret-of-the-shop"[..], b"shop-db-0"] {
        assert!(!frames.iter().any(|frame| holds(frame, plain)), "{plain:?} was to be read on the switch");
    }

    // Another network: neither by name nor by address, in both directions.
    assert_eq!(found(&web, "vault.toft.internal"), "Non-Existent Domain");
    assert!(ask(&web, http(&vault), "/json").is_err());
    assert!(ask(&vault, http(&db), "/json").is_err());
    // A published port is open, from everywhere.
    let published: SocketAddr = format!("{}:18080", address(2)).parse().unwrap();
    assert!(ask(&web, published, "/json").unwrap().contains("vault-0"));
    assert!(ask(&vault, published, "/json").unwrap().contains("vault-0"));
    let gateway = ip(&vault).to_string().rsplit_once('.').unwrap().0.to_owned() + ".1";
    let published: SocketAddr = format!("{gateway}:18080").parse().unwrap();
    assert!(ask(&web, published, "/json").unwrap().contains("vault-0"), "through the mesh too");

    // Who is on the local network and says to be a container of another node is not heard.
    let listener = inside(&web, |_| UdpSocket::bind("0.0.0.0:9999").unwrap());
    listener.set_read_timeout(Some(PATIENCE)).unwrap();
    let target = SocketAddr::new(ip(&web), 9999);
    inside(&db, move |_| UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"honest", target).unwrap());
    let mut buffer = [0; 64];
    let (length, from) = listener.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..length], from.ip()), (&b"honest"[..], ip(&db)), "the sender's own address arrives");
    let net = format!("{}/32", ip(&web));
    lan.switch.run("ip", &["route", "add", &net, "via", &address(0)]);
    lan.switch.run("ip", &["addr", "add", &format!("{}/32", ip(&db)), "dev", "lo"]);
    let forged = SocketAddr::new(ip(&db), 0);
    let sent = lan.switch.spawn(move || UdpSocket::bind(forged).unwrap().send_to(b"forged", target).unwrap());
    sent.join().unwrap();
    assert!(listener.recv_from(&mut buffer).is_err(), "a forged sender was heard");

    // A key that is old makes room for the next, and nothing else changes.
    let key = a.data.join("mesh/key");
    let before = fs::read_to_string(&key).unwrap();
    let old = SystemTime::now() - Duration::from_secs(31 * 24 * 60 * 60);
    fs::File::options().write(true).open(&key).unwrap().set_modified(old).unwrap();
    let changed = || fs::read_to_string(&key).unwrap() != before && !a.data.join("mesh/next-key").exists();
    wait_until("the next key", || changed().then_some(()));
    wait_until("the way with the next key", || ask(&web, to_db, "/json").ok());
    assert!(!a.log().contains(before.trim()), "a private key in the log");

    // A daemon that dies takes its device along, where toft carries it, and no longer than until it is back.
    lan.nodes[1].kill();
    lan.nodes[1].up();
    wait_until("the way after the daemon's death", || ask(&web, to_db, "/json").ok());
}

#[test]
fn when_all_addresses_change_at_once_the_nodes_find_each_other_again() {
    let lan = Lan::start(&["server", "server", "witness"]);
    let [a, b] = [0, 1].map(|i| &lan.nodes[i]);
    a.good(&format!("run -n shop-web --deployment shop {}toft/demo", on("a")));
    a.good(&format!("run -n shop-db --deployment shop {}toft/demo", on("b")));
    let [web, db] = [running(a, "shop-web"), running(b, "shop-db")];
    let to_db = SocketAddr::new(ip(&db), 8080);
    wait_until("the way from a to b", || ask(&web, to_db, "/json").ok());
    let witness: SocketAddr = wait_until("the witness has an address in the mesh", || {
        let node = fs::read_to_string(lan.nodes[2].data.join("node.json")).unwrap();
        let node: Value = serde_json::from_str(&node).ok()?;
        let gateway = node["subnet"].as_str()?.replace(".0/24", ".1");
        format!("{gateway}:{MEMBERS}").parse().ok()
    });
    let witness_answers = || {
        let asked = a.machine.spawn(move || TcpStream::connect_timeout(&witness, PATIENCE).is_ok());
        asked.join().unwrap().then_some(())
    };
    wait_until("the witness answers in the mesh", witness_answers);
    for i in 0..3 {
        lan.move_to(i, &format!("198.51.100.{}/24", 7 - i));
    }
    // What has to be asked again in the local network is asked at growing intervals.
    let began = Instant::now();
    while ask(&web, to_db, "/json").is_err() {
        assert!(began.elapsed() < Duration::from_secs(240), "the nodes do not find each other at their new addresses");
    }
    println!("found again after {:?}", began.elapsed());
    wait_until("the witness answers in the mesh again", witness_answers);
    // The members tell each other of changes through the mesh: at the addresses they told nobody is.
    wait_until("a change is taken", || (a.toft(&["scale", "shop-web=2", "--no-wait"]).code == 0).then_some(()));
}
