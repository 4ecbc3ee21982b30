//! `/stats` and `/instances/{name}/processes`: what instances use, measured while somebody asks.

use std::time::Duration;

use axum::{
    Json,
    body::Body as RawBody,
    extract::{Path, State, rejection::PathRejection},
    http::header,
    response::{IntoResponse, Response},
};
use futures_util::stream;
use serde::Deserialize;
use toft_model::{name::Name, usage::Process};
use tokio::time::{MissedTickBehavior, interval};
use utoipa::IntoParams;

use super::{ApiError, ApiState, error::Asked};
use crate::{
    api::types::{InstanceStats, NodeAway, Stats, time},
    control::{
        ControlError, ErrorKind,
        ops::{Ops, now_ms},
    },
};

/// Time between two measurements of a stream.
const PACE: Duration = Duration::from_secs(1);

/// Of which instances, and how closely.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct StatsQuery {
    /// Only these workloads, apart by commas.
    workloads: Option<String>,
    /// Each instance's share of memory too, which costs the kernel a walk through its pages.
    #[serde(default)]
    pss: bool,
}

impl StatsQuery {
    fn names(&self) -> Result<Vec<Name>, ControlError> {
        let texts = self.workloads.iter().flat_map(|text| text.split(','));
        texts.map(|text| Ok(text.parse::<Name>().map_err(|e| e.at("workloads"))?)).collect()
    }
}

/// What instances use now, on all nodes.
#[utoipa::path(get, path = "/stats", tag = "instances", params(StatsQuery), responses((status = 200, body = Stats), (status = 404, body = crate::api::types::ErrorEnvelope)))]
pub async fn show(State(api): State<ApiState>, Asked(query): Asked<StatsQuery>) -> Result<Json<Stats>, ApiError> {
    Ok(Json(measured(&api.ops, &query.names()?, query.pss).await?))
}

/// What instances use, one JSON object a line and second, until nobody reads it any more or a workload
/// that was named is gone.
#[utoipa::path(get, path = "/stats/stream", tag = "instances", params(StatsQuery), responses((status = 200, body = Stats, content_type = "application/x-ndjson"), (status = 404, body = crate::api::types::ErrorEnvelope)))]
pub async fn stream(State(api): State<ApiState>, Asked(query): Asked<StatsQuery>) -> Result<Response, ApiError> {
    let names = query.names()?;
    // Told as a refusal, not as a stream that breaks off.
    let first = measured(&api.ops, &names, query.pss).await?;
    let mut ticks = interval(PACE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.reset();
    let lines = stream::unfold((Some(first), ticks), move |(first, mut ticks)| {
        let (ops, names) = (api.ops.clone(), names.clone());
        async move {
            let stats = match first {
                Some(first) => first,
                None => {
                    ticks.tick().await;
                    measured(&ops, &names, query.pss).await.ok()?
                }
            };
            let mut line = serde_json::to_string(&stats).ok()?;
            line.push('\n');
            Some((Ok::<_, std::io::Error>(line), (None, ticks)))
        }
    });
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], RawBody::from_stream(lines)).into_response())
}

async fn measured(ops: &Ops, names: &[Name], pss: bool) -> Result<Stats, ControlError> {
    let (used, away) = ops.usage(names, pss).await?;
    Ok(Stats {
        at: time(now_ms()),
        instances: used.into_iter().map(InstanceStats::from).collect(),
        away: away.into_iter().map(NodeAway::from).collect(),
    })
}

/// The processes of an instance, by id.
#[utoipa::path(get, path = "/instances/{name}/processes", tag = "instances", params(("name" = String, Path)), responses((status = 200, body = Vec<Process>), (status = 404, body = crate::api::types::ErrorEnvelope), (status = 409, body = crate::api::types::ErrorEnvelope)))]
pub async fn processes(
    State(api): State<ApiState>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<Vec<Process>>, ApiError> {
    let Path(name) = name.map_err(|_| ControlError::new(ErrorKind::Invalid, "the path is malformed"))?;
    Ok(Json(api.ops.processes(&name).await?))
}
