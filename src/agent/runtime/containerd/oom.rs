//! Whether the kernel killed a process of a container for want of memory. Its control group counts them for as long as
//! it is there: until the task is deleted. Runtimes that keep the group elsewhere tell by an event.

use std::{fs, path::PathBuf};

use toft_model::ids::InstanceId;

use super::Shared;

/// Whether a process of `id`'s newest task was killed so. What cannot be read tells of none.
pub(super) fn killed(shared: &Shared, id: InstanceId) -> bool {
    if shared.starved().remove(&id) {
        return true;
    }
    let (root, file) = if shared.host.unified_cgroups {
        ("/sys/fs/cgroup", "memory.events")
    } else {
        ("/sys/fs/cgroup/memory", "memory.oom_control")
    };
    let parent = shared.config.cgroup_parent.trim_matches('/');
    let path = PathBuf::from(root).join(parent).join(id.to_string()).join(file);
    fs::read_to_string(path).is_ok_and(|text| kills(&text) > 0)
}

fn kills(text: &str) -> u64 {
    let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    count.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_files_are_read() {
        assert_eq!(kills("low 0\nhigh 0\nmax 7\noom 2\noom_kill 1\noom_group_kill 0\n"), 1);
        assert_eq!(kills("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"), 3);
        assert_eq!(kills("oom_kill_disable 0\nunder_oom 0\n"), 0);
        assert_eq!(kills(""), 0);
    }
}
