//! `/etc/resolv.conf`: reading the machine's and writing a container's (resolv.conf(5)). Pure but for the places.

use std::net::{IpAddr, Ipv4Addr};

use toft_model::name::Name;

use super::zone::DOMAIN;

/// Where systemd-resolved keeps the list of those that it asks itself.
pub const BEHIND_RESOLVED: &str = "/run/systemd/resolve/resolv.conf";

/// Most search domains that older C libraries read.
const MAX_SEARCHED: usize = 6;
/// Most name servers that are asked.
const MAX_SERVERS: usize = 4;
/// Longest text that is read.
const MAX_BYTES: usize = 64 * 1024;

/// What such a file says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResolvConf {
    /// Name servers, the first first.
    pub servers: Vec<IpAddr>,
    /// Domains that short names are tried in.
    pub search: Vec<String>,
    /// Options, as they are written.
    pub options: Vec<String>,
}

impl ResolvConf {
    /// Reads a text. What cannot be understood is passed over, as resolvers do.
    pub fn parse(text: &str) -> Self {
        let mut read = Self::default();
        let end = text.floor_char_boundary(MAX_BYTES);
        for line in text[..end].lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    // A link-local one may carry its interface behind a `%`, which nobody can be asked by.
                    let server: Option<IpAddr> = words.next().and_then(|word| word.parse().ok());
                    if let Some(server) = server.filter(|_| read.servers.len() < MAX_SERVERS) {
                        read.servers.push(server);
                    }
                }
                // The last one counts.
                Some("search" | "domain") => {
                    read.search = words.filter(|word| is_domain(word)).map(str::to_owned).collect()
                }
                Some("options") => read.options.extend(words.map(str::to_owned)),
                _ => {}
            }
        }
        read
    }

    /// The text for a container that asks `server` and belongs to `deployment`: its own domains first, then the machine's.
    pub fn for_container(&self, server: Ipv4Addr, deployment: Option<&Name>) -> String {
        let own = deployment.map(|name| format!("{name}.{DOMAIN}")).into_iter().chain([DOMAIN.to_owned()]);
        let search: Vec<String> = own.chain(self.search.iter().cloned()).take(MAX_SEARCHED).collect();
        let mut text = format!("nameserver {server}\nsearch {}\n", search.join(" "));
        if !self.options.is_empty() {
            text += &format!("options {}\n", self.options.join(" "));
        }
        text
    }
}

/// Whether a word can stand as a domain; `.` alone says that there is none.
fn is_domain(word: &str) -> bool {
    word != "." && word.len() <= 253 && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# by hand\ndomain old.lan\nnameserver 192.168.1.1 # the router\nnameserver fe80::1%eth0\n\
        nameserver fd00::53\nsearch lan  example.org .\noptions edns0 trust-ad\nsortlist 1.2.3.4\nnameserver\n";

    #[test]
    fn what_is_written_is_read_and_the_rest_passed_over() {
        let read = ResolvConf::parse(TEXT);
        assert_eq!(read.servers, ["192.168.1.1".parse::<IpAddr>().unwrap(), "fd00::53".parse().unwrap()]);
        assert_eq!(
            (read.search.join(" "), read.options.join(" ")),
            ("lan example.org".into(), "edns0 trust-ad".into())
        );
        for hostile in ["\0\0\0", "nameserver", "search \u{7f}", "nameserver 1.2.3.4.5", &"x".repeat(1 << 20)] {
            assert_eq!(ResolvConf::parse(hostile), ResolvConf::default());
        }
        assert_eq!(ResolvConf::parse(&"nameserver 1.1.1.1\n".repeat(9)).servers.len(), MAX_SERVERS);
    }

    #[test]
    fn a_container_gets_its_own_domains_before_the_machines() {
        let gateway = Ipv4Addr::new(10, 210, 0, 1);
        let shop = "shop".parse().unwrap();
        assert_eq!(
            ResolvConf::parse(TEXT).for_container(gateway, Some(&shop)),
            "nameserver 10.210.0.1\nsearch shop.toft.internal toft.internal lan example.org\noptions edns0 trust-ad\n"
        );
        assert_eq!(ResolvConf::default().for_container(gateway, None), "nameserver 10.210.0.1\nsearch toft.internal\n");
    }
}
