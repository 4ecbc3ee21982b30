//! Pages of the whole cluster: nodes, cards, events, settings; finding things, and changing a workload as text.

use std::collections::BTreeMap;

use axum::http::StatusCode;
use toft_model::{
    gpu::{Gpu, GpuVendor},
    ids::NodeId,
    log::LogStream,
    node::Inventory,
};
use uuid::Uuid;

use super::house::House;

pub(super) fn card(id: &str, sick: Option<&str>) -> Gpu {
    Gpu {
        id: id.parse().unwrap(),
        vendor: GpuVendor::Nvidia,
        model: "NVIDIA <RTX> 4090".into(),
        memory_mib: 24 << 10,
        outside_mib: 512,
        parent: None,
        sick: sick.map(str::to_owned),
        watts: None,
        links: Vec::new(),
    }
}

/// A second machine, with two cards, of which one is sick; nobody reaches it.
async fn with_cellar(house: &House) {
    let inventory = Inventory {
        cpus: 32,
        memory_bytes: 128 << 30,
        kernel: "6.12".into(),
        os: "Debian".into(),
        arch: "x86_64".into(),
        version: "0.0.1".into(),
        runtime: "containerd 2.1.4".into(),
        subnet: Some("10.210.1.0/24".parse().unwrap()),
        subnet6: None,
        isolation: Vec::new(),
        gpus: vec![card("GPU-a", None), card("GPU-b", Some("it fell off the <bus>"))],
    };
    let labels = BTreeMap::from([("rack".to_owned(), "<b>".to_owned())]);
    house.ops.register_node(NodeId(Uuid::now_v7()), "cellar".parse().unwrap(), labels, inventory).await.unwrap();
}

#[tokio::test]
async fn nodes_tell_what_they_have_and_which_differ() {
    let house = House::new().await;
    house.get("/nodes").await.shows("id=\"node-attic\"").hides("Not all nodes run the same version");
    with_cellar(&house).await;
    let page = house.get("/nodes").await;
    page.shows("2 x NVIDIA &#60;RTX&#62; 4090").shows("128 GiB").shows("rack=&#60;b&#62;");
    page.shows("Not all nodes run the same version").shows("0.0.1").shows("href=\"/settings#join\"");
    house.get("/nodes/cellar").await.shows("GPU 1 of cellar").shows("Over time");
    let drain = house.get("/nodes/cellar/drain").await;
    drain.shows("Drain cellar?").shows("action=\"/nodes/cellar/drain\"").shows("Leave it as it is");
    house.get("/nodes/cellar/cordon").await.shows("Cordon cellar?");
}

#[tokio::test]
async fn cards_tell_how_they_are_and_take_no_work_when_asked() {
    let house = House::new().await;
    with_cellar(&house).await;
    let list = house.get("/gpus").await;
    list.shows("<strong>2</strong> cards in 1 node").shows("<strong>1</strong> free").shows(">sick<");
    list.shows("It fell off the &#60;bus&#62;.").shows("512 MiB used outside toft");
    house.get("/").await.shows("GPU 1 of cellar").shows("Needs attention").shows("class=\"cell sick\"");
    house.get("/gpus/cellar/0").await.shows("GPU-a").shows("action=\"/gpus/cellar/0/cordon\"");
    let answer = house.post("/gpus/cellar/0/cordon", "").await;
    assert_eq!((answer.status, answer.header("location")), (StatusCode::SEE_OTHER, "/gpus/cellar/0"));
    house.get("/gpus/cellar/0").await.shows(">cordoned<").shows("/gpus/cellar/0/uncordon");
    house.post("/gpus/cellar/0/uncordon", "").await;
    house.get("/gpus/cellar/0").await.shows(">free<");
    for path in ["/gpus/cellar/2", "/gpus/none/0", "/charts/gpus/cellar/9"] {
        assert_eq!(house.get(path).await.status, StatusCode::NOT_FOUND, "{path}");
    }
}

#[tokio::test]
async fn events_are_filtered_and_go_on_page_by_page() {
    let house = House::new().await;
    house.run_up("web", |_| {}).await;
    house.run("other", |_| {}).await;
    let all = house.get("/events").await;
    all.shows("href=\"/workloads/web\"").shows("href=\"/nodes/attic\"").shows("data-live-from=\"/live/events?");
    house.get("/events?kind=node").await.shows("/nodes/attic").hides("href=\"/workloads/web\"");
    house.get("/events?text=OTHER").await.shows("href=\"/workloads/other\"").hides("href=\"/workloads/web\"");
    house.get("/events?text=nothing%20of%20the%20kind").await.shows("Nothing fits");
    house
        .get("/events?kind=%22%3E%3Cb%3E&before=1")
        .await
        .shows("Nothing has happened")
        .hides("<b>")
        .hides("data-live-from");
    for number in 0..70 {
        house.run(&format!("w{number}"), |_| {}).await;
    }
    let first = house.get("/events?kind=workload").await;
    let older = first.text.split("href=\"/events?").nth(1).expect("there is more").split('"').next().unwrap();
    let older = house.get(&format!("/events?{}", older.replace("&#38;", "&").replace("&amp;", "&"))).await;
    older.shows("/workloads/web").hides("href=\"/workloads/w69\"");
}

#[tokio::test]
async fn a_workload_is_changed_as_text_after_a_look_at_the_difference() {
    let house = House::new().await;
    house.run_up("web", |_| {}).await;
    let page = house.get("/workloads/web/edit").await;
    page.shows("&#34;replicas&#34;: 1").shows("name=\"seen\" value=\"1\"");
    let form = |text: &str, seen: u64, agreed: &str| {
        let encoded: String = text.bytes().map(|byte| format!("%{byte:02X}")).collect();
        format!("text={encoded}&seen={seen}&agreed={agreed}")
    };
    let two = r#"{"name":"web","image":"toft/demo","replicas":2}"#;
    let difference = house.post("/workloads/web/edit", &form(two, 1, "")).await;
    difference.shows("What would change").shows("class=\"added\">+   &#34;replicas&#34;: 2").shows("name=\"agreed\"");
    assert_eq!(
        house.ops.workload(&"web".parse().unwrap()).await.unwrap().row.spec.replicas,
        1,
        "nothing is written yet"
    );
    let refused = house.post("/workloads/web/edit", &form(r#"{"name":"web","image":"a","size":1}"#, 1, "1")).await;
    assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY);
    refused.shows("Nothing was changed").shows("size").shows("{&#34;name&#34;:&#34;web&#34;");
    let written = house.post("/workloads/web/edit", &form(two, 1, "1")).await;
    assert_eq!((written.status, written.header("location")), (StatusCode::SEE_OTHER, "/workloads/web"));
    assert_eq!(house.ops.workload(&"web".parse().unwrap()).await.unwrap().row.spec.replicas, 2);
    let stale = house.post("/workloads/web/edit", &form(two, 1, "1")).await;
    assert_eq!(stale.status, StatusCode::UNPROCESSABLE_ENTITY);
    stale.shows("Nothing was changed").shows("name=\"seen\" value=\"2\"");
}

#[tokio::test]
async fn things_are_found_by_a_part_of_their_name() {
    let house = House::new().await;
    house.run("web", |_| {}).await;
    house.post("/volumes/new", "name=webdata").await;
    house.get("/find").await.shows("href=\"/settings\"").hides("href=\"/workloads/web\"");
    let found = house.get("/find?q=WEB").await;
    found.shows("href=\"/workloads/web\"").shows("webdata").hides("href=\"/settings\">Settings");
    house.get("/find?q=zzz").await.shows("Nothing has such a name");
}

#[tokio::test]
async fn settings_tell_of_the_cluster_and_refuse_what_makes_no_sense() {
    let house = House::new().await;
    house.get("/settings").await.shows("Make a PIN").shows("attic").shows("This node makes no backups");
    let refused = house.post("/settings/tokens", "ttl=soon&uses=1").await;
    assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY);
    refused.shows("value=\"soon\"");
    house.post("/settings/tokens", "ttl=24h&uses=many").await.shows("no number of machines");
    house.post("/settings/tokens", "pin=1").await.shows("cannot change its membership now");
    assert_eq!(house.post("/settings/tokens/none/revoke", "").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn charts_have_a_table_and_points() {
    let house = House::new().await;
    house.run_up("web", |_| {}).await;
    let page = house.get("/workloads/web?span=1w").await;
    page.shows("data-charts=\"/charts/workloads/web?span=1w\"").shows("aria-current=\"true\">week").shows(">Highest<");
    let points: serde_json::Value = serde_json::from_str(&house.get("/charts/workloads/web").await.text).unwrap();
    assert_eq!(points["charts"][0]["key"], "cpu");
    assert_eq!(points["charts"][0]["lines"][0]["changes"].as_array().unwrap().len(), 12);
    let points: serde_json::Value = serde_json::from_str(&house.get("/charts/nodes/attic?span=1m").await.text).unwrap();
    assert_eq!(points["charts"].as_array().unwrap().len(), 5, "CPU, memory, network, disk, temperature");
    assert_eq!(house.get("/charts/workloads/web?span=9y").await.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn lists_are_filtered_and_come_in_pages() {
    let house = House::new().await;
    for number in 0..105 {
        house.run(&format!("w{number:03}"), |_| {}).await;
    }
    let first = house.get("/workloads").await;
    first.shows("id=\"workload-w099\"").hides("id=\"workload-w100\"").shows("105 workloads");
    house.get("/workloads?page=1").await.shows("id=\"workload-w104\"").hides("id=\"workload-w099\"");
    house.get("/workloads?q=W10&page=9").await.shows("workload-w103").hides("workload-w099");
    house.get("/workloads?state=down").await.shows("None is like that");
}

#[tokio::test]
async fn logs_are_searched() {
    let house = House::new().await;
    let web = house.run_up("web", |_| {}).await;
    for text in ["GET / 200", "get /favicon 404", "a+b"] {
        house.node.write(web.instances[0].row.id, LogStream::Stdout, text);
    }
    house.get("/workloads/web/logs?text=GET").await.shows("GET / 200").shows("404").hides(">a+b<");
    house.get("/workloads/web/logs?text=a%2Bb").await.shows(">a+b<").hides("404").shows("text=a%2Bb&#38;since=");
}
