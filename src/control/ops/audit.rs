//! The audit trail.

use std::time::Duration;

use toft_model::state::{AuditQuery, AuditRow, Command};

use super::Ops;
use crate::control::{ControlError, ErrorKind};

/// Most entries of one answer.
pub const MOST: u32 = 1_000;
/// Longest text that is searched for, in bytes.
const LONGEST_GREP: usize = 200;
/// Longest wait until what was done is noted. It was done already.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longest texts of a note, in characters.
const LONGEST: usize = 300;

/// Something that was done and that the state does not show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Noted {
    /// What: `exec`.
    pub action: &'static str,
    /// To what: `/instances/web-0/exec`.
    pub subject: String,
}

impl Ops {
    /// The entries asked for, the newest first.
    pub async fn audit(&self, query: AuditQuery) -> Result<Vec<AuditRow>, ControlError> {
        if query.grep.as_ref().is_some_and(|text| text.len() > LONGEST_GREP) {
            return Err(ControlError::new(ErrorKind::Invalid, "the text is too long")
                .hint(format!("search for at most {LONGEST_GREP} bytes"))
                .field("grep"));
        }
        let query = AuditQuery { limit: query.limit.min(MOST), ..query };
        Ok(self.state.read(move |connection| AuditRow::query(connection, &query)).await?)
    }

    /// Notes what whoever asks did. When it cannot be noted, the log tells of it.
    pub async fn note(&self, noted: Noted) {
        let Noted { action, subject } = noted;
        let subject: String = subject.chars().filter(|c| !c.is_control()).take(LONGEST).collect();
        let command = Command::NoteAction { action: action.into(), subject: subject.clone(), detail: String::new() };
        match tokio::time::timeout(PATIENCE, self.submit(command)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!(%error, action, subject, "what was done is not in the audit trail"),
            Err(_) => tracing::warn!(action, subject, "what was done may not be in the audit trail"),
        }
    }
}
