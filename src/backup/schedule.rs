//! The task that makes backups in time and lets the old ones go.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{BackupError, Backups};
use crate::observe::chain;

/// First wait after a failure; it doubles up to the time between two backups.
const RETRY: Duration = Duration::from_secs(60);
/// Longest sleep without a look at the clock, which a suspended or corrected machine moves.
const LOOK: Duration = Duration::from_secs(60);

/// Makes a backup whenever one is due, until `cancel`. Without a schedule it only waits.
pub async fn run(backups: Backups, cancel: CancellationToken) {
    let Some(every) = backups.every() else { return cancel.cancelled().await };
    let mut failures = 0;
    // Failures are waited out from the moment of the last one.
    let mut not_before_ms = i64::MIN;
    let mut newest_ms = backups.newest_scheduled_ms().await.unwrap_or_default();
    loop {
        let now_ms = jiff::Timestamp::now().as_millisecond();
        // One of the future was left by a clock that went wrong; it counts as made now.
        newest_ms = newest_ms.map(|newest_ms| newest_ms.min(now_ms));
        if let Some(newest_ms) = newest_ms {
            metrics::gauge!("toft_backup_last_success_timestamp_seconds").set(newest_ms as f64 / 1_000.0);
        }
        let due_ms = due_ms(newest_ms, now_ms, every).max(not_before_ms.min(now_ms.saturating_add(millis(every))));
        backups.show_next(due_ms);
        if due_ms > now_ms {
            let sleep = Duration::from_millis(due_ms.abs_diff(now_ms)).min(LOOK);
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(sleep) => continue,
            }
        }
        let made = tokio::select! {
            () = cancel.cancelled() => return,
            made = attempt(&backups) => made,
        };
        match made {
            Ok(()) => {
                failures = 0;
                newest_ms = Some(now_ms);
            }
            Err(error) => {
                let wait = RETRY.saturating_mul(1 << failures.min(10)).min(every);
                failures += 1;
                not_before_ms = now_ms.saturating_add(millis(wait));
                metrics::counter!("toft_backups_total", "result" => "failed").increment(1);
                let text = told(&error);
                tracing::error!(
                    error = text,
                    "the scheduled backup failed; the next try is in {} seconds",
                    wait.as_secs()
                );
                backups.show_failure(Some((now_ms, text)));
            }
        }
    }
}

fn told(error: &BackupError) -> String {
    let text = chain(error);
    error.hint().map_or_else(|| text.clone(), |hint| format!("{text} ({hint})"))
}

/// Makes one, and lets the old ones go; that those stay is no reason to make another.
async fn attempt(backups: &Backups) -> Result<(), BackupError> {
    let stored = backups.make_stored(true).await?;
    metrics::counter!("toft_backups_total", "result" => "made").increment(1);
    metrics::gauge!("toft_backup_last_size_bytes").set(stored.size_bytes as f64);
    tracing::info!(size_bytes = stored.size_bytes, "backed up to `{}`", stored.path.display());
    match backups.rotate().await {
        Ok(removed) => {
            backups.show_failure(None);
            removed.iter().for_each(|name| tracing::info!("removed the old backup `{name}`"));
        }
        Err(error) => {
            let text = format!("the old backups could not be removed: {}", told(&error));
            tracing::warn!("{text}");
            backups.show_failure(Some((jiff::Timestamp::now().as_millisecond(), text)));
        }
    }
    Ok(())
}

/// When the next backup is due, after the newest one.
fn due_ms(newest_ms: Option<i64>, now_ms: i64, every: Duration) -> i64 {
    newest_ms.map_or(now_ms, |newest_ms| newest_ms.saturating_add(millis(every)))
}

fn millis(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_due_at_once_and_the_next_in_time() {
        let day = Duration::from_secs(86_400);
        assert_eq!(due_ms(None, 1_000, day), 1_000);
        assert_eq!(due_ms(Some(1_000), 5_000, day), 86_401_000);
        assert_eq!(due_ms(Some(1_000), 90_000_000, day), 86_401_000, "overdue");
    }
}
