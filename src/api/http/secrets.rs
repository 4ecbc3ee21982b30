//! `/secrets`. Values come in as bare bytes and never go out.

use axum::{
    Json,
    body::Bytes,
    extract::{FromRequest, Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use toft_model::{
    name::Name,
    secret::MAX_VALUE_BYTES,
    state::{PutMode, SecretView},
};
use utoipa::IntoParams;

use super::{
    ApiError, ApiState,
    error::{Asked, Parsed},
    query::{ListQuery, generation},
};
use crate::{
    api::types::{Page, Secret},
    control::{ControlError, ErrorKind},
    seal::Plain,
};

/// The value of a secret: the body as it comes.
pub struct Value(Plain);

impl Value {
    /// The bytes.
    pub(super) fn into_plain(self) -> Plain {
        self.0
    }
}

impl<S: Send + Sync> FromRequest<S> for Value {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let bytes = Bytes::from_request(request, state).await.map_err(|rejection| {
            let error = match rejection.status() {
                StatusCode::PAYLOAD_TOO_LARGE => ControlError::new(ErrorKind::TooLarge, "the value is too large"),
                _ => ControlError::new(ErrorKind::Invalid, "the value could not be read"),
            };
            ApiError(error.field("value").hint(format!("send 1 to {MAX_VALUE_BYTES} bytes as the body")))
        })?;
        Ok(Self(Vec::from(bytes).into()))
    }
}

/// Name of a new secret.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct CreateQuery {
    /// A DNS label, unique among secrets.
    #[param(value_type = String, example = "db-password")]
    name: Name,
}

/// Every secret, by name; values are never told.
#[utoipa::path(get, path = "/secrets", tag = "secrets", params(ListQuery), responses((status = 200, body = Page<Secret>)))]
pub async fn list(State(api): State<ApiState>, Asked(query): Asked<ListQuery>) -> Result<Json<Page<Secret>>, ApiError> {
    let page = query.page(api.ops.secrets().await?, |secret| secret.row.name.to_string())?;
    Ok(Json(Page { items: page.items.into_iter().map(Secret::from).collect(), next: page.next }))
}

/// Creates a secret; its name must be free. The body is the value, 1 to 512000 bytes, taken as it is.
#[utoipa::path(post, path = "/secrets", tag = "secrets", params(CreateQuery), request_body(content = Vec<u8>, content_type = "application/octet-stream"), responses((status = 201, body = Secret), (status = 409, body = crate::api::types::ErrorEnvelope), (status = 413, body = crate::api::types::ErrorEnvelope)))]
pub async fn create(
    State(api): State<ApiState>,
    Asked(query): Asked<CreateQuery>,
    Value(value): Value,
) -> Result<Response, ApiError> {
    let location = format!("/api/v1/secrets/{}", query.name);
    let secret = api.ops.put_secret(query.name, value, PutMode::Create).await?;
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], tagged(secret)).into_response())
}

/// One secret; its value is never told.
#[utoipa::path(get, path = "/secrets/{name}", tag = "secrets", params(("name" = String, Path)), responses((status = 200, body = Secret), (status = 404, body = crate::api::types::ErrorEnvelope)))]
pub async fn show(State(api): State<ApiState>, Parsed(name): Parsed<Name>) -> Result<Response, ApiError> {
    Ok(tagged(api.ops.secret(&name).await?))
}

/// Writes a secret's value, new or changed; the body is the value. `If-Match` with the ETag read before refuses a lost
/// update. Processes that run keep the value they were started with.
#[utoipa::path(put, path = "/secrets/{name}", tag = "secrets", params(("name" = String, Path)), request_body(content = Vec<u8>, content_type = "application/octet-stream"), responses((status = 200, body = Secret), (status = 412, body = crate::api::types::ErrorEnvelope), (status = 413, body = crate::api::types::ErrorEnvelope)))]
pub async fn put(
    State(api): State<ApiState>,
    Parsed(name): Parsed<Name>,
    headers: HeaderMap,
    Value(value): Value,
) -> Result<Response, ApiError> {
    let if_generation = headers.get(header::IF_MATCH).map(generation).transpose()?;
    Ok(tagged(api.ops.put_secret(name, value, PutMode::Replace { if_generation }).await?))
}

/// Removes a secret that no workload uses.
#[utoipa::path(delete, path = "/secrets/{name}", tag = "secrets", params(("name" = String, Path)), responses((status = 204), (status = 404, body = crate::api::types::ErrorEnvelope), (status = 409, body = crate::api::types::ErrorEnvelope)))]
pub async fn remove(State(api): State<ApiState>, Parsed(name): Parsed<Name>) -> Result<StatusCode, ApiError> {
    api.ops.remove_secret(name).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn tagged(secret: SecretView) -> Response {
    ([(header::ETAG, format!("\"{}\"", secret.row.version))], Json(Secret::from(secret))).into_response()
}
