//! Processes inside the fake's containers. `sh -c` with `echo WORDS`, `echo WORDS >&2`, `cat`, `sleep N` and `exit N` in a
//! row mean what they say; where every image is there, a terminal without a script gets a prompt that repeats what is typed;
//! everything else runs until a signal ends it.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use toft_model::{
    exec::{ExecOrder, TerminalSize},
    ids::InstanceId,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    sync::watch,
};

use super::{Call, FakeRuntime, SIGKILL};
use crate::agent::runtime::{
    RuntimeError, TaskState,
    exec::{Exec, ExecProcess, ExecRuntime, ProcessHandle},
};

/// Bytes a pipe holds.
const PIPE: usize = 4096;

/// A process in a container.
struct FakeProcess {
    code: watch::Sender<Option<i32>>,
}

#[async_trait]
impl ExecRuntime for FakeRuntime {
    async fn exec(&self, id: InstanceId, order: &ExecOrder) -> Result<Exec, RuntimeError> {
        let runs =
            self.begin(Call::Exec)?.containers.get(&id).is_some_and(|c| matches!(c.task, TaskState::Running { .. }));
        if !runs {
            return Err(RuntimeError::NotRunning { id });
        }
        if let Some(command) = order.command.first().filter(|word| word.starts_with("no-such-")) {
            let reason = format!("the command `{command}` is not in the image");
            return Err(RuntimeError::StartFailed { reason, exit_code: 127 });
        }
        let (input, keyboard) = order.stdin.then(|| duplex(PIPE)).unzip();
        let (output, screen) = duplex(PIPE);
        let (errors, complaints) = order.terminal.is_none().then(|| duplex(PIPE)).unzip();
        let process = Arc::new(FakeProcess { code: watch::Sender::new(None) });
        let mut code = process.code.subscribe();
        let streams =
            Streams { input: keyboard.map(|keyboard| Box::new(keyboard) as _), output: screen, errors: complaints };
        let mut script = script(&order.command);
        if order.terminal.is_some() && order.stdin && self.state().has_every_image && script.ends_with("exec sh") {
            script = "prompt".to_owned();
        }
        let running = Arc::clone(&process);
        tokio::spawn(async move {
            tokio::select! {
                ended = streams.run(&script) => running.end(ended),
                _ = code.wait_for(Option::is_some) => {}
            }
        });
        Ok(Exec {
            input: input.map(|input| Box::new(input) as _),
            output: Box::new(output),
            errors: errors.map(|errors| Box::new(errors) as _),
            process,
        })
    }
}

pub(super) fn script(command: &[String]) -> String {
    match command {
        [shell, flag, script] if shell == "sh" && flag == "-c" => script.clone(),
        words => words.join(" "),
    }
}

pub(super) struct Streams {
    pub(super) input: Option<Box<dyn AsyncRead + Send + Unpin>>,
    pub(super) output: DuplexStream,
    /// None with a terminal, which shows both.
    pub(super) errors: Option<DuplexStream>,
}

impl Streams {
    pub(super) async fn run(mut self, script: &str) -> i32 {
        for step in script.split(';').map(str::trim) {
            let (word, rest) = step.split_once(' ').unwrap_or((step, ""));
            match word {
                "echo" => self.echo(rest).await,
                "cat" => self.cat().await,
                "prompt" => return self.prompt().await,
                "sleep" => tokio::time::sleep(Duration::from_secs_f64(rest.parse().unwrap_or(1.0))).await,
                "exit" => return rest.parse().unwrap_or(0),
                _ => std::future::pending().await,
            }
        }
        0
    }

    async fn echo(&mut self, words: &str) {
        let (words, complains) = words.strip_suffix(" >&2").map_or((words, false), |words| (words, true));
        // As everywhere, nobody has to read.
        let _ = match &mut self.errors {
            None => self.output.write_all(format!("{words}\r\n").as_bytes()).await,
            Some(errors) if complains => errors.write_all(format!("{words}\n").as_bytes()).await,
            Some(_) => self.output.write_all(format!("{words}\n").as_bytes()).await,
        };
    }

    /// Shows a prompt, and repeats each line; `exit` ends it.
    async fn prompt(&mut self) -> i32 {
        const PROMPT: &[u8] = b"\x1b[32mmade-up\x1b[0m:/# ";
        let Some(input) = &mut self.input else { return 0 };
        let (mut line, mut bytes) = (String::new(), [0; 64]);
        let mut told = self.output.write_all(PROMPT).await;
        while let (Ok(()), Ok(length @ 1..)) = (&told, input.read(&mut bytes).await) {
            for byte in &bytes[..length] {
                told = match byte {
                    b'\r' if line.trim() == "exit" => return 0,
                    b'\r' => {
                        let said = match line.trim() {
                            "" => String::new(),
                            line => format!("{line}\r\n"),
                        };
                        line.clear();
                        self.output.write_all(&[b"\r\n", said.as_bytes(), PROMPT].concat()).await
                    }
                    0x7f if line.pop().is_some() => self.output.write_all(b"\x08 \x08").await,
                    byte if byte.is_ascii_graphic() || *byte == b' ' => {
                        line.push(char::from(*byte));
                        self.output.write_all(&[*byte]).await
                    }
                    _ => Ok(()),
                };
            }
        }
        0
    }

    async fn cat(&mut self) {
        let Some(input) = &mut self.input else { return };
        let mut bytes = [0; 1024];
        while let Ok(length @ 1..) = input.read(&mut bytes).await {
            if self.output.write_all(&bytes[..length]).await.is_err() {
                return;
            }
        }
    }
}

impl FakeProcess {
    fn end(&self, code: i32) {
        self.code.send_if_modified(|known| known.is_none() && known.replace(code).is_none());
    }
}

#[async_trait]
impl ProcessHandle for FakeProcess {
    async fn resize(&self, _: TerminalSize) -> Result<(), RuntimeError> {
        Ok(())
    }

    async fn signal(&self, signal: i32) -> Result<(), RuntimeError> {
        self.end(128 + signal);
        Ok(())
    }

    async fn close_input(&self) -> Result<(), RuntimeError> {
        Ok(())
    }

    async fn wait(&self) -> Result<i32, RuntimeError> {
        let mut code = self.code.subscribe();
        // The sender is `self`, which is there.
        let ended = code.wait_for(Option::is_some).await.map(|code| code.unwrap_or_default());
        Ok(ended.unwrap_or_default())
    }
}

#[async_trait]
impl ExecProcess for FakeProcess {
    async fn remove(&self) {
        self.end(128 + SIGKILL);
    }
}
