//! What a container wrote.

use serde::{Deserialize, Serialize};

/// Which of the two outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// One line of output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LogLine {
    /// When it was written, in nanoseconds since 1970.
    pub at_ns: i64,
    /// Which output.
    pub stream: LogStream,
    /// The line without its end. Bytes that are not UTF-8 are replaced.
    pub text: String,
    /// Whether the line goes on in the next record: it was longer than a record.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
}

/// Which lines are wanted.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LogQuery {
    /// Only the last so many.
    pub tail: Option<usize>,
    /// Only those at or after, in nanoseconds since 1970.
    pub since_ns: Option<i64>,
    /// Only those before, in nanoseconds since 1970.
    pub until_ns: Option<i64>,
    /// Only those that this regular expression finds something in.
    pub grep: Option<String>,
    /// Go on until the instance has ended for good.
    pub follow: bool,
}
