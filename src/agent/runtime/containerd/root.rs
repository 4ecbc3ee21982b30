//! The files of a container: of one that runs, through its first process; of one that does not, its snapshot, mounted
//! where nobody else sees it.

use std::{
    collections::HashMap,
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use containerd_client::types::v1::Status;
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use rustix::fs::{Mode, OFlags, open};
use toft_model::ids::InstanceId;

use super::{ContainerdRuntime, Shared, client::Mounts, containers, tasks};
use crate::agent::runtime::{
    RuntimeError,
    root::{Root, RootRuntime},
};

const OPENING: &str = "opening the files of a container";
/// Most bytes of a mount's options, a page.
const LONGEST_OPTIONS: usize = 4_000;

/// What is done with the files of containers that do not run. Two mounts of one snapshot would spoil it, so its files are
/// either looked at or about to be used by a process.
#[derive(Debug, Default)]
pub(super) struct Uses(Mutex<HashMap<InstanceId, Use>>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    Starting,
    Open(u32),
}

impl Uses {
    fn all(&self) -> MutexGuard<'_, HashMap<InstanceId, Use>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Until it is dropped, the files are not opened from outside.
pub(super) struct Starting<'a>(&'a Shared, InstanceId);

impl<'a> Starting<'a> {
    pub(super) fn begin(shared: &'a Shared, id: InstanceId) -> Result<Self, RuntimeError> {
        let mut all = shared.uses.all();
        if matches!(all.get(&id), Some(Use::Open(_))) {
            let reason = "files are being copied from or to it".to_owned();
            return Err(RuntimeError::Failed { doing: "preparing the process", reason });
        }
        all.insert(id, Use::Starting);
        Ok(Self(shared, id))
    }
}

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        self.0.uses.all().remove(&self.1);
    }
}

/// Until it is dropped, no process is started.
struct Looking(Arc<Shared>, InstanceId);

impl Looking {
    fn begin(shared: &Arc<Shared>, id: InstanceId) -> Result<Self, RuntimeError> {
        let mut all = shared.uses.all();
        let open = match all.get(&id) {
            Some(Use::Starting) => return Err(failed("it is just being started".to_owned())),
            Some(Use::Open(open)) => open + 1,
            None => 1,
        };
        all.insert(id, Use::Open(open));
        Ok(Self(Arc::clone(shared), id))
    }
}

impl Drop for Looking {
    fn drop(&mut self) {
        let mut all = self.0.uses.all();
        match all.get_mut(&self.1) {
            Some(Use::Open(open)) if *open > 1 => *open -= 1,
            _ => drop(all.remove(&self.1)),
        }
    }
}

#[async_trait]
impl RootRuntime for ContainerdRuntime {
    async fn root(&self, id: InstanceId) -> Result<Root, RuntimeError> {
        let shared = &self.shared;
        if let Some(pid) = running(shared, id).await? {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let opened = open(format!("/proc/{pid}/root"), flags, Mode::empty());
            // The number may have become another's before it was opened.
            if running(shared, id).await? == Some(pid) {
                let directory = opened.map_err(|errno| failed(errno.to_string()))?;
                return Ok(Root { directory, held: Box::new(()) });
            }
            return Err(failed("its process ended just now".to_owned()));
        }
        let held = Looking::begin(shared, id)?;
        // Looked at again, now that none can begin.
        if running(shared, id).await?.is_some() {
            return Err(failed("it is just being started".to_owned()));
        }
        let mounts = containers::mounts(shared, id).await?.ok_or(RuntimeError::NotFound { id })?;
        let mounted = tokio::task::spawn_blocking(move || mount_apart(mounts)).await;
        let directory = mounted.map_err(|error| failed(error.to_string()))?.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => RuntimeError::NotFound { id },
            _ => failed(format!("its snapshot could not be mounted: {error}")),
        })?;
        Ok(Root { directory, held: Box::new(held) })
    }
}

/// The process id of a container's process, if there is a process.
async fn running(shared: &Shared, id: InstanceId) -> Result<Option<u32>, RuntimeError> {
    let task = tasks::get(shared, id).await?;
    Ok(task.filter(|task| !matches!(task.status(), Status::Stopped | Status::Unknown)).map(|task| task.pid))
}

/// Mounts a snapshot in a mount namespace that ends with the thread that made it. The directory stays usable for as long
/// as it is open, and when it is closed, whatever closes it, nothing is left.
pub(super) fn mount_apart(mounts: Mounts) -> io::Result<OwnedFd> {
    let worker = std::thread::Builder::new().name("snapshot".to_owned()).spawn(move || {
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS)?;
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
        // A directory that is there on every machine.
        let place = "/proc";
        for part in mounts {
            let (flags, options) = split(&part.options);
            let options = shorten(options)?;
            if part.r#type == "bind" {
                mount(Some(part.source.as_str()), place, None::<&str>, flags | MsFlags::MS_BIND, None::<&str>)?;
            } else {
                let (source, kind) = (part.source.as_str(), part.r#type.as_str());
                mount(Some(source), place, Some(kind), flags, Some(options.as_str()))?;
            }
        }
        Ok(open(place, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
    })?;
    worker.join().unwrap_or_else(|_| Err(io::Error::other("the thread that mounts panicked")))
}

/// The options that are flags of the call, and the rest.
fn split(options: &[String]) -> (MsFlags, Vec<&str>) {
    let mut flags = MsFlags::empty();
    let mut rest = Vec::new();
    for option in options {
        match option.as_str() {
            "ro" => flags |= MsFlags::MS_RDONLY,
            "rbind" => flags |= MsFlags::MS_REC,
            "rw" | "bind" => {}
            other => rest.push(other),
        }
    }
    (flags, rest)
}

/// The options as one text. When it is longer than the kernel takes, the paths of the layers are made relative to what they
/// have in common, which this thread then works in.
fn shorten(options: Vec<&str>) -> io::Result<String> {
    let whole = options.join(",");
    let layers = options.iter().find_map(|option| option.strip_prefix("lowerdir="));
    let (true, Some(layers)) = (whole.len() > LONGEST_OPTIONS, layers) else { return Ok(whole) };
    let common = common_parent(layers.split(':'));
    std::env::set_current_dir(&common)?;
    let relative = |layer: &str| Path::new(layer).strip_prefix(&common).map(|path| path.display().to_string());
    let layers: Vec<String> = layers.split(':').map(|layer| relative(layer).unwrap_or_else(|_| layer.into())).collect();
    let others = options.iter().filter(|option| !option.starts_with("lowerdir="));
    Ok(others
        .map(|option| (*option).to_owned())
        .chain([format!("lowerdir={}", layers.join(":"))])
        .collect::<Vec<_>>()
        .join(","))
}

fn common_parent<'a>(mut paths: impl Iterator<Item = &'a str>) -> PathBuf {
    let mut common = paths.next().map(PathBuf::from).unwrap_or_default();
    for path in paths {
        while !Path::new(path).starts_with(&common) {
            common.pop();
        }
    }
    if common.as_os_str().is_empty() { "/".into() } else { common }
}

fn failed(reason: String) -> RuntimeError {
    RuntimeError::Failed { doing: OPENING, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_layers_are_named_from_where_they_lie() {
        let dir = tempfile::tempdir().unwrap();
        let layer = |i: u32| format!("{}/snapshots/{i}/fs", dir.path().display());
        std::fs::create_dir_all(dir.path().join("snapshots")).unwrap();
        let layers: Vec<String> = (0..200).map(layer).collect();
        let lower = format!("lowerdir={}", layers.join(":"));
        // The working directory is the whole process's unless a thread has its own.
        let worker = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_FS).unwrap();
            let short = shorten(vec!["index=off", &lower]).unwrap();
            (short, std::env::current_dir().unwrap(), lower)
        });
        let (short, working, lower) = worker.join().unwrap();
        assert!(short.starts_with("index=off,lowerdir=0/fs:1/fs:") && short.len() < LONGEST_OPTIONS, "{short}");
        assert_eq!(working, dir.path().join("snapshots").canonicalize().unwrap());
        assert!(lower.len() > LONGEST_OPTIONS);
        assert_eq!(shorten(vec!["a=1", "lowerdir=/x:/y"]).unwrap(), "a=1,lowerdir=/x:/y");
    }
}
