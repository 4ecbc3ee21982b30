//! The packet rules of one appliance as an nftables script. Pure.
//!
//! ```text
//! table inet
//!   guard        nobody from outside speaks with a container's address, and no container reaches the host's 127.0.0.0/8
//!   prerouting   somebody speaks to a published port of this host: lead it to the container. A container that asks the
//!                gateway for names is led to where toft listens
//!   marks        what came from a container and was led to another by a published port
//!   output       published ports, when it is the host that speaks
//!   redirects    the host tells no container of a shorter way to another: there is none
//!   postrouting  containers go out under the host's address; so do those that come back to the bridge by a published
//!                port, else the answer would take a shorter way than the question
//!   forward      containers may go out; in come answers and published ports, nothing else
//!   between      containers reach each other when they share a network
//!   from_nodes   what comes through the mesh: the other nodes themselves reach containers, and their containers those
//!                with which they share a network
//! table bridge
//!   guard        a container sends with its own hardware address and its own address, or not at all
//!   forward      no frame goes straight from one container to another: only what the host routes passes `between`. The
//!                exception is what `marks` marked: a kernel with br_netfilter hands it over within the bridge
//!   postrouting  a frame for one container goes to no other, even while the bridge does not know where it belongs
//! ```
//!
//! The script replaces the tables as a whole in one transaction and names no others. It can only accept for itself: a
//! packet that another table drops stays dropped.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use toft_model::{
    instance::PublishedPort,
    node::{Subnet, Subnet6},
    workload::{NetworkName, Protocol},
};

use super::{NetworkConfig, kernel::KernelNetworkConfig, link};

/// Bit of the packet mark for what a published port leads from one container to another.
const MARK: u32 = 1 << 24;

/// The script that makes the appliance's tables be what `config` asks for. Equal configurations give equal scripts,
/// whatever the order of their ports.
pub(super) fn render(names: &KernelNetworkConfig, config: &NetworkConfig) -> String {
    let table = &names.table;
    let inet = inet(names, config);
    let bridge = bridge(config);
    format!("{}table inet {table} {{\n{inet}}}\ntable bridge {table} {{\n{bridge}}}\n", render_removal(table))
}

/// The script that removes the appliance's tables, there or not. The one of family `ip` was made by earlier versions.
pub(super) fn render_removal(table: &str) -> String {
    ["inet", "bridge", "ip"]
        .iter()
        .map(|family| format!("table {family} {table}\ndelete table {family} {table}\n"))
        .collect()
}

fn inet(names: &KernelNetworkConfig, config: &NetworkConfig) -> String {
    let KernelNetworkConfig { bridge, .. } = names;
    let subnet = config.subnet;
    let mesh = Mesh::of(names, config);
    let mut text = collection("map", "published", PUBLISHED, published(&config.ports, |to| Some(to.into())));
    let six = config.subnet6.map(|subnet6| Six { bridge, subnet, subnet6 });
    if let Some(six) = &six {
        text += &collection("map", "published6", PUBLISHED6, published(&config.ports, |to| Some(six.of(to).into())));
    }
    let mut allowed = String::new();
    for (network, members) in networks(&config.members) {
        let name = set_name(network);
        let others = mesh.members(network);
        text += &collection("set", &name, "ipv4_addr", members.iter().chain(&others).map(ToString::to_string));
        // Writing to a `String` cannot fail.
        let _ = writeln!(allowed, "        ip saddr @{name} ip daddr @{name} accept");
        if let Some(six) = &six {
            let members = members.iter().map(|to| six.of(*to));
            let others = others.iter().filter_map(|to| config.others.address6(*to));
            let members = members.chain(others).map(|to| to.to_string());
            text += &collection("set", &format!("{name}.6"), "ipv6_addr", members);
            let _ = writeln!(allowed, "        ip6 saddr @{name}.6 ip6 daddr @{name}.6 accept");
        }
    }
    let guard6 = six.as_ref().map(Six::guard).unwrap_or_default();
    let dnat6 = six.as_ref().map(Six::dnat).unwrap_or_default();
    let redirects6 = six.as_ref().map(Six::redirects).unwrap_or_default();
    let masquerade6 = six.as_ref().map(Six::masquerade).unwrap_or_default();
    let names_port = config.names_port.map_or_else(String::new, |port| {
        format!(
            "        iifname \"{bridge}\" ip daddr {} meta l4proto {{ tcp, udp }} th dport 53 redirect to :{port}\n",
            subnet.gateway()
        )
    });
    let names_guard = config.names_port.map_or_else(String::new, |port| {
        format!(
            "        iifname != {{ \"{bridge}\", \"lo\" }} ip daddr {} meta l4proto {{ tcp, udp }} th dport {port} drop\n",
            subnet.gateway()
        )
    });
    let Mesh { sets, guard: mesh_guard, unchanged, clamp, from, chain, .. } = &mesh;
    text + sets
        + &format!(
            r#"    chain guard {{
        type filter hook prerouting priority raw; policy accept;
        iifname "{bridge}" ip daddr 127.0.0.0/8 drop
        iifname != {{ "{bridge}", "lo" }} ip saddr {subnet} drop
{mesh_guard}{names_guard}{guard6}    }}
    chain prerouting {{
        type nat hook prerouting priority dstnat; policy accept;
{names_port}        fib daddr type local meta nfproto ipv4 dnat ip to meta l4proto . th dport map @published
{dnat6}    }}
    chain marks {{
        type filter hook prerouting priority dstnat + 10; policy accept;
        iifname "{bridge}" ct status dnat meta mark set meta mark | {MARK:#x}
    }}
    chain output {{
        type nat hook output priority -100; policy accept;
        fib daddr type local meta nfproto ipv4 dnat ip to meta l4proto . th dport map @published
{dnat6}    }}
    chain redirects {{
        type filter hook output priority filter; policy accept;
        oifname "{bridge}" icmp type redirect drop
{redirects6}    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        oifname "{bridge}" ip saddr 127.0.0.0/8 masquerade
        ip saddr {subnet} ip daddr {subnet} ct status dnat masquerade
{unchanged}        ip saddr {subnet} oifname != "{bridge}" masquerade
{masquerade6}    }}
    chain forward {{
        type filter hook forward priority filter; policy accept;
        iifname "{bridge}" oifname "{bridge}" jump between
{clamp}        iifname "{bridge}" accept
{from}        oifname "{bridge}" ct state established,related accept
        oifname "{bridge}" ct status dnat accept
        oifname "{bridge}" drop
    }}
    chain between {{
        ct status dnat accept
{allowed}        drop
    }}
{chain}"#
        )
}

/// What the rules say of the other nodes; all empty while there are none.
#[derive(Default)]
struct Mesh<'a> {
    networks: BTreeMap<&'a NetworkName, BTreeSet<Ipv4Addr>>,
    /// The other nodes' networks and hosts.
    sets: String,
    /// Who speaks with an address of theirs comes from them.
    guard: String,
    /// What goes to their containers keeps its sender.
    unchanged: String,
    /// TCP learns how large packets can be.
    clamp: String,
    from: String,
    chain: String,
}

impl<'a> Mesh<'a> {
    fn of(names: &KernelNetworkConfig, config: &'a NetworkConfig) -> Self {
        let nodes = &config.others.nodes;
        if nodes.is_empty() {
            return Self::default();
        }
        let KernelNetworkConfig { bridge, mesh, .. } = names;
        let subnet = config.subnet;
        let mut all = Self { networks: networks(&config.others.members), ..Self::default() };
        let six: Vec<Subnet6> = nodes.iter().filter_map(|node| node.subnet6).collect();
        let six = config.subnet6.map(|own| (own, six));
        let intervals = |of: &str| format!("{of}; flags interval");
        all.sets +=
            &collection("set", "nodes", &intervals("ipv4_addr"), nodes.iter().map(|node| node.subnet.to_string()));
        all.sets +=
            &collection("set", "hosts", "ipv4_addr", nodes.iter().map(|node| node.subnet.gateway().to_string()));
        all.guard += &format!("        iifname != \"{mesh}\" ip saddr @nodes drop\n");
        all.unchanged += &format!("        ip saddr {subnet} oifname \"{mesh}\" ip daddr @nodes accept\n");
        all.clamp += &format!(
            "        iifname \"{bridge}\" oifname \"{mesh}\" tcp flags syn tcp option maxseg size set rt mtu\n"
        );
        all.from += &format!("        iifname \"{mesh}\" oifname \"{bridge}\" jump from_nodes\n");
        let mut hosts = "        ip saddr @hosts accept\n".to_owned();
        if let Some((own, six)) = six {
            let networks = six.iter().map(ToString::to_string);
            all.sets += &collection("set", "nodes6", &intervals("ipv6_addr"), networks);
            all.sets += &collection("set", "hosts6", "ipv6_addr", six.iter().map(|node| node.gateway().to_string()));
            all.guard += &format!("        iifname != \"{mesh}\" ip6 saddr @nodes6 drop\n");
            all.unchanged += &format!("        ip6 saddr {own} oifname \"{mesh}\" ip6 daddr @nodes6 accept\n");
            hosts += "        ip6 saddr @hosts6 accept\n";
        }
        all.chain = format!(
            "    chain from_nodes {{\n        ct state related accept\n        ct direction reply return\n{hosts}        goto between\n    }}\n"
        );
        all
    }

    /// Who of a network is on other nodes.
    fn members(&self, network: &NetworkName) -> BTreeSet<Ipv4Addr> {
        self.networks.get(network).cloned().unwrap_or_default()
    }
}

fn bridge(config: &NetworkConfig) -> String {
    let ours = interfaces(config.subnet);
    let places = config.members.keys().map(|address| {
        let (name, hardware) = (link::outside(*address), link::hardware_address(*address));
        (format!("\"{name}\" . {}", written(&hardware)), *address)
    });
    let places: Vec<(String, Ipv4Addr)> = places.collect();
    let mut text = collection("set", "links", "ifname . ether_addr", places.iter().map(|(link, _)| link.clone()));
    let with_address = places.iter().map(|(link, address)| format!("{link} . {address}"));
    text += &collection("set", "addresses", "ifname . ether_addr . ipv4_addr", with_address);
    let six = config.subnet6.map(|subnet6| {
        let with_address =
            places.iter().map(|(link, address)| format!("{link} . {}", subnet6.address(config.subnet, *address)));
        text += &collection("set", "addresses6", "ifname . ether_addr . ipv6_addr", with_address);
        // What finds neighbours goes no further than the bridge, and a container is no router.
        format!(
            r#"        icmpv6 type {{ nd-router-advert, nd-redirect }} drop
        iifname . ether saddr . ip6 saddr @addresses6 accept
        ip6 saddr {{ ::/128, fe80::/10 }} ip6 daddr {{ {}, fe80::/10, ff02::/16 }} iifname . ether saddr @links accept
"#,
            subnet6.gateway()
        )
    });
    let six = six.unwrap_or_default();
    text + &format!(
        r#"    chain guard {{
        type filter hook prerouting priority -300; policy accept;
        iifname "{ours}" jump container
    }}
    chain container {{
        iifname . ether saddr . ip saddr @addresses accept
        iifname . ether saddr . arp saddr ip @addresses iifname . arp saddr ether . arp saddr ip @addresses accept
{six}        drop
    }}
    chain forward {{
        type filter hook forward priority -200; policy accept;
        iifname "{ours}" meta mark & {MARK:#x} == 0 drop
    }}
    chain postrouting {{
        type filter hook postrouting priority 0; policy accept;
        oifname "{ours}" ether daddr & 01:00:00:00:00:00 == 00:00:00:00:00:00 oifname . ether daddr != @links drop
    }}
"#
    )
}

/// Type of the map of published ports.
const PUBLISHED: &str = "inet_proto . inet_service : ipv4_addr . inet_service";

const PUBLISHED6: &str = "inet_proto . inet_service : ipv6_addr . inet_service";

/// What the same rules say for IPv6.
struct Six<'a> {
    bridge: &'a str,
    subnet: Subnet,
    subnet6: Subnet6,
}

impl Six<'_> {
    fn of(&self, address: Ipv4Addr) -> Ipv6Addr {
        self.subnet6.address(self.subnet, address)
    }

    fn guard(&self) -> String {
        format!("        iifname != {{ \"{}\", \"lo\" }} ip6 saddr {} drop\n", self.bridge, self.subnet6)
    }

    /// Not for `::1`: the kernel lets no packet with that sender leave, and nobody could answer it.
    fn dnat(&self) -> String {
        "        fib daddr type local ip6 daddr != ::1 dnat ip6 to meta l4proto . th dport map @published6\n".to_owned()
    }

    fn redirects(&self) -> String {
        format!("        oifname \"{}\" icmpv6 type nd-redirect drop\n", self.bridge)
    }

    fn masquerade(&self) -> String {
        let (bridge, subnet) = (self.bridge, self.subnet6);
        format!(
            "        ip6 saddr {subnet} ip6 daddr {subnet} ct status dnat masquerade\n        ip6 saddr {subnet} oifname != \"{bridge}\" masquerade\n"
        )
    }
}

/// A set or a map with what is in it.
fn collection(what: &str, name: &str, of: &str, elements: impl Iterator<Item = String>) -> String {
    let elements: Vec<String> = elements.collect();
    let mut text = format!("    {what} {name} {{\n        type {of}\n");
    if !elements.is_empty() {
        let _ = write!(text, "        elements = {{\n            {}\n        }}\n", elements.join(",\n            "));
    }
    text + "    }\n"
}

/// What fills the map of published ports.
fn published(
    ports: &[(PublishedPort, Ipv4Addr)],
    at: impl Fn(Ipv4Addr) -> Option<IpAddr>,
) -> impl Iterator<Item = String> {
    let sorted: BTreeSet<_> = ports.iter().map(|(port, to)| (port.protocol, port.host, *to, port.container)).collect();
    let elements: Vec<String> = sorted
        .into_iter()
        .filter_map(|(protocol, host, to, container)| Some(format!("{protocol} . {host} : {} . {container}", at(to)?)))
        .collect();
    elements.into_iter()
}

/// Who is in which network.
fn networks(members: &BTreeMap<Ipv4Addr, BTreeSet<NetworkName>>) -> BTreeMap<&NetworkName, BTreeSet<Ipv4Addr>> {
    let mut networks: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for (address, names) in members {
        for name in names {
            networks.entry(name).or_default().insert(*address);
        }
    }
    networks
}

/// Name of a network's set; a workload's and a network's names are words that `nft` takes.
fn set_name(network: &NetworkName) -> String {
    match network {
        NetworkName::Deployment(name) => format!("deployment_{name}"),
        NetworkName::Shared(name) => format!("shared_{name}"),
    }
}

/// The outer interfaces of all containers in `subnet`, and no others.
fn interfaces(subnet: Subnet) -> String {
    let name = link::outside(subnet.base);
    let digits = usize::from(subnet.prefix / 4);
    format!("{}*", &name[..name.len() - 8 + digits])
}

fn written(hardware: &[u8]) -> String {
    hardware.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

/// The UDP ports among `ports` with where each leads.
pub(super) fn udp(ports: &[(PublishedPort, Ipv4Addr)]) -> BTreeSet<(u16, Ipv4Addr, u16)> {
    ports
        .iter()
        .filter(|(port, _)| port.protocol == Protocol::Udp)
        .map(|(port, to)| (port.host, *to, port.container))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{
        super::{OtherNode, Others},
        *,
    };

    fn names() -> KernelNetworkConfig {
        KernelNetworkConfig { bridge: "toft0".to_owned(), table: "toft".to_owned(), mesh: "toft-wg".to_owned() }
    }

    fn config(ports: &[(u16, u16, Protocol, &str)]) -> NetworkConfig {
        let ports = ports
            .iter()
            .map(|&(host, container, protocol, to)| (PublishedPort { host, container, protocol }, to.parse().unwrap()))
            .collect();
        NetworkConfig { ports, ..NetworkConfig::new("10.210.3.0/24".parse().unwrap()) }
    }

    #[test]
    fn the_whole_is_known() {
        let mut config = config(&[(8080, 80, Protocol::Tcp, "10.210.3.2"), (53, 5353, Protocol::Udp, "10.210.3.3")]);
        let shop = NetworkName::Deployment("shop".parse().unwrap());
        let lan = NetworkName::Shared("my-lan".parse().unwrap());
        config.members.insert("10.210.3.2".parse().unwrap(), BTreeSet::from([shop.clone(), lan]));
        config.members.insert("10.210.3.3".parse().unwrap(), BTreeSet::from([shop]));
        config.names_port = Some(10_053);
        insta::assert_snapshot!(render(&names(), &config));
    }

    #[test]
    fn the_same_holds_for_ipv6() {
        let mut config = config(&[(8080, 80, Protocol::Tcp, "10.210.3.2")]);
        config.subnet6 = Some("fd23:4567:89ab:d203::/64".parse().unwrap());
        let lan = NetworkName::Shared("lan".parse().unwrap());
        config.members.insert("10.210.3.2".parse().unwrap(), BTreeSet::from([lan]));
        insta::assert_snapshot!(render(&names(), &config));
    }

    #[test]
    fn other_nodes_are_in_it() {
        let mut config = config(&[(8080, 80, Protocol::Tcp, "10.210.3.2")]);
        config.subnet6 = Some("fd23:4567:89ab:d203::/64".parse().unwrap());
        let (lan, other) = (NetworkName::Shared("lan".parse().unwrap()), NetworkName::Shared("other".parse().unwrap()));
        config.members.insert("10.210.3.2".parse().unwrap(), BTreeSet::from([lan.clone()]));
        let node = |third: u8| OtherNode {
            subnet: format!("10.210.{third}.0/24").parse().unwrap(),
            subnet6: Some(format!("fd23:4567:89ab:d2{third:02x}::/64").parse().unwrap()),
        };
        let members = [("10.210.4.9", lan), ("10.210.5.9", other)];
        let members = members.map(|(address, network)| (address.parse().unwrap(), BTreeSet::from([network])));
        let config = config.beside(&Others { nodes: vec![node(4), node(5)], members: members.into() });
        insta::assert_snapshot!(render(&names(), &config));
    }

    #[test]
    fn order_and_repetition_of_ports_do_not_matter() {
        let (a, b) = ((80, 80, Protocol::Tcp, "10.210.3.2"), (443, 443, Protocol::Tcp, "10.210.3.2"));
        assert_eq!(render(&names(), &config(&[a, b, a])), render(&names(), &config(&[b, a])));
    }

    #[test]
    fn nothing_leaves_empty_collections() {
        let script = render(&names(), &config(&[]));
        assert!(script.contains("map published") && !script.contains("elements"), "{script}");
    }

    #[test]
    fn interfaces_of_a_subnet_are_told_from_others() {
        let check = |subnet: &str, want: &str| assert_eq!(interfaces(subnet.parse().unwrap()), want);
        check("10.210.3.0/24", "toft0ad203*");
        check("10.210.0.0/16", "toft0ad2*");
        check("10.210.3.128/26", "toft0ad203*");
    }

    #[test]
    fn udp_ports_are_told_apart() {
        let config = config(&[(53, 53, Protocol::Udp, "10.210.3.2"), (53, 53, Protocol::Tcp, "10.210.3.2")]);
        assert_eq!(udp(&config.ports), BTreeSet::from([(53, Ipv4Addr::new(10, 210, 3, 2), 53)]));
    }
}
