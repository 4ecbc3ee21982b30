//! Intel's cards with memory of their own, as the kernel's `i915` and `xe` show them.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    time::Instant,
};

use toft_model::gpu::{GpuMeasured, GpuVendor};

use super::{
    Card, Driver, DriverError, Places, mib,
    sysfs::{self, DrmCard, Told, degrees, hexadecimal, number, watts},
};

const VENDOR: u16 = 0x8086;

/// Looks at Intel's cards. Those that are part of a processor have no memory of their own and are not among them.
pub struct IntelDriver {
    places: Places,
    names: HashMap<PathBuf, String>,
    /// What each had used when it was looked at last, in millionths of a joule.
    energy: HashMap<PathBuf, (Instant, u64)>,
}

impl IntelDriver {
    /// One that looks there.
    pub fn new(places: &Places) -> Self {
        Self { places: places.clone(), names: HashMap::new(), energy: HashMap::new() }
    }

    fn name(&mut self, card: &DrmCard) -> String {
        let share = &self.places.share;
        let find = || {
            let device = hexadecimal(&card.device.join("device")).unwrap_or(0);
            let listed = sysfs::pci_name(share, VENDOR, device).map(|name| format!("Intel {name}"));
            listed.unwrap_or_else(|| format!("Intel GPU {device:04x}"))
        };
        self.names.entry(card.device.clone()).or_insert_with(find).clone()
    }

    /// Power since the last look: the kernel counts energy.
    fn power(&mut self, device: &Path, sensors: &Path) -> Option<f64> {
        // xe counts the whole card first, i915 has but one.
        let used: u64 = number(&sensors.join("energy1_input"))?;
        let now = Instant::now();
        let (since, before) = self.energy.insert(device.to_owned(), (now, used))?;
        let seconds = now.duration_since(since).as_secs_f64();
        let watts = used.checked_sub(before)? as f64 / 1e6 / seconds.max(0.001);
        Some((watts * 10.0).round() / 10.0)
    }

    fn measured(&mut self, card: &DrmCard, held: u64) -> GpuMeasured {
        let sensors = sysfs::hwmon(&card.device).unwrap_or_else(|| card.device.join("hwmon/none"));
        let sensor = |name: &str| sensors.join(name);
        let clock = number(&card.path.join("gt/gt0/rps_act_freq_mhz"))
            .or_else(|| number(&card.device.join("tile0/gt0/freq0/act_freq")));
        GpuMeasured {
            // The kernel does not tell it, only who holds how much.
            memory_used_mib: Some(mib(held)),
            // i915 has one sensor, xe the package as its second.
            temperature_celsius: degrees(&sensor("temp1_input")).or_else(|| degrees(&sensor("temp2_input"))),
            slowdown_celsius: degrees(&sensor("temp2_crit")),
            power_watts: self.power(&card.device, &sensors),
            power_limit_watts: watts(&sensor("power1_max")).or_else(|| watts(&sensor("power1_rated_max"))),
            clock_mhz: clock,
            ..GpuMeasured::default()
        }
    }
}

impl Driver for IntelDriver {
    fn vendor(&self) -> GpuVendor {
        GpuVendor::Intel
    }

    fn look(&mut self) -> Result<Vec<Card>, DriverError> {
        let cards = sysfs::cards(&self.places.sys, VENDOR);
        let own: Vec<_> = cards.into_iter().filter_map(|card| Some((memory(&card)?, card))).collect();
        if own.is_empty() {
            return Ok(Vec::new());
        }
        let clients = sysfs::clients(&self.places.proc);
        let mut seen = Vec::new();
        for ((memory, card), index) in own.into_iter().zip(0..) {
            let held = clients.get(&card.pci).cloned().unwrap_or_default();
            let measured = self.measured(&card, held.values().sum());
            let told = Told { model: self.name(&card), memory_bytes: memory, measured, held };
            seen.extend(card.card(&self.places.sys, GpuVendor::Intel, index, told));
        }
        Ok(seen)
    }
}

/// Memory of a card's own in bytes.
fn memory(card: &DrmCard) -> Option<u64> {
    let i915 = number::<u64>(&card.path.join("lmem_total_bytes"));
    let xe = || {
        let tile = |tile: u32| card.device.join(format!("tile{tile}/physical_vram_size_bytes"));
        let tiles = (0..8).map_while(|number| sysfs::text(&tile(number)));
        let sizes = tiles.map(|size| match size.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).ok(),
            None => size.parse().ok(),
        });
        sizes.sum::<Option<u64>>()
    };
    i915.or_else(xe).filter(|bytes| *bytes > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::gpu::sysfs::tree::Tree;

    #[test]
    fn both_drivers_of_the_kernel_are_read() {
        let tree = Tree::new();
        let old = tree.card(0, "0000:03:00.0", VENDOR, 0x56a0, "i915");
        let card = tree.sys().join("class/drm/card0");
        tree.files(&card, &[("lmem_total_bytes", "17179869184\n"), ("gt/gt0/rps_act_freq_mhz", "2400\n")]);
        tree.files(&old, &[("hwmon/hwmon1/energy1_input", "1000000\n"), ("hwmon/hwmon1/power1_max", "190000000\n")]);
        let new = tree.card(1, "0000:07:00.0", VENDOR, 0xe20b, "xe");
        tree.files(
            &new,
            &[
                ("tile0/physical_vram_size_bytes", "0x2f8000000\n"),
                ("tile0/gt0/freq0/act_freq", "2850\n"),
                ("hwmon/hwmon2/temp2_input", "48000\n"),
            ],
        );
        tree.card(2, "0000:00:02.0", VENDOR, 0xa780, "i915");
        tree.files(&tree.share(), &[("misc/pci.ids", "8086  Intel\n\t56a0  DG2 [Arc A770]\n")]);
        tree.client(5, 1, "0000:07:00.0", "drm-resident-vram0:\t512 MiB");

        let mut driver = IntelDriver::new(&tree.places());
        let cards = driver.look().unwrap();
        let told: Vec<_> = cards.iter().map(|card| (card.id.as_str(), card.model.as_str(), card.memory_mib)).collect();
        assert_eq!(
            told,
            [("pci-0000:03:00.0", "Intel Arc A770", 16_384), ("pci-0000:07:00.0", "Intel GPU e20b", 12_160)]
        );
        assert_eq!((cards[0].measured.clock_mhz, cards[0].measured.power_watts), (Some(2_400), None));
        assert_eq!(cards[0].measured.power_limit_watts, Some(190.0));
        let measured = &cards[1].measured;
        assert_eq!((measured.clock_mhz, measured.temperature_celsius), (Some(2_850), Some(48)));
        assert_eq!((measured.memory_used_mib, cards[1].processes.len()), (Some(512), 1));

        tree.files(&old, &[("hwmon/hwmon1/energy1_input", "5000000\n")]);
        let watts = driver.look().unwrap()[0].measured.power_watts.unwrap();
        assert!(watts > 0.0, "{watts}");
        tree.files(&old, &[("hwmon/hwmon1/energy1_input", "7\n")]);
        assert_eq!(driver.look().unwrap()[0].measured.power_watts, None, "the counter began anew");
    }
}
