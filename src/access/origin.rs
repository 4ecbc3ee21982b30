//! What a browser says about where a request comes from.

use axum::{
    extract::Request,
    http::{HeaderMap, Uri, header},
};

use crate::control::{ControlError, ErrorKind};

fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// The host that was asked, with its port if there is one.
pub(super) fn host<'a>(headers: &'a HeaderMap, uri: &'a Uri) -> &'a str {
    text(headers, header::HOST).or_else(|| uri.authority().map(|authority| authority.as_str())).unwrap_or_default()
}

fn forbidden(why: &str) -> ControlError {
    ControlError::new(ErrorKind::Forbidden, why.to_owned()).hint("open the dashboard's own address in the browser")
}

/// Refuses a host name that is not this machine's loopback: a page elsewhere has been pointed here (DNS rebinding).
pub(super) fn loopback_host(request: &Request) -> Result<(), ControlError> {
    let host = host(request.headers(), request.uri());
    let name = host.rsplit_once(':').map_or(host, |(name, port)| if port.ends_with(']') { host } else { name });
    let local = name == "localhost"
        || name.ends_with(".localhost")
        || name == "[::1]"
        || name.parse::<std::net::Ipv4Addr>().is_ok_and(|ip| ip.is_loopback());
    if local {
        Ok(())
    } else {
        Err(forbidden("the request was made to a host name that is not this machine's loopback"))
    }
}

/// Whether a request can change something. A WebSocket begins with a GET, which browsers let pages of every site send.
pub(super) fn changes(request: &Request) -> bool {
    !request.method().is_safe() || request.headers().contains_key(header::UPGRADE)
}

/// Refuses what a page of another site made a browser send, told by `Sec-Fetch-Site` and `Origin`. With `strict` one of the two has
/// to be there: the browser sends the proof by itself, so that their absence is no sign of a program. What came over TLS came from no page
/// that did not.
pub(super) fn same_site(request: &Request, strict: bool, over_tls: bool) -> Result<(), ControlError> {
    let headers = request.headers();
    let site = headers.get("sec-fetch-site");
    if site.is_some_and(|site| site != "same-origin" && site != "none") {
        return Err(forbidden("the request came from a page of another site"));
    }
    let host = host(headers, request.uri());
    match headers.get(header::ORIGIN).map(|origin| origin.to_str().unwrap_or_default()) {
        Some(origin) => {
            let of = origin.split_once("://").map_or(origin, |(_, host)| host);
            let default_port = if origin.starts_with("https:") { ":443" } else { ":80" };
            let bare = |text: &str| text.strip_suffix(default_port).unwrap_or(text).to_ascii_lowercase();
            if bare(of) != bare(host) || over_tls && !origin.starts_with("https://") {
                return Err(forbidden("the request came from a page of another site"));
            }
        }
        None if strict && site.is_none() => {
            return Err(forbidden("the browser did not say which page the request came from")
                .hint("programs show an API token instead of a cookie; behind a proxy, it must pass `Origin` on"));
        }
        None => {}
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
    fn pages_of_other_sites_are_refused() {
        let ok = |strict, method, headers: &[(&str, &str)]| {
            let request = request(method, headers);
            !changes(&request) || same_site(&request, strict, false).is_ok()
        };
        let host = ("host", "127.0.0.1:7443");
        assert!(ok(false, "POST", &[host]) && !ok(true, "POST", &[host]));
        for strict in [true, false] {
            assert!(ok(strict, "GET", &[host, ("sec-fetch-site", "cross-site")]));
            assert!(ok(strict, "POST", &[host, ("sec-fetch-site", "same-origin")]));
            assert!(ok(strict, "POST", &[host, ("sec-fetch-site", "none")]));
            assert!(ok(strict, "POST", &[host, ("origin", "http://127.0.0.1:7443")]));
            assert!(ok(strict, "POST", &[("host", "box"), ("origin", "https://BOX:443")]));
            assert!(!ok(strict, "POST", &[host, ("sec-fetch-site", "cross-site")]));
            assert!(!ok(strict, "POST", &[host, ("sec-fetch-site", "same-site"), ("origin", "http://127.0.0.1:7443")]));
            assert!(!ok(strict, "POST", &[host, ("origin", "http://evil.example")]));
            assert!(!ok(strict, "POST", &[host, ("origin", "http://127.0.0.1:9"), ("sec-fetch-site", "same-origin")]));
            assert!(!ok(strict, "POST", &[host, ("origin", "null")]));
            assert!(!ok(strict, "POST", &[("host", ""), ("origin", "http://evil")]));
            let upgrade = ("upgrade", "websocket");
            assert!(ok(strict, "GET", &[host, upgrade, ("origin", "http://127.0.0.1:7443")]));
            assert!(!ok(strict, "GET", &[host, upgrade, ("origin", "http://evil.example")]));
            assert!(!ok(strict, "GET", &[host, upgrade, ("origin", "null")]));
            assert!(!ok(strict, "GET", &[host, upgrade, ("sec-fetch-site", "cross-site")]));
        }
        assert!(!ok(true, "GET", &[host, ("upgrade", "websocket")]));
        let over_tls =
            |origin| same_site(&request("POST", &[("host", "box:7443"), ("origin", origin)]), true, true).is_ok();
        assert!(over_tls("https://box:7443") && !over_tls("http://box:7443") && !over_tls("https://box"));
    }

    #[test]
    fn only_names_of_loopback_are_asked_for() {
        let ok = |host: &str| loopback_host(&request("GET", &[("host", host)])).is_ok();
        for good in
            ["127.0.0.1:7443", "127.8.8.8", "localhost", "localhost:1", "a.localhost:7443", "[::1]", "[::1]:7443"]
        {
            assert!(ok(good), "{good}");
        }
        for bad in ["evil.example:7443", "127.0.0.1.evil.example", "192.0.2.1", "[::2]", "localhost.evil", ""] {
            assert!(!ok(bad), "{bad}");
        }
    }
}
