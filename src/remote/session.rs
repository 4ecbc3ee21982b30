//! What both sides of a process say, as it travels.

use toft_model::exec::{ExecInput, ExecOutput, TerminalSize};

use crate::wire::node::{self, Detach, Down, End, Up, down, up};

pub(super) fn up(part: up::Part) -> Up {
    Up { part: Some(part) }
}

pub(super) fn down(part: down::Part) -> Down {
    Down { part: Some(part) }
}

pub(super) fn said(input: ExecInput) -> Up {
    up(match input {
        ExecInput::Bytes(bytes) => up::Part::Content(bytes),
        ExecInput::End => up::Part::End(End {}),
        ExecInput::Resize(TerminalSize { columns, rows }) => {
            up::Part::Size(node::TerminalSize { columns: columns.into(), rows: rows.into() })
        }
        ExecInput::Signal(number) => up::Part::Signal(number),
        ExecInput::Detach => up::Part::Detach(Detach {}),
    })
}

/// What was said, if it makes sense while a process runs.
pub(super) fn input(part: up::Part) -> Option<ExecInput> {
    Some(match part {
        up::Part::Content(bytes) => ExecInput::Bytes(bytes),
        up::Part::End(End {}) => ExecInput::End,
        up::Part::Size(node::TerminalSize { columns, rows }) => {
            let side = |count: u32| u16::try_from(count).ok().filter(|count| *count > 0);
            ExecInput::Resize(TerminalSize { columns: side(columns)?, rows: side(rows)? })
        }
        up::Part::Signal(number @ 1..=64) => ExecInput::Signal(number),
        up::Part::Signal(_) | up::Part::Question(_) => return None,
        up::Part::Detach(Detach {}) => ExecInput::Detach,
    })
}

pub(super) fn told(output: ExecOutput) -> Down {
    down(match output {
        ExecOutput::Stdout(bytes) => down::Part::Content(bytes),
        ExecOutput::Stderr(bytes) => down::Part::Errors(bytes),
        ExecOutput::Taken(bytes) => down::Part::Taken(bytes),
        ExecOutput::Exited(code) => down::Part::Exited(code),
        ExecOutput::Lost(why) => down::Part::Lost(why),
    })
}

/// What came of a process; what is no news of one is the end.
pub(super) fn output(part: down::Part) -> Option<ExecOutput> {
    Some(match part {
        down::Part::Content(bytes) => ExecOutput::Stdout(bytes),
        down::Part::Errors(bytes) => ExecOutput::Stderr(bytes),
        down::Part::Taken(bytes) => ExecOutput::Taken(bytes),
        down::Part::Exited(code) => ExecOutput::Exited(code),
        down::Part::Lost(why) => ExecOutput::Lost(why),
        down::Part::Refusal(json) => ExecOutput::Lost(super::question::refused(&json).error.message),
        down::Part::Json(_) | down::Part::Lines(_) => return None,
    })
}
