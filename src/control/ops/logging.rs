//! How much this node writes into its log.

use super::Ops;
use crate::{
    control::{ControlError, ErrorKind},
    observe,
};

impl Ops {
    /// The filter of this node's log lines; `None` where no lines are written.
    pub fn log_filter(&self) -> Option<String> {
        observe::filter()
    }

    /// Filters this node's log lines by `filter` until it is started again, such as `debug` or `toft=debug,info`.
    pub fn set_log_filter(&self, filter: &str) -> Result<(), ControlError> {
        let before = observe::filter().unwrap_or_default();
        observe::set_filter(filter).map_err(|why| {
            ControlError::new(ErrorKind::Invalid, format!("that is no filter of log lines: {why}"))
                .field("filter")
                .hint(
                    "write `error`, `warn`, `info`, `debug` or `trace`, or one for each part: `toft::agent=debug,info`",
                )
        })?;
        tracing::info!(before, now = filter, "log lines are filtered anew, until the next start");
        Ok(())
    }
}
