//! Writes the audit trail: what a command that somebody asked for found, and what it left.
//!
//! An entry is written in the transaction of its command. Values that nobody may read later are left out: those of
//! environments, and everything that is sealed or hashed is not in the pictures to begin with.

use rusqlite::Connection;
use serde_json::{Map, Value, json};

use super::{
    command::Command,
    tables::{
        ApiTokenRow, AuditRow, ExternalUserRow, InstanceRow, NodeRow, PasskeyRow, RegistryRow, SecondFactorRow,
        SecretRow, SessionRow, SigningKeyRow, TokenRow, UserRow, VolumeRow, WorkloadRow, access_settings,
        placement_settings,
    },
};
use crate::{
    identity::{Author, ExternalUser, UserName},
    name::Name,
    registry::RegistryName,
    token::TokenId,
};

/// Longest text of what was before, and of what is afterwards, in bytes.
const LONGEST: usize = 2_000;
/// What stands for a value that is left out.
const LEFT_OUT: &str = "***";

/// What a command is about.
enum What<'a> {
    Workload(&'a Name),
    Secret(&'a Name),
    Registry(&'a RegistryName),
    Volume(&'a Name),
    Node(&'a Name),
    Card(&'a Command),
    Placement,
    Moves(&'a Command),
    JoinToken(&'a TokenId),
    User(&'a UserName),
    Session(&'a TokenId),
    ApiToken(&'a TokenId),
    SecondFactor(&'a UserName),
    Passkey(&'a UserName, &'a TokenId),
    Access,
    SigningKeys(&'a TokenId),
    ExternalUser(&'a ExternalUser),
    Noted { subject: &'a str, detail: &'a str },
}

/// An entry that waits for what its command leaves.
pub(super) struct Draft {
    action: String,
    subject: String,
    before: Option<Value>,
}

impl Draft {
    /// What is there before `command` is applied; `None` for commands that nobody asks for.
    pub(super) fn of(connection: &Connection, command: &Command) -> rusqlite::Result<Option<Self>> {
        let Some((action, what)) = what(command) else { return Ok(None) };
        // What is told of these is what was asked for.
        let before = match what {
            What::Noted { .. } | What::Moves(_) => None,
            _ => picture(connection, &what)?,
        };
        Ok(Some(Self { action, subject: subject(connection, &what)?, before }))
    }

    /// Writes the entry after `command` was applied.
    pub(super) fn finish(self, connection: &Connection, command: &Command, author: &Author) -> rusqlite::Result<()> {
        let Self { action, subject, before } = self;
        let after = match what(command) {
            Some((_, what)) => picture(connection, &what)?,
            None => None,
        };
        let (before, after) = differences(before, after);
        let text = |value: Option<Value>| value.map(bounded);
        let row =
            AuditRow { seq: 0, author: author.clone(), action, subject, before: text(before), after: text(after) };
        row.add(connection)
    }
}

fn what(command: &Command) -> Option<(String, What<'_>)> {
    let told = |action: &str, what| Some((action.to_owned(), what));
    match command {
        Command::PutWorkload { spec, .. } => told("put_workload", What::Workload(&spec.name)),
        Command::PowerWorkload { name, action, .. } => {
            let action = match action {
                super::PowerAction::Start => "start_workload",
                super::PowerAction::Stop => "stop_workload",
                super::PowerAction::Restart => "restart_workload",
            };
            told(action, What::Workload(name))
        }
        Command::RemoveWorkload { name, .. } => told("remove_workload", What::Workload(name)),
        Command::LabelWorkload { name, .. } => told("label_workload", What::Workload(name)),
        Command::RollBackWorkload { name, .. } => told("roll_back_workload", What::Workload(name)),
        Command::PutSecret { name, .. } => told("put_secret", What::Secret(name)),
        Command::RemoveSecret { name, .. } => told("remove_secret", What::Secret(name)),
        Command::PutRegistry { registry, .. } => told("put_registry", What::Registry(registry)),
        Command::RemoveRegistry { registry, .. } => told("remove_registry", What::Registry(registry)),
        Command::CreateVolume { name, .. } => told("create_volume", What::Volume(name)),
        Command::BindVolume { name, .. } => told("bind_volume", What::Volume(name)),
        Command::RemoveVolume { name, .. } => told("remove_volume", What::Volume(name)),
        Command::MoveVolume { name, .. } => told("move_volume", What::Volume(name)),
        Command::ConfigureGpu { .. } => told("configure_gpu", What::Card(command)),
        Command::ConfigureNode { name, .. } => told("configure_node", What::Node(name)),
        Command::RemoveNode { name, .. } => told("remove_node", What::Node(name)),
        Command::ConfigurePlacement { .. } => told("configure_placement", What::Placement),
        Command::MoveInstances { .. } => told("move_instances", What::Moves(command)),
        Command::CreateToken { token, .. } => told("create_join_token", What::JoinToken(&token.id)),
        Command::RevokeToken { token_id, .. } => told("revoke_join_token", What::JoinToken(token_id)),
        Command::CreateUser { user, .. } => told("create_user", What::User(&user.name)),
        Command::ChangeUser { name, changes, .. } => {
            told(if changes.password.is_some() { "change_password" } else { "change_user" }, What::User(name))
        }
        Command::RemoveUser { name, .. } => told("remove_user", What::User(name)),
        Command::OpenSession { session, .. } => told("sign_in", What::Session(&session.id)),
        Command::EndSession { session_id, .. } => told("end_session", What::Session(session_id)),
        Command::CreateApiToken { token, .. } => told("create_api_token", What::ApiToken(&token.id)),
        Command::RevokeApiToken { token_id, .. } => told("revoke_api_token", What::ApiToken(token_id)),
        Command::PutSecondFactor { factor, .. } => told("turn_on_second_factor", What::SecondFactor(&factor.user)),
        Command::RemoveSecondFactor { name, proof, .. } => {
            let action = if proof.is_some() { "turn_off_second_factor" } else { "reset_second_factor" };
            told(action, What::SecondFactor(name))
        }
        Command::PutPasskey { passkey, .. } => told("add_passkey", What::Passkey(&passkey.user, &passkey.id)),
        Command::RemovePasskey { name, passkey_id, .. } => told("remove_passkey", What::Passkey(name, passkey_id)),
        Command::ConfigureAccess { .. } => told("configure_access", What::Access),
        Command::PutSigningKey { key, .. } => told("rotate_signing_keys", What::SigningKeys(&key.id)),
        Command::AcceptUser { user, .. } => told("accept_user", What::ExternalUser(user)),
        Command::NoteAction { action, subject, detail, .. } => told(action, What::Noted { subject, detail }),
        Command::RegisterNode { .. }
        | Command::CommitPlan { .. }
        | Command::ReportInstances { .. }
        | Command::ClaimSubnet { .. }
        | Command::TurnVolume { .. }
        | Command::ForgetVolumes { .. }
        | Command::NoteNodes { .. }
        | Command::AnnounceMesh { .. }
        | Command::AdmitNode { .. }
        | Command::NoteUses { .. } => None,
    }
}

fn subject(connection: &Connection, what: &What<'_>) -> rusqlite::Result<String> {
    Ok(match what {
        What::Workload(name) => format!("workload/{name}"),
        What::Secret(name) => format!("secret/{name}"),
        What::Registry(name) => format!("registry/{name}"),
        What::Volume(name) => format!("volume/{name}"),
        What::Node(name) => format!("node/{name}"),
        What::Card(Command::ConfigureGpu { node_id, gpu, .. }) => {
            let node = NodeRow::by_id(connection, *node_id)?.map(|node| node.name.to_string());
            format!("gpu/{}/{gpu}", node.unwrap_or_else(|| node_id.to_string()))
        }
        What::Card(_) => "gpu".to_owned(),
        What::Placement => "cluster/placement".to_owned(),
        What::Moves(_) => "cluster/rebalance".to_owned(),
        What::JoinToken(id) => format!("join-token/{id}"),
        What::User(name) => format!("user/{name}"),
        What::Session(id) => format!("session/{id}"),
        What::ApiToken(id) => format!("api-token/{id}"),
        What::SecondFactor(name) | What::Passkey(name, _) => format!("user/{name}"),
        What::Access => "cluster/access".to_owned(),
        What::SigningKeys(id) => format!("signing-key/{id}"),
        What::ExternalUser(user) => {
            let known = ExternalUserRow::user_of(connection, &user.issuer, &user.subject)?.or(user.name.clone());
            format!("user/{}", known.as_ref().map_or("", UserName::as_str))
        }
        What::Noted { subject, .. } => (*subject).to_owned(),
    })
}

/// What there is to tell of it now.
fn picture(connection: &Connection, what: &What<'_>) -> rusqlite::Result<Option<Value>> {
    Ok(match what {
        What::Workload(name) => WorkloadRow::named(connection, name)?.map(|row| {
            let mut spec = serde_json::to_value(&row.spec).unwrap_or_default();
            if let Value::Object(spec) = &mut spec {
                spec.insert("desired".into(), json!(row.desired.as_str()));
                spec.insert("epoch".into(), json!(row.epoch));
            }
            spec
        }),
        What::Secret(name) => SecretRow::named(connection, name)?
            .map(|row| json!({"version": row.version, "size_bytes": row.size_bytes})),
        What::Registry(name) => RegistryRow::of(connection, name)?.map(|row| json!({"username": row.username})),
        What::Volume(name) => VolumeRow::named(connection, name)?.map(|row| {
            let moving = row.moving.as_ref().map(|moving| moving.to.to_string());
            json!({"node_id": row.node_id, "labels": row.labels, "moving_to": moving})
        }),
        What::Node(name) => match NodeRow::id_of(connection, name)? {
            Some(id) => {
                NodeRow::by_id(connection, id)?.map(|row| serde_json::to_value(&row.settings).unwrap_or_default())
            }
            None => None,
        },
        What::Card(Command::ConfigureGpu { node_id, gpu, .. }) => {
            let node = NodeRow::by_id(connection, *node_id)?;
            node.map(|node| serde_json::to_value(node.gpus.of(gpu)).unwrap_or_default())
        }
        What::Card(_) => None,
        What::Placement => Some(serde_json::to_value(placement_settings(connection)?).unwrap_or_default()),
        What::Moves(Command::MoveInstances { moves, .. }) => {
            let mut ordered = Vec::new();
            for one in moves {
                if let Some(row) = InstanceRow::by_id(connection, one.instance_id)? {
                    let workload = WorkloadRow::name_of(connection, row.workload_id)?;
                    ordered.push(format!("{}-{}", workload.map_or_else(String::new, |name| name.to_string()), row.ordinal));
                }
            }
            Some(json!({ "instances": ordered }))
        }
        What::Moves(_) => None,
        What::JoinToken(id) => TokenRow::by_id(connection, id)?.map(|row| {
            json!({"uses": row.token.uses, "role": row.token.role.as_str(), "name": row.token.name,
                   "labels": row.token.labels, "expires_at_ms": row.token.expires_at_ms, "revoked": row.revoked_at_ms.is_some()})
        }),
        What::User(name) => UserRow::named(connection, name)?.map(|row| {
            json!({"role": row.rights.role, "grants": row.rights.grants, "disabled": row.disabled,
                   "has_password": row.password.is_some()})
        }),
        What::Session(id) => SessionRow::by_id(connection, id)?
            .map(|row| -> rusqlite::Result<Value> {
                let label = match &row.passkey {
                    Some(id) => PasskeyRow::by_id(connection, id)?.map(|row| row.passkey.label),
                    None => None,
                };
                let mut told = json!({"user": row.session.user, "came_from": row.session.came_from, "agent": row.session.agent});
                if let (Some(label), Value::Object(told)) = (label, &mut told) {
                    told.insert("passkey".into(), json!(label));
                }
                Ok(told)
            })
            .transpose()?,
        What::ApiToken(id) => ApiTokenRow::by_id(connection, id)?.map(|row| {
            json!({"user": row.token.user, "label": row.token.label, "role": row.token.rights.role,
                   "grants": row.token.rights.grants, "expires_at_ms": row.token.expires_at_ms})
        }),
        What::SecondFactor(name) => Some(json!({"second_factor": SecondFactorRow::is_there(connection, name)?})),
        What::Passkey(_, id) => PasskeyRow::by_id(connection, id)?
            .map(|row| json!({"passkey": row.passkey.label, "domain": row.passkey.domain, "backup": row.passkey.backup})),
        What::Access => {
            let settings = access_settings(connection)?;
            Some(json!({"second_factor_for_admins": settings.second_factor_for_admins, "passkey_domain": settings.passkey_domain}))
        }
        What::SigningKeys(_) => {
            let keys = SigningKeyRow::all(connection)?.into_iter().map(|row| row.key.id.to_string());
            Some(json!({"keys": keys.collect::<Vec<_>>()}))
        }
        What::ExternalUser(user) => match ExternalUserRow::user_of(connection, &user.issuer, &user.subject)? {
            Some(name) => UserRow::named(connection, &name)?
                .map(|row| json!({"role": row.rights.role, "issuer": user.issuer, "subject": user.subject})),
            None => None,
        },
        What::Noted { detail, .. } => (!detail.is_empty()).then(|| json!({ "detail": detail })),
    })
}

/// Leaves what is the same out, and values that nobody may read later.
fn differences(before: Option<Value>, after: Option<Value>) -> (Option<Value>, Option<Value>) {
    let redacted = |value: Option<Value>| value.map(without_values);
    match (before, after) {
        (Some(Value::Object(mut before)), Some(Value::Object(mut after))) => {
            let same: Vec<String> = before
                .iter()
                .filter(|(key, value)| after.get(*key) == Some(value))
                .map(|(key, _)| key.clone())
                .collect();
            for key in same {
                before.remove(&key);
                after.remove(&key);
            }
            let some = |map: Map<String, Value>| (!map.is_empty()).then_some(Value::Object(map));
            (redacted(some(before)), redacted(some(after)))
        }
        (before, after) => (redacted(before), redacted(after)),
    }
}

fn without_values(mut picture: Value) -> Value {
    if let Some(Value::Object(env)) = picture.get_mut("env") {
        env.values_mut().for_each(|value| *value = Value::from(LEFT_OUT));
    }
    picture
}

fn bounded(value: Value) -> String {
    let text = value.to_string();
    if text.len() <= LONGEST {
        return text;
    }
    let cut: String = text.chars().take(LONGEST / 2).collect();
    json!({ "cut": cut }).to_string()
}
