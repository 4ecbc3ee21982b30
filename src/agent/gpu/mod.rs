//! GPUs of this machine: seen through their drivers, judged, told, and given to containers.
//!
//! A [`Driver`] looks at the cards of one vendor and may block. [`watch`] lets each look from a thread of its own, so that
//! one that hangs holds up nobody, and [`assess`] (pure) makes of what was seen what is told: which card is sick, how
//! much of it is used outside toft, and which instance holds more than its share.

pub mod amd;
pub mod assess;
pub mod cdi;
pub mod fake;
mod health;
pub mod intel;
pub mod kernel_log;
pub mod nvml;
mod owners;
mod power;
mod sysfs;
pub mod watch;

use std::path::PathBuf;

use toft_model::gpu::{GpuId, GpuLink, GpuMeasured, GpuVendor};

pub use assess::{Offence, SeenGpu, Sight};
pub use watch::{GpuWatch, Watcher};

/// Most cards of one driver, parts of cards included.
pub const MOST_CARDS: usize = 512;
/// Most processes told of one card.
pub const MOST_PROCESSES: usize = 1_024;

/// What shows the cards of one vendor.
pub trait Driver: Send {
    /// Whose cards.
    fn vendor(&self) -> GpuVendor;

    /// Every card as it is now, in the order in which people count them, parts of cards behind the card they are of. No
    /// driver on this machine is no error: then there are none. Blocks for as long as the driver does.
    fn look(&mut self) -> Result<Vec<Card>, DriverError>;
}

/// Why a driver shows nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DriverError {
    /// It was there and is away, or cannot be used; it may come back.
    #[error("the driver is away: {0}")]
    Away(String),
}

/// A card, or a part of one, as its driver shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Card {
    /// Its name.
    pub id: GpuId,
    /// Who makes it.
    pub vendor: GpuVendor,
    /// What it calls itself.
    pub model: String,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// The card that it is a part of.
    pub parent: Option<GpuId>,
    /// Version of the driver.
    pub driver: Option<String>,
    /// Newest CUDA that the driver can serve.
    pub cuda: Option<String>,
    /// How the machine calls it.
    pub handle: Handle,
    /// What it measures.
    pub measured: GpuMeasured,
    /// Ways to other cards.
    pub links: Vec<GpuLink>,
    /// Processes that hold memory of it.
    pub processes: Vec<CardProcess>,
    /// Why it cannot be used, when its driver says so.
    pub fault: Option<String>,
}

/// How the machine calls a card: what its device nodes are made from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Handle {
    /// Its number with its driver.
    pub index: u32,
    /// Number of NVIDIA's device node.
    pub minor: Option<u32>,
    /// Address on the PCI bus, `0000:01:00.0`.
    pub pci: Option<String>,
    /// Which part of its card it is.
    pub mig: Option<Mig>,
}

/// A MIG device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mig {
    /// Its number among those of its card.
    pub index: u32,
    /// Its GPU instance.
    pub gpu_instance: u32,
    /// Its compute instance.
    pub compute_instance: u32,
}

/// A process that holds memory of a card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CardProcess {
    /// Process id on the node.
    pub pid: u32,
    /// Memory in bytes, when the driver tells.
    pub memory_bytes: Option<u64>,
}

/// Where drivers are looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// NVIDIA's library: a path, or a name that the loader finds.
    pub nvml: PathBuf,
    /// `/sys`.
    pub sys: PathBuf,
    /// `/proc`.
    pub proc: PathBuf,
    /// `/usr/share`, where names of devices lie.
    pub share: PathBuf,
    /// `/dev/kmsg`, the kernel's log.
    pub kernel_log: PathBuf,
}

impl Default for Places {
    fn default() -> Self {
        let path = PathBuf::from;
        // The name without a number is there only where programs are built.
        Self {
            nvml: path("libnvidia-ml.so.1"),
            sys: path("/sys"),
            proc: path("/proc"),
            share: path("/usr/share"),
            kernel_log: path("/dev/kmsg"),
        }
    }
}

impl Places {
    /// A driver for each vendor.
    pub fn drivers(&self) -> Vec<Box<dyn Driver>> {
        vec![
            Box::new(nvml::NvmlDriver::new(&self.nvml)),
            Box::new(amd::AmdDriver::new(self)),
            Box::new(intel::IntelDriver::new(self)),
        ]
    }
}

/// Whole MiB, rounded up, of bytes.
fn mib(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(1 << 20)).unwrap_or(u32::MAX)
}
