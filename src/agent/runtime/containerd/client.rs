//! The line to containerd: one lazily connected channel, the headers each request carries, and the time each call may
//! take. The channel reconnects by itself; whether containerd answers is the business of [`super::connection`].

use std::{future::Future, path::Path, time::Duration};

use containerd_client::{
    services::v1::{
        containers_client::ContainersClient, content_client::ContentClient, diff_client::DiffClient,
        events_client::EventsClient, images_client::ImagesClient, introspection_client::IntrospectionClient,
        leases_client::LeasesClient, namespaces_client::NamespacesClient, snapshots::snapshots_client::SnapshotsClient,
        tasks_client::TasksClient, version_client::VersionClient,
    },
    types::Mount,
};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::{
    Request, Response, Status,
    metadata::{Ascii, MetadataValue},
    transport::{Channel, Endpoint},
};

use super::errors::Refusal;
use crate::agent::runtime::RuntimeError;

/// For calls that touch containerd's own database only.
pub(super) const QUICK: Duration = Duration::from_secs(10);
/// For calls that wait for a shim, a kernel or a disk.
pub(super) const SLOW: Duration = Duration::from_secs(60);
/// For unpacking one layer.
pub(super) const UNPACK: Duration = Duration::from_secs(30 * 60);

/// Largest message accepted from containerd, its own limit.
const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// A lease: what was written under it is safe from containerd's garbage collector until it is deleted.
#[derive(Debug, Clone)]
pub(super) struct Lease {
    pub(super) id: String,
    header: MetadataValue<Ascii>,
}

impl Lease {
    /// Names a lease; `id` is plain ASCII of our own making.
    pub(super) fn named(id: String) -> Self {
        let header = MetadataValue::try_from(&id).expect("a lease id is plain ASCII");
        Self { id, header }
    }
}

/// containerd's services on one channel, in one namespace.
#[derive(Debug, Clone)]
pub(super) struct Client {
    channel: Channel,
    namespace: MetadataValue<Ascii>,
}

macro_rules! service {
    ($name:ident, $client:ident) => {
        pub(super) fn $name(&self) -> $client<Channel> {
            $client::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
        }
    };
}

impl Client {
    /// Prepares the channel to the socket at `address`; nothing is connected yet.
    pub(super) fn new(address: &Path, namespace: &str) -> Result<Self, RuntimeError> {
        let refuse = |reason: String| RuntimeError::Failed { doing: "preparing the line to containerd", reason };
        let namespace = MetadataValue::try_from(namespace)
            .map_err(|_| refuse(format!("`{namespace}` is no valid namespace of containerd")))?;
        let address = address.to_path_buf();
        let connector = tower::service_fn(move |_| {
            let address = address.clone();
            async move { UnixStream::connect(address).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://containerd.invalid")
            .connect_timeout(Duration::from_secs(2))
            .connect_with_connector_lazy(connector);
        Ok(Self { channel, namespace })
    }

    service!(containers, ContainersClient);
    service!(content, ContentClient);
    service!(diff, DiffClient);
    service!(events, EventsClient);
    service!(images, ImagesClient);
    service!(introspection, IntrospectionClient);
    service!(leases, LeasesClient);
    service!(namespaces, NamespacesClient);
    service!(snapshots, SnapshotsClient);
    service!(tasks, TasksClient);
    service!(version, VersionClient);

    /// A request in our namespace.
    pub(super) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("containerd-namespace", self.namespace.clone());
        request
    }

    /// A request in our namespace whose results belong to `lease`.
    pub(super) fn leased<T>(&self, message: T, lease: &Lease) -> Request<T> {
        let mut request = self.request(message);
        request.metadata_mut().insert("containerd-lease", lease.header.clone());
        request
    }
}

/// Awaits one call, at most `limit`.
pub(super) async fn call<T>(
    doing: &'static str,
    limit: Duration,
    answer: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Refusal> {
    match tokio::time::timeout(limit, answer).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(Refusal::new(doing, &status)),
        Err(_) => Err(Refusal::timed_out(doing, limit)),
    }
}

/// Mounts as they travel from a snapshot to a task.
pub(super) type Mounts = Vec<Mount>;
