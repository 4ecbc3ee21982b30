//! Strangers and former members at the door: all are refused, logged, and change nothing.

use std::{fs, io::Write, net::TcpStream, path::Path, time::Duration};

use proptest::{prelude::*, test_runner::TestRunner};
use serde_json::Value;
use toft::wire::peer::{
    JoinRequest, Message, ProposeRequest, ReadIndexRequest, door_client::DoorClient, peer_client::PeerClient,
};
use tonic::{
    Code, Request, Status,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

use crate::{
    cluster::status,
    harness::{
        appliance::Appliance,
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
            let voted = anew.vote(stolen.request(Message { json: b"{}".to_vec() }, stolen.member)).await.unwrap_err();
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
        let naked = runtime.block_on(peers.append(Message { json: vec![b'['; 1 << 20] })).unwrap_err();
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
