//! Whether the appliance lives, whether it can work, and its numbers.

use axum::{
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};

use super::ApiState;
use crate::control::{ControlError, ErrorKind};

/// What knows whether the appliance can work.
pub trait Readiness: Send + Sync + 'static {
    /// Why it cannot, if so.
    fn trouble(&self) -> Option<String>;
}

/// The process lives.
#[utoipa::path(get, path = "/health", tag = "health", responses((status = 200, description = "it lives")))]
pub async fn health() -> &'static str {
    "ok\n"
}

/// The state is open and the container runtime answers.
#[utoipa::path(get, path = "/ready", tag = "health", responses((status = 200, description = "it can work"), (status = 503, description = "it cannot; the body says why")))]
pub async fn ready(State(api): State<ApiState>) -> Response {
    match api.readiness.trouble() {
        None => "ready\n".into_response(),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")).into_response(),
    }
}

/// Numbers in the Prometheus text format.
#[utoipa::path(get, path = "/metrics", tag = "health", responses((status = 200, description = "the numbers")))]
pub async fn metrics(State(api): State<ApiState>) -> Response {
    match record(&api).await {
        Ok(()) => {
            let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
            (kind, api.metrics.render()).into_response()
        }
        Err(error) => super::ApiError(ControlError::new(ErrorKind::Internal, error.message)).into_response(),
    }
}

/// Counts what the state holds, so that a scrape sees this moment.
async fn record(api: &ApiState) -> Result<(), ControlError> {
    let workloads = api.ops.workloads().await?;
    let statuses =
        ["running", "starting", "pending", "back_off", "stopping", "stopped", "finished", "unknown", "removing"];
    for status in statuses {
        let count = workloads.iter().filter(|workload| workload.status() == status).count();
        metrics::gauge!("toft_workloads", "status" => status).set(count as f64);
    }
    let states = ["assigned", "starting", "running", "stopping", "stopped", "back_off", "finished", "unknown"];
    for state in states {
        let instances = workloads.iter().flat_map(|workload| &workload.instances);
        let count = instances.filter(|instance| instance.state().as_str() == state).count();
        metrics::gauge!("toft_instances", "state" => state).set(count as f64);
    }
    metrics::counter!("toft_leader_calls_total").absolute(api.ops.state().calls_of_leaders());
    metrics::gauge!("toft_applied_index").set(*api.ops.state().watch().borrow() as f64);
    Ok(())
}
