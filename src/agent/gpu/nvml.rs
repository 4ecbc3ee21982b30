//! NVIDIA's cards, through the driver's own library (NVML). The library is loaded when it is there, and loaded anew when the
//! driver behind it changed.

mod events;
mod links;

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
};

use nvml_wrapper::{
    Device, Nvml, cuda_driver_version_major, cuda_driver_version_minor,
    enum_wrappers::device::{Clock, EccCounter, MemoryError, TemperatureSensor, TemperatureThreshold},
    enums::device::UsedGpuMemory,
    error::NvmlError,
    struct_wrappers::device::ProcessInfo,
};
use toft_model::gpu::{GpuId, GpuLink, GpuMeasured, GpuVendor};

use self::events::Events;
use super::{Card, CardProcess, Driver, DriverError, Handle, MOST_CARDS, Mig, mib};

const LOST: &str = "it has fallen off the bus";

/// Looks at NVIDIA's cards.
pub struct NvmlDriver {
    library: PathBuf,
    open: Option<Open>,
    /// The cards of each index as they were seen last.
    known: BTreeMap<u32, Vec<Card>>,
}

/// The ways from each card.
type Links = HashMap<GpuId, Vec<GpuLink>>;

/// The library while it is loaded.
struct Open {
    nvml: Arc<Nvml>,
    driver: Option<String>,
    cuda: Option<String>,
    events: Events,
    /// Ways between cards, which do not change while the same ones are there.
    links: Option<(Vec<GpuId>, Links)>,
}

impl NvmlDriver {
    /// One that loads this library: a path, or a name that the loader finds.
    pub fn new(library: &Path) -> Self {
        Self { library: library.to_owned(), open: None, known: BTreeMap::new() }
    }

    /// Loads the library; `None` when there is none and never was.
    fn load(&mut self) -> Result<Option<Open>, DriverError> {
        if let Some(open) = self.open.take() {
            return Ok(Some(open));
        }
        match Nvml::builder().lib_path(self.library.as_os_str()).init() {
            Ok(nvml) => Ok(Some(Open::of(nvml))),
            // Most machines have none.
            Err(NvmlError::LibloadingError(_)) if self.known.is_empty() => Ok(None),
            Err(error) => Err(DriverError::Away(words(&error))),
        }
    }

    /// Looks once. The library is kept unless it is of no use any more.
    fn try_look(&mut self) -> Result<Vec<Card>, DriverError> {
        let Some(mut open) = self.load()? else { return Ok(Vec::new()) };
        let away = |error: &NvmlError| DriverError::Away(words(error));
        let nvml = Arc::clone(&open.nvml);
        // Whatever is wrong: the next look begins with a fresh one.
        let count = nvml.device_count().map_err(|error| away(&error))?.min(MOST_CARDS as u32);
        let mut cards = Vec::new();
        for index in 0..count {
            let shown = nvml.device_by_index(index).and_then(|device| open.cards(index, &device));
            match shown {
                Ok(shown) => {
                    cards.extend(shown.iter().cloned());
                    self.known.insert(index, shown);
                }
                Err(error) if over(&error) => return Err(away(&error)),
                // Who cannot be asked for a name is the one that was there before.
                Err(error) => {
                    let known = self.known.get(&index).into_iter().flatten().cloned();
                    cards.extend(known.map(|card| lost(card, &error)));
                }
            }
        }
        self.known.retain(|index, _| *index < count);
        open.link(&nvml, &mut cards);
        self.open = Some(open);
        Ok(cards)
    }
}

impl Driver for NvmlDriver {
    fn vendor(&self) -> GpuVendor {
        GpuVendor::Nvidia
    }

    fn look(&mut self) -> Result<Vec<Card>, DriverError> {
        let was_open = self.open.is_some();
        match self.try_look() {
            // A driver that was loaded anew in between.
            Err(_) if was_open => self.try_look(),
            shown => shown,
        }
    }
}

impl Open {
    fn of(nvml: Nvml) -> Self {
        let nvml = Arc::new(nvml);
        let version = nvml.sys_cuda_driver_version().ok();
        let cuda = version.map(|v| format!("{}.{}", cuda_driver_version_major(v), cuda_driver_version_minor(v)));
        let driver = nvml.sys_driver_version().ok();
        Self { driver, cuda, events: Events::listen(Arc::clone(&nvml)), nvml, links: None }
    }

    /// The card behind a handle, and its parts.
    fn cards(&mut self, index: u32, device: &Device<'_>) -> Result<Vec<Card>, NvmlError> {
        let handle = Handle {
            index,
            minor: device.minor_number().ok(),
            pci: device.pci_info().ok().and_then(|pci| address(&pci.bus_id)),
            mig: None,
        };
        let mut card = self.card(device, handle, None)?;
        let parted = device.mig_mode().is_ok_and(|mode| mode.current != 0);
        if !parted {
            return Ok(vec![card]);
        }
        let mut parts = Vec::new();
        for number in 0..device.mig_device_count().unwrap_or(0).min(64) {
            let Ok(part) = device.mig_device_by_index(number) else { continue };
            let Some(mig) = self.mig(&part, number) else { continue };
            let handle = Handle { mig: Some(mig), ..card.handle.clone() };
            // One that is taken apart just now is not there.
            parts.extend(self.card(&part, handle, Some(&card.id)));
        }
        if parts.is_empty() {
            card.fault = Some("MIG is switched on and there are no MIG devices".into());
        }
        parts.insert(0, card);
        Ok(parts)
    }

    fn mig(&self, part: &Device<'_>, index: u32) -> Option<Mig> {
        let library = self.nvml.lib();
        let (mut gpu_instance, mut compute_instance) = (0, 0);
        // SAFETY: the handle comes from this very library and is used while it is loaded; each call writes one number.
        let told = unsafe {
            library.nvmlDeviceGetGpuInstanceId.as_ref().ok()?(part.handle(), &mut gpu_instance) == 0
                && library.nvmlDeviceGetComputeInstanceId.as_ref().ok()?(part.handle(), &mut compute_instance) == 0
        };
        told.then_some(Mig { index, gpu_instance, compute_instance })
    }

    fn card(&mut self, device: &Device<'_>, handle: Handle, parent: Option<&GpuId>) -> Result<Card, NvmlError> {
        let uuid = device.uuid()?;
        let by_place = || format!("pci-{}", handle.pci.as_deref()?).parse().ok();
        let id: GpuId = uuid.parse().ok().or_else(by_place).ok_or(NvmlError::InvalidArg)?;
        let memory = device.memory_info()?;
        let reserved = mib(memory.reserved);
        let measured = GpuMeasured {
            memory_used_mib: Some(mib(memory.used)),
            memory_reserved_mib: Some(reserved),
            xid: self.events.of(parent.unwrap_or(&id)),
            ..measure(device)
        };
        Ok(Card {
            id,
            vendor: GpuVendor::Nvidia,
            model: device.name()?,
            memory_mib: mib(memory.total),
            parent: parent.cloned(),
            driver: self.driver.clone(),
            cuda: self.cuda.clone(),
            handle,
            measured,
            links: Vec::new(),
            processes: processes(device),
            fault: None,
        })
    }

    /// Notes the ways between the cards.
    fn link(&mut self, nvml: &Nvml, cards: &mut [Card]) {
        let whole = |card: &&Card| card.parent.is_none() && card.fault.is_none();
        let there: Vec<GpuId> = cards.iter().filter(whole).map(|card| card.id.clone()).collect();
        if self.links.as_ref().is_none_or(|(known, _)| *known != there) {
            let of_card = |card: &Card| Some((card.id.clone(), nvml.device_by_index(card.handle.index).ok()?));
            let devices: Vec<_> = cards.iter().filter(whole).filter_map(of_card).collect();
            self.links = Some((there, links::between(&devices)));
        }
        for card in cards {
            let known = self.links.as_ref().and_then(|(_, links)| links.get(&card.id));
            card.links = known.cloned().unwrap_or_default();
        }
    }
}

/// What a card tells of itself; much of it not by every model.
fn measure(device: &Device<'_>) -> GpuMeasured {
    let busy = device.utilization_rates().ok();
    let watts = |milliwatts: u32| (f64::from(milliwatts) / 100.0).round() / 10.0;
    let errors = |kind| device.total_ecc_errors(kind, EccCounter::Volatile).ok();
    GpuMeasured {
        busy_percent: busy.as_ref().map(|busy| busy.gpu),
        memory_busy_percent: busy.as_ref().map(|busy| busy.memory),
        temperature_celsius: device.temperature(TemperatureSensor::Gpu).ok(),
        slowdown_celsius: device.temperature_threshold(TemperatureThreshold::Slowdown).ok(),
        power_watts: device.power_usage().ok().map(watts),
        power_limit_watts: device.enforced_power_limit().ok().map(watts),
        clock_mhz: device.clock_info(Clock::SM).ok(),
        memory_clock_mhz: device.clock_info(Clock::Memory).ok(),
        fan_percent: device.fan_speed(0).ok(),
        ecc_corrected: errors(MemoryError::Corrected),
        ecc_uncorrected: errors(MemoryError::Uncorrected),
        ..GpuMeasured::default()
    }
}

/// Who holds memory. A program that computes and draws is in two lists with the same number.
fn processes(device: &Device<'_>) -> Vec<CardProcess> {
    let lists = [
        device.running_compute_processes(),
        device.running_graphics_processes(),
        device.mps_running_compute_processes(),
    ];
    let mut held: BTreeMap<u32, Option<u64>> = BTreeMap::new();
    for ProcessInfo { pid, used_gpu_memory, .. } in lists.into_iter().flatten().flatten() {
        let bytes = match used_gpu_memory {
            UsedGpuMemory::Used(bytes) => Some(bytes),
            UsedGpuMemory::Unavailable => None,
        };
        let known = held.entry(pid).or_default();
        *known = bytes.max(*known);
    }
    held.into_iter().map(|(pid, memory_bytes)| CardProcess { pid, memory_bytes }).collect()
}

/// A card that cannot be asked, as it was seen last.
fn lost(card: Card, error: &NvmlError) -> Card {
    let fault = match error {
        NvmlError::GpuLost => LOST.to_owned(),
        other => words(other),
    };
    Card { fault: Some(fault), measured: GpuMeasured::default(), processes: Vec::new(), ..card }
}

/// Whether the library is of no use any more.
fn over(error: &NvmlError) -> bool {
    matches!(error, NvmlError::Uninitialized | NvmlError::DriverNotLoaded | NvmlError::LibRmVersionMismatch)
}

/// An error of the library in words.
fn words(error: &NvmlError) -> String {
    match error {
        NvmlError::DriverNotLoaded => "the driver's kernel module is not loaded".into(),
        NvmlError::LibRmVersionMismatch => "library and kernel module are of different versions".into(),
        NvmlError::LibloadingError(error) => format!("its library cannot be loaded: {error}"),
        NvmlError::FailedToLoadSymbol(_) | NvmlError::FunctionNotFound => {
            "the driver is too old: version 510 or newer is needed".into()
        }
        other => other.to_string(),
    }
}

/// NVML writes `00000000:01:00.0`, the kernel `0000:01:00.0`.
fn address(bus_id: &str) -> Option<String> {
    let text = bus_id.to_ascii_lowercase();
    let (domain, rest) = text.split_once(':')?;
    let domain = u32::from_str_radix(domain, 16).ok()?;
    Some(format!("{domain:04x}:{rest}")).filter(|address| super::sysfs::is_pci(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_written_as_the_kernel_does() {
        for (told, want) in [
            ("00000000:01:00.0", Some("0000:01:00.0")),
            ("00010000:C1:00.0", Some("10000:c1:00.0")),
            ("0000:01:00.0", Some("0000:01:00.0")),
            ("", None),
            ("x:01:00.0", None),
            ("00000000:../..", None),
        ] {
            assert_eq!(address(told).as_deref(), want, "{told}");
        }
    }

    #[test]
    fn a_machine_without_the_library_has_no_cards_and_no_fault() {
        assert_eq!(NvmlDriver::new(Path::new("/no/such/libnvidia-ml.so.1")).look(), Ok(Vec::new()));
    }
}
