//! Flags that say which networks the containers of a workload are in.

use std::collections::BTreeSet;

use clap::Args;
use toft_model::{
    name::Name,
    workload::{NetworkMode, WorkloadSpec},
};

use super::{Failure, args::parsed};

/// The networks of a workload.
#[derive(Debug, Args)]
pub(super) struct NetworkArgs {
    /// Network of the containers: bridge (an address of its own), host, none, or the name of a network to be in; repeatable
    #[arg(long = "network", value_name = "NETWORK")]
    networks: Vec<String>,
    /// The workloads it belongs to: they reach each other, and have short names among themselves
    #[arg(long, value_name = "NAME", value_parser = parsed::<Name>)]
    deployment: Option<Name>,
}

impl NetworkArgs {
    /// Writes them into `spec`.
    pub(super) fn write_to(self, spec: &mut WorkloadSpec) -> Result<(), Failure> {
        let mut mode = None;
        let mut named = BTreeSet::new();
        for text in self.networks {
            let asked = match text.as_str() {
                "bridge" => NetworkMode::Bridge,
                "host" => NetworkMode::Host,
                "none" => NetworkMode::None,
                name => {
                    let name = name.parse().map_err(|error: toft_model::invalid::Invalid| {
                        Failure::of(2, format!("--network: {}", error.message)).hint(error.hint)
                    })?;
                    named.insert(name);
                    NetworkMode::Bridge
                }
            };
            if mode.replace(asked).is_some_and(|before| before != asked) {
                return Err(Failure::of(2, "--network: the containers cannot be in several kinds of network")
                    .hint("give `host` or `none` alone"));
            }
        }
        spec.network = mode.unwrap_or_default();
        spec.networks = named;
        spec.deployment = self.deployment;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_and_names_of_networks_are_told_apart() {
        let check = |networks: &[&str]| {
            let networks = networks.iter().map(|text| (*text).to_owned()).collect();
            let mut spec = WorkloadSpec::new("web".parse().unwrap(), "demo".parse().unwrap());
            NetworkArgs { networks, deployment: None }.write_to(&mut spec).map_err(drop)?;
            let names: Vec<String> = spec.networks.iter().map(ToString::to_string).collect();
            Ok::<_, ()>((spec.network, names.join(",")))
        };
        assert_eq!(check(&[]), Ok((NetworkMode::Bridge, String::new())));
        assert_eq!(check(&["none"]), Ok((NetworkMode::None, String::new())));
        assert_eq!(check(&["lan", "bridge", "db", "lan"]), Ok((NetworkMode::Bridge, "db,lan".into())));
        for wrong in [["host", "lan"], ["lan", "none"], ["a b", "lan"]] {
            assert!(check(&wrong).is_err(), "{wrong:?}");
        }
    }
}
