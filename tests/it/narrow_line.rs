//! Members behind lines that need longer for one change than a heartbeat may take, as lines from home do.

use std::time::Duration;

use serde_json::json;

use crate::harness::{
    machine::wait_until,
    trio::{Trio, ask},
};

/// Bytes of a change. Two members are sent it: at 8 Mbit/s that takes 760 ms.
const LARGE: usize = 380_000;

#[test]
fn what_takes_a_narrow_line_longer_than_a_heartbeat_is_committed_all_the_same() {
    let mut trio = Trio::start();
    let put = |trio: &Trio, i: u32| {
        let env = json!({"I": i.to_string(), "PAD": "x".repeat(LARGE)});
        let body = json!({"name": "pad", "image": "toft/demo", "replicas": 0, "env": env}).to_string();
        let socket = &trio.sockets()[trio.leader()];
        let answer = ask(socket, Duration::from_secs(40), "PUT", "/api/v1/workloads/pad", &[], &body).unwrap();
        assert!(answer.status < 300, "{}", answer.text());
    };
    put(&trio, 0);
    trio.narrow("8mbit");
    (1..7).for_each(|i| put(&trio, i));
    let written = trio.applied(trio.leader()).unwrap();
    for i in 0..3 {
        wait_until("all have it", || trio.applied(i).filter(|applied| *applied >= written));
    }

    // Who was away is told all of it, a part after the other.
    let away = (trio.leader() + 1) % 3;
    trio.nodes[away].kill();
    (7..15).for_each(|i| put(&trio, i));
    let written = trio.applied(trio.leader()).unwrap();
    trio.nodes[away].up();
    wait_until("who was away has it", || trio.applied(away).filter(|applied| *applied >= written));
}
