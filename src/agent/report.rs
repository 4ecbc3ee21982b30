//! Sends observations up: the latest of each instance, many in one message, after a short burst never faster than one
//! every [`GAP`].

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
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

/// What is yet to be sent: the latest of each instance.
#[derive(Debug, Default)]
pub struct Waiting(BTreeMap<InstanceId, InstanceReport>);

impl Waiting {
    /// Puts an observation in; it replaces an older one of the same instance, whose warning stays to be told.
    pub fn put(&mut self, mut report: InstanceReport) {
        let before = self.0.remove(&report.instance_id).and_then(|before| before.warning);
        report.warning = report.warning.or(before);
        self.0.insert(report.instance_id, report);
    }

    /// Everything, for one message.
    pub fn take(&mut self) -> Vec<InstanceReport> {
        std::mem::take(&mut self.0).into_values().collect()
    }

    /// Puts a message that was not taken back, behind what came since.
    pub fn put_back(&mut self, reports: Vec<InstanceReport>) {
        for report in reports {
            let warning = report.warning.clone();
            let newest = self.0.entry(report.instance_id).or_insert(report);
            newest.warning = newest.warning.take().or(warning);
        }
    }
}

/// Holds what is yet to be sent.
#[derive(Clone, Default)]
pub struct Outbox {
    waiting: Arc<Mutex<Waiting>>,
    filled: Arc<Notify>,
}

impl Outbox {
    /// Puts an observation in; it replaces an older one of the same instance.
    pub fn put(&self, report: InstanceReport) {
        self.waiting().put(report);
        self.filled.notify_one();
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends until `cancel`.
    pub async fn run(self, sink: Arc<dyn ReportSink>, cancel: CancellationToken) {
        let mut due = Instant::now();
        loop {
            let reports = self.waiting().take();
            if reports.is_empty() {
                tokio::select! {
                    () = cancel.cancelled() => return,
                    () = self.filled.notified() => continue,
                }
            }
            let wait = match sink.report(reports.clone()).await {
                Ok(()) => {
                    let now = Instant::now();
                    due = due.max(now) + GAP;
                    (due - now).saturating_sub(GAP * BURST)
                }
                Err(error) => {
                    tracing::warn!(error, "reports were not taken and will be sent again");
                    self.waiting().put_back(reports);
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
