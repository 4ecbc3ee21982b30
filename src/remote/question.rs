//! What can be asked, as it travels.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use toft_model::{
    exec::{AttachOrder, ExecOrder},
    ids::InstanceId,
    image::ImageRef,
    log::LogQuery,
    name::Name,
    series::{Span, Subject},
};

use crate::control::{
    ControlError, ErrorKind,
    node_access::{exec::ExecRefused, files::PathInside, usage::RunningInstance, volumes::VolumeHere},
};

/// What has one answer.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Question {
    Facts,
    GoneLogs { workload: Option<Name> },
    Images,
    ImagePulls,
    RemoveImage { image: ImageRef },
    ImageRoom,
    FileStat(PathInside),
    Usage { instances: Vec<RunningInstance>, pss: bool },
    Processes(RunningInstance),
    VolumeFacts { names: Vec<Name> },
    MeshSeen,
    MeshPing { packets: u32 },
    Series { subject: Subject, span: Span },
}

/// What lasts.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Opening {
    Exec { instance: InstanceId, order: ExecOrder },
    Attach { instance: InstanceId, order: AttachOrder },
    Logs { instance: InstanceId, query: LogQuery },
    ReadFiles(PathInside),
    WriteFiles { path: PathInside, keep_owner: bool },
    BackUp(VolumeHere),
    Restore { volume: VolumeHere, replace: bool },
    Pull { image: ImageRef },
    Import { name: Option<ImageRef> },
}

/// As JSON.
pub(super) fn json<T: Serialize>(value: &T) -> Result<Vec<u8>, ControlError> {
    serde_json::to_vec(value).map_err(|e| ControlError::new(ErrorKind::Internal, e.to_string()))
}

/// What JSON says. Its text is not repeated: it may hold secrets.
pub(super) fn parse<T: DeserializeOwned>(json: &[u8]) -> Result<T, ControlError> {
    serde_json::from_slice(json).map_err(|_| not_understood())
}

/// What came makes no sense here.
pub(super) fn not_understood() -> ControlError {
    ControlError::new(ErrorKind::Invalid, "the two nodes do not understand each other")
        .hint("run the same version of toft on both; `toft node ls` shows which they have")
}

/// A refusal as it travels.
pub(super) fn refusal(refused: &ExecRefused) -> Vec<u8> {
    // Texts and numbers always are JSON.
    serde_json::to_vec(refused).unwrap_or_default()
}

/// What a refusal says.
pub(super) fn refused(json: &[u8]) -> ExecRefused {
    parse(json).unwrap_or_else(ExecRefused::from)
}
