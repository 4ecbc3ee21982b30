//! Sees to a process inside a container while somebody uses it: carries input and output, and removes the process when
//! it has ended or when nobody is there any more.

use std::time::Duration;

use toft_model::exec::{ExecInput, ExecOutput};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex},
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;

use super::runtime::exec::{Exec, ProcessHandle};

/// Most bytes carried at once.
pub(super) const PART: usize = 32 * 1024;
/// Bytes of input that wait for a process that does not read. What comes after them waits, signals too.
pub(super) const WAITING: usize = 512 * 1024;
/// How long an ended process's output may be silent before it counts as ended too: something it left running may hold it.
pub(super) const SILENCE: Duration = Duration::from_secs(2);
/// What a terminal takes for the end of input.
pub(super) const END_OF_TRANSMISSION: u8 = 4;

/// The two ways between a process and who uses it.
pub struct Ways {
    /// What goes to the process. When its sender is gone, nobody uses the process any more.
    pub input: mpsc::Receiver<ExecInput>,
    /// What comes from it.
    pub output: mpsc::Sender<ExecOutput>,
}

/// Runs until the process has ended, nobody uses it any more, or `stop`. Nothing is left of the process afterwards.
pub async fn run(exec: Exec, mut ways: Ways, stop: CancellationToken) {
    let Exec { input, output, errors, process } = exec;
    let process = &*process;
    let terminal = errors.is_none();
    let ended = CancellationToken::new();
    let (waiting, taken) = duplex(WAITING);
    let told = &ways.output;
    let used = obey(&mut ways.input, waiting, process);
    let fed = async {
        feed(input, taken, told, terminal, process).await;
        std::future::pending::<()>().await;
    };
    let finished = async {
        let exit = async {
            let exit = process.wait().await;
            ended.cancel();
            exit
        };
        let errors = async {
            if let Some(errors) = errors {
                carry(errors, told, ExecOutput::Stderr, &ended).await;
            }
        };
        tokio::join!(exit, carry(output, told, ExecOutput::Stdout, &ended), errors).0
    };
    let last = tokio::select! {
        exit = finished => Some(exit.map_or_else(|error| ExecOutput::Lost(error.to_string()), ExecOutput::Exited)),
        () = stop.cancelled() => Some(ExecOutput::Lost("toft is stopping on this node".to_owned())),
        _ = used => None,
        () = fed => None,
    };
    // Told first: removing may take a moment.
    if let Some(last) = last {
        let _ = tokio::time::timeout(SILENCE, told.send(last)).await;
    }
    process.remove().await;
}

/// How somebody left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    /// They are gone.
    Gone,
    /// They said so.
    Detached,
}

/// Does what it is told, until nobody is there.
pub(super) async fn obey(
    input: &mut mpsc::Receiver<ExecInput>,
    waiting: DuplexStream,
    process: &dyn ProcessHandle,
) -> Left {
    let mut waiting = Some(waiting);
    while let Some(next) = input.recv().await {
        let done = match next {
            ExecInput::Bytes(bytes) => {
                if let Some(waiting) = &mut waiting {
                    // It fails only when nothing reads any more, and then it may be lost.
                    let _ = waiting.write_all(&bytes).await;
                }
                Ok(())
            }
            ExecInput::End => {
                waiting = None;
                Ok(())
            }
            ExecInput::Resize(size) => process.resize(size).await,
            ExecInput::Signal(signal) => process.signal(signal).await,
            ExecInput::Detach => return Left::Detached,
        };
        if let Err(error) = done {
            tracing::debug!(%error, "a process in a container could not be told");
        }
    }
    Left::Gone
}

/// Gives the process its input, and then the end of it.
async fn feed(
    input: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    mut taken: DuplexStream,
    told: &mpsc::Sender<ExecOutput>,
    terminal: bool,
    process: &dyn ProcessHandle,
) {
    let mut input = input;
    let mut part = vec![0; PART];
    while let Ok(length @ 1..) = taken.read(&mut part).await {
        if let Some(open) = &mut input
            && open.write_all(&part[..length]).await.is_err()
        {
            // The process has closed it. The rest is taken all the same, so that who sends gets on.
            input = None;
        }
        if told.send(ExecOutput::Taken(length as u64)).await.is_err() {
            return;
        }
    }
    let Some(mut open) = input else { return };
    if terminal {
        // A terminal that is closed hangs up; what a person types to end the input ends it here.
        let _ = open.write_all(&[END_OF_TRANSMISSION]).await;
        return std::future::pending().await;
    }
    drop(open);
    if let Err(error) = process.close_input().await {
        tracing::debug!(%error, "the input of a process in a container could not be closed");
    }
}

/// Passes on what comes, to the end.
async fn carry(
    mut from: Box<dyn AsyncRead + Send + Unpin>,
    told: &mpsc::Sender<ExecOutput>,
    made: fn(Vec<u8>) -> ExecOutput,
    ended: &CancellationToken,
) {
    let mut part = vec![0; PART];
    loop {
        let silent = async {
            ended.cancelled().await;
            tokio::time::sleep(SILENCE).await;
        };
        let length = tokio::select! {
            biased;
            read = from.read(&mut part) => match read {
                Ok(length @ 1..) => length,
                Ok(0) | Err(_) => return,
            },
            () = silent => return,
        };
        if told.send(made(part[..length].to_vec())).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use toft_model::{exec::ExecOrder, ids::InstanceId};
    use uuid::Uuid;

    use super::*;
    use crate::agent::runtime::{
        ContainerSpec, LoggerCommand, Runtime,
        exec::{ExecProcess, ExecRuntime},
        fake::FakeRuntime,
    };

    struct Used {
        input: mpsc::Sender<ExecInput>,
        output: mpsc::Receiver<ExecOutput>,
        process: Arc<dyn ExecProcess>,
        stop: CancellationToken,
        done: tokio::task::JoinHandle<()>,
    }

    async fn used(script: &str, terminal: bool) -> Used {
        let runtime = FakeRuntime::new();
        let id = InstanceId(Uuid::new_v4());
        let image = "busybox".parse().unwrap();
        runtime.add_image(&image);
        let spec = ContainerSpec::plain(id, image, &["serve"]);
        runtime.create_container(&spec).await.unwrap();
        runtime.create_task(id, &LoggerCommand { program: "/bin/logger".into(), args: Vec::new() }).await.unwrap();
        runtime.start_task(id).await.unwrap();
        let order = ExecOrder {
            command: vec!["sh".into(), "-c".into(), script.into()],
            env: BTreeMap::new(),
            user: None,
            dir: None,
            stdin: true,
            terminal: terminal.then_some(toft_model::exec::TerminalSize { columns: 80, rows: 24 }),
        };
        let exec = runtime.exec(id, &order).await.unwrap();
        let process = Arc::clone(&exec.process);
        let (input, from_user) = mpsc::channel(4);
        let (to_user, output) = mpsc::channel(4);
        let stop = CancellationToken::new();
        let done = tokio::spawn(run(exec, Ways { input: from_user, output: to_user }, stop.clone()));
        Used { input, output, process, stop, done }
    }

    async fn all(output: &mut mpsc::Receiver<ExecOutput>) -> (Vec<u8>, u64, ExecOutput) {
        let (mut bytes, mut taken) = (Vec::new(), 0);
        loop {
            match output.recv().await.unwrap() {
                ExecOutput::Stdout(more) | ExecOutput::Stderr(more) => bytes.extend(more),
                ExecOutput::Taken(length) => taken += length,
                last @ (ExecOutput::Exited(_) | ExecOutput::Lost(_)) => return (bytes, taken, last),
            }
        }
    }

    #[tokio::test]
    async fn input_is_passed_on_to_its_end_and_what_was_taken_is_told() {
        let Used { input, mut output, done, .. } = used("cat; exit 3", false).await;
        let sent = vec![b'x'; 300_000];
        let parts = sent.chunks(50_000).map(|part| ExecInput::Bytes(part.to_vec())).collect::<Vec<_>>();
        let sending = async {
            for part in parts {
                input.send(part).await.unwrap();
            }
            input.send(ExecInput::End).await.unwrap();
        };
        let ((), (bytes, taken, last)) = tokio::join!(sending, all(&mut output));
        assert_eq!((bytes.len(), taken, last), (sent.len(), sent.len() as u64, ExecOutput::Exited(3)));
        done.await.unwrap();
    }

    #[tokio::test]
    async fn a_signal_passes_input_that_nobody_reads() {
        let Used { input, mut output, done, .. } = used("serve", false).await;
        for _ in 0..8 {
            input.send(ExecInput::Bytes(vec![0; 32 * 1024])).await.unwrap();
        }
        input.send(ExecInput::Signal(15)).await.unwrap();
        assert_eq!(all(&mut output).await.2, ExecOutput::Exited(143));
        done.await.unwrap();
    }

    #[tokio::test]
    async fn a_process_ends_with_its_user() {
        let Used { input, output, process, done, .. } = used("serve", true).await;
        drop((input, output));
        done.await.unwrap();
        assert_eq!(process.wait().await.unwrap(), 137);
    }

    #[tokio::test]
    async fn a_process_ends_with_its_user_also_while_its_output_waits() {
        let echo = format!("echo {}", "x".repeat(2_000));
        let script = [echo.as_str(); 200].join(";");
        let Used { input, mut output, process, done, .. } = used(&format!("{script}; serve"), false).await;
        output.recv().await.unwrap();
        drop((input, output));
        done.await.unwrap();
        assert_eq!(process.wait().await.unwrap(), 137);
    }

    #[tokio::test]
    async fn a_process_ends_with_the_daemon() {
        let Used { input: _input, mut output, process, stop, done } = used("serve", true).await;
        stop.cancel();
        assert!(matches!(all(&mut output).await.2, ExecOutput::Lost(why) if why.contains("stopping")));
        done.await.unwrap();
        assert_eq!(process.wait().await.unwrap(), 137);
    }
}
