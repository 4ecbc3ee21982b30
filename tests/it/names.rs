//! Names and isolation of real containers: who finds whom, what is asked of other servers, and what nobody is told.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{Read, Write},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::mpsc,
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Message, Query, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata},
};
use nix::sched::{CloneFlags, setns};
use serde_json::Value;

use crate::harness::{
    appliance::Appliance,
    machine::{Machine, wait_until},
};

/// Whoever asks waits so long.
const PATIENCE: Duration = Duration::from_secs(8);

/// An appliance whose machine has a name server of its own on loopback.
fn start() -> Appliance {
    start_with("")
}

fn start_with(more: &str) -> Appliance {
    let machine = Machine::new();
    let mut toft = Appliance::prepare(&machine, "d");
    let servers = machine.dir.join("resolv.conf");
    fs::write(&servers, "nameserver 127.0.0.1\nsearch example.test\n").unwrap();
    let config = format!("[network]\nresolv_conf = \"{}\"\n{more}", servers.display());
    fs::write(toft.data.join("toft.toml"), config).unwrap();
    toft.up();
    toft.import_busybox();
    toft
}

/// Does `work` in the network of a container.
pub fn inside<T: Send + 'static>(instance: &Value, work: impl FnOnce(SocketAddr) -> T + Send + 'static) -> T {
    let pid = instance["pid"].as_u64().unwrap();
    let network = File::open(format!("/proc/{pid}/ns/net")).unwrap();
    let IpAddr::V4(address) = instance["address"].as_str().unwrap().parse().unwrap() else { panic!("{instance}") };
    let [a, b, c, _] = address.octets();
    let gateway = SocketAddr::from(([a, b, c, 1], 53));
    let worker = std::thread::spawn(move || {
        setns(network, CloneFlags::CLONE_NEWNET).unwrap();
        work(gateway)
    });
    worker.join().unwrap()
}

pub fn question(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message.to_vec().unwrap()
}

fn over_udp(server: SocketAddr, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(server)?;
    socket.send(bytes)?;
    let mut answer = vec![0; 4_096];
    let length = socket.recv(&mut answer)?;
    answer.truncate(length);
    Ok(answer)
}

pub fn over_tcp(server: SocketAddr, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&server, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&[&(bytes.len() as u16).to_be_bytes(), bytes].concat())?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut answer)?;
    Ok(answer)
}

/// What a container is answered over UDP.
fn ask(instance: &Value, name: &str, kind: RecordType) -> Message {
    let bytes = question(name, kind);
    let answer = inside(instance, move |server| over_udp(server, &bytes));
    Message::from_vec(&answer.unwrap_or_else(|e| panic!("{name}: {e}"))).unwrap()
}

/// The addresses it is answered, or the kind of nothing.
pub fn found(instance: &Value, name: &str) -> String {
    let answer = ask(instance, name, RecordType::A);
    let addresses: BTreeSet<String> = answer.answers.iter().map(|record| record.data.to_string()).collect();
    match answer.metadata.response_code {
        ResponseCode::NoError if addresses.is_empty() => "nothing".into(),
        ResponseCode::NoError => addresses.into_iter().collect::<Vec<_>>().join(" "),
        other => other.to_string(),
    }
}

fn instances(toft: &Appliance, workload: &str) -> Vec<Value> {
    let answer = toft.get(&format!("/api/v1/workloads/{workload}")).good();
    answer["instances"].as_array().unwrap().clone()
}

fn addresses(instances: &[Value]) -> String {
    let mut addresses: Vec<&str> = instances.iter().map(|one| one["address"].as_str().unwrap()).collect();
    addresses.sort_unstable();
    addresses.join(" ")
}

fn connects(from: &Value, to: &Value, port: u16) -> bool {
    let address = SocketAddr::new(to["address"].as_str().unwrap().parse().unwrap(), port);
    inside(from, move |_| TcpStream::connect_timeout(&address, Duration::from_millis(700)).is_ok())
}

const NO_NAME: &str = "Non-Existent Domain";

#[test]
fn containers_find_and_reach_those_they_share_a_network_with() {
    let toft = start();
    toft.good("run -n shop-web --deployment shop --replicas 2 toft/demo");
    toft.good("run -n lan-web --network lan toft/demo");
    toft.good("run -n alone toft/demo");
    let health = ["--health-cmd", "test -e /tmp/ready", "--health-interval", "1s", "--health-retries", "1"];
    let run = ["run", "-n", "shop-db", "--deployment", "shop", "--network", "lan", "--restart", "no", "--no-wait"];
    toft.toft(&[&run, &health[..], &["busybox", "--", "sleep", "1000"]].concat()).good();
    let db = toft.instance_until("shop-db", "runs", |instance| instance["state"] == "running");
    let webs = instances(&toft, "shop-web");
    let (lan, alone) = (toft.instance("lan-web"), toft.instance("alone"));

    // Isolation.
    assert!(connects(&webs[0], &webs[1], 8080) && connects(&db, &webs[0], 8080) && connects(&db, &lan, 8080));
    for (from, to) in [(&alone, &webs[0]), (&lan, &webs[0]), (&webs[0], &lan), (&webs[0], &alone), (&alone, &lan)] {
        assert!(!connects(from, to, 8080), "{} reaches {}", from["name"], to["name"]);
    }

    // Names.
    let both = addresses(&webs);
    for name in ["shop-web.toft.internal.", "web.shop.toft.internal.", "WEB.Shop.Toft.Internal."] {
        assert_eq!(found(&db, name), both, "{name}");
        assert_eq!(found(&alone, name), NO_NAME, "{name}");
        assert_eq!(found(&lan, name), NO_NAME, "{name}");
    }
    assert_eq!(found(&db, "shop-web-1.toft.internal."), webs[1]["address"].as_str().unwrap());
    assert_eq!(found(&db, "lan-web.toft.internal."), addresses(std::slice::from_ref(&lan)));
    assert_eq!(found(&webs[0], "lan-web.toft.internal."), NO_NAME);
    assert_eq!(found(&db, "shop.toft.internal."), "nothing");
    assert_eq!(found(&db, "nobody.toft.internal."), NO_NAME);
    let negative = ask(&db, "nobody.toft.internal.", RecordType::A);
    assert!(matches!(negative.authorities[0].data, RData::SOA(_)) && negative.metadata.authoritative);
    let other = ask(&db, "shop-web.toft.internal.", RecordType::AAAA);
    assert_eq!((other.metadata.response_code, other.answers.len()), (ResponseCode::NoError, 0));
    let first: BTreeSet<String> =
        (0..2).map(|_| ask(&db, "web.shop.toft.internal.", RecordType::A).answers[0].data.to_string()).collect();
    assert_eq!(first.len(), 2, "the order changes");

    // Backwards.
    let reverse = |address: &Value| Name::from(address.as_str().unwrap().parse::<IpAddr>().unwrap()).to_ascii();
    let pointer = ask(&db, &reverse(&webs[1]["address"]), RecordType::PTR);
    assert_eq!(pointer.answers[0].data.to_string(), "shop-web-1.toft.internal.");
    let hidden = ask(&alone, &reverse(&webs[1]["address"]), RecordType::PTR);
    assert_eq!(hidden.metadata.response_code, ResponseCode::NXDomain);

    // Programs find them by short names.
    let says = |script: &str| toft.toft(&["exec", "shop-db-0", "--", "sh", "-c", script]).good();
    let conf = says("cat /etc/resolv.conf");
    assert!(conf.contains("search shop.toft.internal toft.internal example.test"), "{conf}");
    assert!(says("busybox wget -q -O - http://web:8080/json").contains("shop-web-"));
    assert!(says("busybox wget -q -O - http://lan-web:8080/json").contains("lan-web-0"));

    // Health and stops.
    assert_eq!(found(&webs[0], "db.shop.toft.internal."), "nothing", "it is not healthy yet");
    says("echo >/tmp/ready");
    let finds = |want: &str| wait_until(want, || (found(&webs[0], "db.shop.toft.internal.") == want).then_some(()));
    finds(db["address"].as_str().unwrap());
    says("busybox rm /tmp/ready");
    finds("nothing");
    toft.good("scale shop-web=1");
    wait_until("one is left", || (found(&db, "web.shop.toft.internal.") == webs[0]["address"]).then_some(()));
    let spec = toft.json("inspect shop-db")["spec"].clone();
    assert_eq!((&spec["deployment"], &spec["networks"]), (&"shop".into(), &serde_json::json!(["lan"])));
}

/// A name server on the machine that knows a few names, and tells which it was asked.
fn upstream(machine: &Machine) -> mpsc::Receiver<String> {
    let (asked, questions) = mpsc::channel();
    let (ready, started) = mpsc::channel();
    let tell = asked.clone();
    let datagrams = ready.clone();
    machine.spawn(move || {
        let socket = UdpSocket::bind("127.0.0.1:53").unwrap();
        datagrams.send(()).unwrap();
        let mut buffer = [0; 4_096];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            if let Some(answer) = knows(&buffer[..length], true, &tell) {
                socket.send_to(&answer, from).unwrap();
            }
        }
    });
    machine.spawn(move || {
        let listener = TcpListener::bind("127.0.0.1:53").unwrap();
        ready.send(()).unwrap();
        for mut stream in listener.incoming().map_while(Result::ok) {
            let asked = asked.clone();
            std::thread::spawn(move || {
                let mut length = [0; 2];
                while stream.read_exact(&mut length).is_ok() {
                    let mut bytes = vec![0; u16::from_be_bytes(length).into()];
                    stream.read_exact(&mut bytes).unwrap();
                    let Some(answer) = knows(&bytes, false, &asked) else { continue };
                    stream.write_all(&[&(answer.len() as u16).to_be_bytes(), answer.as_slice()].concat()).unwrap();
                }
            });
        }
    });
    started.recv().unwrap();
    started.recv().unwrap();
    questions
}

fn knows(question: &[u8], short: bool, asked: &mpsc::Sender<String>) -> Option<Vec<u8>> {
    let question = Message::from_vec(question).unwrap();
    let name = question.queries[0].name().clone();
    let text = name.to_ascii().to_lowercase();
    let _ = asked.send(text.clone());
    let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
    answer.metadata.recursion_available = true;
    answer.add_query(question.queries[0].clone());
    let address = |last| Record::from_rdata(name.clone(), 300, RData::A(rdata::A::new(192, 0, 2, last)));
    match text.as_str() {
        "one.example.test." => drop(answer.add_answer(address(10))),
        "large.example.test." if short => answer.metadata.truncation = true,
        "large.example.test." => drop(answer.add_answers((0..200).map(address))),
        "broken.example.test." => answer.metadata.response_code = ResponseCode::ServFail,
        "silent.example.test." => return None,
        _ => answer.metadata.response_code = ResponseCode::NXDomain,
    }
    Some(answer.to_vec().unwrap())
}

#[test]
fn other_names_are_asked_of_the_machines_servers() {
    let toft = start();
    let questions = upstream(&toft.machine);
    toft.good("run -n web toft/demo");
    let web = toft.instance("web");
    assert_eq!(found(&web, "one.example.test."), "192.0.2.10");
    assert_eq!(found(&web, "One.Example.test."), "192.0.2.10");
    assert_eq!(found(&web, "nobody.example.test."), NO_NAME);
    assert_eq!(found(&web, "nobody.toft.internal."), NO_NAME);
    let asked: Vec<String> = questions.try_iter().collect();
    assert_eq!(asked, ["one.example.test.", "nobody.example.test."], "remembered, and our own zone stays here");

    // What is too long for a datagram.
    let bytes = question("large.example.test.", RecordType::A);
    let (short, whole) =
        inside(&web, move |server| (over_udp(server, &bytes).unwrap(), over_tcp(server, &bytes).unwrap()));
    assert!(short.len() <= 512 && Message::from_vec(&short).unwrap().metadata.truncation);
    assert_eq!(Message::from_vec(&whole).unwrap().answers.len(), 200);

    // What fails.
    let begun = Instant::now();
    assert_eq!(found(&web, "broken.example.test."), ResponseCode::ServFail.to_string());
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    assert_eq!(found(&web, "silent.example.test."), ResponseCode::ServFail.to_string());
    assert!(begun.elapsed() < Duration::from_secs(9), "{:?}", begun.elapsed());

    // Hostile packets do not keep it from answering, and nobody else is answered.
    let good = question("web.toft.internal.", RecordType::A);
    let sends = good.clone();
    inside(&web, move |server| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        for cut in 0..sends.len() {
            socket.send_to(&sends[..cut], server).unwrap();
            socket.send_to(&vec![0xff; cut * 40], server).unwrap();
        }
        let idle: Vec<TcpStream> = (0..100).filter_map(|_| TcpStream::connect(server).ok()).collect();
        drop(idle);
    });
    assert_eq!(found(&web, "web.toft.internal."), web["address"].as_str().unwrap());
    let port = 10_053;
    let gateway = inside(&web, |server| server.ip());
    let stranger = toft.machine.spawn(move || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        socket.send_to(&good, (gateway, port)).unwrap();
        socket.recv(&mut [0; 512]).is_err()
    });
    assert!(stranger.join().unwrap(), "the machine itself is no container");
    let metrics = toft.get("/metrics").text();
    assert!(metrics.contains("toft_dns_queries_total") && metrics.contains("outcome=\"stranger\""), "{metrics}");
    assert!(metrics.contains("toft_dns_failures_total"), "{metrics}");

    // Another file, other servers.
    fs::write(toft.machine.dir.join("resolv.conf"), "nameserver 192.0.2.99\n").unwrap();
    assert_eq!(found(&web, "later.example.test."), ResponseCode::ServFail.to_string());
}

#[test]
fn with_ipv6_names_ports_and_hosts_have_it_too() {
    let toft = start_with("ipv6 = true\n");
    toft.good("run -n web -p 18080:8081 toft/demo");
    toft.good("run -n box busybox -- sleep 1000");
    let (web, other) = (toft.instance("web"), toft.instance("box"));
    let six: Ipv6Addr = web["address6"].as_str().unwrap().parse().unwrap();
    let answer = ask(&other, "web.toft.internal.", RecordType::AAAA);
    assert_eq!(answer.answers[0].data, RData::AAAA(rdata::AAAA(six)));
    let pointer = ask(&other, &Name::from(IpAddr::V6(six)).to_ascii(), RecordType::PTR);
    assert_eq!(pointer.answers[0].data.to_string(), "web-0.toft.internal.");
    // The demo speaks IPv4 alone.
    let _listener = inside(&web, |_| TcpListener::bind("[::]:8081").unwrap());
    inside(&other, move |_| TcpStream::connect_timeout(&SocketAddr::from((six, 8081)), PATIENCE)).unwrap();
    // On the host's own address.
    let host: Ipv6Addr = "2001:db8::1".parse().unwrap();
    toft.machine.run("ip", &["-6", "addr", "add", "2001:db8::1/128", "dev", "lo"]);
    let reach = move || TcpStream::connect_timeout(&SocketAddr::from((host, 18080)), PATIENCE);
    toft.machine.spawn(reach).join().unwrap().unwrap();
    inside(&other, move |_| reach()).unwrap();
    let hosts = toft.good("exec box-0 -- cat /etc/hosts");
    assert!(hosts.contains(other["address6"].as_str().unwrap()), "{hosts}");
    let nodes = toft.get("/api/v1/nodes").good().to_string();
    assert!(nodes.contains("\"subnet6\":\"fd"), "{nodes}");
}

#[test]
fn a_published_port_of_names_does_not_get_into_the_way() {
    let mut toft = start();
    toft.good("run -n dns -p 53:8080 -p 53:8080/udp toft/demo");
    let dns = toft.instance("dns");
    assert_eq!(found(&dns, "dns.toft.internal."), dns["address"].as_str().unwrap());
    assert_eq!(toft.machine.visit(53, "/json").status, 200);
    // After a restart of the daemon names are answered before anything else happens.
    toft.kill();
    toft.up();
    assert_eq!(found(&dns, "dns.toft.internal."), dns["address"].as_str().unwrap());
    assert_eq!(toft.down().code, 0);
    let (rules, links) = (toft.machine.run("nft", &["list", "ruleset"]), toft.machine.run("ip", &["-br", "link"]));
    assert!(rules.is_empty(), "{rules}");
    assert!(!links.contains("toft"), "{links}");
}
