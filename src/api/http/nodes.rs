//! `/nodes`.

use axum::{Json, extract::State};
use toft_model::{name::Name, node::NodeFacts, state::NodeRow};

use super::{
    ApiError, ApiState,
    error::{Asked, Parsed},
    query::ListQuery,
};
use crate::api::types::{Node, Page};

/// Every node, by name.
#[utoipa::path(get, path = "/nodes", tag = "nodes", params(ListQuery), responses((status = 200, body = Page<Node>)))]
pub async fn list(State(api): State<ApiState>, Asked(query): Asked<ListQuery>) -> Result<Json<Page<Node>>, ApiError> {
    let settings = api.ops.placement_settings().await?;
    let clocks = api.ops.clocks().await.unwrap_or_default();
    let node = |row: NodeRow| {
        let clock_ahead_ms = clocks.get(&row.id).copied();
        Node { clock_ahead_ms, ..Node::of(row, &settings) }
    };
    let nodes = api.ops.nodes().await?.into_iter().map(node).collect();
    Ok(Json(query.page(nodes, |node: &Node| node.name.clone())?))
}

/// One node, as it told when it last registered.
#[utoipa::path(get, path = "/nodes/{name}", tag = "nodes", params(("name" = String, Path)), responses((status = 200, body = Node), (status = 404, body = crate::api::types::ErrorEnvelope)))]
pub async fn show(State(api): State<ApiState>, Parsed(name): Parsed<Name>) -> Result<Json<Node>, ApiError> {
    let settings = api.ops.placement_settings().await?;
    let row = api.ops.node(&name).await?;
    let clock_ahead_ms = api.ops.clocks().await.unwrap_or_default().get(&row.id).copied();
    Ok(Json(Node { clock_ahead_ms, ..Node::of(row, &settings) }))
}

/// What the machine of a node is and has now: memory, disk, temperatures.
#[utoipa::path(get, path = "/nodes/{name}/facts", tag = "nodes", params(("name" = String, Path)), responses((status = 200, body = NodeFacts), (status = 404, body = crate::api::types::ErrorEnvelope), (status = 409, body = crate::api::types::ErrorEnvelope)))]
pub async fn facts(State(api): State<ApiState>, Parsed(name): Parsed<Name>) -> Result<Json<NodeFacts>, ApiError> {
    let node = api.ops.node(&name).await?;
    Ok(Json(api.ops.node_facts(&node).await?))
}
