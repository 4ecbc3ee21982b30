//! `volume move`.

use std::time::Duration;

use toft_model::name::Name;

use super::{Failure, client::Client, output, progress, volume_args::VolumeMoveArgs};
use crate::api::types::{Volume, VolumeMoveRequest, VolumeMoveStatus};

/// Time between two looks.
const PACE: Duration = Duration::from_millis(500);
/// Looks that may fail one after the other, as when nodes are restarted.
const MOST_FAILED: u32 = 240;

pub(super) async fn run(client: &Client, args: VolumeMoveArgs) -> Result<i32, Failure> {
    let path = format!("/api/v1/volumes/{}/move", args.name);
    if args.cancel {
        client.delete(&path).await?;
        println!("{}", args.name);
        return Ok(0);
    }
    let Some(to) = args.to else {
        return Err(
            Failure::of(2, "it is not said where to").hint("name a node with --to, or take a move back with --cancel")
        );
    };
    let begun: VolumeMoveStatus = client.post(&path, &VolumeMoveRequest { to: to.clone() }).await?;
    if args.detach {
        if args.json {
            output::json(&begun)?;
        } else {
            println!("{}", args.name);
        }
        return Ok(0);
    }
    let volume = wait(client, &args.name).await?;
    if let Some(failed) = volume.moving.as_ref().and_then(|moving| moving.failed.clone()) {
        let failure = Failure::of(1, format!("volume `{}` could not be moved to {to}: {failed}", args.name));
        return Err(failure.hint("it stays where it was, and what uses it runs there"));
    }
    if volume.node.as_deref() != Some(to.as_str()) {
        return Err(Failure::of(1, format!("the move of volume `{}` was taken back", args.name)));
    }
    if args.json {
        output::json(&volume)?;
    } else {
        println!("{} lies on {to}", args.name);
    }
    Ok(0)
}

/// Shows how far it is until it is over.
async fn wait(client: &Client, name: &Name) -> Result<Volume, Failure> {
    let bar = progress::bytes("moving", None);
    let mut failed = 0;
    loop {
        match client.get::<Volume>(&format!("/api/v1/volumes/{name}")).await {
            Ok(volume) => {
                failed = 0;
                match volume.moving.as_ref().filter(|moving| moving.failed.is_none()) {
                    None => {
                        bar.finish_and_clear();
                        return Ok(volume);
                    }
                    Some(moving) => {
                        bar.set_length(moving.size_bytes.unwrap_or(0));
                        bar.set_position(moving.done_bytes.unwrap_or(0));
                        bar.set_prefix(moving.step.clone());
                    }
                }
            }
            // The node that is asked may be restarted meanwhile; the move goes on.
            Err(failure) => {
                failed += 1;
                if failed >= MOST_FAILED {
                    return Err(failure);
                }
            }
        }
        tokio::time::sleep(PACE).await;
    }
}
