//! What the instances of a workload use, on its page. It is measured when the page is shown, and every few seconds while
//! somebody looks at it: the page's script closes the stream when it is hidden.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{
    extract::{Path, State},
    response::Response,
};
use futures_util::stream;
use serde::Serialize;
use toft_model::{state::WorkloadView, units::format_bytes, usage::Usage};
use tokio::time::{MissedTickBehavior, interval};

use super::{
    Dashboard,
    error::PageError,
    live::{self, Event},
    request::named,
};
use crate::control::ops::Ops;

/// Time between two measurements.
const PACE: Duration = Duration::from_secs(2);
/// Longest wait for the measurement of a page; it is shown without one then.
const PATIENCE: Duration = Duration::from_secs(1);

/// What one instance uses, in words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct UsageLine {
    pub(super) cpu: String,
    pub(super) memory: String,
}

impl UsageLine {
    fn of(usage: &Usage) -> Self {
        Self {
            cpu: format!("{:.1} %", usage.cpu_percent),
            memory: format!("{} of {}", format_bytes(usage.memory_bytes), format_bytes(usage.memory_limit_bytes)),
        }
    }
}

/// What the instances use, by name. What cannot be measured is left out: the page has more to tell.
pub(super) async fn lines(ops: &Ops, workload: &WorkloadView) -> BTreeMap<String, UsageLine> {
    let measured = tokio::time::timeout(PATIENCE, ops.usage_of(workload.instances.clone(), false)).await;
    let used = measured.ok().and_then(Result::ok).unwrap_or_default().0;
    used.iter().map(|used| (used.instance.name(), UsageLine::of(&used.usage))).collect()
}

/// Events called `usage`, each with what every instance uses.
pub(super) async fn live(State(dashboard): State<Dashboard>, Path(name): Path<String>) -> Result<Response, PageError> {
    let name = named(&name)?;
    dashboard.ops.workload(&name).await?;
    let mut ticks = interval(PACE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (ops, shutdown) = (dashboard.ops.clone(), dashboard.shutdown.clone());
    let events = stream::unfold(ticks, move |mut ticks| {
        let (ops, name, shutdown) = (ops.clone(), name.clone(), shutdown.clone());
        async move {
            shutdown.run_until_cancelled(ticks.tick()).await?;
            let workload = ops.workload(&name).await.ok()?;
            let text = serde_json::to_string(&lines(&ops, &workload).await).ok()?;
            Some((Arc::new(Event::new("usage", &text)), ticks))
        }
    });
    Ok(live::answer(&dashboard, events))
}
