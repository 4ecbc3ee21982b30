//! Charts of what was measured over time: of a node, of its cards, and of a workload's instances. The page holds a table
//! of each for whoever has no script, and names the address from which the script fetches the points it draws.

use std::time::Duration;

use askama::Template;
use axum::{
    Json,
    extract::{Path, Query, State},
    response::{IntoResponse, Response},
};
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use toft_model::{
    series::{Measure, Series, Span, Subject},
    state::NodeRow,
};

use super::{Dashboard, error::PageError, present::amount, request::named};
use crate::control::ops::{Ops, now_ms};

/// Instances of one chart; more would be a tangle.
const MOST_LINES: usize = 12;
/// Points of a line: one for every other pixel of a wide chart.
const POINTS: u32 = 360;
/// Longest wait for what the page itself tells; the script asks again.
const PATIENCE: Duration = Duration::from_millis(700);

/// How far back a chart reaches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub(super) enum Reach {
    #[default]
    #[serde(rename = "1h")]
    Hour,
    #[serde(rename = "6h")]
    SixHours,
    #[serde(rename = "1d")]
    Day,
    #[serde(rename = "1w")]
    Week,
    #[serde(rename = "1m")]
    Month,
}

impl Reach {
    const ALL: [Self; 5] = [Self::Hour, Self::SixHours, Self::Day, Self::Week, Self::Month];

    /// The word in addresses, the one on the page, and the hours it stands for.
    fn told(self) -> (&'static str, &'static str, i64) {
        match self {
            Self::Hour => ("1h", "hour", 1),
            Self::SixHours => ("6h", "6 hours", 6),
            Self::Day => ("1d", "day", 24),
            Self::Week => ("1w", "week", 7 * 24),
            Self::Month => ("1m", "month", 30 * 24),
        }
    }

    fn span(self) -> Span {
        let until_ms = now_ms();
        Span { since_ms: until_ms - self.told().2 * 3_600_000, until_ms, points: POINTS }
    }
}

/// The part of an address that says how far back.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    pub(super) span: Reach,
}

/// What a line's numbers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Unit {
    Percent,
    Bytes,
    BytesPerSecond,
    Celsius,
    Watts,
}

impl Unit {
    fn of(measure: Measure) -> Self {
        match measure {
            Measure::CpuPercent | Measure::BusyPercent => Self::Percent,
            Measure::MemoryBytes | Measure::DiskUsedBytes => Self::Bytes,
            Measure::ReceivedPerSecond
            | Measure::SentPerSecond
            | Measure::ReadPerSecond
            | Measure::WrittenPerSecond => Self::BytesPerSecond,
            Measure::Celsius => Self::Celsius,
            Measure::Watts => Self::Watts,
        }
    }

    fn text(self, value: f32) -> String {
        match self {
            Self::Percent => format!("{value:.0} %"),
            Self::Bytes => amount(value),
            Self::BytesPerSecond => format!("{}/s", amount(value)),
            Self::Celsius => format!("{value:.0} °C"),
            Self::Watts => format!("{value:.0} W"),
        }
    }
}

/// One chart.
#[derive(Debug, Serialize)]
pub(super) struct Chart {
    /// Names it in the page.
    key: &'static str,
    title: &'static str,
    unit: Unit,
    /// Where its axis ends, when that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    top: Option<f32>,
    lines: Vec<ChartLine>,
}

/// One line of a chart.
#[derive(Debug, Serialize)]
struct ChartLine {
    name: String,
    /// What a change of one stands for.
    step: f64,
    /// How each value differs from the one that was known before it, in steps; the first from nothing. A third of the bytes
    /// that the values would be.
    changes: Vec<Option<i64>>,
    #[serde(skip)]
    now: String,
    #[serde(skip)]
    mean: String,
    #[serde(skip)]
    peak: String,
}

/// What the script draws.
#[derive(Debug, Serialize)]
struct Points {
    since_ms: i64,
    step_ms: i64,
    charts: Vec<Chart>,
}

/// The charts of a page.
#[derive(Template)]
#[template(path = "charts/_charts.html")]
pub(super) struct Charts {
    /// Where the points come from.
    from: String,
    /// Of each reach: its address, its word, and whether it is shown.
    reaches: Vec<(String, &'static str, bool)>,
    charts: Vec<Chart>,
    /// Why there are none, if there are none.
    trouble: Option<String>,
}

/// What one chart shows: key, title, and the measures that are its lines, with what tells them apart.
type Plan = (&'static str, &'static str, &'static [(Measure, &'static str)]);

const OF_MACHINE: [Plan; 5] = [
    ("cpu", "CPU", &[(Measure::CpuPercent, "all cores")]),
    ("memory", "Memory", &[(Measure::MemoryBytes, "in use")]),
    ("network", "Network", &[(Measure::ReceivedPerSecond, "received"), (Measure::SentPerSecond, "sent")]),
    ("disk", "Disk", &[(Measure::ReadPerSecond, "read"), (Measure::WrittenPerSecond, "written")]),
    ("heat", "Temperature", &[(Measure::Celsius, "highest")]),
];
const OF_GPU: [Plan; 4] = [
    ("gpu-busy", "GPU work", &[(Measure::BusyPercent, "")]),
    ("gpu-memory", "GPU memory", &[(Measure::MemoryBytes, "")]),
    ("gpu-watts", "GPU power", &[(Measure::Watts, "")]),
    ("gpu-heat", "GPU temperature", &[(Measure::Celsius, "")]),
];
const OF_INSTANCE: [Plan; 4] = [
    ("cpu", "CPU", &[(Measure::CpuPercent, "")]),
    ("memory", "Memory", &[(Measure::MemoryBytes, "")]),
    ("network", "Network", &[(Measure::ReceivedPerSecond, "received"), (Measure::SentPerSecond, "sent")]),
    ("disk", "Disk", &[(Measure::ReadPerSecond, "read"), (Measure::WrittenPerSecond, "written")]),
];

impl Chart {
    /// A line for each subject and measure. Charts of nothing but gaps are left out.
    fn of((key, title, measures): &Plan, subjects: &[(String, Series)]) -> Option<Self> {
        let unit = Unit::of(measures.first()?.0);
        let mut lines = Vec::new();
        for (subject, series) in subjects {
            for (measure, word) in *measures {
                let Some(line) = series.line(*measure) else { continue };
                let name = match (subjects.len(), *word) {
                    (1, "") => subject.clone(),
                    (1, word) => word.to_owned(),
                    (_, "") => subject.clone(),
                    (_, word) => format!("{subject} {word}"),
                };
                lines.push(ChartLine::of(name, unit, line));
            }
        }
        let something = lines.iter().any(|line| line.changes.iter().any(Option::is_some));
        let top = (unit == Unit::Percent && !key.starts_with("cpu")).then_some(100.0);
        something.then_some(Self { key, title, unit, top, lines })
    }
}

impl ChartLine {
    fn of(name: String, unit: Unit, line: &toft_model::series::Line) -> Self {
        let known = || line.mean.iter().flatten().copied();
        let count = known().count();
        let text = |value: Option<f32>| value.map_or_else(|| "-".to_owned(), |value| unit.text(value));
        let mean = (count > 0).then(|| (known().map(f64::from).sum::<f64>() / count as f64) as f32);
        let peak = line.peak.iter().flatten().copied().reduce(f32::max);
        let (step, changes) = in_steps(&line.mean);
        Self { name, step, changes, now: text(known().last()), mean: text(mean), peak: text(peak) }
    }
}

/// Values as changes, in steps of which the largest has a thousand at most: a chart is not as high.
fn in_steps(values: &[Option<f32>]) -> (f64, Vec<Option<i64>>) {
    let known = values.iter().map(|value| value.filter(|value| value.is_finite()).map(f64::from));
    let largest = known.clone().flatten().map(f64::abs).fold(0.0, f64::max);
    let step = if largest > 0.0 { 10f64.powi(largest.log10().floor() as i32 - 2) } else { 1.0 };
    let mut before = 0;
    let changes = known.map(|value| {
        let now = (value? / step).round() as i64;
        Some(now - std::mem::replace(&mut before, now))
    });
    (step, changes.collect())
}

/// Whose charts.
pub(super) enum Whose<'a> {
    /// A node with its cards.
    Node(&'a NodeRow),
    /// The card at a place of a node.
    Gpu(&'a NodeRow, usize),
    /// Instances by name.
    Instances(Vec<String>),
}

/// What was measured, by what it was measured of.
type Subjects = Vec<(String, Series)>;

/// What was measured of a card, which is called as people do.
async fn of_card(ops: &Ops, node: &NodeRow, place: usize, span: Span) -> Result<(String, Series), PageError> {
    let card = node.inventory.gpus.get(place).ok_or_else(|| super::gpus::no_card(&node.name, place))?;
    let series = ops.series_of(node, Subject::Gpu(card.id.clone()), span).await?;
    Ok((format!("GPU {place}"), series))
}

async fn points(ops: &Ops, whose: Whose<'_>, span: Span) -> Result<Points, PageError> {
    let groups: Vec<(&[Plan], Subjects)> = match whose {
        Whose::Node(node) => {
            let machine = ops.series_of(node, Subject::Machine, span);
            let cards = (0..node.inventory.gpus.len()).map(|place| of_card(ops, node, place, span));
            let (machine, cards) = tokio::join!(machine, join_all(cards));
            let machine = vec![(node.name.to_string(), machine?)];
            vec![(&OF_MACHINE, machine), (&OF_GPU, cards.into_iter().filter_map(Result::ok).collect())]
        }
        Whose::Gpu(node, place) => vec![(&OF_GPU, vec![of_card(ops, node, place, span).await?])],
        Whose::Instances(names) => {
            let told = names.into_iter().take(MOST_LINES).map(async |name| {
                let series = ops.instance_series(&name, span).await.ok()?;
                Some((name, series))
            });
            vec![(&OF_INSTANCE, join_all(told).await.into_iter().flatten().collect())]
        }
    };
    // All were asked for the same span, and so have the same points.
    let grid = groups.iter().flat_map(|(_, subjects)| subjects).next();
    let (since_ms, step_ms) = grid.map_or((span.since_ms, 10_000), |(_, series)| (series.since_ms, series.step_ms));
    let of_group = |(plans, subjects): &(&[Plan], Subjects)| -> Vec<Chart> {
        plans.iter().filter_map(|plan| Chart::of(plan, subjects)).collect()
    };
    let charts = groups.iter().flat_map(of_group);
    Ok(Points { since_ms, step_ms, charts: charts.collect() })
}

/// The charts of a page; `from` is where its script asks.
pub(super) async fn charts(ops: &Ops, whose: Whose<'_>, from: &str, reach: Reach) -> Charts {
    let told = tokio::time::timeout(PATIENCE, points(ops, whose, reach.span())).await;
    let (charts, trouble) = match told {
        Ok(Ok(points)) => (points.charts, None),
        Ok(Err(error)) => (Vec::new(), Some(error.told().to_owned())),
        Err(_) => (Vec::new(), Some("its node does not answer now".to_owned())),
    };
    let page = from.strip_prefix("/charts").unwrap_or(from);
    let told = |known: Reach| (format!("{page}?span={}", known.told().0), known.told().1, known == reach);
    let reaches = Reach::ALL.map(told).to_vec();
    Charts { from: format!("{from}?span={}", reach.told().0), reaches, charts, trouble }
}

pub(super) async fn of_node(
    State(dashboard): State<Dashboard>,
    Path(name): Path<String>,
    Query(asked): Query<Asked>,
) -> Result<Response, PageError> {
    let node = dashboard.ops.node(&named(&name)?).await?;
    Ok(Json(points(&dashboard.ops, Whose::Node(&node), asked.span.span()).await?).into_response())
}

pub(super) async fn of_gpu(
    State(dashboard): State<Dashboard>,
    Path((name, place)): Path<(String, usize)>,
    Query(asked): Query<Asked>,
) -> Result<Response, PageError> {
    let node = dashboard.ops.node(&named(&name)?).await?;
    Ok(Json(points(&dashboard.ops, Whose::Gpu(&node, place), asked.span.span()).await?).into_response())
}

pub(super) async fn of_workload(
    State(dashboard): State<Dashboard>,
    Path(name): Path<String>,
    Query(asked): Query<Asked>,
) -> Result<Response, PageError> {
    let workload = dashboard.ops.workload(&named(&name)?).await?;
    let names = workload.instances.iter().map(|instance| instance.name()).collect();
    Ok(Json(points(&dashboard.ops, Whose::Instances(names), asked.span.span()).await?).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;
    use toft_model::series::Line;

    #[test]
    fn values_are_told_as_changes_and_found_again() {
        let values =
            [Some(0.0), Some(1_234_567.0), None, Some(1_234_568.0), Some(999_999.0), Some(f32::NAN), Some(12.0)];
        let (step, changes) = in_steps(&values);
        assert_eq!(changes, [Some(0), Some(123), None, Some(0), Some(-23), None, Some(-100)]);
        let mut sum = 0;
        let again = changes.iter().map(|change| {
            sum += (*change)?;
            Some(sum as f64 * step)
        });
        for (was, is) in values.into_iter().zip(again) {
            let was = was.filter(|value| value.is_finite());
            assert_eq!(was.is_some(), is.is_some());
            assert!(was.zip(is).is_none_or(|(was, is)| (f64::from(was) - is).abs() <= step / 2.0), "{was:?} {is:?}");
        }
        assert_eq!(in_steps(&[Some(0.05), Some(0.0423)]), (0.0001, vec![Some(500), Some(-77)]));
        assert_eq!(in_steps(&[Some(0.0), None]), (1.0, vec![Some(0), None]));
    }

    #[test]
    fn a_chart_has_a_line_for_each_subject_and_none_of_nothing() {
        let line = |measure, mean: &[Option<f32>]| Line { measure, mean: mean.to_vec(), peak: mean.to_vec() };
        let series = |mean: &[Option<f32>]| Series {
            since_ms: 0,
            step_ms: 10,
            lines: vec![line(Measure::ReceivedPerSecond, mean), line(Measure::SentPerSecond, mean)],
        };
        let some = series(&[Some(2_048.0), None, Some(4_096.0)]);
        let chart = Chart::of(&OF_INSTANCE[2], &[("a-0".into(), some.clone()), ("a-1".into(), some)]).unwrap();
        let names: Vec<&str> = chart.lines.iter().map(|line| line.name.as_str()).collect();
        assert_eq!(names, ["a-0 received", "a-0 sent", "a-1 received", "a-1 sent"]);
        assert_eq!((chart.lines[0].now.as_str(), chart.lines[0].mean.as_str()), ("4.0 KiB/s", "3.0 KiB/s"));
        assert!(Chart::of(&OF_INSTANCE[2], &[("a-0".into(), series(&[None, None]))]).is_none());
        assert!(Chart::of(&OF_INSTANCE[2], &[]).is_none());
    }
}
