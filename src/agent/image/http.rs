//! GET over HTTP/1.1, with TLS or without, through proxies or straight: bounded heads, bounded redirects, no credentials
//! to a second host.

use std::{path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::Empty;
use hyper::{
    HeaderMap, Request, Response, StatusCode, Uri,
    body::Incoming,
    header::{AUTHORIZATION, HOST, HeaderValue, LOCATION, PROXY_AUTHORIZATION, USER_AGENT},
};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::{
        legacy::{Client, connect::HttpConnector},
        proxy::matcher::Matcher,
    },
    rt::TokioExecutor,
};
use rustls::{ClientConfig, RootCertStore};

use super::{
    error::{PullErrorKind, Trouble, shown},
    proxy::{self, Connector, NoWayThrough, ProxySettings},
};

const CONNECT: Duration = Duration::from_secs(10);
const IDLE: Duration = Duration::from_secs(30);
/// Largest head of an answer, and largest piece read of a body.
const BUFFER_BYTES: usize = 256 << 10;
const MOST_REDIRECTS: usize = 5;

/// An HTTP client.
#[derive(Debug, Clone)]
pub(super) struct Http {
    client: Client<HttpsConnector<Connector>, Empty<Bytes>>,
    proxies: Arc<Matcher>,
    /// Longest wait for the head of an answer.
    silence: Duration,
}

impl Http {
    /// One that trusts the system's certificates and those of `ca_file`. Blocks.
    pub(super) fn new(ca_file: Option<&Path>, proxies: &ProxySettings, silence: Duration) -> Result<Self, Trouble> {
        let proxies = Arc::new(proxies.matcher()?);
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if let Some(path) = ca_file {
            add_certificates(&mut roots, path)?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| Trouble::new(PullErrorKind::Unreachable, format!("TLS cannot be used: {e}")))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(CONNECT));
        tcp.set_nodelay(true);
        let https = || HttpsConnectorBuilder::new().with_tls_config(tls.clone()).https_or_http().enable_http1();
        let to_proxy = https().wrap_connector(tcp.clone());
        let connector = https().wrap_connector(Connector { tcp, to_proxy, proxies: Arc::clone(&proxies) });
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE)
            .pool_timer(hyper_util::rt::TokioTimer::new())
            .http1_max_buf_size(BUFFER_BYTES)
            .build(connector);
        Ok(Self { client, proxies, silence })
    }

    /// Longest wait for an answer.
    pub(super) fn silence(&self) -> Duration {
        self.silence
    }

    /// Asks for `uri` and follows redirects. `headers` may hold credentials; they go to its own host only.
    pub(super) async fn get(&self, uri: Uri, headers: &HeaderMap) -> Result<Response<Incoming>, Trouble> {
        let mut uri = uri;
        let mut headers = headers.clone();
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("toft/", env!("CARGO_PKG_VERSION"))));
        for _ in 0..=MOST_REDIRECTS {
            let mut request = Request::new(Empty::new());
            *request.uri_mut() = uri.clone();
            *request.headers_mut() = headers.clone();
            if let Some(login) = proxy::authorization(&self.proxies, &uri) {
                request.headers_mut().insert(PROXY_AUTHORIZATION, login);
            }
            let answer = match tokio::time::timeout(self.silence, self.client.request(request)).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(error)) => return Err(unreachable(&uri, &error)),
                Err(_) => {
                    let reason = format!("`{}` did not answer within {} s", host(&uri), self.silence.as_secs());
                    return Err(Trouble::new(PullErrorKind::Unreachable, reason));
                }
            };
            if answer.status() == StatusCode::PROXY_AUTHENTICATION_REQUIRED
                && let Some(proxy) = self.proxies.intercept(&uri)
            {
                return Err(proxy_wants_login(&host(proxy.uri())));
            }
            if !is_redirect(answer.status()) {
                return Ok(answer);
            }
            let next = redirected(&uri, answer.headers().get(LOCATION))?;
            if next.authority() != uri.authority() {
                headers.remove(AUTHORIZATION);
                headers.remove(HOST);
            }
            uri = next;
        }
        let reason = format!("`{}` redirects more than {MOST_REDIRECTS} times", host(&uri));
        Err(Trouble::new(PullErrorKind::BadAnswer, reason))
    }
}

fn add_certificates(roots: &mut RootCertStore, path: &Path) -> Result<(), Trouble> {
    let bad = |why: String| {
        let reason = format!("the certificates in `{}` cannot be used: {why}", path.display());
        Trouble::new(PullErrorKind::Unreachable, reason).hint("`ca_file` names a file with certificates in PEM")
    };
    let text = std::fs::read(path).map_err(|e| bad(e.to_string()))?;
    let blocks = pem::parse_many(text).map_err(|e| bad(e.to_string()))?;
    let mut certificates = blocks.into_iter().filter(|block| block.tag() == "CERTIFICATE").peekable();
    if certificates.peek().is_none() {
        return Err(bad("there is none in it".to_owned()));
    }
    for certificate in certificates {
        roots.add(certificate.into_contents().into()).map_err(|e| bad(e.to_string()))?;
    }
    Ok(())
}

/// Host and port, for people.
pub(super) fn host(uri: &Uri) -> String {
    shown(uri.authority().map_or("", |authority| authority.as_str()))
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

fn redirected(from: &Uri, location: Option<&HeaderValue>) -> Result<Uri, Trouble> {
    let bad = |why: &str| {
        let reason = format!("`{}` redirects {why}", host(from));
        Trouble::new(PullErrorKind::BadAnswer, reason)
    };
    let location = location.and_then(|value| value.to_str().ok()).ok_or_else(|| bad("nowhere"))?;
    let parsed: Uri = location.parse().map_err(|_| bad("to something that is no address"))?;
    let mut parts = parsed.into_parts();
    if parts.authority.is_none() {
        if !location.starts_with('/') {
            return Err(bad("to something that is no address"));
        }
        parts.authority = from.authority().cloned();
        parts.scheme = from.scheme().cloned();
    }
    if parts.authority.as_ref().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err(bad("to an address with credentials in it"));
    }
    let next = Uri::from_parts(parts).map_err(|_| bad("to something that is no address"))?;
    match (from.scheme_str(), next.scheme_str()) {
        (_, Some("https")) | (Some("http"), Some("http")) => Ok(next),
        _ => Err(bad("from HTTPS to something without TLS")),
    }
}

/// What a connection failed with, and what to do about it.
fn unreachable(uri: &Uri, error: &hyper_util::client::legacy::Error) -> Trouble {
    let mut deepest: &dyn std::error::Error = error;
    let mut texts = vec![error.to_string()];
    let mut proxy = None;
    while let Some(cause) = deepest.source() {
        texts.push(cause.to_string());
        proxy = proxy.or(cause.downcast_ref::<NoWayThrough>());
        deepest = cause;
    }
    let all = texts.join(": ");
    let host = host(uri);
    let why = shown(texts.last().map_or("", String::as_str));
    if let Some(NoWayThrough { proxy, .. }) = proxy {
        return stopped_by_proxy(proxy, &host, &why);
    }
    let trouble = Trouble::new(PullErrorKind::Unreachable, format!("`{host}` cannot be reached: {why}"));
    if all.contains("UnknownIssuer") || all.contains("CaUsedAsEndEntity") {
        let reason = format!("`{host}` has a certificate that nobody here trusts");
        let hint =
            format!("if it is yours, name the certificate that signed it: [registries.\"{host}\"] ca_file = \"...\"");
        return Trouble::new(PullErrorKind::Denied, reason).hint(hint);
    }
    if all.contains("invalid peer certificate") {
        return Trouble::new(PullErrorKind::Denied, format!("`{host}` has a certificate that does not hold: {why}"));
    }
    if all.contains("InvalidContentType") || all.contains("corrupt message") {
        let reason = format!("`{host}` does not speak TLS");
        let hint = format!("if it shall be used without, allow that: [registries.\"{host}\"] plain_http = true");
        return Trouble::new(PullErrorKind::Denied, reason).hint(hint);
    }
    if all.contains("message head is too large") || all.contains("invalid HTTP") {
        return Trouble::new(PullErrorKind::BadAnswer, format!("`{host}` answers something else than HTTP: {why}"));
    }
    trouble.hint(format!("look whether `{host}` is up, and whether this machine reaches it"))
}

fn proxy_wants_login(proxy: &str) -> Trouble {
    let hint = "name one in the configuration: [images] proxy_username = \"...\", proxy_password_file = \"...\"";
    Trouble::new(PullErrorKind::Denied, format!("the proxy `{proxy}` wants a login, or another one")).hint(hint)
}

/// What a proxy failed with, and what to do about it.
fn stopped_by_proxy(proxy: &str, host: &str, why: &str) -> Trouble {
    if why.contains("proxy authorization required") {
        return proxy_wants_login(proxy);
    }
    // The library tells no more of an answer that is no success.
    let why = if why == "tunnel error: unsuccessful" { "it lets nobody through, or does not reach it" } else { why };
    let reason = format!("`{host}` cannot be reached through the proxy `{proxy}`: {why}");
    Trouble::new(PullErrorKind::Unreachable, reason)
        .hint(format!("look whether the proxy is up; if `{host}` is near, name it in [images] no_proxy"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_stay_within_bounds() {
        let from: Uri = "https://r.example/v2/a".parse().unwrap();
        let to = |location: &str| redirected(&from, Some(&HeaderValue::from_str(location).unwrap()));
        assert_eq!(to("/x?y=1").unwrap().to_string(), "https://r.example/x?y=1");
        assert_eq!(to("https://cdn.example/x").unwrap().to_string(), "https://cdn.example/x");
        for bad in
            ["http://r.example/x", "ftp://r.example/x", "x/y", "https://a:b@r.example/x", "file:///etc/passwd", ""]
        {
            assert!(to(bad).is_err(), "{bad}");
        }
        assert!(redirected(&from, None).is_err());
    }
}
