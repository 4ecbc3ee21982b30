//! Talking to the kernel's routing tables, in this network namespace or in another process' one.
//!
//! A netlink socket belongs for ever to the namespace it was opened in. So only opening needs a thread that visits the
//! other namespace; everything after that happens here.

use std::{fs::File, io, os::linux::fs::MetadataExt};

use nix::sched::{CloneFlags, setns};
use rtnetlink::{Handle, packet_route::RouteNetlinkMessage, proto::Connection};
use tokio::sync::oneshot;

use super::NetworkError;

/// An open netlink socket with the task that serves it.
pub(super) struct Netlink {
    connection: Connection<RouteNetlinkMessage>,
    handle: Handle,
}

impl Netlink {
    /// Opens one in the namespace of this thread.
    pub(super) fn here() -> Result<Self, NetworkError> {
        Self::open().map_err(|error| io_failed("opening a netlink socket", &error))
    }

    /// Opens one in the namespace of process `pid`, which must not be ours.
    pub(super) async fn of_process(pid: u32) -> Result<(Self, File), NetworkError> {
        let namespace = namespace(pid)?;
        let visited = namespace.try_clone().map_err(|error| io_failed("opening a network namespace", &error))?;
        let runtime = tokio::runtime::Handle::current();
        let (sender, receiver) = oneshot::channel();
        std::thread::Builder::new()
            .name("netns".to_owned())
            .spawn(move || {
                let _guard = runtime.enter();
                let opened =
                    setns(visited, CloneFlags::CLONE_NEWNET).map_err(io::Error::from).and_then(|()| Self::open());
                // Nobody listens any more when the caller was cancelled.
                let _ = sender.send(opened);
            })
            .map_err(|error| io_failed("starting a thread", &error))?;
        let opened = receiver.await.unwrap_or_else(|_| Err(io::Error::other("the thread ended early")));
        Ok((opened.map_err(|error| io_failed("entering a network namespace", &error))?, namespace))
    }

    fn open() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        Ok(Self { connection, handle })
    }

    /// Does `work` while serving the socket, and closes it.
    pub(super) async fn run<T>(
        self,
        work: impl AsyncFnOnce(Handle) -> Result<T, NetworkError>,
    ) -> Result<T, NetworkError> {
        tokio::select! {
            result = work(self.handle) => result,
            () = self.connection => {
                Err(NetworkError::Failed { doing: "asking the kernel", reason: "the netlink socket closed".to_owned() })
            }
        }
    }
}

/// The network namespace of process `pid`. Ours is refused: what is meant for a container must never hit the host.
fn namespace(pid: u32) -> Result<File, NetworkError> {
    const DOING: &str = "opening a network namespace";
    let theirs = File::open(format!("/proc/{pid}/ns/net")).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => NetworkError::ProcessGone { pid },
        _ => io_failed(DOING, &error),
    })?;
    let identity = |meta: std::fs::Metadata| (meta.st_dev(), meta.st_ino());
    let ours = std::fs::metadata("/proc/thread-self/ns/net").map(identity).map_err(|error| io_failed(DOING, &error))?;
    if theirs.metadata().map(identity).map_err(|error| io_failed(DOING, &error))? == ours {
        let reason = format!("process {pid} has the network of the host");
        return Err(NetworkError::Failed { doing: DOING, reason });
    }
    Ok(theirs)
}

/// What an I/O error means to callers.
pub(super) fn io_failed(doing: &'static str, error: &io::Error) -> NetworkError {
    match error.kind() {
        io::ErrorKind::PermissionDenied => NetworkError::NotPermitted { doing },
        _ => NetworkError::Failed { doing, reason: error.to_string() },
    }
}

/// What a netlink error means to callers.
pub(super) fn failed(doing: &'static str) -> impl Fn(rtnetlink::Error) -> NetworkError {
    move |error| match error {
        rtnetlink::Error::NetlinkError(message) => io_failed(doing, &message.to_io()),
        other => NetworkError::Failed { doing, reason: other.to_string() },
    }
}

/// Whether the kernel answered that something is there already.
pub(super) fn exists(error: &rtnetlink::Error) -> bool {
    code(error) == Some(nix::errno::Errno::EEXIST)
}

/// Whether the kernel answered that there is no such thing.
pub(super) fn missing(error: &rtnetlink::Error) -> bool {
    use nix::errno::Errno;
    matches!(code(error), Some(Errno::ENODEV | Errno::ENOENT | Errno::ESRCH))
}

fn code(error: &rtnetlink::Error) -> Option<nix::errno::Errno> {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io().raw_os_error().map(nix::errno::Errno::from_raw),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_name_the_capability() {
        for errno in [nix::errno::Errno::EPERM, nix::errno::Errno::EACCES] {
            let error = io_failed("making a bridge", &io::Error::from(errno));
            assert_eq!(error.to_string(), "making a bridge is not permitted: the capability CAP_NET_ADMIN is missing");
        }
    }

    #[tokio::test]
    async fn namespaces_of_the_dead_and_our_own_are_refused() {
        let gone = Netlink::of_process(u32::MAX).await.err();
        assert!(matches!(gone, Some(NetworkError::ProcessGone { pid: u32::MAX })));
        let own = Netlink::of_process(std::process::id()).await.err();
        assert!(matches!(own, Some(NetworkError::Failed { .. })));
    }
}
