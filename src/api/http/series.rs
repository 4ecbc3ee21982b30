//! `/nodes/{name}/series`, `/nodes/{name}/gpus/{gpu}/series` and `/instances/{name}/series`: what was measured over time.

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
};
use serde::Deserialize;
use toft_model::{
    gpu::GpuId,
    invalid::Invalid,
    name::Name,
    series::{Series, Span, USUAL_POINTS},
};
use utoipa::IntoParams;

use super::{
    ApiError, ApiState,
    error::{Asked, Parsed},
    query::moment_ns,
};
use crate::control::{ControlError, ErrorKind, ops::now_ms};

/// How far back samples reach when nobody says.
const USUAL: &str = "1h";

/// Which samples.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct SeriesQuery {
    /// From when on: `30s`, `10m`, `3h`, `2d` ago, or an RFC 3339 time; an hour ago by default. A month is kept.
    since: Option<String>,
    /// Until when, written alike; until now by default.
    until: Option<String>,
    /// At most so many points, 1 to 1500; 360 by default.
    points: Option<u32>,
}

impl SeriesQuery {
    fn span(&self) -> Result<Span, ControlError> {
        let now_ms = now_ms();
        let moment = |field, text| moment_ns(field, text, now_ms).map(|ns| ns / 1_000_000);
        let since_ms = moment("since", self.since.as_deref().unwrap_or(USUAL))?;
        let until_ms = self.until.as_deref().map_or(Ok(now_ms), |text| moment("until", text))?;
        Ok(Span { since_ms, until_ms, points: self.points.unwrap_or(USUAL_POINTS) })
    }
}

/// What was measured of a node's machine: CPU, memory, network, disk, temperature.
#[utoipa::path(get, path = "/nodes/{name}/series", tag = "nodes", params(("name" = String, Path), SeriesQuery), responses((status = 200, body = Series), (status = 404, body = crate::api::types::ErrorEnvelope), (status = 503, body = crate::api::types::ErrorEnvelope)))]
pub async fn of_node(
    State(api): State<ApiState>,
    Parsed(name): Parsed<Name>,
    Asked(query): Asked<SeriesQuery>,
) -> Result<Json<Series>, ApiError> {
    Ok(Json(api.ops.node_series(&name, query.span()?).await?))
}

/// What was measured of a GPU: work, memory, power, temperature. A `/` in its name is written `%2F`.
#[utoipa::path(get, path = "/nodes/{name}/gpus/{gpu}/series", tag = "gpus", params(("name" = String, Path), ("gpu" = String, Path), SeriesQuery), responses((status = 200, body = Series), (status = 404, body = crate::api::types::ErrorEnvelope), (status = 503, body = crate::api::types::ErrorEnvelope)))]
pub async fn of_gpu(
    State(api): State<ApiState>,
    path: Result<Path<(String, String)>, PathRejection>,
    Asked(query): Asked<SeriesQuery>,
) -> Result<Json<Series>, ApiError> {
    let Path((node, gpu)) = path.map_err(|_| ControlError::new(ErrorKind::Invalid, "the path is malformed"))?;
    let node: Name = node.parse().map_err(|e: Invalid| ControlError::from(e.at("name")))?;
    let gpu: GpuId = gpu.parse().map_err(|e: Invalid| ControlError::from(e.at("gpu")))?;
    Ok(Json(api.ops.gpu_series(&node, &gpu, query.span()?).await?))
}

/// What was measured of an instance: CPU, memory, network, disk.
#[utoipa::path(get, path = "/instances/{name}/series", tag = "instances", params(("name" = String, Path), SeriesQuery), responses((status = 200, body = Series), (status = 404, body = crate::api::types::ErrorEnvelope), (status = 503, body = crate::api::types::ErrorEnvelope)))]
pub async fn of_instance(
    State(api): State<ApiState>,
    name: Result<Path<String>, PathRejection>,
    Asked(query): Asked<SeriesQuery>,
) -> Result<Json<Series>, ApiError> {
    let Path(name) = name.map_err(|_| ControlError::new(ErrorKind::Invalid, "the path is malformed"))?;
    Ok(Json(api.ops.instance_series(&name, query.span()?).await?))
}
