//! The packet rules of one appliance as an nftables script. Pure.
//!
//! ```text
//! guard        a container must not reach what listens on the host's 127.0.0.0/8
//! prerouting   somebody speaks to a published port of this host: lead it to the container
//! output       the same, when it is the host that speaks
//! postrouting  containers go out under the host's address; so do those that come back to the bridge by a published
//!              port, else the answer would take a shorter way than the question
//! forward      containers may go out; in come answers and published ports, nothing else
//! ```
//!
//! The script replaces the table as a whole in one transaction and names no other table. It can only accept for
//! itself: a packet that another table drops stays dropped.

use std::{collections::BTreeSet, fmt::Write, net::Ipv4Addr};

use toft_model::{instance::PublishedPort, workload::Protocol};

use super::{NetworkConfig, kernel::KernelNetworkConfig};

/// The script that makes the appliance's table be what `config` asks for. Equal configurations give equal scripts,
/// whatever the order of their ports.
pub(super) fn render(names: &KernelNetworkConfig, config: &NetworkConfig) -> String {
    let KernelNetworkConfig { bridge, table } = names;
    let subnet = config.subnet;
    let elements = elements(&config.ports);
    format!(
        r#"table ip {table}
delete table ip {table}
table ip {table} {{
    map published {{
        type inet_proto . inet_service : ipv4_addr . inet_service
{elements}    }}
    chain guard {{
        type filter hook prerouting priority raw; policy accept;
        iifname "{bridge}" ip daddr 127.0.0.0/8 drop
    }}
    chain prerouting {{
        type nat hook prerouting priority dstnat; policy accept;
        fib daddr type local dnat ip to meta l4proto . th dport map @published
    }}
    chain output {{
        type nat hook output priority -100; policy accept;
        fib daddr type local dnat ip to meta l4proto . th dport map @published
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        oifname "{bridge}" ip saddr 127.0.0.0/8 masquerade
        ip saddr {subnet} ip daddr {subnet} ct status dnat masquerade
        ip saddr {subnet} oifname != "{bridge}" masquerade
    }}
    chain forward {{
        type filter hook forward priority filter; policy accept;
        iifname "{bridge}" accept
        oifname "{bridge}" ct state established,related accept
        oifname "{bridge}" ct status dnat accept
        oifname "{bridge}" drop
    }}
}}
"#
    )
}

/// The script that removes the appliance's table, there or not.
pub(super) fn render_removal(table: &str) -> String {
    format!("table ip {table}\ndelete table ip {table}\n")
}

/// The lines that fill the map of published ports.
fn elements(ports: &[(PublishedPort, Ipv4Addr)]) -> String {
    let sorted: BTreeSet<_> = ports.iter().map(|(port, to)| (port.protocol, port.host, *to, port.container)).collect();
    let mut lines = String::new();
    for (protocol, host, to, container) in sorted {
        let start = if lines.is_empty() { "        elements = {\n" } else { ",\n" };
        // Writing to a `String` cannot fail.
        let _ = write!(lines, "{start}            {protocol} . {host} : {to} . {container}");
    }
    if !lines.is_empty() {
        lines.push_str("\n        }\n");
    }
    lines
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
    use super::*;

    fn names() -> KernelNetworkConfig {
        KernelNetworkConfig { bridge: "toft0".to_owned(), table: "toft".to_owned() }
    }

    fn config(ports: &[(u16, u16, Protocol, &str)]) -> NetworkConfig {
        let ports = ports
            .iter()
            .map(|&(host, container, protocol, to)| (PublishedPort { host, container, protocol }, to.parse().unwrap()))
            .collect();
        NetworkConfig { subnet: "10.210.3.0/24".parse().unwrap(), ports }
    }

    #[test]
    fn published_ports_become_elements_of_one_map() {
        let script = render(
            &names(),
            &config(&[(8080, 80, Protocol::Tcp, "10.210.3.2"), (53, 5353, Protocol::Udp, "10.210.3.3")]),
        );
        insta::assert_snapshot!(script, @r#"
        table ip toft
        delete table ip toft
        table ip toft {
            map published {
                type inet_proto . inet_service : ipv4_addr . inet_service
                elements = {
                    tcp . 8080 : 10.210.3.2 . 80,
                    udp . 53 : 10.210.3.3 . 5353
                }
            }
            chain guard {
                type filter hook prerouting priority raw; policy accept;
                iifname "toft0" ip daddr 127.0.0.0/8 drop
            }
            chain prerouting {
                type nat hook prerouting priority dstnat; policy accept;
                fib daddr type local dnat ip to meta l4proto . th dport map @published
            }
            chain output {
                type nat hook output priority -100; policy accept;
                fib daddr type local dnat ip to meta l4proto . th dport map @published
            }
            chain postrouting {
                type nat hook postrouting priority srcnat; policy accept;
                oifname "toft0" ip saddr 127.0.0.0/8 masquerade
                ip saddr 10.210.3.0/24 ip daddr 10.210.3.0/24 ct status dnat masquerade
                ip saddr 10.210.3.0/24 oifname != "toft0" masquerade
            }
            chain forward {
                type filter hook forward priority filter; policy accept;
                iifname "toft0" accept
                oifname "toft0" ct state established,related accept
                oifname "toft0" ct status dnat accept
                oifname "toft0" drop
            }
        }
        "#);
    }

    #[test]
    fn order_and_repetition_of_ports_do_not_matter() {
        let (a, b) = ((80, 80, Protocol::Tcp, "10.210.3.2"), (443, 443, Protocol::Tcp, "10.210.3.2"));
        assert_eq!(render(&names(), &config(&[a, b, a])), render(&names(), &config(&[b, a])));
    }

    #[test]
    fn no_ports_leave_an_empty_map() {
        let script = render(&names(), &config(&[]));
        assert!(script.contains("map published") && !script.contains("elements"), "{script}");
    }

    #[test]
    fn udp_ports_are_told_apart() {
        let config = config(&[(53, 53, Protocol::Udp, "10.210.3.2"), (53, 53, Protocol::Tcp, "10.210.3.2")]);
        assert_eq!(udp(&config.ports), BTreeSet::from([(53, Ipv4Addr::new(10, 210, 3, 2), 53)]));
    }
}
