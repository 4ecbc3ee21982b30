//! The names of workloads and instances, as each container may see them. Pure.
//!
//! `WORKLOAD.toft.internal` leads to the instances of a workload that serve, and `WORKLOAD-N.toft.internal` to one of
//! them. Within a deployment a workload is also called by its service's name, which is its own without the deployment's
//! name and a hyphen before it: `shop-web` and `web` of deployment `shop` are both `web.shop.toft.internal`.
//!
//! A name of somebody who shares no network with the asker does not exist for the asker.

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use toft_model::{
    node::{Subnet, Subnet6},
    state::{NamedInstance, NamedWorkload},
    workload::NetworkName,
};

/// Domain of all names here.
pub const DOMAIN: &str = "toft.internal";

type Networks = Arc<BTreeSet<NetworkName>>;

/// What a name asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Addresses of IPv4, IPv6 or both.
    Addresses {
        /// IPv4.
        v4: bool,
        /// IPv6.
        v6: bool,
    },
    /// Something that no name here has.
    Other,
}

/// What is known of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found<T> {
    /// These, at least one.
    Some(Vec<T>),
    /// The name exists and has nothing of the kind, or nothing now.
    Nothing,
    /// There is no such name.
    NoName,
}

/// All names, at one moment.
#[derive(Debug, Default)]
pub struct Zone {
    askers: HashMap<Ipv4Addr, Networks>,
    names: HashMap<String, Bearers>,
    addresses: HashMap<IpAddr, (String, Networks)>,
    turn: AtomicUsize,
}

/// Who bears a name: as long as a workload does, no instance is found by it.
#[derive(Debug, Default)]
struct Bearers {
    workloads: Vec<Bearer>,
    instances: Vec<Bearer>,
}

#[derive(Debug)]
struct Bearer {
    networks: Networks,
    targets: Vec<Target>,
}

#[derive(Debug, Clone)]
struct Target {
    v4: Ipv4Addr,
    v6: Option<Ipv6Addr>,
    networks: Networks,
    serves: bool,
}

impl Zone {
    /// The zone of a node with these workloads.
    pub fn new(workloads: &[NamedWorkload]) -> Self {
        let mut zone = Self::default();
        for workload in workloads {
            let networks = Arc::new(workload.networks.clone());
            let target = |instance: &NamedInstance| Target {
                v4: instance.address,
                v6: instance.address6,
                networks: Arc::new(instance.networks.clone()),
                serves: instance.serves,
            };
            let targets: Vec<Target> = workload.instances.iter().map(target).collect();
            let mut names = vec![workload.name.to_string()];
            if let Some(deployment) = &workload.deployment {
                names.push(format!("{}.{deployment}", service(workload)));
                let within = Bearer { networks: Arc::clone(&networks), targets: Vec::new() };
                zone.bearers(deployment.to_string()).instances.push(within);
            }
            for name in &names {
                let (stem, within) = name.split_once('.').map_or((name.as_str(), None), |(s, w)| (s, Some(w)));
                for (instance, target) in workload.instances.iter().zip(&targets) {
                    let label = format!("{stem}-{}", instance.ordinal);
                    let name = within.map_or_else(|| label.clone(), |within| format!("{label}.{within}"));
                    let bearer = Bearer { networks: Arc::clone(&target.networks), targets: vec![target.clone()] };
                    zone.bearers(name).instances.push(bearer);
                }
                let bearer = Bearer { networks: Arc::clone(&networks), targets: targets.clone() };
                zone.bearers(name.clone()).workloads.push(bearer);
            }
            for (instance, target) in workload.instances.iter().zip(&targets) {
                let name = format!("{}-{}", workload.name, instance.ordinal);
                for address in [Some(target.v4.into()), target.v6.map(IpAddr::from)].into_iter().flatten() {
                    zone.addresses.insert(address, (name.clone(), Arc::clone(&target.networks)));
                }
                zone.askers.insert(target.v4, Arc::clone(&target.networks));
            }
        }
        zone
    }

    fn bearers(&mut self, name: String) -> &mut Bearers {
        self.names.entry(name).or_default()
    }

    /// Whether a container has this address.
    pub fn knows(&self, asker: Ipv4Addr) -> bool {
        self.askers.contains_key(&asker)
    }

    /// What a name below [`DOMAIN`] leads to, for whoever has the address `asker`. The order changes from call to call.
    pub fn find(&self, asker: Ipv4Addr, name: &str, wanted: Wanted) -> Found<IpAddr> {
        let (Some(asker), Some(bearers)) = (self.askers.get(&asker), self.names.get(name)) else {
            return Found::NoName;
        };
        let mut seen = reachable(&bearers.workloads, asker).peekable();
        let targets: Vec<&Target> = if seen.peek().is_some() {
            seen.flat_map(|bearer| &bearer.targets).collect()
        } else {
            let mut seen = reachable(&bearers.instances, asker).peekable();
            if seen.peek().is_none() {
                return Found::NoName;
            }
            seen.flat_map(|bearer| &bearer.targets).collect()
        };
        let Wanted::Addresses { v4, v6 } = wanted else { return Found::Nothing };
        let mut addresses: Vec<IpAddr> = Vec::new();
        for target in targets.into_iter().filter(|target| target.serves && share(&target.networks, asker)) {
            addresses.extend(v4.then_some(IpAddr::V4(target.v4)));
            addresses.extend(target.v6.filter(|_| v6).map(IpAddr::V6));
        }
        if addresses.is_empty() {
            return Found::Nothing;
        }
        let count = addresses.len();
        addresses.rotate_left(self.turn.fetch_add(1, Ordering::Relaxed) % count);
        Found::Some(addresses)
    }

    /// The name of the instance with an address, below [`DOMAIN`], if `asker` may reach it.
    pub fn name_of(&self, asker: Ipv4Addr, address: IpAddr) -> Option<&str> {
        let (name, networks) = self.addresses.get(&address)?;
        share(networks, self.askers.get(&asker)?).then_some(name)
    }
}

/// What a workload is called within its deployment.
fn service(workload: &NamedWorkload) -> &str {
    let name = workload.name.as_str();
    let short = workload.deployment.as_ref().and_then(|deployment| {
        name.strip_prefix(deployment.as_str()).and_then(|rest| rest.strip_prefix('-')).filter(|rest| !rest.is_empty())
    });
    short.unwrap_or(name)
}

fn reachable<'a>(bearers: &'a [Bearer], asker: &'a Networks) -> impl Iterator<Item = &'a Bearer> {
    bearers.iter().filter(|bearer| share(&bearer.networks, asker))
}

fn share(some: &Networks, others: &Networks) -> bool {
    !some.is_disjoint(others)
}

/// Addresses whose names are told here or nowhere: the cluster's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnAddresses {
    /// The cluster's range.
    pub range: Subnet,
    /// One of its IPv6 networks, if it has them.
    pub six: Option<Subnet6>,
}

impl OwnAddresses {
    /// Whether all addresses that begin with `prefix_bits` of `address` are the cluster's.
    pub fn hold(&self, address: IpAddr, prefix_bits: u8) -> bool {
        match address {
            IpAddr::V4(address) => prefix_bits >= self.range.prefix && self.range.contains(address),
            IpAddr::V6(address) => {
                prefix_bits >= Subnet6::CLUSTER_PREFIX && self.six.is_some_and(|six| six.is_of_cluster(address))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: Wanted = Wanted::Addresses { v4: true, v6: true };
    const V4: Wanted = Wanted::Addresses { v4: true, v6: false };

    fn networks(deployment: Option<&str>, named: &[&str]) -> BTreeSet<NetworkName> {
        let deployment = deployment.map(|name| name.parse().unwrap());
        NetworkName::of(deployment.as_ref(), &named.iter().map(|name| name.parse().unwrap()).collect())
    }

    fn address(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 210, 0, last)
    }

    /// A workload with one instance for each address; those above 100 do not serve.
    fn workload(name: &str, deployment: Option<&str>, named: &[&str], lasts: &[u8]) -> NamedWorkload {
        let networks = networks(deployment, named);
        let instance = |(ordinal, last): (usize, &u8)| NamedInstance {
            node_id: toft_model::ids::NodeId(uuid::Uuid::nil()),
            ordinal: ordinal as u32,
            address: address(*last),
            address6: None,
            networks: networks.clone(),
            serves: *last <= 100,
        };
        NamedWorkload {
            name: name.parse().unwrap(),
            deployment: deployment.map(|name| name.parse().unwrap()),
            instances: lasts.iter().enumerate().map(instance).collect(),
            networks: networks.clone(),
        }
    }

    fn zone(workloads: &[NamedWorkload]) -> Zone {
        Zone::new(workloads)
    }

    fn seen(zone: &Zone, asker: u8, name: &str) -> String {
        match zone.find(address(asker), name, BOTH) {
            Found::Some(mut addresses) => {
                addresses.sort();
                addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ").replace("10.210.0.", "")
            }
            Found::Nothing => "nothing".into(),
            Found::NoName => "no name".into(),
        }
    }

    #[test]
    fn names_lead_to_what_serves_and_can_be_reached() {
        let zone = zone(&[
            workload("shop-web", Some("shop"), &[], &[2, 3, 103]),
            workload("db", Some("shop"), &["backup"], &[4]),
            workload("shop", Some("blog"), &[], &[5]),
            workload("vault", None, &["backup"], &[6]),
            workload("plain", None, &[], &[7]),
            workload("idle", None, &[], &[]),
        ]);
        let check = |asker: u8, name: &str, want: &str| assert_eq!(seen(&zone, asker, name), want, "{asker} {name}");
        check(4, "shop-web", "2 3");
        check(4, "web.shop", "2 3");
        check(4, "shop-web.shop", "no name");
        check(4, "shop-web-1", "3");
        check(4, "web-1.shop", "3");
        check(4, "web-2.shop", "nothing");
        check(4, "web-3.shop", "no name");
        check(4, "db.shop", "4");
        check(4, "shop", "nothing");
        check(4, "plain", "no name");
        check(6, "db", "4");
        check(6, "db.shop", "4");
        check(6, "shop-web", "no name");
        check(5, "shop", "5");
        check(5, "shop.blog", "5");
        check(7, "plain", "7");
        check(7, "idle", "nothing");
        check(7, "idle-0", "no name");
        check(8, "plain", "no name");
        check(7, "", "no name");
    }

    #[test]
    fn a_workload_called_like_an_instance_goes_first_for_those_who_reach_it() {
        let zone = zone(&[
            workload("web", None, &["lan", "dmz"], &[2]),
            workload("web-0", None, &["lan"], &[3]),
            workload("asker", None, &["dmz"], &[4]),
        ]);
        assert_eq!(seen(&zone, 2, "web-0"), "3");
        assert_eq!(seen(&zone, 4, "web-0"), "2", "what cannot be reached hides nothing");
    }

    #[test]
    fn the_order_changes_and_every_one_comes_first() {
        let zone = zone(&[workload("web", None, &[], &[2, 3, 4])]);
        let mut first = BTreeSet::new();
        for _ in 0..3 {
            let Found::Some(addresses) = zone.find(address(2), "web", V4) else { panic!("no addresses") };
            assert_eq!(addresses.len(), 3);
            first.insert(addresses[0]);
        }
        assert_eq!(first.len(), 3);
    }

    #[test]
    fn kinds_of_addresses_are_told_apart() {
        let mut web = workload("web", None, &[], &[2]);
        web.instances[0].address6 = Some("fd00::2".parse().unwrap());
        let with = zone(&[web]);
        let only_v6 = Wanted::Addresses { v4: false, v6: true };
        assert_eq!(with.find(address(2), "web", only_v6), Found::Some(vec!["fd00::2".parse().unwrap()]));
        assert_eq!(with.find(address(2), "web", Wanted::Other), Found::Nothing);
        assert_eq!(with.name_of(address(2), "fd00::2".parse().unwrap()), Some("web-0"));
        let without = zone(&[workload("web", None, &[], &[2])]);
        assert_eq!(without.find(address(2), "web", only_v6), Found::Nothing);
    }

    #[test]
    fn addresses_have_names_for_those_who_reach_them() {
        let zone = zone(&[workload("web", None, &[], &[2]), workload("db", Some("shop"), &[], &[3])]);
        assert_eq!(zone.name_of(address(2), address(2).into()), Some("web-0"));
        assert_eq!(zone.name_of(address(2), address(3).into()), None);
        assert_eq!(zone.name_of(address(9), address(2).into()), None);
        let six = "fd00:0:0:3::/64".parse().ok();
        let own = OwnAddresses { range: "10.210.0.0/16".parse().unwrap(), six };
        assert!(own.hold("fd00::4:0:0:0:1".parse().unwrap(), 128) && !own.hold("fd00::".parse().unwrap(), 8));
        assert!(own.hold(address(3).into(), 32) && own.hold(address(0).into(), 24));
        assert!(!own.hold("10.0.0.0".parse().unwrap(), 8) && !own.hold("10.211.0.1".parse().unwrap(), 32));
    }
}
