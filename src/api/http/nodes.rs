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
    let (behind, full) = (api.ops.behind(), api.ops.without_room().await);
    let node = |row: NodeRow| {
        let (clock_ahead_ms, behind) = (clocks.get(&row.id).copied(), behind.contains(&row.id));
        Node { clock_ahead_ms, behind, disk_full: full.contains(&row.id), ..Node::of(row, &settings) }
    };
    let joining = api.ops.joining().await?;
    let mut nodes: Vec<Node> = api.ops.nodes().await?.into_iter().map(node).collect();
    // Between two reads one may have told what it is.
    let new = joining.into_iter().map(Node::joining).filter(|node| !nodes.iter().any(|known| known.id == node.id));
    let new: Vec<Node> = new.collect();
    nodes.extend(new);
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Json(query.page(nodes, |node: &Node| node.name.clone())?))
}

/// One node, as it told when it last registered.
#[utoipa::path(get, path = "/nodes/{name}", tag = "nodes", params(("name" = String, Path)), responses((status = 200, body = Node), (status = 404, body = crate::api::types::ErrorEnvelope)))]
pub async fn show(State(api): State<ApiState>, Parsed(name): Parsed<Name>) -> Result<Json<Node>, ApiError> {
    let settings = api.ops.placement_settings().await?;
    let row = match api.ops.node(&name).await {
        Ok(row) => row,
        Err(error) => {
            let joining = api.ops.joining().await?.into_iter().find(|row| row.name == name);
            return joining.map(|row| Json(Node::joining(row))).ok_or_else(|| error.into());
        }
    };
    let clock_ahead_ms = api.ops.clocks().await.unwrap_or_default().get(&row.id).copied();
    let behind = api.ops.behind().contains(&row.id);
    let disk_full = api.ops.without_room().await.contains(&row.id);
    Ok(Json(Node { clock_ahead_ms, behind, disk_full, ..Node::of(row, &settings) }))
}

/// What the machine of a node is and has now: memory, disk, temperatures.
#[utoipa::path(get, path = "/nodes/{name}/facts", tag = "nodes", params(("name" = String, Path)), responses((status = 200, body = NodeFacts), (status = 404, body = crate::api::types::ErrorEnvelope), (status = 409, body = crate::api::types::ErrorEnvelope)))]
pub async fn facts(State(api): State<ApiState>, Parsed(name): Parsed<Name>) -> Result<Json<NodeFacts>, ApiError> {
    let node = api.ops.node(&name).await?;
    Ok(Json(api.ops.node_facts(&node).await?))
}
