//! Becoming a member of a cluster and ceasing to be one, on this machine's side. What takes place of what was there is moved at
//! the next start, when nothing uses it; each step can be interrupted and is done again.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::Context;
use rusqlite::{Connection, OpenFlags};
use toft_model::{ids::NodeId, name::Name};
use uuid::Uuid;

use super::{Hinted, directories::Directories, identity::Identity};
use crate::{
    config::{Config, NodeRole},
    consensus::{self, types::Role},
    enroll::{self, Answered, Joining, Place, Token},
    files::write_whole,
};

/// Port of the door for members.
pub(super) const PORT: u16 = 7444;

/// What a person wants of a join.
pub struct Wish {
    /// A member of the cluster.
    pub address: String,
    /// What lets in.
    pub token: Token,
    /// Another name than the configuration's.
    pub name: Option<Name>,
    /// What it is to do, if somebody says so.
    pub role: Option<NodeRole>,
    /// Labels beside those of the token.
    pub labels: BTreeMap<String, String>,
    /// Whether what is here may be put aside.
    pub discard: bool,
}

/// What keeps a machine from joining another cluster.
#[derive(Debug, thiserror::Error)]
#[error("this node has {0} of its own")]
struct Occupied(String);

fn staged(data: &Path) -> PathBuf {
    data.join("joining")
}

fn leaving(data: &Path) -> PathBuf {
    data.join("leaving")
}

/// Where this node listens for members: as configured, as it did before, or on all addresses. A private appliance takes a free
/// port when the usual one is taken.
pub(super) fn listens(config: &Config) -> anyhow::Result<SocketAddr> {
    if let Some(address) = config.cluster.bind {
        return Ok(address);
    }
    let free = |address: SocketAddr| std::net::TcpListener::bind(address).and_then(|listener| listener.local_addr());
    let all: [SocketAddr; 2] = [([0u16; 8], PORT).into(), ([0u8; 4], PORT).into()];
    let mut failed = None;
    for address in all {
        match free(address) {
            Ok(address) => return Ok(address),
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && config.paths.private => {
                return free(SocketAddr::new(address.ip(), 0)).context("finding a free port for members");
            }
            Err(error) => failed = Some(error),
        }
    }
    let error = failed.unwrap_or_else(|| std::io::Error::other("no address"));
    let hint = "choose another one: `bind` in section [cluster] of the configuration";
    Err(Hinted::new(error, hint)).with_context(|| format!("listening for members on port {PORT}"))
}

/// Asks the cluster to let this machine in, and keeps what it gives for the next start.
pub(super) async fn ask(config: &Config, data: &Path, node_id: NodeId, wish: Wish) -> anyhow::Result<Answered> {
    let listen = listens(config)?;
    let reach = match (&config.cluster.address, listen.ip().is_unspecified()) {
        (Some(address), _) => address.clone(),
        (None, false) => listen.to_string(),
        (None, true) => String::new(),
    };
    let role = wish.role.or(config.cluster.role_chosen.then_some(config.cluster.role));
    let name_chosen = wish.name.is_some() || config.node.name_chosen;
    let joining = Joining {
        address: &wish.address,
        token: &wish.token,
        node_id,
        name: (wish.name.unwrap_or_else(|| config.node.name.clone()), name_chosen),
        role: role.map(|role| match role {
            NodeRole::Server => Role::Server,
            NodeRole::Witness => Role::Witness,
        }),
        labels: wish.labels,
        listen,
        reach,
    };
    tracing::info!("joining the cluster at {}", wish.address);
    enroll::join(joining, &staged(data)).await.map_err(|error| {
        let hint = error.hint();
        Hinted::new(error, hint).into()
    })
}

/// The same for a machine on which no daemon runs.
pub async fn join(config: &Config, wish: Wish) -> anyhow::Result<Answered> {
    let directories = Directories::locked(&config.paths)?;
    finish(directories.data())?;
    if !wish.discard {
        refuse_occupied(&directories.consensus().state)?;
    }
    let node_id = Identity::load_or_make(&directories)?.node_id;
    let config = remembered(config.clone(), &directories)?;
    ask(&config, directories.data(), node_id, wish).await
}

/// Whether this machine is a member of a cluster with others, by what lies on its disk.
fn refuse_occupied(state: &Path) -> anyhow::Result<()> {
    if !state.exists() {
        return Ok(());
    }
    let connection = Connection::open_with_flags(state, OpenFlags::SQLITE_OPEN_READ_ONLY)
        .with_context(|| format!("opening `{}`", state.display()))?;
    if let Some(found) = belongings(&connection).context("reading what this node has")? {
        return Err(occupied(found).into());
    }
    Ok(())
}

pub(super) fn occupied(found: String) -> Hinted {
    let hint = "back up what you need (`toft backup create`, `toft volume backup`); --discard joins all the same and puts the rest aside, in a folder of the data directory";
    Hinted::new(Occupied(found), hint)
}

/// What a state holds that would be left behind.
pub(super) fn belongings(connection: &Connection) -> rusqlite::Result<Option<String>> {
    let mut found = Vec::new();
    for (what, table) in
        [("workload", "workloads"), ("volume", "volumes"), ("secret", "secrets"), ("login", "registries")]
    {
        let count: u64 = connection.query_row(&format!("SELECT COUNT(*) FROM {table}"), [], |row| row.get(0))?;
        if count > 0 {
            found.push(format!("{count} {what}{}", if count == 1 { "" } else { "s" }));
        }
    }
    let nodes: u64 = connection.query_row("SELECT COUNT(*) FROM nodes", [], |row| row.get(0))?;
    if nodes > 1 {
        found.push(format!("a cluster of {nodes} nodes"));
    }
    Ok((!found.is_empty()).then(|| found.join(", ")))
}

/// Notes that this machine is to forget its cluster at the next start.
pub(super) fn leave(data: &Path) -> anyhow::Result<()> {
    write_whole(&leaving(data), 0o600, b"").context("writing down that this node leaves")
}

/// The same where no daemon runs, at once.
pub fn leave_alone(config: &Config) -> anyhow::Result<()> {
    let directories = Directories::locked(&config.paths)?;
    leave(directories.data())?;
    finish(directories.data())
}

/// Ends what was begun: puts aside what was there before a join, forgets what was there before leaving.
pub(super) fn finish(data: &Path) -> anyhow::Result<()> {
    if leaving(data).exists() {
        forget(data).context("forgetting the former cluster")?;
    }
    let folder = staged(data);
    if let Some(place) = Place::find(&folder)?
        && let Some(node_id) = place.node_id
    {
        let aside = data.join(format!("before-join-{}", now_ms()));
        for name in STATE.into_iter().chain(["cluster", "ledger.redb", "volumes"]) {
            move_to(&data.join(name), &aside)?;
        }
        become_node(data, node_id)?;
        fs::rename(&folder, data.join("cluster")).context("putting the cluster's keys in place")?;
        if aside.exists() {
            tracing::info!("what was here before is kept in `{}`", aside.display());
        }
    }
    let folder = data.join("cluster");
    let place = Place::load(&folder)?;
    if let Some(identity) = &place.adopt {
        let files = consensus::Files::under(data);
        if !files.log.exists() {
            consensus::adopt(&files, identity).map_err(|error| {
                let hint = error.hint();
                Hinted::new(error, hint)
            })?;
            tracing::info!("this node is member {} of cluster {}", identity.member_id, identity.cluster_id);
        }
        Place { adopt: None, ..place }.save(&folder)?;
    }
    Ok(())
}

/// Files of the state, in the order in which they are moved: the log, which says whose it is, last.
const STATE: [&str; 5] = ["state.sqlite-shm", "state.sqlite-wal", "state.sqlite", "snapshots", "raft.redb"];

fn forget(data: &Path) -> anyhow::Result<()> {
    move_to(&data.join("volumes"), &data.join(format!("left-{}", now_ms())))?;
    // Keys first: they are the cluster's.
    for name in ["cluster", "joining"].into_iter().chain(STATE).chain(["ledger.redb"]) {
        let path = data.join(name);
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        match removed {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("removing `{}`", path.display()));
            }
            _ => {}
        }
    }
    become_node(data, NodeId(Uuid::now_v7()))?;
    fs::remove_file(leaving(data)).context("noting that this node has left")
}

fn become_node(data: &Path, node_id: NodeId) -> anyhow::Result<()> {
    let path = data.join("node.json");
    let known = Identity::read(&path)?;
    if known.as_ref().is_some_and(|known| known.node_id == node_id && !known.claimed) {
        return Ok(());
    }
    let subnet = known.and_then(|known| known.subnet);
    Identity { node_id, subnet, claimed: false }.write(&path)
}

/// Moves what is there and not an empty folder.
fn move_to(path: &Path, folder: &Path) -> anyhow::Result<()> {
    if !path.exists() || fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none()) {
        return Ok(());
    }
    let Some(name) = path.file_name() else { return Ok(()) };
    fs::create_dir_all(folder).with_context(|| format!("making `{}`", folder.display()))?;
    fs::rename(path, folder.join(name)).with_context(|| format!("moving `{}`", path.display()))
}

fn now_ms() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis())
}

/// The configuration, and under it what this member remembers.
pub(super) fn remembered(mut config: Config, directories: &Directories) -> anyhow::Result<Config> {
    let place = Place::load(&directories.cluster())?;
    config.cluster.bind = config.cluster.bind.or(place.listen);
    if let Some(name) = place.name.filter(|_| !config.node.name_chosen) {
        config.node.name = name;
    }
    if let Some(role) = place.role.filter(|_| !config.cluster.role_chosen) {
        config.cluster.role = match role {
            Role::Server => NodeRole::Server,
            Role::Witness => NodeRole::Witness,
        };
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use toft_model::ids::ClusterId;

    use super::*;
    use crate::consensus::types::Identity as Member;

    fn write(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn lone(data: &Path) {
        for name in
            ["state.sqlite", "state.sqlite-wal", "raft.redb", "ledger.redb", "cluster/authority.key", "volumes/pg/x"]
        {
            write(&data.join(name), "old");
        }
        Identity { node_id: NodeId(Uuid::from_u128(1)), subnet: None, claimed: true }
            .write(&data.join("node.json"))
            .unwrap();
    }

    fn let_in(data: &Path) -> Member {
        let identity = Member { cluster_id: ClusterId(Uuid::from_u128(9)), member_id: 17 };
        write(&data.join("joining/member.key"), "new");
        let place = Place {
            node_id: Some(NodeId(Uuid::from_u128(2))),
            adopt: Some(identity.clone()),
            members: vec![1],
            ..Place::default()
        };
        place.save(&data.join("joining")).unwrap();
        identity
    }

    #[test]
    fn a_join_puts_aside_what_was_there_and_may_be_interrupted_anywhere() {
        for done in 0..=STATE.len() {
            let folder = tempfile::tempdir().unwrap();
            let data = folder.path();
            lone(data);
            let_in(data);
            // As far as it had come when the power went.
            for name in &STATE[..done] {
                move_to(&data.join(name), &data.join("before-join-1")).unwrap();
            }
            finish(data).unwrap();
            assert_eq!(fs::read_to_string(data.join("cluster/member.key")).unwrap(), "new");
            assert!(
                data.join("raft.redb").exists()
                    && !data.join("state.sqlite").exists()
                    && !data.join("joining").exists()
            );
            let identity = Identity::read(&data.join("node.json")).unwrap().unwrap();
            assert_eq!((identity.node_id, identity.claimed), (NodeId(Uuid::from_u128(2)), false));
            let kept = |name: &str| {
                let aside = fs::read_dir(data).unwrap().map(|entry| entry.unwrap().path());
                aside
                    .filter(|path| path.display().to_string().contains("before-join"))
                    .any(|path| path.join(name).exists())
            };
            assert!(kept("raft.redb") && kept("state.sqlite") && kept("cluster/authority.key") && kept("volumes/pg/x"));
            let log = fs::read(data.join("raft.redb")).unwrap();
            finish(data).unwrap();
            assert_eq!(fs::read(data.join("raft.redb")).unwrap(), log, "it is done once");
        }
    }

    #[test]
    fn a_join_that_got_no_answer_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        lone(folder.path());
        write(&folder.path().join("joining/member.key"), "new");
        finish(folder.path()).unwrap();
        assert_eq!(fs::read_to_string(folder.path().join("raft.redb")).unwrap(), "old");
    }

    #[test]
    fn who_leaves_keeps_volumes_and_nothing_of_the_cluster() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path();
        lone(data);
        leave(data).unwrap();
        finish(data).unwrap();
        let mut left: Vec<String> =
            fs::read_dir(data).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        left.sort();
        assert!(left.len() == 2 && left[0].starts_with("left-") && left[1] == "node.json", "{left:?}");
        assert_eq!(fs::read_to_string(data.join(&left[0]).join("volumes/pg/x")).unwrap(), "old");
        assert_ne!(Identity::read(&data.join("node.json")).unwrap().unwrap().node_id, NodeId(Uuid::from_u128(1)));
    }
}
