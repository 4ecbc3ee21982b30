//! What the Container Device Interface calls a device: `vendor.com/class=name`.

use std::{fmt, str::FromStr};

use super::{GpuId, GpuRequest, GpuVendor};
use crate::{invalid::Invalid, text::shown};

/// The qualified name of a device.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CdiName {
    /// Its kind, `vendor.com/class`.
    pub kind: String,
    /// Its name among those of its kind.
    pub device: String,
}

impl CdiName {
    /// Longest part of a name, in bytes.
    const LONGEST: usize = 128;

    /// Whether a text is meant as one: no path of a device has `=` in it and begins without `/`.
    pub fn is_meant(text: &str) -> bool {
        !text.starts_with('/') && text.contains('=')
    }

    /// Whether `text` is `vendor.com/class`.
    pub fn is_kind(text: &str) -> bool {
        text.split_once('/').is_some_and(|(vendor, class)| is_part(vendor, "-_.") && is_part(class, "-_"))
    }

    /// Whether `text` names a device of a kind.
    pub fn is_device(text: &str) -> bool {
        is_part(text, "-_.:")
    }

    /// Whose cards devices of this kind are, when they are cards that toft counts.
    pub fn vendor(&self) -> Option<GpuVendor> {
        GpuVendor::ALL.into_iter().find(|vendor| vendor.cdi_kind() == self.kind)
    }

    /// The request that asks for the same cards; nothing when they are no cards.
    pub(crate) fn request(&self) -> Option<Result<GpuRequest, Invalid>> {
        let vendor = self.vendor()?;
        let all = GpuRequest { vendor: Some(vendor), ..GpuRequest::all() };
        if self.device == "all" {
            return Some(Ok(all));
        }
        let id = self.card(vendor).ok_or_else(|| {
            Invalid::value(
                format!("`{self}` names no GPU by its number or its own name"),
                format!("write `{}=0`, `{0}=all`, or `gpus` with what `toft gpu ls` calls it", self.kind),
            )
        });
        Some(id.map(|id| GpuRequest { vendor: Some(vendor), devices: vec![id], ..GpuRequest::cards(1) }))
    }

    /// Its number, the number of a part of it, NVIDIA's UUID, or its place on the bus, with which Intel's names begin.
    fn card(&self, vendor: GpuVendor) -> Option<GpuId> {
        let digits = |text: &str| !text.is_empty() && text.len() < 6 && text.bytes().all(|byte| byte.is_ascii_digit());
        let mut parts = self.device.splitn(2, ':');
        if parts.next().is_some_and(digits) && parts.next().is_none_or(digits) {
            return self.device.parse().ok();
        }
        match vendor {
            GpuVendor::Nvidia => {
                let named = ["GPU-", "MIG-"].iter().any(|begin| self.device.starts_with(begin));
                named.then(|| self.device.parse().ok())?
            }
            GpuVendor::Amd | GpuVendor::Intel => {
                let place = self.device.get(..12)?;
                let hexadecimal = |at: usize, c: char| match at {
                    4 | 7 => c == ':',
                    10 => c == '.',
                    _ => c.is_ascii_hexdigit(),
                };
                let is_place = place.char_indices().all(|(at, c)| hexadecimal(at, c));
                let ends = self.device.len() == 12 || self.device[12..].starts_with('-');
                (is_place && ends).then(|| format!("pci-{}", place.to_ascii_lowercase()).parse().ok())?
            }
        }
    }
}

fn is_part(text: &str, besides: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric();
    text.len() <= CdiName::LONGEST
        && text.starts_with(plain)
        && text.ends_with(plain)
        && text.chars().all(|c| plain(c) || besides.contains(c))
}

impl FromStr for CdiName {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let parts = text.split_once('=').filter(|(kind, device)| Self::is_kind(kind) && Self::is_device(device));
        let (kind, device) = parts.ok_or_else(|| {
            Invalid::value(
                format!("`{}` is no name of a device", shown(text)),
                "write `vendor.com/class=name`, such as `nvidia.com/gpu=0`",
            )
        })?;
        Ok(Self { kind: kind.to_owned(), device: device.to_owned() })
    }
}

impl fmt::Display for CdiName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.kind, self.device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_cards_ask_for_them() {
        for (name, request) in [
            ("nvidia.com/gpu=all", "nvidia:all"),
            ("nvidia.com/gpu=0", "nvidia,device=0"),
            ("nvidia.com/gpu=1:0", "nvidia,device=1:0"),
            ("nvidia.com/gpu=GPU-5f3d1d2c-6f0a", "nvidia,device=GPU-5f3d1d2c-6f0a"),
            ("nvidia.com/gpu=MIG-5f3d", "nvidia,device=MIG-5f3d"),
            ("amd.com/gpu=1", "amd,device=1"),
            ("intel.com/gpu=0000:03:00.0-0x56a0", "intel,device=pci-0000:03:00.0"),
            ("amd.com/gpu=0000:C3:00.0", "amd,device=pci-0000:c3:00.0"),
        ] {
            let told = name.parse::<CdiName>().unwrap().request().unwrap().unwrap();
            assert_eq!(told.to_string(), request, "{name}");
            assert_eq!(request.parse::<GpuRequest>().unwrap(), told, "{name}");
        }
        for unknown in ["nvidia.com/gpu=first", "nvidia.com/gpu=0:", "amd.com/gpu=GPU-1", "intel.com/gpu=card0"] {
            let Ok(name) = unknown.parse::<CdiName>() else { continue };
            let told = name.request().unwrap().unwrap_err();
            assert!(told.hint.contains("toft gpu ls"), "{unknown}: {told:?}");
        }
        for other in ["acme.com/fpga=0", "nvidia.com/gds=all", "management.nvidia.com/gpu=all"] {
            assert!(other.parse::<CdiName>().unwrap().request().is_none(), "{other}");
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for bad in [
            "",
            "=",
            "a/b=",
            "a=b",
            "/dev/x=y",
            "a/b/c=d",
            "a b/c=d",
            "a/b=c d",
            "-a/b=c",
            "a/b=-c",
            "../a/b=c",
            "a/b=\n",
            "ü/b=c",
            &format!("a/b={}", "x".repeat(129)),
        ] {
            assert!(bad.parse::<CdiName>().is_err(), "{bad}");
        }
    }
}
