//! What becomes of a command: an answer, or the reason why it changed nothing.

use serde::{Deserialize, Serialize};

use super::tables::{AdmissionRow, RegistryRow, SecretRow, TokenRow, VolumeRow, WorkloadRow};
use crate::node::Subnet;

/// What an applied command answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// Nothing to tell.
    Done,
    /// The workload as it is now.
    Workload(Box<WorkloadRow>),
    /// The secret as it is now.
    Secret(Box<SecretRow>),
    /// The workload's generation as it is now.
    Generation {
        /// Of the specification.
        generation: u64,
    },
    /// The login as it is now.
    Registry(Box<RegistryRow>),
    /// The network of a node's containers.
    Subnet {
        /// The network; `None` when none is left.
        subnet: Option<Subnet>,
    },
    /// How many placements were made and how many were stale.
    Plan {
        /// Made.
        placed: usize,
        /// Dropped.
        dropped: usize,
    },
    /// The volume as it is now.
    Volume(Box<VolumeRow>),
    /// The token as it is now.
    Token(Box<TokenRow>),
    /// Who was let in.
    Admitted(Box<AdmissionRow>),
}

/// Why a command that is well-formed changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RefusalKind {
    /// What it speaks of is not there.
    NotFound,
    /// The name is taken.
    Exists,
    /// The state moved on since the user looked.
    Stale,
    /// It is being removed.
    Removing,
    /// It is used.
    InUse,
    /// A specification names a secret that is not there.
    NoSecret,
    /// No more fits.
    Full,
    /// What would come of it breaks a rule.
    Invalid,
    /// The request's key belongs to another request.
    KeyReused,
    /// A fault of ours.
    Fault,
}

/// A command that changed nothing, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct Refusal {
    /// Kind for programs.
    pub kind: RefusalKind,
    /// Text for people.
    pub message: String,
    /// The next step.
    pub hint: String,
}
