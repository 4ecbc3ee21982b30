//! Opens log and state, checks both, and starts consensus.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};
use openraft::{SnapshotPolicy, StorageHelper, storage::RaftLogStorage};
use rusqlite::{Connection, ErrorCode, config::DbConfig};
use toft_model::state::{MigrateError, SCHEMA_VERSION, migrate, schema_version};
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot, watch},
};
use tokio_util::sync::CancellationToken;

use super::{
    compact::{self, Limits},
    copy,
    edition::rehearse_migration,
    executor::Executor,
    found::{self, OpenError, Parts},
    handle::{Handle, HandleParts},
    leader::Leadership,
    log_store::{LogSize, LogStore, needs_others},
    membership,
    network::{Admission, Contact, Doorway, Network, Peers, Services, Transport, call_others, serve},
    propose, short,
    space::Space,
    state_machine::{Readers, StateMachine},
    types::{Fatal, Identity, Member, MemberId, Raft, StorageError, StoredMembership},
};
use crate::observe::chain;

/// Longest wait for a lock that another connection holds.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Proposals that may wait.
const WAITING: usize = 4096;
/// Longest wait at the start for a member that stands alone to apply what its log holds.
const REPLAY_TIMEOUT: Duration = Duration::from_secs(120);

/// Longest wait for the files to be closed.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Time for telling those who wait for an answer that there will be none.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Where consensus keeps its files.
#[derive(Debug, Clone)]
pub struct Files {
    /// The state, a SQLite database.
    pub state: PathBuf,
    /// The log, a redb database.
    pub log: PathBuf,
    /// Folder of snapshots.
    pub snapshots: PathBuf,
}

impl Files {
    /// The usual names in a folder.
    pub fn under(folder: &Path) -> Self {
        Self { state: folder.join("state.sqlite"), log: folder.join("raft.redb"), snapshots: folder.join("snapshots") }
    }
}

/// A member that is open.
pub struct Opened {
    /// What other rooms see.
    pub handle: Handle,
    /// Ends when the last handle is gone or something failed for good; the daemon owns it.
    pub task: BoxFuture<'static, ()>,
    /// Lets the other members in.
    pub door: Door,
}

/// Answers the other members, at one place or at several.
#[derive(Clone)]
pub struct Door {
    raft: Raft,
    peers: Arc<Peers>,
    identity: Identity,
    transport: Transport,
    services: Arc<Services>,
    /// Where consensus runs: what the others send is taken there without a detour.
    runtime: tokio::runtime::Handle,
}

impl Door {
    /// While no leader is heard of, calls the other members, so that they can speak with this one through that where they reach
    /// it in no other way. `own` is where this member answers; `contact` is called while no members are known.
    pub async fn call_others(self, own: SocketAddr, contact: Option<Contact>) {
        call_others(self.raft, self.peers, own, contact).await;
    }

    /// Answers until `cancel`. While this member knows no others it takes the calls of those that are `trusted`.
    pub async fn serve(
        self,
        listener: TcpListener,
        admission: Arc<dyn Admission>,
        trusted: Vec<MemberId>,
        cancel: CancellationToken,
    ) {
        let Self { raft, peers, identity, transport, services, runtime } = self;
        let elsewhere = tokio::runtime::Handle::current();
        let doorway = Doorway { raft, peers, identity, services, elsewhere, trusted };
        let cancel = cancel.child_token();
        // When this future is dropped, what runs elsewhere ends too.
        let _end = cancel.clone().drop_guard();
        let answering = runtime.spawn(async move {
            if let Err(error) = serve(listener, &transport, doorway, admission, cancel).await {
                tracing::error!(error = chain(&error), "the door for other members could not be opened");
            }
        });
        if let Err(error) = answering.await {
            tracing::error!(%error, "the door for other members has ended");
        }
    }
}

/// Opens what is there, or founds a cluster with `me` as its only member, and starts.
pub async fn open(files: &Files, me: Member, transport: Transport) -> Result<Opened, OpenError> {
    open_with(files, me, transport, Limits::default().staggered()).await
}

/// The same with a log of another length.
pub(super) async fn open_with(
    files: &Files,
    me: Member,
    transport: Transport,
    limits: Limits,
) -> Result<Opened, OpenError> {
    let (opening, founder) = (files.clone(), me.clone());
    let parts = match tokio::task::spawn_blocking(move || found::prepare(&opening, &founder)).await {
        Ok(parts) => parts?,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    };
    start(parts, files, (me, transport), limits).await
}

/// Starts on log and state that belong together.
pub(super) async fn start(
    parts: Parts,
    files: &Files,
    (me, transport): (Member, Transport),
    limits: Limits,
) -> Result<Opened, OpenError> {
    let Parts { log, state, identity } = parts;
    let failed = |error: Fatal| OpenError::Consensus(error.to_string());
    let bounds = log.state().map_err(|source| OpenError::of_log(&files.log, source))?;
    let (log_waits, log_waiting) = watch::channel(false);
    let (state_waits, state_waiting) = watch::channel(false);
    let (log, log_end) = LogStore::start(log, log_waits).map_err(|source| OpenError::of_log(&files.log, source))?;
    let readers = Readers::new(files.state.clone());
    let (state, state_end) = StateMachine::start(state, readers, files.snapshots.clone(), state_waits)
        .map_err(|source| OpenError::of_state(&files.state, source))?;
    // A power cut may take from the state what is in a snapshot.
    let ahead = state.snapshot_ahead(bounds.last).await;
    let log = match ahead.map_err(|source| OpenError::of_state(&files.state, source))? {
        Some(committed) => log.knowing(committed),
        None => log,
    };
    // What is in no log has to be in a snapshot. openraft would make one in some of these cases, and wait for room.
    let applied = *state.applied().borrow();
    let last = bounds.last.or(bounds.purged).map_or(0, |last| last.index);
    let unlogged = if applied > last { Some(applied) } else { bounds.purged.map(|purged| purged.index) };
    if let Some(index) = unlogged {
        let had = state.have_snapshot(index).await;
        had.map_err(|source| OpenError::of_state(&files.snapshots, source))?;
    }
    let peers = Arc::new(Peers::new(&identity, &transport));
    let network = Network::new(Arc::clone(&peers), Arc::clone(log.ahead()), log.texts());
    lead_no_longer(&log, &state, identity.member_id).await.map_err(|e| OpenError::Consensus(e.to_string()))?;
    let config = Arc::new(config(&limits, log.ahead().needs_others()));
    let executor = Executor::start().map_err(|error| OpenError::Consensus(error.to_string()))?;
    let raft = executor.run(Raft::new(identity.member_id, config, network, log.clone(), state.clone()));
    // What takes long here is a snapshot that finds no room.
    let raft = match tokio::time::timeout(REPLAY_TIMEOUT, raft).await {
        Ok(Some(raft)) => raft.map_err(failed)?,
        Ok(None) => return Err(OpenError::Consensus("it ended".into())),
        Err(_) => return Err(OpenError::DiskFull { path: files.snapshots.clone() }),
    };
    let size = log.size();
    let folder = files.log.parent().unwrap_or(Path::new("/")).to_owned();
    let (proposals, receiver) = mpsc::channel(WAITING);
    let (leadership, watching) = Leadership::new(&raft, &peers);
    let services = Arc::new(Services::new(raft.clone(), Arc::clone(&peers), identity.clone()));
    let parts = HandleParts {
        raft: raft.clone(),
        peers: Arc::clone(&peers),
        services: Arc::clone(&services),
        identity: identity.clone(),
        proposals,
        leadership: leadership.clone(),
    };
    let waits = [log_waiting, state_waiting];
    let handle = Handle::new(parts, &state, Space::of(folder, waits.clone()));
    drop((log, state));
    replay(&raft).await?;
    let runtime = executor.handle().clone();
    let door = Door { raft: raft.clone(), peers: Arc::clone(&peers), identity, transport, services, runtime };
    let way = propose::Way { raft: raft.clone(), peers: Arc::clone(&peers), leadership, applied: handle.watch() };
    let proposing = propose::run(way, receiver);
    let running = run(Running { raft, peers, waits, me, limits }, proposing, watching, size, [log_end, state_end]);
    let task = async move {
        executor.run(running).await;
    }
    .boxed();
    Ok(Opened { handle, task, door })
}

/// A member that led several sent entries that its disk may have lost. openraft would let it go on in the same term, and
/// give their positions to others; it is to be elected anew.
pub(super) async fn lead_no_longer(log: &LogStore, state: &StateMachine, me: MemberId) -> Result<(), StorageError> {
    let (mut log, mut state) = (log.clone(), state.clone());
    let membership = StorageHelper::new(&mut log, &mut state).get_membership().await?;
    let effective = membership.effective();
    let members = StoredMembership::new(*effective.log_id(), effective.membership().clone());
    if let Some(mut vote) = log.read_vote().await?
        && needs_others(&members)
        && vote.committed
        && vote.leader_id().voted_for() == Some(me)
    {
        vote.committed = false;
        log.save_vote(&vote).await?;
    }
    log.ahead().allow(me, &members);
    Ok(())
}

struct Running {
    raft: Raft,
    peers: Arc<Peers>,
    /// Whether the writer of the log, or that of the state, waits for room.
    waits: [watch::Receiver<bool>; 2],
    me: Member,
    limits: Limits,
}

async fn run(
    running: Running,
    proposing: impl Future<Output = ()>,
    watching: impl Future<Output = ()>,
    size: watch::Receiver<LogSize>,
    ends: [oneshot::Receiver<()>; 2],
) {
    let Running { raft, peers, waits, me, limits } = running;
    let [mut log_end, mut state_end] = ends;
    let mut proposing = std::pin::pin!(proposing);
    let failed = tokio::select! {
        () = &mut proposing => false,
        () = compact::run(raft.clone(), size, limits) => true,
        () = membership::keep(raft.clone(), Arc::clone(&peers), me) => true,
        () = short::keep(raft.clone(), Arc::clone(&peers), waits) => true,
        () = watching => true,
        () = failure(raft.clone()) => true,
        _ = &mut log_end => {
            tracing::error!("the thread that writes the log has ended");
            true
        }
        _ = &mut state_end => {
            tracing::error!("the thread that writes the state has ended");
            true
        }
    };
    if failed {
        // Whoever waits for an answer is told what happened; others may go on to ask.
        drop(tokio::time::timeout(LAST_WORDS, proposing).await);
    }
    membership::hand_over(&raft, &peers).await;
    match tokio::time::timeout(CLOSE_TIMEOUT, raft.shutdown()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(%error, "consensus did not end in order"),
        Err(_) => tracing::warn!("consensus waits for its disk and is left to itself"),
    }
    drop((raft, peers));
    // Both threads close their files when nobody can ask them for anything any more.
    let closed = async {
        for end in [log_end, state_end].into_iter().filter(|end| !end.is_terminated()) {
            drop(end.await);
        }
    };
    if tokio::time::timeout(CLOSE_TIMEOUT, closed).await.is_err() {
        tracing::warn!("log and state are still in use");
    }
}

fn config(limits: &Limits, needs_others: bool) -> openraft::Config {
    openraft::Config {
        // See `short`, which allows it.
        enable_elect: !needs_others,
        cluster_name: "toft".into(),
        heartbeat_interval: 200,
        // A member stands for election after the longer time and a random one between the two: 0.9 to 1.2 s after it heard
        // of the leader last, looked at every 0.3 s. Shorter ones would take a disk that is slow for a dead leader.
        election_timeout_min: 300,
        election_timeout_max: 600,
        // Of a whole snapshot, in milliseconds.
        install_snapshot_timeout: 600_000,
        max_payload_entries: 256,
        replication_lag_threshold: u64::MAX,
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: limits.kept,
        ..openraft::Config::default()
    }
}

/// A member that stands alone leads at once and applies all its log holds before anybody reads.
async fn replay(raft: &Raft) -> Result<(), OpenError> {
    let failed = |error: Fatal| OpenError::Consensus(error.to_string());
    let members = raft.with_raft_state(|state| state.membership_state.effective().voter_ids().collect::<Vec<_>>());
    let members = members.await.map_err(failed)?;
    let mut metrics = raft.metrics();
    let caught_up = metrics.wait_for(|now| {
        let alone = members == [now.id];
        let leads = now.current_leader == Some(now.id);
        let applied = now.last_applied.map(|id| id.index) == now.last_log_index;
        now.running_state.is_err() || !alone || leads && applied
    });
    match tokio::time::timeout(REPLAY_TIMEOUT, caught_up).await {
        Ok(Ok(now)) => now.running_state.clone().map_err(failed),
        Ok(Err(_)) => Err(OpenError::Consensus("it ended".into())),
        Err(_) => Err(OpenError::Consensus("applying the log took too long".into())),
    }
}

/// Ends when consensus has failed.
async fn failure(raft: Raft) {
    let mut metrics = raft.metrics();
    match metrics.wait_for(|now| now.running_state.is_err()).await {
        Ok(now) => {
            if let Err(error) = &now.running_state {
                tracing::error!(%error, "consensus has stopped; what was acknowledged is safe");
            }
        }
        Err(_) => tracing::error!("consensus has ended"),
    }
}

/// The writer's connection to a database that was checked and has our version. A file that is refused keeps every byte:
/// nothing is set that SQLite writes down, nor is its log moved into it, before it proved to be ours.
pub(super) fn prepare(path: &Path) -> Result<Connection, OpenError> {
    let failed = |source| OpenError::of(path, source);
    check_length(path)?;
    let mut connection = Connection::open(path).map_err(failed)?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(failed)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).map_err(failed)?;
    check(&connection, path)?;
    copy_before_migrating(&connection, path)?;
    migrate(&mut connection).map_err(|source| match source {
        MigrateError::Sqlite { source, .. } if is_full(&source) || is_damaged(&source) => failed(source),
        source => OpenError::Version { path: path.to_owned(), source },
    })?;
    rehearse_migration(&connection).map_err(failed)?;
    configure(&connection).map_err(failed)?;
    Ok(connection)
}

/// Keeps the file of an older version as `state.sqlite.v1`, for whoever has to go back.
fn copy_before_migrating(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    let failed = |source| OpenError::of(path, source);
    let version = schema_version(connection).map_err(failed)?.version;
    if version <= 0 || version >= SCHEMA_VERSION {
        return Ok(());
    }
    let beside = |extension: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".v{version}{extension}"));
        PathBuf::from(name)
    };
    let (kept, unfinished) = (beside(""), beside(".partial"));
    if kept.exists() {
        return Ok(());
    }
    drop(std::fs::remove_file(&unfinished));
    copy::copy(connection, &unfinished, |_, _| ()).map_err(|source| OpenError::of_copy(path, source))?;
    std::fs::rename(&unfinished, &kept).map_err(|source| OpenError::Io { path: kept, source })
}

pub(super) fn is_full(error: &rusqlite::Error) -> bool {
    // The shared memory beside the log is a file too, and has an error code of its own.
    let shared_memory =
        error.sqlite_error().is_some_and(|error| error.extended_code == rusqlite::ffi::SQLITE_IOERR_SHMSIZE);
    shared_memory || error.sqlite_error_code() == Some(ErrorCode::DiskFull)
}

/// What could not be done with the file, as a participle.
pub(super) fn failed_at(error: &rusqlite::Error) -> &'static str {
    use rusqlite::ffi::{
        SQLITE_IOERR_DELETE, SQLITE_IOERR_DIR_FSYNC, SQLITE_IOERR_FSYNC, SQLITE_IOERR_READ, SQLITE_IOERR_SHMMAP,
        SQLITE_IOERR_SHMOPEN, SQLITE_IOERR_SHMSIZE, SQLITE_IOERR_SHORT_READ, SQLITE_IOERR_TRUNCATE, SQLITE_IOERR_WRITE,
    };
    match error.sqlite_error().map(|error| error.extended_code) {
        Some(SQLITE_IOERR_READ | SQLITE_IOERR_SHORT_READ) => "read",
        Some(SQLITE_IOERR_WRITE) => "written",
        Some(SQLITE_IOERR_FSYNC | SQLITE_IOERR_DIR_FSYNC) => "flushed to the disk",
        Some(SQLITE_IOERR_TRUNCATE) => "made shorter",
        Some(SQLITE_IOERR_DELETE) => "freed of its log",
        Some(SQLITE_IOERR_SHMMAP | SQLITE_IOERR_SHMOPEN | SQLITE_IOERR_SHMSIZE) => "shared between connections",
        _ => "used",
    }
}

pub(super) fn is_damaged(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

/// SQLite takes a file of no (or one) byte for a new database and deletes the log beside it.
fn check_length(path: &Path) -> Result<(), OpenError> {
    let length = |path: &Path| std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file).map(|file| file.len());
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    let lost = match length(path) {
        Some(0) => length(Path::new(&log)).is_some_and(|log| log > 0),
        Some(1) => true,
        Some(_) => false,
        // Or one that is not there.
        None => !path.exists() && length(Path::new(&log)).is_some_and(|log| log > 0),
    };
    if lost {
        return Err(OpenError::Damaged { path: path.to_owned(), detail: "its content is gone".into() });
    }
    Ok(())
}

/// Sets what belongs to the connection that writes.
pub(super) fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    let mode: String = connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
    if mode != "wal" {
        tracing::warn!("the disk that holds the state allows no write-ahead log; every change waits for all readers");
    }
    connection.pragma_update(None, "foreign_keys", "ON")?;
    connection.pragma_update(None, "cache_size", -2048)?;
    // What a savepoint may have to take back is small, and would otherwise go to a temporary file.
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)?;
    keep_statements(connection, 64)
}

/// Lets a connection keep so many statements and never prepare one of them anew. SQLite would do so for most of them at each use: a
/// value that is bound could make another plan better, and the values are cleared in between.
/// (<https://sqlite.org/queryplanner-ng.html#qpstab>)
pub(super) fn keep_statements(connection: &Connection, count: usize) -> rusqlite::Result<()> {
    connection.set_prepared_statement_cache_capacity(count);
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map(drop)
}

fn check(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    match damage(connection).map_err(|e| OpenError::of(path, e))? {
        Some(detail) => Err(OpenError::Damaged { path: path.to_owned(), detail }),
        None => Ok(()),
    }
}

/// What is wrong with a database, if anything is. A page that the disk does not give is an error, and no damage.
pub(super) fn damage(connection: &Connection) -> rusqlite::Result<Option<String>> {
    let verdict: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if verdict == "ok" {
        return Ok(None);
    }
    // SQLite tells of both in words. A page of a tree has the code behind it; one of the free list, whose number was
    // checked before, can only be withheld.
    let code = match verdict.rsplit_once("error code=") {
        Some((_, code)) => code.trim().parse().ok(),
        None => verdict.contains("failed to get page").then_some(rusqlite::ffi::SQLITE_IOERR_READ),
    };
    match code.map(rusqlite::ffi::Error::new) {
        Some(error) if error.code != ErrorCode::DatabaseCorrupt => {
            Err(rusqlite::Error::SqliteFailure(error, Some(verdict)))
        }
        _ => Ok(Some(verdict)),
    }
}
