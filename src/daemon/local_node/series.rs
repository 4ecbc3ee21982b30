//! What this node measured over time.

use async_trait::async_trait;
use toft_model::series::{Series, Span, Subject};

use super::LocalNode;
use crate::{
    control::{ControlError, ErrorKind, node_access::series::NodeSeries, ops::now_ms},
    observe::chain,
};

#[async_trait]
impl NodeSeries for LocalNode {
    async fn series(&self, subject: Subject, span: Span) -> Result<Series, ControlError> {
        let store = self.series.clone();
        let read = tokio::task::spawn_blocking(move || store.read(&subject, span, now_ms())).await;
        let failed = |why: String| ControlError::new(ErrorKind::Internal, why);
        read.map_err(|error| failed(error.to_string()))?.map_err(|error| failed(chain(&error)))
    }
}
