//! `/nodes`.

use axum::{Json, extract::State};

use super::{ApiError, ApiState, error::Asked, query::ListQuery};
use crate::api::types::{Node, Page};

/// Every node, by name.
#[utoipa::path(get, path = "/nodes", tag = "nodes", params(ListQuery), responses((status = 200, body = Page<Node>)))]
pub async fn list(State(api): State<ApiState>, Asked(query): Asked<ListQuery>) -> Result<Json<Page<Node>>, ApiError> {
    let nodes = api.ops.nodes().await?.into_iter().map(Node::from).collect();
    Ok(Json(query.page(nodes, |node: &Node| node.name.clone())?))
}
