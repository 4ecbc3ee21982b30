//! How instances are replaced, as flags of `run` and `update`.

use clap::Args;
use toft_model::{
    gpu::GpuRequest,
    image::ImageRef,
    name::Name,
    units::parse_span_ms,
    workload::{UpdateFailure, UpdateOrder, UpdateSpec},
};

use super::args::parsed;

/// How the instances of a service are replaced when its specification changes.
#[derive(Debug, Args)]
#[command(next_help_heading = "When it is changed later")]
pub(super) struct UpdateFlags {
    /// start-first or stop-first [default: start-first where there is room for both]
    #[arg(long = "update-order", value_name = "ORDER", value_parser = parsed::<UpdateOrder>)]
    order: Option<UpdateOrder>,
    /// Most instances replaced at a time [default: 1]
    #[arg(long = "update-parallel", value_name = "N")]
    parallel: Option<u32>,
    /// Most instances missing meanwhile, with stop-first [default: as many as are replaced at a time]
    #[arg(long = "update-max-unavailable", value_name = "N")]
    max_unavailable: Option<u32>,
    /// How long a new instance must have worked before the next is replaced [default: 5s]
    #[arg(long = "update-healthy", value_name = "SPAN", value_parser = span)]
    healthy: Option<u32>,
    /// How soon a new instance must work [default: 10m]
    #[arg(long = "update-deadline", value_name = "SPAN", value_parser = span)]
    deadline: Option<u32>,
    /// What happens when it does not: rollback, pause or continue [default: rollback]
    #[arg(long = "update-on-failure", value_name = "ACTION", value_parser = parsed::<UpdateFailure>)]
    on_failure: Option<UpdateFailure>,
}

impl UpdateFlags {
    /// `update` with what was given.
    pub(super) fn over(self, update: UpdateSpec) -> UpdateSpec {
        UpdateSpec {
            order: self.order.or(update.order),
            parallel: self.parallel.unwrap_or(update.parallel),
            max_unavailable: self.max_unavailable.or(update.max_unavailable),
            healthy_ms: self.healthy.unwrap_or(update.healthy_ms),
            deadline_ms: self.deadline.unwrap_or(update.deadline_ms),
            on_failure: self.on_failure.unwrap_or(update.on_failure),
        }
    }
}

fn span(text: &str) -> Result<u32, String> {
    let ms = parse_span_ms(text).map_err(|error| format!("{error}; {}", error.hint))?;
    u32::try_from(ms).map_err(|_| "it is longer than a day; use at most `24h`".into())
}

pub(super) const UPDATE_HELP: &str = "\
Examples:
  toft update web --image ghcr.io/me/web:2      another image, one instance after the other
  toft update web -e MODE=fast -e DEBUG-        set a variable, remove another
  toft update web --gpus rtx4090:1              other cards
  toft rollback web                             back to what worked before";

/// What shall be different.
#[derive(Debug, Args)]
pub(super) struct UpdateArgs {
    /// Workload
    #[arg(value_parser = parsed::<Name>)]
    pub(super) name: Name,
    /// Another image
    #[arg(long, value_parser = parsed::<ImageRef>)]
    pub(super) image: Option<ImageRef>,
    /// Set a variable (KEY=VALUE) or remove one (KEY-)
    #[arg(short, long = "env", value_name = "KEY=VALUE|KEY-", value_parser = super::args::parse_label)]
    pub(super) env: Vec<(String, Option<String>)>,
    /// Other GPUs: `1`, `nvidia:1`, `rtx4090:2`, `24GB..:1`, `vram=8GiB`, `all`, or `none`
    #[arg(long, value_name = "SPEC", value_parser = gpus)]
    pub(super) gpus: Option<OtherGpus>,
    #[command(flatten)]
    pub(super) update: UpdateFlags,
    /// Do not wait until every instance is replaced
    #[arg(long)]
    pub(super) no_wait: bool,
    /// Print the workload as JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// A request, or none.
#[derive(Debug, Clone)]
pub(super) struct OtherGpus(pub(super) Option<GpuRequest>);

fn gpus(text: &str) -> Result<OtherGpus, String> {
    match text {
        "none" => Ok(OtherGpus(None)),
        text => parsed::<GpuRequest>(text).map(|request| OtherGpus(Some(request))),
    }
}

/// Which version.
#[derive(Debug, Args)]
pub(super) struct RollbackArgs {
    /// Workload
    #[arg(value_parser = parsed::<Name>)]
    pub(super) name: Name,
    /// Version to go back to, see `toft history` [default: the newest before the present one that worked]
    #[arg(long, value_name = "GENERATION")]
    pub(super) to: Option<u64>,
    /// Do not wait until every instance is replaced
    #[arg(long)]
    pub(super) no_wait: bool,
    /// Print the workload as JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// Of which workload.
#[derive(Debug, Args)]
pub(super) struct HistoryArgs {
    /// Workload
    #[arg(value_parser = parsed::<Name>)]
    pub(super) name: Name,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}
