//! The rights of a container's root.

use std::collections::BTreeSet;

use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities};
use toft_model::workload::{CapabilityName, DEFAULT_CAPABILITIES, ProcessSpec};

/// Names of the capabilities that `process` asks for, by Docker's rules. `available` has a bit for each capability that
/// can be given at all; `ALL` stands for those.
pub(super) fn wanted(process: &ProcessSpec, available: u64) -> BTreeSet<&'static str> {
    let all = CapabilityName::every().enumerate().filter(|(bit, _)| available & (1 << bit) != 0).map(|(_, name)| name);
    if process.privileged {
        return all.collect();
    }
    let named = |names: &[CapabilityName]| -> BTreeSet<&'static str> {
        names.iter().filter(|name| !name.is_all()).map(|name| name.as_str()).collect()
    };
    let has_all = |names: &[CapabilityName]| names.iter().any(|name| name.is_all());
    let (added, dropped) = (named(&process.cap_add), named(&process.cap_drop));
    if has_all(&process.cap_add) {
        return all.filter(|name| !dropped.contains(name)).collect();
    }
    if has_all(&process.cap_drop) {
        return added;
    }
    DEFAULT_CAPABILITIES.into_iter().filter(|name| !dropped.contains(name)).chain(added.iter().copied()).collect()
}

/// The same for the runtime. Nothing is inheritable: what root starts as another user loses them.
pub(super) fn sets(wanted: &BTreeSet<&'static str>) -> LinuxCapabilities {
    let set: Capabilities = wanted.iter().filter_map(|name| name.parse::<Capability>().ok()).collect();
    let mut capabilities = LinuxCapabilities::default();
    capabilities
        .set_bounding(Some(set.clone()))
        .set_effective(Some(set.clone()))
        .set_permitted(Some(set))
        .set_inheritable(None)
        .set_ambient(None);
    capabilities
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(add: &[&str], drop: &[&str], has: &[&str], lacks: &[&str], count: usize) {
        let names = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let process = ProcessSpec { cap_add: names(add), cap_drop: names(drop), ..ProcessSpec::default() };
        let got = wanted(&process, u64::MAX);
        assert_eq!(got.len(), count, "{got:?}");
        assert!(has.iter().all(|name| got.contains(name)) && !lacks.iter().any(|name| got.contains(name)), "{got:?}");
        assert_eq!(sets(&got).bounding().as_ref().unwrap().len(), count, "the runtime knows every name");
    }

    #[test]
    fn adding_and_dropping_follow_docker() {
        check(&[], &[], &["CHOWN", "NET_RAW"], &["SYS_ADMIN"], 14);
        check(&["NET_ADMIN"], &["CHOWN"], &["NET_ADMIN"], &["CHOWN"], 14);
        check(&["ALL"], &[], &["SYS_ADMIN"], &[], 41);
        check(&["ALL"], &["SYS_ADMIN"], &["CHOWN"], &["SYS_ADMIN"], 40);
        check(&[], &["ALL"], &[], &["CHOWN"], 0);
        check(&["CHOWN"], &["ALL"], &["CHOWN"], &[], 1);
    }

    #[test]
    fn nobody_can_give_what_he_has_not() {
        let process = ProcessSpec { privileged: true, ..ProcessSpec::default() };
        assert_eq!(wanted(&process, 0b101), BTreeSet::from(["CHOWN", "DAC_READ_SEARCH"]));
    }
}
