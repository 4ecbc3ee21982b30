//! Sees to somebody who is attached to a container's own process: carries input and output, and leaves the process as it
//! is when they go, unless it runs in front of them.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use toft_model::{exec::ExecOutput, ids::InstanceId};
use tokio::{
    io::{AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex},
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    exec::{END_OF_TRANSMISSION, Left, PART, SILENCE, WAITING, Ways, obey},
    runtime::{
        attach::{Attachment, Output, Written},
        exec::ProcessHandle,
    },
};

/// How long the last input of one who left may take to reach the process.
const LAST_INPUT: Duration = Duration::from_secs(1);
const CUT_OFF: &str = "the output came faster than it was read, and the container does not wait for that";

/// Who is attached to which container, and who waits for whom.
#[derive(Clone, Default)]
pub struct Audience(Arc<watch::Sender<Seats>>);

/// How many are attached to each container; and a number that changes whenever a process was prepared.
#[derive(Default)]
pub struct Seats {
    taken: BTreeMap<InstanceId, usize>,
    prepared: u64,
}

/// Somebody's place. It is free again when this is dropped.
pub struct Seat {
    audience: Audience,
    id: InstanceId,
}

impl Audience {
    /// Lets those know who wait to attach that a process is there.
    pub fn prepared(&self) {
        self.0.send_modify(|seats| seats.prepared += 1);
    }

    /// What changes when a process was prepared, and at other times.
    pub fn watch(&self) -> watch::Receiver<Seats> {
        self.0.subscribe()
    }

    /// Waits until somebody is attached, for at most `limit`.
    pub async fn first(&self, id: InstanceId, limit: Duration) {
        let mut seats = self.0.subscribe();
        // Whoever comes later does without the first words.
        let _ = timeout(limit, seats.wait_for(|seats| seats.taken.contains_key(&id))).await;
    }

    /// Takes a place.
    pub fn seat(&self, id: InstanceId) -> Seat {
        self.0.send_modify(|seats| *seats.taken.entry(id).or_default() += 1);
        Seat { audience: self.clone(), id }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.audience.0.send_modify(|seats| {
            if let Some(count) = seats.taken.get_mut(&self.id) {
                *count -= 1;
            }
            seats.taken.retain(|_, count| *count > 0);
        });
    }
}

/// Runs until the process has ended, nobody is attached any more, or `stop`.
pub async fn run(attachment: Attachment, mut ways: Ways, stop: CancellationToken) {
    let Attachment { input, input_ended, mut output, process, terminal, foreground } = attachment;
    let process = &*process;
    let sends = input.is_some();
    let (waiting, taken) = duplex(WAITING);
    let told = &ways.output;
    let leaves_open = AtomicBool::new(!foreground);
    let used = obey(&mut ways.input, waiting, process);
    let fed = feed(input, taken, told, Fed { process, terminal, leaves_open: &leaves_open, ended: &input_ended });
    let watched = watch_over(&mut *output, process, told);
    tokio::pin!(used, fed, watched);
    let mut feeding = true;
    let last = loop {
        tokio::select! {
            last = &mut watched => break Some(last),
            () = stop.cancelled() => break Some(ExecOutput::Lost("toft is stopping on this node".to_owned())),
            () = &mut fed, if feeding => feeding = false,
            left = &mut used => {
                // The end of the daemon is not theirs.
                let hangs_up = left == Left::Gone && sends && foreground && !stop.is_cancelled();
                leaves_open.fetch_or(!hangs_up, Ordering::Relaxed);
                if feeding {
                    // What they sent last is still on its way.
                    let _ = timeout(LAST_INPUT, &mut fed).await;
                }
                if hangs_up {
                    close(process).await;
                }
                break None;
            }
        }
    };
    if let Some(last) = last {
        let _ = timeout(SILENCE, told.send(last)).await;
    }
}

/// Passes on what is written until the process has ended, and says how it did.
async fn watch_over(
    output: &mut dyn Output,
    process: &dyn ProcessHandle,
    told: &mpsc::Sender<ExecOutput>,
) -> ExecOutput {
    let ended = CancellationToken::new();
    let exit = async {
        let exit = process.wait().await;
        ended.cancel();
        exit
    };
    let carried = carry(output, told, &ended);
    tokio::pin!(exit, carried);
    let (exit, carried) = tokio::select! {
        // Who is cut off shall know it, however long the process goes on.
        carried = &mut carried => match carried {
            Ok(()) => (exit.await, Ok(())),
            Err(why) => return ExecOutput::Lost(why),
        },
        exit = &mut exit => (exit, carried.await),
    };
    match (exit, carried) {
        (_, Err(why)) => ExecOutput::Lost(why),
        (Ok(code), Ok(())) => ExecOutput::Exited(code),
        (Err(error), Ok(())) => ExecOutput::Lost(error.to_string()),
    }
}

/// Passes on what is written, to the end; `Err` says why not.
async fn carry(
    output: &mut dyn Output,
    told: &mpsc::Sender<ExecOutput>,
    ended: &CancellationToken,
) -> Result<(), String> {
    loop {
        let next = tokio::select! {
            biased;
            next = output.next() => next,
            () = silent(ended) => return Ok(()),
        };
        let message = match next {
            Ok(Some(Written::Stdout(bytes))) => ExecOutput::Stdout(bytes),
            Ok(Some(Written::Stderr(bytes))) => ExecOutput::Stderr(bytes),
            Ok(Some(Written::End)) => return Ok(()),
            Ok(None) => return Err(CUT_OFF.to_owned()),
            Err(error) => return Err(format!("the output broke off: {error}")),
        };
        if told.send(message).await.is_err() {
            return Ok(());
        }
    }
}

/// An ended process's logger may have died with what it had to say.
async fn silent(ended: &CancellationToken) {
    ended.cancelled().await;
    tokio::time::sleep(SILENCE).await;
}

/// Whom the input goes to.
struct Fed<'a> {
    process: &'a dyn ProcessHandle,
    terminal: bool,
    /// Whether the end of what is sent is none of the input.
    leaves_open: &'a AtomicBool,
    /// Cancelled when somebody has ended the input.
    ended: &'a CancellationToken,
}

/// Gives the process its input, and in the foreground the end of it.
async fn feed(
    input: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    mut taken: DuplexStream,
    told: &mpsc::Sender<ExecOutput>,
    Fed { process, terminal, leaves_open, ended }: Fed<'_>,
) {
    let mut input = input;
    let mut part = vec![0; PART];
    loop {
        let length = tokio::select! {
            biased;
            () = ended.cancelled(), if input.is_some() => {
                input = None;
                continue;
            }
            read = taken.read(&mut part) => match read {
                Ok(length @ 1..) => length,
                Ok(0) | Err(_) => break,
            },
        };
        if let Some(open) = &mut input {
            let given = tokio::select! {
                given = open.write_all(&part[..length]) => given.is_ok(),
                () = ended.cancelled() => false,
            };
            if !given {
                // Nobody reads it. The rest is taken all the same, so that who sends gets on.
                input = None;
            }
        }
        // Whoever sent it may have left.
        let _ = told.send(ExecOutput::Taken(length as u64)).await;
    }
    let Some(mut open) = input.filter(|_| !leaves_open.load(Ordering::Relaxed)) else { return };
    if terminal {
        // What a person types to end the input; a terminal that is closed hangs up.
        let _ = open.write_all(&[END_OF_TRANSMISSION]).await;
        return;
    }
    drop(open);
    close(process).await;
}

async fn close(process: &dyn ProcessHandle) {
    if let Err(error) = process.close_input().await {
        tracing::debug!(%error, "the input of a container could not be closed");
    }
}

#[cfg(test)]
mod tests;
