//! Whose a process is: told by its control group, which it cannot leave by itself.

use std::path::{Path, PathBuf};

use toft_model::ids::InstanceId;

/// Longest name of a process that is told.
const LONGEST_NAME: usize = 64;

/// Finds the instances of processes.
#[derive(Debug, Clone)]
pub struct Owners {
    proc: PathBuf,
    parent: String,
}

impl Owners {
    /// `proc` is `/proc`; `parent` the control group that every container's lies in.
    pub fn new(proc: &Path, parent: &str) -> Self {
        Self { proc: proc.to_owned(), parent: parent.trim_matches('/').to_owned() }
    }

    /// The instance that a process belongs to, if it is one of toft's.
    pub fn of(&self, pid: u32) -> Option<InstanceId> {
        let text = std::fs::read_to_string(self.proc.join(pid.to_string()).join("cgroup")).ok()?;
        owner(&text, &self.parent)
    }

    /// What a process calls itself.
    pub fn name(&self, pid: u32) -> String {
        let name = std::fs::read_to_string(self.proc.join(pid.to_string()).join("comm")).unwrap_or_default();
        name.trim_end().chars().take(LONGEST_NAME).collect()
    }
}

/// Lines are `0::/PATH` (version 2) or `N:CONTROLLERS:/PATH` (version 1). A container may make groups below its own and call them
/// as it likes, so only the first name behind the parent counts.
fn owner(text: &str, parent: &str) -> Option<InstanceId> {
    let of_line = |line: &str| {
        let path = line.splitn(3, ':').nth(2)?.trim_start_matches('/');
        path.strip_prefix(parent)?.strip_prefix('/')?.split('/').next()?.parse::<InstanceId>().ok()
    };
    text.lines().find_map(of_line)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "0192f0c0-0000-7000-8000-000000000001";
    const TWO: &str = "0192f0c0-0000-7000-8000-000000000002";

    #[test]
    fn the_first_group_below_the_parent_names_the_owner() {
        let check = |text: &str, parent: &str, want: Option<&str>| {
            assert_eq!(owner(text, parent).map(|id| id.to_string()).as_deref(), want, "{text}");
        };
        check(&format!("0::/toft/{ONE}\n"), "toft", Some(ONE));
        check(&format!("0::/toft/{ONE}/docker/{TWO}\n"), "toft", Some(ONE));
        check(&format!("0::/toft/{ONE}/toft/{TWO}\n"), "toft", Some(ONE));
        check(&format!("12:memory:/toft/{ONE}\n1:name=systemd:/init.scope\n0::/\n"), "toft", Some(ONE));
        check(&format!("5:devices:/lab/a1/{ONE}\n"), "lab/a1", Some(ONE));
        check(&format!("0::/user.slice/toft/{TWO}\n"), "toft", None);
        check(&format!("0::/toftish/{TWO}\n"), "toft", None);
        check("0::/toft/nobody\n0::/toft\n\n:\n0:\n", "toft", None);
    }

    #[test]
    fn a_process_of_this_machine_is_nobodys() {
        let owners = Owners::new(Path::new("/proc"), "/no/such/group/");
        assert_eq!(owners.of(std::process::id()), None);
        assert!(!owners.name(std::process::id()).is_empty());
        assert_eq!((owners.of(u32::MAX), owners.name(u32::MAX)), (None, String::new()));
    }
}
