//! A disk that fills up: what makes the state grow is refused while there is still room for what makes it shrink, and
//! what meets a disk that is full after all waits for room.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use toft_model::state::Command;
use tokio::sync::watch;

/// Bytes that must be free for the state to grow.
const RESERVE: u64 = 4 << 20;

/// Wait before a write that found no room is tried again.
const PAUSE: Duration = Duration::from_millis(500);

/// The room on the disk of log and state.
pub(super) struct Space {
    folder: PathBuf,
    /// Whether the writer of the log, or that of the state, waits for room.
    waits: [watch::Receiver<bool>; 2],
}

impl Space {
    pub(super) fn of(folder: PathBuf, waits: [watch::Receiver<bool>; 2]) -> Self {
        Self { folder, waits }
    }

    /// Whether there is room for a command.
    pub(super) fn takes(&self, command: &Command) -> bool {
        !self.waits.iter().any(|waits| *waits.borrow()) && (!grows(command) || self.is_free())
    }

    fn is_free(&self) -> bool {
        free_bytes(&self.folder).is_none_or(|free| free >= RESERVE)
    }
}

/// Bytes that are free on the disk of a folder, if that is known.
pub(super) fn free_bytes(folder: &Path) -> Option<u64> {
    match nix::sys::statvfs::statvfs(folder) {
        Ok(stat) => Some(stat.blocks_available().saturating_mul(stat.fragment_size())),
        Err(error) => {
            tracing::warn!(%error, "the free space of `{}` is not known", folder.display());
            None
        }
    }
}

/// Does `write` until there is room for it. Raft allows that: a member that cannot write is one that is slow to answer.
pub(super) fn until_there_is_room<T, E>(
    waits: &watch::Sender<bool>,
    is_full: impl Fn(&E) -> bool,
    mut write: impl FnMut() -> Result<T, E>,
) -> Result<T, E> {
    loop {
        match write() {
            Err(error) if is_full(&error) => {
                if !waits.send_replace(true) {
                    tracing::error!(
                        "no space is left on the disk that holds the state; toft waits until there is some"
                    );
                }
                std::thread::sleep(PAUSE);
            }
            outcome => {
                if waits.send_replace(false) {
                    tracing::info!("there is space for the state again");
                }
                return outcome;
            }
        }
    }
}

fn grows(command: &Command) -> bool {
    match command {
        Command::LabelWorkload { .. }
        | Command::PutWorkload { .. }
        | Command::RollBackWorkload { .. }
        | Command::PutSecret { .. }
        | Command::PutRegistry { .. }
        | Command::CreateVolume { .. }
        | Command::ConfigureGpu { .. }
        | Command::CreateToken { .. }
        | Command::CreateUser { .. }
        | Command::CreateApiToken { .. }
        | Command::PutSecondFactor { .. }
        | Command::PutPasskey { .. }
        | Command::AdmitNode { .. } => true,
        Command::RegisterNode { .. }
        | Command::PowerWorkload { .. }
        | Command::RemoveWorkload { .. }
        | Command::RemoveSecret { .. }
        | Command::RemoveRegistry { .. }
        | Command::ClaimSubnet { .. }
        | Command::AnnounceMesh { .. }
        | Command::CommitPlan { .. }
        | Command::ReportInstances { .. }
        | Command::BindVolume { .. }
        | Command::RemoveVolume { .. }
        | Command::ForgetVolumes { .. }
        | Command::ConfigureNode { .. }
        | Command::ConfigurePlacement { .. }
        | Command::NoteNodes { .. }
        | Command::MoveInstances { .. }
        | Command::MoveVolume { .. }
        | Command::TurnVolume { .. }
        | Command::RevokeToken { .. }
        | Command::ChangeUser { .. }
        | Command::RemoveUser { .. }
        | Command::OpenSession { .. }
        | Command::EndSession { .. }
        | Command::RevokeApiToken { .. }
        | Command::RemoveSecondFactor { .. }
        | Command::RemovePasskey { .. }
        | Command::ConfigureAccess { .. }
        | Command::PutSigningKey { .. }
        | Command::AcceptUser { .. }
        | Command::NoteUses { .. }
        | Command::NoteAction { .. }
        | Command::RemoveNode { .. } => false,
    }
}
