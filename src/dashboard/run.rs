//! The form that runs a new workload.

use askama::Template;
use axum::{
    Form,
    extract::{Query, State},
    http::StatusCode,
    response::{IntoResponse, Redirect, Response},
};
use serde::Deserialize;
use toft_model::{image::ImageRef, state::PutMode};

use super::{
    Dashboard, Frame,
    error::PageError,
    forms::{Mistakes, RunForm},
    show,
};

/// Restart policies the form offers: value and words.
const RESTARTS: [(&str, &str); 5] = [
    ("", "default: always"),
    ("always", "always"),
    ("on-failure", "when it fails"),
    ("on-failure:3", "when it fails, at most 3 times"),
    ("no", "never"),
];
/// Networks the form offers: value and words.
const NETWORKS: [(&str, &str); 3] =
    [("", "an address of its own (default)"), ("host", "the host's network"), ("none", "none, loopback only")];

#[derive(Template)]
#[template(path = "run/index.html")]
struct Page {
    frame: Frame,
    form: RunForm,
    wrong: Mistakes,
    restarts: Vec<Choice>,
    networks: Vec<Choice>,
    /// What the node has, to choose from.
    images: Vec<String>,
}

impl Page {
    /// Whether the less common fields shall be visible from the start.
    fn more_open(&self) -> bool {
        let form = &self.form;
        let fields = ["command", "cpu", "env", "memory", "mounts", "network", "replicas", "restart", "secrets"];
        let RunForm {
            image: _,
            name: _,
            ports: _,
            env,
            secrets,
            mounts,
            command,
            replicas,
            restart,
            memory,
            cpu,
            gpus: _,
            network,
        } = form;
        let texts = [env, secrets, mounts, command, replicas, restart, memory, cpu, network];
        self.wrong.any(&fields) || texts.iter().any(|text| !text.is_empty())
    }
}

struct Choice {
    value: String,
    words: String,
    chosen: bool,
}

/// The choices; what was typed stays one of them.
fn choices(offered: &[(&str, &str)], typed: &str) -> Vec<Choice> {
    let mut choices: Vec<Choice> = offered
        .iter()
        .map(|(value, words)| Choice { value: (*value).into(), words: (*words).into(), chosen: *value == typed })
        .collect();
    if !choices.iter().any(|choice| choice.chosen) {
        choices.push(Choice { value: typed.into(), words: typed.into(), chosen: true });
    }
    choices
}

async fn form_page(dashboard: &Dashboard, form: RunForm, wrong: Mistakes) -> Result<Response, PageError> {
    // The list only helps to type; without it the form works as well.
    let images = dashboard.ops.images(None).await.unwrap_or_default();
    let familiar = |name: String| name.parse::<ImageRef>().map(|image| image.familiar().to_owned()).ok();
    show(&Page {
        frame: Frame::at("run"),
        restarts: choices(&RESTARTS, &form.restart),
        networks: choices(&NETWORKS, &form.network),
        images: images.into_iter().filter_map(|image| familiar(image.name)).collect(),
        form,
        wrong,
    })
}

/// How the form may be asked for: with the demo in it, or with fields of one's own.
#[derive(Deserialize)]
pub(super) struct Prefill {
    demo: Option<String>,
    #[serde(flatten)]
    form: RunForm,
}

pub(super) async fn page(
    State(dashboard): State<Dashboard>,
    Query(prefill): Query<Prefill>,
) -> Result<Response, PageError> {
    let form = if prefill.demo.is_some() { RunForm::demo() } else { prefill.form };
    form_page(&dashboard, form, Mistakes::default()).await
}

pub(super) async fn submit(
    State(dashboard): State<Dashboard>,
    Form(form): Form<RunForm>,
) -> Result<Response, PageError> {
    let wrong = match form.read() {
        Ok(spec) => match dashboard.ops.put_workload(spec, PutMode::Create).await {
            Ok(workload) => return Ok(Redirect::to(&format!("/workloads/{}", workload.row.spec.name)).into_response()),
            Err(error) => Mistakes::refused(error),
        },
        Err(wrong) => wrong,
    };
    let mut page = form_page(&dashboard, form, wrong).await?;
    *page.status_mut() = StatusCode::UNPROCESSABLE_ENTITY;
    Ok(page)
}
