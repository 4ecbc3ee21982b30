//! What a node measured over time.

use async_trait::async_trait;
use toft_model::series::{Series, Span, Subject};

use crate::control::ControlError;

/// The part of a node that remembers what it measured.
#[async_trait]
pub trait NodeSeries {
    /// What was measured of a subject. Nothing is known of one that the node never had: then every point is absent.
    async fn series(&self, subject: Subject, span: Span) -> Result<Series, ControlError>;
}
