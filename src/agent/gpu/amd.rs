//! AMD's cards, as the kernel's `amdgpu` shows them: `/sys/class/drm`, the sensors beside it, and `/sys/class/kfd` for who
//! computes on them.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
};

use toft_model::gpu::{GpuMeasured, GpuVendor};

use super::{
    Card, Driver, DriverError, Places, mib,
    sysfs::{self, DrmCard, Told, degrees, hexadecimal, number, text, watts},
};

const VENDOR: u16 = 0x1002;
/// What has less memory of its own is part of a processor, and its memory the machine's.
const LEAST_MEMORY_BYTES: u64 = 2 << 30;

/// Looks at AMD's cards.
pub struct AmdDriver {
    places: Places,
    names: HashMap<PathBuf, String>,
}

impl AmdDriver {
    /// One that looks there.
    pub fn new(places: &Places) -> Self {
        Self { places: places.clone(), names: HashMap::new() }
    }

    fn name(&mut self, card: &DrmCard) -> String {
        let share = &self.places.share;
        let find = || {
            let device = hexadecimal(&card.device.join("device"));
            let revision = hexadecimal(&card.device.join("revision"));
            let own = text(&card.device.join("product_name")).filter(|name| !name.is_empty());
            let listed = || marketing_name(&text(&share.join("libdrm/amdgpu.ids"))?, device?, revision?);
            let on_bus = || Some(format!("AMD {}", sysfs::pci_name(share, VENDOR, device?)?));
            own.or_else(listed).or_else(on_bus).unwrap_or_else(|| format!("AMD GPU {:04x}", device.unwrap_or(0)))
        };
        self.names.entry(card.device.clone()).or_insert_with(find).clone()
    }
}

impl Driver for AmdDriver {
    fn vendor(&self) -> GpuVendor {
        GpuVendor::Amd
    }

    fn look(&mut self) -> Result<Vec<Card>, DriverError> {
        let cards = sysfs::cards(&self.places.sys, VENDOR);
        let memory = |card: &DrmCard| number::<u64>(&card.device.join("mem_info_vram_total")).unwrap_or(0);
        let cards: Vec<_> = cards.into_iter().map(|card| (memory(&card), card)).collect();
        let own: Vec<_> = cards.into_iter().filter(|(memory, _)| *memory >= LEAST_MEMORY_BYTES).collect();
        if own.is_empty() {
            return Ok(Vec::new());
        }
        let drawing = sysfs::clients(&self.places.proc);
        let computing = computing(&self.places.sys);
        let mut seen = Vec::new();
        for ((memory, card), index) in own.into_iter().zip(0..) {
            let mut held: BTreeMap<u32, u64> = drawing.get(&card.pci).cloned().unwrap_or_default();
            for (pid, bytes) in computing.get(&card.pci).into_iter().flatten() {
                // Both may count the same memory.
                let known = held.entry(*pid).or_default();
                *known = (*known).max(*bytes);
            }
            let told = Told { model: self.name(&card), memory_bytes: memory, measured: measured(&card.device), held };
            seen.extend(card.card(&self.places.sys, GpuVendor::Amd, index, told));
        }
        Ok(seen)
    }
}

fn measured(device: &Path) -> GpuMeasured {
    let sensors = sysfs::hwmon(device).unwrap_or_else(|| device.join("hwmon/none"));
    let sensor = |name: &str| sensors.join(name);
    let mhz = |name: &str| number::<u64>(&sensor(name)).and_then(|hertz| u32::try_from(hertz / 1_000_000).ok());
    let (ecc_uncorrected, ecc_corrected) = errors(device);
    GpuMeasured {
        memory_used_mib: number(&device.join("mem_info_vram_used")).map(mib),
        memory_reserved_mib: None,
        busy_percent: number(&device.join("gpu_busy_percent")),
        memory_busy_percent: number(&device.join("mem_busy_percent")),
        temperature_celsius: degrees(&sensor("temp1_input")),
        slowdown_celsius: degrees(&sensor("temp1_crit")),
        power_watts: watts(&sensor("power1_average")).or_else(|| watts(&sensor("power1_input"))),
        power_limit_watts: watts(&sensor("power1_cap")),
        clock_mhz: mhz("freq1_input"),
        memory_clock_mhz: mhz("freq2_input"),
        fan_percent: number::<u32>(&sensor("pwm1")).map(|of_255| of_255.min(255) * 100 / 255),
        ecc_corrected,
        ecc_uncorrected,
        xid: None,
    }
}

/// Errors that were not and that were corrected, of all parts of the chip that count them: `ue: 0` and `ce: 0`, one a line, in
/// `ras/PART_err_count`.
fn errors(device: &Path) -> (Option<u64>, Option<u64>) {
    let entries = fs::read_dir(device.join("ras")).into_iter().flatten().flatten();
    let counts = entries.filter(|entry| entry.file_name().to_string_lossy().ends_with("_err_count"));
    let texts: Vec<String> = counts.filter_map(|entry| text(&entry.path())).collect();
    let count = |key: &str| {
        let told =
            texts.iter().flat_map(|text| text.lines()).filter_map(|line| line.strip_prefix(key)?.trim().parse().ok());
        told.reduce(u64::saturating_add)
    };
    (count("ue:"), count("ce:"))
}

/// Memory in bytes that programs for computing hold, by the card's address and the process.
fn computing(sys: &Path) -> HashMap<String, BTreeMap<u32, u64>> {
    let kfd = sys.join("class/kfd/kfd");
    let folders = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut addresses = HashMap::new();
    for node in folders(&kfd.join("topology/nodes")) {
        let Some(id) = text(&node.join("gpu_id")).filter(|id| id != "0") else { continue };
        let properties = text(&node.join("properties")).unwrap_or_default();
        let property = |key: &str| -> Option<u64> {
            properties.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
        };
        let Some(place) = property("location_id") else { continue };
        let (bus, slot, function) = (place >> 8 & 0xff, place >> 3 & 0x1f, place & 7);
        let domain = property("domain").unwrap_or(0);
        addresses.insert(id, format!("{domain:04x}:{bus:02x}:{slot:02x}.{function}"));
    }
    let mut held: HashMap<String, BTreeMap<u32, u64>> = HashMap::new();
    for process in folders(&kfd.join("proc")) {
        let pid = process.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok());
        let Some(pid) = pid else { continue };
        for (id, address) in &addresses {
            if let Some(bytes) = number(&process.join(format!("vram_{id}"))) {
                held.entry(address.clone()).or_default().insert(pid, bytes);
            }
        }
    }
    held
}

/// The name in libdrm's list of lines such as `744C, C8, AMD Radeon RX 7900 XTX`, with tabs.
fn marketing_name(list: &str, device: u32, revision: u32) -> Option<String> {
    list.lines().find_map(|line| {
        let mut parts = line.splitn(3, ',').map(str::trim);
        let hexadecimal = |text: &str| u32::from_str_radix(text, 16).ok();
        let same = hexadecimal(parts.next()?)? == device && hexadecimal(parts.next()?)? == revision;
        parts.next().filter(|name| same && !name.is_empty()).map(str::to_owned)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::gpu::sysfs::tree::Tree;

    #[test]
    fn a_card_is_read_with_all_that_the_kernel_tells() {
        let tree = Tree::new();
        let device = tree.card(1, "0000:03:00.0", VENDOR, 0x744c, "amdgpu");
        tree.files(
            &device,
            &[
                ("revision", "0xc8\n"),
                ("mem_info_vram_total", "25753026560\n"),
                ("mem_info_vram_used", "1073741824\n"),
                ("gpu_busy_percent", "37\n"),
                ("mem_busy_percent", "12\n"),
                ("ras/umc_err_count", "ue: 1\nce: 5\n"),
                ("ras/gfx_err_count", "ue: 1\nce: 0\n"),
                ("ras/features", "feature mask: 0x5\n"),
                ("hwmon/hwmon3/temp1_input", "61000\n"),
                ("hwmon/hwmon3/temp1_crit", "100000\n"),
                ("hwmon/hwmon3/power1_average", "84000000\n"),
                ("hwmon/hwmon3/power1_cap", "327000000\n"),
                ("hwmon/hwmon3/freq1_input", "2482000000\n"),
                ("hwmon/hwmon3/freq2_input", "1249000000\n"),
                ("hwmon/hwmon3/pwm1", "51\n"),
            ],
        );
        // Part of a processor.
        let apu = tree.card(0, "0000:c1:00.0", VENDOR, 0x15bf, "amdgpu");
        tree.files(&apu, &[("mem_info_vram_total", "536870912\n")]);
        tree.card(2, "0000:04:00.0", 0x10de, 0x2684, "nvidia");
        tree.files(
            &tree.sys().join("class/kfd/kfd"),
            &[
                ("topology/nodes/0/gpu_id", "0\n"),
                ("topology/nodes/1/gpu_id", "38195\n"),
                ("topology/nodes/1/properties", "simd_count 192\nlocation_id 768\ndomain 0\n"),
                ("proc/4242/vram_38195", "805306368\n"),
                ("proc/nonsense/vram_38195", "1\n"),
            ],
        );
        tree.files(
            &tree.share(),
            &[("libdrm/amdgpu.ids", "# list\n744C,\tC8,\tAMD Radeon RX 7900 XTX\n744C, CC, other\n")],
        );
        tree.client(4242, 9, "0000:03:00.0", "drm-memory-vram:\t1024 KiB");
        tree.client(77, 9, "0000:03:00.0", "drm-memory-vram:\t1024 KiB");
        tree.client(78, 10, "0000:03:00.0", "drm-memory-vram:\t2048 KiB");

        let cards = AmdDriver::new(&tree.places()).look().unwrap();
        assert_eq!(cards.len(), 1, "{cards:?}");
        let card = &cards[0];
        assert_eq!((card.id.as_str(), card.model.as_str()), ("pci-0000:03:00.0", "AMD Radeon RX 7900 XTX"));
        assert_eq!((card.memory_mib, card.handle.minor), (24_560, Some(1)));
        assert!(card.driver.as_ref().is_some_and(|driver| driver.starts_with("amdgpu ")), "{:?}", card.driver);
        let want = GpuMeasured {
            memory_used_mib: Some(1_024),
            memory_reserved_mib: None,
            busy_percent: Some(37),
            memory_busy_percent: Some(12),
            temperature_celsius: Some(61),
            slowdown_celsius: Some(100),
            power_watts: Some(84.0),
            power_limit_watts: Some(327.0),
            clock_mhz: Some(2_482),
            memory_clock_mhz: Some(1_249),
            fan_percent: Some(20),
            ecc_corrected: Some(5),
            ecc_uncorrected: Some(2),
            xid: None,
        };
        assert_eq!(card.measured, want);
        let mut held: Vec<_> = card.processes.iter().map(|p| (p.pid, p.memory_bytes.unwrap() >> 20)).collect();
        held.retain(|(pid, _)| *pid != 77);
        assert_eq!(held, [(78, 2), (4242, 768)]);
    }

    #[test]
    fn a_tree_of_nonsense_is_no_card_and_no_harm() {
        let tree = Tree::new();
        assert_eq!(AmdDriver::new(&tree.places()).look(), Ok(Vec::new()));
        let device = tree.card(0, "0000:03:00.0", VENDOR, 1, "amdgpu");
        tree.files(&device, &[("mem_info_vram_total", "many"), ("mem_info_vram_used", "\0")]);
        assert_eq!(AmdDriver::new(&tree.places()).look(), Ok(Vec::new()));
        tree.files(&device, &[("mem_info_vram_total", "18446744073709551615"), ("hwmon/hwmon0/temp1_input", "-5000")]);
        let cards = AmdDriver::new(&tree.places()).look().unwrap();
        assert_eq!((cards[0].memory_mib, cards[0].model.as_str()), (u32::MAX, "AMD GPU 0001"));
        assert_eq!(cards[0].measured, GpuMeasured::default());
    }
}
