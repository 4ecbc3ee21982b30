//! `/nodes`.

use axum::{Json, extract::State};
use toft_model::{name::Name, node::NodeFacts};

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
    let nodes = api.ops.nodes().await?.into_iter().map(|row| Node::of(row, &settings)).collect();
    Ok(Json(query.page(nodes, |node: &Node| node.name.clone())?))
}

/// One node, as it told when it last registered.
#[utoipa::path(get, path = "/nodes/{name}", tag = "nodes", params(("name" = String, Path)), responses((status = 200, body = Node), (status = 404, body = crate::api::types::ErrorEnvelope)))]
pub async fn show(State(api): State<ApiState>, Parsed(name): Parsed<Name>) -> Result<Json<Node>, ApiError> {
    let settings = api.ops.placement_settings().await?;
    Ok(Json(Node::of(api.ops.node(&name).await?, &settings)))
}

/// What the machine of the node that is asked is and has now: memory, disk, temperatures.
#[utoipa::path(get, path = "/nodes/{name}/facts", tag = "nodes", params(("name" = String, Path)), responses((status = 200, body = NodeFacts), (status = 404, body = crate::api::types::ErrorEnvelope), (status = 409, body = crate::api::types::ErrorEnvelope)))]
pub async fn facts(State(api): State<ApiState>, Parsed(name): Parsed<Name>) -> Result<Json<NodeFacts>, ApiError> {
    let node = api.ops.node(&name).await?;
    Ok(Json(api.ops.node_facts(&node).await?))
}
