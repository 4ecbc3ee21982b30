//! `cluster get`, `cluster set`: what the cluster says about where work goes.

use std::collections::BTreeMap;

use toft_model::schedule::{PlacementChanges, PlacementSettings};

use super::{Failure, args::told, client::Client, output};

const PATH: &str = "/api/v1/placement";

pub(super) async fn get(client: &Client, json: bool) -> Result<i32, Failure> {
    let settings: PlacementSettings = client.get(PATH).await?;
    if json {
        output::json(&BTreeMap::from([("placement", settings)]))?;
        return Ok(0);
    }
    let mut rows = vec![("policy".to_owned(), settings.policy.to_string())];
    rows.extend(settings.weights.iter().map(|(term, weight)| (format!("weights.{term}"), weight.to_string())));
    rows.extend(settings.expression.map(|expression| ("expression".to_owned(), expression)));
    rows.push(("cpu_percent".to_owned(), settings.cpu_percent.to_string()));
    rows.push(("memory_percent".to_owned(), settings.memory_percent.to_string()));
    rows.extend(settings.electricity_price.map(|price| ("electricity_price".to_owned(), price.to_string())));
    let rows = rows.into_iter().map(|(key, value)| vec![format!("placement.{key}"), output::harmless(&value)]);
    output::table(&["KEY", "VALUE"], rows);
    Ok(0)
}

pub(super) async fn set(client: &Client, changes: Vec<String>) -> Result<i32, Failure> {
    let mut all = PlacementChanges::default();
    for change in &changes {
        parse(change, &mut all).map_err(|why| Failure::of(2, why).hint("`toft cluster set --help` lists the keys"))?;
    }
    client.patch(PATH, &all).await?;
    Ok(0)
}

/// Reads `placement.KEY=VALUE` or `placement.KEY-`.
fn parse(text: &str, into: &mut PlacementChanges) -> Result<(), String> {
    let (key, value) = match text.split_once('=') {
        Some((key, value)) => (key, Some(value)),
        None => match text.strip_suffix('-') {
            Some(key) => (key, None),
            None => return Err(format!("`{text}` is no KEY=VALUE")),
        },
    };
    let number = |value: &str| value.trim_end_matches('%').parse().map_err(|_| format!("`{value}` is no whole number"));
    let usual = PlacementSettings::default();
    match key.strip_prefix("placement.") {
        Some("policy") => into.policy = Some(value.map_or(Ok(usual.policy), str::parse).map_err(told)?),
        Some("expression") => into.expression = Some(value.map(str::to_owned)),
        Some("cpu_percent") => into.cpu_percent = Some(value.map_or(Ok(usual.cpu_percent), number)?),
        Some("memory_percent") => into.memory_percent = Some(value.map_or(Ok(usual.memory_percent), number)?),
        Some("electricity_price") => {
            let price =
                value.map(|value| value.parse::<f64>().map_err(|_| format!("`{value}` is no price"))).transpose()?;
            into.electricity_price = Some(price.map(TryInto::try_into).transpose().map_err(told)?);
        }
        Some(key) if key.starts_with("weights.") => {
            let term = key.trim_start_matches("weights.").parse().map_err(told)?;
            let weight = value.map(|value| value.parse().map_err(|_| format!("`{value}` is no weight"))).transpose()?;
            into.weights.insert(term, weight);
        }
        _ => return Err(format!("there is no setting `{key}`")),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_set_and_taken_back() {
        let mut all = PlacementChanges::default();
        for text in [
            "placement.policy=spread",
            "placement.weights.cost=-5",
            "placement.weights.fit-",
            "placement.expression=cpus == 4",
            "placement.cpu_percent=150%",
            "placement.memory_percent-",
            "placement.electricity_price=0.3",
        ] {
            parse(text, &mut all).unwrap_or_else(|why| panic!("{text}: {why}"));
        }
        let written = serde_json::to_value(&all).unwrap();
        let wanted = serde_json::json!({
            "policy": "spread", "weights": {"cost": -5, "fit": null}, "expression": "cpus == 4",
            "cpu_percent": 150, "memory_percent": 100, "electricity_price": 0.3
        });
        assert_eq!(written, wanted);
        for bad in [
            "policy=spread",
            "placement.policy=worst",
            "placement.weights.luck=1",
            "placement.weights.fit=x",
            "x",
            "placement.cpu_percent=x",
        ] {
            assert!(parse(bad, &mut all).is_err(), "{bad}");
        }
    }
}
