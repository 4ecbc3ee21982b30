//! How far the pull of an image is. Told by the node that pulls to whoever asks; never part of the state.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{invalid::Invalid, units::format_bytes};

/// When an image is asked of its registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PullPolicy {
    /// Before every new container.
    Always,
    /// When it is not on the node.
    #[default]
    Missing,
    /// Never: it must be on the node.
    Never,
}

impl PullPolicy {
    /// Whether it is what nobody has to write.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl std::str::FromStr for PullPolicy {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text {
            "always" => Ok(Self::Always),
            "missing" => Ok(Self::Missing),
            "never" => Ok(Self::Never),
            other => Err(Invalid::value(
                format!("`{}` is no pull policy", other.chars().take(40).collect::<String>()),
                "use always, missing or never",
            )),
        }
    }
}

/// Where one layer stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum LayerState {
    /// Its turn has not come.
    Waiting,
    /// Its bytes arrive.
    Downloading,
    /// It is there and checked.
    Downloaded,
    /// Its files are being written.
    Unpacking,
    /// It is unpacked.
    Done,
}

/// One layer of an image that is being pulled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LayerProgress {
    /// Its digest.
    pub digest: String,
    /// Its compressed size in bytes.
    pub size_bytes: u64,
    /// Bytes of it that are on the node.
    pub done_bytes: u64,
    /// Where it stands.
    pub state: LayerState,
    /// The node that gives it; absent when it comes from a registry, or from nowhere yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
}

/// An image that is being pulled.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PullProgress {
    /// Complete reference.
    pub image: String,
    /// Its layers from the lowest up; empty until its manifest is known.
    pub layers: Vec<LayerProgress>,
    /// The node that said what the image's tag stands for, because its registry did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by_word_of: Option<String>,
}

impl PullProgress {
    /// In a few words: `pulling 3/7 layers, 120 MiB of 400 MiB from node beta`.
    pub fn summary(&self) -> String {
        match &self.by_word_of {
            Some(node) => format!("{}; its registry does not help, its tag is what node {node} has", self.steps()),
            None => self.steps(),
        }
    }

    fn steps(&self) -> String {
        if self.layers.is_empty() {
            return "pulling: asking the registry".to_owned();
        }
        let here = |layer: &&LayerProgress| !matches!(layer.state, LayerState::Waiting | LayerState::Downloading);
        let count = self.layers.len();
        let complete = self.layers.iter().filter(here).count();
        let unpacked = self.layers.iter().filter(|layer| layer.state == LayerState::Done).count();
        if complete == count {
            return format!("unpacking {unpacked}/{count} layers");
        }
        let sum = |of: fn(&LayerProgress) -> u64| self.layers.iter().map(of).fold(0, u64::saturating_add);
        let (done, total) = (sum(|layer| layer.done_bytes), sum(|layer| layer.size_bytes));
        let from = self.sources();
        format!("pulling {complete}/{count} layers, {} of {}{from}", format_bytes(done), format_bytes(total))
    }

    /// ` from node beta`; nothing when all comes from registries, which is where images come from.
    fn sources(&self) -> String {
        let coming = || self.layers.iter().filter(|layer| layer.state == LayerState::Downloading);
        let nodes: BTreeSet<&str> = coming().filter_map(|layer| layer.from.as_deref()).collect();
        if nodes.is_empty() {
            return String::new();
        }
        let word = if nodes.len() == 1 { "node" } else { "nodes" };
        let besides = if coming().any(|layer| layer.from.is_none()) { " and the registry" } else { "" };
        format!(" from {word} {}{besides}", nodes.into_iter().collect::<Vec<_>>().join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_told_in_a_few_words() {
        let layer = |done_bytes, state| LayerProgress {
            digest: "sha256:0".to_owned(),
            size_bytes: 200 << 20,
            done_bytes,
            state,
            from: None,
        };
        let check = |layers: Vec<LayerProgress>, expected: &str| {
            assert_eq!(PullProgress { layers, ..PullProgress::default() }.summary(), expected);
        };
        check(Vec::new(), "pulling: asking the registry");
        let whole = layer(200 << 20, LayerState::Downloaded);
        check(
            vec![whole.clone(), layer((1 << 20) + (1 << 19), LayerState::Downloading)],
            "pulling 1/2 layers, 202 MiB of 400 MiB",
        );
        let of = |node: &str, layer: LayerProgress| LayerProgress { from: Some(node.to_owned()), ..layer };
        let coming = || layer(0, LayerState::Downloading);
        check(vec![of("beta", coming()), of("beta", coming())], "pulling 0/2 layers, 0 B of 400 MiB from node beta");
        check(
            vec![of("gamma", coming()), of("beta", coming()), coming()],
            "pulling 0/3 layers, 0 B of 600 MiB from nodes beta, gamma and the registry",
        );
        check(vec![layer(200 << 20, LayerState::Done), whole], "unpacking 1/2 layers");
        let told = PullProgress { by_word_of: Some("beta".to_owned()), ..PullProgress::default() }.summary();
        assert_eq!(told, "pulling: asking the registry; its registry does not help, its tag is what node beta has");
    }

    #[test]
    fn policies_are_read_as_they_are_written() {
        for text in ["always", "missing", "never"] {
            let policy: PullPolicy = text.parse().unwrap();
            assert_eq!(serde_json::to_value(policy).unwrap(), text);
        }
        assert!("newer".parse::<PullPolicy>().is_err());
    }
}
