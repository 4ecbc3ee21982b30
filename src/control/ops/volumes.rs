//! Operations on volumes. Names and uses are the cluster's; the data is its node's, which is asked directly.

use std::{collections::BTreeMap, time::Duration};

use futures_util::future::join_all;
use toft_model::{
    ids::NodeId,
    name::Name,
    state::{
        Command, NodeRow, NodeVolumes, Reply, SecretRow, VolumeMove, VolumeRow, VolumeView, query_node_volumes,
        query_volume, query_volumes,
    },
    volume::{VolumeOptions, VolumeOrder, validate_labels},
};

use super::{Ops, VolumeMoveInfo, now_ms};
use crate::control::{
    ControlError, ErrorKind,
    node_access::{
        ArchiveReader,
        volumes::{BackupStream, RestoredVolume, VolumeHere},
    },
};

/// Longest time for which a backup is read on that is not restored.
const PASSING_BY: Duration = Duration::from_secs(5);

/// A volume with what its node says of it.
#[derive(Debug, Clone)]
pub struct VolumeInfo {
    /// What the state says.
    pub view: VolumeView,
    /// Bytes on disk, if it lies on this node and that is known soon.
    pub size_bytes: Option<u64>,
    /// Where its data is, if it lies on this node.
    pub path: Option<String>,
    /// Its move to another node, under way or given up.
    pub moving: Option<VolumeMoveInfo>,
}

/// A volume to be made.
#[derive(Debug, Clone)]
pub struct NewVolume {
    /// Its name.
    pub name: Name,
    /// Name of the node it is to lie on; decided by its first use when absent.
    pub node: Option<Name>,
    /// What it is.
    pub options: VolumeOptions,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

impl Ops {
    /// Every volume, by name.
    pub async fn volumes(&self) -> Result<Vec<VolumeInfo>, ControlError> {
        let volumes = self.state.read(query_volumes).await?;
        Ok(join_all(volumes.into_iter().map(|view| self.informed(view))).await)
    }

    /// The volume of that name.
    pub async fn volume(&self, name: &Name) -> Result<VolumeInfo, ControlError> {
        let asked = name.clone();
        let found = self.state.read(move |connection| query_volume(connection, &asked)).await?;
        Ok(self.informed(found.ok_or_else(|| not_found(name))?).await)
    }

    async fn informed(&self, view: VolumeView) -> VolumeInfo {
        let here = view.row.node_id.is_some() && view.row.node_id == self.node.node_id();
        // Of what is mounted only while it is used, the folder says nothing.
        let lies_here = here && view.row.options.kind.is_none();
        let size_bytes = if lies_here { self.node.volume_size(&view.row.name).await } else { None };
        let path = if here { self.node.volume_path(&view.row.name) } else { None };
        let moving = self.move_of(&view).await;
        VolumeInfo { view, size_bytes, path, moving }
    }

    /// Makes a volume; its name must be free.
    pub async fn create_volume(&self, new: NewVolume) -> Result<VolumeInfo, ControlError> {
        let NewVolume { name, node, options, labels } = new;
        options.validate().map_err(|e| e.at("options"))?;
        validate_labels(&labels)?;
        let node_id = match node {
            None => None,
            Some(node) => Some(self.node_called(node).await?),
        };
        let asked = name.clone();
        let command = Command::CreateVolume { name, node_id, options, labels, at_ms: now_ms() };
        self.state.propose(command).await.map_err(|error| {
            let mut error = ControlError::from(error);
            // The one secret that can be missing here.
            error.field = error.field.map(|field| if field == "secrets" { "options.secret".into() } else { field });
            error
        })?;
        self.volume(&asked).await
    }

    async fn node_called(&self, name: Name) -> Result<NodeId, ControlError> {
        let asked = name.clone();
        let found = self.state.read(move |connection| NodeRow::id_of(connection, &asked)).await?;
        found.ok_or_else(|| {
            ControlError::new(ErrorKind::Invalid, format!("there is no node `{name}`"))
                .field("node")
                .hint("`toft node ls` shows the nodes there are")
        })
    }

    /// Removes a volume that no workload uses; its node deletes the data.
    pub async fn remove_volume(&self, name: Name) -> Result<(), ControlError> {
        self.state.propose(Command::RemoveVolume { name, at_ms: now_ms() }).await?;
        Ok(())
    }

    /// Removes every volume that no workload uses, and gives them.
    pub async fn prune_volumes(&self) -> Result<Vec<VolumeInfo>, ControlError> {
        let mut removed = Vec::new();
        for volume in self.volumes().await?.into_iter().filter(|volume| volume.view.users.is_empty()) {
            match self.remove_volume(volume.view.row.name.clone()).await {
                Ok(()) => removed.push(volume),
                // Somebody else was faster, in one way or the other.
                Err(error) if matches!(error.kind, ErrorKind::Conflict | ErrorKind::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(removed)
    }

    /// A backup of a volume, as it is read. It must lie on this node, or on a server.
    pub async fn back_up_volume(&self, name: &Name) -> Result<BackupStream, ControlError> {
        let view = self.volume(name).await?.view;
        let volume = self.here(view).await?;
        self.node.back_up_volume(volume).await
    }

    /// Puts a backup into a volume that nothing runs with, which is made if it is not there; with `replace` instead of
    /// what it holds.
    pub async fn restore_volume(
        &self,
        name: Name,
        mut backup: ArchiveReader,
        replace: bool,
    ) -> Result<RestoredVolume, ControlError> {
        match self.to_be_restored(name).await {
            Ok(volume) => self.node.restore_volume(volume, backup, replace).await,
            Err(error) => {
                // Whoever sends would not get to hear why, were it not read on for a while.
                let rest = async { tokio::io::copy(&mut backup, &mut tokio::io::sink()).await };
                drop(tokio::time::timeout(PASSING_BY, rest).await);
                Err(error)
            }
        }
    }

    async fn to_be_restored(&self, name: Name) -> Result<VolumeHere, ControlError> {
        let asked = name.clone();
        let view = match self.state.read(move |connection| query_volume(connection, &asked)).await? {
            Some(view) => view,
            None => {
                let (options, labels) = (VolumeOptions::default(), BTreeMap::new());
                let new = NewVolume { name: name.clone(), node: None, options, labels };
                self.create_volume(new).await?.view
            }
        };
        if view.row.moving.as_ref().is_some_and(VolumeMove::is_under_way) {
            let message = format!("volume `{name}` is being moved to another node");
            let hint = format!("wait until it is there, or take that back: `toft volume move {name} --cancel`");
            return Err(ControlError::new(ErrorKind::Conflict, message).hint(hint));
        }
        if !view.running.is_empty() {
            let names: Vec<&str> = view.running.iter().map(Name::as_str).collect();
            let message = format!("volume `{name}` is used by {}, which may run", quoted(&names));
            let hint = format!("stop what uses it first: `toft stop {}`", names.join(" "));
            return Err(ControlError::new(ErrorKind::Conflict, message).hint(hint));
        }
        self.here(view).await
    }

    /// The volume as this node has to know it. One that lies nowhere yet lies here from now on.
    async fn here(&self, view: VolumeView) -> Result<VolumeHere, ControlError> {
        let mut row = view.row;
        let here = self.node.node_id().ok_or_else(|| {
            ControlError::new(ErrorKind::Conflict, "this node has no volumes: it is a witness")
                .hint("ask a node that runs workloads; `toft node ls` shows them")
        })?;
        if row.node_id.is_none() && !row.options.is_remote() {
            let command = Command::BindVolume { name: row.name.clone(), node_id: here, at_ms: now_ms() };
            match self.state.propose(command).await? {
                Reply::Volume(bound) => row = *bound,
                _ => {
                    return Err(ControlError::new(
                        ErrorKind::Internal,
                        "the state answered something else than a volume",
                    ));
                }
            }
        }
        if let Some(node) = view.node.filter(|_| row.node_id.is_some_and(|home| home != here)) {
            let message = format!("the data of volume `{}` lies on node `{node}`", row.name);
            return Err(ControlError::new(ErrorKind::Conflict, message)
                .hint("ask that node: run the command there, or name it with --connect"));
        }
        let VolumeRow { name, born, options, .. } = row;
        let secret = options.secret.clone();
        let secrets = self.state.read(move |connection| match &secret {
            None => Ok(BTreeMap::new()),
            Some(name) => {
                Ok(SecretRow::sealed(connection, name)?.map(|value| (name.clone(), value)).into_iter().collect())
            }
        });
        Ok(VolumeHere { name, order: VolumeOrder { born, options }, secrets: secrets.await? })
    }

    /// The volumes that a node keeps, and those that it is to delete.
    pub async fn node_volumes(&self, node_id: NodeId) -> Result<NodeVolumes, ControlError> {
        Ok(self.state.read(move |connection| query_node_volumes(connection, node_id)).await?)
    }

    /// The removed volumes whose data a node is to delete.
    pub async fn removed_volumes(&self, node_id: NodeId) -> Result<Vec<(Name, u64)>, ControlError> {
        Ok(self.state.read(move |connection| VolumeRow::removed_on(connection, node_id)).await?)
    }

    /// A node tells which removed volumes' data it deleted.
    pub async fn forget_volumes(&self, node_id: NodeId, gone: Vec<(Name, u64)>) -> Result<(), ControlError> {
        self.state.propose(Command::ForgetVolumes { node_id, gone }).await?;
        Ok(())
    }
}

fn quoted(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

fn not_found(name: &Name) -> ControlError {
    ControlError::new(ErrorKind::NotFound, format!("there is no volume `{name}`"))
        .hint("`toft volume ls` shows the volumes there are")
}
