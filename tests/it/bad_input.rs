//! What users get wrong, and what their machines lack: told clearly, with the next step, and nothing harmed.

use std::{fs, net::TcpListener};

use serde_json::json;

use crate::harness::{appliance::Appliance, image, machine::Machine};

#[test]
fn unknown_fields_and_bad_values_are_refused_with_their_field() {
    let toft = Appliance::start();
    let good = json!({"name": "web", "image": "toft/demo"});
    let with = |key: &str, value: serde_json::Value| {
        let mut body = good.clone();
        body[key] = value;
        body
    };
    for (body, field) in [
        (with("colour", json!("red")), "colour"),
        (with("name", json!("Bad Name")), "name"),
        (with("name", json!("-web")), "name"),
        (with("name", json!("")), "name"),
        (with("image", json!("BAD IMAGE")), "image"),
        (with("ports", json!(["18080:8080"])), "ports[0]"),
        (with("ports", json!([{"container": 0}])), "ports[0].container"),
        (with("ports", json!([{"container": 70000}])), "ports[0].container"),
        (with("ports", json!([{"container": 80, "protocol": "sctp"}])), "ports[0].protocol"),
        (with("ports", json!([{"container": 80, "x": 1}])), "ports[0].x"),
        (with("restart", json!("sometimes")), "restart"),
        (with("replicas", json!(-1)), "replicas"),
        (with("replicas", json!(100_000)), "replicas"),
        (with("resources", json!({"memory_bytes": 1})), "resources.memory_bytes"),
        (with("env", json!({"A": 1})), "env.A"),
        (json!({"name": "web"}), "image"),
    ] {
        let error = toft.post("/api/v1/workloads", &body).refusal(400);
        assert_eq!((&error["code"], error["field"].as_str()), (&json!("invalid"), Some(field)), "{body}: {error}");
        assert!(error["hint"].is_string(), "{body}: {error}");
    }
    assert_eq!(toft.get("/api/v1/workloads").good()["items"], json!([]));
}

#[test]
fn a_host_port_that_is_taken_is_refused_with_who_has_it() {
    let toft = Appliance::start();
    toft.good("run -n web -p 18080:8080 toft/demo");
    let other = json!({"name": "other", "image": "toft/demo", "ports": [{"host": 18080, "container": 8080}]});
    let error = toft.post("/api/v1/workloads", &other).refusal(409);
    assert_eq!(error["field"], "ports[0].host");
    assert!(error["message"].as_str().unwrap().contains("`web`"), "{error}");
    let told = toft.toft(&["run", "-p", "18080:8080", "toft/demo"]).bad(125);
    assert!(told.contains("18080") && told.contains("hint:"), "{told}");

    let foreign = toft.machine.spawn(|| TcpListener::bind("127.0.0.1:18081").unwrap()).join().unwrap();
    let mut third = other.clone();
    third["name"] = json!("third");
    third["ports"] = json!([{"container": 8080}, {"host": 18081, "container": 8080}]);
    // The program is asked in its own network, where the listener is.
    let error = toft.post("/api/v1/workloads", &third).refusal(409);
    assert_eq!(error["field"], "ports[1].host");
    drop(foreign);
    assert_eq!(toft.post("/api/v1/workloads", &third).status, 201);
    toft.good("stop web");
    let error = toft.post("/api/v1/workloads", &other).refusal(409);
    assert!(error["message"].as_str().unwrap().contains("`web`"), "a stopped workload keeps its port: {error}");
    toft.good("rm web");
    assert_eq!(toft.post("/api/v1/workloads", &other).status, 201);
}

#[test]
fn a_port_taken_while_the_workload_was_stopped_is_told_and_waited_for() {
    let toft = Appliance::start();
    toft.good("run -n web -p 18080:8080 toft/demo");
    toft.good("stop web");
    let foreign = toft.machine.spawn(|| TcpListener::bind("0.0.0.0:18080").unwrap()).join().unwrap();
    let error = toft.toft(&["start", "web"]).bad(1);
    assert!(error.contains("18080"), "{error}");
    drop(foreign);
    toft.instance_until("web", "runs", |instance| instance["state"] == "running");
    assert_eq!(toft.machine.visit(18080, "/json").good()["instance"], "web-0");
}

#[test]
fn a_broken_archive_changes_nothing() {
    let toft = Appliance::start();
    toft.import_busybox();
    let before = toft.get("/api/v1/images").good();
    let whole = image::busybox("docker.io/library/busybox:latest", json!({"Cmd": ["false"]}));
    let mut spoiled = whole.clone();
    let middle = whole.len() / 2;
    spoiled[middle..middle + 64].fill(0xaa);
    let cut: &[u8] = &whole[..whole.len() / 2];
    for (what, archive) in
        [("cut", cut), ("spoiled", &spoiled), ("nonsense", b"what is this"), ("tar of nothing", &[0; 1024])]
    {
        let error = toft.request("POST", "/api/v1/images/import", &[], archive).refusal(400);
        assert_eq!((&error["code"], &error["field"]), (&json!("invalid"), &json!("archive")), "{what}: {error}");
        assert_eq!(toft.get("/api/v1/images").good(), before, "{what}");
    }
    let file = toft.machine.dir.join("cut.tar");
    fs::write(&file, cut).unwrap();
    let error = toft.toft(&["image", "import", file.to_str().unwrap()]).bad(1);
    assert!(error.contains("error:") && error.contains("hint:"), "{error}");
    assert!(toft.toft(&["image", "import", "/no/such/file"]).bad(1).contains("/no/such/file"));
    assert!(toft.toft(&["image", "import", "/tmp"]).bad(1).contains("directory"));
    assert_eq!(toft.good("run --rm busybox -- echo fine"), "fine\n", "the image that was there is as it was");
}

#[test]
fn a_second_toft_on_the_same_directory_is_refused_by_the_pid_of_the_first() {
    let toft = Appliance::start();
    let error = toft.up_refuses().bad(1);
    assert!(error.contains(&format!("process {}", toft.pid())) && error.contains("--data-dir"), "{error}");
    assert_eq!(toft.get("/ready").status, 200, "the first goes on");
    assert!(toft.data.join("toft.pid").exists());
}

#[test]
fn faults_of_the_configuration_are_told_all_at_once() {
    let toft = Appliance::prepare(&Machine::new(), "d");
    let file = toft.data.join("toft.toml");
    fs::write(&file, "[node]\nname = 'A B'\n[api]\nbind = '0.0.0.0:x'\n[logs]\nmax_bytes = '1'\nmax_files = 0\n")
        .unwrap();
    let error = toft.up_refuses().bad(2);
    for key in ["4 fault(s)", "node.name", "api.bind", "logs.max_bytes", "logs.max_files"] {
        assert!(error.contains(key), "{key}: {error}");
    }
    fs::write(&file, "[node]\nname = 'a'\ncolour = 1\n").unwrap();
    let error = toft.up_refuses().bad(2);
    assert!(error.contains("toft.toml") && error.contains("colour") && error.contains("line 3"), "{error}");
    fs::write(&file, "[node\n").unwrap();
    assert!(toft.up_refuses().bad(2).contains("toft.toml"));
    let mut command = toft.up_command();
    let ran = command.args(["--config", "/no/such.toml", "--bind", "nowhere"]).output().unwrap();
    let error = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert!(ran.status.code() == Some(2) && error.contains("/no/such.toml") && error.contains("nowhere"), "{error}");
    assert_eq!(fs::read_dir(&toft.data).unwrap().count(), 1, "nothing was made");
}

#[test]
fn a_path_too_long_for_a_socket_is_refused_with_the_remedy() {
    let toft = Appliance::prepare(&Machine::new(), &"d".repeat(100));
    let error = toft.up_refuses().bad(1);
    assert!(error.contains("hint: use a shorter --data-dir"), "{error}");
}

#[test]
fn a_machine_without_containerd_is_told_what_to_install() {
    let toft = Appliance::prepare(&Machine::new(), "d");
    let hide = "for p in /usr/local/sbin /usr/local/bin /usr/sbin /usr/bin /sbin /bin; do \
        [ ! -e $p/containerd ] || mount --bind /dev/null $p/containerd; done; exec \"$@\"";
    let up = toft.up_command();
    let mut command = toft.machine.command("unshare");
    command.args(["-m", "--propagation", "private", "sh", "-c", hide, "sh"]).arg(up.get_program()).args(up.get_args());
    let ran = command.output().unwrap();
    let error = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert_eq!(ran.status.code(), Some(1), "{error}");
    assert!(error.contains("containerd is not installed") && error.contains("apt install containerd runc"), "{error}");
}

#[test]
fn a_tcp_port_that_is_taken_is_told_when_it_was_asked_for() {
    let machine = Machine::new();
    let taken = machine.spawn(|| TcpListener::bind("127.0.0.1:7443").unwrap()).join().unwrap();
    let mut toft = Appliance::prepare(&machine, "d");
    let mut command = toft.up_command();
    let ran = command.args(["--bind", "127.0.0.1:7443"]).output().unwrap();
    let error = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert_eq!(ran.status.code(), Some(1), "{error}");
    assert!(error.contains("127.0.0.1:7443") && error.contains("--bind"), "{error}");
    toft.up();
    let url = fs::read_to_string(toft.data.join("toft.url")).unwrap();
    assert!(!url.contains(":7443"), "without a wish a free one is taken: {url}");
    let port = url.trim().trim_end_matches('/').rsplit_once(':').unwrap().1.parse().unwrap();
    assert_eq!(machine.visit(port, "/health").status, 200);
    drop(taken);
}
