//! The event stream: which tasks ended, which ran out of memory. A stream counts as open when an event of our own has
//! come back over it, so nothing that happens after `up` is missed.

use std::time::Duration;

use containerd_client::{
    events::{TaskExit, TaskOom},
    services::v1::{PublishRequest, SubscribeRequest},
    types::Envelope,
};
use futures_util::{StreamExt, stream::BoxStream};
use prost_types::{Any, Timestamp};
use toft_model::instance::Exit;
use uuid::Uuid;

use super::{
    Shared,
    client::{Client, QUICK, call},
    errors::Refusal,
};
use crate::agent::runtime::RuntimeEvent;

const HELLO: &str = "/toft/hello";

/// Forwards events until the stream breaks, and says why it did. Calls `up` once events flow.
pub(super) async fn forward(shared: &Shared, up: impl FnOnce()) -> String {
    let mark = Uuid::new_v4().to_string();
    let mut stream = subscribe(&shared.client, &shared.config.namespace);
    let mut up = Some(up);
    loop {
        let item = tokio::select! {
            item = stream.next() => item,
            reason = say_hello(&shared.client, &mark), if up.is_some() => return reason,
        };
        let envelope = match item {
            Some(Ok(envelope)) => envelope,
            Some(Err(reason)) => return reason,
            None => return "it closed the stream of events".to_owned(),
        };
        if envelope.namespace != shared.config.namespace {
            continue;
        }
        if envelope.topic == HELLO {
            let ours = envelope.event.is_some_and(|event| event.value == mark.as_bytes());
            if let (true, Some(up)) = (ours, up.take_if(|_| ours)) {
                up();
            }
        } else if let Some(event) = read(envelope) {
            if let RuntimeEvent::OutOfMemory { id } = event {
                shared.starved().insert(id);
            }
            // Nobody listening is fine.
            let _ = shared.events.send(event);
        }
    }
}

/// The stream opens with its first event, so the call is part of the stream.
fn subscribe(client: &Client, namespace: &str) -> BoxStream<'static, Result<Envelope, String>> {
    let filters = ["/tasks/exit", "/tasks/oom", HELLO]
        .map(|topic| format!("topic==\"{topic}\",namespace==\"{namespace}\""))
        .to_vec();
    let request = client.request(SubscribeRequest { filters });
    let mut events = client.events();
    let told = |status| Refusal::new("listening for events", &status).text().to_owned();
    futures_util::stream::once(async move { events.subscribe(request).await })
        .flat_map(move |answer| match answer {
            Ok(response) => response.into_inner().map(move |item| item.map_err(told)).boxed(),
            Err(status) => futures_util::stream::once(async move { Err(told(status)) }).boxed(),
        })
        .boxed()
}

/// Publishes our mark until dropped; returns only when that fails.
async fn say_hello(client: &Client, mark: &str) -> String {
    loop {
        let event = Any { type_url: "toft/hello".to_owned(), value: mark.as_bytes().to_vec() };
        let request = client.request(PublishRequest { topic: HELLO.to_owned(), event: Some(event) });
        if let Err(refusal) = call("publishing an event", QUICK, client.events().publish(request)).await {
            return refusal.text().to_owned();
        }
        // The first is often too early for the stream; the next shall not keep the daemon's start waiting.
        tokio::time::sleep(Duration::from_millis(4)).await;
    }
}

/// An event about a container of ours; those of other processes in it are passed over.
fn read(envelope: Envelope) -> Option<RuntimeEvent> {
    let mut event = envelope.event?;
    // containerd leaves out the slash that the decoder asks for.
    event.type_url.insert(0, '/');
    if envelope.topic == "/tasks/exit" {
        let exit: TaskExit = event.to_msg().ok()?;
        if exit.id != exit.container_id {
            return None;
        }
        let id = exit.container_id.parse().ok()?;
        return Some(RuntimeEvent::TaskEnded { id, exit: exit_of(exit.exit_status, exit.exited_at) });
    }
    let oom: TaskOom = event.to_msg().ok()?;
    Some(RuntimeEvent::OutOfMemory { id: oom.container_id.parse().ok()? })
}

/// An exit as containerd tells it. A time it does not know is now.
pub(super) fn exit_of(status: u32, at: Option<Timestamp>) -> Exit {
    let at_ms = at.map(timestamp_ms).filter(|ms| *ms > 0).unwrap_or_else(|| jiff::Timestamp::now().as_millisecond());
    Exit::new(i32::try_from(status).ok(), at_ms)
}

/// Milliseconds since 1970.
pub(super) fn timestamp_ms(at: Timestamp) -> i64 {
    at.seconds.saturating_mul(1000).saturating_add(i64::from(at.nanos) / 1_000_000)
}
