//! `/users`, `/me`, `/sessions` and `/api-tokens`: people, who is signed in, and what programs show.

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use toft_model::{
    identity::{Rights, UserName},
    token::TokenId,
    units::parse_span_ms,
};
use zeroize::Zeroizing;

use super::{
    ApiError, ApiState,
    error::{Asked, Body, Parsed},
    query::ListQuery,
};
use crate::{
    api::types::{
        ApiToken, ApiTokenRequest, Authority, Me, NewApiToken, Page, PasswordChange, Session, User, UserChange,
        UserRequest,
    },
    control::{
        ControlError, ErrorKind,
        ops::{ApiTokenWish, UserWish},
    },
};

/// How long an API token is valid when nobody says.
const USUAL_TTL: &str = "90d";

/// Every user, by name.
#[utoipa::path(get, path = "/users", tag = "people", params(ListQuery), responses((status = 200, body = Page<User>), (status = 403, body = crate::api::types::ErrorEnvelope)))]
pub async fn list(State(api): State<ApiState>, Asked(query): Asked<ListQuery>) -> Result<Json<Page<User>>, ApiError> {
    let users = api.ops.users().await?.into_iter().map(User::from).collect();
    Ok(Json(query.page(users, |user: &User| user.name.clone())?))
}

/// Makes a user known; the name must be free.
#[utoipa::path(post, path = "/users", tag = "people", request_body = UserRequest, responses((status = 201, body = User), (status = 400, body = crate::api::types::ErrorEnvelope), (status = 409, body = crate::api::types::ErrorEnvelope)))]
pub async fn create(State(api): State<ApiState>, Body(asked): Body<UserRequest>) -> Result<Response, ApiError> {
    let wish = UserWish {
        role: Some(asked.role),
        grants: Some(asked.grants),
        disabled: None,
        password: asked.password.map(Zeroizing::new),
    };
    let location = format!("/api/v1/users/{}", asked.name);
    let user = User::from(api.ops.create_user(asked.name, wish).await?);
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(user)).into_response())
}

/// One user.
#[utoipa::path(get, path = "/users/{name}", tag = "people", params(("name" = String, Path)), responses((status = 200, body = User), (status = 404, body = crate::api::types::ErrorEnvelope)))]
pub async fn show(State(api): State<ApiState>, Parsed(name): Parsed<UserName>) -> Result<Json<User>, ApiError> {
    Ok(Json(api.ops.user(&name).await?.into()))
}

/// Changes a user; what is absent stays. A new password and `disabled` end their sessions.
#[utoipa::path(patch, path = "/users/{name}", tag = "people", params(("name" = String, Path)), request_body = UserChange, responses((status = 200, body = User), (status = 400, body = crate::api::types::ErrorEnvelope), (status = 404, body = crate::api::types::ErrorEnvelope), (status = 409, body = crate::api::types::ErrorEnvelope)))]
pub async fn change(
    State(api): State<ApiState>,
    Parsed(name): Parsed<UserName>,
    Body(asked): Body<UserChange>,
) -> Result<Json<User>, ApiError> {
    let UserChange { role, grants, disabled, password } = asked;
    let wish = UserWish { role, grants, disabled, password: password.map(Zeroizing::new) };
    Ok(Json(api.ops.change_user(&name, wish).await?.into()))
}

/// Removes a user with all sessions and tokens. `admin` cannot be removed, nor the last admin.
#[utoipa::path(delete, path = "/users/{name}", tag = "people", params(("name" = String, Path)), responses((status = 204), (status = 404, body = crate::api::types::ErrorEnvelope), (status = 409, body = crate::api::types::ErrorEnvelope)))]
pub async fn remove(State(api): State<ApiState>, Parsed(name): Parsed<UserName>) -> Result<StatusCode, ApiError> {
    api.ops.remove_user(name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The certificate of the cluster's authority, for devices that are to trust the certificates of its nodes. Open to everybody.
#[utoipa::path(get, path = "/ca", tag = "people", responses((status = 200, body = Authority)))]
pub async fn authority(State(api): State<ApiState>) -> Result<Json<Authority>, ApiError> {
    let root = api.ops.trust_root()?;
    Ok(Json(Authority { pem: root.pem.clone(), sha256: root.sha256.clone() }))
}

/// Who asks, and what they may.
#[utoipa::path(get, path = "/me", tag = "people", responses((status = 200, body = Me)))]
pub async fn me() -> Result<Json<Me>, ApiError> {
    let nobody = || ApiError(ControlError::new(ErrorKind::Unauthenticated, "who asks is not known"));
    Me::now().map(Json).ok_or_else(nobody)
}

/// Gives whoever asks another password; their other sessions end. Tokens cannot do this.
#[utoipa::path(post, path = "/me/password", tag = "people", request_body = PasswordChange, responses((status = 204), (status = 400, body = crate::api::types::ErrorEnvelope), (status = 429, body = crate::api::types::ErrorEnvelope)))]
pub async fn change_password(
    State(api): State<ApiState>,
    Body(asked): Body<PasswordChange>,
) -> Result<StatusCode, ApiError> {
    let PasswordChange { present, new } = asked;
    api.ops.change_own_password(Zeroizing::new(present), Zeroizing::new(new)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Who is signed in: for admins everybody, for others their own sessions. The one used last comes first.
#[utoipa::path(get, path = "/sessions", tag = "people", params(ListQuery), responses((status = 200, body = Page<Session>)))]
pub async fn sessions(
    State(api): State<ApiState>,
    Asked(query): Asked<ListQuery>,
) -> Result<Json<Page<Session>>, ApiError> {
    let sessions = api.ops.sessions(None).await?.into_iter().map(Session::from).collect();
    Ok(Json(query.page(sessions, |session: &Session| session.id.clone())?))
}

/// Ends a session: one of one's own, or as an admin anybody's.
#[utoipa::path(delete, path = "/sessions/{id}", tag = "people", params(("id" = String, Path)), responses((status = 204), (status = 404, body = crate::api::types::ErrorEnvelope)))]
pub async fn end_session(State(api): State<ApiState>, Parsed(id): Parsed<TokenId>) -> Result<StatusCode, ApiError> {
    api.ops.end_session(id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// API tokens, the newest first: for admins everybody's, for others their own. Secrets are never told.
#[utoipa::path(get, path = "/api-tokens", tag = "people", params(ListQuery), responses((status = 200, body = Page<ApiToken>)))]
pub async fn api_tokens(
    State(api): State<ApiState>,
    Asked(query): Asked<ListQuery>,
) -> Result<Json<Page<ApiToken>>, ApiError> {
    let tokens = api.ops.api_tokens().await?.into_iter().map(ApiToken::from).collect();
    Ok(Json(query.page(tokens, |token: &ApiToken| token.id.clone())?))
}

/// Makes an API token for whoever asks, with at most what they may. It is told once.
#[utoipa::path(post, path = "/api-tokens", tag = "people", request_body = ApiTokenRequest, responses((status = 201, body = NewApiToken), (status = 400, body = crate::api::types::ErrorEnvelope), (status = 403, body = crate::api::types::ErrorEnvelope)))]
pub async fn create_api_token(
    State(api): State<ApiState>,
    Body(asked): Body<ApiTokenRequest>,
) -> Result<(StatusCode, Json<NewApiToken>), ApiError> {
    let ttl_ms = parse_span_ms(asked.ttl.as_deref().unwrap_or(USUAL_TTL)).map_err(|invalid| invalid.at("ttl"));
    let wish = ApiTokenWish {
        user: asked.user,
        label: asked.label,
        rights: Rights { role: asked.role, grants: asked.grants },
        ttl_ms: ttl_ms.map_err(ControlError::from)?,
    };
    Ok((StatusCode::CREATED, Json(api.ops.create_api_token(wish).await?.into())))
}

/// Takes an API token back: one of one's own, or as an admin anybody's.
#[utoipa::path(delete, path = "/api-tokens/{id}", tag = "people", params(("id" = String, Path)), responses((status = 204), (status = 404, body = crate::api::types::ErrorEnvelope)))]
pub async fn revoke_api_token(
    State(api): State<ApiState>,
    Parsed(id): Parsed<TokenId>,
) -> Result<StatusCode, ApiError> {
    api.ops.revoke_api_token(id).await?;
    Ok(StatusCode::NO_CONTENT)
}
