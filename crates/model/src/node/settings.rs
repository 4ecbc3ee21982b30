//! What users say of a node, which no machine knows of itself. A node that registers again changes none of it.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Deserializer, Serialize};

use super::{Taint, TaintChange};
use crate::{invalid::Invalid, text::shown};

/// Whether a node takes work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Availability {
    /// It takes work.
    #[default]
    Active,
    /// It takes nothing new; what runs stays.
    Cordoned,
    /// It takes nothing new, and services move to other nodes.
    Draining,
}

impl Availability {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Cordoned => "cordoned",
            Self::Draining => "draining",
        }
    }

    fn is_active(&self) -> bool {
        *self == Self::Active
    }
}

/// An amount of money in whichever currency the user thinks in, exact to a millionth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Price {
    /// Millionths.
    pub micros: u64,
}

impl TryFrom<f64> for Price {
    type Error = Invalid;

    fn try_from(amount: f64) -> Result<Self, Invalid> {
        if !(0.0..=1e6).contains(&amount) {
            return Err(Invalid::value(format!("{amount} is no price"), "use 0 to 1000000"));
        }
        Ok(Self { micros: (amount * 1e6).round() as u64 })
    }
}

impl From<Price> for f64 {
    fn from(price: Price) -> Self {
        price.micros as Self / 1e6
    }
}

impl fmt::Display for Price {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f64::from(*self).fmt(f)
    }
}

/// What users said of a node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct NodeSettings {
    /// Labels beside those of the node's configuration file, and instead of those of the same key.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// What keeps work away, by key and effect.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>, example = json!(["gpu=only:NoSchedule"]))]
    pub taints: Vec<Taint>,
    /// Whether it takes work.
    #[serde(skip_serializing_if = "Availability::is_active")]
    pub availability: Availability,
    /// What an hour of it costs.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<f64>, example = 0.35)]
    pub price_per_hour: Option<Price>,
    /// What it draws under load, for nodes whose cards do not tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub watts: Option<u32>,
    /// What it draws besides its cards, for nodes whose cards tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_watts: Option<u32>,
    /// How much of its CPU can be reserved, in percent; the cluster's ratio when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_percent: Option<u32>,
    /// How much of its memory can be reserved, in percent; the cluster's ratio when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_percent: Option<u32>,
}

/// A change of what users said of a node. What is absent stays; `null` takes back.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NodeChanges {
    /// New labels; `null` removes one.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, Option<String>>,
    /// `KEY[=VALUE]:EFFECT` sets a taint, `KEY[:EFFECT]-` removes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>, example = json!(["gpu=only:NoSchedule", "desk-"]))]
    pub taints: Vec<TaintChange>,
    /// Whether it takes work.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub availability: Option<Availability>,
    /// What an hour of it costs.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "given")]
    #[schema(value_type = Option<f64>)]
    pub price_per_hour: Option<Option<Price>>,
    /// What it draws under load, up to 100 000.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "given")]
    #[schema(value_type = Option<u32>)]
    pub watts: Option<Option<u32>>,
    /// What it draws besides its cards, up to 100 000.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "given")]
    #[schema(value_type = Option<u32>)]
    pub base_watts: Option<Option<u32>>,
    /// How much of its CPU can be reserved, 1 to 10 000 percent.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "given")]
    #[schema(value_type = Option<u32>)]
    pub cpu_percent: Option<Option<u32>>,
    /// How much of its memory can be reserved, 1 to 1 000 percent.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "given")]
    #[schema(value_type = Option<u32>)]
    pub memory_percent: Option<Option<u32>>,
}

/// What is there was given, be it `null`.
fn given<'de, T: Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<Option<Option<T>>, D::Error> {
    Option::<T>::deserialize(from).map(Some)
}

impl NodeSettings {
    /// Most labels and most taints.
    pub const MAX_ENTRIES: usize = 64;
    /// What the labels that toft makes of the inventory begin with.
    pub const BUILT_IN: &'static str = "toft/";

    /// The settings after `changes`; the first breach of a rule is told with its field.
    pub fn with(mut self, changes: &NodeChanges) -> Result<Self, Invalid> {
        for (key, value) in &changes.labels {
            check_label(key, value.as_deref()).map_err(|e| e.at("labels"))?;
            match value {
                Some(value) => drop(self.labels.insert(key.clone(), value.clone())),
                None => drop(self.labels.remove(key)),
            }
        }
        for change in &changes.taints {
            let (key, effect) = match change {
                TaintChange::Set(taint) => (&taint.key, Some(taint.effect)),
                TaintChange::Remove { key, effect } => (key, *effect),
            };
            self.taints.retain(|taint| taint.key != *key || effect.is_some_and(|effect| effect != taint.effect));
            if let TaintChange::Set(taint) = change {
                self.taints.push(taint.clone());
            }
        }
        self.taints.sort();
        for (field, count) in [("labels", self.labels.len()), ("taints", self.taints.len())] {
            if count > Self::MAX_ENTRIES {
                let message = format!("{count} {field} are more than {}", Self::MAX_ENTRIES);
                return Err(Invalid::value(message, format!("remove some {field} of the node")).at(field));
            }
        }
        self.availability = changes.availability.unwrap_or(self.availability);
        if let Some(price) = changes.price_per_hour {
            self.price_per_hour = price;
        }
        let numbers = [
            ("watts", changes.watts, &mut self.watts, 0..=100_000),
            ("base_watts", changes.base_watts, &mut self.base_watts, 0..=100_000),
            ("cpu_percent", changes.cpu_percent, &mut self.cpu_percent, 1..=10_000),
            ("memory_percent", changes.memory_percent, &mut self.memory_percent, 1..=1_000),
        ];
        for (field, change, number, range) in numbers {
            let Some(change) = change else { continue };
            if let Some(wanted) = change.filter(|wanted| !range.contains(wanted)) {
                let hint = format!("use {} to {}", range.start(), range.end());
                return Err(Invalid::value(format!("{wanted} is out of range"), hint).at(field));
            }
            *number = change;
        }
        Ok(self)
    }
}

fn check_label(key: &str, value: Option<&str>) -> Result<(), Invalid> {
    let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    if key.is_empty() || key.len() > 128 || !key.chars().all(known) {
        let hint = "a key has 1 to 128 letters, digits, `-`, `_`, `.` and `/`";
        return Err(Invalid::value(format!("`{}` is no key of a label", shown(key)), hint));
    }
    if key.starts_with(NodeSettings::BUILT_IN) {
        let message = format!("`{key}` is for toft to set");
        return Err(Invalid::value(message, "choose a key that does not begin with `toft/`"));
    }
    if value.is_some_and(|value| value.len() > 256 || value.chars().any(char::is_control)) {
        let message = format!("the value of `{key}` is too long or holds control characters");
        return Err(Invalid::value(message, "use at most 256 printable characters"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(before: &NodeSettings, changes: &str) -> Result<NodeSettings, String> {
        let changes: NodeChanges = serde_json::from_str(changes).map_err(|e| e.to_string())?;
        let again = serde_json::to_string(&changes).unwrap();
        assert_eq!(serde_json::from_str::<NodeChanges>(&again).unwrap(), changes, "{again}");
        before.clone().with(&changes).map_err(|e| format!("{}: {}", e.field, e.message))
    }

    #[test]
    fn settings_change_one_by_one() {
        let start = NodeSettings::default();
        let first = r#"{"labels":{"zone":"a","ssd":""},"taints":["gpu=only:NoSchedule","gpu:NoExecute"],
                        "availability":"cordoned","price_per_hour":0.35,"watts":250,"cpu_percent":200}"#;
        let one = changed(&start, first).unwrap();
        assert_eq!(
            one.taints.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["gpu=only:NoSchedule", "gpu:NoExecute"]
        );
        assert_eq!((one.price_per_hour.unwrap().micros, one.watts, one.cpu_percent), (350_000, Some(250), Some(200)));
        let two =
            changed(&one, r#"{"labels":{"ssd":null},"taints":["gpu=x:NoSchedule","gpu:NoExecute-"],"watts":null}"#)
                .unwrap();
        assert_eq!(two.labels.keys().collect::<Vec<_>>(), ["zone"]);
        assert_eq!(two.taints.iter().map(ToString::to_string).collect::<Vec<_>>(), ["gpu=x:NoSchedule"]);
        assert_eq!((two.watts, two.availability), (None, Availability::Cordoned));
        assert_eq!(changed(&two, r#"{"taints":["gpu-"]}"#).unwrap().taints, []);
        assert_eq!(changed(&two, "{}").unwrap(), two);
        let written = serde_json::to_string(&two).unwrap();
        assert_eq!(serde_json::from_str::<NodeSettings>(&written).unwrap(), two);
    }

    #[test]
    fn what_breaks_a_rule_is_refused_with_its_field() {
        let many: BTreeMap<String, Option<String>> = (0..65).map(|i| (format!("k{i}"), Some(String::new()))).collect();
        let many = format!(r#"{{"labels":{}}}"#, serde_json::to_string(&many).unwrap());
        let long = format!(r#"{{"labels":{{"a":"{}"}}}}"#, "x".repeat(257));
        for (bad, field) in [
            (r#"{"labels":{"":"x"}}"#, "labels"),
            (r#"{"labels":{"a b":"x"}}"#, "labels"),
            (r#"{"labels":{"toft/arch":"x"}}"#, "labels"),
            (r#"{"labels":{"a":"\u0007"}}"#, "labels"),
            (long.as_str(), "labels"),
            (many.as_str(), "labels"),
            (r#"{"watts":100001}"#, "watts"),
            (r#"{"base_watts":100001}"#, "base_watts"),
            (r#"{"cpu_percent":0}"#, "cpu_percent"),
            (r#"{"memory_percent":1001}"#, "memory_percent"),
        ] {
            let told = changed(&NodeSettings::default(), bad).expect_err(bad);
            assert!(told.starts_with(&format!("{field}: ")), "{told}");
        }
        for bad in [r#"{"price_per_hour":-1}"#, r#"{"price_per_hour":1e9}"#, r#"{"taints":["x"]}"#, r#"{"colour":1}"#] {
            assert!(changed(&NodeSettings::default(), bad).is_err(), "{bad}");
        }
    }
}
