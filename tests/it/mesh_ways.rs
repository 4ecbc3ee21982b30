//! Nodes behind routers, and where no datagram passes.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::stream;
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use serde_json::Value;
use toft::wire::relay::{Carried, relay_client::RelayClient};
use tokio::net::TcpStream;
use tonic::{Request, Streaming, transport::Endpoint};

use crate::{
    harness::{
        lan::{Capture, Lan, MEMBERS, address},
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

#[test]
fn where_only_https_passes_a_machine_joins_votes_and_works_through_it() {
    let mut internet = Internet::prepare(&[Spot(Open, SERVER), Spot(Open, SERVER), Spot(Open, SERVER)]);
    let file = internet.nodes[0].data.join("toft.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("{text}[mesh]\nrelay_listen = \"{}:443\"\n", outside(0))).unwrap();
    internet.nodes[0].up();
    internet.join(1, SERVER);
    internet.let_out_https_only(2);
    let capture = Capture::on(&internet.switch, "port2");
    let began = Instant::now();
    internet.join_at(2, SERVER, 443);
    for toft in &internet.nodes {
        let ready = |node: &Value| node["state"] == "ready";
        wait_until("all are ready", || {
            let nodes = toft.json("node ls --json");
            (nodes.as_array()?.len() == 3 && nodes.as_array()?.iter().all(ready)).then_some(())
        });
    }
    println!("a member after {:?}", began.elapsed());
    wait_until("it votes", || {
        let told = internet.nodes[2].json("cluster status --json");
        (told["members"].as_array()?.iter().filter(|member| member["votes"] == true).count() == 3).then_some(())
    });
    let (web, db) = pair(&internet, ["b", "c"]);
    until_way(&internet, 1, "c", "is reached through `a`");
    until_way(&internet, 2, "b", "is reached through `a`");
    let took = until_reached(&web, db, Duration::from_secs(30));
    println!("reached after {took:?}");
    assert!(ask(&web, db, "/the-secret-of-the-shop").unwrap().contains("HTTP/1."));
    internet.nodes[2].good("scale shop-web=2 --no-wait");
    // The only way in is away for a moment.
    internet.nodes[0].kill();
    internet.nodes[0].up();
    let took = until_reached(&web, db, Duration::from_secs(60));
    println!("reached again after the relay's restart after {took:?}");
    wait_until("a change is taken there", || {
        (internet.nodes[2].toft(&["scale", "shop-web=1", "--no-wait"]).code == 0).then_some(())
    });
    let frames = capture.end();
    let own: std::net::Ipv4Addr = outside(2).parse().unwrap();
    let sent: Vec<_> = frames
        .iter()
        .filter(|frame| frame.len() > 38 && frame[12..14] == [8, 0] && frame[26..30] == own.octets())
        .collect();
    assert!(sent.len() > 50, "it went over the switch");
    let https = |frame: &&&Vec<u8>| {
        let port = 14 + usize::from(frame[14] & 15) * 4 + 2;
        frame[23] == 6 && frame[port..port + 2] == 443_u16.to_be_bytes()
    };
    assert_eq!(sent.iter().filter(https).count(), sent.len(), "something else left the node");
    let holds = |frame: &&Vec<u8>, text: &[u8]| frame.windows(text.len()).any(|window| window == text);
    for plain in [&b"the-secret-of-the-shop"[..], b"shop-db-0"] {
        assert!(!sent.iter().any(|frame| holds(frame, plain)), "{plain:?} was to be read on the switch");
    }
}

/// Asks a member to relay, with the keys in a folder, or without a certificate.
async fn carry(keys: &Path, certified: bool, to: &str) -> Result<Streaming<Carried>, String> {
    let read = |name: &str| fs::read(keys.join(name)).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&read("authority.pem")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots);
    let mut config = if certified {
        let chain = CertificateDer::pem_slice_iter(&read("member.pem")).map(Result::unwrap).collect();
        config.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(&read("member.key")).unwrap()).unwrap()
    } else {
        config.with_no_client_auth()
    };
    config.alpn_protocols = vec![b"toft-services".to_vec()];
    let (connector, to) = (tokio_rustls::TlsConnector::from(Arc::new(config)), to.to_owned());
    let dial = tower::service_fn(move |_| {
        let (connector, to) = (connector.clone(), to.clone());
        async move {
            let name = ServerName::try_from("member.toft.internal").unwrap();
            connector.connect(name, TcpStream::connect(to).await?).await.map(TokioIo::new)
        }
    });
    let asked = async {
        let channel = Endpoint::from_static("http://member").connect_with_connector(dial).await;
        let mut client = RelayClient::new(channel.map_err(|error| format!("{error:?}"))?);
        let mut request = Request::new(stream::pending());
        request.metadata_mut().insert("toft-protocol", "1".parse().unwrap());
        let answer = client.carry(request).await.map_err(|status| status.to_string())?;
        let mut answer = answer.into_inner();
        answer.message().await.map_err(|status| status.to_string())?.ok_or("it ended")?;
        Ok(answer)
    };
    tokio::time::timeout(Duration::from_secs(10), asked).await.unwrap_or_else(|_| Err("no answer".into()))
}

#[test]
fn nobody_is_relayed_for_but_members_and_who_is_removed_is_cut_off() {
    let mut lan = Lan::start(&["server", "witness"]);
    let to = format!("{}:{MEMBERS}", address(0));
    let stolen: PathBuf = lan.switch.dir.join("stolen");
    fs::create_dir(&stolen).unwrap();
    for name in ["authority.pem", "member.pem", "member.key"] {
        fs::copy(lan.nodes[1].data.join("cluster").join(name), stolen.join(name)).unwrap();
    }
    lan.nodes[1].kill();
    let runtime = Arc::new(tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap());
    let ask_to_carry = |certified: bool| {
        let (runtime, stolen, to) = (Arc::clone(&runtime), stolen.clone(), to.clone());
        // Sockets are of the network of the thread that makes them.
        lan.switch.spawn(move || runtime.block_on(carry(&stolen, certified, &to))).join().unwrap()
    };
    let mut held = wait_until("a member is carried for", || ask_to_carry(true).ok());
    assert!(ask_to_carry(false).is_err(), "a stranger is carried for");
    lan.nodes[0].good("node rm b --force --yes");
    let began = Instant::now();
    let ended = async { while let Ok(Some(_)) = held.message().await {} };
    let within = async { tokio::time::timeout(Duration::from_secs(5), ended).await };
    runtime.block_on(within).expect("who was removed is cut off");
    println!("cut off after {:?}", began.elapsed());
    assert!(ask_to_carry(true).is_err(), "who was removed is carried for");
}
