//! `/me/second-factor` and `/access`: one's own second factor, and what the cluster asks of admins.

use axum::{Json, extract::State, http::StatusCode};
use toft_model::{identity::UserName, second_factor::AccessChanges};
use zeroize::Zeroizing;

use super::{
    ApiError, ApiState,
    error::{Body, Parsed},
};
use crate::api::types::{
    Access, RecoveryCodes, SecondFactor, SecondFactorOffer, SecondFactorRemoval, SecondFactorRequest,
};

/// How whoever asks stands with their second factor.
#[utoipa::path(get, path = "/me/second-factor", tag = "people", responses((status = 200, body = SecondFactor)))]
pub async fn show(State(api): State<ApiState>) -> Result<Json<SecondFactor>, ApiError> {
    Ok(Json(api.ops.second_factor().await?.into()))
}

/// A new secret for an authenticator; nothing is changed yet. Tokens cannot do this.
#[utoipa::path(post, path = "/me/second-factor/offer", tag = "people", responses((status = 200, body = SecondFactorOffer), (status = 403, body = crate::api::types::ErrorEnvelope), (status = 409, body = crate::api::types::ErrorEnvelope)))]
pub async fn offer(State(api): State<ApiState>) -> Result<Json<SecondFactorOffer>, ApiError> {
    Ok(Json(api.ops.offer_second_factor().await?.into()))
}

/// Turns the second factor of whoever asks on, and gives the recovery codes once. Tokens cannot do this.
#[utoipa::path(put, path = "/me/second-factor", tag = "people", request_body = SecondFactorRequest, responses((status = 200, body = RecoveryCodes), (status = 400, body = crate::api::types::ErrorEnvelope), (status = 409, body = crate::api::types::ErrorEnvelope), (status = 429, body = crate::api::types::ErrorEnvelope)))]
pub async fn turn_on(
    State(api): State<ApiState>,
    Body(asked): Body<SecondFactorRequest>,
) -> Result<Json<RecoveryCodes>, ApiError> {
    let SecondFactorRequest { offer, code, password } = asked;
    let codes = api.ops.turn_on_second_factor(Zeroizing::new(password), &offer, &code).await?;
    Ok(Json(RecoveryCodes { recovery_codes: codes.iter().map(|code| code.to_string()).collect() }))
}

/// Turns the second factor of whoever asks off. Tokens cannot do this.
#[utoipa::path(post, path = "/me/second-factor/off", tag = "people", request_body = SecondFactorRemoval, responses((status = 204), (status = 400, body = crate::api::types::ErrorEnvelope), (status = 404, body = crate::api::types::ErrorEnvelope), (status = 429, body = crate::api::types::ErrorEnvelope)))]
pub async fn turn_off(
    State(api): State<ApiState>,
    Body(asked): Body<SecondFactorRemoval>,
) -> Result<StatusCode, ApiError> {
    let SecondFactorRemoval { code, password } = asked;
    api.ops.turn_off_second_factor(Zeroizing::new(password), &code).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Takes somebody's second factor away, who has lost it.
#[utoipa::path(delete, path = "/users/{name}/second-factor", tag = "people", params(("name" = String, Path)), responses((status = 204), (status = 404, body = crate::api::types::ErrorEnvelope)))]
pub async fn reset(State(api): State<ApiState>, Parsed(name): Parsed<UserName>) -> Result<StatusCode, ApiError> {
    api.ops.reset_second_factor(name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What the cluster asks of who comes in.
#[utoipa::path(get, path = "/access", tag = "people", responses((status = 200, body = Access)))]
pub async fn access(State(api): State<ApiState>) -> Result<Json<Access>, ApiError> {
    Ok(Json(api.ops.access_settings().await?.into()))
}

/// Changes it; what is absent stays. Whoever asks admins for a second factor has one.
#[utoipa::path(patch, path = "/access", tag = "people", request_body = AccessChanges, responses((status = 200, body = Access), (status = 400, body = crate::api::types::ErrorEnvelope), (status = 409, body = crate::api::types::ErrorEnvelope)))]
pub async fn configure_access(
    State(api): State<ApiState>,
    Body(asked): Body<AccessChanges>,
) -> Result<Json<Access>, ApiError> {
    Ok(Json(api.ops.configure_access(asked).await?.into()))
}
