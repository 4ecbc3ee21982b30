//! Members of two versions in one cluster: what both know goes on, what one does not know is refused with its name, and snapshots
//! of the state go both ways. The next version is this program too: told that a command is new in it, it tells the others a newer
//! format, writes that command in it, and adds a table. Who was not told so refuses that format, as one of this version would.

use rusqlite::Connection;
use serde_json::{Value, json};

use crate::harness::{
    appliance::Appliance,
    lan::Lan,
    machine::wait_until,
    outage::{local, name, running_on},
};

/// The command that is new in the next version.
const NEW: &str = "put_secret";

/// Starts an appliance that is there anew, as the next version.
fn upgrade(toft: &mut Appliance) {
    assert_eq!(toft.stop(), 0);
    toft.set_variables(&[("TOFT_REHEARSE_NEXT", NEW)]);
    toft.up();
}

fn put_secret(toft: &Appliance, name: &str) -> (i32, String) {
    let ran = toft.reading(&["secret", "create", name, "-"], "a word");
    (ran.code, ran.err)
}

/// Whether a state has what the next version's migration adds; none when the file cannot be read now.
fn has_the_next_table(toft: &Appliance) -> Option<bool> {
    let connection = Connection::open(toft.data.join("state.sqlite")).ok()?;
    connection.table_exists(None, "of_the_next_version").ok()
}

fn applied(toft: &Appliance) -> Option<u64> {
    local(toft, "/api/v1/cluster")?["applied"].as_u64()
}

/// Kills who leads until `i` does. The first three vote.
fn lead(lan: &mut Lan, i: usize) {
    for _ in 0..20 {
        let leader = lan.leader_among(&[0, 1, 2]);
        if leader == i {
            return;
        }
        lan.nodes[leader].kill();
        let others: Vec<usize> = (0..3).filter(|other| *other != leader).collect();
        lan.leader_among(&others);
        lan.nodes[leader].up();
    }
    panic!("{} does not come to lead", name(i));
}

/// Writes so much that the log begins after all that a member has which is away now.
fn outgrow(toft: &Appliance) {
    let put = |env: Value| {
        let body = json!({"name": "pad", "image": "toft/demo", "replicas": 0, "env": env});
        let answer = toft.put("/api/v1/workloads/pad", &[], &body);
        assert!(answer.status < 300, "{}", answer.text());
    };
    (0..560).for_each(|i| put(json!({"I": i.to_string()})));
    (0..50).for_each(|i| put(json!({"I": i.to_string(), "PAD": "x".repeat(380_000)})));
}

/// The number of the newest snapshot.
fn newest_snapshot(toft: &Appliance) -> u64 {
    let entries = std::fs::read_dir(toft.data.join("snapshots")).unwrap().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let index = |name: String| name.strip_suffix(".sqlite")?.split('-').next()?.parse::<u64>().ok();
    names.filter_map(index).max().unwrap_or(0)
}

#[test]
fn members_of_two_versions_work_together_and_what_one_does_not_know_is_refused() {
    let mut lan = Lan::prepare(&["server", "server", "witness", "witness", "witness"]);
    lan.nodes[0].up();
    for (i, role) in [(1, "server"), (2, "witness")] {
        let token = lan.nodes[0].good(&format!("token create -q --role {role}"));
        lan.join(i, &token);
    }
    lan.until_voters(3);
    lan.until_ready(&[0, 1]);
    assert!(!lan.nodes[0].good("node ls").contains("oldest"));
    upgrade(&mut lan.nodes[1]);
    lan.until_ready(&[0, 1]);
    for toft in &lan.nodes[..3] {
        let told = wait_until("the versions are told", || {
            let status = local(toft, "/api/v1/cluster")?;
            let format = |i: usize| status["members"][i]["format"].as_u64();
            (format(1)? == format(0)? + 1).then_some(status)
        });
        let of = |what: &str| told["members"].as_array().unwrap().iter().map(|m| m[what].clone()).collect::<Vec<_>>();
        assert_eq!(of("behind"), [json!(true), Value::Null, json!(true)], "{told}");
        assert!(of("version")[1].as_str().unwrap().ends_with("-next"), "{told}");
        let nodes = toft.json("node ls --json");
        assert_eq!((&nodes[0]["behind"], &nodes[1]["behind"]), (&json!(true), &Value::Null), "{nodes}");
    }
    let listed = lan.nodes[2].good("node ls");
    assert_eq!(listed.lines().filter(|line| line.contains("(oldest)")).count(), 1, "{listed}");
    assert!(lan.nodes[2].good("cluster status").lines().filter(|line| line.contains("(oldest)")).count() == 2);

    // What both know, whoever is asked and whoever leads.
    for leader in [1, 0] {
        lead(&mut lan, leader);
        lan.until_ready(&[0, 1]);
        for (i, toft) in lan.nodes[..3].iter().enumerate() {
            toft.good(&format!("run -n web-{leader}-{i} --replicas 2 toft/demo"));
            assert_eq!(running_on(toft, &format!("web-{leader}-{i}")).unwrap().len(), 2);
            toft.good(&format!("volume create data-{leader}-{i} --node b"));
        }
        let before = [0, 1, 2].map(|i| applied(&lan.nodes[i]).unwrap());
        let (code, told) = put_secret(&lan.nodes[1], "word");
        assert!(code == 1 && told.contains("node `") && told.contains("does not know this yet"), "{told}");
        assert!(told.contains("upgrade toft on `a`") || told.contains("upgrade toft on `c`"), "{told}");
        let answer = lan.nodes[1].request("POST", "/api/v1/secrets?name=word", &[], b"a word");
        assert_eq!(answer.refusal(409)["code"], "conflict");
        assert_eq!(lan.nodes[1].json("secret ls --json"), json!([]));
        let after = [0, 1, 2].map(|i| applied(&lan.nodes[i]).unwrap());
        assert!(after.iter().zip(before).all(|(after, before)| after - before < 50), "{before:?} {after:?}");
    }

    // The whole state from the new to the old, and from the old to the new: who joins when the log is short gets it.
    for (leader, joiner) in [(1, 3), (0, 4)] {
        lead(&mut lan, leader);
        assert_eq!(has_the_next_table(&lan.nodes[leader]), Some(leader == 1));
        let began = applied(&lan.nodes[leader]).unwrap();
        outgrow(&lan.nodes[leader]);
        wait_until("the log is short", || (newest_snapshot(&lan.nodes[leader]) > began + 560).then_some(()));
        assert_eq!(lan.leader_among(&[0, 1, 2]), leader, "another one came to lead");
        let ends = applied(&lan.nodes[leader]).unwrap();
        if joiner == 4 {
            lan.nodes[4].set_variables(&[("TOFT_REHEARSE_NEXT", NEW)]);
        }
        let token = lan.nodes[leader].good("token create -q --role witness");
        lan.join(joiner, &token);
        let joined = &lan.nodes[joiner];
        wait_until("it has it all", || applied(joined).filter(|applied| *applied >= ends));
        assert!(newest_snapshot(joined) > began + 560, "it came in a snapshot");
        // Who is old keeps what the new one added, and who is new adds it by itself.
        assert_eq!(has_the_next_table(joined), Some(true));
        let seen = local(joined, "/api/v1/workloads/pad").unwrap();
        assert_eq!(seen["spec"]["env"]["I"], "49", "{}", seen["generation"]);
    }
    lan.nodes[2].good("scale web-0-0=3 --no-wait");

    // Until the last is upgraded it is refused; then all have it.
    upgrade(&mut lan.nodes[0]);
    wait_until("only witnesses are old", || {
        let (code, told) = put_secret(&lan.nodes[1], "word");
        assert_eq!(code, 1, "{told}");
        told.contains("upgrade toft on `c`").then_some(())
    });
    upgrade(&mut lan.nodes[2]);
    upgrade(&mut lan.nodes[3]);
    wait_until("all know it", || (put_secret(&lan.nodes[1], "word").0 == 0).then_some(()));
    for toft in &lan.nodes {
        wait_until("all have it", || {
            (toft.json("secret ls --json").as_array()?.len() == 1 && !toft.good("node ls").contains("oldest"))
                .then_some(())
        });
        assert!(!toft.log().contains("does not understand entry"));
    }
}

#[test]
fn who_is_too_old_for_what_a_cluster_does_is_not_let_in() {
    let mut lan = Lan::prepare(&["witness", "witness", "witness"]);
    for i in [0, 1] {
        lan.nodes[i].set_variables(&[("TOFT_REHEARSE_NEXT", NEW)]);
    }
    lan.nodes[0].up();
    let token = lan.nodes[0].good("token create -q --role witness");
    lan.join(1, &token);
    assert_eq!(put_secret(&lan.nodes[1], "word").0, 0);
    lan.nodes[2].up();
    let token = lan.nodes[0].good("token create -q --role witness");
    let address = format!("{}:{}", crate::harness::lan::address(0), crate::harness::lan::MEMBERS);
    let refused = lan.nodes[2].toft(&["join", &address, "--token", token.trim()]).bad(1);
    assert!(refused.contains("too old for what this cluster does") && refused.contains("install toft"), "{refused}");
    assert!(lan.nodes[0].log().contains("too old for what this cluster does"));
    assert_eq!(lan.nodes[0].json("cluster status --json")["members"].as_array().unwrap().len(), 2);
    // One of the new version is.
    lan.nodes[2].stop();
    lan.nodes[2].set_variables(&[("TOFT_REHEARSE_NEXT", NEW)]);
    lan.nodes[2].up();
    lan.nodes[2].toft(&["join", &address, "--token", token.trim()]).good();
    // Who goes back to the older one stops at what it does not understand, says so, and loses nothing.
    lan.until_voters(3);
    lan.nodes[2].stop();
    assert_eq!(put_secret(&lan.nodes[0], "other").0, 0);
    lan.nodes[2].set_variables(&[]);
    lan.nodes[2].launch();
    wait_until("it says so", || lan.nodes[2].log().contains("upgrade it, nothing is lost").then_some(()));
    lan.nodes[2].ended();
    lan.nodes[2].set_variables(&[("TOFT_REHEARSE_NEXT", NEW)]);
    lan.nodes[2].up();
    wait_until("it has all", || (lan.nodes[2].json("secret ls --json").as_array()?.len() == 2).then_some(()));
}
