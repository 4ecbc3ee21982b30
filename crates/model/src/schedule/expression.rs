//! The cluster's own expression over the numbers of a node. Only numbers go in and out: no texts, no lists, no loops.

use std::collections::BTreeMap;

use minijinja::{Environment, Error, Expression, UndefinedBehavior, Value, value::ValueKind};

use crate::invalid::Invalid;

/// Longest expression, in bytes.
const MAX_BYTES: usize = 1_024;
/// Most steps of one evaluation.
const FUEL: u64 = 10_000;
/// Most points, up and down.
const MOST: f64 = 1e6;

/// What an expression can name.
pub(super) const VARIABLES: [&str; 16] = [
    "cpus",
    "cpus_free",
    "memory_gib",
    "memory_free_gib",
    "gpus",
    "gpus_free",
    "vram_gib",
    "vram_free_gib",
    "instances",
    "copies",
    "replicas",
    "priority",
    "price",
    "watts",
    "image",
    "fit",
];
const FUNCTIONS: [&str; 3] = ["min", "max", "abs"];

/// What expressions are read in.
pub(super) fn environment() -> Environment<'static> {
    let mut environment = Environment::empty();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_fuel(Some(FUEL));
    environment.add_function("min", f64::min as fn(f64, f64) -> f64);
    environment.add_function("max", f64::max as fn(f64, f64) -> f64);
    environment.add_function("abs", f64::abs as fn(f64) -> f64);
    environment
}

/// The points that an expression gives a node with these numbers; else why it gives none.
pub(super) fn points(expression: &Expression<'_, '_>, numbers: &BTreeMap<&str, f64>) -> Result<f64, String> {
    let value = expression
        .eval(Value::from_pairs(numbers.iter().map(|(name, number)| (*name, *number))))
        .map_err(|error| told(&error))?;
    if value.kind() == ValueKind::Bool {
        return Ok(if value.is_true() { 1.0 } else { 0.0 });
    }
    let points = f64::try_from(value).map_err(|_| "it gives no number".to_owned())?;
    if !points.is_finite() {
        return Err("it gives no finite number".into());
    }
    Ok(points.clamp(-MOST, MOST))
}

fn told(error: &Error) -> String {
    error.detail().map_or_else(|| error.kind().to_string(), str::to_owned)
}

/// Whether `text` is an expression that gives a number.
pub(super) fn check(text: &str) -> Result<(), Invalid> {
    let hint = || {
        let (names, functions) = (VARIABLES.join(", "), FUNCTIONS.join(", "));
        format!(
            "write numbers, + - * / % ( ), comparisons, and, or, not, `A if CONDITION else B`, {functions}, and of: {names}"
        )
    };
    let known = |c: char| c.is_ascii_alphanumeric() || " _.+-*/%()<>=!,".contains(c);
    if text.len() > MAX_BYTES || !text.chars().all(known) || text.trim().is_empty() || text.contains("**") {
        return Err(Invalid::value(
            "the expression is empty, too long, or holds a character that is no part of one",
            hint(),
        ));
    }
    let environment = environment();
    let expression = environment
        .compile_expression(text)
        .map_err(|error| Invalid::value(format!("the expression cannot be read: {}", told(&error)), hint()))?;
    let named = expression.undeclared_variables(false);
    let unknown =
        named.iter().filter(|name| !VARIABLES.contains(&name.as_str()) && !FUNCTIONS.contains(&name.as_str()));
    if let Some(unknown) = unknown.min() {
        return Err(Invalid::value(format!("`{unknown}` is no number of a node"), hint()));
    }
    // Some numbers that a node may have. What divides by one of them may fail for a node, not for all.
    let tried = [0.0, 1.0, 16.0].map(|number| {
        let numbers = VARIABLES.iter().map(|name| (*name, number)).collect();
        points(&expression, &numbers)
    });
    match tried {
        [Err(_), Err(_), Err(why)] => Err(Invalid::value(format!("the expression fails: {why}"), hint())),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_numbers_of_numbers() {
        for (text, want) in [
            ("1", 1.0),
            ("cpus * 2 - price", 3.0),
            ("20 if gpus == 2 else -price * 10", 20.0),
            ("max(cpus, min(5, abs(-7)))", 5.0),
            ("cpus > 1 and not gpus < 1", 1.0),
            ("(cpus_free + 1) % 2", 1.0),
        ] {
            check(text).unwrap_or_else(|error| panic!("{text}: {error}; {}", error.hint));
            let environment = environment();
            let expression = environment.compile_expression(text).unwrap();
            let numbers = VARIABLES.iter().map(|name| (*name, if *name == "price" { 1.0 } else { 2.0 })).collect();
            assert_eq!(points(&expression, &numbers), Ok(want), "{text}");
        }
    }

    #[test]
    fn what_is_no_expression_is_refused() {
        let (long, deep) = ("1+".repeat(600), format!("{}1{}", "(".repeat(500), ")".repeat(500)));
        for bad in [
            "",
            " ",
            "1 +",
            "(1",
            "price price",
            "luck",
            "nodes()",
            "cpus()",
            "min(1)",
            "cpus.foo",
            "'a'",
            "\"a\" * 9999",
            "[1]",
            "{1: 2}",
            "cpus|abs",
            "cpus ~ 1",
            "9**9**9",
            "1 if",
            "loop",
            "self.x",
            "range(9999999)",
            "\0",
            "ü",
            &long,
            &deep,
        ] {
            let error = check(bad).expect_err(bad);
            assert!(!error.hint.is_empty() && error.message.len() < 300, "{bad}: {}", error.message);
        }
    }
}
