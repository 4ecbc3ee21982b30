//! What devices are told to trust.

use super::Ops;
use crate::control::{ControlError, ErrorKind};

/// The certificate of the cluster's authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustRoot {
    /// As text (PEM).
    pub pem: String,
    /// As bytes (DER).
    pub der: Vec<u8>,
    /// SHA-256 of the bytes, hexadecimal.
    pub sha256: String,
}

impl Ops {
    /// The same with the cluster's authority.
    pub fn with_trust_root(mut self, root: TrustRoot) -> Self {
        self.trust_root = Some(std::sync::Arc::new(root));
        self
    }

    /// The certificate of the cluster's authority.
    pub fn trust_root(&self) -> Result<&TrustRoot, ControlError> {
        let absent = || ControlError::new(ErrorKind::NotFound, "this node knows no authority of its cluster");
        self.trust_root.as_deref().ok_or_else(absent)
    }
}
