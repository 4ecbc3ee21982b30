//! Whether packets of containers get through this machine.

use std::{collections::BTreeSet, fmt, fs, process::Command};

use serde_json::Value;

use super::{Check, Said, failure, is_root, ok, skipped, warning};

/// Port of the name server for containers, unless something else had it.
const PREFERRED_PORT: u16 = 10_053;

pub(super) fn checks() -> Vec<Check> {
    let bridged = has_bridge(&fs::read_to_string("/proc/net/dev").unwrap_or_default());
    let forwarding = fs::read_to_string("/proc/sys/net/ipv4/ip_forward");
    let mut checks =
        vec![forwarding_of(forwarding.ok().as_deref().map(str::trim), bridged).of("network", "forwarding")];
    let chains = match is_root() {
        true => nft(&["-j", "list", "chains"]).ok_or("cannot be read without `nft`"),
        false => Err("needs root: sudo toft doctor"),
    };
    match chains {
        Ok(listing) => {
            let (chains, port) = (foreign(&listing), names_port(&listing).unwrap_or(PREFERRED_PORT));
            checks.push(firewall(&chains).of("network", "firewall"));
            checks.push(names(&chains, port).of("network", "firewall for names"));
        }
        Err(why) => checks.extend(["firewall", "firewall for names"].map(|name| skipped(why).of("network", name))),
    }
    checks
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

/// Whether a chain of somebody else drops what is forwarded: what containers send, or what goes to published ports.
fn firewall(chains: &[Chain]) -> Said {
    for chain in chains.iter().filter(|chain| chain.hook == "forward" && drops(chain)) {
        let rules = rules_of(chain);
        let (from, to) = (lets_through(&rules, "iifname"), lets_through(&rules, "oifname"));
        let insert = |side: &str| format!("sudo nft insert rule {chain} {side} \"toft*\" accept");
        match (from, to || rules.contains("ct status dnat accept")) {
            (true, true) => {}
            (true, false) => {
                return failure(format!("the chain `{chain}` drops packets to published ports"), insert("oifname"));
            }
            (false, _) => {
                let message = format!("the chain `{chain}` drops forwarded packets, those of containers too");
                return failure(message, format!("{}; {}", insert("iifname"), insert("oifname")));
            }
        }
    }
    ok("no other firewall drops what containers send, or what goes to published ports")
}

/// Whether a chain of somebody else drops what containers ask of toft's name server, which hears them on a port of its own.
fn names(chains: &[Chain], port: u16) -> Said {
    let deaf = |chain: &&Chain| chain.hook == "input" && drops(chain) && !lets_names_in(&rules_of(chain), port);
    let Some(chain) = chains.iter().find(deaf) else {
        return ok("no other firewall drops what containers ask for names");
    };
    failure(
        format!("the chain `{chain}` drops packets to this machine, also those by which containers ask for names"),
        format!("sudo nft insert rule {chain} iifname \"toft*\" meta l4proto {{ tcp, udp }} th dport {port} accept"),
    )
}

/// The rules of a chain's table: what is let through may stand in a chain that it jumps to.
fn rules_of(chain: &Chain) -> String {
    nft(&["list", "table", &chain.family, &chain.table]).unwrap_or_default()
}

/// The tables of appliances.
fn own(listing: &str) -> BTreeSet<String> {
    let listing: Value = serde_json::from_str(listing).unwrap_or_default();
    let chains = listing["nftables"].as_array().into_iter().flatten().map(|item| &item["chain"]);
    let own = chains.filter(|chain| chain["family"] == "inet").filter_map(|chain| chain["table"].as_str());
    own.filter(|table| table.starts_with("toft")).map(str::to_owned).collect()
}

/// Whether a chain drops whatever none of its rules speaks of.
fn drops(chain: &Chain) -> bool {
    let own = || nft(&["list", "chain", &chain.family, &chain.table, &chain.name]).unwrap_or_default();
    chain.closed || drops_everything(&own())
}

/// Where the rules of a running appliance lead questions for names.
fn names_port(listing: &str) -> Option<u16> {
    own(listing).iter().find_map(|table| redirected(&nft(&["list", "table", "inet", table])?))
}

fn redirected(rules: &str) -> Option<u16> {
    let line = rules.lines().find(|line| line.contains("dport 53 redirect to :"))?;
    line.rsplit(':').next()?.trim().parse().ok()
}

fn nft(arguments: &[&str]) -> Option<String> {
    let output = Command::new("nft").args(arguments).env("LC_ALL", "C").output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A chain that sees packets for this machine, or through it.
#[derive(Debug, PartialEq, Eq)]
struct Chain {
    family: String,
    table: String,
    name: String,
    hook: String,
    /// Whether it drops what no rule speaks of.
    closed: bool,
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.family, self.table, self.name)
    }
}

/// The chains of others that IPv4 packets for this machine, or through it, pass.
fn foreign(listing: &str) -> Vec<Chain> {
    let listing: Value = serde_json::from_str(listing).unwrap_or_default();
    let chains = listing["nftables"].as_array().into_iter().flatten().map(|item| &item["chain"]);
    let filters = chains.filter(|chain| matches!(chain["hook"].as_str(), Some("forward" | "input")));
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    filters
        .map(|chain| Chain {
            family: text(&chain["family"]),
            table: text(&chain["table"]),
            name: text(&chain["name"]),
            hook: text(&chain["hook"]),
            closed: chain["policy"] == "drop",
        })
        .filter(|chain| matches!(chain.family.as_str(), "ip" | "inet") && !chain.table.starts_with("toft"))
        .collect()
}

/// Whether one of these rules drops or rejects everything.
fn drops_everything(rules: &str) -> bool {
    let everything = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let verdict = words.iter().position(|word| matches!(*word, "drop" | "reject"));
        // A count stands before the verdict, nothing else.
        verdict.is_some_and(|at| words[..at].iter().all(|word| is_count(word)))
    };
    rules.lines().any(|line| everything(line.trim()))
}

fn is_count(word: &str) -> bool {
    matches!(word, "counter" | "packets" | "bytes" | "log") || word.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether its rules let through what comes from our bridges (`iifname`) or goes to them (`oifname`).
fn lets_through(rules: &str, side: &str) -> bool {
    let ours = format!("{side} \"toft");
    rules.lines().any(|line| line.contains(&ours) && line.contains("accept"))
}

/// Whether its rules let in what containers ask for names: all from our bridges, or the port of the name server.
fn lets_names_in(rules: &str, port: u16) -> bool {
    let port = port.to_string();
    rules.lines().filter(|line| line.contains("accept")).any(|line| {
        let from_ours = line.contains("iifname \"toft");
        let of_port = line.contains("dport") && line.split(|c: char| !c.is_ascii_digit()).any(|word| word == port);
        (from_ours && (of_port || !line.contains("dport"))) || (of_port && !line.contains("ifname"))
    })
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

    fn chain(table: &str, hook: &str, closed: bool) -> Chain {
        Chain { family: "ip".into(), table: table.into(), name: "c".into(), hook: hook.into(), closed }
    }

    #[test]
    fn only_foreign_chains_are_looked_at() {
        let listing = r#"{"nftables":[{"metainfo":{}},
            {"chain":{"family":"ip","table":"filter","name":"c","hook":"forward","policy":"drop"}},
            {"chain":{"family":"ip","table":"filter","name":"c","hook":"input","policy":"accept"}},
            {"chain":{"family":"inet","table":"nat","name":"c","hook":"prerouting","policy":"accept"}},
            {"chain":{"family":"ip6","table":"filter","name":"c","hook":"forward","policy":"drop"}},
            {"chain":{"family":"ip","table":"toft","name":"forward","hook":"forward","policy":"drop"}},
            {"chain":{"family":"ip","table":"filter","name":"DOCKER"}}]}"#;
        assert_eq!(foreign(listing), [chain("filter", "forward", true), chain("filter", "input", false)]);
        assert_eq!(foreign("nonsense"), []);
        let listing = r#"{"nftables":[{"chain":{"family":"inet","table":"toft-1","name":"guard"}},
            {"chain":{"family":"bridge","table":"toft-2","name":"guard"}},{"chain":{"family":"inet","table":"fw"}}]}"#;
        assert_eq!(own(listing), BTreeSet::from(["toft-1".to_owned()]));
    }

    #[test]
    fn a_rule_for_everything_is_told_from_others() {
        for rule in
            ["drop", "counter packets 12 bytes 3456 drop", "log reject with icmp port-unreachable", "counter reject"]
        {
            assert!(drops_everything(&format!("\t\t{rule}\n")), "{rule}");
        }
        for rule in [
            "ct state invalid drop",
            "tcp dport 22 reject",
            "iifname \"eth0\" counter packets 1 bytes 2 drop",
            "accept",
            "type filter hook input priority filter; policy drop;",
        ] {
            assert!(!drops_everything(&format!("\t\t{rule}\n")), "{rule}");
        }
    }

    #[test]
    fn rules_that_speak_of_our_bridges_let_through() {
        let through = |rules: &str| lets_through(rules, "iifname");
        assert!(through("iifname \"toft*\" accept\n") && through("\tiifname \"toft0\" counter accept"));
        assert!(!through("iifname \"docker0\" accept\niifname \"toft*\" drop\noifname \"toft*\" accept"));
        for rule in [
            "iifname \"toft*\" accept",
            "iifname \"toft0\" meta l4proto { tcp, udp } th dport 10053 accept",
            "udp dport { 53, 10053 } accept",
        ] {
            assert!(lets_names_in(rule, 10_053), "{rule}");
        }
        for rule in
            ["iifname \"toft0\" tcp dport 22 accept", "iifname \"eth0\" udp dport 10053 accept", "udp dport 53 accept"]
        {
            assert!(!lets_names_in(rule, 10_053), "{rule}");
        }
        let ours = "iifname \"toft0\" ip daddr 10.210.3.1 meta l4proto { tcp, udp } th dport 53 redirect to :20117\n";
        assert_eq!((redirected(ours), redirected("")), (Some(20_117), None));
    }
}
