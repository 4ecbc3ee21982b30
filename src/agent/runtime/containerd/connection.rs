//! Keeps watch over containerd: connects, prepares what every other call needs (the [`Session`]), forwards events,
//! and says by [`Availability`] whether containerd answers. It goes on trying for as long as the daemon lives.
//!
//! An event stream that is open is the sign of life: it breaks at once when containerd dies. A containerd that hangs
//! is found by asking for its version now and then.

use std::{collections::HashMap, path::PathBuf, sync::Arc, time::Duration};

use containerd_client::services::v1::{
    CreateNamespaceRequest, CreateRequest as CreateLeaseRequest, DeleteRequest as DeleteLeaseRequest,
    ListRequest as ListLeasesRequest, Namespace, PluginsRequest,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    Shared,
    client::{Client, Lease, QUICK, call},
    errors::Refusal,
    events,
};
use crate::agent::runtime::{Availability, RuntimeError};

/// Shortest and longest time between two attempts to connect.
const PAUSES: (Duration, Duration) = (Duration::from_millis(4), Duration::from_millis(500));
/// Marks the leases of this appliance.
const OWNER_LABEL: &str = "toft/owner";

/// What was learned and prepared when containerd was reached.
#[derive(Debug)]
pub(super) struct Session {
    /// `containerd 1.6.20`.
    pub(super) version: String,
    /// Snapshotter in use.
    pub(super) snapshotter: String,
    /// Where that keeps its files, if containerd says so.
    pub(super) root: Option<PathBuf>,
    /// Holds what is prepared but not yet owned by a container.
    pub(super) lease: Lease,
}

/// Runs until `stop`.
pub(super) async fn run(shared: Arc<Shared>, stop: CancellationToken) {
    let (shortest, longest) = PAUSES;
    let mut pause = shortest;
    loop {
        let ended = tokio::select! {
            () = stop.cancelled() => return,
            ended = serve(&shared) => ended,
        };
        shared.availability.send_if_modified(|now| {
            let was_up = matches!(now, Availability::Up(_));
            if was_up {
                tracing::warn!(reason = %ended.reason, "containerd went away");
                pause = shortest;
            }
            let next = Availability::Down(ended.reason.clone());
            let changed = *now != next;
            *now = next;
            changed
        });
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        // Slowly longer: a containerd that is starting is found soon after it listens.
        pause = (pause * 5 / 4).min(longest);
    }
}

/// Why a connection ended.
struct Ended {
    reason: String,
}

impl From<RuntimeError> for Ended {
    fn from(error: RuntimeError) -> Self {
        let reason = match error {
            RuntimeError::Unavailable { reason } => reason,
            other => other.to_string(),
        };
        Self { reason }
    }
}

/// One connection from first contact to its end.
async fn serve(shared: &Arc<Shared>) -> Ended {
    match connect(shared).await {
        Ok(ended) => ended,
        Err(error) => error.into(),
    }
}

async fn connect(shared: &Arc<Shared>) -> Result<Ended, RuntimeError> {
    let client = &shared.client;
    let version = version(client).await?;
    call(
        "creating the namespace",
        QUICK,
        client.namespaces().create(client.request(CreateNamespaceRequest {
            namespace: Some(Namespace { name: shared.config.namespace.clone(), labels: Default::default() }),
        })),
    )
    .await
    .map(drop)
    .or_else(|refusal| if refusal.exists() { Ok(()) } else { Err(refusal) })?;
    let ((snapshotter, root), lease) = tokio::try_join!(choose_snapshotter(client), session_lease(shared))?;
    let session = Session { version: version.clone(), snapshotter, root, lease };
    tracing::debug!(version = %session.version, snapshotter = %session.snapshotter, "containerd was reached");
    shared.session.send_replace(Some(Arc::new(session)));
    let up = || {
        tracing::info!(version = %version, "containerd answers");
        shared.availability.send_replace(Availability::Up(version.clone()));
    };
    let ended = tokio::select! {
        reason = events::forward(shared, up) => Ended { reason },
        error = ping(client) => error.into(),
    };
    Ok(ended)
}

/// Asks for the version again and again; returns when containerd no longer answers.
async fn ping(client: &Client) -> RuntimeError {
    loop {
        tokio::time::sleep(Duration::from_secs(2)).await;
        if let Err(error) = version(client).await {
            return error;
        }
    }
}

async fn version(client: &Client) -> Result<String, RuntimeError> {
    let limit = Duration::from_secs(5);
    let answer = call("asking containerd for its version", limit, client.version().version(client.request(()))).await?;
    let number = answer.version.trim_start_matches('v').split(['~', '+', ' ']).next().unwrap_or_default().to_owned();
    Ok(format!("containerd {number}"))
}

/// overlayfs where it works, else plain copies; and where it keeps its files.
async fn choose_snapshotter(client: &Client) -> Result<(String, Option<PathBuf>), RuntimeError> {
    let filters = vec!["type==io.containerd.snapshotter.v1".to_owned()];
    let request = client.request(PluginsRequest { filters });
    let plugins = call("asking for snapshotters", QUICK, client.introspection().plugins(request)).await?.plugins;
    let works = |id: &&str| plugins.iter().find(|p| p.id == *id && p.init_err.is_none());
    match ["overlayfs", "native"].iter().find_map(works) {
        Some(plugin) => Ok((plugin.id.clone(), plugin.exports.get("root").map(PathBuf::from))),
        None => {
            let why = plugins.iter().find(|p| p.id == "overlayfs").and_then(|p| p.init_err.as_ref());
            let why = why.map_or_else(|| "the plugin is missing".to_owned(), |e| e.message.clone());
            Err(RuntimeError::Failed { doing: "choosing a snapshotter", reason: format!("overlayfs: {why}") })
        }
    }
}

/// Makes the lease of this session, and lets go of what earlier sessions that were killed had left behind.
async fn session_lease(shared: &Shared) -> Result<Lease, RuntimeError> {
    let client = &shared.client;
    let filters = vec![format!("labels.\"{OWNER_LABEL}\"==toft")];
    let old =
        call("listing leases", QUICK, client.leases().list(client.request(ListLeasesRequest { filters }))).await?;
    let held = shared.session.borrow().as_ref().map(|session| session.lease.clone());
    if let Some(held) = held.filter(|held| old.leases.iter().any(|lease| lease.id == held.id)) {
        return Ok(held);
    }
    let lease = create_lease(client, "session", None).await?;
    for stale in old.leases {
        let request = client.request(DeleteLeaseRequest { id: stale.id, sync: false });
        ignore_missing(call("deleting a lease", QUICK, client.leases().delete(request)).await)?;
    }
    Ok(lease)
}

/// Creates a lease for `purpose`. containerd deletes it by itself after `lifetime`, should we never come back.
pub(super) async fn create_lease(
    client: &Client,
    purpose: &str,
    lifetime: Option<jiff::SignedDuration>,
) -> Result<Lease, RuntimeError> {
    let id = format!("toft-{purpose}-{}", Uuid::new_v4());
    let mut labels = HashMap::from([(OWNER_LABEL.to_owned(), "toft".to_owned())]);
    if let Some(lifetime) = lifetime {
        let expires = jiff::Timestamp::now() + lifetime;
        labels.insert("containerd.io/gc.expire".to_owned(), format!("{expires:.0}"));
    }
    let request = client.request(CreateLeaseRequest { id: id.clone(), labels });
    call("creating a lease", QUICK, client.leases().create(request)).await?;
    Ok(Lease::named(id))
}

/// Deletes a lease; with `Collect::Now` returns after what it alone held is gone.
pub(super) async fn delete_lease(client: &Client, lease: &Lease, collect: Collect) -> Result<(), RuntimeError> {
    let request = client.request(DeleteLeaseRequest { id: lease.id.clone(), sync: collect == Collect::Now });
    ignore_missing(call("deleting a lease", super::client::SLOW, client.leases().delete(request)).await)
}

/// When containerd's garbage collector shall run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Collect {
    /// Before the call returns.
    Now,
    /// When containerd thinks it time.
    Later,
}

fn ignore_missing(answer: Result<(), Refusal>) -> Result<(), RuntimeError> {
    answer.or_else(|refusal| if refusal.not_found() { Ok(()) } else { Err(refusal.into()) })
}

/// The session in force; without one, containerd was never reached.
pub(super) fn session(
    session: &watch::Sender<Option<Arc<Session>>>,
    availability: &watch::Sender<Availability>,
) -> Result<Arc<Session>, RuntimeError> {
    session.borrow().clone().ok_or_else(|| {
        let reason = match &*availability.borrow() {
            Availability::Down(reason) => reason.clone(),
            Availability::Up(_) => "it was never reached".to_owned(),
        };
        RuntimeError::Unavailable { reason }
    })
}
