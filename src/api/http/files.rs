//! `/instances/{name}/files`: files out of and into an instance, as tar archives.

use axum::{
    Json,
    body::Body as RawBody,
    extract::{Path, State, rejection::PathRejection},
    http::header,
    response::{IntoResponse, Response},
};
use futures_util::TryStreamExt;
use serde::Deserialize;
use toft_model::files::{FileStat, FilesWritten};
use tokio_util::io::StreamReader;
use utoipa::IntoParams;

use super::{ApiError, ApiState, error::Asked};
use crate::control::{ControlError, ErrorKind};

/// What is read.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct ReadQuery {
    /// Path from the container's root.
    path: String,
    /// Follow a link at the end of the path.
    #[serde(default)]
    follow: bool,
}

/// Where it is written.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct WriteQuery {
    /// Path of a directory, from the container's root.
    path: String,
    /// Files belong to whom the archive says, else to root.
    #[serde(default)]
    keep_owner: bool,
}

type Name = Result<Path<String>, PathRejection>;

fn named(name: Name) -> Result<String, ControlError> {
    let Path(name) = name.map_err(|_| ControlError::new(ErrorKind::Invalid, "the path is malformed"))?;
    Ok(name)
}

/// What a path of an instance leads to.
#[utoipa::path(get, path = "/instances/{name}/files/stat", tag = "instances", params(("name" = String, Path), ReadQuery), responses((status = 200, body = FileStat), (status = 404, body = crate::api::types::ErrorEnvelope)))]
pub async fn stat(
    State(api): State<ApiState>,
    name: Name,
    Asked(query): Asked<ReadQuery>,
) -> Result<Json<FileStat>, ApiError> {
    Ok(Json(api.ops.file_stat(&named(name)?, query.path, query.follow).await?))
}

/// A file or a directory of an instance as a tar archive, whose first entry has the last part of the path for
/// its name, or `.` when the path ends in `/.`. Devices and sockets are left out.
#[utoipa::path(get, path = "/instances/{name}/files", tag = "instances", params(("name" = String, Path), ReadQuery), responses((status = 200, body = Vec<u8>, content_type = "application/x-tar"), (status = 404, body = crate::api::types::ErrorEnvelope)))]
pub async fn read(
    State(api): State<ApiState>,
    name: Name,
    Asked(query): Asked<ReadQuery>,
) -> Result<Response, ApiError> {
    let (_, archive) = api.ops.read_files(&named(name)?, query.path, query.follow).await?;
    Ok(([(header::CONTENT_TYPE, "application/x-tar")], RawBody::from_stream(archive)).into_response())
}

/// Unpacks a tar archive into a directory of an instance. Names that lead out of the directory, also by links,
/// and devices are refused; what was unpacked before stays.
#[utoipa::path(put, path = "/instances/{name}/files", tag = "instances", params(("name" = String, Path), WriteQuery), request_body(content = Vec<u8>, content_type = "application/x-tar"), responses((status = 200, body = FilesWritten), (status = 400, body = crate::api::types::ErrorEnvelope), (status = 404, body = crate::api::types::ErrorEnvelope), (status = 409, body = crate::api::types::ErrorEnvelope)))]
pub async fn write(
    State(api): State<ApiState>,
    name: Name,
    Asked(query): Asked<WriteQuery>,
    body: RawBody,
) -> Result<Json<FilesWritten>, ApiError> {
    let bytes = StreamReader::new(body.into_data_stream().map_err(std::io::Error::other));
    Ok(Json(api.ops.write_files(&named(name)?, query.path, Box::new(bytes), query.keep_owner).await?))
}
