//! What a node has, and what an instance holds of it.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::invalid::Invalid;

/// Names one GPU for as long as it is in its machine: NVIDIA's UUID (`GPU-…`, or `MIG-…` for a part of a card), or
/// `pci-` and the address on the bus for cards that have none.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GpuId(String);

impl GpuId {
    /// Longest name, in bytes.
    pub const MAX_BYTES: usize = 96;

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for GpuId {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | ':' | '.' | '/');
        if text.is_empty() || text.len() > Self::MAX_BYTES || !text.chars().all(known) {
            let shown: String = text.chars().take(40).collect();
            return Err(Invalid::value(format!("`{shown}` names no GPU"), "write what `toft gpu ls` calls it"));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for GpuId {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<GpuId> for String {
    fn from(id: GpuId) -> Self {
        id.0
    }
}

impl fmt::Display for GpuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who makes the card.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum GpuVendor {
    /// NVIDIA, by its own library.
    Nvidia,
    /// AMD, by what the kernel tells.
    Amd,
    /// Intel, by what the kernel tells.
    Intel,
}

impl GpuVendor {
    /// Every vendor.
    pub const ALL: [Self; 3] = [Self::Nvidia, Self::Amd, Self::Intel];

    /// The word for it in requests.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nvidia => "nvidia",
            Self::Amd => "amd",
            Self::Intel => "intel",
        }
    }

    /// How the Container Device Interface calls its cards.
    pub fn cdi_kind(self) -> &'static str {
        match self {
            Self::Nvidia => "nvidia.com/gpu",
            Self::Amd => "amd.com/gpu",
            Self::Intel => "intel.com/gpu",
        }
    }
}

impl fmt::Display for GpuVendor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How many may hold a card.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum GpuPolicy {
    /// One instance for all of it, or several for shares of its memory.
    #[default]
    Shared,
    /// One instance, whatever it asks for.
    Exclusive,
    /// Nobody holds the card, only its MIG devices are given away.
    Mig,
}

impl GpuPolicy {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::Exclusive => "exclusive",
            Self::Mig => "mig",
        }
    }
}

impl FromStr for GpuPolicy {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        [Self::Shared, Self::Exclusive, Self::Mig].into_iter().find(|policy| policy.as_str() == text).ok_or_else(|| {
            let shown: String = text.chars().take(40).collect();
            Invalid::value(format!("`{shown}` is no policy of a GPU"), "use `shared`, `exclusive` or `mig`")
        })
    }
}

/// A GPU of a node, or a MIG device of one: what matters for placement. What changes from second to second is no part of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Gpu {
    /// Its name in requests and orders.
    #[schema(value_type = String, example = "GPU-5f3d1d2c-6f0a-4a53-8a7e-0d3f1f9b7c11")]
    pub id: GpuId,
    /// Who makes it.
    pub vendor: GpuVendor,
    /// What it calls itself, such as `NVIDIA GeForce RTX 4090`.
    pub model: String,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Memory in MiB that is used by none of toft's instances, in coarse steps, so that the state does not follow every
    /// change.
    #[serde(default)]
    pub outside_mib: u32,
    /// The card that this MIG device is a part of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub parent: Option<GpuId>,
    /// Why it takes no work, by its own telling: a fault, heat, a driver that is away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sick: Option<String>,
    /// Power that it draws in watts, averaged over minutes and in coarse steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watts: Option<u32>,
    /// Ways to the other cards of its node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<GpuLink>,
}

/// The way from one card to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct GpuLink {
    /// The other card.
    #[schema(value_type = String)]
    pub to: GpuId,
    /// Which way, as `nvidia-smi topo -m` calls it: `NV4` (four NVLinks), `PIX`, `PXB`, `PHB`, `NODE` or `SYS`.
    pub way: String,
}

impl GpuLink {
    /// How good the way is: more is better, 0 when nobody knows it.
    pub(crate) fn worth(&self) -> u32 {
        match self.way.as_str() {
            "SYS" => 1,
            "NODE" => 2,
            "PHB" => 3,
            "PXB" => 4,
            "PIX" => 5,
            way => {
                let links = way.strip_prefix("NV").and_then(|links| links.parse::<u32>().ok());
                links.map_or(0, |links| 100 + links.min(100))
            }
        }
    }
}

impl Gpu {
    /// The size it is sold with: whole GiB, rounded up, because a driver keeps a little to itself.
    pub fn sold_gib(&self) -> u32 {
        self.memory_mib.div_ceil(1024)
    }

    /// Whether people who ask for `name` mean it: the letters and digits of some words of its model that follow each
    /// other, so `rtx4070` is a `GeForce RTX 4070` and a `GeForce RTX 4070 Ti`, and `a10` is no `A100`.
    pub fn is_called(&self, name: &str) -> bool {
        let model = self.model.to_ascii_lowercase();
        let words: Vec<&str> =
            model.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).collect();
        (0..words.len()).any(|first| {
            let mut rest = name;
            words[first..].iter().any(|word| match rest.strip_prefix(word) {
                Some(left) => {
                    rest = left;
                    left.is_empty()
                }
                None => {
                    // No later word may stand in for this one.
                    rest = "\0";
                    false
                }
            })
        })
    }
}

/// What an instance holds of one GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct GpuHold {
    /// Which.
    #[schema(value_type = String)]
    pub gpu: GpuId,
    /// Memory in MiB when it shares the card; absent when it has the card to itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vram_mib: Option<u32>,
}

#[cfg(test)]
pub(crate) mod made {
    //! Made-up cards.

    use super::{Gpu, GpuVendor};

    /// A healthy one of NVIDIA's.
    pub(crate) fn card(id: &str, model: &str, memory_mib: u32) -> Gpu {
        let (id, vendor) = (id.parse().unwrap(), GpuVendor::Nvidia);
        Gpu {
            id,
            vendor,
            model: model.into(),
            memory_mib,
            outside_mib: 0,
            parent: None,
            sick: None,
            watts: None,
            links: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(model: &str, memory_mib: u32) -> Gpu {
        made::card("GPU-1", model, memory_mib)
    }

    #[test]
    fn models_are_called_by_their_words() {
        for (model, names) in [
            (
                "NVIDIA GeForce RTX 4070 Ti",
                &["rtx4070", "4070", "rtx4070ti", "geforcertx4070ti", "nvidiageforcertx4070ti"][..],
            ),
            ("NVIDIA A100-SXM4-80GB", &["a100", "a100sxm4", "80gb"]),
            ("NVIDIA H200", &["h200"]),
            ("AMD Radeon RX 7900 XTX", &["rx7900", "rx7900xtx", "radeon"]),
        ] {
            for name in names {
                assert!(card(model, 1).is_called(name), "{model} is {name}");
            }
        }
        for (model, name) in [
            ("NVIDIA A100-SXM4-80GB", "a10"),
            ("NVIDIA GeForce RTX 4070", "rtx4070ti"),
            ("NVIDIA H200", "rtx"),
            ("NVIDIA L40S", "l40"),
            ("A B C", "ac"),
            ("A B", ""),
        ] {
            assert!(!card(model, 1).is_called(name), "{model} is no {name}");
        }
    }

    #[test]
    fn cards_are_as_large_as_they_are_sold() {
        for (mib, gib) in [(24_564, 24), (24_576, 24), (81_559, 80), (16_376, 16), (143_771, 141)] {
            assert_eq!(card("x", mib).sold_gib(), gib);
        }
    }

    #[test]
    fn names_are_bounded() {
        for good in ["GPU-5f3d1d2c-6f0a-4a53-8a7e-0d3f1f9b7c11", "MIG-GPU-1/2/0", "pci-0000:03:00.0"] {
            assert_eq!(good.parse::<GpuId>().unwrap().to_string(), good);
        }
        for bad in ["", "a b", "GPU-\n", "ü", &"x".repeat(97)] {
            assert!(bad.parse::<GpuId>().is_err(), "{bad}");
        }
    }
}
