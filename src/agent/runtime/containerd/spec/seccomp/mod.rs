//! Which system calls a container may make: the list that Podman and Docker ship (`profile.json`, see `NOTICE`), with
//! the calls that a capability calls for when the container has that capability. Unknown calls answer ENOSYS, so that
//! programs fall back to older ones.

use std::{collections::BTreeSet, sync::OnceLock};

use oci_spec::runtime::{Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompBuilder, LinuxSyscall};
use serde::Deserialize;

const PROFILE: &str = include_str!("profile.json");

/// The file.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: LinuxSeccompAction,
    default_errno_ret: u32,
    syscalls: Vec<Rule>,
}

/// Calls, and when they are spoken of.
#[derive(Debug, Deserialize)]
struct Rule {
    #[serde(flatten)]
    calls: LinuxSyscall,
    #[serde(default)]
    includes: Condition,
    #[serde(default)]
    excludes: Condition,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Condition {
    arches: Vec<String>,
    caps: Vec<String>,
}

/// The filter for a process that may have these capabilities (names without `CAP_`).
pub(super) fn filter(capabilities: &BTreeSet<&str>) -> LinuxSeccomp {
    static READ: OnceLock<Profile> = OnceLock::new();
    let profile = READ.get_or_init(|| serde_json::from_str(PROFILE).expect("the profile was read by a test"));
    let has = |name: &String| capabilities.contains(name.trim_start_matches("CAP_"));
    // Each architecture costs runc 5 ms a start. 32-bit programs are worth that (game servers are); x32, which hardly a
    // kernel has, is not: its calls end the process.
    let (machine, architectures) = match std::env::consts::ARCH {
        "aarch64" => ("arm64", vec![Arch::ScmpArchAarch64, Arch::ScmpArchArm]),
        _ => ("amd64", vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86]),
    };
    let applies = |rule: &&Rule| {
        let arches = &rule.includes.arches;
        (arches.is_empty() || arches.iter().any(|arch| arch == machine))
            && !rule.excludes.arches.iter().any(|arch| arch == machine)
            && rule.includes.caps.iter().all(has)
            && !rule.excludes.caps.iter().any(has)
    };
    let calls = profile.syscalls.iter().filter(applies).map(|rule| rule.calls.clone()).collect::<Vec<_>>();
    LinuxSeccompBuilder::default()
        .default_action(profile.default_action)
        .default_errno_ret(profile.default_errno_ret)
        .architectures(architectures)
        .syscalls(calls)
        .build()
        .expect("every field has a value")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(capabilities: &[&'static str], call: &str) -> bool {
        let filter = filter(&capabilities.iter().copied().collect());
        let rules = filter.syscalls().as_ref().unwrap();
        rules.iter().any(|rule| {
            rule.action() == LinuxSeccompAction::ScmpActAllow && rule.names().iter().any(|name| name == call)
        })
    }

    #[test]
    fn capabilities_open_their_calls() {
        assert!(allows(&[], "read") && allows(&[], "clone3") && !allows(&[], "kexec_load"));
        assert!(!allows(&[], "bpf") && allows(&["SYS_ADMIN"], "bpf"));
        assert!(!allows(&[], "chroot") && allows(&["SYS_CHROOT"], "chroot"));
        assert!(!allows(&["SYS_ADMIN"], "settimeofday") && allows(&["SYS_TIME"], "settimeofday"));
    }

    #[test]
    fn the_filter_is_for_this_machine() {
        let text = serde_json::to_value(filter(&BTreeSet::new())).unwrap();
        let own = if cfg!(target_arch = "aarch64") { "SCMP_ARCH_AARCH64" } else { "SCMP_ARCH_X86_64" };
        assert_eq!(text["architectures"][0], own);
        assert_eq!(text["defaultErrnoRet"], 38);
        assert_eq!(allows(&[], "arch_prctl"), cfg!(target_arch = "x86_64"));
    }
}
