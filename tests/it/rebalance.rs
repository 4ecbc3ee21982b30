//! Rebalancing on real appliances: the plan is shown, ordered as it was shown, and carried out without missing a copy.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use serde_json::{Value, json};

use crate::{
    cluster::{join, prepare, three},
    harness::{
        appliance::Appliance,
        machine::{Machine, wait_until},
        terminal::on_terminal,
    },
};

/// The nodes on which copies of `web` run, sorted.
fn places(toft: &Appliance) -> Vec<String> {
    let instances = toft.json("ps --json");
    let running = instances.as_array().unwrap().iter().filter(|one| one["state"] == "running");
    let mut nodes: Vec<String> =
        running.filter(|one| one["workload"] == "web").map(|one| one["node"].as_str().unwrap().to_owned()).collect();
    nodes.sort();
    nodes
}

fn planned(toft: &Appliance) -> Value {
    toft.get("/api/v1/rebalance/plan").good()
}

/// Waits until so many moves are planned: nothing moves before its last update counts as done.
fn planned_moves(toft: &Appliance, moves: usize) -> Value {
    wait_until("a plan", || {
        let plan = planned(toft);
        (plan["moves"].as_array().unwrap().len() == moves).then_some(plan)
    })
}

#[test]
fn a_rebalance_does_what_it_showed_and_misses_no_copy() {
    let machine = Machine::new();
    let mut a = prepare(&machine, "a", 7501);
    a.up();
    let mut b = prepare(&machine, "b", 7502);
    join(&mut b, &a, 7501);
    a.good("cluster set placement.policy=spread");
    a.good("node cordon b");
    a.good("run -n web --replicas 4 --update-healthy 0s toft/demo");
    a.good("run -n db -v data:/data toft/demo");
    wait_until("all on one", || (places(&b) == ["a"; 4]).then_some(()));
    assert!(a.good("rebalance --dry-run").contains("no instance would be better off"));
    a.good("node uncordon b");

    // It is shown to everybody, and done for nobody who did not agree.
    let plan = planned_moves(&b, 2);
    assert!(plan["index"].as_u64().unwrap() > 0);
    let shown = b.good("rebalance --dry-run");
    let words = shown.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains("web-0 a b +") && words.contains("1 their data lies on their node"), "{shown}");
    assert_eq!(b.json("rebalance --dry-run --json --max-moves 1")["moves"].as_array().unwrap().len(), 1);
    let refused = b.toft(&["rebalance"]).bad(1);
    assert!(refused.contains("nobody can be asked") && refused.contains("--yes"), "{refused}");
    let (code, screen) = on_terminal(b.client(&["rebalance"]), &[("[y/N]", "n\n")]);
    assert!(code == 1 && screen.contains("nothing was moved"), "{screen}");
    assert_eq!(b.get("/api/v1/rebalance").good(), json!([]));

    // Another plan than the present one is refused, and so is what cannot be meant.
    let order = |body: Value| b.post("/api/v1/rebalance", &body);
    let error = order(json!({"plan": "0000000000000000\u{1b}[31m"})).refusal(409);
    assert_eq!(error["field"], "plan", "{error}");
    assert!(!error["message"].as_str().unwrap().contains('\u{1b}'), "{error}");
    order(json!({"plan": plan["plan"], "max_moves": 1})).refusal(409);
    for (body, field) in [
        (json!({}), "plan"),
        (json!({"plan": 7}), "plan"),
        (json!({"plan": plan["plan"], "max_moves": 0}), "max_moves"),
        (json!({"plan": plan["plan"], "max_moves": 1_001}), "max_moves"),
        (json!({"plan": plan["plan"], "moves": []}), "moves"),
    ] {
        assert_eq!(order(body.clone()).refusal(400)["field"], field, "{body}");
    }
    assert_eq!(b.get("/api/v1/rebalance/plan?max_moves=0").refusal(400)["field"], "max_moves");
    let told = b.toft(&["rebalance", "--dry-run", "--max-moves", "4000000000"]);
    assert!(told.code != 0 && told.err.contains("out of range"), "{told:?}");
    assert_eq!(places(&b), ["a"; 4]);

    let (done, fewest) = (AtomicBool::new(false), Mutex::new(usize::MAX));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let now = places(&b).len();
                let mut fewest = fewest.lock().unwrap();
                *fewest = (*fewest).min(now);
            }
        });
        let told = b.toft(&["rebalance", "--yes"]);
        done.store(true, Ordering::Relaxed);
        assert!(told.err.contains("web-0: done"), "{told:?}");
        told.good();
    });
    assert_eq!(*fewest.lock().unwrap(), 4, "a copy was missing meanwhile");
    assert_eq!(places(&a), ["a", "a", "b", "b"]);
    let events = a.json("events web --json").to_string();
    assert!(events.contains("moved from node a to node b"), "{events}");
    assert_eq!(planned(&a)["moves"], json!([]));
}

#[test]
fn orders_to_move_outlive_who_leads() {
    let machine = Machine::new();
    let [mut a, b, c] = three(&machine);
    b.good("cluster set placement.policy=spread");
    b.good("node cordon a");
    b.good("node cordon c");
    b.good("run -n web --replicas 4 --update-healthy 0s toft/demo");
    b.good("node uncordon c");
    let plan = planned_moves(&b, 2);
    assert_eq!(b.json("cluster status --json")["leader"], "a");
    let body = json!({"plan": plan["plan"]});
    let key = [("content-type", "application/json"), ("idempotency-key", "0199c0de-0000-7000-8000-00000000abcd")];
    let ordered = b.request("POST", "/api/v1/rebalance", &key, body.to_string().as_bytes()).good();
    assert_eq!(ordered.as_array().unwrap().len(), 2, "{ordered}");
    a.kill();
    wait_until("they moved", || (places(&b) == ["b", "b", "c", "c"]).then_some(()));
    wait_until("it is done", || (b.get("/api/v1/rebalance").good() == json!([])).then_some(()));
    // The same request again is the same order, and moves nothing more.
    assert_eq!(c.request("POST", "/api/v1/rebalance", &key, body.to_string().as_bytes()).good(), json!([]));
    assert_eq!(planned(&c)["moves"], json!([]));
    a.set_flags(&[]);
    a.up();
}
