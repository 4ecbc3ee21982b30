//! How far a specification has reached the instances, and why it was written.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::WorkloadSpec;

/// How far the newest specification has reached the instances.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum Rollout {
    /// Instances are still replaced, or have not come to work yet.
    Rolling,
    /// Every instance was made from it and has worked.
    #[default]
    Done,
    /// A successor did not come to work; nothing more is replaced.
    Failed {
        /// Why.
        reason: String,
    },
}

impl Rollout {
    /// The word for it.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Rolling => "rolling",
            Self::Done => "done",
            Self::Failed { .. } => "failed",
        }
    }
}

/// Why a version was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case", tag = "cause")]
pub enum VersionCause {
    /// A user wrote it.
    User,
    /// An older version was written again.
    Rollback {
        /// Which.
        to: u64,
        /// Why, when no user asked for it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
}

/// The fields in which two specifications differ, by name and in its order.
pub fn changed_fields(before: &WorkloadSpec, after: &WorkloadSpec) -> Vec<String> {
    let fields = |spec: &WorkloadSpec| match serde_json::to_value(spec) {
        Ok(serde_json::Value::Object(fields)) => fields,
        _ => serde_json::Map::new(),
    };
    let (before, after) = (fields(before), fields(after));
    let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    names.into_iter().filter(|name| before.get(*name) != after.get(*name)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changed_is_named() {
        let spec = |image: &str| WorkloadSpec::new("web".parse().unwrap(), image.parse().unwrap());
        let after = WorkloadSpec { replicas: 2, gpus: Some("1".parse().unwrap()), ..spec("two") };
        assert_eq!(changed_fields(&spec("one"), &after), ["gpus", "image", "replicas"]);
        assert!(changed_fields(&after, &after).is_empty());
    }
}
