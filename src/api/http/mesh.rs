//! `/mesh`.

use axum::{Json, extract::State};
use serde::Deserialize;
use toft_model::name::Name;
use utoipa::IntoParams;

use super::{ApiError, ApiState, error::Asked};
use crate::api::types::{Mesh, MeshPings};

/// Packets to each node when nobody chose another number.
const PACKETS: u32 = 5;

/// Who looks.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct MeshQuery {
    /// The node that looks; the one that is asked when absent.
    #[param(value_type = Option<String>)]
    node: Option<Name>,
}

/// Who is asked, and how often.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct PingQuery {
    /// Only this node is asked, by every other.
    #[param(value_type = Option<String>)]
    node: Option<Name>,
    /// Packets from each node to each other, 1 to 100; default 5. Ten a second are sent.
    packets: Option<u32>,
}

/// The mesh as a node sees it: how it reaches every other.
#[utoipa::path(get, path = "/mesh", tag = "mesh", params(MeshQuery), responses((status = 200, body = Mesh), (status = 404, body = crate::api::types::ErrorEnvelope)))]
pub async fn show(State(api): State<ApiState>, Asked(query): Asked<MeshQuery>) -> Result<Json<Mesh>, ApiError> {
    Ok(Json(api.ops.mesh_with_sizes(query.node.as_ref()).await?.into()))
}

/// Every node asks every other through the mesh whether it is there, and tells how long that took.
#[utoipa::path(get, path = "/mesh/ping", tag = "mesh", params(PingQuery), responses((status = 200, body = MeshPings), (status = 400, body = crate::api::types::ErrorEnvelope), (status = 404, body = crate::api::types::ErrorEnvelope)))]
pub async fn ping(State(api): State<ApiState>, Asked(query): Asked<PingQuery>) -> Result<Json<MeshPings>, ApiError> {
    let asked = api.ops.mesh_ping(query.node.as_ref(), query.packets.unwrap_or(PACKETS)).await?;
    Ok(Json(MeshPings::of(asked)))
}
