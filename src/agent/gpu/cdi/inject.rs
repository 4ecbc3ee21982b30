//! From what an instance holds to what its container gets.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use toft_model::gpu::{GpuHold, GpuId, GpuVendor};
use tokio::process::Command;

use super::{EditMount, Edits, Library, NO_DEVICES, VISIBLE_DEVICES, dri, nvidia};
use crate::agent::gpu::{GpuWatch, SeenGpu, Sight};

/// Longest wait for the first look at the cards, after a start of the machine.
const FOR_SIGHT: Duration = Duration::from_secs(60);
/// Longest run of the program that makes device nodes.
const FOR_NODES: Duration = Duration::from_secs(10);
/// Where NVIDIA's service for sharing cards listens unless told otherwise.
const MPS: &str = "tmp/nvidia-mps";

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
    /// What was made from the driver's files, by the driver's version: looking through folders takes a while.
    made: Arc<Mutex<HashMap<String, Result<Edits, String>>>>,
}

impl Injector {
    /// One that reads specifications from `folders`.
    pub fn new(folders: Vec<PathBuf>, gpus: GpuWatch) -> Self {
        Self { folders, root: "/".into(), gpus, made: Arc::default() }
    }

    /// The same on a machine whose files lie below `root`: for tests.
    pub fn with_root(mut self, root: &Path) -> Self {
        self.root = root.to_owned();
        self
    }

    /// What a container needs for `holds`; nothing when it holds none.
    pub async fn edits(&self, holds: &[GpuHold]) -> Result<Edits, InjectError> {
        if holds.is_empty() {
            return Ok(Edits::default());
        }
        let mut gpus = self.gpus.clone();
        let seen = tokio::time::timeout(FOR_SIGHT, gpus.wait_for(Option::is_some)).await;
        let sight = seen.ok().and_then(|seen| seen.ok()?.clone()).ok_or(InjectError::NotSeen)?;
        self.make_nodes(holds, &sight).await;
        let (this, holds) = (self.clone(), holds.to_vec());
        let made = tokio::task::spawn_blocking(move || this.of(&holds, &sight)).await;
        match made {
            Ok(made) => made,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }

    fn of(&self, holds: &[GpuHold], sight: &Sight) -> Result<Edits, InjectError> {
        let library = Library::read(&self.folders);
        for fault in &library.faults {
            tracing::warn!(path = %fault.path.display(), reason = fault.reason, "a specification of devices was not taken");
        }
        let mut edits = Edits::default();
        for hold in holds {
            let seen = sight.of(&hold.gpu).ok_or_else(|| InjectError::Gone(hold.gpu.clone()))?;
            let missing = |reason| InjectError::Missing { gpu: hold.gpu.clone(), reason };
            let of_card = match library.find(kind(seen.facts.gpu.vendor), &names(seen)) {
                Some(Ok(edits)) => edits,
                Some(Err(reason)) => {
                    tracing::warn!(gpu = %hold.gpu, reason, "a specification of devices cannot be used; one is made instead");
                    self.make(seen).map_err(missing)?
                }
                None => self.make(seen).map_err(missing)?,
            };
            edits.extend(of_card);
            if let (GpuVendor::Nvidia, Some(share)) = (seen.facts.gpu.vendor, hold.vram_mib) {
                edits.extend(self.mps(share));
            }
        }
        let of_nvidia = |hold: &&GpuHold| sight.of(&hold.gpu).is_some_and(|s| s.facts.gpu.vendor == GpuVendor::Nvidia);
        let names: Vec<&str> = holds.iter().filter(of_nvidia).map(|hold| hold.gpu.as_str()).collect();
        let visible = if names.is_empty() { NO_DEVICES.to_owned() } else { names.join(",") };
        edits.set_env(VISIBLE_DEVICES, &visible);
        Ok(edits)
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
                Ok(edits)
            }
        }
    }

    /// Through NVIDIA's service for sharing, where it runs, the driver itself keeps a container to its share. Its clients speak to
    /// it through pipes and the memory that the machine's processes share.
    fn mps(&self, share_mib: u32) -> Edits {
        let mut edits = Edits::default();
        let pipes = self.root.join(MPS);
        if !pipes.join("control").exists() {
            return edits;
        }
        let writable = |host: PathBuf, inside: &str| {
            let options = ["rw", "nosuid", "nodev", "rbind", "rprivate"].map(str::to_owned).to_vec();
            EditMount { host_path: host, container_path: inside.into(), options, kind: None }
        };
        edits.mounts.push(writable(pipes, "/tmp/nvidia-mps"));
        edits.mounts.push(writable(self.root.join("dev/shm"), "/dev/shm"));
        edits.set_env("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps");
        // A share is of one card, which is the container's first.
        edits.set_env("CUDA_MPS_PINNED_DEVICE_MEM_LIMIT", &format!("0={share_mib}M"));
        edits
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

/// How specifications call a vendor's cards.
fn kind(vendor: GpuVendor) -> &'static str {
    match vendor {
        GpuVendor::Nvidia => "nvidia.com/gpu",
        GpuVendor::Amd => "amd.com/gpu",
        GpuVendor::Intel => "intel.com/gpu",
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
