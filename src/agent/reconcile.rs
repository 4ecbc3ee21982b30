//! Decides what one instance needs next. Pure: order, observation and memory in, one step out.

use toft_model::instance::{Assignment, Desired, Exit, InstanceState};

use super::{ledger::Outcome, runtime::TaskState};

/// Shortest and longest wait before an automatic restart; between them it doubles (Docker's numbers).
const BACK_OFF_MS: std::ops::RangeInclusive<i64> = 100..=60_000;
/// A process that ran this long has proved itself: the back-off begins anew.
const PROVEN_MS: i64 = 10_000;

/// What the runtime has of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observed {
    /// Its process.
    pub task: TaskState,
}

/// What the agent knows of an instance besides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memory {
    /// Where it stands.
    pub state: InstanceState,
    /// Epoch that state belongs to; 0 before the first.
    pub epoch: u64,
    /// Automatic restarts in this epoch.
    pub restarts: u32,
    /// Failures in a row, which lengthen the back-off.
    pub streak: u32,
    /// How the last process ended.
    pub last_exit: Option<Exit>,
    /// When the newest process was started, in milliseconds since 1970.
    pub started_ms: Option<i64>,
}

impl Memory {
    /// What of it must survive a reboot; `finished` when the process stays down.
    pub fn outcome(&self, finished: Option<Exit>) -> Outcome {
        let Self { epoch, restarts, started_ms, last_exit, .. } = *self;
        Outcome { epoch, restarts, started_ms, last_exit, finished }
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self { state: InstanceState::Assigned, epoch: 0, restarts: 0, streak: 0, last_exit: None, started_ms: None }
    }
}

/// The next step for one instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing to do.
    Rest,
    /// Nothing to do before this time (milliseconds since 1970).
    Wait(i64),
    /// Forget the story of an older epoch and look again.
    Reset,
    /// Note that the process runs already.
    Adopt {
        /// Its pid.
        pid: u32,
    },
    /// Note that nothing runs, as is wanted.
    SettleStopped,
    /// Note that the process vanished without telling how it ended.
    Vanished,
    /// Start the process, making container and network first where they are missing.
    Start,
    /// End the process and delete its task.
    Stop,
    /// Delete the task of a process that ended and learn how.
    Reap,
    /// End the process and delete everything.
    Remove,
    /// Tell that nothing remains.
    Gone,
}

/// The next step for an instance under `assignment` (`None`: nobody ordered it).
pub fn next_step(assignment: Option<&Assignment>, observed: Option<Observed>, memory: &Memory, now_ms: i64) -> Step {
    let task = observed.map_or(TaskState::None, |observed| observed.task);
    let Some(assignment) = assignment else {
        return if observed.is_some() { Step::Remove } else { Step::Rest };
    };
    match assignment.desired {
        Desired::Removed if observed.is_some() => Step::Remove,
        Desired::Removed => Step::Gone,
        Desired::Stopped => match task {
            TaskState::Created { .. } | TaskState::Running { .. } => Step::Stop,
            TaskState::Ended(_) => Step::Reap,
            TaskState::None if matches!(memory.state, InstanceState::Stopped { .. }) => Step::Rest,
            TaskState::None => Step::SettleStopped,
        },
        Desired::Running if memory.epoch < assignment.epoch => match task {
            // The ledger knows nothing of this process (it was lost, or never written): it is taken for the one ordered.
            TaskState::Running { pid } if memory.epoch == 0 => Step::Adopt { pid },
            TaskState::Created { .. } | TaskState::Running { .. } => Step::Stop,
            TaskState::Ended(_) => Step::Reap,
            TaskState::None => Step::Reset,
        },
        Desired::Running => match (task, &memory.state) {
            (TaskState::Running { .. }, InstanceState::Running { .. }) => Step::Rest,
            (TaskState::Running { pid }, _) => Step::Adopt { pid },
            (TaskState::Ended(_), _) => Step::Reap,
            // Left by a daemon that died between preparing and starting.
            (TaskState::Created { .. }, _) => Step::Start,
            (TaskState::None, InstanceState::Assigned | InstanceState::Unknown) => Step::Start,
            (TaskState::None, InstanceState::BackOff { until_ms, .. }) if *until_ms > now_ms => Step::Wait(*until_ms),
            (TaskState::None, InstanceState::BackOff { .. }) => Step::Start,
            (TaskState::None, InstanceState::Finished { .. }) => Step::Rest,
            (TaskState::None, InstanceState::Stopped { .. } | InstanceState::Stopping) => Step::Reset,
            (TaskState::None, InstanceState::Running { .. } | InstanceState::Starting) => Step::Vanished,
        },
    }
}

/// What follows the end of a process that should run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Start it again at this time (milliseconds since 1970).
    RestartAt(i64),
    /// Leave it down.
    StayDown,
}

/// Applies the restart policy to the end of a process, and counts.
pub fn judge(assignment: &Assignment, memory: &mut Memory, exit: Exit) -> Verdict {
    if let InstanceState::Running { since_ms, .. } = memory.state
        && exit.at_ms - since_ms >= PROVEN_MS
    {
        memory.streak = 0;
    }
    memory.last_exit = Some(exit);
    if !assignment.container.restart.wants_restart(exit.code, memory.streak) {
        return Verdict::StayDown;
    }
    memory.restarts += 1;
    Verdict::RestartAt(exit.at_ms + back_off(memory))
}

/// The wait before the next try, longer with each failure in a row.
pub fn back_off(memory: &mut Memory) -> i64 {
    let wait = BACK_OFF_MS.start() << memory.streak.min(20);
    memory.streak = memory.streak.saturating_add(1);
    wait.min(*BACK_OFF_MS.end())
}

#[cfg(test)]
mod tests {
    use toft_model::{
        ids::{InstanceId, WorkloadId},
        instance::{ContainerOrder, NetworkOrder},
        workload::{RestartPolicy, WorkloadSpec},
    };
    use uuid::Uuid;

    use super::*;

    const EXIT: Exit = Exit::new(Some(1), 1_000);

    fn assignment(desired: Desired, restart: RestartPolicy) -> Assignment {
        let spec = WorkloadSpec::new("web".parse().unwrap(), "a".parse().unwrap());
        let mut container = ContainerOrder::of(&spec, NetworkOrder::None);
        container.restart = restart;
        Assignment {
            instance_id: InstanceId(Uuid::nil()),
            workload_id: WorkloadId(Uuid::nil()),
            workload: spec.name,
            ordinal: 0,
            desired,
            epoch: 1,
            container,
            volumes: Default::default(),
        }
    }

    fn memory(state: InstanceState, epoch: u64) -> Memory {
        Memory { state, epoch, ..Memory::default() }
    }

    fn step(desired: Desired, task: Option<TaskState>, state: InstanceState, epoch: u64) -> Step {
        let assignment = assignment(desired, RestartPolicy::Always);
        next_step(Some(&assignment), task.map(|task| Observed { task }), &memory(state, epoch), 5_000)
    }

    #[test]
    fn steps_follow_from_order_observation_and_memory() {
        use InstanceState as S;
        let running = TaskState::Running { pid: 7 };
        let runs = S::Running { pid: 7, since_ms: 0 };
        let back_off = |until_ms| S::BackOff { until_ms, reason: String::new() };
        let check = |got: Step, want: Step| assert_eq!(got, want);
        check(step(Desired::Running, None, S::Assigned, 0), Step::Reset);
        check(step(Desired::Running, None, S::Assigned, 1), Step::Start);
        check(step(Desired::Running, Some(running), runs.clone(), 1), Step::Rest);
        check(step(Desired::Running, Some(running), S::Assigned, 1), Step::Adopt { pid: 7 });
        check(step(Desired::Running, Some(running), S::Assigned, 0), Step::Adopt { pid: 7 });
        check(step(Desired::Running, Some(TaskState::Ended(EXIT)), runs.clone(), 1), Step::Reap);
        check(step(Desired::Running, Some(TaskState::None), runs.clone(), 1), Step::Vanished);
        check(step(Desired::Running, Some(TaskState::None), back_off(6_000), 1), Step::Wait(6_000));
        check(step(Desired::Running, Some(TaskState::None), back_off(5_000), 1), Step::Start);
        check(step(Desired::Running, Some(TaskState::None), S::Finished { exit: EXIT, reason: None }, 1), Step::Rest);
        check(step(Desired::Stopped, Some(running), runs.clone(), 1), Step::Stop);
        check(step(Desired::Stopped, Some(TaskState::None), runs, 1), Step::SettleStopped);
        check(step(Desired::Stopped, None, S::Stopped { exit: None }, 1), Step::Rest);
        check(step(Desired::Removed, Some(running), S::Assigned, 1), Step::Remove);
        check(step(Desired::Removed, None, S::Assigned, 1), Step::Gone);
        check(next_step(None, Some(Observed { task: running }), &Memory::default(), 0), Step::Remove);
    }

    #[test]
    fn a_newer_epoch_ends_the_old_process_first() {
        let mut order = assignment(Desired::Running, RestartPolicy::Always);
        order.epoch = 2;
        let runs = memory(InstanceState::Running { pid: 7, since_ms: 0 }, 1);
        let task = Some(Observed { task: TaskState::Running { pid: 7 } });
        assert_eq!(next_step(Some(&order), task, &runs, 0), Step::Stop);
        assert_eq!(next_step(Some(&order), Some(Observed { task: TaskState::None }), &runs, 0), Step::Reset);
    }

    #[test]
    fn back_off_doubles_to_a_minute_and_begins_anew_after_a_proven_run() {
        let order = assignment(Desired::Running, RestartPolicy::Always);
        let mut memory = memory(InstanceState::Running { pid: 1, since_ms: 0 }, 1);
        let waits: Vec<_> = (0..12)
            .map(|_| match judge(&order, &mut memory, EXIT) {
                Verdict::RestartAt(at) => at - EXIT.at_ms,
                Verdict::StayDown => 0,
            })
            .collect();
        assert_eq!(waits[..4], [100, 200, 400, 800]);
        assert_eq!(waits[11], 60_000);
        let late = Exit::new(Some(1), 20_000);
        assert_eq!(judge(&order, &mut memory, late), Verdict::RestartAt(20_100));
    }

    #[test]
    fn on_failure_gives_up_after_its_count() {
        let order = assignment(Desired::Running, RestartPolicy::OnFailure { max_restarts: Some(2) });
        let mut memory = memory(InstanceState::Running { pid: 1, since_ms: 0 }, 1);
        assert!(matches!(judge(&order, &mut memory, EXIT), Verdict::RestartAt(_)));
        assert!(matches!(judge(&order, &mut memory, EXIT), Verdict::RestartAt(_)));
        assert_eq!(judge(&order, &mut memory, EXIT), Verdict::StayDown);
        assert_eq!(memory.restarts, 2);
    }
}
