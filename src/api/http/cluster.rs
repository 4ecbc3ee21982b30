//! `/cluster`.

use axum::{Json, extract::State};

use super::ApiState;
use crate::api::types::Cluster;

/// The members that share the state, as this node sees them.
#[utoipa::path(get, path = "/cluster", tag = "cluster", responses((status = 200, body = Cluster)))]
pub async fn show(State(api): State<ApiState>) -> Json<Cluster> {
    Json(api.ops.cluster().into())
}
