//! Progress on stderr, while somebody looks at it.

use std::{borrow::Cow, io::IsTerminal, time::Duration};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar for bytes; what it is about is a participle: `importing`. Without a length, what has passed.
pub(super) fn bytes(about: &str, length: Option<u64>) -> ProgressBar {
    let template = match length {
        Some(_) => format!("{about} {{wide_bar:.cyan}} {{bytes}}/{{total_bytes}} {{binary_bytes_per_sec}}"),
        None => format!("{about} {{spinner}} {{bytes}} {{binary_bytes_per_sec}}"),
    };
    shown(length.map_or_else(ProgressBar::new_spinner, ProgressBar::new), &template)
}

/// A bar for bytes that shows itself when it takes longer than a second.
pub(super) fn later(about: &str, length: Option<u64>) -> ProgressBar {
    let bar = bytes(about, length);
    if std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
        let shown = bar.downgrade();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            if let Some(bar) = shown.upgrade() {
                bar.set_draw_target(ProgressDrawTarget::stderr());
            }
        });
    }
    bar
}

/// A bar for things of which there are so many.
pub(super) fn steps(about: &str, length: u64) -> ProgressBar {
    shown(ProgressBar::new(length), &format!("{about} {{wide_bar:.cyan}} {{pos}}/{{len}} {{eta}}"))
}

/// Something that turns while the other side works.
pub(super) fn spinner(about: impl Into<Cow<'static, str>>) -> ProgressBar {
    shown(ProgressBar::new_spinner().with_message(about), "{msg} {spinner} {elapsed}")
}

fn shown(bar: ProgressBar, template: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
