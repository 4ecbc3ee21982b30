//! Errors as envelopes, and bodies and paths whose faults become such.

use axum::{
    Json,
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Path, Query, Request},
    http::{StatusCode, header::CONTENT_LENGTH, request::Parts},
    response::{IntoResponse, Response},
};
use serde::de::DeserializeOwned;

use crate::{
    api::types::{ErrorBody, ErrorEnvelope},
    control::{ControlError, ErrorKind},
};

/// An error on its way to a client.
#[derive(Debug)]
pub struct ApiError(pub ControlError);

impl<E: Into<ControlError>> From<E> for ApiError {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

/// The HTTP status of a kind.
pub fn status(kind: ErrorKind) -> StatusCode {
    match kind {
        ErrorKind::Invalid => StatusCode::BAD_REQUEST,
        ErrorKind::Unauthenticated => StatusCode::UNAUTHORIZED,
        ErrorKind::Forbidden => StatusCode::FORBIDDEN,
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::Conflict => StatusCode::CONFLICT,
        ErrorKind::Stale => StatusCode::PRECONDITION_FAILED,
        ErrorKind::Throttled => StatusCode::TOO_MANY_REQUESTS,
        ErrorKind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        ErrorKind::Unavailable | ErrorKind::NoLeader => StatusCode::SERVICE_UNAVAILABLE,
        ErrorKind::Unconfirmed => StatusCode::GATEWAY_TIMEOUT,
        ErrorKind::DiskFull => StatusCode::INSUFFICIENT_STORAGE,
        ErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (status(self.0.kind), Json(ErrorEnvelope { error: self.0.into() })).into_response()
    }
}

impl From<ControlError> for ErrorBody {
    fn from(error: ControlError) -> Self {
        let ControlError { kind, message, hint, field } = error;
        Self { code: kind.code().into(), message, hint, field }
    }
}

/// A JSON body. What cannot be read is refused with the path of the field.
pub struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let told = request.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        // Nobody is asked to send what is not wanted.
        if told.is_some_and(|length| length > super::MAX_BODY_BYTES as u64) {
            return Err(too_large());
        }
        let bytes = Bytes::from_request(request, state).await.map_err(|rejection| match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => too_large(),
            _ => ApiError(ControlError::new(ErrorKind::Invalid, "the body could not be read")),
        })?;
        let mut json = serde_json::Deserializer::from_slice(&bytes);
        let parsed = serde_path_to_error::deserialize(&mut json).map_err(|error| {
            let path = error.path().to_string();
            refuse(&path, &error.into_inner().to_string())
        })?;
        json.end().map_err(|error| refuse(".", &error.to_string()))?;
        Ok(Self(parsed))
    }
}

fn too_large() -> ApiError {
    let message = format!("the body is larger than {} bytes", super::MAX_BODY_BYTES);
    ApiError(ControlError::new(ErrorKind::TooLarge, message))
}

fn refuse(path: &str, why: &str) -> ApiError {
    let unknown = why.strip_prefix("unknown field `").and_then(|rest| rest.split('`').next());
    let missing = why.strip_prefix("missing field `").and_then(|rest| rest.split('`').next());
    let twice = why.strip_prefix("duplicate field `").and_then(|rest| rest.split('`').next());
    let inner = unknown.or(missing).or(twice);
    let field = match (path, inner) {
        (".", None) => None,
        (".", Some(inner)) => Some(inner.to_owned()),
        (path, Some(inner)) if !path.ends_with(inner) => Some(format!("{path}.{inner}")),
        (path, _) => Some(path.to_owned()),
    };
    let mut error =
        ControlError::new(ErrorKind::Invalid, why.to_owned()).hint("see /api/v1/openapi.json for the fields there are");
    error.field = field;
    ApiError(error)
}

/// A path parameter that must parse.
pub struct Parsed<T>(pub T);

impl<S, T> FromRequestParts<S> for Parsed<T>
where
    S: Send + Sync,
    T: std::str::FromStr<Err = toft_model::invalid::Invalid>,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Path(text) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|_| ApiError(ControlError::new(ErrorKind::Invalid, "the path is malformed")))?;
        Ok(Self(text.parse::<T>().map_err(|e| e.at("name"))?))
    }
}

/// Query parameters; unknown ones are refused.
pub struct Asked<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Asked<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Query::<T>::from_request_parts(parts, state).await {
            Ok(Query(asked)) => Ok(Self(asked)),
            Err(rejection) => {
                let why =
                    std::error::Error::source(&rejection).map_or_else(|| rejection.to_string(), ToString::to_string);
                let (path, why) = why.split_once(": ").unwrap_or((".", &why));
                Err(refuse(path, why))
            }
        }
    }
}
