//! What nodes measured over time: of their machines, cards and instances.

use toft_model::{
    gpu::GpuId,
    name::Name,
    series::{MOST_POINTS, Series, Span, Subject},
    state::NodeRow,
};

use super::Ops;
use crate::control::{ControlError, ErrorKind};

impl Ops {
    /// What was measured of a node's machine.
    pub async fn node_series(&self, node: &Name, span: Span) -> Result<Series, ControlError> {
        self.series_of(&self.node(node).await?, Subject::Machine, span).await
    }

    /// What was measured of a card of a node.
    pub async fn gpu_series(&self, node: &Name, gpu: &GpuId, span: Span) -> Result<Series, ControlError> {
        let row = self.node(node).await?;
        if !row.inventory.gpus.iter().any(|card| card.id == *gpu) {
            let message = format!("the node `{node}` has no GPU `{gpu}`");
            return Err(ControlError::new(ErrorKind::NotFound, message).hint("`toft gpu ls` shows the GPUs there are"));
        }
        self.series_of(&row, Subject::Gpu(gpu.clone()), span).await
    }

    /// What was measured of the instance people call `name`.
    pub async fn instance_series(&self, name: &str, span: Span) -> Result<Series, ControlError> {
        let instance = self.instance_called(name).await?;
        self.series_of(&self.node(&instance.node).await?, Subject::Instance(instance.row.id), span).await
    }

    /// What was measured of something on a node.
    pub async fn series_of(&self, node: &NodeRow, subject: Subject, span: Span) -> Result<Series, ControlError> {
        check(span)?;
        self.access(node.id, &node.name)?.series(subject, span).await
    }
}

fn check(span: Span) -> Result<(), ControlError> {
    if span.until_ms <= span.since_ms {
        return Err(ControlError::new(ErrorKind::Invalid, "it ends before it begins")
            .field("until")
            .hint("name a time after `since`"));
    }
    if span.points == 0 || span.points > MOST_POINTS {
        return Err(ControlError::new(ErrorKind::Invalid, format!("{} points cannot be given", span.points))
            .field("points")
            .hint(format!("ask for 1 to {MOST_POINTS}")));
    }
    Ok(())
}
