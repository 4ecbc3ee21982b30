//! From what an instance holds to what its container gets.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use toft_model::{
    gpu::{CdiName, GpuHold, GpuId, GpuVendor},
    workload::{DeviceMapping, ProcessSpec},
};
use tokio::process::Command;

use super::{DeviceNode, Edits, Library, MpsPlaces, NO_DEVICES, VISIBLE_DEVICES, dri, hooks, mps, nvidia};
use crate::agent::gpu::{GpuWatch, SeenGpu, Sight};

/// Longest wait for the first look at the cards, after a start of the machine.
const FOR_SIGHT: Duration = Duration::from_secs(60);
/// Longest run of the program that makes device nodes.
const FOR_NODES: Duration = Duration::from_secs(10);

/// Why a container cannot have its cards.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InjectError {
    /// The card is not seen.
    #[error("the GPU `{0}` is not on this node now")]
    Gone(GpuId),
    /// Something that it needs is missing.
    #[error("the GPU `{gpu}` cannot be given: {reason}; `toft doctor` says what to do")]
    Missing {
        /// The card.
        gpu: GpuId,
        /// What is missing.
        reason: String,
    },
    /// A device that is named as specifications call it cannot be given.
    #[error("the device `{name}` cannot be given: {reason}")]
    Named {
        /// The device.
        name: CdiName,
        /// Why.
        reason: String,
    },
    /// What a device is named by would give a card that is not counted so.
    #[error(
        "the device `{name}` gives the GPU `{gpu}`, which would not be counted; ask for it with `gpus: device={gpu}`"
    )]
    Uncounted {
        /// The device.
        name: CdiName,
        /// The card.
        gpu: GpuId,
    },
    /// Nothing was seen yet.
    #[error("the GPUs of this node have not been looked at yet")]
    NotSeen,
}

/// Makes edits for containers.
#[derive(Clone)]
pub struct Injector {
    folders: Vec<PathBuf>,
    root: PathBuf,
    gpus: GpuWatch,
    /// toft's own program, which does hooks.
    program: PathBuf,
    mps: MpsPlaces,
    /// What was made from the driver's files, by the driver's version: looking through folders takes a while.
    made: Arc<Mutex<HashMap<String, Result<Edits, String>>>>,
}

impl Injector {
    /// One that reads specifications from `folders`.
    pub fn new(folders: Vec<PathBuf>, gpus: GpuWatch) -> Self {
        Self {
            folders,
            root: "/".into(),
            gpus,
            program: hooks::own_program(),
            mps: MpsPlaces::default(),
            made: Arc::default(),
        }
    }

    /// The same where NVIDIA's service for sharing is elsewhere.
    pub fn with_mps(mut self, places: MpsPlaces) -> Self {
        self.mps = places;
        self
    }

    /// The same where another program does the hooks: for tests.
    pub fn with_program(mut self, program: &Path) -> Self {
        self.program = program.to_owned();
        self
    }

    /// The same on a machine whose files lie below `root`: for tests.
    pub fn with_root(mut self, root: &Path) -> Self {
        self.root = root.to_owned();
        self
    }

    /// What a container needs for `holds` and for what `process` names in the words of CDI; nothing when that is nothing.
    pub async fn edits(&self, holds: &[GpuHold], process: &ProcessSpec) -> Result<Edits, InjectError> {
        let named: Vec<CdiName> = process.devices.iter().filter_map(DeviceMapping::cdi).collect();
        if holds.is_empty() && named.is_empty() {
            return Ok(Edits::default());
        }
        let mut gpus = self.gpus.clone();
        let seen = tokio::time::timeout(FOR_SIGHT, gpus.wait_for(Option::is_some)).await;
        let sight = seen.ok().and_then(|seen| seen.ok()?.clone()).ok_or(InjectError::NotSeen)?;
        self.make_nodes(holds, &sight).await;
        let (this, holds) = (self.clone(), holds.to_vec());
        let made = tokio::task::spawn_blocking(move || this.of(&holds, &named, &sight)).await;
        match made {
            Ok(made) => made,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }

    fn of(&self, holds: &[GpuHold], named: &[CdiName], sight: &Sight) -> Result<Edits, InjectError> {
        let library = Library::read(&self.folders);
        for fault in &library.faults {
            tracing::warn!(path = %fault.path.display(), reason = fault.reason, "a specification of devices was not taken");
        }
        let mut edits = Edits::default();
        for hold in holds {
            let seen = sight.of(&hold.gpu).ok_or_else(|| InjectError::Gone(hold.gpu.clone()))?;
            let missing = |reason| InjectError::Missing { gpu: hold.gpu.clone(), reason };
            let found = library.find(seen.facts.gpu.vendor.cdi_kind(), &names(seen));
            let complete = |edits| hooks::complete(edits, &self.program);
            let of_card = match found.map(|found| found.and_then(complete)) {
                Some(Ok(edits)) => edits,
                Some(Err(reason)) => {
                    tracing::warn!(gpu = %hold.gpu, reason, "a specification of devices cannot be used; one is made instead");
                    self.make(seen).map_err(missing)?
                }
                None => self.make(seen).map_err(missing)?,
            };
            edits.extend(of_card);
            if let (GpuVendor::Nvidia, Some(share)) = (seen.facts.gpu.vendor, hold.vram_mib) {
                edits.extend(mps::edits(&self.root, &self.mps, share, seen.facts.gpu.memory_mib));
            }
        }
        for name in named {
            let of_device = library.named(name).and_then(|edits| hooks::complete(edits, &self.program));
            let of_device = of_device.map_err(|reason| InjectError::Named { name: name.clone(), reason })?;
            if let Some(gpu) = self.uncounted(&of_device, holds, sight) {
                return Err(InjectError::Uncounted { name: name.clone(), gpu });
            }
            edits.extend(of_device);
        }
        if holds.is_empty() {
            return Ok(edits);
        }
        let of_nvidia = |hold: &&GpuHold| sight.of(&hold.gpu).is_some_and(|s| s.facts.gpu.vendor == GpuVendor::Nvidia);
        let names: Vec<&str> = holds.iter().filter(of_nvidia).map(|hold| hold.gpu.as_str()).collect();
        let visible = if names.is_empty() { NO_DEVICES.to_owned() } else { names.join(",") };
        edits.set_env(VISIBLE_DEVICES, &visible);
        Ok(edits)
    }

    /// A card that `edits` give and that is not among `holds`, by the numbers of its devices.
    fn uncounted(&self, edits: &Edits, holds: &[GpuHold], sight: &Sight) -> Option<GpuId> {
        let given: Vec<_> = edits.device_nodes.iter().filter_map(DeviceNode::numbers).collect();
        let held = |seen: &&SeenGpu| {
            let own = |hold: &GpuHold| hold.gpu == seen.facts.gpu.id;
            // A part of it brings the card's node along.
            let part = |hold: &GpuHold| {
                sight.of(&hold.gpu).is_some_and(|part| part.facts.gpu.parent.as_ref() == Some(&seen.facts.gpu.id))
            };
            holds.iter().any(|hold| own(hold) || part(hold))
        };
        let others = sight.gpus.iter().filter(|seen| !held(seen) && seen.facts.gpu.parent.is_none());
        others.into_iter().find_map(|seen| {
            let nodes = match seen.facts.gpu.vendor {
                GpuVendor::Nvidia => nvidia::of_card(&self.root, &seen.handle).ok()?.device_nodes,
                GpuVendor::Amd | GpuVendor::Intel => dri::card_nodes(&self.root, seen.handle.pci.as_deref()?),
            };
            let gives = nodes.iter().filter_map(DeviceNode::numbers).any(|numbers| given.contains(&numbers));
            gives.then(|| seen.facts.gpu.id.clone())
        })
    }

    /// Edits made from what lies on the machine.
    fn make(&self, seen: &SeenGpu) -> Result<Edits, String> {
        let place = || seen.handle.pci.as_deref().ok_or("its place on the bus is not known");
        match seen.facts.gpu.vendor {
            vendor @ (GpuVendor::Amd | GpuVendor::Intel) => dri::edits(&self.root, vendor, place()?),
            GpuVendor::Nvidia => {
                let loaded = nvidia::loaded_version(&self.root).or_else(|| seen.facts.driver.clone());
                let version = loaded.unwrap_or_default();
                let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
                // What was missing may have come.
                let mut edits = match made.get(&version) {
                    Some(Ok(known)) if known.mounts.iter().all(|mount| mount.host_path.exists()) => known.clone(),
                    _ => {
                        let fresh = nvidia::common(&self.root, &version);
                        made.clear();
                        made.insert(version, fresh.clone());
                        fresh?
                    }
                };
                drop(made);
                edits.extend(nvidia::of_card(&self.root, &seen.handle)?);
                edits.hooks.push(hooks::of_libraries(&self.program));
                Ok(edits)
            }
        }
    }

    /// NVIDIA's nodes for unified memory are made when a program first asks for them: nobody in a container can.
    async fn make_nodes(&self, holds: &[GpuHold], sight: &Sight) {
        let nvidia = |hold: &GpuHold| sight.of(&hold.gpu).is_some_and(|s| s.facts.gpu.vendor == GpuVendor::Nvidia);
        let here = self.root == Path::new("/");
        if !here || Path::new("/dev/nvidia-uvm").exists() || !holds.iter().any(nvidia) {
            return;
        }
        let run = Command::new("nvidia-modprobe").args(["-c", "0", "-u"]).kill_on_drop(true).status();
        match tokio::time::timeout(FOR_NODES, run).await {
            Ok(Ok(status)) if status.success() => {}
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => {}
            other => tracing::warn!(outcome = ?other, "nvidia-modprobe could not make /dev/nvidia-uvm"),
        }
    }
}

/// What specifications may call a card: its own name, or its number.
fn names(seen: &SeenGpu) -> Vec<String> {
    let number = match seen.handle.mig {
        Some(mig) => format!("{}:{}", seen.handle.index, mig.index),
        None => seen.handle.index.to_string(),
    };
    vec![seen.facts.gpu.id.to_string(), number]
}
