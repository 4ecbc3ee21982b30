//! `/signed-tokens` and `/signing-keys`: short-lived tokens for services, and the keys by which others know them.

use axum::{
    Json,
    extract::State,
    http::{HeaderName, StatusCode, header},
};
use toft_model::{identity::Rights, units::parse_span_ms};

use super::{ApiError, ApiState, error::Body};
use crate::{
    api::types::{Key, Keys, SignedToken, SignedTokenRequest},
    control::{ControlError, ops::SignedTokenWish},
};

/// How long a signed token is valid when nobody says.
const USUAL_TTL: &str = "15m";
/// How long others may keep a copy of the keys: shorter than a key is known before it signs.
const CACHED: [(HeaderName, &str); 1] = [(header::CACHE_CONTROL, "public, max-age=300")];

/// Signs a short-lived token (JWT, EdDSA) that speaks of whoever asks, with at most what they may. Signed tokens cannot do this.
#[utoipa::path(post, path = "/signed-tokens", tag = "people", request_body = SignedTokenRequest, responses((status = 201, body = SignedToken), (status = 400, body = crate::api::types::ErrorEnvelope), (status = 403, body = crate::api::types::ErrorEnvelope), (status = 404, body = crate::api::types::ErrorEnvelope)))]
pub async fn sign(
    State(api): State<ApiState>,
    Body(asked): Body<SignedTokenRequest>,
) -> Result<(StatusCode, Json<SignedToken>), ApiError> {
    let ttl_ms = parse_span_ms(asked.ttl.as_deref().unwrap_or(USUAL_TTL)).map_err(|invalid| invalid.at("ttl"));
    let wish = SignedTokenWish {
        user: asked.user,
        audience: asked.audience,
        rights: Rights { role: asked.role, grants: asked.grants },
        ttl_ms: ttl_ms.map_err(ControlError::from)?,
    };
    Ok((StatusCode::CREATED, Json(api.ops.sign_token(wish).await?.into())))
}

/// Makes another key and forgets all others: every token that was signed before ends at once.
#[utoipa::path(post, path = "/signing-keys/rotate", tag = "people", responses((status = 204)))]
pub async fn rotate(State(api): State<ApiState>) -> Result<StatusCode, ApiError> {
    api.ops.rotate_signing_keys(true).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The public keys that prove signed tokens (JWKS). Open to everybody.
#[utoipa::path(get, path = "/.well-known/jwks.json", tag = "people", responses((status = 200, body = Keys)))]
pub async fn keys(State(api): State<ApiState>) -> Result<([(HeaderName, &'static str); 1], Json<Keys>), ApiError> {
    let keys = api.ops.published_keys().await?.keys.into_iter().map(Key::from).collect();
    Ok((CACHED, Json(Keys { keys })))
}
