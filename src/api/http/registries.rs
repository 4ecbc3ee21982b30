//! `/registries`. Passwords come in as bare bytes and never go out.

use axum::{Json, extract::State, http::StatusCode};
use serde::Deserialize;
use toft_model::registry::RegistryName;
use utoipa::IntoParams;

use super::{
    ApiError, ApiState,
    error::{Asked, Parsed},
    query::ListQuery,
    secrets::Value,
};
use crate::api::types::{Page, Registry};

/// Who logs in.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct LoginQuery {
    /// User name: 1 to 256 characters without `:`.
    #[param(example = "jo")]
    username: String,
}

/// Every login at a registry; passwords are never told.
#[utoipa::path(get, path = "/registries", tag = "registries", params(ListQuery), responses((status = 200, body = Page<Registry>)))]
pub async fn list(
    State(api): State<ApiState>,
    Asked(query): Asked<ListQuery>,
) -> Result<Json<Page<Registry>>, ApiError> {
    let page = query.page(api.ops.logins().await?, |row| row.registry.to_string())?;
    Ok(Json(Page { items: page.items.into_iter().map(Registry::from).collect(), next: page.next }))
}

/// Writes the login at a registry, which all nodes use from then on. The body is the password or access token, at most 16 KiB.
/// A registry has one login.
#[utoipa::path(put, path = "/registries/{registry}", tag = "registries", params(("registry" = String, Path), LoginQuery), request_body(content = Vec<u8>, content_type = "application/octet-stream"), responses((status = 200, body = Registry), (status = 400, body = crate::api::types::ErrorEnvelope)))]
pub async fn put(
    State(api): State<ApiState>,
    Parsed(registry): Parsed<RegistryName>,
    Asked(query): Asked<LoginQuery>,
    password: Value,
) -> Result<Json<Registry>, ApiError> {
    Ok(Json(api.ops.log_in(registry, query.username, password.into_plain()).await?.into()))
}

/// Removes the login at a registry.
#[utoipa::path(delete, path = "/registries/{registry}", tag = "registries", params(("registry" = String, Path)), responses((status = 204), (status = 404, body = crate::api::types::ErrorEnvelope)))]
pub async fn remove(
    State(api): State<ApiState>,
    Parsed(registry): Parsed<RegistryName>,
) -> Result<StatusCode, ApiError> {
    api.ops.log_out(registry).await?;
    Ok(StatusCode::NO_CONTENT)
}
