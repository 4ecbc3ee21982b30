//! How a device is told to trust the cluster's certificates. Open to everybody: a certificate is no secret.

use askama::Template;
use axum::{
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};

use super::super::{Dashboard, Frame, error::PageError, show};

#[derive(Template)]
#[template(path = "people/authority.html")]
struct AuthorityPage {
    frame: Frame,
    /// SHA-256 of the certificate, in groups of two digits.
    sha256: String,
}

pub(in crate::dashboard) async fn page(State(dashboard): State<Dashboard>) -> Result<Response, PageError> {
    let digits: Vec<char> = dashboard.ops.trust_root()?.sha256.chars().collect();
    let groups: Vec<String> = digits.chunks(2).map(|pair| pair.iter().collect()).collect();
    show(&AuthorityPage { frame: Frame::outside(), sha256: groups.join(":").to_uppercase() })
}

pub(in crate::dashboard) async fn der(State(dashboard): State<Dashboard>) -> Result<Response, PageError> {
    file("application/x-x509-ca-cert", "toft-ca.crt", dashboard.ops.trust_root()?.der.clone())
}

pub(in crate::dashboard) async fn pem(State(dashboard): State<Dashboard>) -> Result<Response, PageError> {
    file("application/x-pem-file", "toft-ca.pem", dashboard.ops.trust_root()?.pem.clone().into_bytes())
}

fn file(kind: &'static str, name: &str, bytes: Vec<u8>) -> Result<Response, PageError> {
    let headers = [
        (header::CONTENT_TYPE, kind.to_owned()),
        (header::CONTENT_DISPOSITION, format!("attachment; filename=\"{name}\"")),
    ];
    Ok((headers, bytes).into_response())
}
