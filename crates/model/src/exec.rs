//! A process that somebody runs inside a container: what is asked for, and what both sides say while it runs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::invalid::Invalid;

/// Most words of a command, and most variables.
const MOST_WORDS: usize = 1024;
/// Most bytes of command and environment together.
const MOST_BYTES: usize = 128 * 1024;
/// Longest name of a user or path of a directory, in bytes.
const LONGEST_PATH: usize = 4096;

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TerminalSize {
    /// Characters a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

/// A process to be run beside a container's own, with its rights and in its files. It has no `Debug`: command and
/// environment may hold secrets.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecOrder {
    /// Program and arguments; at most 1024 words, 128 KiB together with the environment.
    pub command: Vec<String>,
    /// Environment, added to the container's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// `user` or `user:group`, names or numbers, instead of the container's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Absolute path of the working directory instead of the container's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dir: Option<String>,
    /// Whether input will be sent; without, the process reads an end at once.
    #[serde(default)]
    pub stdin: bool,
    /// Gives the process a terminal of that size. Its output and its errors then come as one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<TerminalSize>,
}

impl ExecOrder {
    /// Refuses what no process can be started with.
    pub fn validate(&self) -> Result<(), Invalid> {
        let zero = |text: &str| text.contains('\0');
        if self.command.first().is_none_or(String::is_empty) {
            return Err(refuse("command", "there is no command", "name the program to run, such as `sh`"));
        }
        if self.command.len() > MOST_WORDS || self.env.len() > MOST_WORDS {
            let field = if self.env.len() > MOST_WORDS { "env" } else { "command" };
            let message = format!("it has more than {MOST_WORDS} parts");
            return Err(refuse(field, message, "pass it as a file or input"));
        }
        let pairs = self.env.iter().map(|(key, value)| key.len() + value.len() + 2);
        let bytes: usize = self.command.iter().map(|word| word.len() + 1).chain(pairs).sum();
        if bytes > MOST_BYTES {
            let message = format!("command and environment are longer than {MOST_BYTES} bytes");
            return Err(refuse("command", message, "pass it as a file or input"));
        }
        if self.command.iter().any(|word| zero(word)) {
            return Err(refuse("command", "a word holds a zero byte", "leave it out"));
        }
        // The variable is not named: what was meant as a value may stand in its place.
        let bad = |(key, value): (&String, &String)| key.is_empty() || key.contains('=') || zero(key) || zero(value);
        if self.env.iter().any(bad) {
            let hint = "names are not empty and hold no `=`; neither names nor values hold a zero byte";
            return Err(refuse("env", "a variable is malformed", hint));
        }
        let user = self.user.as_deref();
        if user.is_some_and(|user| user.is_empty() || user.len() > 256 || user.contains(|c: char| c.is_control())) {
            return Err(refuse("user", "the user is malformed", "write `web`, `1000` or `1000:1000`"));
        }
        let dir = self.dir.as_deref();
        if dir.is_some_and(|dir| !dir.starts_with('/') || dir.len() > LONGEST_PATH || zero(dir)) {
            return Err(refuse("dir", "the directory is no absolute path", "write it like `/srv/data`"));
        }
        validate_size(self.terminal)
    }
}

fn refuse(field: &str, message: impl Into<String>, hint: &str) -> Invalid {
    Invalid::value(message, hint).at(field)
}

/// What somebody wants who attaches to a container's own process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AttachOrder {
    /// Whether input will be sent.
    pub stdin: bool,
    /// Hold the container up while this client does not read, so that it misses nothing. Without, a client that has not taken
    /// what came for 5 seconds is cut off.
    pub lossless: bool,
    /// Size for the container's terminal, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub terminal: Option<TerminalSize>,
}

impl AttachOrder {
    /// Refuses what makes no sense.
    pub fn validate(&self) -> Result<(), Invalid> {
        validate_size(self.terminal)
    }
}

fn validate_size(size: Option<TerminalSize>) -> Result<(), Invalid> {
    if size.is_some_and(|size| size.columns == 0 || size.rows == 0) {
        return Err(refuse("terminal", "a terminal has at least one character", "send its real size"));
    }
    Ok(())
}

/// What goes to the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecInput {
    /// Bytes for its standard input.
    Bytes(Vec<u8>),
    /// There will be no more input.
    End,
    /// The terminal has another size.
    Resize(TerminalSize),
    /// A signal, by number.
    Signal(i32),
    /// Leave what was attached to as it is. A process of `exec` ends with its user all the same.
    Detach,
}

/// What comes from the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecOutput {
    /// It wrote to its standard output, or to its terminal.
    Stdout(Vec<u8>),
    /// It wrote to its standard error.
    Stderr(Vec<u8>),
    /// So many bytes of input were taken, or thrown away because nobody reads them any more.
    Taken(u64),
    /// It ended with that code, 128 and the signal's number if by a signal. The last word.
    Exited(i32),
    /// Nothing more can be told of it; why. The last word.
    Lost(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order() -> ExecOrder {
        let command = vec!["sh".to_owned()];
        ExecOrder { command, env: BTreeMap::new(), user: None, dir: None, stdin: false, terminal: None }
    }

    #[test]
    fn what_no_process_can_be_started_with_is_refused_with_its_field() {
        assert!(order().validate().is_ok());
        let refused = |field: &str, change: &dyn Fn(&mut ExecOrder)| {
            let mut order = order();
            change(&mut order);
            assert_eq!(order.validate().unwrap_err().field, field);
        };
        refused("command", &|order| order.command.clear());
        refused("command", &|order| order.command = vec![String::new()]);
        refused("command", &|order| order.command.push("a\0b".into()));
        refused("command", &|order| order.command = vec!["x".into(); MOST_WORDS + 1]);
        refused("command", &|order| order.command.push("x".repeat(MOST_BYTES)));
        refused("command", &|order| drop(order.env.insert("A".into(), "x".repeat(MOST_BYTES))));
        refused("env", &|order| drop(order.env.insert(String::new(), "x".into())));
        refused("env", &|order| drop(order.env.insert("A=B".into(), "x".into())));
        refused("env", &|order| drop(order.env.insert("A".into(), "\0".into())));
        refused("env", &|order| order.env = (0..=MOST_WORDS).map(|i| (i.to_string(), String::new())).collect());
        refused("user", &|order| order.user = Some(String::new()));
        refused("user", &|order| order.user = Some("a\nb".into()));
        refused("dir", &|order| order.dir = Some("srv".into()));
        refused("dir", &|order| order.dir = Some(format!("/{}", "x".repeat(LONGEST_PATH))));
        refused("terminal", &|order| order.terminal = Some(TerminalSize { columns: 0, rows: 1 }));
    }

    #[test]
    fn a_terminal_without_a_size_cannot_be_attached() {
        AttachOrder::default().validate().unwrap();
        let terminal = Some(TerminalSize { columns: 3, rows: 0 });
        assert_eq!(AttachOrder { terminal, ..AttachOrder::default() }.validate().unwrap_err().field, "terminal");
    }

    #[test]
    fn a_malformed_variable_is_not_repeated() {
        let mut order = order();
        order.env.insert("hunter2=".into(), "hunter2".into());
        let refused = order.validate().unwrap_err();
        assert!(!format!("{refused} {}", refused.hint).contains("hunter2"));
    }
}
