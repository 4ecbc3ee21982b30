//! `audit` and `ca show`.

use std::io::Write;

use http_body_util::BodyExt;

use super::{
    Failure,
    client::{Client, query_value},
    output,
    user_args::AuditArgs,
};
use crate::api::types::{AuditEntry, Authority, Page};

pub(super) async fn audit(client: &Client, args: AuditArgs) -> Result<i32, Failure> {
    let mut asked = String::new();
    for (key, value) in [("user", &args.user), ("since", &args.since), ("grep", &args.grep)] {
        if let Some(value) = value {
            asked += &format!("&{key}={}", query_value(value));
        }
    }
    if args.json {
        return export(client, &asked).await;
    }
    let mut entries: Vec<AuditEntry> = Vec::new();
    let mut after = String::new();
    loop {
        let left = if args.tail == 0 { 1_000 } else { (args.tail as usize - entries.len()).min(1_000) };
        let page: Page<AuditEntry> = client.get(&format!("/api/v1/audit?limit={left}{asked}{after}")).await?;
        entries.extend(page.items);
        let enough = args.tail != 0 && entries.len() >= args.tail as usize;
        match page.next.filter(|_| !enough) {
            Some(next) => after = format!("&after={}", query_value(&next)),
            None => break,
        }
    }
    // The newest last, as logs are read.
    let rows = entries.iter().rev().map(|entry| {
        let side = |json: &Option<Box<serde_json::value::RawValue>>| match json {
            Some(json) => output::harmless(json.get()),
            None => String::new(),
        };
        vec![
            entry.at.get(..19).unwrap_or(&entry.at).replace('T', " "),
            entry.user.clone(),
            entry.from.clone().unwrap_or_else(|| entry.way.clone()),
            entry.action.clone(),
            output::harmless(&entry.subject),
            side(&entry.before),
            side(&entry.after),
        ]
    });
    output::table(&["TIME (UTC)", "USER", "FROM", "ACTION", "SUBJECT", "BEFORE", "AFTER"], rows);
    Ok(0)
}

pub(super) async fn authority(client: &Client, json: bool) -> Result<i32, Failure> {
    let authority: Authority = client.get("/api/v1/ca").await?;
    if json {
        output::json(&authority)?;
    } else {
        eprintln!("SHA-256 {}", authority.sha256);
        println!("{}", authority.pem.trim_end());
    }
    Ok(0)
}

async fn export(client: &Client, asked: &str) -> Result<i32, Failure> {
    let question = asked.replacen('&', "?", 1);
    let mut lines = client.stream(&format!("/api/v1/audit/export{question}")).await?;
    let mut out = std::io::stdout().lock();
    while let Some(frame) = lines.frame().await {
        let frame = frame.map_err(|error| Failure::of(1, format!("the connection to toft broke: {error}")))?;
        if let Ok(bytes) = frame.into_data() {
            out.write_all(&bytes)
                .map_err(|error| Failure::of(1, format!("standard output cannot be written: {error}")))?;
        }
    }
    Ok(0)
}
