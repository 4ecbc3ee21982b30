//! Failures as people read them.

use std::io::IsTerminal;

use crate::{api::types::ErrorBody, daemon::Hinted, observe::chain};

/// A failed command.
#[derive(Debug)]
pub struct Failure {
    /// What the process exits with.
    pub exit_code: i32,
    /// What programs call it, if it has a name.
    code: Option<String>,
    message: String,
    field: Option<String>,
    hint: Option<String>,
}

impl Failure {
    /// A failure without field and hint.
    pub fn of(exit_code: i32, message: impl Into<String>) -> Self {
        Self { exit_code, code: None, message: message.into(), field: None, hint: None }
    }

    /// What it says.
    pub(super) fn message(&self) -> &str {
        &self.message
    }

    /// The same with the next step.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same with another exit code.
    pub fn with_code(mut self, exit_code: i32) -> Self {
        self.exit_code = exit_code;
        self
    }

    /// The same with a name for programs.
    pub fn with_name(mut self, code: &str) -> Self {
        self.code = Some(code.to_owned());
        self
    }

    /// Whether programs call it that.
    pub fn is(&self, code: &str) -> bool {
        self.code.as_deref() == Some(code)
    }

    /// Says it on stderr.
    pub fn print(&self) {
        let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let (red, bold, plain) = if colour { ("\x1b[31;1m", "\x1b[1m", "\x1b[0m") } else { ("", "", "") };
        eprintln!("{red}error:{plain} {}", self.message);
        if let Some(field) = &self.field {
            eprintln!("{bold}field:{plain} {field}");
        }
        if let Some(hint) = &self.hint {
            eprintln!("{bold}hint:{plain} {hint}");
        }
    }
}

impl From<ErrorBody> for Failure {
    fn from(body: ErrorBody) -> Self {
        Self { exit_code: 1, code: Some(body.code), message: body.message, field: body.field, hint: body.hint }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        let hint = error.downcast_ref::<Hinted>().map(|hinted| hinted.hint().to_owned());
        Self { exit_code: 1, code: None, message: chain(error.as_ref()), field: None, hint }
    }
}
