//! `/instances/{name}/exec`: a process inside an instance over a WebSocket.
//!
//! The order travels in the first message, never in the URL: it may hold secrets, and URLs are logged.

use std::time::Duration;

use axum::{
    extract::{
        Path, State, WebSocketUpgrade,
        rejection::PathRejection,
        ws::{Message, WebSocket, rejection::WebSocketUpgradeRejection},
    },
    response::Response,
};
use futures_util::{SinkExt, StreamExt, stream::SplitSink};
use toft_model::exec::{ExecInput, ExecOutput};
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::{ApiError, ApiState};
use crate::{
    api::types::{ErrorBody, ExecCommand, ExecNews},
    control::{
        ControlError, ErrorKind,
        node_access::exec::{ExecRefused, ExecSession},
        ops::{Ops, exec::Target},
    },
};

/// Most bytes of a message from a client: an order, or input.
pub(super) const MAX_MESSAGE_BYTES: usize = 1 << 20;
/// Longest wait for the order.
pub(super) const ORDER: Duration = Duration::from_secs(10);
/// The client is asked for a sign of life this often, and is gone after that long without one.
pub(super) const ASKED: Duration = Duration::from_secs(15);
pub(super) const GONE: Duration = Duration::from_secs(45);
/// Longest wait for the client to close after the last word.
const FAREWELL: Duration = Duration::from_secs(5);
/// First bytes of binary messages.
const STDOUT: u8 = 1;
const STDERR: u8 = 2;

/// Runs a process inside an instance, over a WebSocket. Text messages are JSON (`ExecCommand` from the
/// client, `ExecNews` from the node), binary ones carry the streams. The first message is the order. The process ends when
/// the connection does.
#[utoipa::path(get, path = "/instances/{name}/exec", tag = "instances", params(("name" = String, Path)), responses((status = 101, description = "The connection is a WebSocket now", body = ExecNews), (status = 404, body = crate::api::types::ErrorEnvelope), (status = 409, body = crate::api::types::ErrorEnvelope)))]
pub async fn exec(
    State(api): State<ApiState>,
    name: Result<Path<String>, PathRejection>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let name = named(name)?;
    let upgrade = upgraded(upgrade, "toft exec")?;
    let target = api.ops.exec_target(&name).await?;
    let upgrade = upgrade.max_message_size(MAX_MESSAGE_BYTES).max_frame_size(MAX_MESSAGE_BYTES);
    let shut_out = api.ops.until_shut_out();
    Ok(upgrade.on_upgrade(move |socket| async move {
        tokio::select! {
            () = serve(socket, api.ops, target) => {}
            () = shut_out => {}
        }
    }))
}

pub(super) fn named(name: Result<Path<String>, PathRejection>) -> Result<String, ControlError> {
    let Path(name) = name.map_err(|_| ControlError::new(ErrorKind::Invalid, "the path is malformed"))?;
    Ok(name)
}

pub(super) fn upgraded(
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
    command: &str,
) -> Result<WebSocketUpgrade, ControlError> {
    upgrade.map_err(|_| {
        ControlError::new(ErrorKind::Invalid, "this resource answers WebSocket connections only")
            .hint(format!("send an upgrade to WebSocket, version 13, over HTTP/1.1; `{command}` does"))
    })
}

async fn serve(mut socket: WebSocket, ops: Ops, target: Target) {
    let order = |command| match command {
        ExecCommand::Start { order } => Some(order),
        _ => None,
    };
    let started = match timeout(ORDER, first(&mut socket, order)).await {
        Ok(Some(Ok(order))) => ops.exec(target, order).await,
        Ok(Some(Err(error))) => Err(error.into()),
        // Nobody is there, or they say nothing.
        Ok(None) | Err(_) => return,
    };
    match started {
        Ok(session) => relay(socket, session).await,
        Err(ExecRefused { error, exit_code }) => {
            // It is told or nobody is there.
            let _ = socket.send(news(&failed(error, exit_code))).await;
            farewell(socket).await;
        }
    }
}

/// The order, or what is wrong with it; nothing when the client is gone.
pub(super) async fn first<T>(
    socket: &mut WebSocket,
    order: impl Fn(ExecCommand) -> Option<T>,
) -> Option<Result<T, ControlError>> {
    let none = || ControlError::new(ErrorKind::Invalid, "the first message is no order");
    loop {
        match socket.recv().await?.ok()? {
            Message::Text(text) => {
                let order = command(&text).map(&order);
                return Some(order.and_then(|order| order.ok_or_else(|| none().field("type"))));
            }
            Message::Binary(_) => {
                return Some(Err(none()));
            }
            Message::Close(_) => return None,
            Message::Ping(_) | Message::Pong(_) => {}
        }
    }
}

fn command(text: &str) -> Result<ExecCommand, ControlError> {
    // What was sent is not repeated: it may hold secrets.
    serde_json::from_str(text).map_err(|error| {
        let place = format!("the message is malformed at its line {}, column {}", error.line(), error.column());
        ControlError::new(ErrorKind::Invalid, place).hint("see ExecCommand in /api/v1/openapi.json")
    })
}

pub(super) async fn relay(socket: WebSocket, session: ExecSession) {
    let ExecSession { input, mut output } = session;
    let (mut sink, mut stream) = socket.split();
    let up = async {
        loop {
            let next = match timeout(GONE, stream.next()).await {
                Ok(Some(Ok(Message::Binary(bytes)))) => ExecInput::Bytes(bytes.into()),
                Ok(Some(Ok(Message::Text(text)))) => match command(&text) {
                    Ok(ExecCommand::Resize { size }) if size.columns > 0 && size.rows > 0 => ExecInput::Resize(size),
                    Ok(ExecCommand::Signal { number: number @ 1..=64 }) => ExecInput::Signal(number),
                    Ok(ExecCommand::EndOfInput) => ExecInput::End,
                    Ok(ExecCommand::Detach) => ExecInput::Detach,
                    Ok(_) => return Some(ControlError::new(ErrorKind::Invalid, "the message makes no sense here")),
                    Err(error) => return Some(error),
                },
                Ok(Some(Ok(Message::Ping(_) | Message::Pong(_)))) => continue,
                Ok(Some(Ok(Message::Close(_)) | Err(_)) | None) | Err(_) => return None,
            };
            if input.send(next).await.is_err() {
                // The process has ended; what it said last is still on its way.
                return std::future::pending().await;
            }
        }
    };
    let down = async {
        let mut asked = interval(ASKED);
        asked.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last = send(&mut sink, news(&ExecNews::Started)).await;
        while last.is_ok() {
            let message = tokio::select! {
                next = output.recv() => match next {
                    Some(next) => next,
                    None => return,
                },
                _ = asked.tick() => {
                    last = send(&mut sink, Message::Ping(Default::default())).await;
                    continue;
                }
            };
            last = send(&mut sink, told(message)).await;
        }
    };
    let wrong = tokio::select! {
        wrong = up => wrong,
        () = down => None,
    };
    // Both ways close, which ends the process if it has not.
    drop((input, output));
    if let Some(error) = wrong {
        let _ = send(&mut sink, news(&failed(error, None))).await;
    }
    if let Ok(socket) = stream.reunite(sink) {
        farewell(socket).await;
    }
}

async fn send(sink: &mut SplitSink<WebSocket, Message>, message: Message) -> Result<(), axum::Error> {
    sink.send(message).await
}

/// Closes, and reads on until the client has closed too: a connection that is cut with something unread in it would lose
/// what was said last.
pub(super) async fn farewell(mut socket: WebSocket) {
    let closing = async {
        if socket.send(Message::Close(None)).await.is_ok() {
            while let Some(Ok(_)) = socket.recv().await {}
        }
    };
    let _ = timeout(FAREWELL, closing).await;
}

fn told(output: ExecOutput) -> Message {
    let bytes = |mark: u8, bytes: Vec<u8>| {
        let mut message = Vec::with_capacity(bytes.len() + 1);
        message.push(mark);
        message.extend_from_slice(&bytes);
        Message::Binary(message.into())
    };
    match output {
        ExecOutput::Stdout(part) => bytes(STDOUT, part),
        ExecOutput::Stderr(part) => bytes(STDERR, part),
        ExecOutput::Taken(bytes) => news(&ExecNews::Taken { bytes }),
        ExecOutput::Exited(code) => news(&ExecNews::Exited { code }),
        ExecOutput::Lost(why) => news(&failed(ControlError::new(ErrorKind::Unavailable, why), None)),
    }
}

pub(super) fn failed(error: ControlError, exit_code: Option<i32>) -> ExecNews {
    let ControlError { kind, message, hint, field } = error;
    ExecNews::Failed { error: ErrorBody { code: kind.code().into(), message, hint, field }, exit_code }
}

pub(super) fn news(news: &ExecNews) -> Message {
    Message::Text(serde_json::to_string(news).expect("news are plain data").into())
}
