//! Secrets: containers read them from memory, and no disk ever holds one.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{
    cluster::{join, prepare, status},
    harness::{
        appliance::Appliance,
        machine::{Machine, wait_until},
        outage::all_ready,
        terminal::on_terminal,
    },
    reboot::power_cut,
};

/// Says what the file is without saying what is in it, and stays.
const READS: &str = "stat -c '%a %u %g' /run/secrets/pass; sha256sum </run/secrets/pass; \
                     touch /run/secrets/x 2>/dev/null && echo writable; \
                     grep ' /run/secrets ' /proc/mounts | cut -d' ' -f3; echo read; \
                     trap 'exit 0' TERM; while true; do sleep 0.1; done";

/// A value that nothing else holds.
fn value(text: &str) -> String {
    format!("{text}-{}", uuid::Uuid::new_v4().simple())
}

fn hash(value: &str) -> String {
    format!("{}  -", hex::encode(Sha256::digest(value)))
}

/// A file on the machine.
fn file(machine: &Machine, content: &str) -> PathBuf {
    let path = machine.dir.join(format!("value-{}", uuid::Uuid::new_v4().simple()));
    fs::write(&path, content).unwrap();
    path
}

/// Writes a secret from a file, which is gone afterwards.
fn write(toft: &Appliance, verb: &str, name: &str, content: &str) -> String {
    let path = file(&toft.machine, content);
    let ran = toft.toft(&["secret", verb, name, path.to_str().unwrap()]);
    fs::remove_file(path).unwrap();
    let told = ran.err.clone();
    assert_eq!(ran.good().trim(), name);
    told
}

fn run(toft: &Appliance, workload: &str, secret: &str) {
    toft.toft(&["run", "-n", workload, "--secret", secret, "busybox", "--", "sh", "-c", READS]).good();
}

/// Waits until the process that runs now has read its secret as `value`.
fn reads(toft: &Appliance, workload: &str, times: usize, value: &str) {
    let lines = wait_until("it reads", || {
        let lines = toft.logs(workload);
        (lines.iter().filter(|line| *line == "read").count() >= times).then_some(lines)
    });
    let at = lines.iter().rposition(|line| line == "read").unwrap();
    assert_eq!(lines[at - 2], hash(value), "{lines:?}");
    assert_eq!(lines[at - 3], "400 7 8", "{lines:?}");
    assert!(["tmpfs", "ramfs"].contains(&lines[at - 1].as_str()), "{lines:?}");
    assert!(!lines.iter().any(|line| line == "writable"), "{lines:?}");
}

/// Every file on the disk of `root` that holds `value`, as it is or in a usual disguise. Other file systems are passed by.
fn found_on_disk(root: &Path, value: &str) -> Vec<PathBuf> {
    let disguises = [
        value.as_bytes().to_vec(),
        hex::encode(value).into_bytes(),
        // The middle of a base64 text, wherever the value begins in it.
        base64(&value.as_bytes()[1..value.len() - 3]),
        base64(&value.as_bytes()[2..value.len() - 2]),
        base64(&value.as_bytes()[3..value.len() - 1]),
    ];
    let device = fs::metadata(root).unwrap().dev();
    let (mut open, mut found, mut seen) = (vec![root.to_owned()], Vec::new(), 0);
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            let Ok(meta) = fs::symlink_metadata(&path) else { continue };
            if meta.dev() != device {
                continue;
            }
            if meta.is_dir() {
                open.push(path);
            } else if meta.is_file() {
                let content = fs::read(&path).unwrap_or_default();
                seen += 1;
                let holds = |words: &Vec<u8>| content.windows(words.len()).any(|window| window == words.as_slice());
                if disguises.iter().any(holds) {
                    found.push(path);
                }
            }
        }
    }
    assert!(seen > 5, "there is more to look at than {seen} files");
    found
}

fn base64(bytes: &[u8]) -> Vec<u8> {
    use std::fmt::Write;
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks_exact(3) {
        let word = chunk.iter().fold(0_u32, |word, byte| word << 8 | u32::from(*byte));
        for i in 0..4 {
            write!(text, "{}", char::from(LETTERS[(word >> (18 - 6 * i) & 63) as usize])).unwrap();
        }
    }
    text.into_bytes()
}

#[track_caller]
pub fn nowhere(toft: &Appliance, values: &[&str], when: &str) {
    for value in values {
        assert_eq!(found_on_disk(&toft.data, value), Vec::<PathBuf>::new(), "{when}");
        assert!(!toft.log().contains(value), "{when}: it is in the log");
        for path in ["/api/v1/secrets", "/api/v1/registries", "/api/v1/events", "/api/v1/workloads", "/metrics"] {
            if let Ok(answer) = toft.try_request("GET", path, &[], b"") {
                assert!(!answer.text().contains(value), "{when}: {path} tells it");
            }
        }
    }
}

/// Folders with secrets in memory.
fn folders(toft: &Appliance) -> Vec<PathBuf> {
    fs::read_dir(toft.data.join("secrets")).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

#[test]
fn the_search_finds_what_is_there() {
    let dir = tempfile::tempdir().unwrap();
    (0..30).for_each(|i| fs::write(dir.path().join(format!("{i}")), "nothing").unwrap());
    let value = value("found");
    for (i, disguise) in
        [value.clone().into_bytes(), hex::encode(&value).into_bytes(), base64(value.as_bytes())].into_iter().enumerate()
    {
        for shift in 0..3 {
            let path = dir.path().join(format!("x{i}{shift}"));
            let mut content = vec![b'.'; shift];
            content.extend(&disguise);
            fs::write(&path, content).unwrap();
            assert_eq!(found_on_disk(dir.path(), &value), std::slice::from_ref(&path));
            fs::remove_file(path).unwrap();
        }
    }
    for shift in ["", "a", "ab"] {
        let path = dir.path().join("within");
        fs::write(&path, base64(format!("{shift}{value}...").as_bytes())).unwrap();
        assert_eq!(found_on_disk(dir.path(), &value), [path]);
    }
}

#[test]
fn a_secret_reaches_its_container_and_no_disk() {
    let mut toft = Appliance::start();
    toft.import_busybox();
    let (first, second) = (value("first"), value("second"));
    write(&toft, "create", "db", &first);
    nowhere(&toft, &[&first], "created");
    run(&toft, "web", "db,target=pass,mode=0400,uid=7,gid=8");
    reads(&toft, "web", 1, &first);
    nowhere(&toft, &[&first], "it runs");
    let found = folders(&toft);
    let [folder] = &found[..] else { panic!("one instance has one folder") };
    assert_eq!(fs::read_to_string(folder.join("pass")).unwrap(), first);
    assert_eq!(fs::metadata(toft.data.join("secrets")).unwrap().permissions().mode() & 0o777, 0o700);

    // A process keeps what it was started with; the next one gets the newest.
    let told = write(&toft, "update", "db", &second);
    assert!(told.contains("toft restart") && told.contains("web"), "{told}");
    assert_eq!(fs::read_to_string(folder.join("pass")).unwrap(), first);
    let secrets = toft.json("secret ls --json");
    assert_eq!((&secrets[0]["used_by"], &secrets[0]["outdated"]), (&json!(["web"]), &json!(["web"])));
    assert!(toft.good("secret ls").contains("web (older value)"));
    toft.good("restart web");
    reads(&toft, "web", 2, &second);
    assert_eq!(toft.json("secret inspect db")["outdated"], json!([]));
    nowhere(&toft, &[&first, &second], "restarted");

    // By policy, after a crash of the process.
    let killed = toft.instance("web")["pid"].clone();
    crate::harness::machine::end(killed.as_i64().unwrap() as i32);
    reads(&toft, "web", 3, &second);
    // Beside a daemon that crashes, it runs on; its secret is there afterwards, for it and for its successor.
    let runs = |instance: &Value| instance["state"] == "running" && instance["pid"] != killed;
    let before = toft.instance_until("web", "runs again", runs)["pid"].clone();
    toft.kill();
    nowhere(&toft, &[&first, &second], "the daemon is dead");
    toft.up();
    assert_eq!(toft.instance("web")["pid"], before);
    assert_eq!(fs::read_to_string(folder.join("pass")).unwrap(), second);
    toft.good("stop web");
    assert_eq!(folders(&toft), Vec::<PathBuf>::new(), "what does not run needs no secret");
    toft.good("start web");
    reads(&toft, "web", 4, &second);

    let key = file(&toft.machine, "correct horse battery\n");
    let backup = toft.machine.dir.join("kept.tar.gz.age");
    let (backup, key) = (backup.to_str().unwrap(), key.to_str().unwrap());
    toft.toft(&["backup", "create", "-o", backup, "--passphrase-file", key]).good();
    assert_eq!(toft.stop(), 0);
    nowhere(&toft, &[&first, &second], "stopped");
    toft.up();
    toft.good("rm web");
    assert_eq!(folders(&toft), Vec::<PathBuf>::new());
    toft.good("secret rm db");
    assert_eq!(toft.json("secret ls --json"), json!([]));
    nowhere(&toft, &[&first, &second], "removed");
    toft.down().good();
    assert!(!toft.data.join("secrets").exists(), "nothing is left in memory");

    // The backup brings key and secret to an empty box.
    let mut new = Appliance::prepare(&toft.machine, "e");
    let data = new.data.to_str().unwrap().to_owned();
    new.toft(&["backup", "restore", backup, "--data-dir", &data, "--passphrase-file", key]).good();
    nowhere(&new, &[&first, &second], "restored");
    new.launch();
    wait_until("it is ready", || new.try_request("GET", "/ready", &[], b"").ok().filter(|answer| answer.status == 200));
    new.import_busybox();
    reads(&new, "web", 1, &second);
    nowhere(&new, &[&first, &second], "it runs on the new box");
}

#[test]
fn after_a_power_cut_the_ledger_alone_gives_the_secret_back() {
    let mut toft = Appliance::start();
    toft.import_busybox();
    let value = value("kept");
    write(&toft, "create", "db", &value);
    run(&toft, "web", "db,target=pass,mode=0400,uid=7,gid=8");
    reads(&toft, "web", 1, &value);
    power_cut(&mut toft);
    assert_eq!(folders(&toft), Vec::<PathBuf>::new(), "memory is lost");
    nowhere(&toft, &[&value], "the power is cut");
    toft.up();
    reads(&toft, "web", 2, &value);
}

#[test]
fn a_node_that_joins_can_open_what_was_sealed_before() {
    let machine = Machine::new();
    let mut a = prepare(&machine, "a", 7501);
    a.up();
    let value = value("shared");
    write(&a, "create", "db", &value);
    let mut b = prepare(&machine, "b", 7502);
    join(&mut b, &a, 7501);
    wait_until("it is a member", || (status(&b)["members"].as_array()?.len() == 2).then_some(()));
    b.import_busybox();
    let secret = "db,target=pass,mode=0400,uid=7,gid=8";
    wait_until("it is a node", || all_ready(&b, 2));
    b.toft(&["run", "-n", "web", "--node", "b", "--secret", secret, "busybox", "--", "sh", "-c", READS]).good();
    reads(&b, "web", 1, &value);
    // Both seal, and either opens it.
    let second = crate::secrets::value("second");
    write(&b, "update", "db", &second);
    a.good("restart web");
    reads(&b, "web", 2, &second);
    for toft in [&a, &b] {
        nowhere(toft, &[&value, &second], "in a cluster");
    }
    assert_eq!(folders(&a), Vec::<PathBuf>::new(), "a node that runs nothing with it has it sealed only");
}

#[test]
fn what_cannot_be_is_told_with_the_remedy() {
    let toft = Appliance::start();
    let missing = toft.toft(&["run", "-n", "web", "--secret", "absent", "toft/demo"]).bad(125);
    for word in ["there is no secret `absent`", "field: secrets", "toft secret create absent"] {
        assert!(missing.contains(word), "{missing}");
    }
    let spec = json!({"name": "web", "image": "toft/demo", "secrets": [{"name": "absent"}]});
    let error = toft.put("/api/v1/workloads/web", &[], &spec).refusal(400);
    assert_eq!((&error["code"], &error["field"]), (&json!("invalid"), &json!("secrets")));
    assert_eq!(toft.json("ls --json"), json!([]));

    write(&toft, "create", "db", "x");
    let taken = file(&toft.machine, "y");
    let taken = toft.toft(&["secret", "create", "db", taken.to_str().unwrap()]).bad(1);
    assert!(taken.contains("there is a secret `db` already") && taken.contains("toft secret update db"), "{taken}");
    toft.good("run -n web --secret db toft/demo");
    let used = toft.toft(&["secret", "rm", "db"]).bad(1);
    assert!(used.contains("is used by `web`") && used.contains("hint:"), "{used}");
    toft.good("rm web");
    toft.good("secret rm db");
    for verb in ["update", "inspect", "rm"] {
        let told = toft.toft(&["secret", verb, "db"]).bad(1);
        assert!(told.contains("there is no secret `db`") && told.contains("toft secret ls"), "{told}");
    }
    // Nothing on standard input, and nobody to ask.
    assert!(toft.toft(&["secret", "create", "db"]).bad(1).contains("the value is empty"));
    assert!(toft.toft(&["secret", "create", "db", "/nowhere"]).bad(1).contains("`/nowhere` cannot be read"));
    let large = file(&toft.machine, &"x".repeat(512_001));
    assert!(toft.toft(&["secret", "create", "db", large.to_str().unwrap()]).bad(1).contains("more than 512000 bytes"));
    for bad in ["db,target=../x", "db,mode=9", "db,colour=red"] {
        assert!(toft.toft(&["run", "--secret", bad, "toft/demo"]).bad(2).contains("db") || bad.contains("mode"));
    }
    let answers = [("value of db", "hushhush\n"), ("once more", "hushhush\n")];
    let (code, shown) = on_terminal(toft.client(&["secret", "create", "db"]), &answers);
    assert!(code == 0 && !shown.contains("hushhush"), "{shown}");
    assert_eq!(toft.json("secret inspect db")["size_bytes"], 8);
}

#[test]
fn values_come_in_over_http_and_never_go_out() {
    let toft = Appliance::start();
    let all: Vec<u8> = (0..=255).collect();
    let created = toft.request("POST", "/api/v1/secrets?name=db", &[], &all);
    assert_eq!((created.status, created.header("location")), (201, Some("/api/v1/secrets/db")));
    assert_eq!(created.header("etag"), Some("\"1\""));
    let told = created.json();
    assert_eq!((&told["version"], &told["size_bytes"], &told["used_by"]), (&json!(1), &json!(256), &json!([])));
    assert_eq!(told.as_object().unwrap().len(), 7, "name, version, size, two times, two lists: {told}");
    assert_eq!(toft.request("POST", "/api/v1/secrets?name=db", &[], b"x").refusal(409)["field"], "name");
    let put = |headers: &[(&str, &str)], body: &[u8]| toft.request("PUT", "/api/v1/secrets/db", headers, body);
    assert_eq!(put(&[("if-match", "\"1\"")], b"new").header("etag"), Some("\"2\""));
    assert_eq!(put(&[("if-match", "\"1\"")], b"lost").refusal(412)["code"], "stale");
    assert_eq!(put(&[("if-match", "x")], b"lost").refusal(400)["field"], "If-Match");
    assert_eq!(put(&[], b"newest").header("etag"), Some("\"3\""));
    assert_eq!(toft.request("PUT", "/api/v1/secrets/other", &[], b"x").header("etag"), Some("\"1\""));
    assert_eq!(toft.request("PUT", "/api/v1/secrets/none", &[("if-match", "\"1\"")], b"x").status, 404);
    let names =
        |answer: &Value| answer["items"].as_array().unwrap().iter().map(|s| s["name"].clone()).collect::<Vec<_>>();
    assert_eq!(names(&toft.get("/api/v1/secrets").good()), ["db", "other"]);
    let page = toft.get("/v1/secrets?limit=1").good();
    assert_eq!((names(&page), &page["next"]), (vec![json!("db")], &json!("db")));
    assert_eq!(toft.get("/api/v1/secrets/db").header("etag"), Some("\"3\""));
    assert_eq!(toft.request("DELETE", "/api/v1/secrets/db", &[], b"").status, 204);
    toft.request("DELETE", "/api/v1/secrets/db", &[], b"").refusal(404);
    toft.get("/api/v1/secrets/db").refusal(404);
}

#[test]
fn hostile_secrets_are_refused_with_their_field() {
    let toft = Appliance::start();
    let create = |query: &str, body: &[u8]| toft.request("POST", &format!("/api/v1/secrets{query}"), &[], body);
    let long = "a".repeat(5_000);
    for query in [
        "",
        "?",
        "?name=",
        "?name=Db",
        "?name=%00",
        "?name=..%2Fx",
        "?name=a&x=1",
        "?name=a&name=b",
        &format!("?name={long}"),
    ] {
        let error = create(query, b"x").refusal(400);
        assert!(error["message"].as_str().unwrap().len() < 2_000, "{query:.60}");
        assert!(error["field"].as_str().is_some_and(|field| ["name", "x"].contains(&field)), "{query:.60}: {error}");
    }
    let error = create("?name=db", b"").refusal(400);
    assert_eq!((&error["field"], &error["code"]), (&json!("value"), &json!("invalid")));
    for size in [512_001, 1 << 20, (1 << 20) + 1, 20 << 20] {
        let error = create("?name=db", &vec![b'x'; size]).refusal(413);
        assert_eq!((&error["field"], &error["code"]), (&json!("value"), &json!("too_large")), "{size}");
        assert_eq!(toft.request("PUT", "/api/v1/secrets/db", &[], &vec![b'x'; size]).status, 413);
    }
    assert_eq!(create("?name=largest", &vec![0; 512_000]).status, 201);
    let name = "/api/v1/secrets/Bad%20Name";
    for (method, path) in [("GET", name), ("PUT", name), ("DELETE", name), ("GET", "/api/v1/secrets?limit=x")] {
        toft.request(method, path, &[], b"x").refusal(400);
    }
    for (method, path) in [("PATCH", "/api/v1/secrets/a"), ("POST", "/api/v1/secrets/a"), ("DELETE", "/api/v1/secrets")]
    {
        assert_eq!(toft.request(method, path, &[], b"x").status, 405, "{method} {path}");
    }
    assert_eq!(toft.get("/api/v1/secrets/largest/value").status, 404);
    let good = json!({"name": "largest"});
    for secrets in [
        json!("db"),
        json!({}),
        json!([1]),
        json!(["largest"]),
        json!([{}]),
        json!([{"name": "Db"}]),
        json!([{"name": null}]),
        json!([{"name": "largest", "value": "x"}]),
        json!([{"name": "largest", "mode": 256}]),
        json!([{"name": "largest", "mode": "0888"}]),
        json!([{"name": "largest", "uid": -1}]),
        json!([{"name": "largest", "gid": u32::MAX}]),
        json!([{"name": "largest", "target": "a/b"}]),
        json!([{"name": "largest", "target": "\0"}]),
        json!([{"name": "largest", "target": long}]),
        json!([good, good]),
        json!(vec![good; 65]),
    ] {
        let body = json!({"name": "web", "image": "toft/demo", "secrets": secrets});
        let error = toft.post("/api/v1/workloads", &body).refusal(400);
        let shown: String = secrets.to_string().chars().take(60).collect();
        assert!(error["field"].as_str().unwrap_or_default().starts_with("secrets"), "{shown}: {error}");
        assert!(error["message"].as_str().unwrap().len() < 2_000, "{shown}");
    }
    assert_eq!(toft.get("/api/v1/workloads").good()["items"], json!([]));
}
