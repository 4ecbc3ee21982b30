//! Which device carries the mesh: the kernel's where it has one, else toft's own.

use async_trait::async_trait;
use toft_model::mesh::{MeshConfig, MeshStatus};
use tokio::sync::OnceCell;

use crate::{Device, MeshError, Settings, kernel::KernelDevice, userspace::UserspaceDevice};

/// The device of this machine. It is chosen when it is first needed.
pub struct ChosenDevice {
    kernel: KernelDevice,
    userspace: UserspaceDevice,
    chosen: OnceCell<Carrier>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Carrier {
    Kernel,
    Userspace,
}

impl ChosenDevice {
    /// One that is not there yet.
    pub fn new(settings: Settings) -> Self {
        let (kernel, userspace) = (KernelDevice::new(settings.clone()), UserspaceDevice::new(settings));
        Self { kernel, userspace, chosen: OnceCell::new() }
    }

    fn device(&self, carrier: Carrier) -> &dyn Device {
        match carrier {
            Carrier::Kernel => &self.kernel,
            Carrier::Userspace => &self.userspace,
        }
    }
}

#[async_trait]
impl Device for ChosenDevice {
    async fn set(&self, config: &MeshConfig) -> Result<(), MeshError> {
        if let Some(carrier) = self.chosen.get() {
            return self.device(*carrier).set(config).await;
        }
        let carrier = match self.kernel.set(config).await {
            Err(MeshError::Unsupported { .. }) => {
                self.userspace.set(config).await?;
                Carrier::Userspace
            }
            other => {
                other?;
                Carrier::Kernel
            }
        };
        if self.chosen.set(carrier).is_ok() {
            match carrier {
                Carrier::Kernel => tracing::info!("the kernel's WireGuard carries the mesh"),
                Carrier::Userspace => tracing::info!("toft itself carries the mesh: this kernel has no WireGuard"),
            }
        }
        Ok(())
    }

    async fn status(&self) -> Result<Option<MeshStatus>, MeshError> {
        match self.chosen.get() {
            Some(carrier) => self.device(*carrier).status().await,
            None => Ok(None),
        }
    }

    async fn remove(&self) -> Result<(), MeshError> {
        // The other may be one that an earlier daemon left; it has the same name.
        self.userspace.remove().await?;
        self.kernel.remove().await
    }
}
