//! Which addresses a node takes for its containers, on machines whose own networks stand in the way.

use std::fs;

use serde_json::Value;

use crate::{
    cluster::{join, prepare},
    harness::{
        appliance::Appliance,
        machine::{Machine, wait_until},
    },
};

fn subnet(toft: &Appliance) -> String {
    let text = fs::read_to_string(toft.data.join("node.json")).unwrap();
    serde_json::from_str::<Value>(&text).unwrap()["subnet"].as_str().unwrap_or("none").to_owned()
}

fn add_config(toft: &Appliance, text: &str) {
    let file = toft.data.join("toft.toml");
    let before = fs::read_to_string(&file).unwrap_or_default();
    fs::write(file, before + text).unwrap();
}

#[test]
fn nodes_of_one_cluster_take_different_networks_until_none_is_left() {
    let machine = Machine::new();
    let range = "[network]\nrange = \"10.77.0.0/23\"\n";
    let [mut a, mut b, mut c] = [("a", 7601), ("b", 7602), ("c", 7603)].map(|(name, port)| {
        let toft = prepare(&machine, name, port);
        add_config(&toft, range);
        toft
    });
    a.up();
    join(&mut b, &a, 7601);
    let mut taken = [subnet(&a), subnet(&b)];
    taken.sort();
    assert_eq!(taken, ["10.77.0.0/24", "10.77.1.0/24"]);
    join(&mut c, &a, 7601);
    assert_eq!(subnet(&c), "none");
    assert!(c.log().contains("network.range: no /24 of 10.77.0.0/23 is left"), "{}", c.log());
    let before = [subnet(&a), subnet(&b)];
    for toft in [&mut a, &mut b] {
        toft.set_flags(&[]);
        toft.stop();
        toft.up();
    }
    assert_eq!([subnet(&a), subnet(&b)], before, "kept over restarts");
    let told = |toft: &Appliance| toft.get("/api/v1/nodes").good().to_string();
    wait_until("both are told", || before.iter().all(|subnet| told(&a).contains(subnet.as_str())).then_some(()));
}

#[test]
fn a_range_that_overlaps_something_of_the_machine_is_refused() {
    let machine = Machine::new();
    machine.run("ip", &["link", "add", "lan0", "type", "bridge"]);
    machine.run("ip", &["addr", "add", "10.0.0.5/8", "dev", "lan0"]);
    machine.run("ip", &["link", "set", "lan0", "up"]);
    let mut toft = Appliance::prepare(&machine, "d");
    let told = toft.up_refuses().bad(1);
    assert!(told.contains("network.range: 10.210.0.0/16 overlaps 10.0.0.0/8") && told.contains("`lan0`"), "{told}");
    assert!(told.contains("range") && told.contains("\"172.30.0.0/16\""), "{told}");
    add_config(&toft, "[network]\nrange = \"172.30.0.0/16\"\n");
    toft.up();
    assert!(subnet(&toft).starts_with("172.30."));
    // What comes later does not keep a node with containers from starting.
    machine.run("ip", &["route", "add", "172.16.0.0/12", "dev", "lan0"]);
    toft.stop();
    toft.up();
    assert!(toft.log().contains("network.range: 172.30.0.0/16 overlaps 172.16.0.0/12"), "{}", toft.log());
    toft.good("run -n web -p 18080:8080 toft/demo");
    assert_eq!(machine.visit(18080, "/json").status, 200);
}
