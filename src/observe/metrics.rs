//! Metrics in the Prometheus text format. Names start with `toft_`.

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

/// What renders `/metrics`.
#[derive(Clone)]
pub struct Metrics(PrometheusHandle);

impl Metrics {
    /// Installs the recorder of this process. A second call in the same process records into the void, which only
    /// tests do.
    pub fn install() -> Self {
        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        if metrics::set_global_recorder(recorder).is_err() {
            tracing::debug!("metrics are recorded by an earlier recorder");
        }
        metrics::describe_gauge!("toft_workloads", "Workloads by status");
        metrics::describe_gauge!("toft_instances", "Instances by state");
        metrics::describe_gauge!("toft_applied_index", "Index of the last applied command");
        metrics::describe_counter!(
            "toft_leader_calls_total",
            "Calls of the leader at this node: entries of the log, or a word that it is there"
        );
        metrics::describe_counter!("toft_http_requests_total", "Requests answered, by status class");
        metrics::describe_counter!("toft_instance_restarts_total", "Automatic restarts of instances");
        metrics::describe_counter!(
            "toft_image_bytes_total",
            "Bytes of images that came, by where from: node or registry"
        );
        metrics::describe_counter!("toft_image_given_bytes_total", "Bytes of images that were given to other nodes");
        metrics::describe_gauge!("toft_runtime_up", "Whether the container runtime answers");
        metrics::describe_counter!("toft_backups_total", "Scheduled backups tried, by result");
        metrics::describe_gauge!(
            "toft_backup_last_success_timestamp_seconds",
            "When the newest scheduled backup was made"
        );
        metrics::describe_gauge!("toft_backup_last_size_bytes", "Size of the newest scheduled backup");
        Self(handle)
    }

    /// The text of `/metrics`.
    pub fn render(&self) -> String {
        self.0.run_upkeep();
        self.0.render()
    }
}
