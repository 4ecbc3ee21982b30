//! Shims that hang. A creation that is cut short now and then leaves a shim of containerd 1.6 waiting for ever for a
//! containerd that has given it up: it answers nothing, and what containerd asks of it waits as long.

use std::{fs, os::unix::ffi::OsStrExt, path::Path};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use toft_model::ids::InstanceId;

/// Which shims are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    /// Every one.
    All,
    /// Those whose folder is gone: containerd has cleaned up behind them.
    GivenUp,
}

/// Ends the shims of a container that have no process of it, and says how many there were. A shim whose container has a
/// process stays, whatever it does, and so does what it has forked: the container would die with it.
pub(super) fn end_idle(namespace: &str, id: InstanceId, which: Which) -> usize {
    let id = id.to_string();
    let processes = processes();
    let meant = |pid| which == Which::All || is_given_up(pid);
    let shims: Vec<&Process> =
        processes.iter().filter(|process| is_shim(process.pid, namespace, &id) && meant(process.pid)).collect();
    let has_one = |pid| processes.iter().any(|child| child.parent == pid && is_contained(child.pid));
    let (busy, idle): (Vec<&Process>, Vec<&Process>) = shims.into_iter().partition(|shim| has_one(shim.pid));
    // What a shim has just forked looks like the shim itself until it becomes the program it is for.
    let idle = idle.iter().filter(|shim| !busy.iter().any(|parent| parent.pid == shim.parent));
    idle.filter(|shim| kill(Pid::from_raw(shim.pid), Signal::SIGKILL).is_ok()).count()
}

/// The processes that descend from one.
pub(super) fn descendants(of: i32) -> Vec<i32> {
    let processes = processes();
    let mut found = vec![of];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        let children = processes.iter().filter(|process| process.parent == parent).map(|process| process.pid);
        let new: Vec<i32> = children.filter(|pid| !found.contains(pid)).collect();
        found.extend(new);
        next += 1;
    }
    found.split_off(1)
}

struct Process {
    pid: i32,
    parent: i32,
}

fn processes() -> Vec<Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let read = |name: &str| {
        let pid = name.parse().ok()?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // State and parent follow the name, which stands in parentheses and may hold any.
        let (_, rest) = stat.rsplit_once(')')?;
        Some(Process { pid, parent: rest.split_whitespace().nth(1)?.parse().ok()? })
    };
    entries.filter_map(|entry| read(entry.file_name().to_str()?)).collect()
}

/// Whether it is a shim that containerd started for this container.
fn is_shim(pid: i32, namespace: &str, id: &str) -> bool {
    let Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) else { return false };
    let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
    let program = Path::new(std::ffi::OsStr::from_bytes(words[0])).file_name();
    let says = |flag: &str, value: &str| words.windows(2).any(|pair| pair == [flag.as_bytes(), value.as_bytes()]);
    program.is_some_and(|name| name.as_bytes().starts_with(b"containerd-shim-"))
        && says("-namespace", namespace)
        && says("-id", id)
}

/// Whether the folder in which a process was started is gone.
fn is_given_up(pid: i32) -> bool {
    fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|folder| folder.as_os_str().as_bytes().ends_with(b" (deleted)"))
}

/// Whether a process lives in another pid namespace than we do; one that cannot be told is taken for such.
pub(super) fn is_contained(pid: i32) -> bool {
    let own = fs::read_link("/proc/self/ns/pid").ok();
    match fs::read_link(format!("/proc/{pid}/ns/pid")) {
        Ok(other) => Some(other) != own,
        Err(error) => error.kind() != std::io::ErrorKind::NotFound,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::process::ExitStatusExt,
        process::{Child, Command, Stdio},
        time::{Duration, Instant},
    };

    use uuid::Uuid;

    use super::*;

    /// What looks like a shim and has a child, in a pid namespace of its own if `contained`: then one that looks like
    /// the shim, as what a process forks does at first.
    fn shim(id: InstanceId, contained: bool) -> Child {
        let child = if contained { "(read _)" } else { "sleep 60" };
        let script = format!("exec -a /x/containerd-shim-runc-v2 sh -c '{child}; :' sh -namespace toft-test -id {id}");
        let mut command = Command::new(if contained { "unshare" } else { "env" });
        command.args(if contained { &["--pid"][..] } else { &[] }).args(["bash", "-c", &script]).stdin(Stdio::piped());
        let child = command.spawn().unwrap();
        let pid = child.id() as i32;
        let deadline = Instant::now() + Duration::from_secs(10);
        while !(is_shim(pid, "toft-test", &id.to_string()) && processes().iter().any(|other| other.parent == pid)) {
            assert!(Instant::now() < deadline, "it did not start");
            std::thread::sleep(Duration::from_millis(5));
        }
        child
    }

    fn end(mut shim: Child) {
        for process in processes().iter().filter(|process| process.parent == shim.id() as i32) {
            let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
        }
        let _ = shim.kill();
        let _ = shim.wait();
    }

    #[test]
    fn a_shim_without_a_process_of_its_container_is_ended() {
        let (id, other) = (InstanceId(Uuid::new_v4()), InstanceId(Uuid::new_v4()));
        let (mut hung, beside) = (shim(id, false), shim(other, false));
        let helpers: Vec<i32> =
            processes().iter().filter(|p| p.parent == hung.id() as i32).map(|process| process.pid).collect();
        assert_eq!(end_idle("another", id, Which::All), 0);
        assert_eq!(end_idle("toft-test", id, Which::GivenUp), 0, "its folder is there");
        assert_eq!(end_idle("toft-test", id, Which::All), 1);
        assert_eq!(hung.wait().unwrap().signal(), Some(9));
        for pid in helpers {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        assert!(is_shim(beside.id() as i32, "toft-test", &other.to_string()), "another container's stays");
        end(beside);
    }

    #[test]
    fn a_shim_whose_container_has_a_process_is_left_alone() {
        let id = InstanceId(Uuid::new_v4());
        let shim = shim(id, true);
        assert_eq!(end_idle("toft-test", id, Which::All), 0);
        assert!(is_shim(shim.id() as i32, "toft-test", &id.to_string()));
        end(shim);
    }
}
