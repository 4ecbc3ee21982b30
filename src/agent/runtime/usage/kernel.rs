//! Measuring by the kernel's files: control groups and `/proc`. A few small reads a container, and no process is woken.

use std::{fs, path::Path};

use toft_model::{ids::InstanceId, usage::Process};

use super::{Counters, RunningTask, group::Groups, processes};
use crate::agent::runtime::RuntimeError;

/// What containers use; what does not run any more is left out. Blocks for some tens of microseconds each, longer with
/// `pss`.
pub fn usage(tasks: &[RunningTask], pss: bool) -> Vec<(InstanceId, Counters)> {
    let own_network = network_of("self");
    tasks.iter().filter_map(|task| Some((task.id, counters(*task, pss, own_network.as_deref())?))).collect()
}

/// The processes of a container, by id.
pub fn processes(task: RunningTask) -> Result<Vec<Process>, RuntimeError> {
    let groups = Groups::of(task.pid, task.id).ok_or(RuntimeError::NotRunning { id: task.id })?;
    let clock = processes::Clock::now();
    // One may end at any moment.
    Ok(groups.processes().into_iter().filter_map(|pid| processes::read(pid, clock)).collect())
}

fn counters(task: RunningTask, pss: bool, own_network: Option<&Path>) -> Option<Counters> {
    let groups = Groups::of(task.pid, task.id)?;
    let of_its_own = network_of(&task.pid.to_string()).as_deref() != own_network;
    Some(Counters {
        cpu_ns: groups.cpu_ns()?,
        memory_bytes: groups.memory_bytes(),
        memory_limit_bytes: groups.memory_limit_bytes(),
        memory_pss_bytes: pss.then(|| groups.processes().into_iter().filter_map(processes::pss_bytes).sum()),
        network: of_its_own.then(|| network(task.pid)).flatten(),
        block: groups.block(),
        pids: groups.pids().unwrap_or_else(|| groups.processes().len() as u64),
        pressure: groups.pressure(),
    })
}

fn network_of(process: &str) -> Option<std::path::PathBuf> {
    fs::read_link(format!("/proc/{process}/ns/net")).ok()
}

/// Bytes received and sent by the network that a process is in.
fn network(pid: u32) -> Option<(u64, u64)> {
    Some(sum_of_interfaces(&fs::read_to_string(format!("/proc/{pid}/net/dev")).ok()?))
}

/// `  eth0: RECEIVED ... (8 numbers) SENT ...`; loopback carries nothing out or in.
fn sum_of_interfaces(text: &str) -> (u64, u64) {
    let (mut received, mut sent) = (0, 0);
    for (name, numbers) in text.lines().filter_map(|line| line.split_once(':')) {
        if name.trim() == "lo" {
            continue;
        }
        let mut numbers = numbers.split_whitespace().map(|number| number.parse::<u64>().unwrap_or(0));
        received += numbers.next().unwrap_or(0);
        sent += numbers.nth(7).unwrap_or(0);
    }
    (received, sent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_summed_without_loopback() {
        let text = "Inter-|   Receive    |  Transmit\n face |bytes packets errs drop fifo frame compressed multicast|bytes\n    lo: 9 1 0 0 0 0 0 0 9 1 0 0 0 0 0 0\n  eth0: 100 1 2 3 4 5 6 7 200 1 0 0 0 0 0 0\n  eth1:1 0 0 0 0 0 0 0 2 0 0 0 0 0 0 0\n";
        assert_eq!(sum_of_interfaces(text), (101, 202));
        assert_eq!(sum_of_interfaces(""), (0, 0));
    }
}
