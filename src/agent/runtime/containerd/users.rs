//! Who a container's process runs as. Numbers are taken as they are; names are looked up in the image's own
//! `/etc/passwd` and `/etc/group`, whose paths are resolved inside the image so that no link leads out of it.

use std::{
    collections::HashMap,
    fs::File,
    io::Read,
    os::fd::{AsFd, OwnedFd},
    sync::{Mutex, PoisonError},
};

use containerd_client::{services::v1::snapshots::ViewSnapshotRequest, types::Mount};
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use uuid::Uuid;

use super::{
    client::{SLOW, call},
    resolve::{ResolvedImage, Unusable},
    unpack::Snapshots,
};
use crate::agent::runtime::RuntimeError;
use toft_model::workload::ProcessSpec;

/// Largest `/etc/passwd` or `/etc/group` that is read.
const MOST_BYTES: u64 = 1 << 20;
const LOOKING: &str = "looking up the image's user";

/// User and groups of a process.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Identity {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Further groups.
    pub(super) groups: Vec<u32>,
}

/// What was looked up so far, by the digest of the image's config and what was asked for.
#[derive(Debug, Default)]
pub(super) struct Identities(Mutex<HashMap<(String, Wanted), Identity>>);

/// Users and groups as they are asked for.
type Wanted = (String, Vec<String>);

/// Lookups kept; beyond, all are forgotten.
const MOST_KNOWN: usize = 1024;

impl Identities {
    /// The identity that an order asks for, or else the image.
    pub(super) async fn get(
        &self,
        snapshots: Snapshots<'_>,
        image: &ResolvedImage,
        process: &ProcessSpec,
    ) -> Result<Identity, Unusable> {
        let wanted = process.user.as_ref().map_or(image.config.config.user.trim(), |user| user.as_str());
        let further: Vec<String> = process.groups.iter().map(|group| group.as_str().to_owned()).collect();
        if further.is_empty()
            && let Some(identity) = by_number(wanted)
        {
            return Ok(identity);
        }
        let key = (image.config_descriptor.digest.clone(), (wanted.to_owned(), further.clone()));
        if let Some(known) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Ok(known.clone());
        }
        let (passwd, group) = read_databases(snapshots, image).await?;
        let identity = by_number(wanted).map_or_else(|| by_name(wanted, &passwd, &group), Ok);
        let mut identity = identity.map_err(Unusable::Image)?;
        for name in &further {
            let id = group_id(name, &group).map_err(Unusable::Image)?;
            if id != identity.gid && !identity.groups.contains(&id) {
                identity.groups.push(id);
            }
        }
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST_KNOWN {
            known.clear();
        }
        known.insert(key, identity.clone());
        Ok(identity)
    }
}

/// What needs no look into the image.
fn by_number(wanted: &str) -> Option<Identity> {
    match wanted.split_once(':') {
        None if matches!(wanted, "" | "0" | "root") => Some(Identity::default()),
        None => None,
        Some((user, group)) => Some(Identity { uid: user.parse().ok()?, gid: group.parse().ok()?, groups: Vec::new() }),
    }
}

/// The identity by that name inside a root that is open.
pub(super) fn inside(root: &OwnedFd, wanted: &str) -> Result<Identity, String> {
    if let Some(identity) = by_number(wanted) {
        return Ok(identity);
    }
    let read = |path| read_inside(root, path).map_err(|error| format!("its /{path} cannot be read: {error}"));
    by_name(wanted, &read("etc/passwd")?, &read("etc/group")?)
}

/// A group by its number or its name in `group`.
fn group_id(name: &str, group: &str) -> Result<u32, String> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let mut groups = group.lines().map(|line| line.split(':').collect::<Vec<_>>());
    groups
        .find(|fields| fields.first() == Some(&name))
        .and_then(|fields| fields.get(2)?.parse().ok())
        .ok_or_else(|| format!("its group `{name}` is not in its /etc/group"))
}

fn by_name(wanted: &str, passwd: &str, group: &str) -> Result<Identity, String> {
    let (user, group_wanted) = wanted.split_once(':').map_or((wanted, None), |(user, group)| (user, Some(group)));
    let number = user.parse::<u32>().ok();
    let entry = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| {
        fields.first() == Some(&user) || number.is_some_and(|n| fields.get(2).is_some_and(|f| f.parse() == Ok(n)))
    });
    let field = |at: usize| entry.as_ref().and_then(|fields| fields.get(at)?.parse::<u32>().ok());
    let uid = field(2).or(number).ok_or_else(|| format!("its user `{user}` is not in its /etc/passwd"))?;
    let groups = group.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let gid = match group_wanted {
        None => field(3).unwrap_or(0),
        Some(name) => group_id(name, group)?,
    };
    let name = entry.as_ref().and_then(|fields| fields.first().copied()).unwrap_or(user);
    let further = if group_wanted.is_some() {
        Vec::new()
    } else {
        let member = |fields: &Vec<&str>| fields.get(3).is_some_and(|list| list.split(',').any(|m| m.trim() == name));
        groups.filter(member).filter_map(|fields| fields.get(2)?.parse().ok()).filter(|g| *g != gid).collect()
    };
    Ok(Identity { uid, gid, groups: further })
}

/// Reads both files from a view of the image; a missing one reads as empty.
async fn read_databases(snapshots: Snapshots<'_>, image: &ResolvedImage) -> Result<(String, String), Unusable> {
    let Some(top) = image.chain.last() else { return Ok(Default::default()) };
    let key = format!("toft-users-{}", Uuid::new_v4());
    let message = ViewSnapshotRequest {
        snapshotter: snapshots.snapshotter.to_owned(),
        key: key.clone(),
        parent: top.clone(),
        labels: Default::default(),
    };
    let client = snapshots.client;
    let request = client.leased(message, snapshots.lease);
    let mounts = call(LOOKING, SLOW, client.snapshots().view(request)).await.map_err(RuntimeError::from)?.mounts;
    let read = tokio::task::spawn_blocking(move || read_mounted(mounts)).await;
    snapshots.remove(&key).await?;
    let failed = |reason: String| Unusable::Runtime(RuntimeError::Failed { doing: LOOKING, reason });
    read.map_err(|error| failed(error.to_string()))?.map_err(|error| failed(error.to_string()))
}

fn read_mounted(mounts: Vec<Mount>) -> std::io::Result<(String, String)> {
    let root = super::root::mount_apart(mounts)?;
    Ok((read_inside(&root, "etc/passwd")?, read_inside(&root, "etc/group")?))
}

fn read_inside(root: &OwnedFd, path: &str) -> std::io::Result<String> {
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let file = match openat2(root.as_fd(), path, how) {
        Ok(file) => File::from(file),
        Err(nix::Error::ENOENT | nix::Error::ENOTDIR | nix::Error::ELOOP) => return Ok(String::new()),
        Err(error) => return Err(error.into()),
    };
    if !file.metadata()?.is_file() {
        return Ok(String::new());
    }
    let mut bytes = Vec::new();
    file.take(MOST_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:web:/:/bin/false\nbroken\n";
    const GROUP: &str = "root:x:0:\nwww:x:34:web\nlog:x:40:web,root\n";

    #[test]
    fn names_are_looked_up_and_numbers_are_not() {
        let check = |wanted: &str, uid, gid, groups: &[u32]| {
            let got = by_number(wanted).map_or_else(|| by_name(wanted, PASSWD, GROUP), Ok).unwrap();
            assert_eq!(got, Identity { uid, gid, groups: groups.to_vec() }, "{wanted}");
        };
        check("", 0, 0, &[]);
        check("root", 0, 0, &[]);
        check("7:8", 7, 8, &[]);
        check("web", 33, 34, &[40]);
        check("33", 33, 34, &[40]);
        check("web:log", 33, 40, &[]);
        check("1000", 1000, 0, &[]);
        check("1000:log", 1000, 40, &[]);
    }

    #[test]
    fn unknown_names_are_told() {
        assert!(by_name("nobody", PASSWD, GROUP).unwrap_err().contains("`nobody`"));
        assert!(by_name("web:none", PASSWD, GROUP).unwrap_err().contains("`none`"));
    }
}
