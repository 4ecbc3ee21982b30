//! Operations on volumes. Names and uses are the cluster's; the data is its node's, which is asked directly.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::future::join_all;
use toft_model::{
    ids::NodeId,
    name::Name,
    state::{
        Command, NodeRow, NodeVolumes, Reply, SecretRow, VolumeMove, VolumeRow, VolumeView, query_node_volumes,
        query_volume, volume_views,
    },
    volume::{VolumeOptions, VolumeOrder, validate_labels},
};

use super::{Ops, VolumeMoveInfo, now_ms};
use crate::control::{
    ControlError, ErrorKind,
    node_access::{
        ArchiveReader, NodeAccess,
        volumes::{BackupStream, RestoredVolume, VolumeFacts, VolumeHere},
    },
};

/// Longest time for which a backup is read on that is not restored.
const PASSING_BY: Duration = Duration::from_secs(5);

/// Longest wait for what a node says of its volumes.
const INFORMED: Duration = Duration::from_secs(1);

/// A volume with what its node says of it.
#[derive(Debug, Clone)]
pub struct VolumeInfo {
    /// What the state says.
    pub view: VolumeView,
    /// Bytes on disk, if it lies on a node and that is known soon.
    pub size_bytes: Option<u64>,
    /// Where its data is on its node, if that is known soon.
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
    /// The name of every volume, in order.
    pub async fn volume_names(&self) -> Result<Vec<Name>, ControlError> {
        Ok(self.state.read(VolumeRow::names).await?)
    }

    /// Every volume, by name.
    pub async fn volumes(&self) -> Result<Vec<VolumeInfo>, ControlError> {
        let rows = self.state.read(VolumeRow::all).await?;
        let seen = self.seen().await?;
        let nodes: Vec<_> = seen.nodes.iter().map(AsRef::as_ref).collect();
        let instances: Vec<_> = seen.instances().map(|one| &one.row).collect();
        Ok(self.informed(volume_views(rows, &nodes, &seen.workload_rows(), &instances)).await)
    }

    /// The volume of that name.
    pub async fn volume(&self, name: &Name) -> Result<VolumeInfo, ControlError> {
        let asked = name.clone();
        let found = self.state.read(move |connection| query_volume(connection, &asked)).await?;
        let view = found.ok_or_else(|| not_found(name))?;
        self.informed(vec![view]).await.pop().ok_or_else(|| not_found(name))
    }

    /// Adds what the nodes say that the volumes lie on. What a node does not say soon is left out.
    async fn informed(&self, views: Vec<VolumeView>) -> Vec<VolumeInfo> {
        let mut lie: BTreeMap<(NodeId, &Name), Vec<Name>> = BTreeMap::new();
        for view in &views {
            if let Some((id, node)) = view.row.node_id.zip(view.node.as_ref()) {
                lie.entry((id, node)).or_default().push(view.row.name.clone());
            }
        }
        let asked = lie.into_iter().map(|((id, node), names)| async move {
            let access = self.access(id, node).ok()?;
            tokio::time::timeout(INFORMED, access.volume_facts(names)).await.ok()?.ok()
        });
        let mut facts: BTreeMap<Name, VolumeFacts> = join_all(asked).await.into_iter().flatten().flatten().collect();
        let mut informed = Vec::with_capacity(views.len());
        for view in views {
            let VolumeFacts { size_bytes, path } = facts.remove(&view.row.name).unwrap_or_default();
            // Of what is mounted only while it is used, the folder says nothing.
            let size_bytes = size_bytes.filter(|_| view.row.options.kind.is_none());
            let moving = self.move_of(&view).await;
            informed.push(VolumeInfo { view, size_bytes, path, moving });
        }
        informed
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
        self.submit(command).await.map_err(|error| {
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
        self.submit(Command::RemoveVolume { name, at_ms: now_ms() }).await?;
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

    /// A backup of a volume, as it is read.
    pub async fn back_up_volume(&self, name: &Name) -> Result<BackupStream, ControlError> {
        let asked = name.clone();
        let view = self.state.read(move |connection| query_volume(connection, &asked)).await?;
        let (node, volume) = self.located(view.ok_or_else(|| not_found(name))?).await?;
        node.back_up_volume(volume).await
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
            Ok((node, volume)) => node.restore_volume(volume, backup, replace).await,
            Err(error) => {
                // Whoever sends would not get to hear why, were it not read on for a while.
                let rest = async { tokio::io::copy(&mut backup, &mut tokio::io::sink()).await };
                drop(tokio::time::timeout(PASSING_BY, rest).await);
                Err(error)
            }
        }
    }

    async fn to_be_restored(&self, name: Name) -> Result<(Arc<dyn NodeAccess>, VolumeHere), ControlError> {
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
        self.located(view).await
    }

    /// The node that has a volume, and the volume as it has to know it. One that lies nowhere yet lies here from now on.
    async fn located(&self, view: VolumeView) -> Result<(Arc<dyn NodeAccess>, VolumeHere), ControlError> {
        let mut row = view.row;
        let lies = row.node_id.zip(view.node);
        let node = match &lies {
            Some((id, name)) => self.access(*id, name)?,
            None => self.lies_here(&mut row).await?,
        };
        let VolumeRow { name, born, options, .. } = row;
        let secret = options.secret.clone();
        let secrets = self.state.read(move |connection| match &secret {
            None => Ok(BTreeMap::new()),
            Some(name) => {
                Ok(SecretRow::sealed(connection, name)?.map(|value| (name.clone(), value)).into_iter().collect())
            }
        });
        Ok((node, VolumeHere { name, order: VolumeOrder { born, options }, secrets: secrets.await? }))
    }

    /// This node, for a volume that lies nowhere, or on a server.
    async fn lies_here(&self, row: &mut VolumeRow) -> Result<Arc<dyn NodeAccess>, ControlError> {
        let here = self.node.node_id().ok_or_else(|| {
            ControlError::new(ErrorKind::Conflict, "this node has no volumes: it is a witness")
                .hint("ask a node that runs workloads; `toft node ls` shows them")
        })?;
        if row.node_id.is_none() && !row.options.is_remote() {
            let command = Command::BindVolume { name: row.name.clone(), node_id: here, at_ms: now_ms() };
            match self.submit(command).await? {
                Reply::Volume(bound) => *row = *bound,
                _ => {
                    return Err(ControlError::new(
                        ErrorKind::Internal,
                        "the state answered something else than a volume",
                    ));
                }
            }
        }
        Ok(Arc::clone(&self.node) as _)
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
