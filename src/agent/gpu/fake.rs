//! A driver whose cards a test makes up.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use toft_model::gpu::{GpuId, GpuMeasured, GpuVendor};

use super::{Card, Driver, DriverError, Handle};

/// What the driver shows next.
type Shown = Result<Vec<Card>, DriverError>;

/// A driver whose cards can be changed while it is looked at.
#[derive(Clone)]
pub struct FakeDriver {
    vendor: GpuVendor,
    shown: Arc<Mutex<Shown>>,
}

impl FakeDriver {
    /// One that shows these.
    pub fn new(vendor: GpuVendor, cards: Vec<Card>) -> Self {
        Self { vendor, shown: Arc::new(Mutex::new(Ok(cards))) }
    }

    /// Shows this from now on.
    pub fn show(&self, shown: Shown) {
        *self.shown() = shown;
    }

    /// While this is held, looking hangs.
    pub fn shown(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Driver for FakeDriver {
    fn vendor(&self) -> GpuVendor {
        self.vendor
    }

    fn look(&mut self) -> Shown {
        self.shown().clone()
    }
}

/// A healthy card with that name and so much memory in MiB.
pub fn card(id: &GpuId, memory_mib: u32) -> Card {
    Card {
        id: id.clone(),
        vendor: GpuVendor::Nvidia,
        model: "NVIDIA GeForce RTX 4090".into(),
        memory_mib,
        parent: None,
        driver: Some("570.86".into()),
        cuda: Some("12.8".into()),
        handle: Handle::default(),
        measured: GpuMeasured { memory_used_mib: Some(0), memory_reserved_mib: Some(0), ..GpuMeasured::default() },
        links: Vec::new(),
        processes: Vec::new(),
        fault: None,
    }
}
