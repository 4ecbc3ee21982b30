//! Sends observations up: the latest of each instance, many in one message, after a short burst never faster than one
//! every [`GAP`].

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use toft_model::{ids::InstanceId, instance::InstanceReport};
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

/// Time between two messages when there is much to tell.
const GAP: Duration = Duration::from_millis(20);
/// Messages that may go ahead of that: a single start and end is told without delay.
const BURST: u32 = 10;
/// Wait after a message that was not taken.
const AFTER_FAILURE: Duration = Duration::from_secs(1);

/// Where reports go.
#[async_trait]
pub trait ReportSink: Send + Sync + 'static {
    /// Takes the newest observations; an error says why they were not taken.
    async fn report(&self, reports: Vec<InstanceReport>) -> Result<(), String>;
}

/// Holds what is yet to be sent.
#[derive(Clone, Default)]
pub struct Outbox {
    waiting: Arc<Mutex<BTreeMap<InstanceId, InstanceReport>>>,
    filled: Arc<Notify>,
}

impl Outbox {
    /// Puts an observation in; it replaces an older one of the same instance.
    pub fn put(&self, report: InstanceReport) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(report.instance_id, report);
        self.filled.notify_one();
    }

    fn take(&self) -> BTreeMap<InstanceId, InstanceReport> {
        std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn put_back(&self, reports: BTreeMap<InstanceId, InstanceReport>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        for (id, report) in reports {
            waiting.entry(id).or_insert(report);
        }
    }

    /// Sends until `cancel`.
    pub async fn run(self, sink: Arc<dyn ReportSink>, cancel: CancellationToken) {
        let mut due = Instant::now();
        loop {
            let reports = self.take();
            if reports.is_empty() {
                tokio::select! {
                    () = cancel.cancelled() => return,
                    () = self.filled.notified() => continue,
                }
            }
            let wait = match sink.report(reports.values().cloned().collect()).await {
                Ok(()) => {
                    let now = Instant::now();
                    due = due.max(now) + GAP;
                    (due - now).saturating_sub(GAP * BURST)
                }
                Err(error) => {
                    tracing::warn!(error, "reports were not taken and will be sent again");
                    self.put_back(reports);
                    AFTER_FAILURE
                }
            };
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }
}
