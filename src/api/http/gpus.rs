//! `/gpus` and `/nodes/{name}/gpus/{gpu}`.

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
    http::StatusCode,
};
use toft_model::{gpu::GpuId, name::Name};

use super::{
    ApiError, ApiState,
    error::{Asked, Body},
    query::ListQuery,
};
use crate::{
    api::types::{GpuChange, NodeGpu, Page},
    control::{ControlError, ErrorKind},
};

/// Every GPU, by node and place; with what it measures when it is one of the node that is asked.
#[utoipa::path(get, path = "/gpus", tag = "gpus", params(ListQuery), responses((status = 200, body = Page<NodeGpu>)))]
pub async fn list(
    State(api): State<ApiState>,
    Asked(query): Asked<ListQuery>,
) -> Result<Json<Page<NodeGpu>>, ApiError> {
    let key = |gpu: &NodeGpu| format!("{}/{:05}", gpu.node, gpu.place);
    let mut gpus: Vec<NodeGpu> = api.ops.gpus().await?.into_iter().map(NodeGpu::from).collect();
    gpus.sort_by_key(key);
    Ok(Json(query.page(gpus, key)?))
}

/// Changes how a GPU is given away. What runs on it runs on. A `/` in its name is written `%2F`.
#[utoipa::path(patch, path = "/nodes/{name}/gpus/{gpu}", tag = "gpus", params(("name" = String, Path), ("gpu" = String, Path)), request_body = GpuChange, responses((status = 204), (status = 400, body = crate::api::types::ErrorEnvelope), (status = 404, body = crate::api::types::ErrorEnvelope)))]
pub async fn configure(
    State(api): State<ApiState>,
    path: Result<Path<(String, String)>, PathRejection>,
    Body(change): Body<GpuChange>,
) -> Result<StatusCode, ApiError> {
    let Path((node, gpu)) = path.map_err(|_| ControlError::new(ErrorKind::Invalid, "the path is malformed"))?;
    let node: Name = node.parse().map_err(|e: toft_model::invalid::Invalid| ControlError::from(e.at("name")))?;
    let gpu: GpuId = gpu.parse().map_err(|e: toft_model::invalid::Invalid| ControlError::from(e.at("gpu")))?;
    api.ops.configure_gpu(&node, gpu, change.policy, change.cordoned).await?;
    Ok(StatusCode::NO_CONTENT)
}
