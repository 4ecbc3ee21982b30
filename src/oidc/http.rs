//! Asks the provider: over TLS, or in the clear on this machine alone; short answers, and no redirects.

use std::{path::Path, sync::Arc, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Request, Uri,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, USER_AGENT},
};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use rustls::{ClientConfig, RootCertStore, pki_types::CertificateDer, pki_types::pem::PemObject};
use serde::Deserialize;
use zeroize::Zeroizing;

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest answer, in bytes.
const LONGEST: usize = 256 << 10;
/// Longest reason that is passed on, in characters.
const LONGEST_REASON: usize = 200;

/// A client.
pub(super) struct Http(Client<HttpsConnector<HttpConnector>, Full<Bytes>>);

/// Refuses an address at which others could listen.
pub(super) fn allowed(address: &str) -> Result<Uri, String> {
    let uri: Uri = address.parse().map_err(|_| "one of its addresses is none".to_owned())?;
    let host = uri.host().unwrap_or_default();
    let here = host == "localhost"
        || host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    match uri.scheme_str() {
        Some("https") if !host.is_empty() => Ok(uri),
        Some("http") if here => Ok(uri),
        _ => Err("one of its addresses is without TLS".to_owned()),
    }
}

impl Http {
    /// One that trusts the system's certificates and those of `ca_file`. Blocks.
    pub(super) fn new(ca_file: Option<&Path>) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if let Some(path) = ca_file {
            let bad = |why: String| format!("the certificates in `{}` cannot be used: {why}", path.display());
            let text = std::fs::read(path).map_err(|error| bad(error.to_string()))?;
            for certificate in CertificateDer::pem_slice_iter(&text) {
                let certificate = certificate.map_err(|error| bad(error.to_string()))?;
                roots.add(certificate).map_err(|error| bad(error.to_string()))?;
            }
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("TLS cannot be used: {error}"))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build();
        Ok(Self(Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector)))
    }

    pub(super) async fn get(&self, address: &str) -> Result<(u16, Bytes), String> {
        let mut request = Request::new(Full::default());
        *request.uri_mut() = allowed(address)?;
        self.ask(request).await
    }

    /// Sends a form, as whom `login` names.
    pub(super) async fn post(
        &self,
        address: &str,
        form: &str,
        login: Option<(&str, &Zeroizing<String>)>,
    ) -> Result<(u16, Bytes), String> {
        let mut request = Request::new(Full::new(Bytes::copy_from_slice(form.as_bytes())));
        *request.method_mut() = hyper::Method::POST;
        *request.uri_mut() = allowed(address)?;
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        if let Some((name, secret)) = login {
            // RFC 6749: both are encoded as in a form before they are joined.
            let encoded = |text: &str| serde_urlencoded::to_string([("", text)]).unwrap_or_default().split_off(1);
            let pair = Zeroizing::new(format!("{}:{}", encoded(name), *Zeroizing::new(encoded(secret))));
            let value = Zeroizing::new(format!("Basic {}", BASE64_STANDARD.encode(pair.as_bytes())));
            let mut value = HeaderValue::try_from(value.as_str()).map_err(|error| error.to_string())?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        self.ask(request).await
    }

    async fn ask(&self, mut request: Request<Full<Bytes>>) -> Result<(u16, Bytes), String> {
        let headers = request.headers_mut();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("toft/", env!("CARGO_PKG_VERSION"))));
        let asked = async {
            let answer = self.0.request(request).await.map_err(|error| chain(&error))?;
            let status = answer.status().as_u16();
            let body = Limited::new(answer.into_body(), LONGEST).collect().await;
            Ok((status, body.map_err(|_| "its answer is cut off, or too long".to_owned())?.to_bytes()))
        };
        match tokio::time::timeout(PATIENCE, asked).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("it did not answer within {} s", PATIENCE.as_secs())),
        }
    }
}

/// An error with what caused it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Why it refuses, in its own words, cut and on one line.
pub(super) fn reason(status: u16, answer: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Refusal {
        error: String,
        #[serde(default)]
        error_description: String,
    }
    match serde_json::from_slice::<Refusal>(answer) {
        Ok(Refusal { error, error_description }) => shown(&format!("{error} {error_description}")),
        Err(_) => format!("it answered {status}"),
    }
}

/// A text from outside, cut and on one line.
pub(super) fn shown(text: &str) -> String {
    text.trim().chars().filter(|c| !c.is_control()).take(LONGEST_REASON).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tls_leaves_this_machine() {
        for good in [
            "https://id.lan/x",
            "https://id.lan:8443/realms/a?b=c",
            "http://127.0.0.1:1/x",
            "http://[::1]/x",
            "http://localhost/",
        ] {
            assert!(allowed(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "x",
            "http://id.lan/x",
            "ftp://id.lan/",
            "javascript:alert(1)",
            "//id.lan/x",
            "http://127.0.0.1.evil.example/",
        ] {
            assert!(allowed(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn reasons_are_short_and_plain() {
        let told = br#"{"error":"invalid_grant","error_description":"the\ncode \u001b[31mis old"}"#;
        assert_eq!(reason(400, told), "invalid_grant thecode [31mis old");
        assert_eq!(reason(502, b"<html>"), "it answered 502");
        assert!(shown(&"x".repeat(9_000)).len() == LONGEST_REASON);
    }
}
