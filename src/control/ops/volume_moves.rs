//! Operations on volumes that move from node to node. The order is in the state; how far it is its target says.

use toft_model::{
    name::Name,
    state::{Command, MovePhase, NodeRow, VolumeMove, VolumeView},
};

use super::{Ops, now_ms};
use crate::control::{
    ControlError, ErrorKind,
    node_access::volumes::{MoveProgress, MoveStep},
};

/// A volume that is ordered to another node.
#[derive(Debug, Clone)]
pub struct VolumeMoveInfo {
    /// Name of the node it is ordered to.
    pub to: Name,
    /// How far it is; `None` while its target does not say.
    pub progress: Option<MoveProgress>,
    /// Whether who uses it is stopped for it.
    pub held: bool,
    /// Why it was given up, if it was.
    pub failed: Option<String>,
    /// When it was ordered, in milliseconds since 1970.
    pub at_ms: i64,
}

impl VolumeMoveInfo {
    /// How much is there, in percent.
    pub fn percent(&self) -> Option<u8> {
        let progress = self.progress.as_ref()?;
        let percent = match progress.step {
            MoveStep::First | MoveStep::Second => {
                u128::from(progress.done_bytes) * 100 / u128::from(progress.size_bytes.max(1))
            }
            MoveStep::Stopping | MoveStep::Checking => 100,
        };
        Some(u8::try_from(percent).unwrap_or(100).min(100))
    }

    /// In a few words: `moving to beta, 43 %`.
    pub fn summary(&self) -> String {
        if let Some(reason) = &self.failed {
            return format!("not moved to {}: {reason}", self.to);
        }
        let percent = self.percent().map(|percent| format!(", {percent} %")).unwrap_or_default();
        let trouble = self.progress.as_ref().and_then(|progress| progress.trouble.as_ref());
        let trouble = trouble.map(|trouble| format!(" (waits: {trouble})")).unwrap_or_default();
        format!("moving to {}{percent}{trouble}", self.to)
    }
}

impl Ops {
    /// Orders a volume to a node, which brings it there.
    pub async fn move_volume(&self, name: &Name, to: Name) -> Result<VolumeMoveInfo, ControlError> {
        let asked = to.clone();
        let found = self.state.read(move |connection| NodeRow::id_of(connection, &asked)).await?;
        let members = self.state.status().members;
        let witness = members
            .iter()
            .any(|status| status.member.name == to && status.member.role == crate::consensus::types::Role::Witness);
        let target = found.filter(|_| !witness).ok_or_else(|| {
            let message = match witness {
                true => format!("`{to}` is a witness, which has no volumes"),
                false => format!("there is no node `{to}`"),
            };
            ControlError::new(ErrorKind::Invalid, message).field("to").hint("`toft node ls` shows the nodes there are")
        })?;
        self.submit(Command::MoveVolume { name: name.clone(), to: Some(target), at_ms: now_ms() }).await?;
        self.volume_move(name).await
    }

    /// The move of a volume that is under way, or was given up.
    pub async fn volume_move(&self, name: &Name) -> Result<VolumeMoveInfo, ControlError> {
        self.volume(name).await?.moving.ok_or_else(|| no_move(name))
    }

    /// Takes back the order to move a volume: it stays where it is.
    pub async fn cancel_volume_move(&self, name: &Name) -> Result<(), ControlError> {
        if self.volume(name).await?.view.row.moving.is_none() {
            return Err(no_move(name));
        }
        self.submit(Command::MoveVolume { name: name.clone(), to: None, at_ms: now_ms() }).await?;
        Ok(())
    }

    pub(super) async fn move_of(&self, view: &VolumeView) -> Option<VolumeMoveInfo> {
        let VolumeMove { to, phase, at_ms, .. } = view.row.moving.as_ref()?;
        let (held, failed) = match phase {
            MovePhase::Copying => (false, None),
            MovePhase::Held => (true, None),
            MovePhase::Failed { reason } => (false, Some(reason.clone())),
        };
        let progress = match failed {
            None => self.node.volume_move_progress(*to, &view.row.name).await,
            Some(_) => None,
        };
        Some(VolumeMoveInfo { to: view.moves_to.clone()?, progress, held, failed, at_ms: *at_ms })
    }
}

fn no_move(name: &Name) -> ControlError {
    ControlError::new(ErrorKind::NotFound, format!("volume `{name}` is not being moved"))
        .hint(format!("`toft volume inspect {name}` shows where it lies"))
}
