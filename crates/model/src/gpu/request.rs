//! What a workload asks for: `2`, `nvidia:1`, `rtx4090:2`, `24GB..:1`, `vram=8GiB`, `all`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{CdiName, Gpu, GpuId, GpuVendor};
use crate::{invalid::Invalid, units::parse_bytes};

/// Docker's words for parts of NVIDIA's library.
const CAPABILITIES: [&str; 9] =
    ["gpu", "nvidia", "compute", "utility", "graphics", "video", "display", "ngx", "compat32"];

/// How much of how many cards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GpuAmount {
    /// So many whole cards of one node.
    Cards(u32),
    /// Every card of one node that the rest of the request allows, and at least one.
    All,
    /// A share of one card: so much of its memory, in MiB.
    Share(u32),
}

/// How large a card is, in GiB as cards are sold; both ends belong to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GpuMemory {
    /// The smallest.
    pub least_gib: Option<u32>,
    /// The largest.
    pub most_gib: Option<u32>,
}

/// What each instance of a workload wants of GPUs.
///
/// Written as words with commas between them, and `:COUNT` at the end: a vendor (`nvidia`), models of which any will do
/// (`rtx4090`), a range of memory (`24GB`, `24GB..`, `..24GB`, `16GB..24GB`; as cards are sold, `GB` and `GiB` are the same), a share
/// of memory (`vram=8GiB`), or names of cards (`device=0`, `device=GPU-…`). `2` and `count=2` are two cards, `all` all of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GpuRequest {
    /// How much of how many.
    pub amount: GpuAmount,
    /// Only of this vendor.
    pub vendor: Option<GpuVendor>,
    /// Only these models, when there are any: lower-case letters and digits.
    pub models: Vec<String>,
    /// Only as large.
    pub memory: Option<GpuMemory>,
    /// Only these, when there are any: a number is the place among the node's cards, or the vendor's where one is named, and
    /// `0:1` a MIG device by the place of its card and its own.
    pub devices: Vec<GpuId>,
}

impl GpuRequest {
    /// Most cards of one request.
    pub const MAX_CARDS: u32 = 64;
    /// Most words of one request.
    const MAX_WORDS: usize = 32;
    /// Longest text, in bytes.
    const MAX_BYTES: usize = 2_048;
    /// Smallest and largest share, in MiB.
    const SHARES: std::ops::RangeInclusive<u64> = 64..=(1 << 24);

    /// So many whole cards, whichever.
    pub fn cards(count: u32) -> Self {
        let amount = GpuAmount::Cards(count);
        Self { amount, vendor: None, models: Vec::new(), memory: None, devices: Vec::new() }
    }

    /// All cards of a node.
    pub fn all() -> Self {
        Self { amount: GpuAmount::All, ..Self::cards(1) }
    }

    /// Whether number `place` of a node's `cards` is one of those that may be used; else why not.
    pub fn allows(&self, cards: &[Gpu], place: usize) -> Result<(), String> {
        let gpu = &cards[place];
        if self.vendor.is_some_and(|vendor| vendor != gpu.vendor) {
            return Err(format!("it is made by {}", gpu.vendor));
        }
        if !self.models.is_empty() && !self.models.iter().any(|name| gpu.is_called(name)) {
            return Err(format!("it is a {}", gpu.model));
        }
        if let Some(GpuMemory { least_gib, most_gib }) = self.memory {
            let size = gpu.sold_gib();
            if least_gib.is_some_and(|least| size < least) || most_gib.is_some_and(|most| size > most) {
                return Err(format!("it has {size} GiB"));
            }
        }
        if !self.devices.is_empty() && !self.devices.iter().any(|name| self.means(name, cards, place)) {
            return Err("it is not among the named ones".into());
        }
        Ok(())
    }

    /// Whether `name` is that of number `place` of `cards`: its own, its number, or for a MIG device the number of its card and its
    /// number among that card's. Where a vendor is named, only its cards count.
    fn means(&self, name: &GpuId, cards: &[Gpu], place: usize) -> bool {
        let gpu = &cards[place];
        let of_vendor = |card: &&Gpu| self.vendor.is_none_or(|vendor| vendor == card.vendor);
        let number = |text: &str| text.parse::<usize>().ok();
        let before = |is: &dyn Fn(&Gpu) -> bool| cards[..place].iter().filter(|card| is(card)).count();
        if *name == gpu.id {
            return true;
        }
        match name.as_str().split_once(':') {
            None => number(name.as_str()) == Some(before(&|card| of_vendor(&card))),
            Some((card, part)) => {
                let parent = number(card).and_then(|card| cards.iter().filter(of_vendor).nth(card));
                let parent = parent.map(|parent| &parent.id);
                gpu.parent.is_some()
                    && gpu.parent.as_ref() == parent
                    && number(part) == Some(before(&|card| card.parent.as_ref() == parent))
            }
        }
    }
}

impl FromStr for GpuRequest {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let shown: String = text.chars().take(60).collect();
        let bad = |why: &str| {
            Invalid::value(
                format!("`{shown}` asks for no GPU: {why}"),
                "write a count, a vendor, a model, a range of memory or a share, such as `1`, `nvidia:1`, `rtx4090:2`, \
                 `24GB..:1`, `vram=8GiB` or `all`",
            )
        };
        if text.len() > Self::MAX_BYTES {
            return Err(bad("it is too long"));
        }
        // Docker's users put words with commas in quotes, twice for the shell: '"device=0,1"'.
        if text.matches('"').count() % 2 == 1 {
            return Err(bad("a quotation mark is missing"));
        }
        let text = text.replace('"', "");
        let text = text.as_str();
        let mut request = Self::cards(1);
        let mut amount = None;
        let mut set = |wanted: GpuAmount| match amount.replace(wanted) {
            None => Ok(()),
            Some(_) => Err(bad("it says twice how much")),
        };
        // A card's name may hold colons, so only a number behind the last one is a count.
        let (words, count) = match text.rsplit_once(':') {
            Some((words, count)) if !words.contains("device=") => (words, Some(count)),
            _ => (text, None),
        };
        if let Some(count) = count {
            set(if count == "all" {
                GpuAmount::All
            } else {
                GpuAmount::Cards(cards(count).ok_or_else(|| bad("the count is 1 to 64"))?)
            })?;
        }
        let words: Vec<&str> = words.split(',').map(str::trim).collect();
        if words.len() > Self::MAX_WORDS {
            return Err(bad("it has too many words"));
        }
        let (mut in_devices, mut in_capabilities) = (false, false);
        for word in &words {
            let (key, value) = word.split_once('=').unwrap_or(("", word));
            let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            let digits = is_number(word);
            let place = word.split_once(':').map_or(digits, |(card, part)| is_number(card) && is_number(part));
            // What specifications of devices call a card holds the sign itself.
            let name = match key {
                "device" => value,
                kind if in_devices && CdiName::is_kind(kind) => word,
                _ => "",
            };
            if CdiName::is_meant(name) {
                if request.take_named(&name.parse()?)? {
                    set(GpuAmount::All)?;
                }
                (in_devices, in_capabilities) = (true, false);
                continue;
            }
            match key {
                "" if in_devices
                    && (place
                        || value.starts_with("GPU-")
                        || value.starts_with("MIG-")
                        || value.starts_with("pci-")) =>
                {
                    request.devices.push(value.parse()?);
                }
                "" if in_capabilities && CAPABILITIES.contains(&value) => {}
                "" if value.is_empty() => return Err(bad("a word is missing")),
                "" if value == "all" => set(GpuAmount::All)?,
                "" if digits && words.len() == 1 => {
                    set(GpuAmount::Cards(cards(value).ok_or_else(|| bad("the count is 1 to 64"))?))?;
                }
                "" => request.take_word(value).map_err(&bad)?,
                "count" if value == "all" || value == "-1" => set(GpuAmount::All)?,
                "count" => set(GpuAmount::Cards(cards(value).ok_or_else(|| bad("the count is 1 to 64"))?))?,
                "vram" => {
                    let mib = parse_bytes(value)?.div_ceil(1 << 20);
                    if !Self::SHARES.contains(&mib) {
                        return Err(bad("a share is at least 64MiB"));
                    }
                    set(GpuAmount::Share(u32::try_from(mib).map_err(|_| bad("the share is too large"))?))?;
                }
                "device" => request.devices.push(value.parse()?),
                // Docker's word for names of specifications.
                "driver" if value == "cdi" => {}
                "driver" => request.take_word(value).map_err(&bad)?,
                // Docker's word for parts of NVIDIA's library; all of them are there.
                "capabilities" => {}
                _ => return Err(bad(&format!("`{key}` is no word of it"))),
            }
            in_devices = key == "device" || (in_devices && key.is_empty());
            in_capabilities = key == "capabilities" || (in_capabilities && key.is_empty());
        }
        request.amount = match amount {
            Some(amount) => amount,
            None if request.devices.is_empty() => GpuAmount::Cards(1),
            None => GpuAmount::Cards(u32::try_from(request.devices.len()).unwrap_or(u32::MAX)),
        };
        request.check(bad)?;
        Ok(request)
    }
}

impl GpuRequest {
    /// The card that a specification of devices calls so; whether that is all of them.
    fn take_named(&mut self, name: &CdiName) -> Result<bool, Invalid> {
        let no_card = || Invalid::value(format!("`{name}` is no GPU"), "ask for other devices in `devices`");
        let wanted = name.request().ok_or_else(no_card)??;
        if self.vendor.is_some() && self.vendor != wanted.vendor {
            return Err(Invalid::value("GPUs of two vendors are named", "ask for those of one vendor"));
        }
        self.vendor = wanted.vendor;
        self.devices.extend(wanted.devices);
        Ok(wanted.amount == GpuAmount::All)
    }

    /// A word without `=`: a vendor, a range of memory or a model.
    fn take_word(&mut self, word: &str) -> Result<(), &'static str> {
        if let Some(vendor) = GpuVendor::ALL.into_iter().find(|vendor| vendor.as_str() == word) {
            return match self.vendor.replace(vendor) {
                None => Ok(()),
                Some(_) => Err("it names two vendors"),
            };
        }
        if let Some(memory) = memory(word) {
            let memory = memory?;
            return match self.memory.replace(memory) {
                None => Ok(()),
                Some(_) => Err("it says twice how large"),
            };
        }
        let name: String =
            word.chars().filter(|c| !matches!(c, ' ' | '-' | '_')).map(|c| c.to_ascii_lowercase()).collect();
        if name.is_empty()
            || !name.bytes().all(|byte| byte.is_ascii_alphanumeric())
            || name.bytes().all(|byte| byte.is_ascii_digit()) && name.len() < 3
        {
            return Err("a model is written with letters and digits");
        }
        self.models.push(name);
        Ok(())
    }

    fn check(&self, bad: impl Fn(&str) -> Invalid) -> Result<(), Invalid> {
        let named = self.devices.len();
        match self.amount {
            GpuAmount::Cards(count) if named > 0 && count as usize != named => {
                Err(bad("the count is not the number of the named cards"))
            }
            GpuAmount::All if named > 0 => Err(bad("it asks for all and for named cards")),
            GpuAmount::Share(_) if named > 1 => Err(bad("a share is of one card")),
            _ => Ok(()),
        }
    }
}

fn cards(text: &str) -> Option<u32> {
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|count| plain && (1..=GpuRequest::MAX_CARDS).contains(count))
}

/// Nothing when it is no range of memory.
fn memory(word: &str) -> Option<Result<GpuMemory, &'static str>> {
    let size = |text: &str| {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let unit = matches!(text[digits..].trim_start(), "GB" | "GiB" | "gb" | "g" | "G" | "Gi");
        (unit && digits > 0).then(|| text[..digits].parse::<u32>().ok().filter(|gib| (1..=65_536).contains(gib)))
    };
    let bound = |text: &str| match text {
        "" => Some(None),
        text => size(text).map(|gib| gib.map(Some).unwrap_or(Some(0))),
    };
    let (least, most) = match word.split_once("..") {
        None => {
            let exact = size(word)?.unwrap_or(0);
            (Some(exact), Some(exact))
        }
        Some(("", "")) => return None,
        Some((least, most)) => (bound(least)?, bound(most)?),
    };
    if least == Some(0) || most == Some(0) {
        return Some(Err("a size of memory is 1GB to 65536GB"));
    }
    if matches!((least, most), (Some(least), Some(most)) if least > most) {
        return Some(Err("the range of memory is empty"));
    }
    Some(Ok(GpuMemory { least_gib: least, most_gib: most }))
}

impl fmt::Display for GpuRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words: Vec<String> = self.vendor.iter().map(ToString::to_string).collect();
        words.extend(self.models.iter().cloned());
        words.extend(self.memory.map(|GpuMemory { least_gib, most_gib }| {
            let gib = |bound: Option<u32>| bound.map(|gib| format!("{gib}GB")).unwrap_or_default();
            if least_gib == most_gib { gib(least_gib) } else { format!("{}..{}", gib(least_gib), gib(most_gib)) }
        }));
        match self.amount {
            GpuAmount::Share(mib) if mib % 1024 == 0 => words.push(format!("vram={}GiB", mib / 1024)),
            GpuAmount::Share(mib) => words.push(format!("vram={mib}MiB")),
            GpuAmount::Cards(_) | GpuAmount::All => {}
        }
        words.extend(self.devices.iter().map(|device| format!("device={device}")));
        let count = match self.amount {
            GpuAmount::Cards(count) => count.to_string(),
            GpuAmount::All => "all".into(),
            GpuAmount::Share(_) => return f.write_str(&words.join(",")),
        };
        match (words.is_empty(), self.devices.is_empty()) {
            (true, _) => f.write_str(&count),
            (false, true) => write!(f, "{}:{count}", words.join(",")),
            // There are as many as are named.
            (false, false) => f.write_str(&words.join(",")),
        }
    }
}

impl TryFrom<String> for GpuRequest {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<GpuRequest> for String {
    fn from(request: GpuRequest) -> Self {
        request.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::made;

    #[test]
    fn requests_parse_and_print() {
        for (text, printed) in [
            ("1", "1"),
            ("count=2", "2"),
            ("all", "all"),
            ("count=-1,driver=nvidia,capabilities=gpu", "nvidia:all"),
            ("nvidia:1", "nvidia:1"),
            ("\"device=0,2\"", "device=0,device=2"),
            ("device=0:1,1:0", "device=0:1,device=1:0"),
            ("driver=cdi,\"device=nvidia.com/gpu=0,nvidia.com/gpu=GPU-1\"", "nvidia,device=0,device=GPU-1"),
            ("device=amd.com/gpu=all", "amd:all"),
            ("all,\"capabilities=compute,utility\"", "all"),
            ("\"capabilities=gpu,video\",driver=nvidia,count=2", "nvidia:2"),
            ("rtx4090:2", "rtx4090:2"),
            ("RTX 4090,RTX-3090:all", "rtx4090,rtx3090:all"),
            ("24GB..:1", "24GB..:1"),
            ("24GiB", "24GB:1"),
            ("nvidia,16GB..24GB,a5000:3", "nvidia,a5000,16GB..24GB:3"),
            ("vram=8GiB", "vram=8GiB"),
            ("amd,vram=1.5g", "amd,vram=1536MiB"),
            ("device=0,1", "device=0,device=1"),
            ("device=GPU-1,MIG-2,device=pci-0000:03:00.0", "device=GPU-1,device=MIG-2,device=pci-0000:03:00.0"),
            ("vram=8GiB,device=0", "vram=8GiB,device=0"),
        ] {
            let request: GpuRequest = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(request.to_string(), printed, "{text}");
            assert_eq!(printed.parse::<GpuRequest>().unwrap(), request, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for bad in [
            "",
            ",",
            "0",
            "65",
            "-1",
            "1.5",
            "nvidia:0",
            "nvidia:x",
            "nvidia,amd:1",
            "nvidia:",
            ":1",
            "..",
            "24GB..16GB",
            "0GB",
            "24GB..,8GB:1",
            "99999999999GB",
            "vram=0",
            "\"device=0",
            "device=nvidia.com/gpu=",
            "device=acme.com/fpga=0",
            "device=nvidia.com/gpu=0,amd.com/gpu=0",
            "device=nvidia.com/gpu=all,nvidia.com/gpu=0",
            "amd,device=nvidia.com/gpu=0",
            "compute,capabilities=gpu:",
            "vram=x",
            "vram=8GiB:2",
            "vram=8GiB,vram=1GiB",
            "count=0",
            "all:2",
            "device=",
            "device=0,1:",
            "device=0,1:2:3",
            "vram=8GiB,device=0,1",
            "device=a b",
            "colour=red",
            "rtx_4090$:1",
            "all,device=0",
            "1,2",
            "\0",
            "ü",
        ] {
            let error = bad.parse::<GpuRequest>().expect_err(bad);
            assert!(!error.hint.is_empty() && error.message.len() < 200, "{bad}");
        }
        assert!("x".repeat(3_000).parse::<GpuRequest>().is_err());
        assert!(vec!["a1"; 33].join(",").parse::<GpuRequest>().is_err());
    }

    #[test]
    fn cards_are_told_apart() {
        let card = |id: &str| made::card(id, "NVIDIA GeForce RTX 4090", 24_564);
        let cards = [card("GPU-4"), card("GPU-5"), card("GPU-6"), card("GPU-7")];
        for good in [
            "1",
            "nvidia:1",
            "rtx3090,rtx4090:2",
            "24GB",
            "24GiB..",
            "..24GB",
            "device=3",
            "device=GPU-7",
            "vram=30GiB",
        ] {
            assert_eq!(good.parse::<GpuRequest>().unwrap().allows(&cards, 3), Ok(()), "{good}");
        }
        for (bad, why) in [
            ("amd", "it is made by nvidia"),
            ("rtx3090", "it is a NVIDIA GeForce RTX 4090"),
            ("25GB..", "it has 24 GiB"),
            ("..23GB", "it has 24 GiB"),
            ("device=2", "it is not among the named ones"),
        ] {
            assert_eq!(bad.parse::<GpuRequest>().unwrap().allows(&cards, 3), Err(why.into()), "{bad}");
        }
    }

    #[test]
    fn numbers_count_the_cards_of_the_vendor_and_the_parts_of_a_card() {
        let card = |id: &str, vendor, parent: Option<&str>| Gpu {
            vendor,
            parent: parent.map(|parent| parent.parse().unwrap()),
            ..made::card(id, "x", 1_000)
        };
        let (nvidia, amd) = (GpuVendor::Nvidia, GpuVendor::Amd);
        let cards = [
            card("GPU-0", nvidia, None),
            card("GPU-1", nvidia, None),
            card("pci-0", amd, None),
            card("pci-1", amd, None),
            card("MIG-0", nvidia, Some("GPU-1")),
            card("MIG-1", nvidia, Some("GPU-1")),
        ];
        for (request, meant) in [
            ("device=1", "GPU-1"),
            ("device=2", "pci-0"),
            ("nvidia,device=1", "GPU-1"),
            ("amd,device=1", "pci-1"),
            ("amd,device=2", ""),
            ("nvidia,device=1:1", "MIG-1"),
            ("device=1:0", "MIG-0"),
            ("device=0:0", ""),
            ("amd,device=1:0", ""),
            ("device=9:0", ""),
        ] {
            let wanted: GpuRequest = request.parse().unwrap();
            let found = (0..cards.len()).filter(|place| wanted.allows(&cards, *place).is_ok());
            let found: Vec<_> = found.map(|place| cards[place].id.as_str()).collect();
            assert_eq!(found.join(" "), meant, "{request}");
        }
    }
}
