//! The HTTP API through the socket: every route with its success and its refusals.

use serde_json::{Value, json};

use crate::harness::{appliance::Appliance, machine::wait_until};

fn web() -> Value {
    json!({"name": "web", "image": "toft/demo", "ports": [{"host": 18080, "container": 8080}]})
}

fn settled(toft: &Appliance, name: &str) -> Value {
    let waited = toft.get(&format!("/api/v1/workloads/{name}/wait?for=settled")).good();
    assert_eq!(waited["reached"], true, "{waited}");
    waited["workload"].clone()
}

#[test]
fn workloads_are_created_read_changed_and_removed() {
    let toft = Appliance::start();
    for version in ["/api/v1", "/v1"] {
        let created = toft.post(&format!("{version}/workloads"), &web());
        assert_eq!(created.status, 201);
        assert_eq!(created.header("location"), Some("/api/v1/workloads/web"));
        assert_eq!(created.header("etag"), Some("\"1\""));
        let taken = toft.post(&format!("{version}/workloads"), &web()).refusal(409);
        assert_eq!((&taken["code"], &taken["field"]), (&json!("conflict"), &json!("name")));
        assert_eq!(settled(&toft, "web")["status"], "running");
        let listed = toft.get(&format!("{version}/workloads")).good();
        assert_eq!(listed["items"].as_array().unwrap().len(), 1);
        assert_eq!(toft.get(&format!("{version}/instances")).good()["items"][0]["name"], "web-0");

        assert_eq!(toft.request("DELETE", &format!("{version}/workloads/web"), &[], b"").status, 202);
        let gone = toft.get(&format!("{version}/workloads/web/wait?for=gone")).good();
        assert_eq!(gone, json!({"reached": true, "workload": null}));
        let missing = toft.get(&format!("{version}/workloads/web")).refusal(404);
        assert_eq!(missing["code"], "not_found");
        assert!(missing["hint"].is_string());
        toft.request("DELETE", &format!("{version}/workloads/web"), &[], b"").refusal(404);
    }
}

#[test]
fn a_changed_specification_replaces_the_instance() {
    let toft = Appliance::start();
    let created = toft.put("/api/v1/workloads/web", &[], &web());
    assert_eq!((created.status, created.header("etag")), (200, Some("\"1\"")));
    let before = settled(&toft, "web")["instances"][0].clone();
    let same = toft.put("/api/v1/workloads/web", &[], &web());
    assert_eq!(same.header("etag"), Some("\"1\""), "nothing changed");
    assert_eq!(settled(&toft, "web")["instances"][0]["pid"], before["pid"]);

    let mut changed = web();
    changed["env"] = json!({"MODE": "fast"});
    changed["ports"][0]["host"] = json!(18081);
    let put = toft.put("/api/v1/workloads/web", &[], &changed);
    assert_eq!(put.header("etag"), Some("\"2\""));
    let after = settled(&toft, "web")["instances"].clone();
    assert_eq!(after.as_array().unwrap().len(), 1);
    assert_ne!(after[0]["id"], before["id"], "the container was made anew");
    let environment = std::fs::read(format!("/proc/{}/environ", after[0]["pid"])).unwrap();
    assert!(environment.windows(9).any(|window| window == b"MODE=fast"));
    assert_eq!(toft.machine.visit(18081, "/json").good()["instance"], "web-0");
    assert!(toft.machine.http(18080, "GET", "/", &[]).is_err(), "the old port is closed");
    assert!(!std::path::Path::new(&format!("/proc/{}", before["pid"])).exists());
}

#[test]
fn a_lost_update_is_refused() {
    let toft = Appliance::start();
    let tag = toft.put("/api/v1/workloads/web", &[], &web()).header("etag").unwrap().to_owned();
    let mut changed = web();
    changed["replicas"] = json!(0);
    let put = |tag: &str| toft.put("/api/v1/workloads/web", &[("if-match", tag)], &changed);
    assert_eq!(put(&tag).status, 200);
    let stale = put(&tag).refusal(412);
    assert_eq!(stale["code"], "stale");
    assert!(stale["hint"].is_string());
    assert_eq!(put("\"two\"").refusal(400)["field"], "If-Match");
    let absent = toft.put("/api/v1/workloads/other", &[("if-match", "\"1\"")], &json!({"name": "other", "image": "a"}));
    absent.refusal(404);
    let renamed = toft.put("/api/v1/workloads/other", &[], &web()).refusal(400);
    assert_eq!(renamed["field"], "name");
}

#[test]
fn labels_change_without_touching_what_runs() {
    let toft = Appliance::start();
    toft.post("/api/v1/workloads", &web());
    let before = settled(&toft, "web")["instances"][0].clone();
    let path = "/api/v1/workloads/web/labels";
    let label =
        |headers: &[(&str, &str)], body: &Value| toft.request("PATCH", path, headers, body.to_string().as_bytes());
    let labelled = label(&[], &json!({"team": "kitchen", "tier": "front"}));
    assert_eq!((labelled.status, labelled.header("etag")), (204, Some("\"2\"")));
    assert_eq!(label(&[("if-match", "\"2\"")], &json!({"team": null})).status, 204);
    assert_eq!(label(&[("if-match", "\"2\"")], &json!({"team": "late"})).refusal(412)["code"], "stale");
    assert_eq!(label(&[], &json!({"a=b": "c"})).refusal(400)["code"], "invalid");
    assert_eq!(label(&[], &json!({"a": 1})).refusal(400)["code"], "invalid");
    assert_eq!(label(&[], &json!({"a": "x".repeat(600_000)})).refusal(400)["code"], "invalid");
    toft.good("label web room=cellar gone-");
    let after = toft.get("/api/v1/workloads/web").good();
    assert_eq!(after["spec"]["labels"], json!({"tier": "front", "room": "cellar"}));
    assert_eq!(after["instances"][0]["pid"], before["pid"]);
    assert!(toft.toft(&["label", "other", "a=b"]).bad(1).contains("no workload `other`"));
}

#[test]
fn waiting_ends_at_the_milestone_or_at_the_timeout() {
    let toft = Appliance::start();
    toft.post("/api/v1/workloads", &web());
    settled(&toft, "web");
    let waited = toft.get("/api/v1/workloads/web/wait?for=gone&timeout_ms=200").good();
    assert_eq!((&waited["reached"], &waited["workload"]["name"]), (&json!(false), &json!("web")));
    assert_eq!(toft.get("/api/v1/workloads/web/wait?for=stopped").good()["reached"], true, "nobody wants it stopped");
    let stop = toft.post("/api/v1/workloads/web/stop", &json!(null));
    assert_eq!(stop.status, 200);
    let waited = toft.get("/api/v1/workloads/web/wait?for=stopped").good();
    assert_eq!((&waited["reached"], &waited["workload"]["status"]), (&json!(true), &json!("stopped")));
    assert_eq!(toft.post("/api/v1/workloads/web/start", &json!(null)).status, 200);
    assert_eq!(settled(&toft, "web")["status"], "running");
    assert_eq!(toft.post("/api/v1/workloads/web/restart", &json!(null)).status, 200);
    assert_eq!(settled(&toft, "web")["status"], "running");
    for action in ["start", "stop", "restart"] {
        toft.post(&format!("/api/v1/workloads/nobody/{action}"), &json!(null)).refusal(404);
    }
    for query in ["", "?for=lunch", "?for=gone&timeout_ms=soon", "?for=gone&colour=1"] {
        toft.get(&format!("/api/v1/workloads/web/wait{query}")).refusal(400);
    }
}

#[test]
fn lists_are_read_page_by_page() {
    let toft = Appliance::start();
    for name in ["a", "b", "c"] {
        let stopped = json!({"name": name, "image": "toft/demo", "replicas": 0});
        assert_eq!(toft.post("/api/v1/workloads", &stopped).status, 201);
    }
    let first = toft.get("/api/v1/workloads?limit=2").good();
    assert_eq!((first["items"].as_array().unwrap().len(), &first["next"]), (2, &json!("b")));
    let second = toft.get("/api/v1/workloads?limit=2&after=b").good();
    assert_eq!((&second["items"][0]["name"], &second["next"]), (&json!("c"), &Value::Null));
    for path in ["workloads?limit=0", "workloads?limit=x", "workloads?colour=1", "events?limit=1001", "images?limit=-1"]
    {
        assert!(toft.get(&format!("/api/v1/{path}")).refusal(400)["field"].is_string(), "{path}");
    }
}

#[test]
fn events_tell_the_story_newest_first() {
    let toft = Appliance::start();
    toft.post("/api/v1/workloads", &web());
    settled(&toft, "web");
    let events = toft.get("/api/v1/events").good()["items"].clone();
    let seqs: Vec<i64> = events.as_array().unwrap().iter().map(|event| event["seq"].as_i64().unwrap()).collect();
    assert!(seqs.len() >= 3 && seqs.windows(2).all(|pair| pair[0] > pair[1]), "{events}");
    let of_web = toft.get("/api/v1/events?subject=workload/web").good()["items"].clone();
    assert!(of_web.as_array().unwrap().iter().all(|event| event["subject"] == "workload/web"), "{of_web}");
    let page = toft.get("/api/v1/events?limit=1").good();
    let older = toft.get(&format!("/api/v1/events?limit=1&after={}", page["next"].as_str().unwrap())).good();
    assert!(older["items"][0]["seq"].as_i64() < page["items"][0]["seq"].as_i64());
}

#[test]
fn images_are_listed_imported_and_removed() {
    let toft = Appliance::start();
    toft.import_busybox();
    let image = toft.get("/api/v1/images").good()["items"][0].clone();
    assert_eq!(image["name"], "busybox:latest");
    assert!(image["digest"].as_str().unwrap().starts_with("sha256:") && image["size_bytes"].as_u64() > Some(0));
    toft.good("run -n job --restart no busybox -- true");
    let used = toft.request("DELETE", "/api/v1/images?name=busybox", &[], b"").refusal(409);
    assert!(used["message"].as_str().unwrap().contains("`job`"), "{used}");
    toft.good("rm job");
    assert_eq!(toft.request("DELETE", "/api/v1/images?name=busybox", &[], b"").status, 204);
    toft.request("DELETE", "/api/v1/images?name=busybox", &[], b"").refusal(404);
    assert_eq!(toft.get("/api/v1/images").good()["items"], json!([]));
    assert_eq!(toft.toft(&["image", "rm", "busybox"]).code, 1);
}

#[test]
fn health_readiness_metrics_and_the_document_are_there() {
    let toft = Appliance::start();
    toft.good("run -n web toft/demo");
    assert_eq!(toft.get("/health").text(), "ok\n");
    assert_eq!(toft.get("/ready").text(), "ready\n");
    let metrics = toft.get("/metrics").text();
    for line in ["toft_workloads{status=\"running\"} 1", "toft_instances{state=\"running\"} 1", "toft_runtime_up 1"] {
        assert!(metrics.lines().any(|other| other == line), "{line}: {metrics}");
    }
    let document = toft.get("/api/v1/openapi.json").good();
    for path in ["/api/v1/workloads", "/api/v1/workloads/{name}/wait", "/api/v1/images/import", "/ready"] {
        assert!(document["paths"][path].is_object(), "{path}");
    }
    let lost = toft.get("/api/v1/nothing").refusal(404);
    assert_eq!(lost["code"], "not_found");
    assert_eq!(toft.request("PATCH", "/api/v1/workloads", &[], b"{}").refusal(405)["code"], "invalid");
}

#[test]
fn a_workload_no_node_can_take_waits_and_says_why() {
    let toft = Appliance::start();
    let mut elsewhere = web();
    elsewhere["node"] = json!("elsewhere");
    toft.post("/api/v1/workloads", &elsewhere);
    let waiting = settled(&toft, "web");
    assert_eq!(waiting["status"], "pending");
    assert!(waiting["pending"].as_str().unwrap().contains("another node"), "{waiting}");
    let error = toft.toft(&["run", "-n", "huge", "--memory", "1TiB", "toft/demo"]);
    assert_eq!(error.code, 125, "{error:?}");
    let mut here = web();
    here["node"] = toft.get("/api/v1/nodes").good()["items"][0]["name"].clone();
    toft.put("/api/v1/workloads/web", &[], &here);
    wait_until("it runs", || (toft.instance("web")["state"] == "running").then_some(()));
}
