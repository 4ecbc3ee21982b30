//! Input, output and terminal of the fake's containers. Their command is understood as that of a process inside.

use std::{
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use toft_model::{
    exec::{AttachOrder, TerminalSize},
    ids::InstanceId,
    workload::ProcessSpec,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, duplex},
    net::unix::pipe,
    sync::{mpsc, watch},
};
use tokio_util::sync::CancellationToken;

use super::{Call, FakeRuntime, Inner, exec::Streams};
use crate::agent::runtime::{
    Runtime, RuntimeError, TaskState,
    attach::{AttachRuntime, Attachment, Output, Written},
    exec::ProcessHandle,
};

/// Bytes that wait in a pipe of output, and pieces that wait for a listener.
const PIPE: usize = 4096;
const WAITING: usize = 16;
/// How long a listener may hold up a container.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a container with input or a terminal has for as long as its task.
#[derive(Debug)]
pub(super) struct Console {
    stdin: bool,
    terminal: bool,
    foreground: bool,
    /// Both ends of the input, until it is started and ended.
    reader: Mutex<Option<OwnedFd>>,
    writer: Mutex<Option<OwnedFd>>,
    input_ended: CancellationToken,
    listeners: Mutex<Vec<Listener>>,
    code: watch::Sender<Option<i32>>,
}

#[derive(Debug, Clone)]
struct Listener {
    to: mpsc::Sender<Written>,
    lossless: bool,
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failed(error: impl ToString) -> RuntimeError {
    RuntimeError::Failed { doing: "attaching to a container", reason: error.to_string() }
}

impl Console {
    /// Nothing for a container that nobody can attach to.
    pub(super) fn of(process: &ProcessSpec) -> Result<Option<Arc<Self>>, RuntimeError> {
        if !process.is_interactive() {
            return Ok(None);
        }
        let (reader, writer) = io::pipe().map_err(failed)?;
        Ok(Some(Arc::new(Self {
            stdin: process.stdin,
            terminal: process.tty,
            foreground: process.foreground,
            reader: Mutex::new(Some(reader.into())),
            writer: Mutex::new(Some(writer.into())),
            input_ended: CancellationToken::new(),
            listeners: Mutex::default(),
            code: watch::Sender::new(None),
        })))
    }

    /// The process has ended.
    pub(super) fn end(&self, code: i32) {
        self.code.send_if_modified(|known| known.is_none() && known.replace(code).is_none());
    }

    /// Runs the process; `ended` is told its code if it ends by itself.
    pub(super) async fn run(self: Arc<Self>, script: String, ended: impl FnOnce(i32)) {
        let (output, screen) = duplex(PIPE);
        let (errors, complaints) = (!self.terminal).then(|| duplex(PIPE)).unzip();
        let reader = lock(&self.reader).take().filter(|_| self.stdin);
        let reader = reader.and_then(|reader| pipe::Receiver::from_owned_fd(reader).ok());
        let input = reader.map(|reader| Box::new(reader) as Box<dyn AsyncRead + Send + Unpin>);
        let streams = Streams { input, output: screen, errors: complaints };
        let mut code = self.code.subscribe();
        let running = async {
            tokio::select! {
                code = streams.run(&script) => ended(code),
                _ = code.wait_for(Option::is_some) => {}
            }
        };
        let errors = async {
            if let Some(errors) = errors {
                self.pass_on(errors, Written::Stderr).await;
            }
        };
        tokio::join!(running, self.pass_on(output, Written::Stdout), errors);
        self.tell(Written::End).await;
        lock(&self.listeners).clear();
    }

    async fn pass_on(&self, mut from: impl AsyncRead + Unpin, made: fn(Vec<u8>) -> Written) {
        let mut part = [0; 1024];
        while let Ok(length @ 1..) = from.read(&mut part).await {
            self.tell(made(part[..length].to_vec())).await;
        }
    }

    async fn tell(&self, written: Written) {
        let listeners = lock(&self.listeners).clone();
        for Listener { to, lossless } in listeners {
            let told = to.send(written.clone());
            let told = match lossless {
                true => told.await.is_ok(),
                false => matches!(tokio::time::timeout(PATIENCE, told).await, Ok(Ok(()))),
            };
            if !told {
                lock(&self.listeners).retain(|listener| !listener.to.same_channel(&to));
            }
        }
    }
}

#[async_trait]
impl AttachRuntime for FakeRuntime {
    async fn attach(&self, id: InstanceId, order: &AttachOrder) -> Result<Attachment, RuntimeError> {
        let state = self.begin(Call::Attach)?;
        let container = state.containers.get(&id).ok_or(RuntimeError::NotRunning { id })?;
        if !container.spec.process.is_interactive() {
            return Err(RuntimeError::NotInteractive { id });
        }
        let there = matches!(container.task, TaskState::Created { .. } | TaskState::Running { .. });
        let console = container.console.clone().filter(|_| there).ok_or(RuntimeError::NotRunning { id })?;
        let (to, output) = mpsc::channel(WAITING);
        lock(&console.listeners).push(Listener { to, lossless: order.lossless });
        let writer = lock(&console.writer);
        let input = match writer.as_ref().filter(|_| console.stdin && order.stdin) {
            Some(writer) => Some(writer.try_clone().and_then(pipe::Sender::from_owned_fd).map_err(failed)?),
            None => None,
        };
        drop(writer);
        Ok(Attachment {
            input: input.map(|input| Box::new(input) as _),
            input_ended: console.input_ended.clone(),
            output: Box::new(FakeOutput(output)),
            terminal: console.terminal,
            foreground: console.foreground,
            process: Arc::new(Own { runtime: self.clone(), id, console }),
        })
    }
}

struct FakeOutput(mpsc::Receiver<Written>);

#[async_trait]
impl Output for FakeOutput {
    async fn next(&mut self) -> io::Result<Option<Written>> {
        Ok(self.0.recv().await)
    }
}

/// A container's own process.
struct Own {
    runtime: FakeRuntime,
    id: InstanceId,
    console: Arc<Console>,
}

#[async_trait]
impl ProcessHandle for Own {
    async fn resize(&self, _: TerminalSize) -> Result<(), RuntimeError> {
        Ok(())
    }

    async fn signal(&self, signal: i32) -> Result<(), RuntimeError> {
        self.runtime.signal_task(self.id, signal).await
    }

    async fn close_input(&self) -> Result<(), RuntimeError> {
        self.console.input_ended.cancel();
        drop(lock(&self.console.writer).take());
        Ok(())
    }

    async fn wait(&self) -> Result<i32, RuntimeError> {
        let mut code = self.console.code.subscribe();
        // The sender is the console's, which is there.
        let ended = code.wait_for(Option::is_some).await.map(|code| code.unwrap_or_default());
        Ok(ended.unwrap_or_default())
    }
}

impl FakeRuntime {
    /// Starts the process of a container with a console.
    pub(super) fn run_console(&self, id: InstanceId, number: u64, console: Arc<Console>, script: String) {
        let inner = Arc::downgrade(&self.inner);
        tokio::spawn(console.run(script, move |code| {
            if let Some(inner) = inner.upgrade() {
                Inner::end(&inner, id, Some(number), Some(code));
            }
        }));
    }
}
