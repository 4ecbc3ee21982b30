//! Query parameters and what they mean.

use serde::Deserialize;
use utoipa::IntoParams;

use crate::{
    api::types::Page,
    control::{ControlError, ErrorKind},
};

/// Largest page.
const MAX_LIMIT: usize = 1_000;

/// Which part of a list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct ListQuery {
    /// Items on a page, 1 to 1000; default 1000.
    pub limit: Option<usize>,
    /// Only items after this name.
    pub after: Option<String>,
}

impl ListQuery {
    /// How many items at most.
    pub fn limit(&self) -> Result<usize, ControlError> {
        let limit = self.limit.unwrap_or(MAX_LIMIT);
        if !(1..=MAX_LIMIT).contains(&limit) {
            return Err(ControlError::new(ErrorKind::Invalid, format!("{limit} is out of range"))
                .field("limit")
                .hint("use 1 to 1000"));
        }
        Ok(limit)
    }

    /// The page of `items`, which are in the order of `key`.
    pub fn page<T>(&self, items: Vec<T>, key: impl Fn(&T) -> String) -> Result<Page<T>, ControlError> {
        let limit = self.limit()?;
        let start = match &self.after {
            Some(after) => items.iter().position(|item| key(item) == *after).map_or(items.len(), |at| at + 1),
            None => 0,
        };
        let rest: Vec<T> = items.into_iter().skip(start).collect();
        Ok(Page::cut(rest, limit, key))
    }
}

/// `30s`, `10m`, `3h`, `2d` ago, or an RFC 3339 time, in nanoseconds since 1970.
pub fn moment_ns(field: &str, text: &str, now_ms: i64) -> Result<i64, ControlError> {
    let bad = || {
        ControlError::new(ErrorKind::Invalid, format!("`{}` is no time", text.chars().take(40).collect::<String>()))
            .field(field)
            .hint("write a span such as `30s`, `10m`, `3h`, `2d`, or a time such as `2026-01-31T12:00:00Z`")
    };
    if let Ok(time) = text.parse::<jiff::Timestamp>() {
        return i64::try_from(time.as_nanosecond()).map_err(|_| bad());
    }
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
    let amount: i64 = text[..digits].parse().map_err(|_| bad())?;
    let seconds = match &text[digits..] {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err(bad()),
    };
    let span_ms = amount.checked_mul(seconds).and_then(|s| s.checked_mul(1_000)).ok_or_else(bad)?;
    now_ms.saturating_sub(span_ms).max(0).checked_mul(1_000_000).ok_or_else(bad)
}

/// The generation in an `If-Match` header.
pub fn generation(tag: &axum::http::HeaderValue) -> Result<u64, ControlError> {
    let text = tag.to_str().unwrap_or_default().trim_matches('"');
    text.parse().map_err(|_| {
        ControlError::new(ErrorKind::Invalid, "the If-Match header is no ETag of this resource")
            .field("If-Match")
            .hint("send the ETag that reading it gave")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_and_times() {
        assert_eq!(moment_ns("since", "30s", 100_000).unwrap(), 70_000_000_000);
        assert_eq!(moment_ns("since", "1970-01-01T00:00:01Z", 0).unwrap(), 1_000_000_000);
        assert_eq!(moment_ns("since", "9999d", 1).unwrap(), 0);
        for bad in ["", "s", "1", "1x", "-1s", "99999999999999999999s", "yesterday"] {
            assert!(moment_ns("since", bad, 0).is_err(), "{bad}");
        }
    }

    #[test]
    fn pages_follow_each_other() {
        let items = || vec!["a".to_owned(), "b".into(), "c".into()];
        let first = ListQuery { limit: Some(2), after: None }.page(items(), Clone::clone).unwrap();
        assert_eq!((first.items.len(), first.next.as_deref()), (2, Some("b")));
        let second = ListQuery { limit: Some(2), after: first.next }.page(items(), Clone::clone).unwrap();
        assert_eq!((second.items, second.next), (vec!["c".to_owned()], None));
        assert!(ListQuery { limit: Some(0), after: None }.page(items(), Clone::clone).is_err());
    }
}
