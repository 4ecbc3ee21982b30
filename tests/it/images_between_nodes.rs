//! Images that one node has and others need, on three machines with containers.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use crate::harness::{
    appliance::Appliance,
    image::{Layout, REF_NAME, busybox_layer, here},
    machine::wait_until,
    outage::all_ready,
    trio::Trio,
};

fn trio() -> Trio {
    let trio = Trio::of_servers();
    for toft in &trio.nodes {
        wait_until("every node is known", || all_ready(toft, 3));
    }
    trio
}

/// An archive with an image of that name and a layer of so many bytes that no packing makes smaller.
fn archive(name: &str, noise: usize) -> Vec<u8> {
    let mut layout = Layout::new();
    let mut dice = crate::harness::dice::Dice::of(11);
    let noise: Vec<u8> =
        std::iter::repeat_with(|| dice.below(u64::MAX).to_le_bytes()).take(noise / 8).flatten().collect();
    let more = crate::harness::image::tar(&[("srv/noise".to_owned(), noise)]);
    let process = serde_json::json!({"Cmd": ["sleep", "600"]});
    let target = layout.image_of(here(), process, &[busybox_layer(), more]);
    layout.name(target, REF_NAME, name);
    layout.archive()
}

fn import(toft: &Appliance, archive: &[u8], name: &str) {
    let file = toft.machine.dir.join("image.tar");
    fs::write(&file, archive).unwrap();
    toft.good(&format!("image import --name {name} {}", file.display()));
    fs::remove_file(file).unwrap();
}

/// Bytes of images that a node got, from nodes and from registries.
fn came(toft: &Appliance) -> (u64, u64) {
    let text = String::from_utf8(toft.get("/metrics").body).unwrap();
    let of = |from: &str| {
        let line = text.lines().find(|line| line.starts_with(&format!("toft_image_bytes_total{{from=\"{from}\"}}")));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0)
    };
    (of("node"), of("registry"))
}

#[test]
fn an_image_that_one_node_has_runs_on_another_with_no_registry_there() {
    let trio = trio();
    // Nobody answers there.
    let image = "192.0.2.77:5000/team/app:1";
    import(&trio.nodes[0], &archive(image, 1 << 20), image);
    trio.nodes[1].good(&format!("run -n app --node n1 --network none {image}"));
    assert_eq!(trio.nodes[1].instance("app")["state"], "running");
    let (of_nodes, of_registries) = came(&trio.nodes[1]);
    assert!(of_nodes > 1 << 20 && of_registries == 0, "{of_nodes}, {of_registries}");
    let log = trio.nodes[1].log();
    assert!(log.contains("what the tag stands for was learned from a node"), "{log}");

    // Who wants the newest does not get what another happens to have.
    trio.nodes[2].good(&format!("run --no-wait -n newest --pull always --node n2 --network none {image}"));
    trio.nodes[2].instance_until("newest", "says why not", |instance| {
        instance["reason"].as_str().is_some_and(|reason| reason.contains("192.0.2.77:5000"))
    });
    assert_eq!(came(&trio.nodes[2]).0, 0);
    trio.nodes[2].good(&format!("image pull {image}"));
    assert!(came(&trio.nodes[2]).0 > 1 << 20);
}

#[test]
fn a_node_that_dies_in_the_middle_of_a_large_layer_is_followed_by_another() {
    let mut trio = trio();
    let image = "192.0.2.77:5000/team/large:1";
    let archive = archive(image, 96 << 20);
    import(&trio.nodes[0], &archive, image);
    import(&trio.nodes[2], &archive, image);
    // So slowly that there is a middle.
    let taker = trio.nodes[1].machine.clone();
    taker.run("nft", &["add table ip slow"]);
    taker.run("nft", &["add chain ip slow input { type filter hook input priority 0; }"]);
    taker.run("nft", &["add rule ip slow input iifname eth0 limit rate over 12 mbytes/second burst 2 mbytes drop"]);
    trio.nodes[1].good(&format!("run --no-wait -n large --node n1 --network none {image}"));
    let giver = wait_until("it comes from a node", || {
        let told = trio.nodes[1].get("/api/v1/images/pulls").good();
        let layers = told[0]["layers"].as_array()?.clone();
        let large = layers.get(1).filter(|layer| layer["done_bytes"].as_u64() > Some(4 << 20))?;
        large["from"].as_str().map(str::to_owned)
    });
    let giver = ["n0", "n1", "n2"].iter().position(|name| *name == giver).unwrap();
    trio.nodes[giver].kill();
    let killed = Instant::now();
    wait_until("it runs", || {
        thread::sleep(Duration::from_millis(100));
        (trio.nodes[1].instance("large")["state"] == "running").then_some(())
    });
    println!("running {:?} after the kill", killed.elapsed());
    let (of_nodes, _) = came(&trio.nodes[1]);
    // What came before was not fetched again, but for what was on its way.
    assert!(of_nodes < (96 << 20) + (16 << 20), "{of_nodes}");
}
