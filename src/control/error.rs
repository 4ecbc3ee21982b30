//! The errors of operations, closed in kind so that every door can translate them.

use serde::{Deserialize, Serialize};
use toft_model::{
    invalid::Invalid,
    state::{Refusal, RefusalKind},
};

use crate::{
    backup::BackupError,
    consensus::{CopyError, NotCurrent, ProposeError, ReadError},
    observe::chain,
};

/// What went wrong, for programs. The doors map it to HTTP and exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The request is malformed or breaks a rule.
    Invalid,
    /// Who asks is not known.
    Unauthenticated,
    /// Who asks may not.
    Forbidden,
    /// What is asked for is not there.
    NotFound,
    /// It clashes with what is there.
    Conflict,
    /// It was based on an older state.
    Stale,
    /// Too many attempts have failed; later there may be another.
    Throttled,
    /// The request is larger than the limit.
    TooLarge,
    /// A part that is needed is away; try again.
    Unavailable,
    /// The cluster has no leader; nothing was changed.
    NoLeader,
    /// No answer came in time; a change may have happened, or may still happen.
    Unconfirmed,
    /// The disk is full.
    DiskFull,
    /// A fault of ours.
    Internal,
}

impl ErrorKind {
    /// The code in error envelopes.
    pub fn code(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::Unauthenticated => "unauthenticated",
            Self::Forbidden => "forbidden",
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::Stale => "stale",
            Self::Throttled => "throttled",
            Self::TooLarge => "too_large",
            Self::Unavailable => "unavailable",
            Self::NoLeader => "no_leader",
            Self::Unconfirmed => "unconfirmed",
            Self::DiskFull => "disk_full",
            Self::Internal => "internal",
        }
    }
}

/// A failed operation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct ControlError {
    /// Kind for programs.
    pub kind: ErrorKind,
    /// Text for people: lower case, no full stop.
    pub message: String,
    /// The next step, when one is known.
    pub hint: Option<String>,
    /// The field of the request that is meant, when one is.
    pub field: Option<String>,
}

impl ControlError {
    /// An error without hint and field.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None, field: None }
    }

    /// The same with a hint.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same, said of a field.
    pub fn field(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }
}

impl From<Invalid> for ControlError {
    fn from(invalid: Invalid) -> Self {
        Self {
            kind: ErrorKind::Invalid,
            message: invalid.message,
            hint: Some(invalid.hint),
            field: Some(invalid.field).filter(|field| !field.is_empty()),
        }
    }
}

impl From<Refusal> for ControlError {
    fn from(refusal: Refusal) -> Self {
        let kind = match refusal.kind {
            RefusalKind::NotFound => ErrorKind::NotFound,
            RefusalKind::Exists
            | RefusalKind::Removing
            | RefusalKind::InUse
            | RefusalKind::Full
            | RefusalKind::KeyReused => ErrorKind::Conflict,
            RefusalKind::NoSecret => ErrorKind::Invalid,
            RefusalKind::Stale => ErrorKind::Stale,
            RefusalKind::Invalid => ErrorKind::Invalid,
            RefusalKind::Fault => ErrorKind::Internal,
        };
        let field = match refusal.kind {
            RefusalKind::Exists => Some("name".to_owned()),
            RefusalKind::KeyReused => Some("Idempotency-Key".to_owned()),
            RefusalKind::NoSecret => Some("secrets".to_owned()),
            _ => None,
        };
        Self { kind, message: refusal.message, hint: Some(refusal.hint), field }
    }
}

impl From<ProposeError> for ControlError {
    fn from(error: ProposeError) -> Self {
        match error {
            ProposeError::Refused(refusal) => refusal.into(),
            ProposeError::DiskFull => Self::new(ErrorKind::DiskFull, error.to_string())
                .hint("nothing was changed; free some space and try again"),
            ProposeError::NotUnderstood { ref node, .. } => Self::new(ErrorKind::Conflict, error.to_string()).hint(format!(
                "nothing was changed; upgrade toft on `{node}`, or remove it: `toft cluster status` shows what each node runs"
            )),
            ProposeError::Closed => Self::new(ErrorKind::Unavailable, error.to_string()),
            ProposeError::Timeout => Self::new(ErrorKind::Unconfirmed, error.to_string())
                .hint("look whether it happened; with the same Idempotency-Key it can be repeated without harm"),
            ProposeError::TooLarge { .. } => Self::new(ErrorKind::TooLarge, error.to_string())
                .hint("make the specification smaller: its environment, labels or command"),
            ProposeError::NoLeader => Self::new(ErrorKind::NoLeader, error.to_string())
                .hint("`toft cluster status` shows which members answer; containers go on running"),
            ProposeError::Storage(_) => Self::new(ErrorKind::Internal, error.to_string()),
        }
    }
}

impl From<NotCurrent> for ControlError {
    fn from(error: NotCurrent) -> Self {
        match error {
            NotCurrent::NoLeader => Self::new(ErrorKind::NoLeader, error.to_string())
                .hint("ask with `?consistency=local` for what this node knows; it may be old"),
            NotCurrent::DiskFull => Self::new(ErrorKind::DiskFull, error.to_string()).hint(
                "free some space; until then ask another node, or with `?consistency=local` for what this one knows",
            ),
            NotCurrent::Closed => Self::new(ErrorKind::Unavailable, error.to_string()),
        }
    }
}

impl From<BackupError> for ControlError {
    fn from(error: BackupError) -> Self {
        let kind = match &error {
            BackupError::NotFound(_) => ErrorKind::NotFound,
            BackupError::Busy | BackupError::NoKey => ErrorKind::Conflict,
            BackupError::Key(_) => ErrorKind::Invalid,
            BackupError::DiskFull { .. } | BackupError::Copy(CopyError::DiskFull { .. }) => ErrorKind::DiskFull,
            BackupError::Folder { .. } | BackupError::KeyFile { .. } => ErrorKind::Unavailable,
            _ => ErrorKind::Internal,
        };
        Self { kind, message: chain(&error), hint: error.hint(), field: None }
    }
}

impl From<ReadError> for ControlError {
    fn from(error: ReadError) -> Self {
        tracing::error!(error = chain(&error), "a read of the state failed");
        Self::new(ErrorKind::Internal, error.to_string())
    }
}
