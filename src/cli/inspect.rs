//! `inspect`, `events`.

use toft_model::name::Name;

use super::{Failure, args::EventsArgs, client::Client, output};
use crate::api::types::{Event, Page, Workload};

pub(super) async fn inspect(client: &Client, name: &Name) -> Result<i32, Failure> {
    let workload: Workload = client.get(&format!("/api/v1/workloads/{name}")).await?;
    output::json(&workload)?;
    Ok(0)
}

pub(super) async fn events(client: &Client, args: EventsArgs) -> Result<i32, Failure> {
    let mut events: Vec<Event> = match &args.name {
        None => client.get::<Page<Event>>(&format!("/api/v1/events?limit={}", args.limit)).await?.items,
        Some(name) => {
            // A workload's story is its own and that of its instances.
            let workload: Workload = client.get(&format!("/api/v1/workloads/{name}")).await?;
            let instances = workload.instances.iter().map(|instance| format!("instance/{}", instance.name));
            let mut events = Vec::new();
            for subject in std::iter::once(format!("workload/{name}")).chain(instances) {
                let path =
                    format!("/api/v1/events?limit={}&subject={}", args.limit, super::client::query_value(&subject));
                events.extend(client.get::<Page<Event>>(&path).await?.items);
            }
            events
        }
    };
    events.sort_by_key(|event| event.seq);
    let skipped = events.len().saturating_sub(args.limit as usize);
    let events = events.split_off(skipped);
    if args.json {
        output::json(&events)?;
    } else {
        let rows = events.iter().map(|event| {
            let message = output::harmless(&event.message);
            vec![output::age(&event.at), event.level.clone(), event.subject.clone(), message]
        });
        output::table(&["AGE", "LEVEL", "SUBJECT", "MESSAGE"], rows);
    }
    Ok(0)
}
