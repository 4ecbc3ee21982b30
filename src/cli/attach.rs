//! `attach`: a workload's output as it comes, until its end or the detach keys.

use std::io::IsTerminal;

use toft_model::name::Name;

use super::{
    Failure,
    client::Client,
    exec::{Signals, read_input},
    logs::{self, Shown},
    terminal::Raw,
};
use crate::api::types::Workload;

/// control-P and control-Q, as with Docker.
const DETACH: [u8; 2] = [0x10, 0x11];

pub(super) async fn attach(client: &Client, name: &Name) -> Result<i32, Failure> {
    let path = format!("/api/v1/workloads/{name}");
    let workload: Workload = client.get(&path).await?;
    let mut signals = Signals::listen().map_err(|error| Failure::of(1, format!("no signals are heard: {error}")))?;
    let kept = if std::io::stdin().is_terminal() { Some(Raw::keys()?) } else { None };
    if kept.is_some() && std::io::stderr().is_terminal() {
        eprintln!("control-P control-Q detaches; `{name}` goes on");
    }
    let shown = Shown { timestamps: false, json: false, instance_names: workload.instances.len() > 1 };
    let path = format!("{path}/logs?follow=true&tail=0");
    let shows = logs::show(client, &path, shown);
    let code = tokio::select! {
        ended = shows => ended.map(|()| None),
        () = detached(), if kept.is_some() => Ok(Some(0)),
        number = signals.ending() => Ok(Some(128 + number)),
    };
    drop(kept);
    match code? {
        Some(code) => Ok(code),
        None => last_code(client, name).await,
    }
}

/// The code the workload ended with: that of its one instance, else 0.
async fn last_code(client: &Client, name: &Name) -> Result<i32, Failure> {
    match client.get::<Workload>(&format!("/api/v1/workloads/{name}")).await {
        Ok(workload) => match workload.instances.as_slice() {
            [instance] => Ok(instance.last_exit.as_ref().and_then(|exit| exit.code).unwrap_or(0)),
            _ => Ok(0),
        },
        // It was removed, which ended it.
        Err(failure) if failure.is("not_found") => Ok(0),
        Err(failure) => Err(failure),
    }
}

/// Returns when the keys were pressed one after the other. Other keys go nowhere: containers have no input.
async fn detached() {
    let mut input = read_input();
    let mut pressed = 0;
    while let Some(part) = input.recv().await {
        for byte in part {
            pressed = if byte == DETACH[pressed] { pressed + 1 } else { usize::from(byte == DETACH[0]) };
            if pressed == DETACH.len() {
                return;
            }
        }
    }
    std::future::pending().await
}
