//! `image pull`.

use std::{
    collections::HashMap,
    io::{IsTerminal, Write},
};

use axum::body::Body;
use http_body_util::BodyExt;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use toft_model::{
    image::ImageRef,
    pull::{LayerProgress, LayerState, PullProgress},
};

use super::{
    Failure,
    client::{Client, json},
    image_args::PullArgs,
};
use crate::api::types::{Image, PullLine, PullRequest};

/// Longest line of an answer.
const MOST_LINE_BYTES: usize = 1 << 20;

pub(super) async fn pull(client: &Client, args: PullArgs) -> Result<i32, Failure> {
    let mut code = 0;
    for name in &args.names {
        match pull_one(client, name, &args).await {
            Ok(Some(image)) => println!("{}", image.name),
            Ok(None) => {}
            Err(failure) => {
                failure.print();
                code = failure.exit_code;
            }
        }
    }
    Ok(code)
}

/// The image, unless it was told as JSON.
async fn pull_one(client: &Client, name: &ImageRef, args: &PullArgs) -> Result<Option<Image>, Failure> {
    let question = json(&PullRequest { image: name.as_str().to_owned() })?;
    let mut body = client.download("/api/v1/images/pull", Some(Body::from(question))).await?.into_body();
    let mut bars = (!args.json && !args.quiet && std::io::stderr().is_terminal()).then(Bars::new);
    let mut rest = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| Failure::of(1, format!("the connection to toft broke: {e}")))?;
        rest.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            if args.json {
                std::io::stdout().write_all(&line).map_err(|e| Failure::of(1, e.to_string()))?;
            }
            let read = serde_json::from_slice(&line).map_err(|e| not_understood(&e.to_string()))?;
            match read {
                PullLine::Progress(progress) => {
                    if let Some(bars) = &mut bars {
                        bars.show(&progress);
                    }
                }
                PullLine::Image(image) => return Ok((!args.json).then_some(image)),
                PullLine::Error(error) => return Err(error.into()),
            }
        }
        if rest.len() > MOST_LINE_BYTES {
            return Err(not_understood("a line of it is too long"));
        }
    }
    Err(Failure::of(1, format!("the pull of `{name}` broke off")).hint("try again: what came is not fetched twice"))
}

fn not_understood(why: &str) -> Failure {
    Failure::of(1, format!("the answer was not understood: {why}"))
        .hint("client and appliance may be of different versions")
}

/// A bar a layer.
struct Bars {
    all: MultiProgress,
    layers: HashMap<usize, ProgressBar>,
    style: ProgressStyle,
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.layers.values().for_each(ProgressBar::finish_and_clear);
    }
}

impl Bars {
    fn new() -> Self {
        let template = "{prefix} {msg:11} {wide_bar:.cyan} {bytes:>10}/{total_bytes:10}";
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
        Self { all, layers: HashMap::new(), style }
    }

    fn show(&mut self, progress: &PullProgress) {
        for (number, layer) in progress.layers.iter().enumerate() {
            let bar = self.layers.entry(number).or_insert_with(|| {
                let bar = self.all.add(ProgressBar::new(layer.size_bytes)).with_style(self.style.clone());
                bar.set_prefix(short(layer));
                bar
            });
            match &layer.from {
                Some(node) if layer.state == LayerState::Downloading => bar.set_message(format!("from node {node}")),
                _ => bar.set_message(word(layer.state)),
            }
            bar.set_position(layer.done_bytes);
        }
    }
}

fn short(layer: &LayerProgress) -> String {
    layer.digest.trim_start_matches("sha256:").chars().take(12).collect()
}

fn word(state: LayerState) -> &'static str {
    match state {
        LayerState::Waiting => "waiting",
        LayerState::Downloading => "downloading",
        LayerState::Downloaded => "downloaded",
        LayerState::Unpacking => "unpacking",
        LayerState::Done => "done",
    }
}
