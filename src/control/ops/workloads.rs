//! Operations on workloads.

use std::collections::BTreeMap;

use rusqlite::Connection;
use toft_model::{
    identity::Role,
    ids::{RequestId, WorkloadId},
    instance::NetworkOrder,
    name::Name,
    schedule::{Snapshot, why_nowhere},
    state::{
        Command, NodeRow, PowerAction, PutMode, Reply, WorkloadView, query_snapshot, query_workload,
        query_workload_page, query_workloads,
    },
    workload::{Protocol, WorkloadSpec},
};
use uuid::Uuid;

use super::{Ops, now_ms};
use crate::control::{ControlError, ErrorKind, actor};

impl Ops {
    /// Writes a specification and gives the workload as it then is. With [`PutMode::Create`] the name must be free.
    pub async fn put_workload(&self, spec: WorkloadSpec, mode: PutMode) -> Result<WorkloadView, ControlError> {
        let spec = spec.with_named_gpus()?;
        spec.validate()?;
        let granted = self.granted(&spec, mode).await?;
        self.check_host_ports(&spec).await?;
        let name = spec.name.clone();
        let workload_id = WorkloadId(Uuid::now_v7());
        let asked = self.asked(&("put", &spec, mode))?;
        let spec = self.in_front(spec).await?;
        let command = Command::PutWorkload { workload_id, spec: Box::new(spec), mode: granted, at_ms: now_ms() };
        self.propose_workload(name, command, asked).await
    }

    /// Refuses a specification that whoever asks may not write. Who has only a grant writes upon what was looked at, so that
    /// nothing comes in between.
    async fn granted(&self, spec: &WorkloadSpec, mode: PutMode) -> Result<PutMode, ControlError> {
        let Some(asks) = actor::current().filter(|asks| asks.rights.role < Role::Operator) else { return Ok(mode) };
        let name = spec.name.clone();
        let known = self.state.read(move |connection| query_workload(connection, &name)).await?;
        asks.need_for(spec, known.as_ref().map(|known| &known.row.spec))?;
        Ok(match (known, mode) {
            (_, PutMode::Create | PutMode::Replace { if_generation: Some(_) }) => mode,
            (Some(known), PutMode::Replace { if_generation: None }) => {
                PutMode::Replace { if_generation: Some(known.row.generation) }
            }
            (None, PutMode::Replace { if_generation: None }) => PutMode::Create,
        })
    }

    /// What somebody runs in front of them runs on the node they asked: only there can they attach to it.
    async fn in_front(&self, mut spec: WorkloadSpec) -> Result<WorkloadSpec, ControlError> {
        if spec.process.foreground
            && spec.node.is_none()
            && let Some(id) = self.node.node_id()
        {
            let nodes = self.state.read(NodeRow::all).await?;
            spec.node = nodes.into_iter().find(|node| node.id == id).map(|node| node.name);
        }
        Ok(spec)
    }

    /// Sets labels, and removes those whose value is `None`; nothing that runs changes. Gives the generation.
    pub async fn label_workload(
        &self,
        name: Name,
        labels: BTreeMap<String, Option<String>>,
        if_generation: Option<u64>,
    ) -> Result<u64, ControlError> {
        let asked = self.asked(&("label", &name, &labels, if_generation))?;
        let command = Command::LabelWorkload { name, labels, if_generation, at_ms: now_ms() };
        match self.propose(command, asked).await? {
            Reply::Generation { generation } => Ok(generation),
            _ => Err(ControlError::new(ErrorKind::Internal, "the state answered something else than a generation")),
        }
    }

    /// Starts, stops or restarts.
    pub async fn power_workload(&self, name: Name, action: PowerAction) -> Result<WorkloadView, ControlError> {
        let command = Command::PowerWorkload { name: name.clone(), action, at_ms: now_ms() };
        let asked = self.asked(&("power", &name, action))?;
        self.propose_workload(name, command, asked).await
    }

    /// Removes; the workload is gone when its last container is.
    pub async fn remove_workload(&self, name: Name) -> Result<(), ControlError> {
        let asked = self.asked(&("remove", &name))?;
        let command = Command::RemoveWorkload { name, at_ms: now_ms() };
        self.propose(command, asked).await?;
        Ok(())
    }

    /// Every workload, by name.
    pub async fn workloads(&self) -> Result<Vec<WorkloadView>, ControlError> {
        let mut workloads = self.state.read(query_workloads).await?;
        self.noted_all(workloads.iter_mut().flat_map(|workload| &mut workload.instances).collect()).await;
        Ok(workloads)
    }

    /// What `make` makes of at most `limit` workloads whose names come after `after`, by name. It runs where it may take
    /// its time.
    pub async fn workload_page<T: Send + 'static>(
        &self,
        after: Option<String>,
        limit: usize,
        make: impl FnOnce(Vec<WorkloadView>) -> T + Send + 'static,
    ) -> Result<T, ControlError> {
        self.look_at_pulls().await;
        let ops = self.clone();
        let page = move |connection: &Connection| {
            let mut workloads = query_workload_page(connection, after.as_deref(), limit)?;
            ops.noted(workloads.iter_mut().flat_map(|workload| &mut workload.instances));
            Ok(make(workloads))
        };
        Ok(self.state.read(page).await?)
    }

    /// The workload of that name, and how far the pulls are that it waits for, wherever they are.
    pub async fn workload(&self, name: &Name) -> Result<WorkloadView, ControlError> {
        let mut workload = self.workload_known_here(name).await?;
        self.noted_all(workload.instances.iter_mut().collect()).await;
        Ok(workload)
    }

    /// The workload of that name, without asking other nodes for anything.
    pub async fn workload_known_here(&self, name: &Name) -> Result<WorkloadView, ControlError> {
        let asked = name.clone();
        let found = self.state.read(move |connection| query_workload(connection, &asked)).await?;
        let Some(mut workload) = found else {
            return Err(ControlError::new(ErrorKind::NotFound, format!("there is no workload `{name}`"))
                .hint("`toft ls` shows the workloads there are"));
        };
        self.noted(&mut workload.instances);
        Ok(workload)
    }

    pub(super) async fn propose_workload(
        &self,
        name: Name,
        command: Command,
        asked: Option<(RequestId, String)>,
    ) -> Result<WorkloadView, ControlError> {
        let Reply::Workload(row) = self.propose(command, asked).await? else {
            return Err(ControlError::new(ErrorKind::Internal, "the state answered something else than a workload"));
        };
        let found = self.state.read(move |connection| query_workload(connection, &name)).await?;
        // The row is the one of the answer: another's later change, and its generation, are not what was asked for.
        let instances = found.filter(|found| found.row.id == row.id).map(|found| found.instances);
        Ok(WorkloadView { row: *row, instances: instances.unwrap_or_default() })
    }

    /// Refuses host ports that no node can give, before anything is written: the user is there to choose another.
    async fn check_host_ports(&self, spec: &WorkloadSpec) -> Result<(), ControlError> {
        if spec.ports.iter().all(|port| port.host.is_none()) {
            return Ok(());
        }
        let mut snapshot = self.state.read(query_snapshot).await?;
        let own =
            snapshot.workloads.iter().find(|workload| workload.spec.name == spec.name).map(|workload| workload.id);
        let held_by_itself: Vec<bool> = spec
            .ports
            .iter()
            .map(|port| port.host.and_then(|host| holder(&snapshot, host, port.protocol)).as_ref() == Some(&spec.name))
            .collect();
        // What the workload itself holds is given back before its successor starts.
        snapshot.instances.retain(|instance| Some(instance.workload_id) != own);
        for (i, port) in spec.ports.iter().enumerate() {
            let Some(host) = port.host else { continue };
            let refuse = |why: String| {
                Err(ControlError::new(ErrorKind::Conflict, why)
                    .field(format!("ports[{i}].host"))
                    .hint("choose another host port, or leave it out to get a free one"))
            };
            let held = holder(&snapshot, host, port.protocol);
            let alone = WorkloadSpec { ports: vec![*port], ..WorkloadSpec::new(spec.name.clone(), spec.image.clone()) };
            if let Some(holder) = held
                && why_nowhere(&alone, &snapshot).is_some()
            {
                return refuse(format!("host port {host}/{} is taken by workload `{holder}`", port.protocol));
            }
            // The agent claims what its instances publish, so only a port that is none of theirs can be somebody else's.
            if snapshot.nodes.len() == 1
                && !held_by_itself[i]
                && let Some(why) = self.node.port_taken_outside(*port)
            {
                return refuse(why);
            }
        }
        Ok(())
    }
}

fn holder(snapshot: &Snapshot, host: u16, protocol: Protocol) -> Option<Name> {
    let holds = |network: &NetworkOrder| match network {
        NetworkOrder::Bridge { ports, .. } => ports.iter().any(|port| port.host == host && port.protocol == protocol),
        NetworkOrder::Host | NetworkOrder::None => false,
    };
    let instance = snapshot.instances.iter().find(|instance| holds(&instance.container.network))?;
    let workload = snapshot.workloads.iter().find(|workload| workload.id == instance.workload_id)?;
    Some(workload.spec.name.clone())
}
