//! `/workloads`.

use std::{collections::BTreeMap, time::Duration};

use axum::{
    Extension, Json,
    body::Body as RawBody,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::StreamExt;
use serde::Deserialize;
use toft_model::{
    instance::InstanceState,
    log::{LogLine, LogQuery},
    name::Name,
    state::{InstanceView, PowerAction, PutMode, WorkloadView},
    workload::WorkloadSpec,
};
use utoipa::{IntoParams, ToSchema};

use super::{
    ApiError, ApiState,
    consistency::Consistency,
    error::{Asked, Body, Parsed},
    idempotency::Changes,
    kept::PageKey,
    query::{ListQuery, generation, moment_ns},
};
use crate::{
    api::types::{LogItem, LogRecord, LogTrouble, Page, Waited, Workload, time_ns},
    control::{
        ControlError, ErrorKind,
        ops::{
            logs::{NamedLine, in_time, merged},
            now_ms,
            wait::Milestone,
        },
    },
};

/// Every workload, by name.
#[utoipa::path(get, path = "/workloads", tag = "workloads", params(ListQuery), responses((status = 200, body = Page<Workload>)))]
pub async fn list(State(api): State<ApiState>, Asked(query): Asked<ListQuery>) -> Result<Response, ApiError> {
    let limit = query.limit()?;
    // Noted before the state is read: what is read then is of that command or a later one.
    let index = *api.ops.state().watch().borrow();
    let key = PageKey { index, after: query.after.clone(), limit };
    if let Some(page) = api.kept.get(&key) {
        return Ok(json_page(page));
    }
    let encode = move |workloads: Vec<WorkloadView>| {
        // Of what is on its way the node tells more than the state knows, and it changes without a command.
        let moves =
            |instance: &InstanceView| matches!(instance.state(), InstanceState::Assigned | InstanceState::Starting);
        let rests = !workloads.iter().flat_map(|workload| &workload.instances).any(moves);
        let workloads = workloads.into_iter().map(Workload::from).collect();
        let page = Page::cut(workloads, limit, |workload: &Workload| workload.name.clone());
        serde_json::to_vec(&page).map(|page| (Bytes::from(page), rests))
    };
    // One more than asked for tells whether there are more.
    let page = api.ops.workload_page(query.after, limit + 1, encode).await?;
    let (page, rests) = page.map_err(|e| ControlError::new(ErrorKind::Internal, e.to_string()))?;
    if rests {
        api.kept.put(key, &page);
    }
    Ok(json_page(page))
}

fn json_page(page: Bytes) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], page).into_response()
}

/// Creates a workload; its name must be free.
#[utoipa::path(post, path = "/workloads", tag = "workloads", request_body = WorkloadSpec, responses((status = 201, body = Workload), (status = 409, body = crate::api::types::ErrorEnvelope)))]
pub async fn create(Changes(ops): Changes, Body(spec): Body<WorkloadSpec>) -> Result<Response, ApiError> {
    let location = format!("/api/v1/workloads/{}", spec.name);
    let workload = ops.put_workload(spec, PutMode::Create).await?;
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], tagged(workload)).into_response())
}

/// One workload. How far the images are that it waits for is asked of their nodes, but not for `consistency=local`.
#[utoipa::path(get, path = "/workloads/{name}", tag = "workloads", params(("name" = String, Path)), responses((status = 200, body = Workload), (status = 404, body = crate::api::types::ErrorEnvelope)))]
pub async fn show(
    State(api): State<ApiState>,
    Parsed(name): Parsed<Name>,
    Extension(consistency): Extension<Consistency>,
) -> Result<Response, ApiError> {
    Ok(tagged(match consistency {
        Consistency::Linearizable => api.ops.workload(&name).await?,
        Consistency::Local => api.ops.workload_known_here(&name).await?,
    }))
}

/// Writes a workload's specification, new or changed. `If-Match` with the ETag read before refuses a lost update.
#[utoipa::path(put, path = "/workloads/{name}", tag = "workloads", params(("name" = String, Path)), request_body = WorkloadSpec, responses((status = 200, body = Workload), (status = 412, body = crate::api::types::ErrorEnvelope)))]
pub async fn put(
    Changes(ops): Changes,
    Parsed(name): Parsed<Name>,
    headers: HeaderMap,
    Body(spec): Body<WorkloadSpec>,
) -> Result<Response, ApiError> {
    if spec.name != name {
        let message = format!("the body names `{}`, the path `{name}`", spec.name);
        return Err(ControlError::new(ErrorKind::Invalid, message)
            .field("name")
            .hint("a workload cannot be renamed")
            .into());
    }
    let if_generation = headers.get(header::IF_MATCH).map(generation).transpose()?;
    let workload = ops.put_workload(spec, PutMode::Replace { if_generation }).await?;
    Ok(tagged(workload))
}

/// Sets the labels of the body and removes those that are `null` there; nothing that runs changes. `If-Match` as for `PUT`.
#[utoipa::path(patch, path = "/workloads/{name}/labels", tag = "workloads", params(("name" = String, Path)), request_body = BTreeMap<String, Option<String>>, responses((status = 204), (status = 404, body = crate::api::types::ErrorEnvelope), (status = 412, body = crate::api::types::ErrorEnvelope)))]
pub async fn label(
    Changes(ops): Changes,
    Parsed(name): Parsed<Name>,
    headers: HeaderMap,
    Body(labels): Body<BTreeMap<String, Option<String>>>,
) -> Result<Response, ApiError> {
    let if_generation = headers.get(header::IF_MATCH).map(generation).transpose()?;
    let generation = ops.label_workload(name, labels, if_generation).await?;
    Ok((StatusCode::NO_CONTENT, [(header::ETAG, etag(generation))]).into_response())
}

/// Removes a workload: its processes are stopped, its containers deleted. `GET .../wait?for=gone` waits for the end.
#[utoipa::path(delete, path = "/workloads/{name}", tag = "workloads", params(("name" = String, Path)), responses((status = 202), (status = 404, body = crate::api::types::ErrorEnvelope)))]
pub async fn remove(Changes(ops): Changes, Parsed(name): Parsed<Name>) -> Result<StatusCode, ApiError> {
    ops.remove_workload(name).await?;
    Ok(StatusCode::ACCEPTED)
}

/// Runs a workload; what finished runs again.
#[utoipa::path(post, path = "/workloads/{name}/start", tag = "workloads", params(("name" = String, Path)), responses((status = 200, body = Workload)))]
pub async fn start(Changes(ops): Changes, Parsed(name): Parsed<Name>) -> Result<Response, ApiError> {
    Ok(tagged(ops.power_workload(name, PowerAction::Start).await?))
}

/// Brings a workload's processes down and keeps its containers.
#[utoipa::path(post, path = "/workloads/{name}/stop", tag = "workloads", params(("name" = String, Path)), responses((status = 200, body = Workload)))]
pub async fn stop(Changes(ops): Changes, Parsed(name): Parsed<Name>) -> Result<Response, ApiError> {
    Ok(tagged(ops.power_workload(name, PowerAction::Stop).await?))
}

/// Ends and starts a workload's processes.
#[utoipa::path(post, path = "/workloads/{name}/restart", tag = "workloads", params(("name" = String, Path)), responses((status = 200, body = Workload)))]
pub async fn restart(Changes(ops): Changes, Parsed(name): Parsed<Name>) -> Result<Response, ApiError> {
    Ok(tagged(ops.power_workload(name, PowerAction::Restart).await?))
}

/// What is waited for.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum WaitFor {
    /// Every instance runs or has finished, or it is clear that one cannot for now.
    Settled,
    /// Every instance has its node, or it is clear that one has none for now.
    Placed,
    /// No instance runs any more and none will by itself; or one cannot start.
    Ended,
    /// Every process is down as the user wanted.
    Stopped,
    /// The rollout of its specification has ended, or it is clear that it cannot for now.
    Updated,
    /// Nothing of it is left.
    Gone,
}

/// How long for what.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct WaitQuery {
    /// What is waited for.
    #[serde(rename = "for")]
    #[param(inline)]
    milestone: WaitFor,
    /// Longest wait in milliseconds, up to 60000; default 30000.
    timeout_ms: Option<u64>,
}

/// Answers when the workload has reached something, or at the timeout.
#[utoipa::path(get, path = "/workloads/{name}/wait", tag = "workloads", params(("name" = String, Path), WaitQuery), responses((status = 200, body = Waited)))]
pub async fn wait(
    State(api): State<ApiState>,
    Parsed(name): Parsed<Name>,
    Asked(query): Asked<WaitQuery>,
) -> Result<Json<Waited>, ApiError> {
    let milestone = match query.milestone {
        WaitFor::Settled => Milestone::Settled,
        WaitFor::Placed => Milestone::Placed,
        WaitFor::Ended => Milestone::Ended,
        WaitFor::Stopped => Milestone::Stopped,
        WaitFor::Updated => Milestone::Updated,
        WaitFor::Gone => Milestone::Gone,
    };
    let timeout = Duration::from_millis(query.timeout_ms.unwrap_or(30_000).min(60_000));
    let (reached, workload) = api.ops.wait_for_workload(&name, milestone, timeout).await?;
    Ok(Json(Waited { reached, workload: workload.map(Workload::from) }))
}

/// Which lines.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct LogsQuery {
    /// Only the last so many lines of each instance, up to 100000.
    tail: Option<usize>,
    /// Only lines since a span (`10m`) or time.
    since: Option<String>,
    /// Only lines before a span (`10m`) or time; not with `follow`.
    until: Option<String>,
    /// Only lines in which this regular expression finds something (the syntax of Rust's `regex`), up to 1024 bytes. A
    /// line longer than 16 KiB is looked at in pieces.
    grep: Option<String>,
    /// Only the instance of this number.
    index: Option<u32>,
    /// Those of instances that are gone, too. Of a workload that is gone they are always given, as long as they are kept.
    #[serde(default)]
    gone: bool,
    /// Go on as lines come, until the workload has ended.
    #[serde(default)]
    follow: bool,
}

/// What the workload's instances wrote on whichever nodes, one JSON object a line. Of an instance whose output cannot be had,
/// as while its node is away, one object tells why.
#[utoipa::path(get, path = "/workloads/{name}/logs", tag = "workloads", params(("name" = String, Path), LogsQuery), responses((status = 200, body = LogItem, content_type = "application/x-ndjson")))]
pub async fn logs(
    State(api): State<ApiState>,
    Parsed(name): Parsed<Name>,
    Asked(query): Asked<LogsQuery>,
) -> Result<Response, ApiError> {
    let moment = |field: &str, text: Option<String>| text.map(|text| moment_ns(field, &text, now_ms())).transpose();
    let (since_ns, until_ns) = (moment("since", query.since)?, moment("until", query.until)?);
    if query.follow && until_ns.is_some() {
        return Err(ControlError::new(ErrorKind::Invalid, "lines that are yet to come are not before any time")
            .field("until")
            .hint("leave out either `until` or `follow`")
            .into());
    }
    let tail = query.tail.map(|tail| tail.min(100_000));
    let follow = query.follow;
    let asked = LogQuery { tail, since_ns, until_ns, grep: query.grep, follow };
    let mut logs = match api.ops.workload_logs(&name, asked.clone()).await {
        Err(error) if error.kind == ErrorKind::NotFound => {
            let gone = api.ops.gone_logs(&name, asked.clone()).await?;
            if gone.is_empty() {
                return Err(error.into());
            }
            gone
        }
        Ok(living) if query.gone => {
            let mut all = api.ops.gone_logs(&name, asked.clone()).await?;
            all.extend(living);
            all
        }
        living => living?,
    };
    if let Some(index) = query.index {
        let wanted = format!("{name}-{index}");
        logs.retain(|logs| logs.instance == wanted);
        if logs.is_empty() {
            logs = api.ops.gone_logs(&name, asked).await?;
            logs.retain(|logs| logs.instance == wanted);
        }
        if logs.is_empty() {
            return Err(ControlError::new(ErrorKind::NotFound, format!("there is no instance `{wanted}`"))
                .hint("`toft ps` lists the instances")
                .into());
        }
    }
    // Lines that are there together travel together.
    let lines = if follow { merged(logs) } else { in_time(logs) };
    let body = lines.ready_chunks(256).map(|lines| lines.into_iter().map(encode).collect::<Result<Vec<_>, _>>());
    let body = body.map(|chunk| chunk.map(|lines| lines.concat()));
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], RawBody::from_stream(body)).into_response())
}

fn encode((instance, line): NamedLine) -> Result<String, std::io::Error> {
    let item = match line {
        Ok(LogLine { at_ns, stream, text, partial }) => {
            LogItem::Line(LogRecord { instance, at: time_ns(at_ns), stream, text, partial })
        }
        Err(error) => LogItem::Trouble(LogTrouble { instance, error: error.into() }),
    };
    let mut text = serde_json::to_string(&item).map_err(std::io::Error::other)?;
    text.push('\n');
    Ok(text)
}

pub(super) fn tagged(workload: WorkloadView) -> Response {
    ([(header::ETAG, etag(workload.row.generation))], Json(Workload::from(workload))).into_response()
}

fn etag(generation: u64) -> String {
    format!("\"{generation}\"")
}
