//! Clusters in two parts, and clusters that lose machines, with real containers: a side with the majority goes on and takes over what
//! ran on the other; a side without keeps its containers, but for those that are exclusive.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::{
    harness::{
        full,
        lan::Lan,
        machine::wait_until,
        outage::{instances, name, running_on, state_of},
    },
    mesh_nodes::{ask, ip, on, running},
    names::found,
};

/// Two boxes and a witness, all of which vote and know each other.
fn two_and_a_witness() -> Lan {
    let lan = Lan::start(&["server", "server", "witness"]);
    lan.until_voters(3);
    lan.until_ready(&[0, 1]);
    lan
}

fn pairs(nodes: &[&str]) -> Vec<(String, String)> {
    nodes.iter().map(|node| ((*node).to_owned(), "running".to_owned())).collect()
}

#[test]
fn either_of_two_boxes_beside_a_witness_may_die_and_the_other_carries_on() {
    let mut lan = two_and_a_witness();
    lan.nodes[0].good("run -n web --replicas 2 toft/demo");
    for (dies, stays) in [(0, 1), (1, 0)] {
        lan.nodes[dies].kill();
        let killed = Instant::now();
        lan.until_written(stays, "scale web=3 --no-wait");
        let written = killed.elapsed();
        let alone = vec![name(stays); 3];
        wait_until("all of it runs there", || (running_on(&lan.nodes[stays], "web")? == alone).then_some(()));
        let moved = killed.elapsed();
        // New work is placed, and published.
        let port = 18_080 + dies as u16;
        lan.nodes[stays].good(&format!("run -n new-{dies} -p {port}:8080 toft/demo"));
        wait_until("it is published", || lan.visit(stays, port));
        assert!(lan.visit_from(2, stays, port), "the local network does not reach what is published");
        println!(
            "{} died: written after {written:?}, taken over after {moved:?}, new work after {:?}",
            name(dies),
            killed.elapsed()
        );
        assert!(written < Duration::from_secs(10) && moved < Duration::from_secs(20), "{written:?}, {moved:?}");
        lan.nodes[dies].up();
        lan.until_ready(&[0, 1]);
        lan.nodes[stays].good("scale web=2");
        wait_until("two are left", || (running_on(&lan.nodes[stays], "web")?.len() == 2).then_some(()));
        wait_until("what was given to the other is gone here", || {
            let told: usize = ["web", "new-0", "new-1"]
                .iter()
                .filter_map(|workload| running_on(&lan.nodes[stays], workload))
                .flatten()
                .filter(|node| *node == name(dies))
                .count();
            (lan.nodes[dies].shims() == told).then_some(())
        });
    }
}

/// Parts `few` from `many`, where `web` has an instance on each of the servers and `only` is exclusive and runs on the first of
/// `few`; looks at what becomes of both, and puts the network together again.
fn part(lan: &Lan, few: &[usize], many: &[usize], servers: &[usize]) {
    let far: Vec<usize> = servers.iter().copied().filter(|i| many.contains(i)).collect();
    let cut_off: Vec<usize> = servers.iter().copied().filter(|i| few.contains(i)).collect();
    let (asked, alone) = (&lan.nodes[far[0]], &lan.nodes[cut_off[0]]);
    let copies = servers.len();
    let kept: Vec<usize> = cut_off.iter().map(|i| lan.nodes[*i].shims()).collect();
    let only_here = running_on(asked, "only").unwrap();
    assert_eq!(only_here, [name(cut_off[0])]);
    lan.part(few, many);
    let parted = Instant::now();
    let leader = lan.leader_among(many);
    let written = lan.until_written(far[0], "scale extra=1 --no-wait");
    println!("{} leads; written after {written:?}", name(leader));
    // A side that is none refuses, says why, and goes on telling what it knows.
    let refused = wait_until("who is cut off says so", || {
        let ran = alone.toft(&["scale", "extra=2", "--no-wait"]);
        (ran.code != 0 && ran.err.contains("no leader")).then_some(ran.err)
    });
    assert!(refused.contains("toft cluster status"), "{refused}");
    wait_until("it takes over", || {
        let running = running_on(asked, "web")?;
        let there = running.iter().filter(|node| far.iter().any(|i| name(*i) == **node)).count();
        (there == copies).then_some(())
    });
    let taken_over = parted.elapsed();
    let gone = |i: usize| lan.nodes[i].shims() + 1 == kept[0];
    let mut stopped = None;
    wait_until("what is exclusive runs elsewhere", || {
        if stopped.is_none() && gone(cut_off[0]) {
            stopped = Some(parted.elapsed());
        }
        let nodes = running_on(asked, "only")?;
        far.iter().any(|i| nodes.contains(&name(*i))).then_some(())
    });
    let started = parted.elapsed();
    let stopped = stopped.expect("what is exclusive stopped before another started");
    println!("taken over after {taken_over:?}; what is exclusive stopped after {stopped:?}, started after {started:?}");
    assert!(stopped < started && taken_over < Duration::from_secs(20), "{stopped:?}, {started:?}, {taken_over:?}");
    // The others there go on, whatever the majority thinks.
    for (i, before) in cut_off.iter().zip(&kept) {
        let now = lan.nodes[*i].shims();
        let expected = if *i == cut_off[0] { before - 1 } else { *before };
        assert_eq!(now, expected, "containers of {} while it is cut off", name(*i));
    }
    lan.heal();
    let healed = Instant::now();
    for i in 0..lan.nodes.len() {
        wait_until("all say the same", || {
            let seen = &lan.nodes[i];
            let all_ready = servers.iter().all(|other| state_of(seen, &name(*other)).as_deref() == Some("ready"));
            let web = instances(seen, "web")?;
            let only = instances(seen, "only")?;
            let right = web.len() == copies && web.iter().chain(&only).all(|(_, state)| state == "running");
            (all_ready && right && only.len() == 1).then_some(())
        });
    }
    wait_until("no copy is left that nobody wants", || {
        let on = |workload: &str| running_on(asked, workload);
        let told = [on("web")?, on("only")?, on("extra")?].concat();
        let right = |i: &usize| lan.nodes[*i].shims() == told.iter().filter(|node| **node == name(*i)).count();
        servers.iter().all(right).then_some(())
    });
    println!("together again after {:?}", healed.elapsed());
}

#[test]
fn one_of_two_boxes_is_parted_from_the_other_and_the_witness() {
    let lan = two_and_a_witness();
    lan.nodes[0].good("run -n extra --replicas 0 --no-wait toft/demo");
    let rounds = if full() { 4 } else { 1 };
    for round in 0..rounds {
        // Who leads is on the side of the few, and in the next round on that of the many.
        let leader = lan.leader_among(&[0, 1, 2]);
        let few = if leader < 2 { (leader + round) % 2 } else { round % 2 };
        let many = [1 - few, 2];
        lan.nodes[few].good("run -n web --replicas 2 --max-per-node 2 toft/demo");
        lan.run_first_on(few, &[0, 1], "run -n only --exclusive toft/demo");
        wait_until("each has one", || (instances(&lan.nodes[few], "web")? == pairs(&["a", "b"])).then_some(()));
        part(&lan, &[few], &many, &[0, 1]);
        for workload in ["web", "only"] {
            lan.nodes[few].good(&format!("rm {workload}"));
        }
        lan.nodes[few].good("scale extra=0");
    }
}

#[test]
fn two_of_four_boxes_are_parted_from_the_others_and_the_witness() {
    let lan = Lan::start(&["server", "server", "server", "server", "witness"]);
    lan.until_voters(5);
    lan.until_ready(&[0, 1, 2, 3]);
    lan.nodes[0].good("run -n extra --replicas 0 --no-wait toft/demo");
    // Who leads is among those that are too few.
    let leader = lan.leader_among(&[0, 1, 2, 3, 4]);
    let (few, many) = if leader == 2 || leader == 3 { ([2, 3], [0, 1, 4]) } else { ([0, 1], [2, 3, 4]) };
    lan.nodes[0].good("run -n web --replicas 4 toft/demo");
    lan.run_first_on(few[0], &[0, 1, 2, 3], "run -n only --exclusive toft/demo");
    wait_until("each has one", || (instances(&lan.nodes[0], "web")? == pairs(&["a", "b", "c", "d"])).then_some(()));
    part(&lan, &few, &many, &[0, 1, 2, 3]);
}

#[test]
fn five_nodes_are_one_computer_and_any_two_may_be_lost() {
    let mut lan = Lan::start(&["server", "server", "server", "server", "witness"]);
    lan.until_voters(5);
    lan.until_ready(&[0, 1, 2, 3]);
    let asked = &lan.nodes[4];
    asked.good("run -n web --replicas 4 toft/demo");
    assert_eq!(running_on(asked, "web").unwrap(), ["a", "b", "c", "d"]);
    lan.nodes[1].good(&format!("run -n shop-web --deployment shop {}toft/demo", on("a")));
    lan.nodes[2].good(&format!("run -n shop-db --deployment shop -p 18080:8080 {}toft/demo", on("d")));
    let [web, db] = [running(&lan.nodes[0], "shop-web"), running(&lan.nodes[0], "shop-db")];
    let to_db = SocketAddr::new(ip(&db), 8080);
    wait_until("by name", || (found(&web, "db.shop.toft.internal") == ip(&db).to_string()).then_some(()));
    wait_until("by address", || ask(&web, to_db, "/json").ok());
    assert!(lan.visit(3, 18_080).is_some() && lan.visit_from(1, 3, 18_080), "what is published is not reached");

    // One hangs, and comes back.
    let leader = lan.leader_among(&[0, 1, 2, 3, 4]);
    lan.pause(leader);
    let others: Vec<usize> = (0..5).filter(|i| *i != leader).collect();
    let hung = Instant::now();
    lan.until_written(others[0], "run -n after-hang --replicas 0 --no-wait toft/demo");
    println!("the leader hangs: written after {:?}", hung.elapsed());
    assert!(hung.elapsed() < Duration::from_secs(10));
    lan.resume(leader);
    wait_until("who hung has it too", || instances(&lan.nodes[leader], "after-hang"));

    // One loses its cable, and gets it back.
    lan.until_ready(&[0, 1, 2, 3]);
    lan.cut(1);
    wait_until("it counts as lost", || (state_of(&lan.nodes[0], "b")? == "down").then_some(()));
    wait_until("another runs for it", || {
        let running = running_on(&lan.nodes[0], "web")?;
        (running.len() == 4 && !running.contains(&"b".to_owned())).then_some(())
    });
    lan.mend(1);
    lan.until_ready(&[0, 1, 2, 3]);
    wait_until("four are left", || (instances(&lan.nodes[0], "web")?.len() == 4).then_some(()));

    // Two die at once: who leads, and another.
    let leader = lan.leader_among(&[0, 1, 2, 3, 4]);
    let dead = [leader, if leader == 3 { 2 } else { 3 }];
    dead.iter().for_each(|i| lan.nodes[*i].kill());
    let killed = Instant::now();
    let left: Vec<usize> = (0..4).filter(|i| !dead.contains(i)).collect();
    lan.until_written(left[0], "scale web=6 --no-wait");
    println!("two of five die: written after {:?}", killed.elapsed());
    assert!(killed.elapsed() < Duration::from_secs(10));
    wait_until("six run on those that are left", || {
        let running = running_on(&lan.nodes[left[0]], "web")?;
        let here = running.iter().filter(|node| left.iter().any(|i| name(*i) == **node)).count();
        (here == 6 && running.len() == 6).then_some(())
    });
    println!("all taken over after {:?}", killed.elapsed());
}
