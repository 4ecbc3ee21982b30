//! A rule about nodes, in the words of Docker Swarm and a few more: `node.labels.zone == a`, `gpu.memory >= 24GiB`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{
    invalid::Invalid,
    text::{shown, written_as_text},
    units::{format_bytes, parse_bytes},
};

/// What a rule looks at.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Attribute {
    /// `node.id`: the node's id.
    NodeId,
    /// `node.hostname` (or `node.name`): the node's name.
    NodeName,
    /// `node.labels.KEY` (or `engine.labels.KEY`): a label of the node.
    NodeLabel(String),
    /// `node.platform.arch`: `x86_64` or `aarch64`.
    Arch,
    /// `node.platform.os`: `linux`.
    Os,
    /// `node.cpus`: logical CPUs.
    Cpus,
    /// `node.memory`: physical memory.
    Memory,
    /// `gpu.count`: cards of the node.
    GpuCount,
    /// `gpu.vendor`: who makes the card.
    GpuVendor,
    /// `gpu.model`: what the card is called, as in requests for cards.
    GpuModel,
    /// `gpu.memory`: how large the card is, as cards are sold.
    GpuMemory,
    /// `workload`: a workload with instances on the node.
    Workload,
}

impl Attribute {
    const LIST: &'static str = "`node.labels.KEY`, `node.hostname`, `node.id`, `node.platform.arch`, `node.platform.os`, \
                                `node.cpus`, `node.memory`, `gpu.vendor`, `gpu.model`, `gpu.memory`, `gpu.count`, `workload`";

    /// Whether it is a number, which can be more or less.
    fn is_number(&self) -> bool {
        matches!(self, Self::Cpus | Self::Memory | Self::GpuCount | Self::GpuMemory)
    }

    /// Whether each card has its own.
    pub fn is_of_card(&self) -> bool {
        matches!(self, Self::GpuVendor | Self::GpuModel | Self::GpuMemory)
    }

    fn is_bytes(&self) -> bool {
        matches!(self, Self::Memory | Self::GpuMemory)
    }
}

impl FromStr for Attribute {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
        let label = text.strip_prefix("node.labels.").or_else(|| text.strip_prefix("engine.labels."));
        Ok(match text {
            "node.id" => Self::NodeId,
            "node.hostname" | "node.name" => Self::NodeName,
            "node.platform.arch" | "node.arch" => Self::Arch,
            "node.platform.os" | "node.os" => Self::Os,
            "node.cpus" => Self::Cpus,
            "node.memory" => Self::Memory,
            "gpu.count" => Self::GpuCount,
            "gpu.vendor" => Self::GpuVendor,
            "gpu.model" => Self::GpuModel,
            "gpu.memory" => Self::GpuMemory,
            "workload" => Self::Workload,
            _ => match label.filter(|key| !key.is_empty() && key.chars().all(known)) {
                Some(key) => Self::NodeLabel(key.to_owned()),
                None => {
                    let hint = format!("use one of {}", Self::LIST);
                    return Err(Invalid::value(format!("`{}` is nothing a rule can look at", shown(text)), hint));
                }
            },
        })
    }
}

impl fmt::Display for Attribute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NodeId => "node.id",
            Self::NodeName => "node.hostname",
            Self::NodeLabel(key) => return write!(f, "node.labels.{key}"),
            Self::Arch => "node.platform.arch",
            Self::Os => "node.platform.os",
            Self::Cpus => "node.cpus",
            Self::Memory => "node.memory",
            Self::GpuCount => "gpu.count",
            Self::GpuVendor => "gpu.vendor",
            Self::GpuModel => "gpu.model",
            Self::GpuMemory => "gpu.memory",
            Self::Workload => "workload",
        })
    }
}

/// How a number is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// `<`
    Less,
    /// `<=`
    AtMost,
    /// `>=`
    AtLeast,
    /// `>`
    More,
}

/// What a rule asks of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Test {
    /// It is one of these.
    Is(Vec<String>),
    /// It is none of these.
    IsNot(Vec<String>),
    /// A number is so much, less or more; memory in bytes.
    Number(Order, u64),
    /// A label is there, whatever its value.
    There,
    /// A label is not there.
    Missing,
}

/// A rule: `ATTRIBUTE == VALUE`, `!=`, `in (A, B)`, `not in (A, B)`; numbers also `<`, `<=`, `>=`, `>`; labels also alone (it
/// is there) and with `!` before them (it is not). Letters' case does not matter in values. Values with blanks stand in
/// double quotes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Rule {
    /// What it looks at.
    pub attribute: Attribute,
    /// What it asks.
    pub test: Test,
}

impl Rule {
    /// Longest text, in bytes.
    pub const MAX_BYTES: usize = 1_024;
    /// Most values of one rule.
    const MAX_VALUES: usize = 64;

    /// The values that it compares with.
    pub fn names(&self) -> &[String] {
        match &self.test {
            Test::Is(values) | Test::IsNot(values) => values,
            Test::Number(..) | Test::There | Test::Missing => &[],
        }
    }
}

fn split(text: &str) -> Result<(&str, &str, &str), Invalid> {
    let text = text.trim();
    let end = text.find(|c: char| c.is_whitespace() || matches!(c, '=' | '!' | '<' | '>' | '(')).unwrap_or(text.len());
    let (attribute, rest) = text.split_at(end);
    let rest = rest.trim_start();
    if rest.is_empty() {
        return Ok((attribute, "", ""));
    }
    for operator in ["==", "!=", "<=", ">=", "<", ">"] {
        if let Some(value) = rest.strip_prefix(operator) {
            return Ok((attribute, operator, value.trim()));
        }
    }
    for (words, operator) in [(&["not", "in"][..], "not in"), (&["in"], "in")] {
        let mut left = rest;
        let all = words.iter().all(|word| match left.trim_start().strip_prefix(word) {
            Some(after) if after.starts_with(|c: char| c.is_whitespace() || c == '(') => {
                left = after;
                true
            }
            _ => false,
        });
        if all {
            return Ok((attribute, operator, left.trim()));
        }
    }
    Err(Invalid::value(
        format!("`{}` compares with nothing known", shown(text)),
        "use `==`, `!=`, `in (A, B)` or `not in (A, B)`; for numbers also `<`, `<=`, `>=` and `>`",
    ))
}

fn value(text: &str) -> Result<String, Invalid> {
    let bad = || {
        let hint = "write letters, digits and `-_.:/+@`, or put it into double quotes";
        Invalid::value(format!("`{}` is no value", shown(text)), hint)
    };
    if let Some(quoted) = text.strip_prefix('"') {
        let inner = quoted.strip_suffix('"').ok_or_else(bad)?;
        let fine = !inner.is_empty() && !inner.chars().any(|c| c == '"' || c.is_control());
        return if fine { Ok(inner.to_owned()) } else { Err(bad()) };
    }
    let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':' | '/' | '+' | '@');
    if text.is_empty() || !text.chars().all(known) { Err(bad()) } else { Ok(text.to_owned()) }
}

fn list(text: &str) -> Result<Vec<String>, Invalid> {
    let inner = text.strip_prefix('(').and_then(|rest| rest.strip_suffix(')'));
    let inner = inner.ok_or_else(|| Invalid::value("the list has no brackets", "write it like `in (a, b)`"))?;
    let mut values = Vec::new();
    let mut rest = inner.trim();
    while !rest.is_empty() {
        // A comma inside quotes is part of the value.
        let quoted = rest.strip_prefix('"').and_then(|rest| rest.find('"')).map(|end| end + 2);
        let end =
            quoted.unwrap_or(0) + rest[quoted.unwrap_or(0)..].find(',').unwrap_or(rest.len() - quoted.unwrap_or(0));
        values.push(value(rest[..end].trim())?);
        rest = rest[end..].strip_prefix(',').unwrap_or("").trim_start();
    }
    if values.is_empty() || values.len() > Rule::MAX_VALUES {
        return Err(Invalid::value("the list is empty or too long", "write 1 to 64 values"));
    }
    Ok(values)
}

impl FromStr for Rule {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        if text.len() > Self::MAX_BYTES {
            return Err(Invalid::value("the rule is too long", "use at most 1024 bytes"));
        }
        if let Some(label) = text.trim().strip_prefix('!') {
            let attribute: Attribute = label.trim().parse()?;
            return match attribute {
                Attribute::NodeLabel(_) => Ok(Self { attribute, test: Test::Missing }),
                _ => Err(Invalid::value(format!("`{attribute}` is always there"), "compare it with a value")),
            };
        }
        let (attribute, operator, right) = split(text)?;
        let attribute: Attribute = attribute.parse()?;
        let numeric = |order: Order| -> Result<Test, Invalid> {
            if !attribute.is_number() {
                let hint = "use `==`, `!=`, `in (A, B)` or `not in (A, B)`";
                return Err(Invalid::value(format!("`{attribute}` is no number"), hint));
            }
            Ok(Test::Number(order, number(&attribute, &value(right)?)?))
        };
        let test = match operator {
            "" if matches!(attribute, Attribute::NodeLabel(_)) => Test::There,
            "" => {
                return Err(Invalid::value(
                    format!("`{attribute}` is compared with nothing"),
                    "write it like `node.cpus >= 8`",
                ));
            }
            "==" => Test::Is(vec![value(right)?]),
            "!=" => Test::IsNot(vec![value(right)?]),
            "in" => Test::Is(list(right)?),
            "not in" => Test::IsNot(list(right)?),
            "<" => numeric(Order::Less)?,
            "<=" => numeric(Order::AtMost)?,
            ">=" => numeric(Order::AtLeast)?,
            _ => numeric(Order::More)?,
        };
        if let (true, Test::Is(values) | Test::IsNot(values)) = (attribute.is_number(), &test) {
            for value in values {
                number(&attribute, value)?;
            }
        }
        Ok(Self { attribute, test })
    }
}

/// A number as it is written for `attribute`; memory in bytes.
pub(crate) fn number(attribute: &Attribute, text: &str) -> Result<u64, Invalid> {
    if attribute.is_bytes() {
        return parse_bytes(text);
    }
    text.parse().map_err(|_| Invalid::value(format!("`{}` is no whole number", shown(text)), "write it like `8`"))
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let attribute = &self.attribute;
        let quoted = |value: &String| match self::value(value) {
            Ok(_) if !value.starts_with('"') => value.clone(),
            _ => format!("\"{value}\""),
        };
        let several = |values: &[String]| values.iter().map(quoted).collect::<Vec<_>>().join(", ");
        match &self.test {
            Test::Is(values) if values.len() == 1 => write!(f, "{attribute} == {}", quoted(&values[0])),
            Test::IsNot(values) if values.len() == 1 => write!(f, "{attribute} != {}", quoted(&values[0])),
            Test::Is(values) => write!(f, "{attribute} in ({})", several(values)),
            Test::IsNot(values) => write!(f, "{attribute} not in ({})", several(values)),
            Test::Number(order, number) => {
                let order = match order {
                    Order::Less => "<",
                    Order::AtMost => "<=",
                    Order::AtLeast => ">=",
                    Order::More => ">",
                };
                let exact = |unit: u64| attribute.is_bytes() && *number >= unit && number.is_multiple_of(unit);
                if exact(1 << 30) {
                    write!(f, "{attribute} {order} {}GiB", number >> 30)
                } else if exact(1 << 20) {
                    write!(f, "{attribute} {order} {}MiB", number >> 20)
                } else {
                    write!(f, "{attribute} {order} {number}")
                }
            }
            Test::There => attribute.fmt(f),
            Test::Missing => write!(f, "!{attribute}"),
        }
    }
}

impl Attribute {
    /// A number of it as people read it.
    pub(crate) fn told(&self, number: u64) -> String {
        if self.is_bytes() { format_bytes(number) } else { number.to_string() }
    }
}

written_as_text!(Rule);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_parse_and_print() {
        for (text, printed) in [
            ("node.labels.zone == a", "node.labels.zone == a"),
            ("node.labels.zone==a", "node.labels.zone == a"),
            ("engine.labels.a.b != c", "node.labels.a.b != c"),
            ("node.hostname in (a,b , \"c d\")", "node.hostname in (a, b, \"c d\")"),
            ("node.labels.x not in(\"a,b\")", "node.labels.x != \"a,b\""),
            ("gpu.memory >= 24GiB", "gpu.memory >= 24GiB"),
            ("gpu.memory>24576MiB", "gpu.memory > 24GiB"),
            ("node.memory < 1.5g", "node.memory < 1536MiB"),
            ("node.cpus <= 8", "node.cpus <= 8"),
            ("gpu.count == 2", "gpu.count == 2"),
            ("node.labels.ssd", "node.labels.ssd"),
            ("! node.labels.ssd", "!node.labels.ssd"),
            ("workload != db", "workload != db"),
            ("node.platform.arch == x86_64", "node.platform.arch == x86_64"),
        ] {
            let rule: Rule = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(rule.to_string(), printed, "{text}");
            assert_eq!(printed.parse::<Rule>().unwrap(), rule, "{text}");
        }
    }

    #[test]
    fn what_is_no_rule_is_refused() {
        let (long, many) = ("x".repeat(2_000), format!("node.id in ({}a)", "a,".repeat(64)));
        for bad in [
            "",
            "==",
            "node",
            "node.role == manager",
            "node.labels. == a",
            "node.hostname",
            "!node.hostname",
            "node.labels.a = b",
            "node.labels.a =~ b",
            "node.labels.a ==",
            "node.labels.a == b c",
            "node.labels.a == \"b",
            "node.labels.a == \"\"",
            "node.labels.a < 3",
            "node.cpus >= many",
            "node.cpus == x",
            "gpu.memory >= 24 apples",
            "node.id in ()",
            "node.id in a",
            "node.id in (a",
            "node.id in (\"a)",
            "node.id inside (a)",
            "node.id not (a)",
            "\0",
            "ü == ü",
            &long,
            &many,
        ] {
            let error = bad.parse::<Rule>().expect_err(bad);
            assert!(!error.hint.is_empty() && error.message.len() < 400, "{bad}");
        }
    }
}
