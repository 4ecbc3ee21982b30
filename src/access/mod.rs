//! Who may come through TCP: whoever tells the password of `admin` (HTTP Basic, RFC 7617), and no page of another site.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use base64::{
    Engine,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use sha2::{Digest, Sha256};

use crate::{
    api::http::ApiError,
    control::{ControlError, ErrorKind},
};

/// Open to everybody: they tell nothing that is worth hiding.
const OPEN: [&str; 2] = ["/health", "/ready"];

/// RFC 4648, padded or not.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The password, as its digest.
#[derive(Clone)]
pub struct Password(Arc<[u8; 32]>);

impl Password {
    /// Of this text.
    pub fn new(text: &str) -> Self {
        Self(Arc::new(Sha256::digest(text.as_bytes()).into()))
    }

    /// Compares digests without telling by time how much was right.
    fn matches(&self, text: &[u8]) -> bool {
        let told: [u8; 32] = Sha256::digest(text).into();
        self.0.iter().zip(told).fold(0, |different, (ours, theirs)| different | (ours ^ theirs)) == 0
    }
}

/// Lets a request through, or refuses it.
pub async fn require(State(password): State<Password>, request: Request, next: Next) -> Response {
    if let Err(refused) = same_site(&request) {
        return ApiError(refused).into_response();
    }
    if OPEN.contains(&request.uri().path()) || told(request.headers()).is_some_and(|told| password.matches(&told)) {
        return next.run(request).await;
    }
    let error = ControlError::new(ErrorKind::Unauthenticated, "the password of `admin` is needed")
        .hint("it is in the file `admin-password` of the data directory, which root can read");
    let mut response = ApiError(error).into_response();
    let challenge = HeaderValue::from_static("Basic realm=\"toft\", charset=\"UTF-8\"");
    response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    debug_assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    response
}

fn told(headers: &HeaderMap) -> Option<Vec<u8>> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, encoded) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") || encoded.len() > 512 {
        return None;
    }
    let decoded = BASE64.decode(encoded.trim()).ok()?;
    let (user, password) = decoded.split_at(decoded.iter().position(|byte| *byte == b':')?);
    (user == b"admin").then(|| password[1..].to_vec())
}

/// A browser sends the password by itself, also when a page of another site makes it ask. Such requests are told by
/// `Sec-Fetch-Site` and `Origin`, and by a host name that is not this machine's (DNS rebinding).
fn same_site(request: &Request) -> Result<(), ControlError> {
    let headers = request.headers();
    let text = |name: header::HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let host = text(header::HOST)
        .or_else(|| request.uri().authority().map(|authority| authority.as_str()))
        .unwrap_or_default();
    let name = host.rsplit_once(':').map_or(host, |(name, port)| if port.ends_with(']') { host } else { name });
    let local = name == "localhost"
        || name.ends_with(".localhost")
        || name == "[::1]"
        || name.parse::<std::net::Ipv4Addr>().is_ok_and(|ip| ip.is_loopback());
    let forbidden = |why: &str| {
        Err(ControlError::new(ErrorKind::Forbidden, why.to_owned())
            .hint("open the dashboard's own address in the browser"))
    };
    if !local {
        return forbidden("the request was made to a host name that is not this machine's loopback");
    }
    // A WebSocket begins with a GET, which browsers let pages of every site send.
    let upgrade = headers.contains_key(header::UPGRADE);
    if matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS) && !upgrade {
        return Ok(());
    }
    if headers.get("sec-fetch-site").is_some_and(|site| site != "same-origin" && site != "none") {
        return forbidden("the request came from a page of another site");
    }
    let origin = text(header::ORIGIN).map(|origin| origin.split_once("://").map_or(origin, |(_, host)| host));
    if origin.is_some_and(|origin| origin != host) {
        return forbidden("the request came from a page of another site");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn request(method: &str, headers: &[(&str, &str)]) -> Request {
        let mut builder = Request::builder().method(method).uri("/x");
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(Body::empty()).unwrap()
    }

    #[test]
    fn basic_credentials_are_read() {
        let with = |value: &str| told(request("GET", &[("authorization", value)]).headers());
        assert_eq!(with("Basic YWRtaW46czNjcmV0").unwrap(), b"s3cret");
        assert_eq!(with("basic YWRtaW46YTpi").unwrap(), b"a:b");
        for bad in ["", "Basic", "Bearer x", "Basic !!!", "Basic cm9vdDp4", "Basic YWRtaW4="] {
            assert!(with(bad).is_none(), "{bad}");
        }
        assert!(Password::new("s3cret").matches(b"s3cret"));
        assert!(!Password::new("s3cret").matches(b"s3cre"));
    }

    #[test]
    fn pages_of_other_sites_are_refused() {
        let ok = |method, headers: &[(&str, &str)]| same_site(&request(method, headers)).is_ok();
        let host = ("host", "127.0.0.1:7443");
        assert!(ok("POST", &[host]));
        assert!(ok("POST", &[host, ("sec-fetch-site", "same-origin"), ("origin", "http://127.0.0.1:7443")]));
        assert!(ok("POST", &[("host", "[::1]:7443")]));
        assert!(ok("POST", &[("host", "localhost:7443")]));
        assert!(!ok("POST", &[host, ("sec-fetch-site", "cross-site")]));
        assert!(!ok("POST", &[host, ("sec-fetch-site", "same-site")]));
        assert!(!ok("POST", &[host, ("origin", "http://evil.example")]));
        assert!(!ok("POST", &[host, ("origin", "http://127.0.0.1:9")]));
        assert!(!ok("GET", &[("host", "evil.example:7443")]));
        let upgrade = ("upgrade", "websocket");
        assert!(ok("GET", &[host, upgrade]));
        assert!(ok("GET", &[host, upgrade, ("origin", "http://127.0.0.1:7443")]));
        assert!(!ok("GET", &[host, upgrade, ("origin", "http://evil.example")]));
        assert!(!ok("GET", &[host, upgrade, ("origin", "null")]));
        assert!(!ok("GET", &[host, upgrade, ("sec-fetch-site", "cross-site")]));
    }
}
