//! What is said over the WebSocket of a process in a container, besides its streams.

use serde::{Deserialize, Serialize};
use toft_model::exec::{AttachOrder, ExecOrder, TerminalSize};
use utoipa::ToSchema;

use super::ErrorBody;

/// What a client of `exec` or `attach` says, one JSON text message each. Binary messages are input for the process.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum ExecCommand {
    /// The first message: what to run.
    Start {
        /// The order.
        order: ExecOrder,
    },
    /// The terminal has another size.
    Resize {
        /// The size.
        size: TerminalSize,
    },
    /// Send the process a signal.
    Signal {
        /// Its number on Linux, 1 to 64.
        number: i32,
    },
    /// There will be no more input.
    EndOfInput,
    /// The first message to attach: how.
    Attach {
        /// The order.
        order: AttachOrder,
    },
    /// Leave: what the client is attached to goes on, and its input stays open.
    Detach,
}

/// What the node says, one JSON text message each. Binary messages are output: the first byte is 1 for standard output
/// and for a terminal, 2 for standard error; the rest are the bytes.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ExecNews {
    /// The process runs.
    Started,
    /// So many bytes of input were taken. Whoever sends at most 256 KiB that were not yet taken is never held up.
    Taken {
        /// How many.
        bytes: u64,
    },
    /// The process ended. The last message.
    Exited {
        /// Exit code; 128 and the signal's number if a signal ended it.
        code: i32,
    },
    /// It could not be started, or nothing more can be told of it. The last message.
    Failed {
        /// Why.
        error: ErrorBody,
        /// What a shell exits with: 127 for a command that is missing, 126 for one that cannot be executed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        exit_code: Option<i32>,
    },
}
