//! Scripts, styles and icons, compiled into the binary.
//!
//! Pages name each by an address that changes with its content, so browsers keep it for ever.

use std::borrow::Cow;

use axum::{
    body::Bytes,
    extract::{Path, RawQuery},
    http::{
        HeaderMap, StatusCode,
        header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH},
    },
    response::{IntoResponse, Response},
};
use rust_embed::{EmbeddedFile, RustEmbed};

use super::error;

#[derive(RustEmbed)]
#[folder = "static/"]
struct Files;

/// The address of the file at `path`, with its content's hash.
pub(super) fn url(path: &str) -> String {
    match Files::get(path) {
        Some(file) => format!("/static/{path}?v={}", version(&file)),
        None => format!("/static/{path}"),
    }
}

fn version(file: &EmbeddedFile) -> String {
    hex::encode(&file.metadata.sha256_hash()[..8])
}

/// Gives a file.
pub(super) async fn serve(Path(path): Path<String>, RawQuery(query): RawQuery, headers: HeaderMap) -> Response {
    let Some(file) = Files::get(&path) else { return error::not_found().await.into_response() };
    let version = version(&file);
    let tag = format!("\"{version}\"");
    // Whoever names the content's hash gets that content for ever; all others ask again.
    let current = query.is_some_and(|query| query == format!("v={version}"));
    let keep = if current { "public, max-age=31536000, immutable" } else { "no-cache" };
    let head = [(CACHE_CONTROL, keep.to_owned()), (ETAG, tag.clone())];
    if headers.get(IF_NONE_MATCH).is_some_and(|seen| seen.as_bytes() == tag.as_bytes()) {
        return (StatusCode::NOT_MODIFIED, head).into_response();
    }
    // What is in the binary is not copied for everybody who asks.
    let content = match file.data {
        Cow::Borrowed(content) => Bytes::from_static(content),
        Cow::Owned(content) => content.into(),
    };
    (head, [(CONTENT_TYPE, media_type(&path))], content).into_response()
}

/// What browsers ask for before they have read a page.
pub(super) async fn favicon(headers: HeaderMap) -> Response {
    serve(Path("favicon.svg".into()), RawQuery(None), headers).await
}

fn media_type(path: &str) -> &'static str {
    match path.rsplit('.').next() {
        Some("css") => "text/css; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("svg") => "image/svg+xml",
        _ => "application/octet-stream",
    }
}
