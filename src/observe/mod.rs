//! What the daemon tells of itself: log lines, error chains, metrics.

pub mod metrics;

use std::{error::Error, sync::OnceLock};

use tracing_subscriber::{EnvFilter, Registry, layer::SubscriberExt, reload, util::SubscriberInitExt};

/// What changes the filter of log lines, once there is one.
static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// An error with its causes in one line: `opening failed: permission denied`.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

/// Sends log lines to stderr: for people, or as JSON when `json`. `RUST_LOG` overrides `filter`.
pub fn init_logging(filter: &str, json: bool) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(filter));
    let (filter, handle) = reload::Layer::new(filter);
    drop(FILTER.set(handle));
    let registry = tracing_subscriber::registry().with(filter);
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    if json {
        registry.with(tracing_subscriber::fmt::layer().json().with_writer(std::io::stderr)).init();
    } else {
        registry
            .with(tracing_subscriber::fmt::layer().with_ansi(ansi).with_target(false).with_writer(std::io::stderr))
            .init();
    }
}

/// The filter of log lines that holds now; `None` where no lines are written.
pub fn filter() -> Option<String> {
    FILTER.get()?.with_current(ToString::to_string).ok()
}

/// Filters log lines by `filter` from now on, such as `debug` or `toft=debug,info`. It says why it cannot.
pub fn set_filter(filter: &str) -> Result<(), String> {
    let handle = FILTER.get().ok_or("no log lines are written")?;
    let filter = EnvFilter::try_new(filter).map_err(|error| error.to_string())?;
    handle.reload(filter).map_err(|error| error.to_string())
}
