//! Commands on who belongs to the cluster: tokens, nodes that are let in, nodes that are removed.

use rusqlite::Connection;
use std::collections::BTreeMap;

use super::{
    apply::{Applied, delete_if_empty},
    command::{Refusal, RefusalKind, Reply},
    tables::{
        AdmissionRow, EventLevel, EventRow, InstanceRow, NodeRow, RemovedNodeRow, TokenRow, TokenState, VolumeRow,
        WorkloadRow,
    },
    volumes::users_of,
};
use crate::{
    ids::NodeId,
    instance::{Desired, InstanceState},
    invalid::Invalid,
    name::Name,
    token::{Digest, MAX_TOKENS, NewToken, TokenId, merge_labels},
};

/// How long a token that lets nobody in any more is shown: a week.
const SHOWN_MS: i64 = 7 * 24 * 60 * 60 * 1_000;

fn refuse(kind: RefusalKind, message: impl Into<String>, hint: impl Into<String>) -> rusqlite::Result<Applied> {
    Ok(Err(Refusal { kind, message: message.into(), hint: hint.into() }))
}

fn tell(connection: &Connection, at_ms: i64, subject: &str, message: &str) -> rusqlite::Result<()> {
    EventRow::add(connection, at_ms, EventLevel::Info, subject, message)
}

pub(super) fn create_token(connection: &Connection, token: &NewToken, at_ms: i64) -> rusqlite::Result<Applied> {
    if let Err(Invalid { message, hint, .. }) = token.check(at_ms) {
        return refuse(RefusalKind::Invalid, message, hint);
    }
    let tokens = TokenRow::all(connection)?;
    if tokens.iter().any(|row| row.token.id == token.id) {
        return refuse(RefusalKind::Exists, "there is a token of that id already", "repeat the request");
    }
    if tokens.iter().filter(|row| row.state(at_ms) == TokenState::Valid).count() >= MAX_TOKENS {
        let message = format!("{MAX_TOKENS} tokens are valid, and no more fit");
        return refuse(RefusalKind::Full, message, "revoke some: `toft token list`, `toft token revoke ID`");
    }
    // Those that let nobody in are shown for a while, unless there is no room.
    let before_ms = if tokens.len() >= MAX_TOKENS { i64::MAX } else { at_ms.saturating_sub(SHOWN_MS) };
    TokenRow::forget_useless(connection, at_ms, before_ms)?;
    let row = TokenRow { token: token.clone(), uses_left: token.uses, created_at_ms: at_ms, revoked_at_ms: None };
    row.save(connection)?;
    let uses = if token.uses == 1 { "one machine".to_owned() } else { format!("{} machines", token.uses) };
    tell(connection, at_ms, &format!("token/{}", token.id), &format!("created; it lets {uses} join"))?;
    Ok(Ok(Reply::Token(Box::new(row))))
}

pub(super) fn revoke_token(connection: &Connection, id: &TokenId, at_ms: i64) -> rusqlite::Result<Applied> {
    let Some(mut row) = TokenRow::by_id(connection, id)? else {
        let hint = "`toft token list` shows the tokens there are";
        return refuse(RefusalKind::NotFound, format!("there is no token `{id}`"), hint);
    };
    if row.revoked_at_ms.is_none() {
        row.revoked_at_ms = Some(at_ms);
        row.save(connection)?;
        tell(connection, at_ms, &format!("token/{id}"), "revoked")?;
    }
    Ok(Ok(Reply::Token(Box::new(row))))
}

/// Who asks to be let in.
pub(super) struct Admit<'a> {
    pub(super) token_id: &'a TokenId,
    pub(super) node_id: NodeId,
    pub(super) name: &'a Name,
    pub(super) labels: &'a BTreeMap<String, String>,
    pub(super) key: &'a Digest,
    pub(super) in_place_of: Option<NodeId>,
    pub(super) at_ms: i64,
}

pub(super) fn admit(connection: &Connection, index: u64, admit: &Admit<'_>) -> rusqlite::Result<Applied> {
    let Admit { token_id, node_id, name, labels, key, in_place_of, at_ms } = *admit;
    let Some(mut row) = TokenRow::by_id(connection, token_id)? else {
        return refuse(RefusalKind::NotFound, "the token is not valid", NEW_TOKEN);
    };
    let state = row.state(at_ms);
    // Who did not hear the answer asks again.
    let known = AdmissionRow::by_key(connection, key)?;
    if let Some(known) = known {
        if known.token_id == *token_id && known.name == *name && state != TokenState::Revoked {
            return Ok(Ok(Reply::Admitted(Box::new(known))));
        }
        return refuse(RefusalKind::Exists, "a member with this key was let in before", "join again with a new key");
    }
    if state != TokenState::Valid {
        return refuse(RefusalKind::Stale, useless(state), NEW_TOKEN);
    }
    let node_id = in_place_of.unwrap_or(node_id);
    if NodeRow::id_of(connection, name)?.is_some_and(|taken| taken != node_id) {
        return refuse(RefusalKind::Exists, format!("another node is called `{name}`"), taken(name));
    }
    if let Some(wanted) = row.token.name.as_ref().filter(|wanted| *wanted != name) {
        let hint = format!("join as `{wanted}`, or ask for a token without a name");
        return refuse(RefusalKind::Invalid, format!("the token is for a node called `{wanted}`"), hint);
    }
    let mut all = row.token.labels.clone();
    all.extend(labels.clone());
    let settled = NodeRow::by_id(connection, node_id)?;
    match merge_labels(settled.as_ref().map(|node| node.settings.clone()).unwrap_or_default(), &all) {
        Ok(settings) if settled.is_some() => NodeRow::save_settings(connection, node_id, &settings)?,
        Ok(_) => {}
        Err(Invalid { message, hint, .. }) => return refuse(RefusalKind::Invalid, message, hint),
    }
    row.uses_left -= 1;
    row.save(connection)?;
    let admission = AdmissionRow {
        node_id,
        token_id: token_id.clone(),
        key: *key,
        member_id: AdmissionRow::next_number(connection, index)?,
        name: name.clone(),
        role: row.token.role,
        labels: all,
        at_ms,
    };
    admission.save(connection)?;
    RemovedNodeRow::delete(connection, node_id)?;
    let subject = format!("node/{name}");
    tell(connection, at_ms, &subject, &format!("let in as {} with token {token_id}", row.token.role.as_str()))?;
    if settled.is_some() {
        let volumes = volumes_on(connection, node_id)?;
        let mut message = "a new machine takes the place of the one that does not answer".to_owned();
        if !volumes.is_empty() {
            message += &format!("; data that lay there is not on it: {}", listed(&volumes));
        }
        EventRow::add(connection, at_ms, EventLevel::Warning, &subject, &message)?;
    }
    Ok(Ok(Reply::Admitted(Box::new(admission))))
}

const NEW_TOKEN: &str = "ask for a new one: `toft token create` on a member";

/// What is told of a token that lets nobody in to who has its secret.
pub fn useless(state: TokenState) -> &'static str {
    match state {
        TokenState::Valid => "the token is valid",
        TokenState::Expired => "the token has expired",
        TokenState::Spent => "the token has been used up",
        TokenState::Revoked => "the token was revoked",
    }
}

fn taken(name: &Name) -> String {
    format!("choose another name with --name, or remove that node first: `toft node rm {name}`")
}

/// A node on its way out.
pub(super) struct Remove<'a> {
    pub(super) node_id: NodeId,
    pub(super) name: &'a Name,
    /// Its instances are lost already.
    pub(super) lost: bool,
    pub(super) force: bool,
    pub(super) at_ms: i64,
}

pub(super) fn remove_node(connection: &Connection, remove: &Remove<'_>) -> rusqlite::Result<Applied> {
    let Remove { node_id, name, lost, force, at_ms } = *remove;
    let instances = InstanceRow::of_node(connection, node_id)?;
    let down = |row: &&InstanceRow| {
        let state = row.report.as_ref().and_then(|report| report.state.as_ref());
        !matches!(state, Some(InstanceState::Finished { .. } | InstanceState::Stopped { .. }))
    };
    let live = instances.iter().filter(down).count();
    if live > 0 && !lost && !force {
        let hint = format!("drain it first: `toft node drain {name}`; or end them with --force");
        return refuse(
            RefusalKind::InUse,
            format!("`{name}` runs {live} instance{}", if live == 1 { "" } else { "s" }),
            hint,
        );
    }
    let volumes = volumes_on(connection, node_id)?;
    let workloads: Vec<_> =
        WorkloadRow::all(connection)?.into_iter().filter(|row| row.desired != Desired::Removed).collect();
    for volume in &volumes {
        if let Some(user) = users_of(volume, &workloads, &[]).first() {
            let message = format!("volume `{volume}` lies on `{name}`, and `{user}` uses it");
            let hint = format!(
                "back it up (`toft volume backup {volume}`) and remove `{user}`, which can be run again elsewhere"
            );
            return refuse(RefusalKind::InUse, message, hint);
        }
    }
    if !volumes.is_empty() && !force {
        let message = format!("volumes lie on `{name}`: {}", listed(&volumes));
        return refuse(RefusalKind::InUse, message, "remove them with `toft volume rm`, or give them up with --force");
    }
    for instance in &instances {
        InstanceRow::delete(connection, instance.id)?;
    }
    for volume in &volumes {
        if let Some(row) = VolumeRow::named(connection, volume)? {
            row.delete(connection)?;
        }
    }
    NodeRow::delete(connection, node_id)?;
    AdmissionRow::delete(connection, node_id)?;
    RemovedNodeRow { node_id, name: name.clone(), at_ms }.save(connection)?;
    let mut touched: Vec<_> = instances.iter().map(|instance| instance.workload_id).collect();
    touched.sort_unstable();
    touched.dedup();
    for id in touched {
        if let Some(workload) = WorkloadRow::by_id(connection, id)? {
            delete_if_empty(connection, &workload, at_ms)?;
        }
    }
    let mut message = "removed from the cluster".to_owned();
    if live > 0 {
        message += &format!("; {live} instances that were there are given up");
    }
    if !volumes.is_empty() {
        message += &format!("; volumes that were there are given up: {}", listed(&volumes));
    }
    let level = if live > 0 || !volumes.is_empty() { EventLevel::Warning } else { EventLevel::Info };
    EventRow::add(connection, at_ms, level, &format!("node/{name}"), &message)?;
    Ok(Ok(Reply::Done))
}

fn volumes_on(connection: &Connection, node_id: NodeId) -> rusqlite::Result<Vec<Name>> {
    let all = VolumeRow::all(connection)?;
    Ok(all.into_iter().filter(|row| row.node_id == Some(node_id)).map(|row| row.name).collect())
}

fn listed(names: &[Name]) -> String {
    let shown: Vec<&str> = names.iter().take(8).map(Name::as_str).collect();
    let more = if names.len() > 8 { format!(" and {} more", names.len() - 8) } else { String::new() };
    format!("{}{more}", shown.join(", "))
}
