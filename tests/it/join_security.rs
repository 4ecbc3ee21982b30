//! Strangers and former members at the door: all are refused, logged, and change nothing.

use std::{
    fs,
    io::Write,
    net::TcpStream,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use proptest::{prelude::*, test_runner::TestRunner};
use serde_json::Value;
use toft::wire::peer::{
    GreetAnswer, GreetRequest, JoinAnswer, JoinRequest, Message, ProposeRequest, ProveAnswer, ProveRequest,
    ReadIndexRequest,
    door_client::DoorClient,
    door_server::{Door, DoorServer},
    peer_client::PeerClient,
};
use tonic::{
    Code, Request, Response, Status,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity, Server, ServerTlsConfig},
};

use crate::{
    cluster::status,
    harness::{
        appliance::Appliance,
        lan::Lan,
        machine::{Machine, wait_until},
    },
    joining::{Ticket, join, lone, ticket},
};

/// What a join must not change when it is refused.
fn facts(toft: &Appliance) -> (Value, Value) {
    (status(toft)["members"].clone(), toft.json("token list --json"))
}

fn without_log_ends(mut seen: (Value, Value)) -> (Value, Value) {
    for member in seen.0.as_array_mut().unwrap() {
        member["log_end"] = Value::Null;
    }
    seen
}

#[test]
fn tokens_that_are_reused_expired_altered_or_revoked_let_nobody_in() {
    let machine = Machine::new();
    let (mut a, mut b, mut c) =
        (lone(&machine, "a", "witness"), lone(&machine, "b", "witness"), lone(&machine, "c", "witness"));
    for toft in [&mut a, &mut b, &mut c] {
        toft.up();
    }
    let spent = ticket(&a, "--role witness");
    join(&b, &spent).good();
    let (expired, revoked, right) =
        (ticket(&a, "--role witness --ttl 1s"), ticket(&a, "--role witness"), ticket(&a, "--role witness"));
    a.good(&format!("token revoke {} --yes", revoked.id));
    wait_until("its time is over", || {
        let tokens = a.json("token list --json");
        let of = tokens.as_array().unwrap().iter().find(|token| token["id"] == expired.id.as_str()).unwrap().clone();
        (of["state"] == "expired").then_some(())
    });
    // One digit of the secret, and the id of another.
    let flip = |text: &str| {
        let (head, last) = text.split_at(text.len() - 1);
        format!("{head}{}", if last == "0" { "1" } else { "0" })
    };
    let altered = Ticket { token: flip(&right.token), id: right.id.clone(), address: right.address.clone() };
    let mixed = Ticket {
        token: right.token.replace(&right.id, &spent.id),
        id: spent.id.clone(),
        address: right.address.clone(),
    };
    let other_authority = Ticket {
        token: right.token.replacen(&right.token[6..70], &"ab".repeat(32), 1),
        id: right.id.clone(),
        address: right.address.clone(),
    };
    let before = without_log_ends(facts(&a));
    for (token, words) in [
        (&spent, "used up"),
        (&expired, "has expired"),
        (&revoked, "was revoked"),
        (&altered, "the token is not valid"),
        (&mixed, "the token is not valid"),
        (&other_authority, "of another cluster"),
    ] {
        let told = join(&c, token).bad(1);
        assert!(told.contains(words), "{words}: {told}");
        assert!(!told.contains(token.token.rsplit('.').next().unwrap()), "{told}");
    }
    let none = c.toft(&["join", &right.address, "--token", "toft1.aa.bb"]).bad(1);
    assert!(none.contains("this is no join token"), "{none}");
    assert_eq!(without_log_ends(facts(&a)), before);
    assert_eq!(status(&c)["members"].as_array().unwrap().len(), 1, "it is what it was");
    let log = a.log();
    for words in ["used up", "has expired", "was revoked", "is not valid"] {
        assert!(log.lines().any(|line| line.contains(words) && line.contains("127.0.0.1")), "{words}: {log}");
    }
    let secret = right.token.rsplit('.').next().unwrap();
    assert!(!log.contains(secret) && !c.log().contains(secret), "no log tells a secret");
    join(&c, &right).good();
}

#[test]
fn two_who_race_for_the_last_use_are_not_both_let_in() {
    let machine = Machine::new();
    let mut a = lone(&machine, "a", "witness");
    a.up();
    let mut racers = ["b", "c", "d"].map(|name| lone(&machine, name, "witness"));
    racers.iter_mut().for_each(Appliance::up);
    let pass = ticket(&a, "--role witness");
    let ran = std::thread::scope(|scope| {
        let all: Vec<_> = racers.iter().map(|racer| scope.spawn(|| join(racer, &pass))).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect::<Vec<_>>()
    });
    assert_eq!(ran.iter().filter(|ran| ran.code == 0).count(), 1, "{ran:?}");
    assert!(ran.iter().filter(|ran| ran.code != 0).all(|ran| ran.err.contains("used up")), "{ran:?}");
    assert_eq!(status(&a)["members"].as_array().unwrap().len(), 2);
}

/// The certificate of a member, as a thief has it.
struct Stolen {
    tls: ClientTlsConfig,
    cluster: String,
    member: u64,
}

fn steal(keys: &Path, toft: &Appliance) -> Stolen {
    let read = |name: &str| fs::read_to_string(keys.join(name)).unwrap();
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(read("authority.pem")))
        .identity(Identity::from_pem(read("member.pem"), read("member.key")))
        .domain_name("member.toft.internal");
    let seen = status(toft);
    Stolen { tls, cluster: seen["id"].as_str().unwrap().to_owned(), member: seen["this"].as_u64().unwrap() }
}

impl Stolen {
    fn request<T>(&self, message: T, member: u64) -> Request<T> {
        let mut request = Request::new(message);
        let about = request.metadata_mut();
        about.insert("toft-protocol", "1".parse().unwrap());
        about.insert("toft-cluster", self.cluster.parse().unwrap());
        about.insert("toft-member", member.to_string().parse().unwrap());
        request
    }

    async fn dial(&self, address: &str) -> PeerClient<Channel> {
        let endpoint =
            Endpoint::from_shared(format!("https://{address}")).unwrap().tls_config(self.tls.clone()).unwrap();
        PeerClient::new(endpoint.connect().await.unwrap())
    }

    async fn index(&self, client: &mut PeerClient<Channel>, member: u64) -> Result<u64, Status> {
        let answer = client.read_index(self.request(ReadIndexRequest {}, member)).await?;
        Ok(answer.get_ref().index)
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn a_stolen_certificate_is_worth_nothing_after_its_node_was_removed() {
    let machine = Machine::new();
    let (mut a, mut b) = (lone(&machine, "a", "witness"), lone(&machine, "b", "witness"));
    a.up();
    b.up();
    let pass = ticket(&a, "--role witness");
    join(&b, &pass).good();
    let stolen = steal(&b.data.join("cluster"), &b);
    let founder = status(&a)["this"].as_u64().unwrap();
    b.kill();
    let (goes, remove) = std::sync::mpsc::channel();
    let (removed, went) = std::sync::mpsc::channel();
    let thief = machine.spawn(move || {
        runtime().block_on(async {
            let mut open = stolen.dial(&pass.address).await;
            stolen.index(&mut open, stolen.member).await.expect("it is a member's");
            let claims = stolen.index(&mut open, founder).await.unwrap_err();
            goes.send(()).unwrap();
            went.recv().unwrap();
            let held = stolen.index(&mut open, stolen.member).await.unwrap_err();
            let mut anew = stolen.dial(&pass.address).await;
            let fresh = stolen.index(&mut anew, stolen.member).await.unwrap_err();
            let message = ProposeRequest { requests: vec![r#"{"id":"0199c0de-0000-7000-8000-000000000001","command":"remove_workload","name":"web","at_ms":1}"#.into()] };
            let proposed = anew.propose(stolen.request(message, stolen.member)).await.unwrap_err();
            let voted = anew.vote(stolen.request(Message { json: "{}".into() }, stolen.member)).await.unwrap_err();
            let posing = stolen.index(&mut anew, founder).await.unwrap_err();
            (claims, vec![held, fresh, proposed, voted], posing)
        })
    });
    remove.recv().unwrap();
    wait_until("it counts as gone, and goes", || (a.toft(&["node", "rm", "b", "--yes"]).code == 0).then_some(()));
    let before = without_log_ends(facts(&a));
    removed.send(()).unwrap();
    let (claims, refused, posing) = thief.join().unwrap();
    for status in [claims, posing] {
        assert_eq!((status.code(), status.message()), (Code::PermissionDenied, "the certificate is another member's"));
    }
    for status in refused {
        assert_eq!(status.code(), Code::PermissionDenied, "{status}");
        assert!(status.message().contains("removed from the cluster"), "{status}");
    }
    assert_eq!(without_log_ends(facts(&a)), before);
    let log = a.log();
    assert!(
        log.lines().any(|line| line.contains("was refused: it was removed") && line.contains("127.0.0.1")),
        "{log}"
    );
    assert!(log.contains("which says that it is member"), "{log}");
}

/// A request to join as a stranger might make it.
fn request() -> impl Strategy<Value = JoinRequest> {
    let text = || prop_oneof![Just(String::new()), "[ -~]{0,40}", ".{0,300}", Just("x".repeat(5_000))];
    let labels = proptest::collection::hash_map(text(), text(), 0..70);
    (text(), text(), text(), text(), any::<bool>(), text(), labels, text(), text(), any::<u32>()).prop_map(
        |(token_id, secret, node_id, name, name_chosen, role, labels, signing_request, address, port)| JoinRequest {
            token_id,
            secret,
            node_id,
            name,
            name_chosen,
            role,
            labels,
            signing_request,
            address,
            port,
            ..JoinRequest::default()
        },
    )
}

#[test]
fn fuzzed_replayed_and_oversized_messages_at_the_door_change_nothing() {
    let machine = Machine::new();
    let mut a = lone(&machine, "a", "witness");
    a.up();
    let pass = ticket(&a, "--role witness");
    let before = without_log_ends(facts(&a));
    let authority = fs::read_to_string(a.data.join("cluster/authority.pem")).unwrap();
    let port: u16 = pass.address.rsplit(':').next().unwrap().parse().unwrap();
    let full = std::env::var_os("TOFT_TEST_FULL").is_some();
    let cases = if full { 2_000 } else { 60 };
    let stranger = machine.spawn(move || {
        // Bytes that are no TLS at all.
        let mut garbage =
            TestRunner::new(ProptestConfig { cases: 20, failure_persistence: None, ..ProptestConfig::default() });
        let sent = garbage.run(&proptest::collection::vec(any::<u8>(), 1..2_000), |bytes| {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            stream.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
            drop(stream.write_all(&bytes));
            Ok(())
        });
        sent.unwrap();
        let runtime = runtime();
        let tls =
            ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authority)).domain_name("member.toft.internal");
        let channel = runtime.block_on(async {
            let endpoint = Endpoint::from_shared(format!("https://127.0.0.1:{port}")).unwrap().tls_config(tls).unwrap();
            endpoint.connect().await.unwrap()
        });
        let ask = |asked: JoinRequest| {
            runtime.block_on(async {
                let mut request = Request::new(asked);
                request.metadata_mut().insert("toft-protocol", "1".parse().unwrap());
                DoorClient::new(channel.clone()).join(request).await.map(drop)
            })
        };
        // More than are answered in a row: the rest is told to wait.
        let mut runner =
            TestRunner::new(ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() });
        let fuzzed = runner.run(&request(), |asked| {
            prop_assert!(ask(asked).is_err());
            Ok(())
        });
        fuzzed.unwrap();
        let limited =
            (0..200).any(|_| ask(JoinRequest::default()).is_err_and(|status| status.code() == Code::ResourceExhausted));
        std::thread::sleep(Duration::from_secs(1));
        let oversized = ask(JoinRequest { name: "x".repeat(1 << 20), ..JoinRequest::default() }).unwrap_err();
        // Calls of members without a certificate.
        let mut peers = PeerClient::new(channel.clone());
        let naked = runtime.block_on(peers.append(Message { json: vec![b'['; 1 << 20].into() })).unwrap_err();
        (limited, oversized, naked)
    });
    let (limited, oversized, naked) = stranger.join().unwrap();
    assert!(limited, "nobody is made to wait");
    assert_eq!(oversized.code(), Code::OutOfRange, "{oversized}");
    assert_eq!(naked.code(), Code::Unauthenticated, "{naked}");
    assert_eq!(without_log_ends(facts(&a)), before);
    // Who is honest gets in nevertheless, once the bucket has filled a little.
    let mut b = lone(&machine, "b", "witness");
    b.up();
    wait_until("an honest one gets in", || (join(&b, &pass).code == 0).then_some(()));
    // What it said, said again by another, is of no use: the token is spent, and the key is its own.
    let mut c = lone(&machine, "c", "witness");
    c.up();
    let told = join(&c, &pass).bad(1);
    assert!(told.contains("used up"), "{told}");
}

/// Stands between a joiner and a member, with that member's own keys, hands on what it hears, and keeps it.
struct Recorder {
    tls: ClientTlsConfig,
    member: String,
    heard: Arc<Mutex<Vec<JoinRequest>>>,
}

impl Recorder {
    async fn door(&self) -> DoorClient<Channel> {
        knock(&self.tls, &self.member).await
    }
}

async fn knock(tls: &ClientTlsConfig, member: &str) -> DoorClient<Channel> {
    let endpoint = Endpoint::from_shared(format!("https://{member}")).unwrap().tls_config(tls.clone()).unwrap();
    DoorClient::new(endpoint.connect().await.unwrap())
}

fn spoken<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("toft-protocol", "1".parse().unwrap());
    request
}

#[async_trait]
impl Door for Recorder {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinAnswer>, Status> {
        let message = request.into_inner();
        self.heard.lock().unwrap().push(message.clone());
        self.door().await.join(spoken(message)).await
    }

    async fn greet(&self, request: Request<GreetRequest>) -> Result<Response<GreetAnswer>, Status> {
        self.door().await.greet(spoken(request.into_inner())).await
    }

    async fn prove(&self, request: Request<ProveRequest>) -> Result<Response<ProveAnswer>, Status> {
        self.door().await.prove(spoken(request.into_inner())).await
    }
}

/// What all members know of each other, without how far they are.
fn members(toft: &Appliance) -> Vec<(String, String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let seen = status(toft);
    seen["members"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| (text(&m["name"]), text(&m["node_id"]), text(&m["address"])))
        .collect()
}

#[test]
fn what_a_joiner_said_said_again_by_whomever_is_refused_and_changes_nothing() {
    let machine = Machine::new();
    let (mut a, mut b) = (lone(&machine, "a", "witness"), lone(&machine, "b", "witness"));
    a.up();
    b.up();
    let pass = ticket(&a, "--role witness --uses 3");
    let read = |name: &str| fs::read_to_string(a.data.join("cluster").join(name)).unwrap();
    let authority = read("authority.pem");
    let tls =
        ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&authority)).domain_name("member.toft.internal");
    let identity = Identity::from_pem(format!("{}{authority}", read("member.pem")), read("member.key"));
    let heard = Arc::new(Mutex::new(Vec::new()));
    let recorder = Recorder { tls: tls.clone(), member: pass.address.clone(), heard: Arc::clone(&heard) };
    let (opened, address) = std::sync::mpsc::channel();
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let server = machine.spawn(move || {
        runtime().block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            opened.send(listener.local_addr().unwrap().to_string()).unwrap();
            let incoming = tonic::transport::server::TcpIncoming::from(listener);
            let mut server = Server::builder().tls_config(ServerTlsConfig::new().identity(identity)).unwrap();
            let until = async { drop(ended.await) };
            server.add_service(DoorServer::new(recorder)).serve_with_incoming_shutdown(incoming, until).await.unwrap();
        });
    });
    let through = Ticket { address: address.recv().unwrap(), token: pass.token.clone(), id: pass.id.clone() };
    join(&b, &through).good();
    end.send(()).unwrap();
    server.join().unwrap();
    let said = heard.lock().unwrap().last().expect("it asked").clone();
    assert!(!said.secret.is_empty() && said.signing_request.contains("CERTIFICATE REQUEST"));
    wait_until("both know each other", || (members(&a).len() == 2 && members(&b).len() == 2).then_some(()));
    wait_until("it has come", || (a.json("cluster status --json")["members"][1]["answers"] == true).then_some(()));
    let before = (members(&a), without_log_ends(facts(&a)).1);

    // Word for word; with another key, name, node or place; with what others said of themselves.
    let another_key = || {
        let key = rcgen::KeyPair::generate().unwrap();
        rcgen::CertificateParams::new(Vec::new()).unwrap().serialize_request(&key).unwrap().pem().unwrap()
    };
    let stranger = uuid::Uuid::now_v7().to_string();
    let again = [
        (said.clone(), "was let in before"),
        (JoinRequest { address: "192.0.2.66:7444".into(), ..said.clone() }, "was let in before"),
        (JoinRequest { name: "c".into(), ..said.clone() }, "was let in before"),
        (JoinRequest { node_id: stranger.clone(), ..said.clone() }, "was let in before"),
        (JoinRequest { signing_request: another_key(), ..said.clone() }, "is there and answers"),
        (
            JoinRequest { signing_request: another_key(), node_id: stranger.clone(), ..said.clone() },
            "another node is called `b`",
        ),
        (JoinRequest { role: "server".into(), ..said.clone() }, "the token is for a witness"),
        (JoinRequest { secret: said.secret.chars().rev().collect(), ..said.clone() }, "the token is not valid"),
    ];
    let member = pass.address.clone();
    let (asked, words): (Vec<JoinRequest>, Vec<&str>) = again.into_iter().unzip();
    let answers = machine.spawn(move || {
        runtime().block_on(async {
            let mut door = knock(&tls, &member).await;
            let mut answers = Vec::new();
            for message in asked {
                answers.push(door.join(spoken(message)).await.map(drop));
            }
            answers
        })
    });
    for (answer, words) in answers.join().unwrap().into_iter().zip(&words) {
        let refused = answer.expect_err(words);
        assert!(refused.message().contains(words), "{words}: {refused}");
    }
    assert_eq!((members(&a), without_log_ends(facts(&a)).1), before);
    let log = a.log();
    for words in &words {
        let told = |line: &&str| line.contains("that asked to join was refused") && line.contains(words);
        assert!(log.lines().any(|line| told(&line) && line.contains("127.0.0.1")), "{words}: {log}");
    }
    assert!(!log.contains(&said.secret), "no log tells a secret");
    b.good("secret ls");
    assert_eq!(members(&b), before.0);
}

#[test]
fn a_member_that_says_to_be_another_is_refused_and_one_at_anothers_address_is_not_taken_for_it() {
    let mut lan = Lan::start(&["witness", "witness", "witness"]);
    lan.until_voters(3);
    wait_until("the first one leads", || (lan.leader_among(&[0, 1, 2]) == 0).then_some(()));
    let nodes = &mut lan.nodes;
    let stolen = steal(&nodes[1].data.join("cluster"), &nodes[1]);
    let seen = status(&nodes[0]);
    let of = |i: usize, what: &str| seen["members"][i][what].as_str().unwrap().to_owned();
    let says = |node_id: &str, name: &str, address: &str| {
        serde_json::json!({"node_id": node_id, "name": name, "address": address, "role": "witness"}).to_string()
    };
    let (b, c) = (of(1, "node_id"), of(2, "node_id"));
    let lies = [
        (says(&c, "c", "127.0.0.1:1"), Code::NotFound),
        (says(&b, "c", &of(1, "address")), Code::AlreadyExists),
        ("{}".to_owned(), Code::InvalidArgument),
        (says(&b, "b", &of(1, "address")).replace("witness", "king"), Code::InvalidArgument),
    ];
    // Where another member is: it is who it is, whoever knocks there.
    let at_c = says(&b, "b", &of(2, "address"));
    let before = members(&nodes[0]);
    nodes[1].kill();
    let leader = of(0, "address");
    let asked = lan.switch.spawn(move || {
        runtime().block_on(async {
            let mut peer = stolen.dial(&leader).await;
            for (lie, code) in lies {
                let message = Message { json: lie.clone().into() };
                let refused = peer.announce(stolen.request(message, stolen.member)).await.expect_err(&lie);
                assert_eq!(refused.code(), code, "{lie}: {refused}");
            }
            let message = Message { json: at_c.into() };
            peer.announce(stolen.request(message, stolen.member)).await.map(drop)
        })
    });
    asked.join().unwrap().unwrap();
    assert!(nodes[0].log().contains("which says that it is node"), "{}", nodes[0].log());
    // Nobody takes the one who answers there for the one that is said to be there.
    std::thread::sleep(Duration::from_secs(2));
    wait_until("it does not answer", || {
        (nodes[0].json("cluster status --json")["members"][1]["answers"] == false).then_some(())
    });
    assert_eq!(nodes[0].json("cluster status --json")["members"][2]["answers"], true);
    nodes[0].good("run -n web --replicas 0 --no-wait toft/demo");
    nodes[1].up();
    wait_until("it says where it is", || (members(&nodes[0]) == before).then_some(()));
    wait_until("it has what was written", || (nodes[1].json("ls --json").as_array()?.len() == 1).then_some(()));
}
