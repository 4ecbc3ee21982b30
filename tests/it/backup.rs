//! Backups of a real appliance: made while everything goes on, proved, and put back on an empty box.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};

use crate::harness::{
    appliance::{Appliance, Ran},
    machine::{Machine, wait_until},
    terminal::on_terminal,
};

/// An appliance with `[backup]` as written, ready.
fn configured(section: &str) -> Appliance {
    let mut toft = Appliance::prepare(&Machine::new(), "d");
    configure(&toft, section);
    toft.up();
    toft
}

fn configure(toft: &Appliance, section: &str) {
    fs::write(toft.data.join("toft.toml"), format!("[backup]\n{section}\n")).unwrap();
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A passphrase file on the machine.
fn passphrase(machine: &Machine) -> PathBuf {
    let path = machine.dir.join("passphrase");
    fs::write(&path, "correct horse battery\n").unwrap();
    path
}

fn restore(toft: &Appliance, file: &Path, key: &[&str], more: &[&str]) -> Ran {
    let mut arguments = vec!["backup", "restore", text(file), "--data-dir", text(&toft.data)];
    arguments.extend(key);
    arguments.extend(more);
    toft.toft(&arguments)
}

/// The backups in the folder.
fn listed(toft: &Appliance) -> Vec<Value> {
    toft.json("backup ls --json").as_array().unwrap().clone()
}

fn leftovers(toft: &Appliance) -> Vec<String> {
    let names = fs::read_dir(&toft.data).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| ["backup-", "restore", "replaced", "toft-verify"].iter().any(|p| name.starts_with(p))).collect()
}

#[test]
fn a_backup_made_while_everything_goes_on_brings_an_empty_box_back() {
    let machine = Machine::new();
    let key = machine.dir.join("backup.key");
    let mut toft = Appliance::prepare(&machine, "d");
    let public = toft.toft(&["backup", "keygen", "--output", text(&key)]).good();
    assert!(public.starts_with("age1"), "{public}");
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    configure(&toft, &format!("key_file = '{}'\nevery = 'off'", key.display()));
    toft.up();
    toft.import_busybox();
    toft.good("run -n web -p 18080:8080 toft/demo");
    toft.good("run -n idle toft/demo");
    toft.good("stop idle");
    let job = json!({"name": "job", "kind": "job", "image": "busybox", "command": ["sh", "-c", "echo once"]});
    assert_eq!(toft.post("/api/v1/workloads", &job).status, 201);
    let finished = toft.instance_until("job", "is over", |instance| instance["state"] == "finished");

    let done = Arc::new(AtomicBool::new(false));
    let names = std::thread::scope(|scope| {
        let toft = &toft;
        let stop = Arc::clone(&done);
        let writes = scope.spawn(move || {
            let mut number = 0;
            while !stop.load(Ordering::Relaxed) {
                let body = json!({"name": format!("w{number}"), "image": "toft/demo", "replicas": 0});
                assert_eq!(toft.post("/api/v1/workloads", &body).status, 201);
                number += 1;
            }
            number
        });
        let names: Vec<String> = (0..3).map(|_| toft.good("backup create").trim().to_owned()).collect();
        done.store(true, Ordering::Relaxed);
        assert!(writes.join().unwrap() > 0);
        names
    });
    let backups = listed(&toft);
    assert_eq!(backups.iter().map(|backup| backup["name"].as_str().unwrap()).collect::<Vec<_>>(), names);
    for backup in &backups {
        assert_eq!((&backup["condition"], &backup["verified"]), (&json!("good"), &json!(true)), "{backup}");
        assert_eq!((&backup["locked"], &backup["scheduled"]), (&json!("recipient"), &json!(false)), "{backup}");
    }
    // The key of the node's own configuration is found; a verdict has everything for programs.
    let newest = names.last().unwrap();
    let told = toft.good(&format!("backup verify {newest}"));
    assert!(told.contains("is good") && told.contains("workload(s)"), "{told}");
    let verdict = toft.json(&format!("backup verify {newest} --json"));
    assert_eq!((&verdict["good"], &verdict["differences"]), (&json!(true), &json!([])));
    assert!(verdict["manifest"]["tables"]["workloads"].as_u64().unwrap() >= 3);

    let web = toft.instance("web");
    let file = machine.dir.join("kept.tar.gz.age");
    let path = toft.data.join("backups").join(newest);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    fs::copy(path, &file).unwrap();
    assert_eq!(leftovers(&toft), Vec::<String>::new());
    let password = fs::read(toft.data.join("admin-password")).unwrap();
    toft.down().good();

    let mut new = Appliance::prepare(&machine, "e");
    let told = restore(&new, &file, &["--key-file", text(&key)], &[]).good();
    assert!(told.contains("restored") && !told.contains("before"), "{told}");
    assert_eq!(leftovers(&new), Vec::<String>::new());
    assert_eq!(fs::read(new.data.join("admin-password")).unwrap(), password);
    new.up();
    let again =
        new.instance_until("web", "runs", |instance| instance["state"] == "running" && instance["pid"] != web["pid"]);
    for field in ["id", "name", "node", "ports", "address", "created_at"] {
        assert_eq!(again[field], web[field], "{field}");
    }
    let said = wait_until("it answers", || new.machine.http(18080, "GET", "/json", &[]).ok()).good();
    assert_eq!(said["instance"], "web-0");
    assert_eq!(new.instance("idle")["state"], "stopped");
    let job = new.instance("job");
    assert_eq!(
        (&job["state"], &job["last_exit"]),
        (&json!("finished"), &finished["last_exit"]),
        "it did not run again"
    );
    assert_eq!(new.logs("job"), Vec::<String>::new());
    new.good("run -n more toft/demo");
}

#[test]
fn a_schedule_makes_backups_and_lets_the_old_ones_go() {
    let machine = Machine::new();
    let mut toft = Appliance::prepare(&machine, "d");
    let key = machine.dir.join("backup.key");
    let public = toft.toft(&["backup", "keygen", "-o", text(&key)]).good();
    configure(&toft, &format!("recipient = '{}'\nevery = '1s'\nkeep = 2", public.trim()));
    toft.up();
    toft.good("run -n web --no-wait toft/demo");
    let first = wait_until("the first one is made", || listed(&toft).into_iter().next());
    assert_eq!((&first["scheduled"], &first["verified"]), (&json!(true), &json!(false)), "the key is elsewhere");
    let by_hand = toft.good("backup create").trim().to_owned();
    let foreign = toft.data.join("backups/toft-other-20200101T000000Z.tar.gz.age");
    fs::write(&foreign, "another box's").unwrap();
    wait_until("the first one goes", || (!listed(&toft).contains(&first)).then_some(()));
    let backups = listed(&toft);
    let named = |name: &str| backups.iter().find(|backup| backup["name"] == name);
    assert!(named(&by_hand).is_some(), "{backups:?}");
    assert_eq!(named("toft-other-20200101T000000Z.tar.gz.age").unwrap()["condition"], "unknown");
    assert!(backups.iter().filter(|backup| backup["scheduled"] == true).count() <= 3, "{backups:?}");
    let verify = |more: &[&str]| toft.toft(&[&["backup", "verify", by_hand.as_str()], more].concat());
    verify(&["--key-file", text(&key)]).good();
    let error = verify(&[]).bad(1);
    assert!(error.contains("key file") && error.contains("--key-file"), "{error}");
    let metrics = toft.get("/metrics");
    assert!(metrics.text().contains("toft_backups_total{result=\"made\"}"), "{}", metrics.text());

    // The folder goes away, as a disk does: told, tried again, and it goes on by itself after a restart too.
    let aside = toft.data.join("backups-aside");
    fs::rename(toft.data.join("backups"), &aside).unwrap();
    fs::write(toft.data.join("backups"), "in the way").unwrap();
    let status = wait_until("the failure is told", || {
        let status = toft.get("/api/v1/backups/status").good();
        status["failure"].is_string().then_some(status)
    });
    assert!(status["failure"].as_str().unwrap().contains("cannot be used"), "{status}");
    fs::remove_file(toft.data.join("backups")).unwrap();
    fs::rename(aside, toft.data.join("backups")).unwrap();
    assert_eq!(toft.stop(), 0);
    let count = |toft: &Appliance| fs::read_dir(toft.data.join("backups")).unwrap().count();
    let before: Vec<_> = fs::read_dir(toft.data.join("backups")).unwrap().map(|e| e.unwrap().file_name()).collect();
    toft.up();
    wait_until("another is made", || {
        let now: Vec<_> = fs::read_dir(toft.data.join("backups")).unwrap().map(|e| e.unwrap().file_name()).collect();
        now.iter().any(|name| !before.contains(name) && !name.to_str().unwrap().starts_with('.')).then_some(())
    });
    assert!(count(&toft) <= 6 && foreign.exists());
}

#[test]
fn a_backup_can_be_taken_away_with_a_key_of_its_own() {
    let toft = configured("");
    let secret = passphrase(&toft.machine);
    let file = toft.machine.dir.join("away.tar.gz.age");
    let create = |more: &[&str]| toft.toft(&[&["backup", "create", "--output", text(&file)], more].concat());
    for (ran, word) in [
        (toft.toft(&["backup", "create"]), "no key"),
        (create(&[]), "no key"),
        (create(&["--recipient", "age1x"]), "public key"),
    ] {
        let error = ran.bad(1);
        assert!(error.contains(word) && error.contains("hint:"), "{error}");
        assert!(!file.exists());
    }
    let told: Value = serde_json::from_str(&create(&["--passphrase-file", text(&secret), "--json"]).good()).unwrap();
    let meta = fs::metadata(&file).unwrap();
    assert_eq!((told["size_bytes"].as_u64(), meta.permissions().mode() & 0o777), (Some(meta.len()), 0o600));
    let error = create(&["--passphrase-file", text(&secret)]).bad(1);
    assert!(error.contains("there already"), "{error}");
    let verify = toft.toft(&["backup", "verify", text(&file), "--passphrase-file", text(&secret)]);
    assert!(verify.good().contains("is good"));
    assert_eq!(listed(&toft), Vec::<Value>::new(), "nothing stays on the node");
    assert_eq!(leftovers(&toft), Vec::<String>::new());
    let key = toft.machine.dir.join("k");
    toft.toft(&["backup", "keygen", "-o", text(&key)]).good();
    assert!(toft.toft(&["backup", "keygen", "-o", text(&key)]).bad(1).contains("there already"));
    let other = toft.machine.dir.join("other.tar.gz.age");
    toft.toft(&["backup", "create", "-o", text(&other), "--key-file", text(&key)]).good();
    toft.toft(&["backup", "verify", text(&other), "--key-file", text(&key)]).good();
    for path in ["..%2f..%2fadmin-password", "admin-password", "%00", "x.tar.gz.age"] {
        let answer = toft.get(&format!("/api/v1/backups/{path}/content"));
        assert!([400, 404].contains(&answer.status), "{path}: {}", answer.text());
    }
    let both = json!({"recipient": "age1x", "passphrase": "long enough to do"});
    for body in [both, json!({"passphrase": "short"}), json!({"recipient": 1}), json!({"colour": "red"})] {
        assert_eq!(toft.post("/api/v1/backups/stream", &body).status, 400, "{body}");
    }
    assert!(!toft.log().contains("correct horse"), "secrets are never logged");
}

#[test]
fn what_cannot_be_restored_is_told_and_changes_nothing() {
    let mut toft = configured("");
    let secret = passphrase(&toft.machine);
    let key = ["--passphrase-file", text(&secret)];
    let dir = toft.machine.dir.clone();
    let file = dir.join("good.tar.gz.age");
    toft.toft(&["backup", "create", "-o", text(&file), key[0], key[1]]).good();
    let error = restore(&toft, &file, &key, &["--yes"]).bad(1);
    assert!(error.contains("another toft") && error.contains("hint:"), "a daemon runs: {error}");
    assert_eq!(toft.stop(), 0);

    let good = fs::read(&file).unwrap();
    let mut flipped = good.clone();
    flipped[good.len() - 100] ^= 4;
    let other = dir.join("other-passphrase");
    fs::write(&other, "another horse battery\n").unwrap();
    let wrong = ["--passphrase-file", text(&other)];
    let cases: [(&str, &[u8], &[&str], &str); 5] = [
        ("cut.tar.gz.age", &good[..good.len() / 2], &key, "is damaged"),
        ("flipped.tar.gz.age", &flipped, &key, "is damaged"),
        ("list.txt", b"my shopping list: bread, butter, milk", &key, "is no backup"),
        ("wrong.tar.gz.age", &good, &wrong, "cannot be opened with this passphrase"),
        ("unkeyed.tar.gz.age", &good, &[], "is locked with a passphrase"),
    ];
    let state = |toft: &Appliance| -> Vec<_> {
        ["state.sqlite", "node.json", "admin-password", "ledger.redb"]
            .iter()
            .map(|file| fs::read(toft.data.join(file)).unwrap())
            .collect()
    };
    let before = state(&toft);
    for (name, content, key, words) in cases {
        let path = dir.join(name);
        fs::write(&path, content).unwrap();
        for ran in
            [restore(&toft, &path, key, &["--yes"]), toft.toft(&[&["backup", "verify", text(&path)], key].concat())]
        {
            let error = ran.bad(1);
            for word in [name, words, "hint:"] {
                assert!(error.contains(word), "{word}: {error}");
            }
        }
        assert!(state(&toft) == before, "{name} changed something");
        assert_eq!(leftovers(&toft), Vec::<String>::new());
    }
    let error = toft.toft(&["backup", "verify", text(&dir.join("absent")), key[0], key[1]]).bad(1);
    assert!(error.contains("absent") && error.contains("hint:"), "{error}");
    toft.up();
}

#[test]
fn a_state_that_is_there_is_replaced_only_when_asked_and_kept_aside() {
    let machine = Machine::new();
    let secret = passphrase(&machine);
    let key = ["--passphrase-file", text(&secret)];
    let mut toft = Appliance::start_on(&machine, "d");
    toft.good("run -n old -p 18080:8080 toft/demo");
    let file = machine.dir.join("good.tar.gz.age");
    toft.toft(&["backup", "create", "-o", text(&file), key[0], key[1]]).good();
    toft.good("run -n later toft/demo");
    assert_eq!(toft.stop(), 0);

    let error = restore(&toft, &file, &key, &[]).bad(1);
    assert!(error.contains("already holds a state of this node") && error.contains("--yes"), "{error}");
    let node = fs::read(toft.data.join("node.json")).unwrap();
    // Another box has another node.
    let mut other = Appliance::start_on(&machine, "e");
    other.good("run -n theirs --no-wait toft/demo");
    assert_eq!(other.stop(), 0);
    let error = restore(&other, &file, &key, &[]).bad(1);
    assert!(error.contains("another") && error.contains("hint:"), "{error}");
    assert_ne!(fs::read(other.data.join("node.json")).unwrap(), node);
    other.up();
    other.good("rm theirs");

    let old = fs::read(toft.data.join("state.sqlite")).unwrap();
    let told = restore(&toft, &file, &key, &["--yes", "--json"]).good();
    let told: Value = serde_json::from_str(&told).unwrap();
    let replaced = PathBuf::from(told["replaced"].as_str().unwrap());
    assert!(fs::read(replaced.join("state.sqlite")).unwrap() == old);
    assert!(replaced.join("ledger.redb").exists() && !toft.data.join("ledger.redb").exists());
    assert_eq!(fs::metadata(&replaced).unwrap().permissions().mode() & 0o777, 0o700);
    toft.up();
    assert_eq!(toft.good("ls -q").trim(), "old", "what came later is gone");
    toft.instance_until("old", "runs", |instance| instance["state"] == "running");
    assert_eq!(toft.machine.visit(18080, "/json").good()["instance"], "old-0");
    wait_until("the container of what came later goes", || (toft.shims() == 1).then_some(()));

    // The other box has run already, with a network and containers of its own, and becomes this one.
    toft.down().good();
    other.good("run -n mine toft/demo");
    assert_eq!(other.stop(), 0);
    restore(&other, &file, &key, &["--yes"]).good();
    assert_eq!(fs::read(other.data.join("node.json")).unwrap(), node);
    other.up();
    other.instance_until("old", "runs", |instance| instance["state"] == "running" && instance["node"] != "");
    let said = wait_until("it answers", || other.machine.http(18080, "GET", "/json", &[]).ok()).good();
    assert_eq!(said["instance"], "old-0");
    wait_until("its own container goes", || (other.shims() == 1).then_some(()));
}

#[test]
fn a_restore_that_was_cut_off_is_finished_by_the_next_start() {
    let machine = Machine::new();
    let secret = passphrase(&machine);
    let key = ["--passphrase-file", text(&secret)];
    let mut toft = Appliance::start_on(&machine, "d");
    toft.good("run -n old --no-wait toft/demo");
    let file = machine.dir.join("good.tar.gz.age");
    toft.toft(&["backup", "create", "-o", text(&file), key[0], key[1]]).good();
    toft.good("rm old");
    toft.down().good();
    restore(&toft, &file, &key, &["--yes"]).good();
    // As if the power had gone in the middle: the note is there, some files are moved and some are not.
    let stage = toft.data.join("restore-new");
    fs::create_dir(&stage).unwrap();
    fs::rename(toft.data.join("state.sqlite"), stage.join("state.sqlite")).unwrap();
    let note = json!({"replaced": "replaced-x", "brings": ["state.sqlite", "node.json", "admin-password"]});
    fs::write(toft.data.join("restore.json"), note.to_string()).unwrap();
    toft.up();
    assert!(!stage.exists() && !toft.data.join("restore.json").exists());
    assert!(toft.log().contains("restore that was interrupted is finished"), "{}", toft.log());
    assert_eq!(toft.good("ls -q").trim(), "old");
}

#[test]
fn a_backup_that_does_not_fit_leaves_nothing_behind() {
    let machine = Machine::new();
    let secret = passphrase(&machine);
    let mut toft = Appliance::prepare(&machine, "d");
    let disk = machine.dir.join("disk");
    fs::create_dir(&disk).unwrap();
    mount(Some("tmpfs"), &disk, Some("tmpfs"), MsFlags::empty(), Some("size=64k")).unwrap();
    let folder = disk.display();
    configure(&toft, &format!("dir = '{folder}'\npassphrase_file = '{}'\nevery = 'off'", secret.display()));
    toft.up();
    toft.good("run -n web -p 18080:8080 toft/demo");
    let ballast = disk.join("ballast");
    let mut file = File::create(&ballast).unwrap();
    while file.write_all(&[0; 512]).is_ok() {}
    drop(file);
    let error = toft.toft(&["backup", "create"]).bad(1);
    assert!(error.contains("no space") && error.contains("hint:"), "{error}");
    let left: Vec<_> = fs::read_dir(&disk).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["ballast"]);
    assert_eq!(leftovers(&toft), Vec::<String>::new());
    fs::remove_file(ballast).unwrap();
    toft.good("backup create");
    assert_eq!(listed(&toft).len(), 1);
    assert_eq!(toft.machine.visit(18080, "/json").good()["instance"], "web-0");
}

#[test]
fn on_a_terminal_the_passphrase_and_the_overwrite_are_asked_for() {
    let mut toft = configured("");
    let file = toft.machine.dir.join("asked.tar.gz.age");
    let asked = |arguments: &[&str], answers: &[(&str, &str)]| {
        let (code, shown) = on_terminal(toft.client(arguments), answers);
        assert!(!shown.contains("correct") && !shown.contains("mistyped"), "it was shown: {shown}");
        (code, shown)
    };
    let create = ["backup", "create", "--output", text(&file)];
    let (first, again) = (("passphrase for this one:", "correct horse battery\n"), "once more:");
    let (code, shown) = asked(&create, &[first, (again, "mistyped\n")]);
    assert!(code == 1 && shown.contains("not the same") && !file.exists(), "{shown}");
    let (code, shown) = asked(&create, &[first, (again, "correct horse battery\n")]);
    assert!(code == 0 && file.exists(), "{shown}");
    let verify = ["backup", "verify", text(&file)];
    let question = format!("passphrase of {}:", file.display());
    let (code, shown) = asked(&verify, &[(&question, "correct horse battery\n")]);
    assert!(code == 0 && shown.contains("is good"), "{shown}");
    let (code, shown) = asked(&verify, &[(&question, "mistyped\n")]);
    assert!(code == 1 && shown.contains("cannot be opened with this passphrase"), "{shown}");
    let (code, shown) = asked(&verify, &[(&question, "mistyp\x03")]);
    assert!(code == 130 && shown.contains("interrupted"), "{shown}");

    let secret = passphrase(&toft.machine);
    assert_eq!(toft.stop(), 0);
    let arguments =
        ["backup", "restore", text(&file), "--data-dir", text(&toft.data), "--passphrase-file", text(&secret)];
    let restore = |answer: &str| on_terminal(toft.client(&arguments), &[("[y/N]", answer)]);
    let (code, shown) = restore("\n");
    assert!(code == 1 && shown.contains("nothing was changed"), "{shown}");
    assert_eq!(leftovers(&toft), Vec::<String>::new());
    let (code, shown) = restore("yes\n");
    assert!(code == 0 && shown.contains("what was there before is in"), "{shown}");
    toft.up();
}
