//! What every answer of the dashboard passes: protection against other sites, and headers that tell browsers to load
//! nothing from elsewhere.

use axum::{
    extract::Request,
    http::{
        HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri,
        header::{
            CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, ORIGIN, REFERRER_POLICY, VARY,
            X_CONTENT_TYPE_OPTIONS,
        },
    },
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::{error::PageError, live};

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
                      connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// Sent with every answer. `no-referrer` would make browsers send `Origin: null` with our own forms.
const HEADERS: [(HeaderName, HeaderValue); 5] = [
    (CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
    (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (REFERRER_POLICY, HeaderValue::from_static("same-origin")),
    (HeaderName::from_static("cross-origin-opener-policy"), HeaderValue::from_static("same-origin")),
    (HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin")),
];

const UNREADABLE: &str = "the address or the form holds something that cannot be read";
const REFUSED: &str = "this request came from another site and was refused; nothing was changed";
const REFUSED_HINT: &str = "open toft itself in the browser and repeat it there; behind a proxy, the proxy must pass \
                            the `Host` header on unchanged";

/// Middleware of the dashboard's own router.
pub(super) async fn pages(request: Request, next: Next) -> Response {
    let by_script = request.headers().contains_key("hx-request");
    let unpacks = live::unpacks(request.headers());
    let mut response = if from_other_site(request.method(), request.headers(), request.uri()) {
        PageError::new(StatusCode::FORBIDDEN, "Refused", REFUSED, REFUSED_HINT).into_response()
    } else {
        next.run(request).await
    };
    if let Some(events) = response.extensions_mut().remove::<live::Events>() {
        response = events.sent(unpacks);
    }
    if is_plain_refusal(&response) {
        let hint = "go back and try again, or choose a page in the navigation";
        response = PageError::new(response.status(), "That cannot be read", UNREADABLE, hint).into_response();
    }
    if let Some(error) = response.extensions_mut().remove::<PageError>() {
        response = if by_script { error.notice() } else { error.page() };
    }
    dressed(response)
}

/// An answer with the headers that all have.
pub(super) fn dressed(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.extend(HEADERS);
    headers.append(VARY, HeaderValue::from_static("hx-request"));
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

/// Whether the framework refused a request itself, with a bare line of text.
fn is_plain_refusal(response: &Response) -> bool {
    let plain = response.headers().get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/plain"));
    plain && response.status().is_client_error()
}

/// Middleware for other routers that browsers reach: refuses what [`from_other_site`] finds, in plain text.
pub async fn refuse_other_sites(request: Request, next: Next) -> Response {
    if from_other_site(request.method(), request.headers(), request.uri()) {
        return (StatusCode::FORBIDDEN, format!("{REFUSED}\nhint: {REFUSED_HINT}\n")).into_response();
    }
    next.run(request).await
}

/// Whether a page of another site made a browser send this request, and it could change something.
///
/// `Sec-Fetch-Site` decides where it is sent; no script can forge it. Browsers leave it out on plain HTTP, where
/// `Origin` must name the host that was asked. Programs that are no browser send neither.
pub fn from_other_site(method: &Method, headers: &HeaderMap, uri: &Uri) -> bool {
    if method.is_safe() {
        return false;
    }
    if let Some(site) = headers.get("sec-fetch-site") {
        return site != "same-origin" && site != "none";
    }
    let Some(origin) = headers.get(ORIGIN) else { return false };
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()).or(uri.authority().map(|a| a.as_str()));
    match (origin.to_str(), host) {
        (Ok(origin), Some(host)) => !same_host(origin, host),
        _ => true,
    }
}

/// Whether `origin` (`scheme://host[:port]`) is served at `host` (`host[:port]`).
fn same_host(origin: &str, host: &str) -> bool {
    let (authority, default_port) = match origin.split_once("://") {
        Some(("http", authority)) => (authority, ":80"),
        Some(("https", authority)) => (authority, ":443"),
        _ => return false,
    };
    let bare = |text: &str| text.strip_suffix(default_port).unwrap_or(text).to_ascii_lowercase();
    !authority.is_empty() && bare(authority) == bare(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_page_itself_may_change_something() {
        let check = |want: bool, method: Method, headers: &[(&'static str, &'static str)]| {
            let map = headers
                .iter()
                .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
                .collect();
            assert_eq!(from_other_site(&method, &map, &Uri::from_static("/")), want, "{method} {headers:?}");
        };
        let host = ("host", "box:7443");
        check(false, Method::GET, &[host, ("sec-fetch-site", "cross-site")]);
        check(false, Method::POST, &[host]);
        check(false, Method::POST, &[host, ("sec-fetch-site", "same-origin"), ("origin", "https://proxy")]);
        check(false, Method::POST, &[host, ("sec-fetch-site", "none")]);
        check(true, Method::POST, &[host, ("sec-fetch-site", "cross-site")]);
        check(true, Method::DELETE, &[host, ("sec-fetch-site", "same-site"), ("origin", "http://box:7443")]);
        check(false, Method::POST, &[host, ("origin", "http://BOX:7443")]);
        check(false, Method::POST, &[("host", "box"), ("origin", "http://box:80")]);
        check(false, Method::POST, &[("host", "box:443"), ("origin", "https://box")]);
        check(true, Method::POST, &[host, ("origin", "http://box:18080")]);
        check(true, Method::POST, &[host, ("origin", "null")]);
        check(true, Method::POST, &[host, ("origin", "http://")]);
        check(true, Method::PUT, &[("origin", "http://box:7443")]);
    }
}
