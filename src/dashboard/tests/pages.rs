//! What pages show and what forms do, as a browser without scripts sees it.

use axum::http::StatusCode;
use toft_model::{
    instance::InstanceState,
    log::LogStream,
    pull::{LayerProgress, LayerState, PullProgress},
};

use super::house::House;
use crate::control::{ControlError, ErrorKind, node_access::ImagePull, ops::now_ms};

#[tokio::test]
async fn an_empty_appliance_tells_the_next_step() {
    let house = House::new().await;
    house.get("/workloads").await.shows("No workloads yet").shows("href=\"/run?demo\"");
    house.get("/").await.shows("Nothing runs yet").shows("attic").shows("64 GiB");
    house.get("/nodes/attic").await.shows("10.210.0.0/24");
    house.get("/nodes").await.shows("attic").shows("ready").shows("Add a node");
    house.get("/gpus").await.shows("No GPUs").shows("toft doctor");
    house.get("/events").await.shows("runs toft").hides("Nothing has happened");
    house.get("/settings").await.shows("Make a line to paste");
    house.get("/images").await.shows("toft image import");
    house.get("/run?demo").await.shows("value=\"toft/demo\"").shows("18080:8080");
    house.get("/run?image=nginx").await.shows("value=\"nginx\"");
}

#[tokio::test]
async fn a_workload_runs_stops_and_goes_without_scripts() {
    let house = House::new().await;
    let answer = house.post("/run", "image=toft%2Fdemo&name=web&ports=18080%3A8080&env=A%3D1").await;
    assert_eq!((answer.status, answer.header("location")), (StatusCode::SEE_OTHER, "/workloads/web"));
    house.until("web", |web| web.instances.len() == 1).await;
    house.get("/workloads/web").await.shows("starting").shows("18080:8080/tcp").shows("placed on node attic");
    house.report("web", 0, InstanceState::Running { pid: 7, since_ms: now_ms() }, 2).await;
    house.get("/workloads").await.shows("pill ok\">running").shows("1/1").shows("http://attic.lan:18080");
    house.get("/workloads/web").await.shows("process 7").shows("action=\"/workloads/web/stop\"");

    let answer = house.post("/workloads/web/stop", "from=list").await;
    assert_eq!((answer.status, answer.header("location")), (StatusCode::SEE_OTHER, "/workloads"));
    house.report("web", 0, InstanceState::Stopping, 2).await;
    house.report("web", 0, InstanceState::Stopped { exit: None }, 2).await;
    house.get("/workloads").await.shows("pill idle\">stopped").shows("action=\"/workloads/web/start\"");
    let answer = house.post("/workloads/web/start", "from=one").await;
    assert_eq!((answer.status, answer.header("location")), (StatusCode::SEE_OTHER, "/workloads/web"));

    house.get("/workloads/web/remove").await.shows("Remove web?").shows("This cannot be undone");
    let answer = house.post("/workloads/web/remove", "").await;
    assert_eq!((answer.status, answer.header("location")), (StatusCode::SEE_OTHER, "/workloads"));
    house.get("/workloads").await.shows("pill busy\">removing").hides("/workloads/web/stop");
}

#[tokio::test]
async fn refused_forms_keep_what_was_typed() {
    let house = House::new().await;
    let typed = "image=A%20B&name=Web&ports=80%3Ax&env=FOO&command=a+%27b&replicas=many&memory=lots&restart=often";
    let answer = house.post("/run", typed).await;
    assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY);
    for kept in ["value=\"A B\"", "value=\"Web\"", "\n80:x</textarea>", "\nFOO</textarea>", "a &#39;b</textarea>"] {
        answer.shows(kept);
    }
    answer.shows("value=\"many\"").shows("value=\"lots\"").shows("<option value=\"often\" selected");
    for field in ["image", "name", "ports", "env", "command", "replicas", "memory", "restart"] {
        answer.shows(&format!("id=\"{field}-mistake\"")).shows(&format!("href=\"#{field}\""));
    }
    answer.shows("<details open").shows("aria-invalid=\"true\"").hides("id=\"cpu-mistake\"");
    assert!(house.ops.workloads().await.unwrap().is_empty());
}

#[tokio::test]
async fn refusals_of_operations_stand_at_their_field() {
    let house = House::new().await;
    house.run("web", |spec| spec.ports = vec!["18080:80".parse().unwrap()]).await;
    let answer = house.post("/run", "image=toft%2Fdemo&name=web").await;
    answer.shows("id=\"name-mistake\"").shows("there is a workload").hides("id=\"ports-mistake\"");
    let answer = house.post("/run", "image=toft%2Fdemo&name=other&ports=18080%3A80").await;
    answer.shows("id=\"ports-mistake\"").shows("is taken by workload").shows("18080:80</textarea>");
    house.post("/run", "image=toft%2Fdemo&name=other&ports=22%3A80").await.shows("taken by another program");
}

#[tokio::test]
async fn a_workload_that_is_not_well_says_why() {
    let house = House::new().await;
    house.run("large", |spec| spec.resources.memory_bytes = Some(1 << 45)).await;
    house.get("/workloads/large").await.shows("waits for a place").shows("attic: 32 TiB of memory are wanted");
    house.run("flaky", |_| {}).await;
    let until_ms = now_ms() + 40_000;
    house.report("flaky", 0, InstanceState::BackOff { until_ms, reason: "exited with code 3".into() }, 5).await;
    house.get("/workloads").await.shows("backing off").shows("exited with code 3").shows(">5</td>");
    house.get("/workloads/flaky").await.shows("data-until>at ").shows("action=\"/workloads/flaky/start\"");
    house.run("once", |spec| spec.restart = Some("no".parse().unwrap())).await;
    house.fail("once", 137).await;
    house.get("/workloads/once").await.shows("pill bad\">failed").shows("exit code 137 (signal 9)");
    house.get("/").await.shows("<strong>3</strong> need attention");
}

#[tokio::test]
async fn a_runtime_that_is_away_is_told_on_every_page_that_matters() {
    let house = House::new().await;
    house.run("web", |_| {}).await;
    *house.node.trouble.lock().unwrap() = Some("`containerd` does not answer".into());
    for path in ["/", "/workloads", "/workloads/web"] {
        house.get(path).await.shows("No container can be started now").shows("<code>containerd</code> does not answer");
    }
    house.get("/").await.shows("runtime down");
}

#[tokio::test]
async fn logs_show_the_last_lines_of_all_or_one() {
    let house = House::new().await;
    let web = house.run_up("web", |spec| spec.replicas = 2).await;
    for i in 0..300 {
        house.node.write(web.instances[0].row.id, LogStream::Stdout, &format!("first {i}."));
    }
    house.node.write(web.instances[1].row.id, LogStream::Stderr, "second");
    let all = house.get("/workloads/web/logs").await;
    assert_eq!(all.text.matches("class=\"line").count(), 200);
    all.shows("first 299.").shows("class=\"line err\"").shows("web-1").hides("first 3.");
    let few = house.get("/workloads/web/logs?lines=1&instance=web-0").await;
    few.shows("first 299.").hides("first 298.").hides(">second<").shows("value=\"1\" selected");
    house.get("/workloads/web/logs?lines=0").await.shows(">second<").hides("first 299.");
    let wrong = house.get("/workloads/web/logs?lines=x").await;
    assert_eq!(wrong.status, StatusCode::BAD_REQUEST);
    wrong.shows("<h1>That cannot be read</h1>");
}

#[tokio::test]
async fn logs_of_what_is_gone_are_listed_and_shown() {
    let house = House::new().await;
    house.get("/logs").await.shows("Nothing is kept yet");
    house.run_up("web", |_| {}).await;
    house.node.let_go("web-0", "web", 3_600_000, "before the change");
    for i in 0..3 {
        house.node.let_go("old-0", "old", 7_200_000 + i, &format!("<b>life {i}</b>\u{1b}[31m"));
    }
    house.node.let_go("old-1", "old", 7_300_000, "another's");
    let list = house.get("/logs").await;
    list.shows("href=\"/logs/old\"").shows("href=\"/logs/web\"").shows("href=\"/workloads/web\"").shows("16 KiB");
    assert!(list.text.find("/logs/web") < list.text.find("/logs/old"), "what went last comes first");
    let old = house.get("/logs/old").await;
    old.shows("&#60;b&#62;life 0").shows("life 2").shows("another&#39;s").shows("old-1").hides("before the change");
    old.shows(" data-dated>20").hides("data-clock");
    house.get("/logs/old?lines=1&instance=old-1").await.shows("another&#39;s").hides("life 2");
    house.get("/logs/web").await.shows("before the change").shows("Logs of what runs now");
    house.get("/logs/none").await.shows("Nothing is kept of what none wrote");
    assert_eq!(house.get("/logs/No%20Name").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn secrets_are_written_and_never_shown() {
    let house = House::new().await;
    house.get("/secrets").await.shows("No secrets yet").shows("href=\"/secrets/new\"");
    let answer = house.post_parts("/secrets/new", &[("name", b"db"), ("text", b"let\r\nmein"), ("file", b"")]).await;
    assert_eq!((answer.status, answer.header("location")), (StatusCode::SEE_OTHER, "/secrets"));
    let db = house.ops.secret(&"db".parse().unwrap()).await.unwrap();
    assert_eq!((db.row.version, db.row.size_bytes), (1, 8), "one byte ends a line");
    house.get("/secrets").await.shows(">db<").shows("8 B").shows("/secrets/db/remove").hides("mein");

    let web = house.run_up("web", |spec| spec.secrets = vec!["db,target=password".parse().unwrap()]).await;
    house.get("/workloads/web").await.shows("db as password");
    house.get("/secrets").await.shows("/workloads/web").hides("/secrets/db/remove");
    house.get("/secrets/db/remove").await.shows("while workloads use it").hides("<button");
    let refused = house.post("/secrets/db/remove", "").await;
    assert_eq!(refused.status, StatusCode::CONFLICT);
    refused.shows("is used by <code>web</code>");
    house.get("/secrets/db/update").await.shows("It has version 1").shows("until they are restarted").hides("mein");
    let answer = house.post_parts("/secrets/db/update", &[("version", b"1"), ("file", b"\xff\x00")]).await;
    assert_eq!((answer.status, answer.header("location")), (StatusCode::SEE_OTHER, "/secrets"));
    house.get("/secrets").await.shows("pill warn\">older value").shows("when it is restarted");
    house.get("/").await.shows("changed to version 2");
    let stale = house.post_parts("/secrets/db/update", &[("version", b"1"), ("text", b"newer")]).await;
    assert_eq!(stale.status, StatusCode::UNPROCESSABLE_ENTITY);
    stale.shows("was changed meanwhile").shows("value=\"2\"").hides("newer");
    assert_eq!(web.instances.len(), 1);
}

#[tokio::test]
async fn refused_secrets_say_why_and_forget_the_value() {
    let house = House::new().await;
    let large = vec![b'x'; 600_000];
    type Fields<'a> = &'a [(&'a str, &'a [u8])];
    let cases: [(Fields<'_>, &str, &str); 5] = [
        (&[("name", b"Db"), ("text", b"hushhush")], "name-mistake", "is no valid name"),
        (&[("name", b"db"), ("text", b"")], "value-mistake", "is empty"),
        (&[("name", b"db"), ("text", b"hushhush"), ("file", b"hushhush")], "value-mistake", "one of the two"),
        (&[("name", b"db"), ("file", &large)], "value-mistake", "more than 512000 bytes"),
        (&[], "name-mistake", "the name is empty"),
    ];
    for (fields, id, words) in cases {
        let answer = house.post_parts("/secrets/new", fields).await;
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY);
        answer.shows(&format!("id=\"{id}\"")).shows(words).hides("hushhush").hides("xxxx");
    }
    house.post_parts("/secrets/new", &[("name", b"db"), ("text", b"x")]).await;
    house
        .post_parts("/secrets/new", &[("name", b"db"), ("text", b"y")])
        .await
        .shows("there is a secret <code>db</code> already");
    for path in ["/secrets/none/update", "/secrets/none/remove", "/secrets/No%20Name/remove"] {
        assert_eq!(house.get(path).await.status, StatusCode::NOT_FOUND, "{path}");
    }
    let answer = house.post("/run", "image=toft%2Fdemo&name=web&secrets=absent").await;
    answer.shows("id=\"secrets-mistake\"").shows("there is no secret <code>absent</code>");
    assert_eq!(house.ops.secrets().await.unwrap().len(), 1);
}

#[tokio::test]
async fn images_in_use_stay() {
    let house = House::new().await;
    house.node.add_image("docker.io/toft/demo:latest", 3 << 20);
    house.node.add_image("docker.io/library/nginx:1.29", 70 << 20);
    house.run("web", |_| {}).await;
    let page = house.get("/images").await;
    page.shows("nginx:1.29").shows("70 MiB").shows("/workloads/web").hides("remove?name=docker.io%2Ftoft");
    house.get("/images/remove?name=nginx:1.29").await.shows("Remove nginx:1.29?");
    let refused = house.post("/images/remove", "name=toft%2Fdemo").await;
    assert_eq!(refused.status, StatusCode::CONFLICT);
    refused.shows("is used by <code>web</code>");
    let done = house.post("/images/remove", "name=docker.io%2Flibrary%2Fnginx%3A1.29").await;
    assert_eq!((done.status, done.header("location")), (StatusCode::SEE_OTHER, "/images"));
    house.get("/images").await.hides("nginx");
}

#[tokio::test]
async fn a_pull_is_asked_for_and_shown_layer_by_layer() {
    let house = House::new().await;
    let refused = house.post("/images", "image=No+Image").await;
    assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY);
    refused.shows("id=\"image-mistake\"").shows("value=\"No Image\"");
    let begun = house.post("/images", "image=+ghcr.io%2Forg%2Fapp%3A2+").await;
    assert_eq!((begun.status, begun.header("location")), (StatusCode::SEE_OTHER, "/images"));
    house.get("/images").await.shows("ghcr.io/org/app:2").shows("asking the registry");

    let layer = |digest: &str, state, done_bytes| LayerProgress {
        digest: format!("sha256:{digest}"),
        size_bytes: 64 << 20,
        done_bytes,
        state,
        from: (done_bytes == 16 << 20).then(|| "beta".to_owned()),
    };
    let layers = vec![
        layer("aaaaaaaaaaaaaaaa", LayerState::Done, 64 << 20),
        layer("bbbbbbbbbbbbbbbb", LayerState::Downloading, 16 << 20),
        layer("<script>", LayerState::Waiting, 0),
    ];
    let progress = PullProgress { image: "ghcr.io/org/app:2".into(), layers, by_word_of: None };
    house.node.set_pull(ImagePull { progress: progress.clone(), failure: None });
    let page = house.get("/images").await;
    page.shows("aaaaaaaaaaaa")
        .shows("16 MiB of 64 MiB")
        .shows("max=\"67108864\" value=\"16777216\"")
        .hides("<script>aaa");
    // The workload that waits for it tells the same.
    house.run("app", |spec| spec.image = "ghcr.io/org/app:2".parse().unwrap()).await;
    house.get("/workloads/app").await.shows("16 MiB of 64 MiB").shows("Its image comes");

    let error = ControlError::new(ErrorKind::Unavailable, "`ghcr.io` did not answer").hint("check the network");
    house.node.set_pull(ImagePull { progress, failure: Some((now_ms() - 120_000, error)) });
    let page = house.get("/images").await;
    page.shows("<code>ghcr.io</code> did not answer").shows("heck the network").shows("Try again").hides("16 MiB");
}

#[tokio::test]
async fn what_is_not_there_gets_a_page_with_a_hint() {
    let house = House::new().await;
    for path in ["/nothing", "/workloads/web", "/workloads/Not%20A%20Name", "/workloads/web/logs", "/static/no.js"] {
        let answer = house.get(path).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{path}");
        answer.shows("<h1>Not found</h1>").shows("class=\"hint\"").shows("href=\"/workloads\"");
    }
    let answer = house.post("/workloads", "").await;
    assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED);
    answer.shows("Not that way");
    assert_eq!(house.get("/workloads/new").await.header("location"), "/run");
    house.run("new", |_| {}).await;
    house.get("/workloads/new").await.shows("<h1>new</h1>");
}

#[tokio::test]
async fn a_node_shows_its_machine() {
    let house = House::new().await;
    house.get("/").await.shows(r#"href="/nodes/attic""#);
    let page = house.get("/nodes/attic").await;
    for words in [
        "Ryzen &#60;9&#62;",
        "48 GiB of 64 GiB available",
        "300 GiB of 900 GiB free",
        "/var/lib/toft on /dev/nvme0n1p2 (ext4)",
        "k10temp Tctl",
        "51.5 °C",
        "3d ago",
        "runc 1.2.6",
    ] {
        page.shows(words);
    }
    assert_eq!(house.get("/nodes/cellar").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_node_is_cordoned_drained_and_takes_work_again() {
    let house = House::new().await;
    house.run_up("web", |_| {}).await;
    house.get("/nodes/attic").await.shows("takes work").shows("toft/os").hides("Still here");
    let answer = house.post("/nodes/attic/cordon", "").await;
    assert_eq!((answer.status, answer.header("location")), (StatusCode::SEE_OTHER, "/nodes/attic"));
    house.get("/nodes/attic").await.shows(">cordoned<").shows("/nodes/attic/uncordon");
    house.post("/nodes/attic/drain", "").await;
    house.get("/nodes/attic").await.shows("Still here").shows("web-0").shows("is being drained");
    house.run("late", |_| {}).await;
    house.until("late", |workload| workload.row.pending.is_some()).await;
    house.get("/workloads/late").await.shows("Waits for a place: attic: it is being drained");
    house.post("/nodes/attic/uncordon", "").await;
    house.get("/nodes/attic").await.shows("takes work").hides("Still here");
    assert_eq!(house.post("/nodes/cellar/drain", "").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn volumes_are_made_listed_and_removed() {
    let house = House::new().await;
    house.get("/volumes").await.shows("No volumes yet").shows("href=\"/volumes/new\"");
    let nfs = "name=media&options=type%3Dnfs%0D%0Adevice%3Dnas%3A%2Fmedia";
    let answer = house.post("/volumes/new", nfs).await;
    assert_eq!((answer.status, answer.header("location")), (StatusCode::SEE_OTHER, "/volumes"));
    house.get("/volumes").await.shows(">media<").shows("<code>nas:/media</code>").shows("/volumes/media/remove");
    house.get("/volumes/media/remove").await.shows("stays there").shows("<button");

    house.run_up("web", |spec| spec.mounts = vec!["data:/data".parse().unwrap()]).await;
    house.get("/volumes").await.shows(">data<").shows("/workloads/web").hides("/volumes/data/remove");
    house.get("/volumes/data/remove").await.shows("while workloads use it").hides("<button");
    let refused = house.post("/volumes/data/remove", "").await;
    assert_eq!(refused.status, StatusCode::CONFLICT);
    refused.shows("is used by");
    house.post("/volumes/media/remove", "").await;
    house.get("/volumes").await.hides(">media<");

    let password = "name=films&options=type%3Dcifs%0Adevice%3D%2F%2Fnas%2Ffilms%0Ao%3Dpassword%3Dhunter2";
    for (form, field, words) in [
        ("name=Bad+Name", "name", "is no valid name"),
        ("name=data", "name", "there is a volume"),
        ("name=x&node=nowhere", "node", "there is no node"),
        ("name=x&options=nonsense", "options", "has no"),
        (password, "options", "toft secret create NAME"),
    ] {
        let answer = house.post("/volumes/new", form).await;
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{form}");
        answer.shows(&format!("id=\"{field}-mistake\"")).shows(words);
    }
    for path in ["/volumes/none/remove", "/volumes/No%20Name/remove"] {
        assert_eq!(house.get(path).await.status, StatusCode::NOT_FOUND, "{path}");
    }
}
