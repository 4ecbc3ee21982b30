//! Formats of commands: what a member has to understand before a command may stand in the log.

use super::command::Command;

/// The format of what every toft understands.
pub const FIRST_FORMAT: u32 = 1;
/// Newest format that this toft writes and understands. It is raised by one in each version that adds a command, or adds to a
/// command what an older toft would pass over; [`Command::format`] says which commands those are.
pub const FORMAT: u32 = 1;

impl Command {
    /// The format from which on it is understood as it is written here. What was added to a command counts only where it is used.
    pub fn format(&self) -> u32 {
        // All there are came with the first.
        FIRST_FORMAT
    }
}

/// For a field that is absent from what older tofts wrote.
pub(super) fn first() -> u32 {
    FIRST_FORMAT
}

pub(super) fn is_first(format: &u32) -> bool {
    *format == FIRST_FORMAT
}
