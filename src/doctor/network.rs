//! Whether packets of containers get through this machine.

use std::{fs, process::Command};

use serde_json::Value;

use super::{Check, Said, failure, is_root, ok, skipped, warning};

pub(super) fn checks() -> Vec<Check> {
    let bridged = has_bridge(&fs::read_to_string("/proc/net/dev").unwrap_or_default());
    let forwarding = fs::read_to_string("/proc/sys/net/ipv4/ip_forward");
    vec![
        forwarding_of(forwarding.ok().as_deref().map(str::trim), bridged).of("network", "forwarding"),
        firewall().of("network", "firewall"),
    ]
}

/// Whether toft has made a network for containers.
fn has_bridge(interfaces: &str) -> bool {
    interfaces.lines().any(|line| line.trim_start().starts_with("toft"))
}

fn forwarding_of(value: Option<&str>, bridged: bool) -> Said {
    const FIX: &str = "sudo sysctl -w net.ipv4.ip_forward=1    (for ever: echo net.ipv4.ip_forward=1 | sudo tee /etc/sysctl.d/90-toft.conf)";
    match (value, bridged) {
        (Some("1"), _) => ok("is on"),
        (Some(_), true) => {
            failure("is off, so containers reach nothing outside; toft turned it on, and something turned it off", FIX)
        }
        (Some(_), false) => warning("is off; toft turns it on with the first container that has a network", FIX),
        (None, _) => skipped("cannot be told"),
    }
}

/// Whether a chain of somebody else drops what is forwarded.
fn firewall() -> Said {
    if !is_root() {
        return skipped("needs root: sudo toft doctor");
    }
    let Some(chains) = nft(&["-j", "list", "chains"]) else { return skipped("cannot be read without `nft`") };
    let dropping = dropping(&chains);
    let unaware = dropping.into_iter().find(|chain| {
        let rules = nft(&["list", "table", &chain.family, &chain.table]).unwrap_or_default();
        !lets_through(&rules)
    });
    let Some(Chain { family, table, name }) = unaware else {
        return ok("no other firewall drops what containers send");
    };
    let chain = format!("{family} {table} {name}");
    failure(
        format!("the chain `{chain}` drops forwarded packets, those of containers too"),
        format!(
            "sudo nft insert rule {chain} iifname \"toft*\" accept; sudo nft insert rule {chain} oifname \"toft*\" accept"
        ),
    )
}

fn nft(arguments: &[&str]) -> Option<String> {
    let output = Command::new("nft").args(arguments).env("LC_ALL", "C").output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

#[derive(Debug, PartialEq, Eq)]
struct Chain {
    family: String,
    table: String,
    name: String,
}

/// The chains that drop what is forwarded unless a rule says otherwise; not ours.
fn dropping(listing: &str) -> Vec<Chain> {
    let listing: Value = serde_json::from_str(listing).unwrap_or_default();
    let chains = listing["nftables"].as_array().into_iter().flatten().map(|item| &item["chain"]);
    let drops = chains.filter(|chain| chain["hook"] == "forward" && chain["policy"] == "drop");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    drops
        .map(|chain| Chain { family: text(&chain["family"]), table: text(&chain["table"]), name: text(&chain["name"]) })
        .filter(|chain| matches!(chain.family.as_str(), "ip" | "inet") && !chain.table.starts_with("toft"))
        .collect()
}

/// Whether its rules speak of our bridges.
fn lets_through(rules: &str) -> bool {
    rules.lines().any(|line| line.contains("ifname \"toft") && line.contains("accept"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn a_network_of_containers_is_known_by_its_bridge() {
        assert!(has_bridge(" face |bytes\n  lo: 1\n toft0: 2\n"));
        assert!(!has_bridge(" face |bytes\n  lo: 1\n eth0: 2\n"));
    }

    #[test]
    fn forwarding_that_was_turned_off_is_a_failure() {
        assert_eq!(forwarding_of(Some("1"), true).verdict, Verdict::Ok);
        assert_eq!(forwarding_of(Some("0"), false).verdict, Verdict::Warning);
        let off = forwarding_of(Some("0"), true);
        assert!(off.verdict == Verdict::Failure && off.fix.unwrap().contains("sysctl -w net.ipv4.ip_forward=1"));
    }

    #[test]
    fn only_foreign_chains_that_drop_are_named() {
        let listing = r#"{"nftables":[{"metainfo":{}},
            {"chain":{"family":"ip","table":"filter","name":"FORWARD","hook":"forward","policy":"drop"}},
            {"chain":{"family":"ip","table":"filter","name":"INPUT","hook":"input","policy":"drop"}},
            {"chain":{"family":"inet","table":"fw","name":"fwd","hook":"forward","policy":"accept"}},
            {"chain":{"family":"ip6","table":"filter","name":"FORWARD","hook":"forward","policy":"drop"}},
            {"chain":{"family":"ip","table":"toft","name":"forward","hook":"forward","policy":"drop"}},
            {"chain":{"family":"ip","table":"filter","name":"DOCKER"}}]}"#;
        let named = Chain { family: "ip".into(), table: "filter".into(), name: "FORWARD".into() };
        assert_eq!(dropping(listing), [named]);
        assert_eq!(dropping("nonsense"), []);
        assert!(lets_through("iifname \"toft*\" accept\n") && lets_through("\toifname \"toft0\" counter accept"));
        assert!(!lets_through("iifname \"docker0\" accept\niifname \"toft*\" drop"));
    }
}
