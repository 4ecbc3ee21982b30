//! Whether packets of containers get through this machine.

use std::{collections::BTreeSet, fmt, fs, net::Ipv4Addr, process::Command};

use nix::ifaddrs::getifaddrs;
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
            let bridges = bridges();
            checks.push(firewall(&chains, &bridges).of("network", "firewall"));
            checks.push(names(&chains, port, &bridges).of("network", "firewall for names"));
        }
        Err(why) => checks.extend(["firewall", "firewall for names"].map(|name| skipped(why).of("network", name))),
    }
    checks
}

/// Whether toft has made a network for containers.
fn has_bridge(interfaces: &str) -> bool {
    interfaces.lines().any(|line| line.trim_start().starts_with("toft"))
}

/// The addresses of our bridges, which are in their containers' networks.
fn bridges() -> Vec<Ipv4Addr> {
    let all = getifaddrs().into_iter().flatten().filter(|one| one.interface_name.starts_with("toft"));
    all.filter_map(|one| Some(one.address?.as_sockaddr_in()?.ip())).collect()
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
fn firewall(chains: &[Chain], bridges: &[Ipv4Addr]) -> Said {
    for chain in chains.iter().filter(|chain| chain.hook == "forward" && drops(chain)) {
        let rules = rules_of(chain);
        let (from, to) = (lets_through(&rules, Side::From, bridges), lets_through(&rules, Side::To, bridges));
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
fn names(chains: &[Chain], port: u16, bridges: &[Ipv4Addr]) -> Said {
    let deaf =
        |chain: &&Chain| chain.hook == "input" && drops(chain) && !lets_names_in(&rules_of(chain), port, bridges);
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

/// What comes from our bridges, or goes to them.
#[derive(Clone, Copy)]
enum Side {
    From,
    To,
}

/// Whether a rule is for what is on this side of our bridges: by their names, or by a range that holds their addresses.
fn is_ours(line: &str, side: Side, bridges: &[Ipv4Addr]) -> bool {
    let (interface, address) = match side {
        Side::From => ("iifname \"toft", "ip saddr "),
        Side::To => ("oifname \"toft", "ip daddr "),
    };
    line.contains(interface) || line.split_once(address).is_some_and(|(_, ranges)| covers(ranges, bridges))
}

/// Whether a range, or a set of them in braces, at the beginning of `text` holds all of these.
fn covers(text: &str, addresses: &[Ipv4Addr]) -> bool {
    let ranges = match text.strip_prefix('{') {
        Some(set) => set.split('}').next().unwrap_or_default(),
        None => text.split(' ').next().unwrap_or_default(),
    };
    let holds = |range: &str, address: Ipv4Addr| {
        let (base, bits) = range.split_once('/').unwrap_or((range, "32"));
        let (Ok(base), Ok(bits @ 0..=32)) = (base.parse::<Ipv4Addr>(), bits.parse::<u32>()) else { return false };
        (base.to_bits() ^ address.to_bits()).checked_shr(32 - bits).unwrap_or(0) == 0
    };
    !addresses.is_empty()
        && addresses.iter().all(|address| ranges.split(',').any(|range| holds(range.trim(), *address)))
}

/// Whether its rules let through what is on this side.
fn lets_through(rules: &str, side: Side, bridges: &[Ipv4Addr]) -> bool {
    rules.lines().any(|line| line.contains("accept") && is_ours(line, side, bridges))
}

/// Whether its rules let in what containers ask for names: all from our bridges, or the port of the name server.
fn lets_names_in(rules: &str, port: u16, bridges: &[Ipv4Addr]) -> bool {
    let port = port.to_string();
    rules.lines().filter(|line| line.contains("accept")).any(|line| {
        let from_ours = is_ours(line, Side::From, bridges);
        let of_port = line.contains("dport") && line.split(|c: char| !c.is_ascii_digit()).any(|word| word == port);
        (from_ours && (of_port || !line.contains("dport")))
            || (of_port && !line.contains("ifname") && !line.contains("addr "))
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
        let bridge = ["10.210.3.1".parse().unwrap()];
        let through = |rules: &str| lets_through(rules, Side::From, &bridge);
        assert!(through("iifname \"toft*\" accept\n") && through("\tiifname \"toft0\" counter accept"));
        assert!(!through("iifname \"docker0\" accept\niifname \"toft*\" drop\noifname \"toft*\" accept"));
        for range in ["10.210.3.0/24", "10.0.0.0/8", "0.0.0.0/0", "{ 192.168.0.0/16, 10.210.0.0/16 }", "10.210.3.1"] {
            assert!(through(&format!("ip saddr {range} counter packets 0 bytes 0 accept")), "{range}");
            assert!(lets_through(&format!("ip daddr {range} accept"), Side::To, &bridge), "{range}");
            assert!(!through(&format!("ip daddr {range} accept")), "{range}");
        }
        for range in ["10.210.4.0/24", "{ 10.210.4.0/24 }", "10.210.3.0/33", "x", "@allowed", ""] {
            assert!(!through(&format!("ip saddr {range} accept")), "{range}");
        }
        assert!(!lets_through("ip saddr 0.0.0.0/0 accept", Side::From, &[]));
        for rule in [
            "iifname \"toft*\" accept",
            "ip saddr 10.0.0.0/8 accept",
            "iifname \"toft0\" meta l4proto { tcp, udp } th dport 10053 accept",
            "udp dport { 53, 10053 } accept",
        ] {
            assert!(lets_names_in(rule, 10_053, &bridge), "{rule}");
        }
        for rule in [
            "iifname \"toft0\" tcp dport 22 accept",
            "iifname \"eth0\" udp dport 10053 accept",
            "udp dport 53 accept",
            "ip saddr 10.9.0.0/16 udp dport 10053 accept",
        ] {
            assert!(!lets_names_in(rule, 10_053, &bridge), "{rule}");
        }
        let ours = "iifname \"toft0\" ip daddr 10.210.3.1 meta l4proto { tcp, udp } th dport 53 redirect to :20117\n";
        assert_eq!((redirected(ours), redirected("")), (Some(20_117), None));
    }
}
