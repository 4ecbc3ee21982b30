//! A changed specification reaches what runs: nothing is missed meanwhile, and what does not work is taken back.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use serde_json::{Value, json};

use crate::harness::{appliance::Appliance, machine::wait_until};

fn running(toft: &Appliance, workload: &str) -> Vec<Value> {
    let instances = toft.json("ps --json");
    let own =
        instances.as_array().unwrap().iter().filter(|one| one["workload"] == workload && one["state"] == "running");
    own.cloned().collect()
}

/// Fewest instances that ran while `act` ran, as often as one can look.
fn fewest_while(toft: &Appliance, workload: &str, act: impl FnOnce()) -> usize {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let counted = scope.spawn(|| {
            let mut fewest = usize::MAX;
            while !done.load(Ordering::Relaxed) {
                fewest = fewest.min(running(toft, workload).len());
            }
            fewest
        });
        act();
        done.store(true, Ordering::Relaxed);
        counted.join().unwrap()
    })
}

fn version(toft: &Appliance, workload: &str, generation: u64) -> Value {
    let versions = toft.json(&format!("history {workload} --json"));
    let found = versions.as_array().unwrap().iter().find(|one| one["generation"] == generation).cloned();
    found.unwrap_or_else(|| panic!("no version {generation} in {versions:#}"))
}

#[test]
fn an_update_misses_no_copy_and_is_taken_back_by_its_user() {
    let toft = Appliance::start();
    toft.good("run -n web --replicas 3 --update-healthy 1s toft/demo");
    let before = running(&toft, "web");
    assert_eq!(before.len(), 3);

    let fewest = fewest_while(&toft, "web", || drop(toft.good("update web -e COLOUR=blue")));
    assert_eq!(fewest, 3, "a copy was missing meanwhile");
    wait_until("the old ones are gone", || (toft.json("ps --json").as_array().unwrap().len() == 3).then_some(()));
    let ids = |of: &[Value]| of.iter().map(|one| one["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    let after = running(&toft, "web");
    assert!(ids(&after).iter().all(|id| !ids(&before).contains(id)), "{after:#?}");
    let workload = toft.get("/api/v1/workloads/web").good();
    assert_eq!((&workload["generation"], &workload["rollout"]["state"]), (&json!(2), &json!("done")));
    let second = version(&toft, "web", 2);
    assert_eq!((&second["changed"], &second["cause"]), (&json!(["env"]), &json!("user")));

    toft.good("rollback web");
    let third = version(&toft, "web", 3);
    assert_eq!(
        (&third["cause"], &third["to"], &third["rollout"]["state"]),
        (&json!("rollback"), &json!(1), &json!("done"))
    );
    assert!(toft.get("/api/v1/workloads/web").good()["spec"]["env"].get("COLOUR").is_none());
    let told = toft.good("history web");
    let words = told.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>();
    assert!(words[1].starts_with("3 done ") && words[1].contains(" env back to 1 "), "{told}");
    let none = toft.toft(&["rollback", "web", "--to", "77"]).bad(1);
    assert!(none.contains("workload `web` has no version 77") && none.contains("toft history web"), "{none}");

    // More copies are no rollout: nothing is replaced.
    let before = ids(&running(&toft, "web"));
    toft.good("scale web=4");
    wait_until("four", || (running(&toft, "web").len() == 4).then_some(()));
    let after = ids(&running(&toft, "web"));
    assert!(before.iter().all(|id| after.contains(id)));
}

#[test]
fn what_does_not_come_to_work_is_taken_back_by_itself() {
    let toft = Appliance::start();
    toft.good("run -n web --replicas 2 --update-healthy 1s toft/demo");
    let before = running(&toft, "web");
    let fewest = fewest_while(&toft, "web", || {
        // No number: the program says so and ends with an error.
        let told = toft.toft(&["update", "web", "-e", "PORT=none"]).bad(1);
        assert!(told.contains("generation 2 of `web` failed and was taken back: web-0: exited with code"), "{told}");
    });
    assert_eq!(fewest, 2, "a copy was missing meanwhile");
    let second = version(&toft, "web", 2);
    assert_eq!(second["rollout"]["state"], "failed");
    assert!(second["rollout"]["reason"].as_str().unwrap().starts_with("web-0: exited with code"), "{second:#}");
    let third = version(&toft, "web", 3);
    assert_eq!((&third["cause"], &third["to"]), (&json!("rollback"), &json!(1)));
    wait_until("it is over", || (version(&toft, "web", 3)["rollout"]["state"] == "done").then_some(()));
    wait_until("only those from before are left", || {
        let ids = |of: &[Value]| of.iter().map(|one| one["id"].clone()).collect::<Vec<_>>();
        let all = toft.json("ps --json").as_array().unwrap().clone();
        (ids(&all) == ids(&before)).then_some(())
    });
    let events = toft.good("events web");
    assert!(events.contains("generation 2 failed and 1 is written again: web-0: exited with code"), "{events}");

    // Whoever wants to look at it first says so.
    let told = toft.toft(&["update", "web", "-e", "PORT=none", "--update-on-failure", "pause"]).bad(1);
    assert!(told.contains("generation 4 of `web` failed: web-0: exited with code"), "{told}");
    let why = toft.good("explain web");
    assert!(why.contains("rollout: generation 4 failed (web-0: exited with code"), "{why}");
    assert_eq!(running(&toft, "web").len(), 2, "what works stays");
    let page = toft.get("/workloads/web/history").text();
    for part in ["Versions of web", "Go back to generation 3", "failed", "web-0: exited with code"] {
        assert!(page.contains(part), "{part} is not in the page");
    }
    toft.good("rollback web");
    wait_until("it runs as before", || {
        (toft.get("/api/v1/workloads/web").good()["rollout"]["state"] == "done").then_some(())
    });
}

#[test]
fn a_host_port_is_handed_over_and_an_image_that_is_not_there_stops_nothing() {
    let toft = Appliance::start();
    toft.good("run -n web -p 8085:8080 --update-healthy 1s toft/demo");
    let first = running(&toft, "web");
    // It can only stop first, and comes back at the same port.
    toft.good("update web -e COLOUR=red");
    let second = running(&toft, "web");
    assert_eq!((second.len(), &second[0]["ports"]), (1, &first[0]["ports"]));
    assert_ne!(second[0]["id"], first[0]["id"]);

    toft.good("run -n api --update-healthy 1s toft/demo");
    let told = toft.toft(&["update", "api", "--image", "127.0.0.1:9/none:1"]).bad(1);
    assert!(told.contains("generation 2 of `api` failed and was taken back: api-0: "), "{told}");
    assert_eq!(running(&toft, "api").len(), 1);
}
