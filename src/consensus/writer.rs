//! The one thread that writes. It takes all proposals that wait, applies them in one transaction, and answers after the
//! commit.

use rusqlite::{Connection, TransactionBehavior};
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
                let moved = reached != index;
                index = reached;
                for (proposal, answer) in batch.drain(..).zip(answers) {
                    // Whoever asked may have gone; the command is applied all the same.
                    drop(proposal.answer.send(Ok(answer)));
                }
                if moved {
                    applied.send_replace(index);
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

/// Applies a batch in one transaction; refused commands leave no trace.
fn commit(connection: &mut Connection, index: u64, batch: &[Proposal]) -> rusqlite::Result<(u64, Vec<Applied>)> {
    let mut transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut reached = index;
    let mut answers = Vec::with_capacity(batch.len());
    for proposal in batch {
        let savepoint = transaction.savepoint()?;
        let answer = apply(&savepoint, reached + 1, &proposal.command)?;
        if answer.is_ok() {
            savepoint.commit()?;
            reached += 1;
        }
        answers.push(answer);
    }
    if reached != index {
        transaction.commit()?;
    }
    Ok((reached, answers))
}
