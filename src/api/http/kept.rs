//! The last page of workloads that was asked for, as it went out: dashboards and scripts ask for the same again and again,
//! and nothing in it changes but by a command. A page in which something is on its way is not kept.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// Largest page that is kept, in bytes.
const LARGEST: usize = 4 << 20;

/// Which page of which state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PageKey {
    /// Index of a command that the page reflects; it may reflect later ones, too.
    pub(super) index: u64,
    pub(super) after: Option<String>,
    pub(super) limit: usize,
}

/// One page. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct KeptPage(Arc<Mutex<Option<(PageKey, Bytes)>>>);

impl KeptPage {
    /// The page, if it is this one.
    pub(super) fn get(&self, key: &PageKey) -> Option<Bytes> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.as_ref().filter(|(known, _)| known == key).map(|(_, page)| page.clone())
    }

    /// Keeps this one instead, unless it is too large.
    pub(super) fn put(&self, key: PageKey, page: &Bytes) {
        if page.len() <= LARGEST {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((key, page.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_very_page_is_given_again() {
        let kept = KeptPage::default();
        let key = PageKey { index: 7, after: None, limit: 10 };
        assert_eq!(kept.get(&key), None);
        kept.put(key.clone(), &Bytes::from_static(b"[]"));
        assert_eq!(kept.clone().get(&key).as_deref(), Some(&b"[]"[..]));
        for other in [
            PageKey { index: 8, ..key.clone() },
            PageKey { after: Some("a".into()), ..key.clone() },
            PageKey { limit: 11, ..key.clone() },
        ] {
            assert_eq!(kept.get(&other), None, "{other:?}");
        }
        kept.put(PageKey { index: 8, ..key.clone() }, &Bytes::from(vec![0; LARGEST + 1]));
        assert!(kept.get(&key).is_some(), "what is too large does not take its place");
    }
}
