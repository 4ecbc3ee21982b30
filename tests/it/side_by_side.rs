//! Two appliances on one machine do not get into each other's way.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::harness::{appliance::Appliance, machine::Machine};

#[test]
fn two_appliances_run_the_demo_beside_each_other() {
    let machine = Machine::new();
    let mut one = Appliance::start_on(&machine, "one");
    let subnet = |toft: &Appliance| {
        let text = std::fs::read_to_string(toft.data.join("node.json")).unwrap();
        serde_json::from_str::<Value>(&text).unwrap()["subnet"].to_string()
    };
    // Neither has a container yet, and so no route the other could see: once in 256 times two choose the same network.
    let mut others = ["two", "second", "other"].into_iter().map(|name| Appliance::start_on(&machine, name));
    let two = others.find(|other| subnet(other) != subnet(&one)).expect("two networks");
    one.good("run -n web -p 18080:8080 toft/demo");
    two.good("run -n web -p 18081:8080 toft/demo");
    let says = |port: u16| machine.visit(port, "/json").good()["instance"].clone();
    assert_eq!((says(18080), says(18081)), (Value::from("web-0"), Value::from("web-0")));

    let taken = two.toft(&["run", "-n", "thief", "-p", "18080:8080", "toft/demo"]).bad(125);
    assert!(taken.contains("18080") && taken.contains("ports[0].host"), "{taken}");

    let url = |toft: &Appliance| std::fs::read_to_string(toft.data.join("toft.url")).unwrap();
    assert_ne!(url(&one), url(&two), "each has a port of its own");
    assert_ne!(one.containerd_pid(), two.containerd_pid());
    let links = machine.run("ip", &["-br", "link"]);
    let bridges: BTreeSet<&str> = links.split_whitespace().filter(|word| word.starts_with("toft-")).collect();
    assert_eq!(bridges.len(), 2, "{links}");

    one.good("stop web");
    assert!(machine.http(18080, "GET", "/json", &[]).is_err());
    assert_eq!(says(18081), "web-0", "the other goes on");
    one.good("start web");
    assert_eq!(one.down().code, 0);
    assert_eq!(says(18081), "web-0", "also when one ends altogether");
    assert_eq!(two.good("ps -q").lines().next(), Some("web-0"));
    one.up();
    one.instance_until("web", "runs", |instance| instance["state"] == "running");
}
