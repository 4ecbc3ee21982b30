//! Taints keep work away from a node, unless it tolerates them: `gpu=only:NoSchedule`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{
    invalid::Invalid,
    text::{shown, written_as_text},
};

/// What a taint does to work that does not tolerate it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
pub enum TaintEffect {
    /// Nothing new is placed there.
    NoSchedule,
    /// Other nodes are taken first.
    PreferNoSchedule,
    /// Nothing new is placed there, and what runs moves away.
    NoExecute,
}

impl TaintEffect {
    /// The word for it, as Kubernetes has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoSchedule => "NoSchedule",
            Self::PreferNoSchedule => "PreferNoSchedule",
            Self::NoExecute => "NoExecute",
        }
    }
}

impl FromStr for TaintEffect {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let all = [Self::NoSchedule, Self::PreferNoSchedule, Self::NoExecute];
        all.into_iter().find(|effect| effect.as_str().eq_ignore_ascii_case(text)).ok_or_else(|| {
            Invalid::value(
                format!("`{}` is no effect of a taint", shown(text)),
                "use `NoSchedule`, `PreferNoSchedule` or `NoExecute`",
            )
        })
    }
}

/// Longest key and value, in bytes.
const MAX_BYTES: usize = 128;

fn word(what: &str, text: &str) -> Result<String, Invalid> {
    let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    if text.is_empty() || text.len() > MAX_BYTES || !text.chars().all(known) {
        return Err(Invalid::value(
            format!("`{}` is no {what} of a taint", shown(text)),
            "use 1 to 128 letters, digits, `-`, `_`, `.` and `/`",
        ));
    }
    Ok(text.to_owned())
}

/// A key and what may stand behind it: `KEY[=VALUE][:EFFECT]`.
fn parts(text: &str) -> Result<(String, Option<String>, Option<TaintEffect>), Invalid> {
    let (rest, effect) = match text.split_once(':') {
        Some((rest, effect)) => (rest, Some(effect.parse()?)),
        None => (text, None),
    };
    let (key, value) = match rest.split_once('=') {
        Some((key, value)) => (key, Some(word("value", value)?)),
        None => (rest, None),
    };
    Ok((word("key", key)?, value, effect))
}

fn write(f: &mut fmt::Formatter<'_>, key: &str, value: Option<&String>, effect: Option<TaintEffect>) -> fmt::Result {
    f.write_str(key)?;
    if let Some(value) = value {
        write!(f, "={value}")?;
    }
    if let Some(effect) = effect {
        write!(f, ":{}", effect.as_str())?;
    }
    Ok(())
}

/// Something about a node that keeps work away: `KEY[=VALUE]:EFFECT`. A node has one of a key and effect.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Taint {
    /// What it is about.
    pub key: String,
    /// What it does.
    pub effect: TaintEffect,
    /// More of it.
    pub value: Option<String>,
}

impl FromStr for Taint {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match parts(text)? {
            (key, value, Some(effect)) => Ok(Self { key, effect, value }),
            (_, _, None) => Err(Invalid::value(
                format!("`{}` does not say what the taint does", shown(text)),
                "write it like `gpu=only:NoSchedule`; the effects are `NoSchedule`, `PreferNoSchedule` and `NoExecute`",
            )),
        }
    }
}

impl fmt::Display for Taint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write(f, &self.key, self.value.as_ref(), Some(self.effect))
    }
}

written_as_text!(Taint);

/// A change of a node's taints: `KEY[=VALUE]:EFFECT` sets one, `KEY[:EFFECT]-` removes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum TaintChange {
    /// It is there from now on, instead of one of the same key and effect.
    Set(Taint),
    /// Those of the key are there no more, or the one of that effect.
    Remove {
        /// What they are about.
        key: String,
        /// Only the one that does this.
        effect: Option<TaintEffect>,
    },
}

impl FromStr for TaintChange {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let Some(removed) = text.strip_suffix('-') else { return text.parse().map(Self::Set) };
        let (key, _, effect) = parts(removed)?;
        Ok(Self::Remove { key, effect })
    }
}

impl fmt::Display for TaintChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Set(taint) => taint.fmt(f),
            Self::Remove { key, effect } => {
                write(f, key, None, *effect)?;
                f.write_str("-")
            }
        }
    }
}

written_as_text!(TaintChange);

/// Taints that a workload's instances put up with: `KEY[=VALUE][:EFFECT]`, or `*` for all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Toleration {
    /// Only taints about this.
    pub key: Option<String>,
    /// Only with this value.
    pub value: Option<String>,
    /// Only this effect.
    pub effect: Option<TaintEffect>,
}

impl Toleration {
    /// Whether work with it puts up with `taint`.
    pub fn tolerates(&self, taint: &Taint) -> bool {
        self.key.as_ref().is_none_or(|key| *key == taint.key)
            && (self.value.is_none() || self.value == taint.value)
            && self.effect.is_none_or(|effect| effect == taint.effect)
    }
}

impl FromStr for Toleration {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        if text == "*" {
            return Ok(Self { key: None, value: None, effect: None });
        }
        let (key, value, effect) = parts(text)?;
        Ok(Self { key: Some(key), value, effect })
    }
}

impl fmt::Display for Toleration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write(f, self.key.as_deref().unwrap_or("*"), self.value.as_ref(), self.effect)
    }
}

written_as_text!(Toleration);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taints_parse_and_print() {
        for text in ["gpu=only:NoSchedule", "desk:PreferNoSchedule", "toft/old=1.5:NoExecute"] {
            assert_eq!(text.parse::<Taint>().unwrap().to_string(), text);
            assert_eq!(text.parse::<TaintChange>().unwrap().to_string(), text);
        }
        for text in ["gpu-", "gpu:NoExecute-"] {
            assert_eq!(text.parse::<TaintChange>().unwrap().to_string(), text);
        }
        assert_eq!("gpu:noexecute".parse::<Taint>().unwrap().effect, TaintEffect::NoExecute);
        let long = format!("{}:NoSchedule", "x".repeat(129));
        for bad in
            ["", "gpu", "gpu=x", ":NoSchedule", "gpu=:NoSchedule", "gpu:Never", "a b:NoSchedule", "ü:NoSchedule", &long]
        {
            let error = bad.parse::<Taint>().expect_err(bad);
            assert!(!error.hint.is_empty() && error.message.len() < 200, "{bad}");
        }
        assert!("-".parse::<TaintChange>().is_err());
    }

    #[test]
    fn tolerations_are_as_wide_as_they_are_written() {
        let taint: Taint = "gpu=only:NoSchedule".parse().unwrap();
        for (text, tolerates) in [
            ("*", true),
            ("gpu", true),
            ("gpu=only", true),
            ("gpu:NoSchedule", true),
            ("gpu=only:NoSchedule", true),
            ("gpu=other", false),
            ("gpu:NoExecute", false),
            ("disk", false),
        ] {
            let toleration: Toleration = text.parse().unwrap();
            assert_eq!((toleration.to_string().as_str(), toleration.tolerates(&taint)), (text, tolerates), "{text}");
        }
    }
}
