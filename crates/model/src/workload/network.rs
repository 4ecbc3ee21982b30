//! Which networks a workload's instances are in: those that share one reach each other.

use std::{collections::BTreeSet, fmt};

use serde::{Deserialize, Serialize};

use crate::{invalid::Invalid, name::Name};

/// A network in which instances reach each other.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkName {
    /// The one that all workloads of a deployment have of their own.
    Deployment(Name),
    /// One that workloads name.
    Shared(Name),
}

impl NetworkName {
    /// Most networks that a workload can name.
    pub const MAX_NAMED: usize = 16;
    /// The network of workloads that belong to no deployment and name none.
    const DEFAULT: &str = "default";
    /// Words that say on the command line which kind of network a container has at all.
    const KINDS: [&str; 3] = ["bridge", "host", "none"];

    /// The networks of a workload of that deployment that names those networks.
    pub fn of(deployment: Option<&Name>, networks: &BTreeSet<Name>) -> BTreeSet<Self> {
        let mut all: BTreeSet<Self> = networks.iter().cloned().map(Self::Shared).collect();
        all.extend(deployment.cloned().map(Self::Deployment));
        if all.is_empty() {
            all.insert(Self::Shared(Name::nearest(Self::DEFAULT, Self::DEFAULT)));
        }
        all
    }

    /// Checks the names that a workload gives.
    pub(super) fn validate(networks: &BTreeSet<Name>) -> Result<(), Invalid> {
        if networks.len() > Self::MAX_NAMED {
            let message = format!("{} networks are more than {}", networks.len(), Self::MAX_NAMED);
            return Err(Invalid::value(message, "name fewer networks"));
        }
        match networks.iter().find(|name| Self::KINDS.contains(&name.as_str())) {
            Some(name) => Err(Invalid::value(
                format!("no network can be called `{name}`"),
                "use another name; `network` says which kind of network it is",
            )),
            None => Ok(()),
        }
    }
}

impl fmt::Display for NetworkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Deployment(name) => write!(f, "{name} (deployment)"),
            Self::Shared(name) => write!(f, "{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_is_in_the_networks_it_names_and_in_that_of_its_deployment() {
        let check = |deployment: Option<&str>, networks: &[&str], want: &[&str]| {
            let deployment = deployment.map(|name| name.parse().unwrap());
            let networks = networks.iter().map(|name| name.parse().unwrap()).collect();
            let of: Vec<String> =
                NetworkName::of(deployment.as_ref(), &networks).iter().map(ToString::to_string).collect();
            assert_eq!(of, want);
        };
        check(None, &[], &["default"]);
        check(Some("shop"), &[], &["shop (deployment)"]);
        check(None, &["lan"], &["lan"]);
        check(Some("shop"), &["lan", "shop"], &["shop (deployment)", "lan", "shop"]);
        check(Some("default"), &[], &["default (deployment)"]);
    }
}
