//! What a node measured over time, as it is asked for and told. It is no shared state: each node keeps its own.

use serde::{Deserialize, Serialize};

use crate::{gpu::GpuId, ids::InstanceId};

/// Most points of one answer.
pub const MOST_POINTS: u32 = 1_500;
/// Points of an answer when nobody says how many.
pub const USUAL_POINTS: u32 = 360;
/// How far back samples are kept, in milliseconds.
pub const KEPT_MS: i64 = 31 * 86_400_000;

/// Something whose samples belong together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// The node's machine.
    Machine,
    /// One of its cards.
    Gpu(GpuId),
    /// One of its instances.
    Instance(InstanceId),
}

impl Subject {
    /// What is measured of it, in the order in which samples hold it.
    pub fn measures(&self) -> &'static [Measure] {
        use Measure::*;
        match self {
            Self::Machine => &[
                CpuPercent,
                MemoryBytes,
                ReceivedPerSecond,
                SentPerSecond,
                ReadPerSecond,
                WrittenPerSecond,
                DiskUsedBytes,
                Celsius,
            ],
            Self::Gpu(_) => &[BusyPercent, MemoryBytes, Watts, Celsius],
            Self::Instance(_) => {
                &[CpuPercent, MemoryBytes, ReceivedPerSecond, SentPerSecond, ReadPerSecond, WrittenPerSecond]
            }
        }
    }
}

/// One thing that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// CPU time: of a machine in percent of all its cores, of an instance in percent of one core.
    CpuPercent,
    /// Memory in use, in bytes.
    MemoryBytes,
    /// Bytes received over the network in a second.
    ReceivedPerSecond,
    /// Bytes sent over the network in a second.
    SentPerSecond,
    /// Bytes read from disks in a second.
    ReadPerSecond,
    /// Bytes written to disks in a second.
    WrittenPerSecond,
    /// Bytes in use on the file system of the data directory.
    DiskUsedBytes,
    /// The highest temperature, in degrees Celsius.
    Celsius,
    /// Part of the time in which a card computed, 0 to 100.
    BusyPercent,
    /// Power that a card takes, in watts.
    Watts,
}

impl Measure {
    /// The word in addresses and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CpuPercent => "cpu_percent",
            Self::MemoryBytes => "memory_bytes",
            Self::ReceivedPerSecond => "received_per_second",
            Self::SentPerSecond => "sent_per_second",
            Self::ReadPerSecond => "read_per_second",
            Self::WrittenPerSecond => "written_per_second",
            Self::DiskUsedBytes => "disk_used_bytes",
            Self::Celsius => "celsius",
            Self::BusyPercent => "busy_percent",
            Self::Watts => "watts",
        }
    }
}

/// Which samples somebody wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// Only those at or after, in milliseconds since 1970.
    pub since_ms: i64,
    /// Only those before, in milliseconds since 1970.
    pub until_ms: i64,
    /// At most so many points, 1 to [`MOST_POINTS`].
    pub points: u32,
}

/// Samples at equal distances.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Series {
    /// Where the first point begins, in milliseconds since 1970.
    pub since_ms: i64,
    /// Milliseconds from point to point.
    pub step_ms: i64,
    /// One for each thing that is measured; all are of one length.
    pub lines: Vec<Line>,
}

impl Series {
    /// The line of one measure.
    pub fn line(&self, measure: Measure) -> Option<&Line> {
        self.lines.iter().find(|line| line.measure == measure)
    }
}

/// What was measured of one thing. Absent where nothing was.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Line {
    /// Of what.
    pub measure: Measure,
    /// The mean of each point.
    pub mean: Vec<Option<f32>>,
    /// The highest sample of each point.
    pub peak: Vec<Option<f32>>,
}
