//! WireGuard in this process, for kernels without it. The protocol is [`gotatun::noise`]'s; what is here brings packets
//! to it and takes them away, many at once: the kernel hands over segments of up to 64 KiB ([`split`], [`merge`]) and
//! takes and gives many datagrams with one call ([`udp`]). [`plane`] is the thread that does it.

mod headers;
mod merge;
mod peers;
mod plane;
mod split;
#[cfg(test)]
mod tests;
mod tun;
mod udp;

use std::io;

use async_trait::async_trait;
use nix::errno::Errno;
use toft_model::mesh::{MeshConfig, MeshDevice, MeshStatus};
use tokio::sync::{Mutex, oneshot};

use crate::{
    Device, MeshError, Settings,
    link::{self, with_netlink},
    path::sizes,
};
use plane::{Command, Plane, Wanted};
use tun::Tun;
use udp::Udp;

/// Bytes that WireGuard puts around a packet, within the datagram.
const OVERHEAD: u32 = 32;
/// Most bytes in a message of many datagrams, and the largest headers of TCP and IP in a packet.
const MOST_BYTES: u32 = 65_507;
const HEADERS: u32 = 72;
/// Most datagrams in a message.
const MOST_DATAGRAMS: u32 = 64;

/// The device. It ends with this, as it does with the process.
pub struct UserspaceDevice {
    settings: Settings,
    open: Mutex<Option<Open>>,
}

struct Open {
    plane: Plane,
    config: MeshConfig,
    mtu: u16,
}

impl UserspaceDevice {
    /// One that is not there yet.
    pub fn new(settings: Settings) -> Self {
        Self { settings, open: Mutex::new(None) }
    }

    /// Makes interface and socket and starts the thread.
    async fn start(&self, config: &MeshConfig) -> Result<Plane, MeshError> {
        const DOING: &str = "opening the mesh device";
        let key = self.settings.keys.private(config.key).ok_or(MeshError::NoKey { key: config.key })?;
        // What a killed daemon left, or the kernel's own device of another run, which holds the port.
        with_netlink(async |handle| link::remove(handle, &self.settings.interface).await).await?;
        let udp = Udp::bind(config.listen_port).map_err(|error| match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EADDRINUSE) => MeshError::PortTaken { port: config.listen_port },
            _ => MeshError::io(DOING, &error),
        })?;
        let tun = Tun::open(&self.settings.interface).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => MeshError::Unsupported { what: "/dev/net/tun" },
            _ => MeshError::io(DOING, &error),
        })?;
        Plane::start(tun, udp, &key).map_err(|error| MeshError::io(DOING, &error))
    }
}

#[async_trait]
impl Device for UserspaceDevice {
    async fn set(&self, config: &MeshConfig) -> Result<(), MeshError> {
        config.check()?;
        let key = self.settings.keys.private(config.key).ok_or(MeshError::NoKey { key: config.key })?;
        let mut open = self.open.lock().await;
        // A thread that ended, a link somebody removed and another port begin anew.
        let usable = open.take_if(|open| !open.plane.is_alive() || open.config.listen_port != config.listen_port);
        drop(usable);
        let seen = match &*open {
            Some(open) => ask(&open.plane).await.unwrap_or_default(),
            None => Default::default(),
        };
        let sizes = sizes(config, |key| seen.get(key).and_then(|peer| peer.endpoint));
        let (plane, fresh) = match open.take() {
            Some(open) => (open.plane, false),
            None => (self.start(config).await?, true),
        };
        let wanted = Wanted { key, config: config.clone(), mtu: sizes.device };
        let told = plane.ask(Command::Set(Box::new(wanted)));
        let shaped = with_netlink(async |handle| {
            let merged = Some(merged_bytes(sizes.device));
            link::shape(handle, &self.settings.interface, config, &sizes, merged).await
        });
        let shaped = shaped.await;
        if shaped.is_ok() || !fresh {
            *open = Some(Open { plane, config: config.clone(), mtu: sizes.device });
        }
        if !told {
            *open = None;
            let reason = "its thread does not answer".to_owned();
            return Err(MeshError::Failed { doing: "configuring the mesh device", reason });
        }
        shaped
    }

    async fn status(&self) -> Result<Option<MeshStatus>, MeshError> {
        let open = self.open.lock().await;
        let Some(open) = &*open else { return Ok(None) };
        let peers = ask(&open.plane).await.ok_or_else(|| MeshError::Failed {
            doing: "looking at the mesh device",
            reason: "its thread has ended".to_owned(),
        })?;
        Ok(Some(MeshStatus {
            device: MeshDevice::Userspace,
            key: open.config.key,
            listen_port: open.config.listen_port,
            mtu: open.mtu,
            peers,
        }))
    }

    async fn remove(&self) -> Result<(), MeshError> {
        let mut open = self.open.lock().await;
        if let Some(open) = open.take() {
            // The thread ends within a turn; waiting for it is left to others than this runtime's tasks.
            let ended = tokio::task::spawn_blocking(move || drop(open)).await;
            ended.map_err(|error| MeshError::Failed { doing: "ending the mesh device", reason: error.to_string() })?;
        }
        with_netlink(async |handle| link::remove(handle, &self.settings.interface).await).await
    }
}

async fn ask(
    plane: &Plane,
) -> Option<std::collections::BTreeMap<toft_model::mesh::PublicKey, toft_model::mesh::MeshPeerStatus>> {
    let (sender, answer) = oneshot::channel();
    if !plane.is_alive() || !plane.ask(Command::Status(sender)) {
        return None;
    }
    answer.await.ok()
}

/// How much the kernel may hand over at once, so that what becomes of it goes out with one call.
fn merged_bytes(mtu: u16) -> u32 {
    let mtu = u32::from(mtu);
    (MOST_BYTES / (mtu + OVERHEAD)).min(MOST_DATAGRAMS) * (mtu - HEADERS)
}
