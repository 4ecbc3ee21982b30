//! `/workloads/NAME/versions` and `/workloads/NAME/rollback`.

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, header},
    response::Response,
};
use toft_model::name::Name;

use super::{
    ApiError, ApiState,
    error::{Body, Parsed},
    idempotency::Changes,
    query::generation,
    workloads::tagged,
};
use crate::api::types::{RollbackRequest, Version, Workload};

/// The specifications that a workload has had, the newest first: the last ten, and the last that worked.
#[utoipa::path(get, path = "/workloads/{name}/versions", tag = "workloads", params(("name" = String, Path)), responses((status = 200, body = Vec<Version>), (status = 404, body = crate::api::types::ErrorEnvelope)))]
pub async fn list(State(api): State<ApiState>, Parsed(name): Parsed<Name>) -> Result<Json<Vec<Version>>, ApiError> {
    Ok(Json(Version::all(api.ops.versions(&name).await?)))
}

/// Writes an earlier specification again, under a new generation; labels stay as they are. `If-Match` as for `PUT`.
#[utoipa::path(post, path = "/workloads/{name}/rollback", tag = "workloads", params(("name" = String, Path)), request_body = RollbackRequest, responses((status = 200, body = Workload), (status = 404, body = crate::api::types::ErrorEnvelope), (status = 412, body = crate::api::types::ErrorEnvelope)))]
pub async fn roll_back(
    Changes(ops): Changes,
    Parsed(name): Parsed<Name>,
    headers: HeaderMap,
    Body(request): Body<RollbackRequest>,
) -> Result<Response, ApiError> {
    let if_generation = headers.get(header::IF_MATCH).map(generation).transpose()?;
    Ok(tagged(ops.roll_back(name, request.to, if_generation).await?))
}
