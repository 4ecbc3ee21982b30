//! The one thread that writes. It takes all proposals that wait, applies them in one transaction, and answers after the
//! commit.

use rusqlite::{Connection, ErrorCode, TransactionBehavior};
use toft_model::state::{Applied, Command, apply};
use tokio::sync::{mpsc, oneshot, watch};

use super::handle::ProposeError;

/// Most proposals in one transaction.
const BATCH: usize = 256;

/// A command with the place its answer goes to.
pub(super) struct Proposal {
    pub(super) command: Command,
    pub(super) answer: oneshot::Sender<Result<Applied, ProposeError>>,
}

/// The writer's two ends for the [`super::Handle`].
#[derive(Clone)]
pub(super) struct Writer {
    pub(super) proposals: mpsc::Sender<Proposal>,
    pub(super) applied: watch::Receiver<u64>,
}

/// Starts the thread. The future ends with it.
pub(super) fn start(connection: Connection, index: u64) -> (Writer, impl Future<Output = ()> + Send + 'static) {
    let (proposals, receiver) = mpsc::channel(1024);
    let (sender, applied) = watch::channel(index);
    let (ended, end) = oneshot::channel::<()>();
    let thread = std::thread::Builder::new().name("state-writer".into());
    let started = thread.spawn(move || {
        run(connection, index, receiver, &sender);
        drop(ended);
    });
    if let Err(error) = started {
        tracing::error!(%error, "the thread that writes the state could not be started");
    }
    (Writer { proposals, applied }, async move { drop(end.await) })
}

fn run(
    mut connection: Connection,
    mut index: u64,
    mut receiver: mpsc::Receiver<Proposal>,
    applied: &watch::Sender<u64>,
) {
    let mut batch = Vec::with_capacity(BATCH);
    while let Some(first) = receiver.blocking_recv() {
        batch.push(first);
        while batch.len() < BATCH {
            let Ok(next) = receiver.try_recv() else { break };
            batch.push(next);
        }
        match commit(&mut connection, index, &batch) {
            Ok((reached, answers)) => {
                // Before the answers: who has one finds it in the watch.
                if reached != index {
                    index = reached;
                    applied.send_replace(index);
                }
                for (proposal, answer) in batch.drain(..).zip(answers) {
                    // Whoever asked may have gone; the command is applied all the same.
                    drop(proposal.answer.send(answer));
                }
            }
            Err(error) => {
                tracing::error!(%error, "the state could not be written; {} commands were refused", batch.len());
                for proposal in batch.drain(..) {
                    drop(proposal.answer.send(Err(ProposeError::of(&error))));
                }
            }
        }
    }
}

/// What each command of a batch is answered.
type Answers = Vec<Result<Applied, ProposeError>>;

/// Applies a batch in one transaction; commands that are refused or fail leave no trace.
fn commit(connection: &mut Connection, index: u64, batch: &[Proposal]) -> rusqlite::Result<(u64, Answers)> {
    let mut transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut reached = index;
    let mut answers = Vec::with_capacity(batch.len());
    for proposal in batch {
        let savepoint = transaction.savepoint()?;
        let answer = match apply(&savepoint, reached + 1, &proposal.command) {
            Err(error) if fails_all(&error) => return Err(error),
            Err(error) => {
                tracing::error!(%error, "a command could not be applied");
                Err(ProposeError::of(&error))
            }
            Ok(answer) => Ok(answer),
        };
        if matches!(answer, Ok(Ok(_))) {
            savepoint.commit()?;
            reached += 1;
        } else {
            savepoint.finish()?;
        }
        answers.push(answer);
    }
    if reached != index {
        transaction.commit()?;
    }
    Ok((reached, answers))
}

/// Whether an error says something of the database, not just of the command (a broken rule, an unreadable row).
fn fails_all(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code().is_some_and(|code| code != ErrorCode::ConstraintViolation)
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use toft_model::{
        ids::WorkloadId,
        state::{PutMode, Reply, WorkloadRow, applied_index, migrate},
        workload::WorkloadSpec,
    };
    use uuid::Uuid;

    use super::*;

    fn put(name: &str) -> Proposal {
        let spec = Box::new(WorkloadSpec::new(name.parse().unwrap(), "demo".parse().unwrap()));
        let workload_id = WorkloadId(Uuid::now_v7());
        let command = Command::PutWorkload { workload_id, spec, mode: PutMode::Create, at_ms: 1 };
        Proposal { command, answer: oneshot::channel().0 }
    }

    #[test]
    fn a_batch_shares_one_transaction_and_the_refused_leave_no_trace() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection).unwrap();
        let commits = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&commits);
        let count = move || {
            counter.fetch_add(1, Ordering::Relaxed);
            false
        };
        connection.commit_hook(Some(count)).unwrap();
        let batch = ["web", "api", "web", "db"].map(put);
        let (reached, answers) = commit(&mut connection, 0, &batch).unwrap();
        let accepted = answers.iter().map(|answer| matches!(answer, Ok(Ok(Reply::Workload(_))))).collect::<Vec<_>>();
        assert_eq!(accepted, [true, true, false, true]);
        assert_eq!((reached, applied_index(&connection).unwrap()), (3, 3));
        assert_eq!(WorkloadRow::all(&connection).unwrap().len(), 3);
        let events: i64 = connection.query_row("SELECT MAX(seq) FROM events", [], |row| row.get(0)).unwrap();
        assert_eq!((events, commits.load(Ordering::Relaxed)), (3, 1));
        let (reached, _) = commit(&mut connection, reached, &["web", "db"].map(put)).unwrap();
        assert_eq!((reached, commits.load(Ordering::Relaxed)), (3, 1), "nothing but refusals was written");
    }
}
