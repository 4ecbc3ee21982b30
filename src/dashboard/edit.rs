//! Changes a workload's specification: as text, then as a difference to agree to, then written.

use askama::Template;
use axum::{
    Form,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Redirect, Response},
};
use serde::Deserialize;
use toft_model::{
    invalid::Invalid,
    name::Name,
    state::{PutMode, WorkloadView},
    workload::WorkloadSpec,
};

use super::{Dashboard, Frame, error::PageError, lines::changed, request::named, show};
use crate::control::{ControlError, ErrorKind};

/// Lines around a change that are shown with it.
const AROUND: usize = 3;

#[derive(Template)]
#[template(path = "workloads/edit.html")]
struct Page {
    frame: Frame,
    name: String,
    /// The text as typed.
    text: String,
    /// The generation that the user saw.
    seen: u64,
    mistake: Option<(String, Option<String>)>,
    /// What would change, to be agreed to.
    changes: Option<Vec<DiffLine>>,
    /// How instances would be replaced.
    running: usize,
}

/// A line of a difference.
#[derive(Debug, PartialEq, Eq)]
struct DiffLine {
    /// `added`, `removed`, or empty.
    kind: &'static str,
    text: String,
}

/// What the form says.
#[derive(Deserialize)]
pub(super) struct Wanted {
    text: String,
    seen: u64,
    /// Whether the difference was agreed to, when not empty.
    #[serde(default)]
    agreed: String,
}

fn written(spec: &WorkloadSpec) -> String {
    serde_json::to_string_pretty(spec).unwrap_or_default()
}

/// The specification that a text stands for.
fn parsed(text: &str, name: &Name) -> Result<WorkloadSpec, ControlError> {
    let mut json = serde_json::Deserializer::from_str(text);
    let spec: WorkloadSpec = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let at = if path == "." { String::new() } else { format!("at `{path}`: ") };
        ControlError::new(ErrorKind::Invalid, format!("{at}{}", error.into_inner()))
            .hint("the fields are those of a workload in `/api/v1/openapi.json`")
    })?;
    json.end().map_err(|error| ControlError::new(ErrorKind::Invalid, error.to_string()))?;
    if spec.name != *name {
        return Err(ControlError::new(ErrorKind::Invalid, format!("the text names `{}`", spec.name))
            .hint("a workload cannot be renamed: run another and remove this one"));
    }
    spec.validate().map_err(|invalid: Invalid| invalid.into()).map(|()| spec)
}

/// What makes `after` of `before`, line by line, with some lines around each change.
fn difference(before: &str, after: &str) -> Vec<DiffLine> {
    let (before, after): (Vec<&str>, Vec<&str>) = (before.lines().collect(), after.lines().collect());
    let mut lines: Vec<DiffLine> = Vec::new();
    let mut add = |kind, texts: &[&str]| {
        lines.extend(texts.iter().map(|text| DiffLine { kind, text: (*text).to_owned() }));
    };
    let mut same = 0;
    for change in changed(&before, &after) {
        add("", &before[same..change.before.start]);
        same = change.before.end;
        add("removed", &before[change.before]);
        add("added", &after[change.after]);
    }
    add("", &before[same..]);
    near(lines)
}

/// Leaves out what is far from every change.
fn near(lines: Vec<DiffLine>) -> Vec<DiffLine> {
    let changed: Vec<usize> = (0..lines.len()).filter(|at| !lines[*at].kind.is_empty()).collect();
    let close = |at: usize| {
        let next = changed.partition_point(|changed| *changed < at);
        changed.get(next).is_some_and(|changed| changed - at <= AROUND) || next > 0 && at - changed[next - 1] <= AROUND
    };
    let mut out: Vec<DiffLine> = Vec::new();
    let mut skipped = false;
    for (at, line) in lines.into_iter().enumerate() {
        if close(at) {
            if skipped {
                out.push(DiffLine { kind: "", text: "…".to_owned() });
            }
            out.push(line);
            skipped = false;
        } else {
            skipped = true;
        }
    }
    out
}

fn edit_page(
    workload: &WorkloadView,
    text: String,
    (seen, mistake): (u64, Option<ControlError>),
    changes: Option<Vec<DiffLine>>,
) -> Result<Response, PageError> {
    let refused = mistake.is_some();
    let mistake = mistake.map(|error| (error.message, error.hint));
    let name = workload.row.spec.name.to_string();
    let page = Page { frame: Frame::at("workloads"), name, text, seen, mistake, changes, running: workload.running() };
    let mut page = show(&page)?;
    if refused {
        *page.status_mut() = StatusCode::UNPROCESSABLE_ENTITY;
    }
    Ok(page)
}

pub(super) async fn page(State(dashboard): State<Dashboard>, Path(name): Path<String>) -> Result<Response, PageError> {
    let workload = dashboard.ops.workload(&named(&name)?).await?;
    edit_page(&workload, written(&workload.row.spec), (workload.row.generation, None), None)
}

pub(super) async fn submit(
    State(dashboard): State<Dashboard>,
    Path(name): Path<String>,
    Form(wanted): Form<Wanted>,
) -> Result<Response, PageError> {
    let name = named(&name)?;
    let workload = dashboard.ops.workload(&name).await?;
    let Wanted { text, seen, agreed } = wanted;
    let spec = match parsed(&text, &name) {
        Ok(spec) => spec,
        Err(error) => return edit_page(&workload, text, (seen, Some(error)), None),
    };
    if agreed.is_empty() {
        let changes = difference(&written(&workload.row.spec), &written(&spec));
        return edit_page(&workload, text, (workload.row.generation, None), Some(changes));
    }
    match dashboard.ops.put_workload(spec, PutMode::Replace { if_generation: Some(seen) }).await {
        Ok(_) => Ok(Redirect::to(&format!("/workloads/{name}")).into_response()),
        // What was typed is not lost, and the difference to what is there now can be looked at.
        Err(error) => edit_page(&workload, text, (workload.row.generation, Some(error)), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(before: &str, after: &str) -> String {
        let mark = |line: &DiffLine| match line.kind {
            "added" => format!("+{}", line.text),
            "removed" => format!("-{}", line.text),
            _ => format!(" {}", line.text),
        };
        difference(before, after).iter().map(mark).collect::<Vec<_>>().join("|")
    }

    #[test]
    fn a_difference_shows_what_changed_and_what_is_around_it() {
        assert_eq!(told("a\nb\nc", "a\nx\nc"), " a|-b|+x| c");
        assert_eq!(told("1\n2\n3\n4\n5\n6\n7\n8\n9", "1\n2\n3\n4\n5\n6\n7\n8\nnine"), " …| 6| 7| 8|-9|+nine");
        assert_eq!(told("a\nb\nc\nd", "b\nc\ne\nd"), "-a| b| c|+e| d");
        assert_eq!(told("a", "a"), "");
        assert_eq!(told("", "a"), "+a");
    }

    #[test]
    fn texts_that_are_no_specification_say_where() {
        let name: Name = "web".parse().unwrap();
        let wrong = |text: &str| parsed(text, &name).unwrap_err().message;
        assert!(wrong(r#"{"name":"web","image":"a","replicas":"two"}"#).starts_with("at `replicas`"));
        assert!(wrong(r#"{"name":"web","image":"a","colour":1}"#).contains("colour"));
        assert!(wrong(r#"{"name":"other","image":"a"}"#).contains("`other`"));
        assert!(wrong("{").contains("EOF") && !wrong("{} x").is_empty());
    }
}
