//! `/volumes`.

use axum::{
    Json,
    body::Body as RawBody,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::TryStreamExt;
use serde::Deserialize;
use toft_model::name::Name;
use tokio_util::io::StreamReader;
use utoipa::IntoParams;

use super::{
    ApiError, ApiState,
    error::{Asked, Body, Parsed},
    query::ListQuery,
};
use crate::{
    api::types::{Page, Volume, VolumeMoveRequest, VolumeMoveStatus, VolumeRequest, VolumeRestored},
    control::ops::NewVolume,
};

/// Every volume, by name.
#[utoipa::path(get, path = "/volumes", tag = "volumes", params(ListQuery), responses((status = 200, body = Page<Volume>)))]
pub async fn list(State(api): State<ApiState>, Asked(query): Asked<ListQuery>) -> Result<Json<Page<Volume>>, ApiError> {
    let volumes = api.ops.volumes().await?.into_iter().map(Volume::from).collect();
    Ok(Json(query.page(volumes, |volume: &Volume| volume.name.clone())?))
}

/// Makes a volume; its name must be free. A workload that mounts a name that is not there makes a volume, too.
#[utoipa::path(post, path = "/volumes", tag = "volumes", request_body = VolumeRequest, responses((status = 201, body = Volume), (status = 409, body = crate::api::types::ErrorEnvelope)))]
pub async fn create(State(api): State<ApiState>, Body(asked): Body<VolumeRequest>) -> Result<Response, ApiError> {
    let location = format!("/api/v1/volumes/{}", asked.name);
    let VolumeRequest { name, node, options, labels } = asked;
    let volume = api.ops.create_volume(NewVolume { name, node, options, labels }).await?;
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(Volume::from(volume))).into_response())
}

/// One volume.
#[utoipa::path(get, path = "/volumes/{name}", tag = "volumes", params(("name" = String, Path)), responses((status = 200, body = Volume), (status = 404, body = crate::api::types::ErrorEnvelope)))]
pub async fn show(State(api): State<ApiState>, Parsed(name): Parsed<Name>) -> Result<Json<Volume>, ApiError> {
    Ok(Json(api.ops.volume(&name).await?.into()))
}

/// Removes a volume that no workload uses; its node deletes the data.
#[utoipa::path(delete, path = "/volumes/{name}", tag = "volumes", params(("name" = String, Path)), responses((status = 204), (status = 404, body = crate::api::types::ErrorEnvelope), (status = 409, body = crate::api::types::ErrorEnvelope)))]
pub async fn remove(State(api): State<ApiState>, Parsed(name): Parsed<Name>) -> Result<StatusCode, ApiError> {
    api.ops.remove_volume(name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Removes every volume that no workload uses, and gives them. Their nodes delete the data.
#[utoipa::path(post, path = "/volumes/prune", tag = "volumes", responses((status = 200, body = Vec<Volume>)))]
pub async fn prune(State(api): State<ApiState>) -> Result<Json<Vec<Volume>>, ApiError> {
    Ok(Json(api.ops.prune_volumes().await?.into_iter().map(Volume::from).collect()))
}

/// Orders a volume to another node, which brings it there: it is copied while it is used; then what uses it stops, what changed
/// follows, both ends are compared, and what uses it starts there. Goes on whatever nodes are restarted.
#[utoipa::path(post, path = "/volumes/{name}/move", tag = "volumes", params(("name" = String, Path)), request_body = VolumeMoveRequest, responses((status = 202, body = VolumeMoveStatus), (status = 400, body = crate::api::types::ErrorEnvelope), (status = 404, body = crate::api::types::ErrorEnvelope), (status = 409, body = crate::api::types::ErrorEnvelope)))]
pub async fn begin_move(
    State(api): State<ApiState>,
    Parsed(name): Parsed<Name>,
    Body(asked): Body<VolumeMoveRequest>,
) -> Result<Response, ApiError> {
    let begun = api.ops.move_volume(&name, asked.to).await?;
    Ok((StatusCode::ACCEPTED, Json(VolumeMoveStatus::from(begun))).into_response())
}

/// How far the move of a volume is, or why it was given up.
#[utoipa::path(get, path = "/volumes/{name}/move", tag = "volumes", params(("name" = String, Path)), responses((status = 200, body = VolumeMoveStatus), (status = 404, body = crate::api::types::ErrorEnvelope)))]
pub async fn show_move(
    State(api): State<ApiState>,
    Parsed(name): Parsed<Name>,
) -> Result<Json<VolumeMoveStatus>, ApiError> {
    Ok(Json(api.ops.volume_move(&name).await?.into()))
}

/// Takes back the order to move a volume: it stays where it is.
#[utoipa::path(delete, path = "/volumes/{name}/move", tag = "volumes", params(("name" = String, Path)), responses((status = 204), (status = 404, body = crate::api::types::ErrorEnvelope)))]
pub async fn cancel_move(State(api): State<ApiState>, Parsed(name): Parsed<Name>) -> Result<StatusCode, ApiError> {
    api.ops.cancel_volume_move(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Sends a backup: a tar compressed with zstd, made as it is read.
#[utoipa::path(get, path = "/volumes/{name}/backup", tag = "volumes", params(("name" = String, Path)), responses((status = 200, body = Vec<u8>, content_type = "application/zstd"), (status = 404, body = crate::api::types::ErrorEnvelope), (status = 409, body = crate::api::types::ErrorEnvelope)))]
pub async fn backup(State(api): State<ApiState>, Parsed(name): Parsed<Name>) -> Result<Response, ApiError> {
    let backup = api.ops.back_up_volume(&name).await?;
    let headers = [
        (header::CONTENT_TYPE, "application/zstd".to_owned()),
        (header::CONTENT_DISPOSITION, format!("attachment; filename=\"{name}.tar.zst\"")),
    ];
    Ok((headers, RawBody::from_stream(backup)).into_response())
}

/// How a backup is restored.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct RestoreQuery {
    /// Whether what the volume holds is deleted once the backup was read whole.
    #[serde(default)]
    replace: bool,
}

/// Puts a backup, sent as the body, into a volume that nothing runs with; a volume that is not there is made. One that is
/// not empty is refused unless `replace` is said.
#[utoipa::path(post, path = "/volumes/{name}/restore", tag = "volumes", params(("name" = String, Path), RestoreQuery), request_body(content = Vec<u8>, content_type = "application/zstd"), responses((status = 200, body = VolumeRestored), (status = 400, body = crate::api::types::ErrorEnvelope), (status = 409, body = crate::api::types::ErrorEnvelope)))]
pub async fn restore(
    State(api): State<ApiState>,
    Parsed(name): Parsed<Name>,
    Asked(query): Asked<RestoreQuery>,
    body: RawBody,
) -> Result<Json<VolumeRestored>, ApiError> {
    let bytes = body.into_data_stream().map_err(std::io::Error::other);
    let restored = api.ops.restore_volume(name, Box::new(StreamReader::new(bytes)), query.replace).await?;
    Ok(Json(restored.into()))
}
