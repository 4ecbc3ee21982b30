//! Containers: a record that names image, specification and snapshot, and the writable snapshot itself. The snapshot
//! is made first, under the session's lease, so that a record always has one.

use std::collections::{BTreeMap, HashMap};

use containerd_client::services::v1::{
    Container as Record, CreateContainerRequest, DeleteContainerRequest, GetContainerRequest, GetRequest,
    ListContainersRequest, ListTasksRequest, UpdateContainerRequest, snapshots::MountsRequest,
};
use containerd_client::types::v1::Status;
use oci_spec::runtime::Spec;
use prost_types::{Any, FieldMask};
use toft_model::ids::InstanceId;

use super::{
    OWN_LABELS, Shared,
    client::{Mounts, QUICK, SLOW, call},
    connection::Session,
    errors::Refusal,
    events::exit_of,
    images, isolation, signals,
    spec::{self, Parts, devices},
    stdio::{Kind, Stdio},
    unpack::Snapshots,
};
use crate::agent::{
    gpu::cdi::{self, Edits},
    runtime::{Container, ContainerSpec, RuntimeError, TaskState},
};

const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
/// The extension of a record that holds its specification without edits.
const PLAIN: &str = "toft.runtime/plain-spec";
const STOP_SIGNAL_LABEL: &str = "toft.runtime/stop-signal";
const CREATING: &str = "creating a container";
const REMOVING: &str = "removing a container";

/// Creates the container.
pub(super) async fn create(shared: &Shared, order: &ContainerSpec) -> Result<(), RuntimeError> {
    let session = shared.session()?;
    let snapshots = snapshots(shared, &session);
    let name = order.image.as_str();
    let image = images::resolve(shared, &order.image).await?;
    let identity = shared.identities.get(snapshots, &image, &order.process).await.map_err(|e| e.of_image(name))?;
    let runtime = isolation::choose(order.process.isolation.as_ref()).map_err(|reason| failed(CREATING, reason))?;
    let devices = devices::find(&order.process).map_err(|reason| failed(CREATING, reason))?;
    let parts = Parts {
        order,
        image: &image.config,
        identity: &identity,
        cgroup_parent: &shared.config.cgroup_parent,
        host: &shared.host,
        devices: &devices,
    };
    let kind = Kind::of(&order.process);
    let spec = spec::build(&parts)
        .map(|mut spec| {
            spec.set_hooks(kind.map(|_| Stdio::of(&shared.config.attach, order.id).hooks()));
            spec
        })
        .map_err(|reason| RuntimeError::ImageUnusable { image: name.to_owned(), reason })?;
    let (spec, plain) = edited(spec, &order.edits).map_err(|reason| failed(CREATING, reason))?;
    let id = order.id.to_string();
    let parent = image.chain.last().map_or("", String::as_str);
    let mounts = match snapshots.prepare(&id, parent, CREATING).await {
        Err(refusal) if refusal.not_found() => {
            // The layers were never unpacked for this snapshotter, or were collected.
            snapshots.unpack(&image).await.map_err(|e| e.of_image(name))?;
            snapshots.prepare(&id, parent, CREATING).await?
        }
        Err(refusal) if refusal.exists() => {
            if exists(shared, &id).await? {
                return Err(RuntimeError::Exists { id: order.id });
            }
            // Left behind by a creation that was cut short.
            snapshots.remove(&id).await?;
            snapshots.prepare(&id, parent, CREATING).await?
        }
        other => other?,
    };
    let stop_signal = match &order.process.stop_signal {
        Some(signal) => signal.number(),
        None => signals::parse(&image.config.config.stop_signal).unwrap_or(signals::TERM),
    };
    let mut labels: HashMap<String, String> = order.labels.clone().into_iter().collect();
    labels.insert(STOP_SIGNAL_LABEL.to_owned(), stop_signal.to_string());
    labels.extend(kind.map(Kind::label));
    let record = Record {
        id: id.clone(),
        labels,
        image: name.to_owned(),
        runtime: Some(runtime),
        spec: Some(any(spec)),
        extensions: plain.map(|plain| (PLAIN.to_owned(), any(plain))).into_iter().collect(),
        snapshotter: session.snapshotter.clone(),
        snapshot_key: id.clone(),
        ..Default::default()
    };
    let request = shared.client.leased(CreateContainerRequest { container: Some(record) }, &session.lease);
    if let Err(refusal) = call(CREATING, QUICK, shared.client.containers().create(request)).await {
        if refusal.exists() {
            return Err(RuntimeError::Exists { id: order.id });
        }
        snapshots.remove(&id).await?;
        return Err(refusal.into());
    }
    shared.mounts().insert(order.id, mounts);
    shared.kinds().insert(order.id, kind);
    Ok(())
}

/// The specification with its edits, and without them when there are any: others take their place one day.
fn edited(mut spec: Spec, edits: &Edits) -> Result<(Vec<u8>, Option<Vec<u8>>), String> {
    let text = |spec: &Spec| serde_json::to_vec(spec).map_err(|error| error.to_string());
    if edits.is_empty() {
        return Ok((text(&spec)?, None));
    }
    let plain = text(&spec)?;
    cdi::apply(&mut spec, edits)?;
    Ok((text(&spec)?, Some(plain)))
}

fn any(value: Vec<u8>) -> Any {
    Any { type_url: SPEC_TYPE.to_owned(), value }
}

/// Puts other edits in place of those that a container has.
pub(super) async fn edit(shared: &Shared, id: InstanceId, edits: &Edits) -> Result<(), RuntimeError> {
    const EDITING: &str = "changing a container";
    let mut record = get(shared, &id.to_string()).await?.ok_or(RuntimeError::NotFound { id })?;
    let plain = record.extensions.get(PLAIN).ok_or_else(|| failed(EDITING, "it was made without GPUs".to_owned()))?;
    let plain: Spec = serde_json::from_slice(&plain.value).map_err(|error| failed(EDITING, error.to_string()))?;
    let (spec, _) = edited(plain, edits).map_err(|reason| failed(EDITING, reason))?;
    if record.spec.as_ref().is_some_and(|known| known.value == spec) {
        return Ok(());
    }
    record.spec = Some(any(spec));
    let update_mask = Some(FieldMask { paths: vec!["spec".to_owned()] });
    let request = shared.client.request(UpdateContainerRequest { container: Some(record), update_mask });
    match call(EDITING, QUICK, shared.client.containers().update(request)).await {
        Ok(_) => Ok(()),
        Err(refusal) if refusal.not_found() => Err(RuntimeError::NotFound { id }),
        Err(refusal) => Err(refusal.into()),
    }
}

/// Every container with its process.
pub(super) async fn list(shared: &Shared) -> Result<Vec<Container>, RuntimeError> {
    let client = &shared.client;
    let tasks = async {
        let request = client.request(ListTasksRequest { filter: String::new() });
        Ok::<_, RuntimeError>(call("listing processes", SLOW, client.tasks().list(request)).await?.tasks)
    };
    let (records, tasks) = tokio::try_join!(records(shared), tasks)?;
    let mut states: HashMap<String, TaskState> = tasks
        .into_iter()
        .map(|process| {
            let pid = process.pid;
            let state = match process.status() {
                Status::Created => TaskState::Created { pid },
                Status::Stopped => TaskState::Ended(exit_of(process.exit_status, process.exited_at)),
                Status::Running | Status::Paused | Status::Pausing => TaskState::Running { pid },
                // Its shim does not answer, as when a start was cut short: it is deleted and prepared again. Deleting
                // refuses while a process runs after all.
                Status::Unknown => TaskState::Created { pid },
            };
            (if process.id.is_empty() { process.container_id } else { process.id }, state)
        })
        .collect();
    let ours = records.into_iter().filter_map(|record| {
        let id: InstanceId = record.id.parse().ok()?;
        let task = states.remove(&record.id).unwrap_or(TaskState::None);
        let labels: BTreeMap<_, _> =
            record.labels.into_iter().filter(|(key, _)| !key.starts_with(OWN_LABELS)).collect();
        Some(Container { id, image: record.image, labels, task })
    });
    Ok(ours.collect())
}

/// Records come one by one: a list of all at once could outgrow a message.
async fn records(shared: &Shared) -> Result<Vec<Record>, RuntimeError> {
    const LISTING: &str = "listing containers";
    let client = &shared.client;
    let request = client.request(ListContainersRequest { filters: Vec::new() });
    let mut stream = call(LISTING, QUICK, client.containers().list_stream(request)).await?;
    let mut records = Vec::new();
    loop {
        match tokio::time::timeout(QUICK, stream.message()).await {
            Ok(Ok(Some(message))) => records.extend(message.container),
            Ok(Ok(None)) => return Ok(records),
            Ok(Err(status)) => return Err(Refusal::new(LISTING, &status).into()),
            Err(_) => return Err(Refusal::timed_out(LISTING, QUICK).into()),
        }
    }
}

/// The signal noted at creation.
pub(super) async fn stop_signal(shared: &Shared, id: InstanceId) -> Result<i32, RuntimeError> {
    let record = get(shared, &id.to_string()).await?.ok_or(RuntimeError::NotFound { id })?;
    let noted = record.labels.get(STOP_SIGNAL_LABEL).and_then(|signal| signal.parse().ok());
    Ok(noted.unwrap_or(signals::TERM))
}

/// The specification it was created with, as JSON; `None` when there is no such container.
pub(super) async fn spec(shared: &Shared, id: InstanceId) -> Result<Option<Vec<u8>>, RuntimeError> {
    Ok(get(shared, &id.to_string()).await?.and_then(|record| record.spec).map(|spec| spec.value))
}

/// Mounts of the container's root filesystem; `None` when there is no such container.
pub(super) async fn mounts(shared: &Shared, id: InstanceId) -> Result<Option<Mounts>, RuntimeError> {
    if let Some(known) = shared.mounts().get(&id) {
        return Ok(Some(known.clone()));
    }
    let Some(record) = get(shared, &id.to_string()).await? else { return Ok(None) };
    let message = MountsRequest { snapshotter: record.snapshotter, key: record.snapshot_key };
    let client = &shared.client;
    match call("mounting the image", QUICK, client.snapshots().mounts(client.request(message))).await {
        Ok(answer) => {
            shared.mounts().insert(id, answer.mounts.clone());
            Ok(Some(answer.mounts))
        }
        Err(refusal) if refusal.not_found() => Ok(None),
        Err(refusal) => Err(refusal.into()),
    }
}

/// Removes record and snapshot.
pub(super) async fn delete(shared: &Shared, id: InstanceId) -> Result<(), RuntimeError> {
    let session = shared.session()?;
    let client = &shared.client;
    let key = id.to_string();
    let request = client.request(GetRequest { container_id: key.clone(), exec_id: String::new() });
    match call(REMOVING, QUICK, client.tasks().get(request)).await {
        Ok(_) => return Err(failed(REMOVING, format!("the process of `{id}` is still there"))),
        Err(refusal) if refusal.not_found() => {}
        Err(refusal) => return Err(refusal.into()),
    }
    shared.mounts().remove(&id);
    shared.kinds().remove(&id);
    shared.inputs().remove(&id);
    Stdio::of(&shared.config.attach, id).remove();
    let snapshots = snapshots(shared, &session);
    match delete_both(shared, snapshots, &key).await {
        // containerd takes note of a removal on what may be the same full disk, so there must be room first.
        Err(RuntimeError::DiskFull { .. }) => {
            snapshots.empty(&key).await?;
            delete_both(shared, snapshots, &key).await
        }
        done => done,
    }
}

async fn delete_both(shared: &Shared, snapshots: Snapshots<'_>, key: &str) -> Result<(), RuntimeError> {
    let request = shared.client.request(DeleteContainerRequest { id: key.to_owned() });
    match call(REMOVING, SLOW, shared.client.containers().delete(request)).await {
        Err(refusal) if !refusal.not_found() => return Err(refusal.into()),
        _ => {}
    }
    snapshots.remove(key).await
}

async fn exists(shared: &Shared, id: &str) -> Result<bool, RuntimeError> {
    Ok(get(shared, id).await?.is_some())
}

pub(super) async fn get(shared: &Shared, id: &str) -> Result<Option<Record>, RuntimeError> {
    let client = &shared.client;
    let request = client.request(GetContainerRequest { id: id.to_owned() });
    match call("looking up a container", QUICK, client.containers().get(request)).await {
        Ok(answer) => Ok(answer.container),
        Err(refusal) if refusal.not_found() => Ok(None),
        Err(refusal) => Err(refusal.into()),
    }
}

fn snapshots<'a>(shared: &'a Shared, session: &'a Session) -> Snapshots<'a> {
    Snapshots { client: &shared.client, snapshotter: &session.snapshotter, lease: &session.lease }
}

fn failed(doing: &'static str, reason: String) -> RuntimeError {
    RuntimeError::Failed { doing, reason }
}
