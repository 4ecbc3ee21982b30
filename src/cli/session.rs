//! A conversation with a process over a WebSocket, with this command's terminal or streams: `exec`, `attach`, `run -it`.

use std::{io::Read, time::Duration};

use futures_util::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use tokio::{
    io::{AsyncWriteExt, Stderr, Stdout},
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};
use tokio_tungstenite::tungstenite::Message;

use super::{Failure, client::Socket, detach_keys::Detaching, run::TOFT_FAILED, terminal};
use crate::api::types::{ExecCommand, ExecNews};

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
/// What a connection that broke is called.
pub(super) const BROKEN: &str = "broken";

/// What this command lends to the process.
pub(super) struct Manner {
    /// Whether the process has a terminal.
    pub(super) tty: bool,
    /// Whether what is typed or piped in goes to it.
    pub(super) stdin: bool,
    /// Keys that leave it, if there are any.
    pub(super) detaching: Option<Detaching>,
    /// Whether signals go to it; else they end this command.
    pub(super) proxies: bool,
}

/// How a conversation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// The process has, with that code.
    Exited(i32),
    /// By the keys for it.
    Detached,
    /// A signal of that number ended this command.
    Signalled(i32),
}

impl Ended {
    /// What this command exits with.
    pub(super) fn code(self) -> i32 {
        match self {
            Self::Exited(code) => code,
            Self::Detached => 0,
            Self::Signalled(number) => 128 + number,
        }
    }
}

/// A connection to a process.
pub(super) struct Session {
    keyboard: Keyboard,
    screen: Screen,
    signals: Signals,
}

impl Session {
    /// Says the first word. From here on the signals are the process's.
    pub(super) async fn open(socket: Socket, first: &ExecCommand) -> Result<Self, Failure> {
        let unheard = |error| Failure::of(TOFT_FAILED, format!("no signals are heard: {error}"));
        let signals = Signals::listen().map_err(unheard)?;
        let (keyboard, screen) = socket.split();
        let mut keyboard = Keyboard(keyboard);
        let screen = Screen { from: screen, out: tokio::io::stdout(), err: tokio::io::stderr() };
        keyboard.say(first).await?;
        Ok(Self { keyboard, screen, signals })
    }

    /// Waits until the process is there; gives the number of a signal that came before.
    pub(super) async fn started(&mut self) -> Result<Option<i32>, Failure> {
        tokio::select! {
            first = self.screen.next() => match first? {
                Shown::News(ExecNews::Started) => Ok(None),
                other => other.end().and(Err(Failure::of(TOFT_FAILED, "toft said what makes no sense here"))),
            },
            number = self.signals.ending() => Ok(Some(number)),
        }
    }

    /// Carries input and output to the end.
    pub(super) async fn converse(self, manner: Manner) -> Result<Ended, Failure> {
        converse(self, manner).await
    }
}

async fn converse(session: Session, manner: Manner) -> Result<Ended, Failure> {
    let Session { mut keyboard, mut screen, mut signals } = session;
    let Manner { tty, stdin, mut detaching, proxies } = manner;
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
                    let (part, detached) = match &mut detaching {
                        Some(detaching) => detaching.pass(&part),
                        None => (part, false),
                    };
                    sent += part.len() as u64;
                    if !part.is_empty() {
                        keyboard.send(Message::Binary(part.into())).await?;
                    }
                    if detached {
                        keyboard.say(&ExecCommand::Detach).await?;
                        keyboard.close().await;
                        return Ok(Ended::Detached);
                    }
                }
                None => {
                    input = None;
                    keyboard.say(&ExecCommand::EndOfInput).await?;
                }
            },
            number = signals.next() => match number {
                SIGWINCH if tty => keyboard.say(&ExecCommand::Resize { size: terminal::size() }).await?,
                SIGWINCH => {}
                number if !proxies => {
                    keyboard.close().await;
                    return Ok(Ended::Signalled(number));
                }
                number => {
                    asked += u32::from(matches!(number, 2 | 15));
                    // A terminal that hung up has nobody at it; and who asks again and again means it.
                    if asked > PATIENCE || (tty && number == 1) {
                        keyboard.close().await;
                        return Ok(Ended::Signalled(number));
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
    fn end(self) -> Result<Ended, Failure> {
        match self {
            Self::News(ExecNews::Exited { code }) => Ok(Ended::Exited(code)),
            Self::News(ExecNews::Failed { error, exit_code }) => {
                Err(Failure::from(error).with_code(exit_code.unwrap_or(TOFT_FAILED)))
            }
            Self::News(ExecNews::Started | ExecNews::Taken { .. }) => {
                Err(Failure::of(TOFT_FAILED, "toft said what makes no sense here"))
            }
            Self::Enough => Ok(Ended::Exited(BROKEN_PIPE)),
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
    Failure::of(TOFT_FAILED, format!("the connection to toft broke: {why}")).with_name(BROKEN)
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
