//! Where instances of a workload may be, where they should be, and what they may push aside.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{
    is_default,
    rule::{Attribute, Rule},
};
use crate::{
    invalid::Invalid,
    node::Toleration,
    text::{shown, written_as_text},
};

/// A rule that counts for or against a node: `RULE [weight N]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Affinity {
    /// The rule.
    pub rule: Rule,
    /// How much it counts, -100 to 100; below 0 it counts against the nodes that it holds for.
    pub weight: i32,
}

/// Copies are spread evenly over the nodes, or over the values of a label: `node.hostname [weight N]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Spread {
    /// What nodes must differ in.
    pub by: Attribute,
    /// How much it counts, 1 to 100.
    pub weight: i32,
}

const USUAL_WEIGHT: i32 = 50;

/// What stands before ` weight N`, and the weight.
fn weighed(text: &str) -> Result<(&str, i32), Invalid> {
    let Some((rest, weight)) = text.rsplit_once(" weight ") else { return Ok((text.trim(), USUAL_WEIGHT)) };
    let number = weight.trim().parse::<i32>().ok().filter(|weight| (-100..=100).contains(weight) && *weight != 0);
    let number = number
        .ok_or_else(|| Invalid::value(format!("`{}` is no weight", shown(weight)), "use -100 to 100, and not 0"))?;
    Ok((rest.trim(), number))
}

fn write(f: &mut fmt::Formatter<'_>, what: &impl fmt::Display, weight: i32) -> fmt::Result {
    what.fmt(f)?;
    if weight == USUAL_WEIGHT { Ok(()) } else { write!(f, " weight {weight}") }
}

impl FromStr for Affinity {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let (rule, weight) = weighed(text)?;
        Ok(Self { rule: rule.parse()?, weight })
    }
}

impl fmt::Display for Affinity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write(f, &self.rule, self.weight)
    }
}

written_as_text!(Affinity);

impl FromStr for Spread {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let (by, weight) = weighed(text)?;
        let bad = |what: String| Invalid::value(what, "write it like `node.hostname` or `node.labels.zone weight 80`");
        match by.parse()? {
            by @ (Attribute::NodeName | Attribute::NodeLabel(_) | Attribute::Arch) if weight > 0 => {
                Ok(Self { by, weight })
            }
            by if weight > 0 => Err(bad(format!("copies cannot be spread by `{by}`"))),
            _ => Err(bad(format!("copies cannot be spread with the weight {weight}"))),
        }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write(f, &self.by, self.weight)
    }
}

written_as_text!(Spread);

/// Where instances may be, should be, and what they may push aside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PlacementSpec {
    /// Only nodes for which all of these hold: `node.labels.zone == a`, `gpu.memory >= 24GiB`, `workload != db`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub constraints: Vec<Rule>,
    /// Rather nodes for which these hold: a constraint with a weight behind it, such as `node.labels.disk == ssd weight 50`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub affinities: Vec<Affinity>,
    /// Copies are spread over nodes that differ in these: `node.labels.zone`, `node.hostname`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub spread: Vec<Spread>,
    /// Taints of nodes that are put up with: `KEY[=VALUE][:EFFECT]`, or `*`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub tolerations: Vec<Toleration>,
    /// Most copies on one node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_per_node: Option<u32>,
    /// 0 to 1000; what has a lower one makes room when there is no other place. Default: 100.
    pub priority: u32,
    /// Whether all copies are placed at once or none.
    #[serde(skip_serializing_if = "is_default")]
    pub gang: bool,
}

impl Default for PlacementSpec {
    fn default() -> Self {
        Self {
            constraints: Vec::new(),
            affinities: Vec::new(),
            spread: Vec::new(),
            tolerations: Vec::new(),
            max_per_node: None,
            priority: Self::USUAL_PRIORITY,
            gang: false,
        }
    }
}

impl PlacementSpec {
    /// Priority when none is written.
    pub const USUAL_PRIORITY: u32 = 100;
    /// Highest priority.
    pub const MAX_PRIORITY: u32 = 1_000;
    /// Most rules of one kind.
    pub const MAX_RULES: usize = 64;

    /// Checks what the types alone cannot hold.
    pub(super) fn validate(&self) -> Result<(), Invalid> {
        let lists = [
            ("constraints", self.constraints.len()),
            ("affinities", self.affinities.len()),
            ("spread", self.spread.len()),
            ("tolerations", self.tolerations.len()),
        ];
        if let Some((field, count)) = lists.into_iter().find(|(_, count)| *count > Self::MAX_RULES) {
            let message = format!("{count} entries are more than {}", Self::MAX_RULES);
            return Err(Invalid::value(message, "use fewer").at(field));
        }
        if self.priority > Self::MAX_PRIORITY {
            let message = format!("{} is out of range", self.priority);
            return Err(Invalid::value(message, "use 0 to 1000").at("priority"));
        }
        if self.max_per_node == Some(0) {
            return Err(Invalid::value("no node could take a copy", "use 1 or more").at("max_per_node"));
        }
        Ok(())
    }

    /// Whether it puts up with `taint`.
    pub fn tolerates(&self, taint: &crate::node::Taint) -> bool {
        self.tolerations.iter().any(|toleration| toleration.tolerates(taint))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes_parse_and_print() {
        for text in ["node.labels.disk == ssd", "node.labels.disk == ssd weight -20", "workload == db weight 100"] {
            assert_eq!(text.parse::<Affinity>().unwrap().to_string(), text);
        }
        assert_eq!("node.cpus > 4 weight 50".parse::<Affinity>().unwrap().to_string(), "node.cpus > 4");
        for text in ["node.hostname", "node.labels.zone weight 80"] {
            assert_eq!(text.parse::<Spread>().unwrap().to_string(), text);
        }
        for bad in
            ["", "weight 5", "node.labels.a == b weight 0", "node.labels.a == b weight 101", "node.labels.a weight x"]
        {
            assert!(bad.parse::<Affinity>().is_err(), "{bad}");
        }
        for bad in ["", "node.cpus", "workload", "node.labels.zone weight -5", "node.labels.zone == a"] {
            assert!(bad.parse::<Spread>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_specification_without_wishes_is_written_short() {
        let text = serde_json::to_string(&PlacementSpec::default()).unwrap();
        assert_eq!(text, r#"{"priority":100}"#);
        let wishes: PlacementSpec = serde_json::from_str(
            r#"{"constraints":["gpu.memory >= 24GiB"],"spread":["node.labels.zone"],"tolerations":["*"],"gang":true}"#,
        )
        .unwrap();
        assert_eq!(wishes.priority, 100);
        assert_eq!(serde_json::from_str::<PlacementSpec>(&serde_json::to_string(&wishes).unwrap()).unwrap(), wishes);
        for (bad, field) in [(r#"{"priority":1001}"#, "priority"), (r#"{"max_per_node":0}"#, "max_per_node")] {
            let spec: PlacementSpec = serde_json::from_str(bad).unwrap();
            assert_eq!(spec.validate().unwrap_err().field, field);
        }
        let many = PlacementSpec { tolerations: vec!["*".parse().unwrap(); 65], ..PlacementSpec::default() };
        assert_eq!(many.validate().unwrap_err().field, "tolerations");
    }
}
