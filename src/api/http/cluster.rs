//! `/cluster`.

use axum::{Json, extract::State};

use super::{ApiError, ApiState};
use crate::api::types::{Cluster, JoinToken};

/// The members that share the state, as this node sees them.
#[utoipa::path(get, path = "/cluster", tag = "cluster", responses((status = 200, body = Cluster)))]
pub async fn show(State(api): State<ApiState>) -> Json<Cluster> {
    Json(api.ops.cluster().into())
}

/// What lets a machine join.
#[utoipa::path(get, path = "/cluster/token", tag = "cluster", responses((status = 200, body = JoinToken)))]
pub async fn token(State(api): State<ApiState>) -> Result<Json<JoinToken>, ApiError> {
    Ok(Json(JoinToken { token: api.ops.join_token()? }))
}
