//! Requests that mean no good are refused with the field, never by a fault of ours.

use serde_json::{Value, json};

use crate::harness::{appliance::Appliance, http::Answer};

fn send(toft: &Appliance, body: &[u8]) -> Answer {
    toft.request("POST", "/api/v1/workloads", &[], body)
}

#[test]
fn broken_json_is_refused() {
    let toft = Appliance::start();
    let deep = "[".repeat(100_000);
    let deep_object = format!("{}1{}", "{\"a\":".repeat(5_000), "}".repeat(5_000));
    let deep_in_field = format!("{{\"name\":\"a\",\"image\":\"b\",\"command\":{}}}", "[".repeat(50_000));
    for body in [
        &b"{"[..],
        b"null",
        b"[]",
        b"\"web\"",
        b"1e999",
        b"{}x",
        b"{\"name\":\"a\",\"image\":\"b\"} {}",
        b"\xff\xfe",
        b"{\"name\":\"a\",\"name\":\"b\",\"image\":\"c\"}",
        b"{\"name\":\"\\ud800\",\"image\":\"c\"}",
        deep.as_bytes(),
        deep_object.as_bytes(),
        deep_in_field.as_bytes(),
    ] {
        let error = send(&toft, body).refusal(400);
        assert_eq!(error["code"], "invalid", "{:?}", &body[..body.len().min(40)]);
        assert!(error["message"].as_str().unwrap().len() < 2_000, "a message stays short");
    }
    assert_eq!(toft.request("POST", "/api/v1/workloads", &[], b"").status, 400);
    assert_eq!(toft.get("/api/v1/workloads").good()["items"], json!([]));
}

#[test]
fn wrong_types_and_hostile_texts_are_refused_with_their_field() {
    let toft = Appliance::start();
    let long = "x".repeat(100_000);
    let check = |field: &str, value: Value| {
        let mut body = json!({"name": "web", "image": "toft/demo"});
        body[field] = value.clone();
        let error = send(&toft, body.to_string().as_bytes()).refusal(400);
        let told = error["field"].as_str().unwrap_or_default();
        let shown: String = value.to_string().chars().take(60).collect();
        assert!(told.starts_with(field), "{field} = {shown}: {error}");
        assert!(error["message"].as_str().unwrap().len() < 2_000, "{field} = {shown}: a message stays short");
    };
    for value in [json!(null), json!(1), json!([]), json!({}), json!("\0"), json!("a\0b"), json!("../etc"), json!(long)]
    {
        check("name", value.clone());
        check("image", value);
    }
    for value in [json!("x"), json!(1.5), json!(-1), json!(1e30), json!(null), json!([1])] {
        check("replicas", value);
    }
    for value in [json!("sh"), json!([1]), json!([null]), json!(["a\0b"]), json!([[]]), json!(vec!["x"; 2_000])] {
        check("command", value.clone());
        check("entrypoint", value);
    }
    for value in
        [json!([]), json!({"A": null}), json!({"": "x"}), json!({"A=B": "x"}), json!({"A\n": "x"}), json!({"A": "\0"})]
    {
        check("env", value.clone());
        check("labels", value);
    }
    for value in [
        json!({}),
        json!([{}]),
        json!([80]),
        json!([{"host": 1}]),
        json!([{"container": -1}]),
        json!([{"container": "80"}]),
    ] {
        check("ports", value);
    }
    check("env", json!({"BIG": "x".repeat(600_000)}));
    check("kind", json!("daemon"));
    check("network", json!("bridge\0"));
    check("stop_grace_ms", json!(u64::MAX));
    check("resources", json!({"cpu_millis": 1.5}));
    check("resources", json!({"memory_bytes": u64::MAX}));
    check("node", json!("no such/node"));
    check("restart", json!("on-failure:99999999999"));
    assert_eq!(toft.get("/api/v1/workloads").good()["items"], json!([]));
}

#[test]
fn a_body_that_is_too_large_is_refused() {
    let toft = Appliance::start();
    let body = json!({"name": "web", "image": "toft/demo", "env": {"BIG": "x".repeat(1 << 20)}});
    let error = send(&toft, body.to_string().as_bytes()).refusal(413);
    assert_eq!(error["code"], "too_large");
    let huge = vec![b' '; 20 << 20];
    assert_eq!(send(&toft, &huge).status, 413);
    let put = toft.request("PUT", "/api/v1/workloads/web", &[], &huge);
    assert_eq!(put.status, 413);
    let headers = toft.request("GET", "/health", &[("x-large", &"x".repeat(200_000))], b"");
    assert!([431, 400].contains(&headers.status), "{}", headers.status);
    assert_eq!(toft.get("/health").status, 200);
}

#[test]
fn odd_paths_and_queries_are_refused() {
    let toft = Appliance::start();
    let long = "a".repeat(10_000);
    for path in [
        "/api/v1/workloads/%00",
        "/api/v1/workloads/..%2f..%2fetc",
        "/api/v1/workloads/%ff%fe",
        "/api/v1/workloads/Bad%20Name",
        &format!("/api/v1/workloads/{long}"),
        &format!("/api/v1/workloads?after={long}&limit=99999999999999999999"),
        "/api/v1/workloads?limit=",
        "/api/v1/workloads/web/logs?tail=-1",
        "/api/v1/workloads/web/logs?since=%00",
        "/api/v1/workloads/web/logs?follow=perhaps",
        "/api/v1/events?after=x",
        "/api/v1/nodes?x=1",
    ] {
        let answer = toft.get(path);
        let shown: String = path.chars().take(60).collect();
        assert!((400..500).contains(&answer.status), "{shown}: {}", answer.status);
        assert!(answer.body.len() < 4_000, "{shown}: an answer stays short");
        assert!(answer.json()["error"]["code"].is_string(), "{shown}: {}", answer.text());
    }
    for image in ["%00", "", "A", &long] {
        let error = toft.request("DELETE", &format!("/api/v1/images?name={image}"), &[], b"").refusal(400);
        assert_eq!(error["field"], "name");
    }
    for (method, path) in [("DELETE", "/api/v1/workloads"), ("PUT", "/api/v1/events"), ("TRACE", "/api/v1/nodes")] {
        assert_eq!(toft.request(method, path, &[], b"").status, 405, "{method} {path}");
    }
    assert_eq!(toft.get("/health").status, 200);
}

#[test]
fn many_at_once_get_one_workload_of_a_name() {
    let toft = Appliance::start();
    let body = json!({"name": "web", "image": "toft/demo", "replicas": 0}).to_string();
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..32).map(|_| scope.spawn(|| send(&toft, body.as_bytes()).status)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(statuses.iter().filter(|status| **status == 201).count(), 1, "{statuses:?}");
    assert_eq!(statuses.iter().filter(|status| **status == 409).count(), 31, "{statuses:?}");
}

#[test]
fn keys_and_consistencies_that_are_none_are_refused() {
    let toft = Appliance::start();
    let body = json!({"name": "web", "image": "toft/demo", "replicas": 0}).to_string();
    let long = "a".repeat(10_000);
    for key in ["", "x", "\"", "01890a5d-ac96-774b-bcce-b302099a805", "01890a5d-ac96-774b-bcce-b302099a8057, x", &long]
    {
        for (method, path) in [
            ("POST", "/api/v1/workloads"),
            ("PUT", "/api/v1/workloads/web"),
            ("DELETE", "/api/v1/workloads/web"),
            ("POST", "/api/v1/workloads/web/start"),
            ("POST", "/api/v1/workloads/web/stop"),
            ("POST", "/api/v1/workloads/web/restart"),
        ] {
            let refused = toft.request(method, path, &[("Idempotency-Key", key)], body.as_bytes()).refusal(400);
            assert_eq!(refused["field"], "Idempotency-Key", "{method} {path} {key:.20}");
            assert!(refused["message"].as_str().unwrap().len() < 200);
        }
    }
    for value in ["", "LOCAL", "strong", "local&consistency=local", "%6cocal", &long] {
        for path in ["workloads", "workloads/web", "workloads/web/logs", "instances", "nodes", "events"] {
            let refused = toft.get(&format!("/v1/{path}?consistency={value}")).refusal(400);
            assert_eq!(refused["field"], "consistency", "{path} {value:.20}");
            assert!(refused["message"].as_str().unwrap().len() < 200);
        }
    }
    assert_eq!(toft.get("/api/v1/workloads?consistency=linearizable").good()["items"], json!([]));
}
