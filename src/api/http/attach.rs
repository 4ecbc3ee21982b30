//! `/instances/{name}/attach`: an instance's own process over a WebSocket, as `exec` for those beside it.

use std::time::Duration;

use axum::{
    extract::{
        Path, State, WebSocketUpgrade,
        rejection::PathRejection,
        ws::{Message, WebSocket, rejection::WebSocketUpgradeRejection},
    },
    response::Response,
};
use toft_model::exec::AttachOrder;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::{
    ApiError, ApiState,
    exec::{ASKED, GONE, MAX_MESSAGE_BYTES, ORDER, failed, farewell, first, named, news, relay, upgraded},
};
use crate::{
    api::types::ExecCommand,
    control::{
        ControlError, ErrorKind,
        node_access::exec::ExecSession,
        ops::{Ops, exec::Target},
    },
};

/// Attaches to the own process of an instance that has input or a terminal, over a WebSocket as for `exec`. The
/// first message is the order; the node says `started` when the client is attached, which may take as long as the image's
/// pull. Any number of clients see the output from then on and send input. The process goes on when the connection ends,
/// unless the workload runs in the `foreground`: its input ends then.
#[utoipa::path(get, path = "/instances/{name}/attach", tag = "instances", params(("name" = String, Path)), responses((status = 101, description = "The connection is a WebSocket now", body = crate::api::types::ExecNews), (status = 404, body = crate::api::types::ErrorEnvelope), (status = 409, body = crate::api::types::ErrorEnvelope)))]
pub async fn attach(
    State(api): State<ApiState>,
    name: Result<Path<String>, PathRejection>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let name = named(name)?;
    let upgrade = upgraded(upgrade, "toft attach")?;
    let target = api.ops.attach_target(&name).await?;
    let upgrade = upgrade.max_message_size(MAX_MESSAGE_BYTES).max_frame_size(MAX_MESSAGE_BYTES);
    let shut_out = api.ops.until_shut_out();
    Ok(upgrade.on_upgrade(move |socket| async move {
        tokio::select! {
            () = serve(socket, api.ops, target) => {}
            () = shut_out => {}
        }
    }))
}

async fn serve(mut socket: WebSocket, ops: Ops, target: Target) {
    let order = |command| match command {
        ExecCommand::Attach { order } => Some(order),
        _ => None,
    };
    let attached = match timeout(ORDER, first(&mut socket, order)).await {
        Ok(Some(Ok(order))) => attached(&mut socket, ops, target, order).await,
        Ok(Some(Err(error))) => Some(Err(error)),
        // Nobody is there, or they say nothing.
        Ok(None) | Err(_) => None,
    };
    match attached {
        Some(Ok(session)) => relay(socket, session).await,
        Some(Err(error)) => {
            // It is told or nobody is there.
            let _ = socket.send(news(&failed(error, None))).await;
            farewell(socket).await;
        }
        None => {}
    }
}

/// Waits for the process as long as the client does; nothing when it is gone.
async fn attached(
    socket: &mut WebSocket,
    ops: Ops,
    target: Target,
    order: AttachOrder,
) -> Option<Result<ExecSession, ControlError>> {
    let attaching = ops.attach(target, order);
    tokio::pin!(attaching);
    let mut asked = interval(ASKED);
    asked.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut heard = Instant::now();
    loop {
        tokio::select! {
            session = &mut attaching => return Some(session),
            said = socket.recv() => match said?.ok()? {
                Message::Ping(_) | Message::Pong(_) => heard = Instant::now(),
                Message::Close(_) => return None,
                Message::Text(_) | Message::Binary(_) => {
                    let error = ControlError::new(ErrorKind::Invalid, "the process is not there yet");
                    return Some(Err(error.hint("wait for `started` before you send anything")));
                }
            },
            _ = asked.tick() => {
                if heard.elapsed() > GONE || !matches!(timeout(Duration::from_secs(5), socket.send(Message::Ping(Default::default()))).await, Ok(Ok(()))) {
                    return None;
                }
            }
        }
    }
}
