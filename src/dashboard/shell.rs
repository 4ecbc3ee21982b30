//! A shell inside an instance, in the browser: a page with a terminal, and the WebSocket behind it.
//!
//! The first message says which shell is meant, or that a new one is wanted, and how large the terminal is. After it,
//! binary messages carry what is typed and shown; text messages are JSON. The way back is open for pages of this
//! dashboard only: browsers let pages of other sites open WebSockets.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use askama::Template;
use axum::{
    extract::{
        Path, Query, State, WebSocketUpgrade,
        ws::{Message, WebSocket, rejection::WebSocketUpgradeRejection},
    },
    http::{HeaderMap, Method, StatusCode, Uri},
    response::Response,
};
use serde::{Deserialize, Serialize};
use toft_model::{
    exec::{ExecInput, ExecOrder, TerminalSize},
    identity::UserName,
    instance::InstanceState,
};
use tokio::time::timeout;
use uuid::Uuid;

use super::{
    Dashboard, Frame,
    error::PageError,
    guard::from_other_site,
    request::named,
    shells::{End, Shell},
    show,
};
use crate::control::{ControlError, ErrorKind, actor};

/// The best shell that the image has.
const SHELL: &str = "command -v bash >/dev/null 2>&1 && exec bash; exec sh";
/// Longest wait for the first message.
const HELLO: Duration = Duration::from_secs(10);
/// The browser is asked for a sign of life this often.
const ASKED: Duration = Duration::from_secs(20);
/// Most bytes of a message from the browser.
const MAX_MESSAGE_BYTES: usize = 64 << 10;

#[derive(Template)]
#[template(path = "workloads/shell.html")]
struct Page {
    frame: Frame,
    name: String,
    /// Instances that run, and whether it is the one meant.
    instances: Vec<(String, bool)>,
    instance: Option<String>,
}

/// Which instance.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    instance: String,
}

/// What the browser says.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum Said {
    /// Which shell; a new one when it is not there any more.
    Begin {
        id: Option<Uuid>,
        /// Bytes of it that the page has shown already.
        #[serde(default)]
        seen: u64,
        columns: u16,
        rows: u16,
    },
    /// The terminal has another size.
    Resize { columns: u16, rows: u16 },
}

/// What it is told.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Told {
    Started {
        id: Uuid,
        again: bool,
    },
    /// How far what was shown reaches.
    Seen {
        total: u64,
    },
    Ended {
        code: Option<i32>,
        why: Option<String>,
    },
    Refused {
        message: String,
    },
}

pub(super) async fn page(
    State(dashboard): State<Dashboard>,
    Path(name): Path<String>,
    Query(asked): Query<Asked>,
) -> Result<Response, PageError> {
    let workload = dashboard.ops.workload(&named(&name)?).await?;
    let running = workload.instances.iter().filter(|i| matches!(i.state(), InstanceState::Running { .. }));
    let names: Vec<String> = running.map(|instance| instance.name()).collect();
    let instance = names.iter().find(|name| **name == asked.instance).or(names.first()).cloned();
    let instances = names.into_iter().map(|name| (instance.as_ref() == Some(&name), name));
    let instances = instances.map(|(meant, name)| (name, meant)).collect();
    show(&Page { frame: Frame::at("workloads"), name, instances, instance })
}

pub(super) async fn socket(
    State(dashboard): State<Dashboard>,
    Path(name): Path<String>,
    Query(asked): Query<Asked>,
    (headers, uri): (HeaderMap, Uri),
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, PageError> {
    // A connection that is opened can change something, whatever its method.
    if from_other_site(&Method::POST, &headers, &uri) {
        let message = "this connection was begun by another site";
        return Err(PageError::new(StatusCode::FORBIDDEN, "Refused", message, "open toft itself in the browser"));
    }
    let workload = dashboard.ops.workload(&named(&name)?).await?;
    if !workload.instances.iter().any(|instance| instance.name() == asked.instance) {
        let message = format!("`{name}` has no such instance");
        return Err(ControlError::new(ErrorKind::NotFound, message).hint("its page lists its instances").into());
    }
    let Ok(upgrade) = upgrade else {
        let error = ControlError::new(ErrorKind::Invalid, "this address answers WebSocket connections only");
        return Err(error.hint("the page of the shell opens one").into());
    };
    // What runs beside this request does not know who asks.
    let who = actor::current().and_then(|actor| actor.user.clone());
    let upgrade = upgrade.max_message_size(MAX_MESSAGE_BYTES).max_frame_size(MAX_MESSAGE_BYTES);
    Ok(upgrade.on_upgrade(move |socket| serve(socket, dashboard, asked.instance, who)))
}

async fn serve(mut socket: WebSocket, dashboard: Dashboard, instance: String, who: Option<UserName>) {
    let Ok(Some(Said::Begin { id, seen, columns, rows })) = timeout(HELLO, hear(&mut socket)).await else { return };
    let size = TerminalSize { columns: columns.max(1), rows: rows.max(1) };
    let known = id.and_then(|id| Some((id, dashboard.shells.find(id, &instance, who.as_ref())?)));
    let (id, shell, again) = match known {
        Some((id, shell)) => (id, shell, true),
        None => match begin(&dashboard, &instance, who, size).await {
            Ok((id, shell)) => (id, shell, false),
            Err(error) => {
                let hint = error.hint.map(|hint| format!("; {hint}")).unwrap_or_default();
                // It is told or nobody is there.
                let _ = tell(&mut socket, &Told::Refused { message: format!("{}{hint}", error.message) }).await;
                return;
            }
        },
    };
    let _looking = shell.looked_at();
    if again {
        shell.send(ExecInput::Resize(size)).await;
    }
    if tell(&mut socket, &Told::Started { id, again }).await.is_err() {
        return;
    }
    let seen = if again { seen } else { 0 };
    let shutdown = dashboard.shutdown.clone();
    shutdown.run_until_cancelled(relay(&mut socket, &shell, seen)).await;
    let _ = socket.send(Message::Close(None)).await;
}

async fn begin(
    dashboard: &Dashboard,
    instance: &str,
    who: Option<UserName>,
    size: TerminalSize,
) -> Result<(Uuid, Arc<Shell>), ControlError> {
    let target = dashboard.ops.exec_target(instance).await?;
    let order = ExecOrder {
        command: ["sh", "-c", SHELL].map(str::to_owned).to_vec(),
        env: BTreeMap::from([("TERM".to_owned(), "xterm-256color".to_owned())]),
        user: None,
        dir: None,
        stdin: true,
        terminal: Some(size),
    };
    let session = dashboard.ops.exec(target, order).await.map_err(|refused| refused.error)?;
    dashboard.shells.keep(instance.to_owned(), who, session, dashboard.shutdown.clone())
}

async fn relay(socket: &mut WebSocket, shell: &Shell, mut seen: u64) {
    let mut asked = tokio::time::interval(ASKED);
    loop {
        let sent = tokio::select! {
            news = shell.news(seen) => {
                seen = news.total;
                let mut sent = Ok(());
                if !news.bytes.is_empty() {
                    sent = socket.send(Message::Binary(news.bytes.into())).await;
                }
                if sent.is_ok() {
                    sent = tell(socket, &Told::Seen { total: seen }).await;
                }
                match news.ended {
                    None => sent,
                    Some(end) => {
                        let (code, why) = match end {
                            End::Exited(code) => (Some(code), None),
                            End::Lost(why) => (None, Some(why)),
                        };
                        let _ = tell(socket, &Told::Ended { code, why }).await;
                        return;
                    }
                }
            }
            message = socket.recv() => match message {
                Some(Ok(Message::Binary(bytes))) => {
                    shell.send(ExecInput::Bytes(bytes.into())).await;
                    Ok(())
                }
                Some(Ok(Message::Text(text))) => match serde_json::from_str(&text) {
                    Ok(Said::Resize { columns, rows }) if columns > 0 && rows > 0 => {
                        shell.send(ExecInput::Resize(TerminalSize { columns, rows })).await;
                        Ok(())
                    }
                    _ => return,
                },
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => Ok(()),
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
            },
            _ = asked.tick() => socket.send(Message::Ping(Default::default())).await,
        };
        if sent.is_err() {
            return;
        }
    }
}

async fn hear(socket: &mut WebSocket) -> Option<Said> {
    loop {
        match socket.recv().await?.ok()? {
            Message::Text(text) => return serde_json::from_str(&text).ok(),
            Message::Ping(_) | Message::Pong(_) => {}
            Message::Binary(_) | Message::Close(_) => return None,
        }
    }
}

async fn tell(socket: &mut WebSocket, told: &Told) -> Result<(), axum::Error> {
    let text = serde_json::to_string(told).map_err(axum::Error::new)?;
    socket.send(Message::Text(text.into())).await
}
