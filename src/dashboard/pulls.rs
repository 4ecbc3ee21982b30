//! Pulls under way, layer by layer, and those that failed a short while ago.

use toft_model::{
    image::ImageRef,
    pull::{LayerProgress, LayerState, PullProgress},
    units::format_bytes,
};

use super::present::{Moment, Pill};
use crate::control::node_access::ImagePull;

/// One pull.
pub(super) struct PullLine {
    pub(super) image: String,
    /// The node that pulls; empty: the one that is asked.
    pub(super) node: String,
    pub(super) shown: String,
    /// In a few words.
    pub(super) summary: String,
    pub(super) layers: Vec<LayerLine>,
    pub(super) failure: Option<Failure>,
}

/// Why a pull failed.
pub(super) struct Failure {
    pub(super) at: Moment,
    pub(super) message: String,
    pub(super) hint: Option<String>,
}

/// One layer of an image that is pulled.
pub(super) struct LayerLine {
    pub(super) digest: String,
    pub(super) state: Pill,
    pub(super) size_bytes: u64,
    pub(super) done_bytes: u64,
    /// `12.5 MiB of 64 MiB from node beta`
    pub(super) amount: String,
}

impl PullLine {
    pub(super) fn of(pull: ImagePull, now_ms: i64) -> Self {
        let PullProgress { image, layers, by_word_of: _ } = &pull.progress;
        Self {
            node: String::new(),
            shown: familiar(image),
            summary: pull.progress.summary(),
            layers: layers.iter().map(LayerLine::of).collect(),
            failure: pull.failure.map(|(at_ms, error)| Failure {
                at: Moment::ago(at_ms, now_ms),
                message: error.message,
                hint: error.hint,
            }),
            image: image.clone(),
        }
    }
}

impl LayerLine {
    fn of(layer: &LayerProgress) -> Self {
        let (tone, word) = match layer.state {
            LayerState::Waiting => ("idle", "waiting"),
            LayerState::Downloading => ("busy", "downloading"),
            LayerState::Downloaded => ("busy", "downloaded"),
            LayerState::Unpacking => ("busy", "unpacking"),
            LayerState::Done => ("ok", "done"),
        };
        // What is on the node already was not counted while it came.
        let done_bytes = if layer.state == LayerState::Done { layer.size_bytes } else { layer.done_bytes };
        let whole = format_bytes(layer.size_bytes);
        let digest = layer.digest.strip_prefix("sha256:").unwrap_or(&layer.digest);
        Self {
            digest: digest.chars().take(12).collect(),
            state: Pill { tone, word },
            size_bytes: layer.size_bytes.max(1),
            done_bytes,
            amount: match &layer.from {
                _ if done_bytes >= layer.size_bytes => whole,
                Some(node) => format!("{} of {whole} from node {node}", format_bytes(done_bytes)),
                None => format!("{} of {whole}", format_bytes(done_bytes)),
            },
        }
    }
}

/// An image's name as people write it.
pub(super) fn familiar(name: &str) -> String {
    name.parse::<ImageRef>().map_or_else(|_| name.to_owned(), |image| image.familiar().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_tells_how_much_of_it_is_here() {
        let line = |state, done_bytes| {
            let (digest, size_bytes) = ("sha256:0123456789abcdef".into(), 64 << 20);
            let from = (state == LayerState::Downloading).then(|| "beta".to_owned());
            LayerLine::of(&LayerProgress { digest, size_bytes, done_bytes, state, from })
        };
        let half = line(LayerState::Downloading, 32 << 20);
        assert_eq!((half.digest.as_str(), half.amount.as_str()), ("0123456789ab", "32 MiB of 64 MiB from node beta"));
        let here = line(LayerState::Done, 0);
        assert_eq!((here.done_bytes, here.amount.as_str()), (64 << 20, "64 MiB"));
    }
}
