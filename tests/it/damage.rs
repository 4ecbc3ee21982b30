//! A state that is damaged, or not ours to touch: `toft up` refuses, changes nothing, and containers go on.

use std::{
    fs::{self, OpenOptions},
    io::{Seek, SeekFrom, Write},
    path::Path,
};

use crate::harness::appliance::Appliance;

/// Runs the demo, ends the daemon, does `harm` to its database, and expects a refusal that names `words`.
fn refused(harm: impl FnOnce(&Path), words: &[&str]) {
    let mut toft = Appliance::start();
    toft.good("run -n web -p 18080:8080 toft/demo");
    let before = toft.instance("web");
    assert_eq!(toft.stop(), 0);
    let files = ["state.sqlite", "state.sqlite-wal", "ledger.redb", "node.json"];
    let kept = toft.machine.dir.join("kept");
    fs::create_dir(&kept).unwrap();
    for file in files.iter().filter(|file| toft.data.join(file).exists()) {
        fs::copy(toft.data.join(file), kept.join(file)).unwrap();
    }
    let database = toft.data.join("state.sqlite");
    harm(&database);
    let harmed = fs::read(&database).unwrap();
    for _ in 0..2 {
        let error = toft.up_refuses().bad(1);
        for word in words.iter().chain(&["state.sqlite", "hint:"]) {
            assert!(error.contains(word), "{word}: {error}");
        }
        assert!(fs::read(&database).unwrap() == harmed, "the file was changed");
    }
    assert_eq!(toft.machine.visit(18080, "/json").good()["instance"], "web-0");

    for file in files {
        drop(fs::remove_file(toft.data.join(file)));
        drop(fs::copy(kept.join(file), toft.data.join(file)));
    }
    toft.up();
    let after = toft.instance_until("web", "is adopted", |instance| instance["state"] == "running");
    assert_eq!(after["pid"], before["pid"], "with the right file again all is as before");
}

/// Runs the demo, ends the daemon, does `harm` to its database, and expects that the daemon makes the state anew from
/// its log, keeps the harmed file, and says so.
fn mended(harm: impl FnOnce(&Path)) {
    let mut toft = Appliance::start();
    toft.good("run -n web -p 18080:8080 toft/demo");
    let before = toft.instance("web");
    assert_eq!(toft.stop(), 0);
    let database = toft.data.join("state.sqlite");
    harm(&database);
    let harmed = fs::read(&database).ok();
    toft.up();
    let after = toft.instance_until("web", "is adopted", |instance| instance["state"] == "running");
    assert_eq!((&after["pid"], &after["id"]), (&before["pid"], &before["id"]));
    assert_eq!(toft.machine.visit(18080, "/json").good()["instance"], "web-0");
    let names = fs::read_dir(&toft.data).unwrap().map(|entry| entry.unwrap().path());
    let is_kept =
        |text: &str| text.contains("state.sqlite.damaged-") && !text.contains("-wal") && !text.contains("-shm");
    let mut kept = names.filter(|path| is_kept(path.to_str().unwrap()));
    assert_eq!(kept.next().map(|path| fs::read(path).unwrap()), harmed, "the harmed file is not kept");
    let said = toft.log();
    assert!(harmed.is_none() || said.contains("is kept as"), "{said}");
    assert!(said.contains("made anew"), "{said}");
}

#[test]
fn garbage_in_the_middle_is_mended() {
    mended(|database| {
        let length = fs::metadata(database).unwrap().len();
        let mut file = OpenOptions::new().write(true).open(database).unwrap();
        file.seek(SeekFrom::Start(length / 2)).unwrap();
        file.write_all(&[0xa5; 8192]).unwrap();
    });
}

#[test]
fn a_truncated_database_is_mended() {
    mended(|database| {
        let length = fs::metadata(database).unwrap().len();
        OpenOptions::new().write(true).open(database).unwrap().set_len(length / 2).unwrap();
    });
}

#[test]
fn a_file_that_is_no_database_is_mended() {
    mended(|database| fs::write(database, "my shopping list\n".repeat(100)).unwrap());
}

#[test]
fn a_database_of_a_newer_toft_is_left_alone() {
    let harm = |database: &Path| {
        let connection = rusqlite::Connection::open(database).unwrap();
        connection.pragma_update(None, "user_version", 99).unwrap();
        connection.pragma_update(None, "journal_mode", "DELETE").unwrap();
    };
    refused(harm, &["version 99", "newer toft"]);
}

#[test]
fn a_database_of_another_program_is_left_alone() {
    let harm = |database: &Path| {
        fs::remove_file(database).unwrap();
        rusqlite::Connection::open(database).unwrap().execute_batch("CREATE TABLE photos (id INTEGER)").unwrap();
    };
    refused(harm, &["another program", "--data-dir"]);
}

#[test]
fn a_state_that_is_gone_comes_back_from_the_log() {
    let mut toft = Appliance::start();
    toft.good("run -n web -p 18080:8080 toft/demo");
    let before = toft.instance("web");
    assert_eq!(toft.stop(), 0);
    for file in ["state.sqlite", "state.sqlite-wal", "state.sqlite-shm"] {
        drop(fs::remove_file(toft.data.join(file)));
    }
    toft.up();
    let after = toft.instance_until("web", "is adopted", |instance| instance["state"] == "running");
    assert_eq!((&after["pid"], &after["id"]), (&before["pid"], &before["id"]));
}

#[test]
fn a_log_that_is_gone_or_damaged_is_refused() {
    let mut toft = Appliance::start();
    toft.good("run -n web -p 18080:8080 toft/demo");
    assert_eq!(toft.stop(), 0);
    let log = toft.data.join("raft.redb");
    let good = fs::read(&log).unwrap();
    fs::remove_file(&log).unwrap();
    let error = toft.up_refuses().bad(1);
    assert!(error.contains("raft.redb") && error.contains("missing") && error.contains("recover"), "{error}");
    fs::write(&log, &good[..good.len() / 3]).unwrap();
    let error = toft.up_refuses().bad(1);
    assert!(error.contains("raft.redb") && error.contains("hint:"), "{error}");
    assert_eq!(fs::read(&log).unwrap().len(), good.len() / 3, "the damaged file was changed");
    assert_eq!(toft.machine.visit(18080, "/json").good()["instance"], "web-0");
    fs::write(&log, good).unwrap();
    toft.up();
    toft.instance_until("web", "is adopted", |instance| instance["state"] == "running");
}

#[test]
fn a_state_older_than_the_ledger_is_refused_for_it_knows_less_than_what_runs() {
    let mut toft = Appliance::start();
    toft.good("run -n web -p 18080:8080 toft/demo");
    assert_eq!(toft.stop(), 0);
    for file in ["state.sqlite", "state.sqlite-wal", "state.sqlite-shm", "raft.redb"] {
        drop(fs::remove_file(toft.data.join(file)));
    }
    let error = toft.up_refuses().bad(1);
    assert!(error.contains("older") && error.contains("hint:") && error.contains("ledger.redb"), "{error}");
    assert_eq!(toft.machine.visit(18080, "/json").good()["instance"], "web-0");
}

#[test]
fn a_damaged_ledger_or_identity_is_refused_with_its_name() {
    let mut toft = Appliance::start();
    toft.good("run -n web -p 18080:8080 toft/demo");
    assert_eq!(toft.stop(), 0);
    for file in ["ledger.redb", "node.json"] {
        let path = toft.data.join(file);
        let good = fs::read(&path).unwrap();
        fs::write(&path, b"not what it was").unwrap();
        let error = toft.up_refuses().bad(1);
        assert!(error.contains(file.split('.').next().unwrap()), "{file}: {error}");
        assert_eq!(fs::read(&path).unwrap(), b"not what it was", "{file} was changed");
        fs::write(&path, good).unwrap();
    }
    assert_eq!(toft.machine.visit(18080, "/json").good()["instance"], "web-0");
    toft.up();
    toft.instance_until("web", "is adopted", |instance| instance["state"] == "running");
}
