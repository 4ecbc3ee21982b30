//! Scripts, styles and icons, compiled into the binary.
//!
//! Pages name each by an address that changes with its content, so browsers keep it for ever. Each is packed once, as tightly as
//! can be, when somebody asks for it first.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    io::Write,
    sync::{Mutex, PoisonError},
};

use axum::{
    body::Bytes,
    extract::{Path, RawQuery},
    http::{
        HeaderMap, StatusCode,
        header::{CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, ETAG, IF_NONE_MATCH, VARY},
    },
    response::{IntoResponse, Response},
};
use flate2::{Compression, write::GzEncoder};
use rust_embed::{EmbeddedFile, RustEmbed};

use super::{error, live};

#[derive(RustEmbed)]
#[folder = "static/"]
struct Files;

/// What was packed, by path, with the version that it was packed of.
static PACKED: Mutex<BTreeMap<String, (String, Bytes)>> = Mutex::new(BTreeMap::new());

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
    let kind = [(CONTENT_TYPE, media_type(&path)), (VARY, "accept-encoding")];
    match packed(&path, &version, &content).filter(|_| live::unpacks(&headers)) {
        Some(packed) => (head, kind, [(CONTENT_ENCODING, "gzip")], packed).into_response(),
        None => (head, kind, content).into_response(),
    }
}

/// A file's content as it goes over the wire; `None` if that is no shorter.
fn packed(path: &str, version: &str, content: &Bytes) -> Option<Bytes> {
    let known = || PACKED.lock().unwrap_or_else(PoisonError::into_inner);
    let found = known().get(path).filter(|(of, _)| of == version).map(|(_, packed)| packed.clone());
    let packed = match found {
        Some(packed) => packed,
        None => {
            // A few milliseconds for the largest.
            let mut packer = GzEncoder::new(Vec::new(), Compression::best());
            packer.write_all(content).ok()?;
            let packed = Bytes::from(packer.finish().ok()?);
            known().insert(path.to_owned(), (version.to_owned(), packed.clone()));
            packed
        }
    };
    (packed.len() < content.len()).then_some(packed)
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

#[cfg(test)]
mod tests {
    use std::io::Read;

    use axum::http::{HeaderValue, header::ACCEPT_ENCODING};
    use flate2::read::GzDecoder;
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn files_are_packed_tightly_for_who_unpacks_and_come_plain_to_others() {
        let ask = async |path: &str, unpacks: bool| {
            let packs = unpacks.then_some((ACCEPT_ENCODING, HeaderValue::from_static("gzip")));
            let answer = serve(Path(path.to_owned()), RawQuery(None), packs.into_iter().collect()).await;
            let packed = answer.headers().get(CONTENT_ENCODING).is_some();
            assert_eq!(answer.headers()[VARY], "accept-encoding");
            (packed, answer.into_body().collect().await.unwrap().to_bytes())
        };
        for path in Files::iter().filter(|path| path.ends_with(".js") || path.ends_with(".css")) {
            let (was_packed, plain) = ask(&path, false).await;
            assert!(!was_packed && !plain.is_empty(), "{path}");
            for _ in 0..2 {
                let (was_packed, packed) = ask(&path, true).await;
                let mut unpacked = Vec::new();
                GzDecoder::new(&packed[..]).read_to_end(&mut unpacked).unwrap();
                assert!(was_packed && unpacked == plain, "{path}");
                assert!(packed.len() * 2 < plain.len(), "{path}: {} of {} bytes", packed.len(), plain.len());
            }
        }
    }
}
