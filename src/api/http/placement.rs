//! `/placement`, and what is asked about places elsewhere.

use axum::{Json, extract::State};
use toft_model::{
    name::Name,
    node::NodeChanges,
    schedule::{Explanation, PlacementChanges, PlacementSettings, Remaining},
};

use super::{
    ApiError, ApiState,
    error::{Body, Parsed},
    idempotency::Changes,
};
use crate::api::types::Node;

/// What the cluster says about where work goes.
#[utoipa::path(get, path = "/placement", tag = "cluster", responses((status = 200, body = PlacementSettings)))]
pub async fn show(State(api): State<ApiState>) -> Result<Json<PlacementSettings>, ApiError> {
    Ok(Json(api.ops.placement_settings().await?))
}

/// Changes what the cluster says about where work goes. What is absent stays; `null` takes back.
#[utoipa::path(patch, path = "/placement", tag = "cluster", request_body = PlacementChanges, responses((status = 200, body = PlacementSettings), (status = 400, body = crate::api::types::ErrorEnvelope)))]
pub async fn change(
    Changes(ops): Changes,
    Body(changes): Body<PlacementChanges>,
) -> Result<Json<PlacementSettings>, ApiError> {
    Ok(Json(ops.configure_placement(changes).await?))
}

/// Changes what users say of a node: labels, taints, whether it takes work, its price. What is absent stays; `null` takes back.
#[utoipa::path(patch, path = "/nodes/{name}", tag = "nodes", params(("name" = String, Path)), request_body = NodeChanges, responses((status = 200, body = Node), (status = 400, body = crate::api::types::ErrorEnvelope), (status = 404, body = crate::api::types::ErrorEnvelope)))]
pub async fn configure_node(
    Changes(ops): Changes,
    Parsed(name): Parsed<Name>,
    Body(changes): Body<NodeChanges>,
) -> Result<Json<Node>, ApiError> {
    let row = ops.configure_node(name, changes).await?;
    Ok(Json(Node::of(row, &ops.placement_settings().await?)))
}

/// What is still on a node, and what it waits for. A node on which everything is `down` is empty.
#[utoipa::path(get, path = "/nodes/{name}/remaining", tag = "nodes", params(("name" = String, Path)), responses((status = 200, body = Vec<Remaining>), (status = 404, body = crate::api::types::ErrorEnvelope)))]
pub async fn remaining(
    State(api): State<ApiState>,
    Parsed(name): Parsed<Name>,
) -> Result<Json<Vec<Remaining>>, ApiError> {
    Ok(Json(api.ops.remaining_on(&name).await?))
}

/// Why a workload's instances are where they are, why not elsewhere, and what would make one more fit.
#[utoipa::path(get, path = "/workloads/{name}/explain", tag = "workloads", params(("name" = String, Path)), responses((status = 200, body = Explanation), (status = 404, body = crate::api::types::ErrorEnvelope)))]
pub async fn explain(State(api): State<ApiState>, Parsed(name): Parsed<Name>) -> Result<Json<Explanation>, ApiError> {
    Ok(Json(api.ops.explain(&name).await?))
}
