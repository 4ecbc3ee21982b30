//! Faults that the driver tells by itself (Xid). Waiting for them takes a thread.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use nvml_wrapper::{Nvml, bitmasks::event::EventTypes, enums::event::XidError, error::NvmlError};
use toft_model::gpu::{GpuId, GpuXid};

/// Longest wait for one event, in milliseconds; then it is looked whether anybody still listens.
const WAIT_MS: u32 = 500;
/// Failures in a row after which there is nothing to listen to.
const MOST_FAILURES: u32 = 20;
/// What NVML says when it does not know the number.
const UNKNOWN: u64 = 999;

type Newest = Arc<Mutex<HashMap<GpuId, GpuXid>>>;

/// The newest fault of each card, for as long as this is held.
pub(super) struct Events {
    newest: Newest,
    over: Arc<AtomicBool>,
    listening: Option<thread::JoinHandle<()>>,
}

impl Events {
    /// Listens to every card that tells faults.
    pub(super) fn listen(nvml: Arc<Nvml>) -> Self {
        let (newest, over) = (Newest::default(), Arc::new(AtomicBool::new(false)));
        let (told, ended) = (Arc::clone(&newest), Arc::clone(&over));
        let listening = thread::Builder::new().name("gpu-events".into()).spawn(move || {
            if let Err(error) = wait(&nvml, &told, &ended) {
                tracing::debug!(%error, "faults of GPUs are not told by events");
            }
        });
        if let Err(error) = &listening {
            tracing::warn!(%error, "faults of GPUs cannot be listened to");
        }
        Self { newest, over, listening: listening.ok() }
    }

    /// The newest fault of a card.
    pub(super) fn of(&self, id: &GpuId) -> Option<GpuXid> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner).get(id).copied()
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        // The library counts who uses it, and forgets a driver that is gone only when nobody does.
        if let Some(listening) = self.listening.take() {
            let _ = listening.join();
        }
    }
}

fn wait(nvml: &Nvml, newest: &Newest, over: &AtomicBool) -> Result<(), NvmlError> {
    let mut set = nvml.create_event_set()?;
    let mut listening = false;
    for index in 0..nvml.device_count()? {
        let Ok(device) = nvml.device_by_index(index) else { continue };
        // A set is lost when registering fails.
        if device.supported_event_types().is_ok_and(|types| types.contains(EventTypes::CRITICAL_XID_ERROR)) {
            set = device.register_events(EventTypes::CRITICAL_XID_ERROR, set).map_err(|error| error.error)?;
            listening = true;
        }
    }
    let mut failures = 0;
    while listening && failures < MOST_FAILURES && !over.load(Ordering::Relaxed) {
        match set.wait(WAIT_MS) {
            Ok(event) => {
                failures = 0;
                let code = match event.event_data {
                    Some(XidError::Value(code)) => code,
                    Some(XidError::Unknown) => UNKNOWN,
                    None => continue,
                };
                let Some(id) = event.device.uuid().ok().and_then(|uuid| uuid.parse::<GpuId>().ok()) else { continue };
                tracing::warn!(gpu = %id, xid = code, "the driver tells a fault of a GPU");
                let at_ms = jiff::Timestamp::now().as_millisecond();
                newest.lock().unwrap_or_else(PoisonError::into_inner).insert(id, GpuXid { code, at_ms });
            }
            Err(NvmlError::Timeout) => failures = 0,
            Err(_) => {
                failures += 1;
                thread::sleep(Duration::from_millis(WAIT_MS.into()));
            }
        }
    }
    Ok(())
}
