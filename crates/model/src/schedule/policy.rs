//! What the whole cluster says about where work goes: the policy, its weights, and how far nodes may be overbooked.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize};

use super::expression;
use crate::{
    invalid::Invalid,
    node::Price,
    state::NodeRow,
    text::{shown, written_as_text},
};

/// What is wanted of a place, when several would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// Copies of a workload apart; else where the least is left over, so that large requests find room later.
    #[default]
    BestFit,
    /// The fullest node first, so that others stay empty.
    Binpack,
    /// The emptiest node first.
    Spread,
    /// Any; the same again for the same state.
    Random,
    /// Only what weights and expression say.
    Custom,
}

impl Policy {
    const ALL: [Self; 5] = [Self::BestFit, Self::Binpack, Self::Spread, Self::Random, Self::Custom];

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BestFit => "best-fit",
            Self::Binpack => "binpack",
            Self::Spread => "spread",
            Self::Random => "random",
            Self::Custom => "custom",
        }
    }
}

impl FromStr for Policy {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        Self::ALL.into_iter().find(|policy| policy.as_str() == text).ok_or_else(|| {
            Invalid::value(
                format!("`{}` is no policy", shown(text)),
                "use `best-fit`, `binpack`, `spread`, `random` or `custom`",
            )
        })
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One thing that counts for or against a node, from -1 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Term {
    /// How much of what is asked for would then be reserved there: 0 to 1.
    Fit,
    /// -1 where more copies of the workload are than elsewhere.
    Copies,
    /// How many instances are there: -1 to 0.
    Instances,
    /// By `best-fit` what the placement leaves to others of the cards, -1 to 1. Else, who asks for cards: how full they then
    /// are, 0 to 1; who does not: how many are free there, -1 to 0.
    Gpus,
    /// 1 where an instance of the same image runs.
    Image,
    /// What the node costs, compared with the dearest: -1 to 0.
    Cost,
    /// What the node draws, compared with the most: -1 to 0.
    Watts,
    /// Which of the workload's affinities hold.
    Affinity,
    /// How many copies are in the same part of what they are to be spread over: -1 to 0.
    Spread,
    /// -1 where a taint says that others go first.
    Taints,
    /// Chance, 0 to 1.
    Random,
    /// What the cluster's expression gives; its weight is 1.
    Expression,
}

impl Term {
    /// Every term.
    pub const ALL: [Self; 12] = [
        Self::Fit,
        Self::Copies,
        Self::Instances,
        Self::Gpus,
        Self::Image,
        Self::Cost,
        Self::Watts,
        Self::Affinity,
        Self::Spread,
        Self::Taints,
        Self::Random,
        Self::Expression,
    ];

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fit => "fit",
            Self::Copies => "copies",
            Self::Instances => "instances",
            Self::Gpus => "gpus",
            Self::Image => "image",
            Self::Cost => "cost",
            Self::Watts => "watts",
            Self::Affinity => "affinity",
            Self::Spread => "spread",
            Self::Taints => "taints",
            Self::Random => "random",
            Self::Expression => "expression",
        }
    }
}

impl FromStr for Term {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        Self::ALL.into_iter().find(|term| term.as_str() == text).ok_or_else(|| {
            let all: Vec<&str> = Self::ALL.into_iter().map(Self::as_str).collect();
            Invalid::value(format!("`{}` counts nowhere", shown(text)), format!("use one of {}", all.join(", ")))
        })
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

written_as_text!(Term);

/// How much each term counts, in the order of [`Term::ALL`].
pub(super) type Weights = [i32; Term::ALL.len()];

/// What the cluster says about placement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct PlacementSettings {
    /// What is wanted of a place.
    pub policy: Policy,
    /// Weights instead of the policy's.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<String, i32>)]
    pub weights: BTreeMap<Term, i32>,
    /// Points beside the terms, of the numbers of a node: `20 if gpus == 0 else -price * 10`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expression: Option<String>,
    /// How much of a node's CPU can be reserved, in percent.
    pub cpu_percent: u32,
    /// How much of a node's memory can be reserved, in percent.
    pub memory_percent: u32,
    /// What a kilowatt-hour costs; it prices nodes whose watts are known, by measure or by setting, and that have no price.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<f64>, example = 0.3)]
    pub electricity_price: Option<Price>,
}

impl Default for PlacementSettings {
    fn default() -> Self {
        Self {
            policy: Policy::default(),
            weights: BTreeMap::new(),
            expression: None,
            cpu_percent: 100,
            memory_percent: 100,
            electricity_price: None,
        }
    }
}

/// A change of what the cluster says about placement. What is absent stays; `null` takes back.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PlacementChanges {
    /// What is wanted of a place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
    /// Weights, -1000 to 1000; `null` goes back to the policy's.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<String, Option<i32>>)]
    pub weights: BTreeMap<Term, Option<i32>>,
    /// Points beside the terms.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "given")]
    #[schema(value_type = Option<String>)]
    pub expression: Option<Option<String>>,
    /// How much of a node's CPU can be reserved, 1 to 10 000 percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_percent: Option<u32>,
    /// How much of a node's memory can be reserved, 1 to 1 000 percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_percent: Option<u32>,
    /// What a kilowatt-hour costs.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "given")]
    #[schema(value_type = Option<f64>)]
    pub electricity_price: Option<Option<Price>>,
}

/// What is there was given, be it `null`.
fn given<'de, T: Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<Option<Option<T>>, D::Error> {
    Option::<T>::deserialize(from).map(Some)
}

/// How much of a node can be reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Capacity {
    pub(crate) cpu_millis: u64,
    pub(crate) memory_bytes: u64,
}

impl PlacementSettings {
    /// The settings after `changes`; the first breach of a rule is told with its field.
    pub fn with(mut self, changes: &PlacementChanges) -> Result<Self, Invalid> {
        self.policy = changes.policy.unwrap_or(self.policy);
        for (term, weight) in &changes.weights {
            if let Some(weight) = weight.filter(|weight| !(-1_000..=1_000).contains(weight)) {
                let message = format!("{weight} is out of range");
                return Err(Invalid::value(message, "use -1000 to 1000").at(&format!("weights.{term}")));
            }
            match weight {
                Some(weight) => drop(self.weights.insert(*term, *weight)),
                None => drop(self.weights.remove(term)),
            }
        }
        if let Some(expression) = &changes.expression {
            if let Some(text) = expression {
                expression::check(text).map_err(|e| e.at("expression"))?;
            }
            self.expression.clone_from(expression);
        }
        let ratios = [
            ("cpu_percent", changes.cpu_percent, &mut self.cpu_percent, 10_000),
            ("memory_percent", changes.memory_percent, &mut self.memory_percent, 1_000),
        ];
        for (field, change, ratio, most) in ratios {
            let Some(wanted) = change else { continue };
            if !(1..=most).contains(&wanted) {
                return Err(Invalid::value(format!("{wanted} is out of range"), format!("use 1 to {most}")).at(field));
            }
            *ratio = wanted;
        }
        if let Some(price) = changes.electricity_price {
            self.electricity_price = price;
        }
        Ok(self)
    }

    /// How much each term counts in a cluster with or without cards.
    pub(super) fn weights(&self, cards: bool) -> Weights {
        let usual = |term| match (term, self.policy) {
            // What is left over of the cards weighs more than what is left over beside them.
            (Term::Fit, Policy::BestFit) if cards => 10,
            (term, policy) => usual_weight(policy, term),
        };
        Term::ALL.map(|term| self.weights.get(&term).copied().unwrap_or_else(|| usual(term)))
    }

    /// How much of `node` can be reserved.
    pub(crate) fn capacity(&self, node: &NodeRow) -> Capacity {
        let part =
            |all: u64, percent: u32| u64::try_from(u128::from(all) * u128::from(percent) / 100).unwrap_or(u64::MAX);
        let (settings, inventory) = (&node.settings, &node.inventory);
        Capacity {
            cpu_millis: part(u64::from(inventory.cpus) * 1_000, settings.cpu_percent.unwrap_or(self.cpu_percent)),
            memory_bytes: part(inventory.memory_bytes, settings.memory_percent.unwrap_or(self.memory_percent)),
        }
    }

    /// What an hour of `node` costs, when that is known.
    pub fn cost(&self, node: &NodeRow) -> Option<f64> {
        let of_power = || Some(f64::from(node.watts()?) / 1_000.0 * f64::from(self.electricity_price?));
        node.settings.price_per_hour.map(f64::from).or_else(of_power)
    }
}

/// What counts how much when users say nothing. What they ask of a workload goes before what is good for the cluster.
fn usual_weight(policy: Policy, term: Term) -> i32 {
    match (term, policy) {
        (Term::Affinity | Term::Spread, _) => 300,
        (Term::Taints, _) => 500,
        (Term::Expression, _) => 1,
        (Term::Random, Policy::Random) => 100,
        (Term::Random, _) | (_, Policy::Random | Policy::Custom) => 0,
        (Term::Fit, Policy::BestFit | Policy::Binpack) => 100,
        (Term::Fit, Policy::Spread) => -100,
        (Term::Copies, Policy::BestFit | Policy::Spread) => 200,
        (Term::Copies, Policy::Binpack) => 10,
        // Decides when nothing else does.
        (Term::Instances, Policy::BestFit) => 1,
        (Term::Instances, Policy::Binpack) => -50,
        (Term::Instances, Policy::Spread) => 100,
        (Term::Gpus, Policy::BestFit) => 300,
        (Term::Gpus, Policy::Binpack) => 100,
        (Term::Gpus, Policy::Spread) => -50,
        (Term::Image, _) => 20,
        (Term::Cost, _) => 10,
        (Term::Watts, _) => 5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(before: &PlacementSettings, changes: &str) -> Result<PlacementSettings, String> {
        let changes: PlacementChanges = serde_json::from_str(changes).map_err(|e| e.to_string())?;
        let again = serde_json::to_string(&changes).unwrap();
        assert_eq!(serde_json::from_str::<PlacementChanges>(&again).unwrap(), changes, "{again}");
        before.clone().with(&changes).map_err(|e| format!("{}: {}", e.field, e.message))
    }

    #[test]
    fn settings_change_one_by_one() {
        let start = PlacementSettings::default();
        let one =
            changed(&start, r#"{"policy":"binpack","weights":{"cost":500},"expression":"-price","cpu_percent":150}"#);
        let one = one.unwrap();
        let weight = |settings: &PlacementSettings, term: Term| settings.weights(false)[term as usize];
        assert_eq!((weight(&one, Term::Cost), weight(&one, Term::Fit), weight(&one, Term::Random)), (500, 100, 0));
        let two = changed(&one, r#"{"policy":"custom","weights":{"cost":null},"expression":null}"#).unwrap();
        assert_eq!((weight(&two, Term::Cost), weight(&two, Term::Fit), weight(&two, Term::Taints)), (0, 0, 500));
        assert_eq!(start.weights(true)[Term::Fit as usize], 10);
        assert_eq!((two.expression.as_deref(), two.cpu_percent), (None, 150));
        assert_eq!(serde_json::from_str::<PlacementSettings>(&serde_json::to_string(&one).unwrap()).unwrap(), one);
    }

    #[test]
    fn what_breaks_a_rule_is_refused_with_its_field() {
        for (bad, field) in [
            (r#"{"weights":{"cost":1001}}"#, "weights.cost"),
            (r#"{"expression":"1 +"}"#, "expression"),
            (r#"{"cpu_percent":0}"#, "cpu_percent"),
            (r#"{"memory_percent":1001}"#, "memory_percent"),
        ] {
            let told = changed(&PlacementSettings::default(), bad).expect_err(bad);
            assert!(told.starts_with(&format!("{field}: ")), "{told}");
        }
        for bad in [r#"{"policy":"best"}"#, r#"{"weights":{"luck":1}}"#, r#"{"electricity_price":-1}"#, r#"{"x":1}"#] {
            assert!(changed(&PlacementSettings::default(), bad).is_err(), "{bad}");
        }
    }
}
