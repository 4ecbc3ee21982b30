//! What nodes of a cluster give each other of their images: blobs by digest, to members only.

mod giving;
mod taking;
#[cfg(test)]
mod tests;

pub(super) use giving::Giver;
pub(super) use taking::{ClusterWays, Taker};

/// Whether a text is a digest as containerd has them.
fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:")
        .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
}
