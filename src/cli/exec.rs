//! `exec`: a process in a container, with this command's terminal or streams.

use std::{io::Read, time::Duration};

use futures_util::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use toft_model::{exec::ExecOrder, name::Name};
use tokio::{
    io::{AsyncWriteExt, Stderr, Stdout},
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};
use tokio_tungstenite::tungstenite::Message;

use super::{
    Failure,
    client::{Client, Socket},
    exec_args::ExecArgs,
    run::{TOFT_FAILED, pairs},
    terminal::{self, Raw},
};
use crate::api::types::{ExecCommand, ExecNews, Workload};

/// Most bytes of input on their way: with more, nothing else would get past them.
const CREDIT: u64 = 256 * 1024;
/// Most bytes of input in one message.
const PART: usize = 32 * 1024;
/// How often the node hears from us, also while nobody reads our output.
const ALIVE: Duration = Duration::from_secs(15);
/// So many requests to end are passed on; the next ends this command.
const PATIENCE: u32 = 2;
/// First byte of a binary message with standard error.
const STDERR: u8 = 2;
const BROKEN_PIPE: i32 = 128 + 13;

pub(super) async fn exec(client: &Client, args: ExecArgs) -> Result<i32, Failure> {
    if args.tty && args.interactive && !terminal::has_keys() {
        return Err(Failure::of(2, "the input is no terminal").hint("leave out -t to pass it on as it is"));
    }
    let failed = |failure: Failure| failure.with_code(TOFT_FAILED);
    let instance = instance(client, &args.name, args.index).await.map_err(failed)?;
    let order = ExecOrder {
        command: args.command,
        env: pairs(args.env, true)?,
        user: args.user,
        dir: args.workdir,
        stdin: args.interactive,
        terminal: args.tty.then(terminal::size),
    };
    let socket = client.upgrade(&format!("/api/v1/instances/{instance}/exec")).await.map_err(failed)?;
    // From here on the signals are the process's.
    let signals =
        Signals::listen().map_err(|error| Failure::of(TOFT_FAILED, format!("no signals are heard: {error}")))?;
    let (keyboard, screen) = socket.split();
    let mut keyboard = Keyboard(keyboard);
    let mut screen = Screen { from: screen, out: tokio::io::stdout(), err: tokio::io::stderr() };
    let (tty, stdin) = (order.terminal.is_some(), order.stdin);
    keyboard.say(&ExecCommand::Start { order }).await?;
    match screen.next().await? {
        Shown::News(ExecNews::Started) => {}
        other => return other.end(),
    }
    let raw = if tty && stdin { Some(Raw::begin()?) } else { None };
    let code = converse(keyboard, screen, signals, tty, stdin).await;
    drop(raw);
    code
}

/// The name of the instance that is meant: of a workload the one with that number, else the first that runs.
pub(super) async fn instance(client: &Client, name: &Name, index: Option<u32>) -> Result<String, Failure> {
    let workload: Workload = match client.get(&format!("/api/v1/workloads/{name}")).await {
        Ok(workload) => workload,
        // It may be an instance's; the node knows.
        Err(failure) if failure.is("not_found") && index.is_none() => return Ok(name.to_string()),
        Err(failure) => return Err(failure),
    };
    if let Some(index) = index {
        return Ok(format!("{name}-{index}"));
    }
    let running = workload.instances.iter().find(|instance| instance.state == "running");
    running.or(workload.instances.first()).map(|instance| instance.name.clone()).ok_or_else(|| {
        Failure::of(1, format!("the workload `{name}` has no instance")).hint("`toft inspect` shows why")
    })
}

type Code = Result<i32, Failure>;

async fn converse(mut keyboard: Keyboard, mut screen: Screen, mut signals: Signals, tty: bool, stdin: bool) -> Code {
    let mut input = stdin.then(read_input);
    let mut alive = interval(ALIVE);
    alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut sent, mut taken, mut asked) = (0, 0, 0);
    // Shown in a future of its own, so that signals and signs of life pass while our own output is held up.
    let (told, mut news) = mpsc::channel(16);
    let show = async move {
        loop {
            let next = screen.next().await;
            let last = !matches!(&next, Ok(Shown::News(ExecNews::Taken { .. })));
            if told.send(next).await.is_err() || last {
                return std::future::pending::<()>().await;
            }
        }
    };
    tokio::pin!(show);
    loop {
        tokio::select! {
            () = &mut show => {}
            Some(next) = news.recv() => match next? {
                Shown::News(ExecNews::Taken { bytes }) => taken += bytes,
                other => {
                    keyboard.close().await;
                    return other.end();
                }
            },
            part = next_part(&mut input), if input.is_some() && sent - taken < CREDIT => match part {
                Some(part) => {
                    sent += part.len() as u64;
                    keyboard.send(Message::Binary(part.into())).await?;
                }
                None => {
                    input = None;
                    keyboard.say(&ExecCommand::EndOfInput).await?;
                }
            },
            number = signals.next() => match number {
                SIGWINCH if tty => keyboard.say(&ExecCommand::Resize { size: terminal::size() }).await?,
                SIGWINCH => {}
                number => {
                    asked += u32::from(matches!(number, 2 | 15));
                    // A terminal that hung up has nobody at it; and who asks again and again means it.
                    if asked > PATIENCE || (tty && number == 1) {
                        keyboard.close().await;
                        return Ok(128 + number);
                    }
                    keyboard.say(&ExecCommand::Signal { number }).await?;
                }
            },
            _ = alive.tick() => keyboard.send(Message::Ping(Default::default())).await?,
        }
    }
}

async fn next_part(input: &mut Option<mpsc::Receiver<Vec<u8>>>) -> Option<Vec<u8>> {
    match input {
        Some(input) => input.recv().await,
        None => None,
    }
}

/// Reads standard input on a thread that nobody waits for at the end: it may wait for a key for ever.
pub(super) fn read_input() -> mpsc::Receiver<Vec<u8>> {
    let (sender, parts) = mpsc::channel(1);
    std::thread::spawn(move || {
        let mut input = std::io::stdin();
        let mut part = vec![0; PART];
        loop {
            match input.read(&mut part) {
                Ok(length @ 1..) if sender.blocking_send(part[..length].to_vec()).is_ok() => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                _ => return,
            }
        }
    });
    parts
}

struct Keyboard(SplitSink<Socket, Message>);

impl Keyboard {
    async fn send(&mut self, message: Message) -> Result<(), Failure> {
        self.0.send(message).await.map_err(|error| broken(&error.to_string()))
    }

    async fn say(&mut self, command: &ExecCommand) -> Result<(), Failure> {
        let text = serde_json::to_string(command).map_err(|error| Failure::of(TOFT_FAILED, error.to_string()))?;
        self.send(Message::Text(text.into())).await
    }

    /// What is wrong with the connection now makes no difference any more.
    async fn close(&mut self) {
        let _ = tokio::time::timeout(Duration::from_secs(2), self.0.close()).await;
    }
}

/// What the node said that is no output.
enum Shown {
    News(ExecNews),
    /// Whoever read our output has seen enough.
    Enough,
}

impl Shown {
    /// What this command ends with.
    fn end(self) -> Code {
        match self {
            Self::News(ExecNews::Exited { code }) => Ok(code),
            Self::News(ExecNews::Failed { error, exit_code }) => {
                Err(Failure::from(error).with_code(exit_code.unwrap_or(TOFT_FAILED)))
            }
            Self::News(ExecNews::Started | ExecNews::Taken { .. }) => {
                Err(Failure::of(TOFT_FAILED, "toft said what makes no sense here"))
            }
            Self::Enough => Ok(BROKEN_PIPE),
        }
    }
}

struct Screen {
    from: SplitStream<Socket>,
    out: Stdout,
    err: Stderr,
}

impl Screen {
    /// Shows what comes until there is something else.
    async fn next(&mut self) -> Result<Shown, Failure> {
        loop {
            let message = self.from.next().await.ok_or_else(|| broken("it was closed"))?;
            match message.map_err(|error| broken(&error.to_string()))? {
                Message::Binary(bytes) => {
                    let (mark, bytes) = bytes.split_first().ok_or_else(|| broken("an empty message came"))?;
                    match self.show(*mark, bytes).await {
                        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(Shown::Enough),
                        Err(error) => {
                            let message = format!("the output could not be written: {error}");
                            return Err(Failure::of(TOFT_FAILED, message));
                        }
                        Ok(()) => {}
                    }
                }
                Message::Text(text) => {
                    let news = serde_json::from_str(&text);
                    return news.map(Shown::News).map_err(|error| broken(&error.to_string()));
                }
                Message::Close(_) => return Err(broken("it was closed")),
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
    }

    async fn show(&mut self, mark: u8, bytes: &[u8]) -> std::io::Result<()> {
        if mark == STDERR {
            self.err.write_all(bytes).await?;
            self.err.flush().await
        } else {
            self.out.write_all(bytes).await?;
            self.out.flush().await
        }
    }
}

fn broken(why: &str) -> Failure {
    Failure::of(TOFT_FAILED, format!("the connection to toft broke: {why}"))
        .hint("the command in the container was ended, or will be when toft is back")
}

const SIGWINCH: i32 = 28;

/// The signals that are passed on, and the one that tells of another size.
pub(super) struct Signals(Vec<(i32, Signal)>);

impl Signals {
    pub(super) fn listen() -> std::io::Result<Self> {
        let kinds = [
            SignalKind::hangup(),
            SignalKind::interrupt(),
            SignalKind::quit(),
            SignalKind::terminate(),
            SignalKind::user_defined1(),
            SignalKind::user_defined2(),
            SignalKind::window_change(),
        ];
        let listened = kinds.into_iter().map(|kind| Ok((kind.as_raw_value(), signal(kind)?)));
        listened.collect::<std::io::Result<_>>().map(Self)
    }

    /// The number of the next that asks this command to end.
    pub(super) async fn ending(&mut self) -> i32 {
        loop {
            let number = self.next().await;
            if number != SIGWINCH {
                return number;
            }
        }
    }

    /// The number of the next.
    async fn next(&mut self) -> i32 {
        std::future::poll_fn(|context| {
            for (number, signal) in &mut self.0 {
                if signal.poll_recv(context).is_ready() {
                    return std::task::Poll::Ready(*number);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }
}
