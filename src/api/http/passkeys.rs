//! `/me/passkeys` and `/users/{name}/passkeys`: what devices keep for people. They are added in a browser, at the dashboard.

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
    http::StatusCode,
};
use toft_model::{identity::UserName, invalid::Invalid, token::TokenId};

use super::{
    ApiError, ApiState,
    error::{Asked, Parsed},
    query::ListQuery,
};
use crate::{
    api::types::{Page, Passkey},
    control::{ControlError, ErrorKind},
};

/// The passkeys of whoever asks.
#[utoipa::path(get, path = "/me/passkeys", tag = "people", params(ListQuery), responses((status = 200, body = Page<Passkey>)))]
pub async fn own(State(api): State<ApiState>, Asked(query): Asked<ListQuery>) -> Result<Json<Page<Passkey>>, ApiError> {
    let passkeys = api.ops.own_passkeys().await?.into_iter().map(Passkey::from).collect();
    Ok(Json(query.page(passkeys, |passkey: &Passkey| passkey.id.clone())?))
}

/// Removes a passkey of whoever asks, and ends the sessions that it opened. Tokens cannot do this.
#[utoipa::path(delete, path = "/me/passkeys/{id}", tag = "people", params(("id" = String, Path)), responses((status = 204), (status = 404, body = crate::api::types::ErrorEnvelope), (status = 409, body = crate::api::types::ErrorEnvelope)))]
pub async fn remove_own(State(api): State<ApiState>, Parsed(id): Parsed<TokenId>) -> Result<StatusCode, ApiError> {
    api.ops.remove_own_passkey(id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The passkeys of a user.
#[utoipa::path(get, path = "/users/{name}/passkeys", tag = "people", params(("name" = String, Path), ListQuery), responses((status = 200, body = Page<Passkey>), (status = 404, body = crate::api::types::ErrorEnvelope)))]
pub async fn list(
    State(api): State<ApiState>,
    Parsed(name): Parsed<UserName>,
    Asked(query): Asked<ListQuery>,
) -> Result<Json<Page<Passkey>>, ApiError> {
    let passkeys = api.ops.passkeys(name).await?.into_iter().map(Passkey::from).collect();
    Ok(Json(query.page(passkeys, |passkey: &Passkey| passkey.id.clone())?))
}

/// Removes a passkey of somebody who has lost it, and ends the sessions that it opened.
#[utoipa::path(delete, path = "/users/{name}/passkeys/{id}", tag = "people", params(("name" = String, Path), ("id" = String, Path)), responses((status = 204), (status = 404, body = crate::api::types::ErrorEnvelope)))]
pub async fn remove(
    State(api): State<ApiState>,
    path: Result<Path<(String, String)>, PathRejection>,
) -> Result<StatusCode, ApiError> {
    let Path((name, id)) = path.map_err(|_| ControlError::new(ErrorKind::Invalid, "the path is malformed"))?;
    let name = name.parse::<UserName>().map_err(|invalid: Invalid| invalid.at("name"))?;
    let id = id.parse::<TokenId>().map_err(|invalid: Invalid| invalid.at("id"))?;
    api.ops.remove_passkey(name, id).await?;
    Ok(StatusCode::NO_CONTENT)
}
