//! Volumes that move between machines with containers.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::PathBuf,
    thread,
    time::Duration,
};

use nix::mount::{MsFlags, mount};
use serde_json::Value;

use crate::harness::{appliance::Appliance, machine::wait_until, outage::all_ready, trio::Trio};

fn trio() -> Trio {
    let trio = Trio::of_servers();
    for toft in &trio.nodes {
        wait_until("every node is known", || all_ready(toft, 3));
        toft.import_busybox();
    }
    trio
}

fn volume(toft: &Appliance, name: &str) -> Value {
    toft.get(&format!("/api/v1/volumes/{name}?consistency=local")).good()
}

fn data(toft: &Appliance, name: &str) -> PathBuf {
    toft.data.join("volumes").join(name).join("_data")
}

/// Runs what counts in the volume `data` on the node `n0`: each number is on the disk before the next.
fn counting(trio: &Trio) {
    let count = "i=$(cat /data/count 2>/dev/null || echo 0); while :; do i=$((i+1)); echo $i > /data/next; \
                 mv /data/next /data/count; echo $i; sleep 0.05; done";
    trio.nodes[0].good("volume create data --node n0");
    let run = ["run", "-n", "counter", "--network", "none", "-v", "data:/data", "busybox", "sh", "-c", count];
    let ran = trio.nodes[0].toft(&run);
    assert_eq!(ran.code, 0, "{}", ran.err);
}

/// Something for each kind of file, and much of it.
fn fill(trio: &Trio, large: usize) {
    let data = data(&trio.nodes[0], "data");
    fs::create_dir(data.join("odd")).unwrap();
    fs::write(data.join("odd/file"), "content").unwrap();
    fs::hard_link(data.join("odd/file"), data.join("odd/again")).unwrap();
    symlink("/etc/passwd", data.join("odd/link")).unwrap();
    fs::set_permissions(data.join("odd/file"), fs::Permissions::from_mode(0o4750)).unwrap();
    let mut dice = crate::harness::dice::Dice::of(3);
    let noise: Vec<u8> =
        std::iter::repeat_with(|| dice.below(u64::MAX).to_le_bytes()).take(large / 8).flatten().collect();
    fs::write(data.join("large"), noise).unwrap();
}

fn slow(trio: &Trio, i: usize, mbytes: u32) {
    let machine = &trio.nodes[i].machine;
    machine.run("nft", &["add table ip slow"]);
    machine.run("nft", &["add chain ip slow input { type filter hook input priority 0; }"]);
    let rule =
        format!("add rule ip slow input iifname eth0 limit rate over {mbytes} mbytes/second burst 2 mbytes drop");
    machine.run("nft", &[&rule]);
}

#[test]
fn a_volume_moves_with_what_uses_it_and_nothing_is_lost() {
    let trio = trio();
    counting(&trio);
    fill(&trio, 24 << 20);
    let before = fs::metadata(data(&trio.nodes[0], "data").join("odd/file")).unwrap();
    for (bad, why) in [("n0", "lies on node n0 already"), ("nowhere", "there is no node")] {
        let refused = trio.nodes[2].toft(&["volume", "move", "data", "--to", bad]);
        assert!(refused.code != 0 && refused.err.contains(why), "{}", refused.err);
    }
    let counted = || trio.nodes[0].logs("counter").iter().filter_map(|line| line.parse::<u64>().ok()).max();
    let acknowledged = wait_until("it counts", || counted().filter(|count| *count > 5));
    let told = trio.nodes[2].good("volume move data --to n1");
    assert!(told.contains("data lies on n1"), "{told}");
    assert_eq!(volume(&trio.nodes[1], "data")["node"], "n1");
    trio.nodes[1].instance_until("counter", "runs there", |one| one["state"] == "running" && one["node"] == "n1");
    let there = data(&trio.nodes[1], "data");
    let after = fs::metadata(there.join("odd/file")).unwrap();
    assert_eq!((after.mode(), after.nlink(), after.mtime()), (before.mode(), 2, before.mtime()));
    assert_eq!(fs::read_link(there.join("odd/link")).unwrap(), PathBuf::from("/etc/passwd"));
    assert_eq!(fs::metadata(there.join("large")).unwrap().len(), 24 << 20);
    let goes_on = wait_until("it goes on counting", || {
        let count: u64 = fs::read_to_string(there.join("count")).ok()?.trim().parse().ok()?;
        (count > acknowledged).then_some(count)
    });
    assert!(goes_on > acknowledged);
    wait_until("the first copy is gone", || (!data(&trio.nodes[0], "data").exists()).then_some(()));
    let events = trio.nodes[0].good("events");
    assert!(
        events.contains("is to be moved from node n0 to node n1") && events.contains("lies on node n1 now"),
        "{events}"
    );
}

#[test]
fn a_move_goes_on_whoever_is_killed_and_can_be_taken_back() {
    let mut trio = trio();
    counting(&trio);
    fill(&trio, 64 << 20);
    slow(&trio, 1, 6);
    trio.nodes[0].good("volume move data --to n1 --detach");
    let percent = |trio: &Trio, i: usize| {
        volume(&trio.nodes[i], "data")["moving"]["percent"].as_u64().filter(|percent| *percent > 5)
    };
    wait_until("it comes", || percent(&trio, 2));
    let list = trio.nodes[2].good("volume ls");
    assert!(list.contains("moving to n1"), "{list}");
    for i in [1, 0] {
        trio.nodes[i].kill();
        thread::sleep(Duration::from_millis(500));
        trio.nodes[i].up();
    }
    // Who leads may be any of them.
    let leader = trio.leader();
    trio.nodes[leader].kill();
    trio.nodes[leader].up();
    wait_until("it is there", || (volume(&trio.nodes[2], "data")["node"] == "n1").then_some(()));
    trio.nodes[1].instance_until("counter", "runs there", |one| one["state"] == "running" && one["node"] == "n1");
    assert_eq!(fs::metadata(data(&trio.nodes[1], "data").join("large")).unwrap().len(), 64 << 20);

    slow(&trio, 2, 4);
    trio.nodes[0].good("volume move data --to n2 --detach");
    wait_until("it comes", || percent(&trio, 0));
    trio.nodes[0].good("volume move data --cancel");
    let now = volume(&trio.nodes[0], "data");
    assert!(now["node"] == "n1" && now["moving"].is_null(), "{now}");
    wait_until("the copy is gone", || (!data(&trio.nodes[2], "data").exists()).then_some(()));
    assert_eq!(trio.nodes[1].instance("counter")["state"], "running");
}

/// The counter goes on where it was, and nothing is left of a copy on the other node.
fn stays(trio: &Trio, before: &Value) {
    let now = volume(&trio.nodes[0], "data");
    assert_eq!(now["node"], "n0", "{now}");
    let one = trio.nodes[0].instance_until("counter", "runs", |one| one["state"] == "running");
    assert_eq!((&one["node"], &one["id"], &one["restarts"]), (&before["node"], &before["id"], &before["restarts"]));
    wait_until("the copy is gone", || (!data(&trio.nodes[1], "data").exists()).then_some(()));
    assert_eq!(fs::metadata(data(&trio.nodes[0], "data").join("large")).unwrap().len(), 24 << 20);
}

#[test]
fn a_volume_does_not_come_to_a_disk_that_is_full_or_fills_up_and_stays_as_it_was() {
    let mut trio = trio();
    counting(&trio);
    fill(&trio, 24 << 20);
    let before = trio.nodes[0].instance("counter");
    let disk = trio.nodes[1].data.join("volumes");
    assert_eq!(trio.nodes[1].stop(), 0);
    fs::create_dir_all(&disk).unwrap();
    mount(Some("tmpfs"), &disk, Some("tmpfs"), MsFlags::empty(), Some("size=48m")).unwrap();
    trio.nodes[1].up();
    wait_until("it is back", || (trio.nodes[2].json("node ls --json")[1]["state"] == "ready").then_some(()));
    let refused = trio.nodes[2].toft(&["volume", "move", "data", "--to", "n1"]).bad(1);
    assert!(
        refused.contains("could not be moved to n1: it needs 24") && refused.contains("are free there"),
        "{refused}"
    );
    assert!(refused.contains("it stays where it was"), "{refused}");
    stays(&trio, &before);

    // Room enough, until somebody else takes it.
    mount(None::<&str>, &disk, None::<&str>, MsFlags::MS_REMOUNT, Some("size=160m")).unwrap();
    slow(&trio, 1, 4);
    trio.nodes[0].good("volume move data --to n1 --detach");
    let percent = || volume(&trio.nodes[1], "data")["moving"]["percent"].as_u64();
    wait_until("it comes", || percent().filter(|percent| (5..90).contains(percent)));
    let mut ballast = fs::File::create(disk.join("ballast")).unwrap();
    for size in [1 << 20, 1 << 12, 1] {
        while std::io::Write::write_all(&mut ballast, &vec![1; size]).is_ok() {}
    }
    let failed =
        wait_until("it is given up", || volume(&trio.nodes[2], "data")["moving"]["failed"].as_str().map(str::to_owned));
    assert!(failed.contains("no space left on its disk") || failed.contains("are free there"), "{failed}");
    stays(&trio, &before);
    assert!(trio.nodes[2].good("events").contains("could not be moved to node n1, and stays"));
    drop(ballast);
    fs::remove_file(disk.join("ballast")).unwrap();
    trio.nodes[1].machine.run("nft", &["delete table ip slow"]);
    let told = trio.nodes[2].good("volume move data --to n1");
    assert!(told.contains("data lies on n1"), "{told}");
    trio.nodes[1].instance_until("counter", "runs there", |one| one["state"] == "running" && one["node"] == "n1");
}

/// Runs what mounts a volume, for its folder is made then.
fn use_it(trio: &Trio, name: &str) {
    let (user, mount) = (format!("of-{name}"), format!("{name}:/data"));
    let wait = "while :; do sleep 0.2; done";
    trio.nodes[0].toft(&["run", "-n", &user, "--network", "none", "-v", &mount, "busybox", "sh", "-c", wait]).good();
}

#[test]
fn moves_that_wait_for_a_node_hold_up_no_other() {
    let mut trio = trio();
    let mut dice = crate::harness::dice::Dice::of(5);
    for name in ["one", "two", "three"] {
        trio.nodes[0].good(&format!("volume create {name} --node n0"));
        let noise: Vec<u8> =
            std::iter::repeat_with(|| dice.below(u64::MAX).to_le_bytes()).take((48 << 20) / 8).flatten().collect();
        use_it(&trio, name);
        let folder = data(&trio.nodes[0], name);
        wait_until("its folder", || folder.exists().then_some(()));
        fs::write(folder.join("noise"), noise).unwrap();
    }
    trio.nodes[2].good("volume create small --node n2");
    use_it(&trio, "small");
    wait_until("its folder", || data(&trio.nodes[2], "small").exists().then_some(()));
    fs::write(data(&trio.nodes[2], "small").join("word"), "content").unwrap();
    slow(&trio, 1, 3);
    for name in ["one", "two", "three"] {
        trio.nodes[2].good(&format!("volume move {name} --to n1 --detach"));
    }
    wait_until("one comes", || {
        volume(&trio.nodes[1], "one")["moving"]["percent"].as_u64().filter(|percent| *percent > 0)
    });
    trio.nodes[0].kill();
    let told = trio.nodes[2].good("volume move small --to n1");
    assert!(told.contains("small lies on n1"), "{told}");
    assert_eq!(fs::read_to_string(data(&trio.nodes[1], "small").join("word")).unwrap(), "content");
    let waits = wait_until("it says for whom it waits", || {
        volume(&trio.nodes[1], "one")["moving"]["trouble"].as_str().map(str::to_owned)
    });
    println!("the others wait: {waits}");
    trio.nodes[0].up();
    trio.nodes[1].machine.run("nft", &["delete table ip slow"]);
    for name in ["one", "two", "three"] {
        wait_until("it comes too", || (volume(&trio.nodes[2], name)["node"] == "n1").then_some(()));
        assert_eq!(fs::metadata(data(&trio.nodes[1], name).join("noise")).unwrap().len(), 48 << 20);
    }
}
