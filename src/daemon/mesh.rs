//! The mesh of this node: its keys, its device, and what that shall be.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use toft_mesh::{Settings, choice::ChosenDevice, keeper, keys::Keys};
use toft_model::{
    mesh::{MeshConfig, MeshNet, MeshStatus, PublicKey},
    node::Subnet6,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{directories::Directories, identity::Identity, tasks::Tasks};
use crate::{config::Config, observe::chain};

/// The node's keys; nothing where there shall be no mesh, or none can be.
pub(super) fn keys(config: &Config, directories: &Directories) -> Option<Arc<Keys>> {
    if !config.mesh.enabled {
        return None;
    }
    match Keys::open(&directories.mesh_keys()) {
        Ok(keys) => Some(Arc::new(keys)),
        Err(error) => {
            tracing::error!(error = chain(&error), "there is no mesh: this node's key for it cannot be had");
            None
        }
    }
}

/// What the device shall be: the peers of the configuration file, with this node's own addresses.
pub(super) fn desired(
    config: &Config,
    (identity, six): (&Identity, Option<Subnet6>),
    key: PublicKey,
) -> Option<MeshConfig> {
    let subnet = identity.subnet?;
    let gateways = [Some(IpAddr::V4(subnet.gateway())), six.map(|six| six.gateway().into())];
    let networks = [
        MeshNet::new(subnet.base.into(), subnet.prefix).ok(),
        six.and_then(|six| MeshNet::new(six.base.into(), Subnet6::PREFIX).ok()),
    ];
    Some(MeshConfig {
        key,
        listen_port: config.mesh.listen_port,
        addresses: gateways.into_iter().flatten().collect(),
        networks: networks.into_iter().flatten().collect::<BTreeSet<_>>(),
        mtu: config.mesh.mtu,
        peers: config.mesh.peers.clone(),
    })
}

/// Keeps the device as `desired` says from now on, and gives what it is. It is there only while there are peers.
pub(super) fn keep(
    config: &Config,
    directories: &Directories,
    keys: Arc<Keys>,
    desired: watch::Receiver<Option<MeshConfig>>,
    (tasks, cancel): (&mut Tasks, &CancellationToken),
) -> watch::Receiver<Option<MeshStatus>> {
    let device = Arc::new(ChosenDevice::new(Settings { interface: interface(config, directories), keys }));
    let (observed, status) = watch::channel(None);
    tasks.spawn("mesh", keeper::keep(device, desired, observed, cancel.clone()));
    status
}

/// Name of the mesh interface of this appliance.
pub(super) fn interface(config: &Config, directories: &Directories) -> String {
    config.mesh.interface.clone().unwrap_or_else(|| directories.network_names().mesh)
}
