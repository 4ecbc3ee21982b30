//! A form that came when nobody was signed in any more: what was typed goes back to the browser in the sign-in page, and is shown
//! again after it. The server keeps none of it.

use axum::{
    body::Body,
    extract::{FromRequest, Multipart, Request},
    http::header::{CONTENT_LENGTH, CONTENT_TYPE},
};
use http_body_util::{BodyExt, Limited};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

/// Longest form that is kept, in bytes, and most fields.
const LONGEST: usize = 64 << 10;
const MOST_FIELDS: usize = 200;
/// Forms that are read at a time.
static READING: Semaphore = Semaphore::const_new(32);

/// A form as it was sent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::dashboard) struct Kept {
    /// Where it was sent to.
    pub(super) to: String,
    /// Whether it is sent in parts, which forms with files are.
    pub(super) in_parts: bool,
    /// Names and values.
    pub(super) fields: Vec<(String, String)>,
    /// Whether files were left out.
    pub(super) without_files: bool,
}

/// A field as it is shown again.
pub(super) struct Field {
    pub(super) name: String,
    pub(super) value: String,
    /// Whether it is kept without being shown.
    pub(super) is_secret: bool,
    pub(super) is_long: bool,
}

impl Kept {
    /// Reads a form; `None` when it is none, or too large.
    pub(super) async fn read(request: Request) -> Option<Self> {
        let _turn = READING.try_acquire().ok()?;
        let to = request.uri().path_and_query()?.as_str().to_owned();
        let kind = request.headers().get(CONTENT_TYPE)?.to_str().ok()?.to_ascii_lowercase();
        let length =
            request.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
        // A file that is chosen again may be large; what is typed is not.
        if length.is_some_and(|length| length > 8 * LONGEST) {
            return None;
        }
        let (parts, body) = request.into_parts();
        if kind.starts_with("application/x-www-form-urlencoded") {
            let bytes = Limited::new(body, LONGEST).collect().await.ok()?.to_bytes();
            let fields: Vec<(String, String)> = serde_urlencoded::from_bytes(&bytes).ok()?;
            return Self { to, in_parts: false, fields, without_files: false }.bounded();
        }
        if !kind.starts_with("multipart/form-data") {
            return None;
        }
        let body = Body::new(Limited::new(body, 8 * LONGEST));
        let mut form = Multipart::from_request(Request::from_parts(parts, body), &()).await.ok()?;
        let mut kept = Self { to, in_parts: true, fields: Vec::new(), without_files: false };
        let mut room = LONGEST;
        while let Some(field) = form.next_field().await.ok()? {
            let name = field.name().unwrap_or_default().to_owned();
            if field.file_name().is_some() {
                kept.without_files |= field.file_name().is_some_and(|name| !name.is_empty());
                continue;
            }
            let text = field.text().await.ok()?;
            room = room.checked_sub(name.len() + text.len())?;
            kept.fields.push((name, text));
            if kept.fields.len() > MOST_FIELDS {
                return None;
            }
        }
        kept.bounded()
    }

    fn bounded(self) -> Option<Self> {
        let known = super::onwards(&self.to) == self.to;
        (known && self.fields.len() <= MOST_FIELDS).then_some(self)
    }

    /// As one text, for a hidden field.
    pub(super) fn packed(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Reads such a text.
    pub(super) fn unpacked(text: &str) -> Option<Self> {
        serde_json::from_str::<Self>(text).ok()?.bounded()
    }

    /// The fields as they are shown again.
    pub(super) fn shown(&self) -> Vec<Field> {
        let secret = |name: &str| {
            let name = name.to_ascii_lowercase();
            let hides = ["password", "secret", "token", "present", "again", "offer", "code"]
                .iter()
                .any(|word| name.contains(word));
            hides || self.to.starts_with("/secrets") && matches!(name.as_str(), "text" | "value")
        };
        let field = |(name, value): &(String, String)| Field {
            name: name.clone(),
            value: value.clone(),
            is_secret: secret(name),
            is_long: value.contains('\n') || value.len() > 80,
        };
        self.fields.iter().map(field).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(kind: &str, body: String) -> Request {
        Request::post("/run").header(CONTENT_TYPE, kind).body(Body::from(body)).unwrap()
    }

    #[tokio::test]
    async fn what_was_typed_is_kept_and_files_are_not() {
        let kept = Kept::read(form("application/x-www-form-urlencoded", "name=web&env=A%3D1%0AB%3D%22".into())).await;
        let kept = kept.unwrap();
        assert_eq!(kept.fields, [("name".into(), "web".into()), ("env".into(), "A=1\nB=\"".into())]);
        assert_eq!(Kept::unpacked(&kept.packed()).unwrap(), kept);
        let part = |name: &str, more: &str, text: &str| {
            format!("--x\r\ncontent-disposition: form-data; name=\"{name}\"{more}\r\n\r\n{text}\r\n")
        };
        let body = part("text", "", "s3cret\nline") + &part("file", "; filename=\"a\"", "bytes") + "--x--\r\n";
        let kept = Kept::read(form("multipart/form-data; boundary=x", body)).await.unwrap();
        assert!(kept.in_parts && kept.without_files);
        assert_eq!(kept.fields, [("text".into(), "s3cret\nline".into())]);
    }

    #[tokio::test]
    async fn what_is_too_much_or_no_form_is_not_kept() {
        let urlencoded = "application/x-www-form-urlencoded";
        assert_eq!(Kept::read(form(urlencoded, format!("a={}", "x".repeat(LONGEST)))).await, None);
        assert_eq!(Kept::read(form(urlencoded, "a=b&".repeat(MOST_FIELDS + 1))).await, None);
        assert_eq!(Kept::read(form("application/json", "{}".into())).await, None);
        assert_eq!(Kept::read(form("multipart/form-data; boundary=x", "nonsense".into())).await, None);
        for to in ["//evil.example/x", "https://evil.example", "/login", ""] {
            let kept = Kept { to: to.into(), ..Kept::default() };
            assert_eq!(Kept::unpacked(&kept.packed()), None, "{to}");
        }
        assert_eq!(Kept::unpacked("nonsense"), None);
    }
}
