//! The one thread that writes the database.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use openraft::EntryPayload;
use rusqlite::{Connection, ErrorCode, TransactionBehavior};
use toft_model::state::{Applied, ClusterRow, Refusal, RefusalKind, Request, applied_index, apply_request, migrate};
use tokio::sync::{mpsc, oneshot, watch};

use super::{StateError, readers::Readers, text, written::Written};
use crate::{
    consensus::{
        edition::{own_format, rehearse_migration},
        open::configure,
        space::until_there_is_room,
        types::{Entry, Outcomes, StoredMembership},
    },
    observe::chain,
};

/// What the thread is asked to do.
pub(super) enum Order {
    /// Apply entries that are committed.
    Apply(Vec<Entry>, oneshot::Sender<Result<Vec<Outcomes>, StateError>>),
    /// Move everything to the disk.
    Flush(oneshot::Sender<Result<(), StateError>>),
    /// Put the database at this path in the place of the state.
    Replace(PathBuf, oneshot::Sender<Result<(), StateError>>),
}

/// The ends other threads hold.
pub(super) struct Ends {
    pub(super) orders: mpsc::Sender<Order>,
    /// The applied index.
    pub(super) applied: watch::Receiver<u64>,
    /// The index of the last entry that concerns the scheduler.
    pub(super) schedule: watch::Receiver<u64>,
    /// The rows that were written.
    pub(super) written: Written,
    /// Gives an error when the thread has ended.
    pub(super) end: oneshot::Receiver<()>,
}

pub(super) fn start(
    mut connection: Connection,
    readers: Arc<Readers>,
    waits: watch::Sender<bool>,
) -> Result<Ends, StateError> {
    let (orders, receiver) = mpsc::channel(16);
    let index = applied_index(&connection).map_err(StateError::of_database(readers.path()))?;
    let (applied_sender, applied) = watch::channel(index);
    let (schedule_sender, schedule) = watch::channel(index);
    let (ended, end) = oneshot::channel::<()>();
    let written = Written::default();
    written.watch(&mut connection).map_err(StateError::of_database(readers.path()))?;
    let kept = written.clone();
    std::thread::Builder::new()
        .name("state-writer".into())
        .spawn(move || {
            let told = Told { applied: applied_sender, schedule: schedule_sender, written: kept, waits };
            run(connection, receiver, &readers, &told);
            drop(readers);
            drop(ended);
        })
        .map_err(|source| StateError::File { verb: "served by a thread", path: "state".into(), source })?;
    Ok(Ends { orders, applied, schedule, written, end })
}

/// What the thread tells.
struct Told {
    applied: watch::Sender<u64>,
    schedule: watch::Sender<u64>,
    written: Written,
    waits: watch::Sender<bool>,
}

fn run(connection: Connection, mut orders: mpsc::Receiver<Order>, readers: &Readers, told: &Told) {
    let path = readers.path();
    let mut connection = Some(connection);
    while let Some(order) = orders.blocking_recv() {
        let Some(open) = connection.as_mut() else { return };
        match order {
            Order::Apply(entries, done) => {
                let outcome =
                    until_there_is_room(&told.waits, StateError::is_full, || apply_entries(open, path, &entries));
                let outcome = outcome.map(|done| {
                    // Before the index: who hears of it finds the rows.
                    told.written.tell();
                    // Before the answer: who has one finds it in the watch.
                    told.applied.send_replace(done.index);
                    if done.concerns_scheduler {
                        told.schedule.send_replace(done.index);
                    }
                    done.outcomes
                });
                drop(done.send(outcome));
            }
            Order::Flush(done) => drop(done.send(flush(open).map_err(StateError::of_database(path)))),
            Order::Replace(path, done) => {
                let outcome = until_there_is_room(&told.waits, StateError::is_full, || {
                    readers.without_readers(|| replace(&mut connection, readers, &path))
                });
                if let Some(open) = connection.as_mut()
                    && let Err(error) = told.written.watch(open)
                {
                    tracing::error!(error = chain(&error), "what is written cannot be followed");
                }
                told.written.tell_all();
                if let Ok(index) = &outcome {
                    told.applied.send_replace(*index);
                    told.schedule.send_replace(*index);
                }
                drop(done.send(outcome.map(|_| ())));
            }
        }
    }
    // Last of all: only a connection that writes tidies SQLite's own log away.
    readers.without_readers(|| drop(connection));
}

/// What came of applying entries.
struct Done {
    /// The last entry's index.
    index: u64,
    outcomes: Vec<Outcomes>,
    concerns_scheduler: bool,
}

/// Applies entries in one transaction; requests that are refused or fail leave no trace.
fn apply_entries(connection: &mut Connection, path: &Path, entries: &[Entry]) -> Result<Done, StateError> {
    let failed = StateError::of_database(path);
    let mut transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
    let mut outcomes = Vec::with_capacity(entries.len());
    let mut concerns_scheduler = false;
    let Some(last) = entries.last() else {
        return Ok(Done { index: applied_index(&transaction).map_err(failed)?, outcomes, concerns_scheduler });
    };
    for entry in entries {
        outcomes.push(match &entry.payload {
            EntryPayload::Blank => {
                // A new leader: what the one before did not decide is to be decided.
                concerns_scheduler = true;
                Outcomes::default()
            }
            EntryPayload::Membership(membership) => {
                concerns_scheduler = true;
                let stored = StoredMembership::new(Some(entry.log_id), membership.clone());
                ClusterRow::set_membership(&transaction, &text(&stored)?).map_err(failed)?;
                Outcomes::default()
            }
            EntryPayload::Normal(batch) => {
                let mut answers = Vec::with_capacity(batch.0.len());
                for request in batch.0.iter() {
                    // One that a newer toft wrote must not be passed over: the members would differ from then on.
                    let request: &Request = &serde_json::from_str(request.get())
                        .map_err(|e| StateError::Unknown { index: entry.log_id.index, detail: e.to_string() })?;
                    if request.format > own_format() {
                        let detail = format!("its format is {}, this toft knows {}", request.format, own_format());
                        return Err(StateError::Unknown { index: entry.log_id.index, detail });
                    }
                    let savepoint = transaction.savepoint().map_err(failed)?;
                    let answer = match apply_request(&savepoint, entry.log_id.index, request) {
                        Ok(answer) => answer,
                        Err(error) if fails_all(&error) => return Err(failed(error)),
                        Err(error) => Err(fault(&error)),
                    };
                    concerns_scheduler |= answer.is_ok() && request.command.concerns_scheduler();
                    finish(savepoint, &answer).map_err(failed)?;
                    answers.push(answer);
                }
                Outcomes(answers)
            }
        });
    }
    ClusterRow::advance(&transaction, last.log_id.index, &text(&last.log_id)?).map_err(failed)?;
    transaction.commit().map_err(failed)?;
    Ok(Done { index: last.log_id.index, outcomes, concerns_scheduler })
}

fn finish(savepoint: rusqlite::Savepoint<'_>, answer: &Applied) -> rusqlite::Result<()> {
    match answer {
        Ok(_) => savepoint.commit(),
        Err(_) => savepoint.finish(),
    }
}

/// A command that breaks a rule of the tables, or meets a row it cannot read, does so on every member alike.
fn fault(error: &rusqlite::Error) -> Refusal {
    tracing::error!(error = chain(error), "a command could not be applied");
    Refusal {
        kind: RefusalKind::Fault,
        message: format!("the command could not be applied: {error}"),
        hint: "this is a fault of toft; the log of the daemon says more".into(),
    }
}

/// Whether an error says something of the database, not just of the command (a broken rule, an unreadable row).
fn fails_all(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code().is_some_and(|code| code != ErrorCode::ConstraintViolation)
}

/// Moves SQLite's log into the database and both to the disk.
fn flush(connection: &Connection) -> rusqlite::Result<()> {
    connection.query_row("PRAGMA wal_checkpoint(FULL)", [], |_| Ok(()))
}

/// Puts another database in place. All connections are closed first and SQLite's own log is emptied: SQLite would take
/// what is left of it for a part of the new database.
fn replace(connection: &mut Option<Connection>, readers: &Readers, new: &Path) -> Result<u64, StateError> {
    let path = readers.path();
    let failed = StateError::of_database(path);
    let moved = |source| StateError::File { verb: "replaced", path: path.to_owned(), source };
    if let Some(old) = connection.as_ref() {
        let busy: bool = old.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0)).map_err(failed)?;
        if busy {
            let used = std::io::Error::new(std::io::ErrorKind::ResourceBusy, "another program reads it");
            return Err(moved(used));
        }
    }
    if let Some(old) = connection.take() {
        old.close().map_err(|(_, error)| failed(error))?;
    }
    // Not there any more when only opening it found no room before.
    if new.exists() {
        std::fs::rename(new, path).map_err(moved)?;
    }
    if let Some(folder) = path.parent() {
        std::fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(moved)?;
    }
    let mut opened = Connection::open(path).map_err(failed)?;
    // The one who made it may run an older toft.
    migrate(&mut opened).map_err(|e| StateError::Damaged(chain(&e).to_string()))?;
    rehearse_migration(&opened).map_err(failed)?;
    configure(&opened).map_err(failed)?;
    let index = applied_index(&opened).map_err(failed)?;
    *connection = Some(opened);
    Ok(index)
}
