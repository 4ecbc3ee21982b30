//! How a changed specification reaches the instances.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::WorkloadSpec;
use crate::invalid::Invalid;

/// Whether a successor starts before its predecessor ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum UpdateOrder {
    /// The successor works before the predecessor is stopped; both need a place.
    StartFirst,
    /// The predecessor is gone before the successor starts.
    StopFirst,
}

impl UpdateOrder {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::StartFirst => "start-first",
            Self::StopFirst => "stop-first",
        }
    }
}

impl FromStr for UpdateOrder {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        [Self::StartFirst, Self::StopFirst].into_iter().find(|order| order.as_str() == text).ok_or_else(|| {
            let shown: String = text.chars().take(40).collect();
            Invalid::value(format!("`{shown}` is no order of an update"), "use `start-first` or `stop-first`")
        })
    }
}

/// What happens when a successor does not come to work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum UpdateFailure {
    /// The last specification that worked is written again.
    #[default]
    Rollback,
    /// What has not been replaced stays; the next specification goes on.
    Pause,
    /// The others are replaced all the same.
    Continue,
}

impl UpdateFailure {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rollback => "rollback",
            Self::Pause => "pause",
            Self::Continue => "continue",
        }
    }
}

impl FromStr for UpdateFailure {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let all = [Self::Rollback, Self::Pause, Self::Continue];
        all.into_iter().find(|action| action.as_str() == text).ok_or_else(|| {
            let shown: String = text.chars().take(40).collect();
            Invalid::value(format!("`{shown}` is nothing an update can do"), "use `rollback`, `pause` or `continue`")
        })
    }
}

impl fmt::Display for UpdateFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How the instances of a service are replaced when its specification changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct UpdateSpec {
    /// Without it the successor starts first where it has a place beside its predecessor, and else when that is gone. What
    /// has one copy with a volume, or a host port of its own, stops first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub order: Option<UpdateOrder>,
    /// Most instances that are replaced at a time, 1 to 1000.
    pub parallel: u32,
    /// Most instances that may be missing meanwhile, 1 to 1000; as many as `parallel` when absent. Only where predecessors
    /// stop first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_unavailable: Option<u32>,
    /// Milliseconds for which a successor must have worked before it counts, 0 to 3 600 000.
    pub healthy_ms: u32,
    /// Milliseconds in which a successor must come to work, 1000 to 86 400 000.
    pub deadline_ms: u32,
    /// What happens when one does not.
    pub on_failure: UpdateFailure,
}

impl Default for UpdateSpec {
    fn default() -> Self {
        Self {
            order: None,
            parallel: 1,
            max_unavailable: None,
            healthy_ms: 5_000,
            deadline_ms: 600_000,
            on_failure: UpdateFailure::Rollback,
        }
    }
}

impl UpdateSpec {
    pub(super) fn validate(&self) -> Result<(), Invalid> {
        let out = |value: u32, hint: &str| Invalid::value(format!("{value} is out of range"), hint);
        let count = 1..=WorkloadSpec::MAX_REPLICAS;
        if !count.contains(&self.parallel) {
            return Err(out(self.parallel, "use 1 to 1000").at("parallel"));
        }
        if let Some(most) = self.max_unavailable.filter(|most| !count.contains(most)) {
            return Err(out(most, "use 1 to 1000").at("max_unavailable"));
        }
        if self.healthy_ms > 3_600_000 {
            return Err(out(self.healthy_ms, "use 0 to 3600000 (an hour)").at("healthy_ms"));
        }
        if !(1_000..=86_400_000).contains(&self.deadline_ms) {
            return Err(out(self.deadline_ms, "use 1000 to 86400000 (a day)").at("deadline_ms"));
        }
        if self.deadline_ms < self.healthy_ms {
            return Err(Invalid::value(
                "it is shorter than the time for which a successor must have worked",
                "raise it, or lower `healthy_ms`",
            )
            .at("deadline_ms"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_round_trip_and_others_are_refused() {
        for order in ["start-first", "stop-first"] {
            assert_eq!(order.parse::<UpdateOrder>().unwrap().as_str(), order);
        }
        for action in ["rollback", "pause", "continue"] {
            assert_eq!(action.parse::<UpdateFailure>().unwrap().to_string(), action);
        }
        assert!("first".parse::<UpdateOrder>().unwrap_err().hint.contains("stop-first"));
        assert!("".parse::<UpdateFailure>().unwrap_err().hint.contains("pause"));
    }

    #[test]
    fn what_is_absent_has_its_default() {
        let read = |text: &str| serde_json::from_str::<UpdateSpec>(text);
        assert_eq!(read("{}").unwrap(), UpdateSpec::default());
        let written = r#"{"order":"stop-first","parallel":2,"healthy_ms":0,"deadline_ms":1000,"on_failure":"pause"}"#;
        assert_eq!(serde_json::to_string(&read(written).unwrap()).unwrap(), written);
        assert!(read(r#"{"colour":1}"#).is_err());
    }

    #[test]
    fn breaches_name_their_field() {
        let check = |field: &str, change: &dyn Fn(&mut UpdateSpec)| {
            let mut update = UpdateSpec::default();
            change(&mut update);
            assert_eq!(update.validate().unwrap_err().field, field);
        };
        check("parallel", &|u| u.parallel = 0);
        check("parallel", &|u| u.parallel = 1_001);
        check("max_unavailable", &|u| u.max_unavailable = Some(0));
        check("healthy_ms", &|u| u.healthy_ms = 3_600_001);
        check("deadline_ms", &|u| u.deadline_ms = 999);
        check("deadline_ms", &|u| (u.healthy_ms, u.deadline_ms) = (5_000, 4_000));
        assert!(UpdateSpec::default().validate().is_ok());
    }
}
