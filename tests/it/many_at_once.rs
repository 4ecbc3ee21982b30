//! A hundred containers at once: each runs with an address and a name of its own, and nothing of them stays.

use std::{
    collections::BTreeSet,
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use hickory_proto::{op::Message, rr::RecordType};
use serde_json::{Value, json};

use crate::{
    harness::{appliance::Appliance, census::Census, machine::wait_until},
    names::{found, inside, over_tcp, question},
};

const MANY: usize = 100;
/// Time in which all of them must run, and be gone: they need about a tenth of it on two cores that do nothing else.
const MOST: Duration = Duration::from_secs(120);

/// An appliance with one container that looks at the others.
fn with_witness() -> (Appliance, Value) {
    let toft = Appliance::start();
    toft.import_busybox();
    toft.good("run -n witness busybox -- sleep 100000");
    let witness = toft.instance("witness");
    (toft, witness)
}

/// The addresses that stand for a name; a hundred fit into an answer over TCP only.
fn all_of(witness: &Value, name: &str) -> BTreeSet<String> {
    let bytes = question(name, RecordType::A);
    let answer = inside(witness, move |server| over_tcp(server, &bytes).unwrap());
    let answer = Message::from_vec(&answer).unwrap();
    answer.answers.iter().map(|record| record.data.to_string()).collect()
}

/// Waits until so many instances run beside the witness; gives their names and addresses.
fn running(toft: &Appliance, began: Instant) -> Vec<(String, String)> {
    loop {
        let all = toft.get("/api/v1/instances").good();
        let all = all["items"].as_array().unwrap();
        let others = || all.iter().filter(|one| one["name"] != "witness-0");
        assert!(others().all(|one| one["restarts"] == 0), "none ends");
        let text = |one: &Value, field: &str| one[field].as_str().unwrap().to_owned();
        let running: Vec<_> = others()
            .filter(|one| one["state"] == "running")
            .map(|one| (text(one, "name"), text(one, "address")))
            .collect();
        if running.len() == MANY {
            return running;
        }
        assert!(began.elapsed() < MOST, "only {} of {MANY} run", running.len());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// That a name leads there, soon: names follow what runs a moment later.
fn leads_to(witness: &Value, name: &str, expected: &str) {
    let mut last = String::new();
    let soon = Instant::now() + Duration::from_secs(10);
    while last != expected {
        assert!(Instant::now() < soon, "{name} leads to {last}, and not to {expected}");
        last = found(witness, name);
    }
}

/// That each has an address of its own, a name that leads there, and answers.
fn assert_all_there(witness: &Value, running: &[(String, String)]) {
    let addresses: BTreeSet<&String> = running.iter().map(|(_, address)| address).collect();
    assert_eq!(addresses.len(), MANY, "each has an address of its own");
    for (name, address) in running {
        leads_to(witness, &format!("{name}.toft.internal."), address);
    }
    let all: Vec<SocketAddr> =
        running.iter().map(|(_, address)| SocketAddr::new(address.parse().unwrap(), 8080)).collect();
    inside(witness, move |_| {
        for address in all {
            wait_until(&format!("{address} answers"), || {
                TcpStream::connect_timeout(&address, Duration::from_secs(5)).ok()
            });
        }
    });
}

/// Waits until none is left beside the witness.
fn gone(toft: &Appliance, began: Instant) {
    while toft.get("/api/v1/instances").good()["items"].as_array().unwrap().len() > 1 {
        assert!(began.elapsed() < MOST, "some are left");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_hundred_replicas_run_at_once_and_leave_nothing() {
    let (toft, witness) = with_witness();
    toft.good("run -n one -p 8080 toft/demo");
    toft.good("rm one");
    let before = Census::settled(&toft);
    let began = Instant::now();
    let spec = json!({"name": "many", "image": "toft/demo", "replicas": MANY, "ports": [{"container": 8080}],
        "stop_grace_ms": 1000});
    assert_eq!(toft.post("/api/v1/workloads", &spec).status, 201);
    let instances = running(&toft, began);
    println!("{MANY} replicas run after {:.1} s", began.elapsed().as_secs_f32());
    assert_all_there(&witness, &instances);
    let addresses: BTreeSet<String> = instances.into_iter().map(|(_, address)| address).collect();
    assert_eq!(all_of(&witness, "many.toft.internal."), addresses);
    let began = Instant::now();
    toft.good("rm --no-wait many");
    gone(&toft, began);
    println!("{MANY} replicas are gone after {:.1} s", began.elapsed().as_secs_f32());
    leads_to(&witness, "many.toft.internal.", "Non-Existent Domain");
    before.wait_until_again(&toft);
}

#[test]
fn a_hundred_workloads_run_at_once_and_leave_nothing() {
    let (toft, witness) = with_witness();
    toft.good("run -n w toft/demo");
    toft.good("rm w");
    let before = Census::settled(&toft);
    let began = Instant::now();
    for number in 0..MANY {
        let spec = json!({"name": format!("w{number}"), "image": "toft/demo", "stop_grace_ms": 1000});
        assert_eq!(toft.post("/api/v1/workloads", &spec).status, 201);
    }
    println!("{MANY} workloads are ordered after {:.1} s", began.elapsed().as_secs_f32());
    let instances = running(&toft, began);
    println!("{MANY} workloads run after {:.1} s", began.elapsed().as_secs_f32());
    assert_all_there(&witness, &instances);
    let began = Instant::now();
    for number in 0..MANY {
        toft.request("DELETE", &format!("/api/v1/workloads/w{number}"), &[], b"");
    }
    gone(&toft, began);
    println!("{MANY} workloads are gone after {:.1} s", began.elapsed().as_secs_f32());
    before.wait_until_again(&toft);
}
