//! Changes with a key of the client's own: one that is repeated is applied once.

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, request::Parts},
};
use toft_model::ids::RequestId;
use utoipa::IntoParams;
use uuid::Uuid;

use super::{ApiError, ApiState};
use crate::control::{ControlError, ErrorKind, ops::Ops};

/// The header that carries the key.
pub const KEY_HEADER: &str = "Idempotency-Key";

/// What every change of the state takes.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "it describes what `Changes` reads")]
pub(super) struct KeyHeader {
    /// A UUID chosen for this change. A request that is repeated with the same key and content is applied once; with the
    /// same key and other content it is refused with 409.
    #[param(rename = "Idempotency-Key", format = "uuid")]
    key: Option<String>,
}

/// The operations, which apply what they are asked under the client's key if there is one.
pub(super) struct Changes(pub(super) Ops);

impl FromRequestParts<ApiState> for Changes {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &ApiState) -> Result<Self, ApiError> {
        Ok(Self(api.ops.clone().with_key(key(&parts.headers)?)))
    }
}

fn key(headers: &HeaderMap) -> Result<Option<RequestId>, ControlError> {
    let mut values = headers.get_all(KEY_HEADER).iter();
    let Some(value) = values.next() else { return Ok(None) };
    // The header's draft standard writes it in quotes.
    let text = value.to_str().unwrap_or_default().trim_matches('"');
    match Uuid::try_parse(text) {
        Ok(id) if values.next().is_none() => Ok(Some(RequestId(id))),
        _ => Err(ControlError::new(ErrorKind::Invalid, "the Idempotency-Key header is no UUID")
            .field(KEY_HEADER)
            .hint("send one UUID, a new one for each change")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(values: &[&[u8]]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(KEY_HEADER, axum::http::HeaderValue::from_bytes(value).unwrap());
        }
        headers
    }

    #[test]
    fn a_key_is_one_uuid() {
        let id = "01890a5d-ac96-774b-bcce-b302099a8057";
        let parsed = Some(RequestId(id.parse().unwrap()));
        assert_eq!(key(&headers(&[])).unwrap(), None);
        assert_eq!(key(&headers(&[id.as_bytes()])).unwrap(), parsed);
        assert_eq!(key(&headers(&[format!("\"{id}\"").as_bytes()])).unwrap(), parsed);
        let long = "a".repeat(10_000);
        let bad: [&[&[u8]]; 6] =
            [&[b""], &[b"x"], &[b"\xff\xfe"], &[long.as_bytes()], &[b"01890a5d"], &[id.as_bytes(), id.as_bytes()]];
        for values in bad {
            assert_eq!(key(&headers(values)).unwrap_err().field.as_deref(), Some(KEY_HEADER));
        }
    }
}
