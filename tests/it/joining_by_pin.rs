//! Joining with a PIN, by those who find each other in the local network.

use crate::{
    cluster::status,
    harness::{
        appliance::{Appliance, Ran},
        lan::{Lan, address},
        machine::wait_until,
    },
};

fn pin(toft: &Appliance) -> String {
    let pin = toft.good("token create --pin -q --role witness").trim().to_owned();
    assert!(pin.len() == 9 && pin.as_bytes()[4] == b'-', "{pin}");
    pin
}

fn join(toft: &Appliance, pin: &str, more: &[&str]) -> Ran {
    toft.toft(&[&["join", "--pin", pin], more].concat())
}

fn members(toft: &Appliance) -> usize {
    status(toft)["members"].as_array().unwrap().len()
}

#[test]
fn a_machine_joins_with_the_right_pin_and_wrong_ones_are_soon_no_use() {
    let mut lan = Lan::prepare(&["witness", "witness", "witness"]);
    lan.nodes.iter_mut().for_each(Appliance::up);
    let [a, b, c] = [0, 1, 2].map(|i| &lan.nodes[i]);
    let right = pin(a);
    let wrong = if right.starts_with('1') { "2222-2222" } else { "1111-1111" };
    for words in ["2 tries are left", "1 try is left", "not valid any more"] {
        let told = join(c, wrong, &[]).bad(1);
        assert!(told.contains(words), "{words}: {told}");
    }
    let told = join(c, &right, &[&address(0)]).bad(1);
    assert!(told.contains("no PIN is valid here"), "{told}");
    for text in ["12345", "abcd-efgh"] {
        assert!(join(c, text, &[]).bad(2).contains("no PIN"), "{text}");
    }
    assert!(a.toft(&["token", "create", "--pin", "--ttl", "1h"]).code == 2);
    assert_eq!((members(a), members(c)), (1, 1), "nothing was changed");

    let (right, other) = (pin(a), pin(b));
    let told = join(c, &right, &[]).bad(1);
    assert!(told.contains("several clusters") && told.contains("a (") && told.contains("b ("), "{told}");
    assert!(join(c, &right, &["--cluster", "nobody"]).bad(1).contains("is called that"));
    join(c, &right, &["--cluster", "a"]).good();
    wait_until("both are members", || (members(a) == 2 && members(c) == 2).then_some(()));
    // It was good for one.
    let told = join(b, &right, &[&address(0)]).bad(1);
    assert!(told.contains("no PIN is valid here"), "{told}");
    let log = a.log();
    for words in ["the PIN is wrong; 2 tries are left", "no PIN is valid here", "knows the PIN"] {
        assert!(log.lines().any(|line| line.contains(words) && line.contains(&address(2))), "{words}: {log}");
    }
    for secret in [&right, &other] {
        let digits = secret.replace('-', "");
        assert!(!log.contains(secret.as_str()) && !log.contains(&digits), "no log tells a PIN");
    }
}
