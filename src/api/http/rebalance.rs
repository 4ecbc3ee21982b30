//! `/rebalance`.

use axum::{Json, extract::State, http::StatusCode};
use serde::Deserialize;
use toft_model::schedule::Remaining;
use utoipa::IntoParams;

use super::{
    ApiError, ApiState,
    error::{Asked, Body},
    idempotency::Changes,
};
use crate::api::types::{RebalancePlan, RebalanceRequest};

/// How much is planned.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct PlanQuery {
    /// Most moves, 1 to 1000; default 20.
    max_moves: Option<u32>,
}

/// Which instances would be better off on other nodes, were they placed now. Nothing is changed.
#[utoipa::path(get, path = "/rebalance/plan", tag = "cluster", params(PlanQuery), responses((status = 200, body = RebalancePlan), (status = 400, body = crate::api::types::ErrorEnvelope)))]
pub async fn plan(
    State(api): State<ApiState>,
    Asked(query): Asked<PlanQuery>,
) -> Result<Json<RebalancePlan>, ApiError> {
    Ok(Json(api.ops.plan_rebalance(query.max_moves).await?.into()))
}

/// Has a plan carried out exactly as it was shown, and gives what is to be moved. Refused with 409 when the cluster would be
/// given another plan by now, or still moves instances.
#[utoipa::path(post, path = "/rebalance", tag = "cluster", request_body = RebalanceRequest, responses((status = 200, body = Vec<Remaining>), (status = 400, body = crate::api::types::ErrorEnvelope), (status = 409, body = crate::api::types::ErrorEnvelope)))]
pub async fn order(
    Changes(ops): Changes,
    Body(request): Body<RebalanceRequest>,
) -> Result<Json<Vec<Remaining>>, ApiError> {
    Ok(Json(ops.rebalance(&request.plan, request.max_moves).await?))
}

/// What is still to be moved, in its turn.
#[utoipa::path(get, path = "/rebalance", tag = "cluster", responses((status = 200, body = Vec<Remaining>)))]
pub async fn remaining(State(api): State<ApiState>) -> Result<Json<Vec<Remaining>>, ApiError> {
    Ok(Json(api.ops.still_to_move().await?))
}

/// Takes back what was ordered and is not done; those instances stay where they are.
#[utoipa::path(delete, path = "/rebalance", tag = "cluster", responses((status = 204)))]
pub async fn stop(Changes(ops): Changes) -> Result<StatusCode, ApiError> {
    ops.stop_rebalance().await?;
    Ok(StatusCode::NO_CONTENT)
}
