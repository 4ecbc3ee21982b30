//! Logs that outlive their container: what is kept of instances that are gone, and for how long.
//!
//! An instance's folder of logs stays where it is. `about.json` says whose it is, and `gone` when the instance went; both
//! are beside the files of the logger. Everything here blocks.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use toft_model::{ids::InstanceId, name::Name};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

const ABOUT: &str = "about.json";
const GONE: &str = "gone";
/// Time between two looks at what is kept.
const PERIOD: Duration = Duration::from_secs(600);
/// Wait after an instance has gone, for others that go with it.
const BURST: Duration = Duration::from_secs(5);
/// Folders removed at one go.
const MOST_AT_ONCE: usize = 500;
/// Folders of instances that are gone, however small.
const MOST_KEPT: usize = 10_000;

/// How much is kept of instances that are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How long after they went.
    pub max_age: Duration,
    /// Bytes of all together; the oldest go first.
    pub max_bytes: u64,
}

/// An instance that is gone and whose logs are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gone {
    /// Its id.
    pub id: InstanceId,
    /// What people called it.
    pub instance: String,
    /// Whose instance it was.
    pub workload: Name,
    /// When it went, in milliseconds since 1970.
    pub gone_at_ms: i64,
    /// Bytes of its logs.
    pub bytes: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct About {
    workload: Name,
    instance: String,
}

/// Notes whose logs a folder holds, once.
pub fn note(dir: &Path, workload: &Name, instance: &str) -> io::Result<()> {
    let path = dir.join(ABOUT);
    if path.exists() {
        return Ok(());
    }
    fs::create_dir_all(dir)?;
    let about = About { workload: workload.clone(), instance: instance.to_owned() };
    fs::write(path, serde_json::to_vec(&about)?)
}

/// Keeps the logs of an instance that goes now. Without any, and where nobody could find them by name, the folder is
/// removed; so it is when its going cannot be noted.
pub fn let_go(dir: &Path, now_ms: i64) -> io::Result<()> {
    let wrote =
        fs::metadata(dir.join("current.log")).is_ok_and(|file| file.len() > 0) || dir.join("current.log.1").exists();
    let kept = wrote && about(dir).is_some() && fs::write(dir.join(GONE), now_ms.to_string()).is_ok();
    if kept { Ok(()) } else { remove(dir) }
}

/// The instances of a workload, or of all, that are gone and whose logs are kept, oldest first.
pub fn gone(logs: &Path, workload: Option<&Name>) -> io::Result<Vec<Gone>> {
    let mut found = Vec::new();
    for dir in folders(logs)? {
        let (Some(gone_at_ms), Some(id)) = (gone_at_ms(&dir), id_of(&dir)) else { continue };
        if let Some(about) = about(&dir).filter(|about| workload.is_none_or(|wanted| about.workload == *wanted)) {
            let About { workload, instance } = about;
            found.push(Gone { id, instance, workload, gone_at_ms, bytes: bytes_in(&dir) });
        }
    }
    found.sort_by_key(|gone| gone.gone_at_ms);
    Ok(found)
}

/// Removes what is over the limits; `true` when there is more to remove than is removed at one go.
pub fn sweep(logs: &Path, limits: Limits, now_ms: i64) -> io::Result<bool> {
    let mut kept: Vec<(i64, PathBuf, u64)> = Vec::new();
    for dir in folders(logs)? {
        if let Some(gone_at_ms) = gone_at_ms(&dir) {
            let bytes = bytes_in(&dir);
            kept.push((gone_at_ms, dir, bytes));
        }
    }
    kept.sort();
    let mut bytes: u64 = kept.iter().map(|(.., bytes)| bytes).sum();
    let max_age_ms = i64::try_from(limits.max_age.as_millis()).unwrap_or(i64::MAX);
    let mut left = kept.len();
    for (removed, (gone_at_ms, dir, size)) in kept.into_iter().enumerate() {
        let old = now_ms.saturating_sub(gone_at_ms) >= max_age_ms;
        if !old && bytes <= limits.max_bytes && left <= MOST_KEPT {
            break;
        }
        if removed == MOST_AT_ONCE {
            return Ok(true);
        }
        remove(&dir)?;
        left -= 1;
        bytes -= size;
    }
    Ok(false)
}

/// Keeps what is kept within its limits: now, from time to time, and soon after an instance has `left`.
pub async fn keep(logs: PathBuf, limits: Limits, left: Arc<Notify>, cancel: CancellationToken) {
    loop {
        let dir = logs.clone();
        let now_ms = jiff::Timestamp::now().as_millisecond();
        let swept = tokio::task::spawn_blocking(move || sweep(&dir, limits, now_ms)).await;
        let more = match swept.map_err(io::Error::other).flatten() {
            Ok(more) => more,
            Err(error) => {
                tracing::warn!(%error, "logs of instances that are gone could not be removed");
                false
            }
        };
        let next = async {
            if !more {
                tokio::select! {
                    () = tokio::time::sleep(PERIOD) => {}
                    () = left.notified() => tokio::time::sleep(BURST).await,
                }
            }
        };
        if cancel.run_until_cancelled(next).await.is_none() {
            return;
        }
    }
}

fn folders(logs: &Path) -> io::Result<Vec<PathBuf>> {
    let mut folders = Vec::new();
    for entry in fs::read_dir(logs)? {
        let entry = entry?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            folders.push(entry.path());
        }
    }
    Ok(folders)
}

fn id_of(dir: &Path) -> Option<InstanceId> {
    dir.file_name()?.to_str()?.parse().ok()
}

fn gone_at_ms(dir: &Path) -> Option<i64> {
    // One that cannot be read went long ago.
    fs::read_to_string(dir.join(GONE)).ok().map(|text| text.trim().parse().unwrap_or(0))
}

fn about(dir: &Path) -> Option<About> {
    serde_json::from_slice(&fs::read(dir.join(ABOUT)).ok()?).ok()
}

fn bytes_in(dir: &Path) -> u64 {
    let files = fs::read_dir(dir).into_iter().flatten().flatten();
    files.filter_map(|file| file.metadata().ok()).map(|file| file.len()).sum()
}

/// Removes a folder. What says that it is to go goes last: a removal that is cut short is finished by the next.
fn remove(dir: &Path) -> io::Result<()> {
    let ignore_missing = |done: io::Result<()>| match done {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    };
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_name() != GONE {
            ignore_missing(fs::remove_file(entry.path()))?;
        }
    }
    ignore_missing(fs::remove_dir_all(dir))
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const HOUR_MS: i64 = 3_600_000;

    struct Shelf(tempfile::TempDir);

    impl Shelf {
        /// The folder of an instance that wrote something and went at that time.
        fn put(&self, workload: &str, instance: &str, bytes: usize, gone_at_ms: i64) -> PathBuf {
            let dir = self.0.path().join(Uuid::new_v4().to_string());
            note(&dir, &workload.parse().unwrap(), instance).unwrap();
            fs::write(dir.join("current.log"), vec![b'x'; bytes]).unwrap();
            let_go(&dir, gone_at_ms).unwrap();
            dir
        }

        fn sweep(&self, hours: u64, max_bytes: u64, now_ms: i64) -> bool {
            let limits = Limits { max_age: Duration::from_secs(hours * 3_600), max_bytes };
            sweep(self.0.path(), limits, now_ms).unwrap()
        }
    }

    fn shelf() -> Shelf {
        Shelf(tempfile::tempdir().unwrap())
    }

    #[test]
    fn what_is_gone_is_found_by_its_workload() {
        let shelf = shelf();
        let later = shelf.put("web", "web-1", 1, 200);
        let earlier = shelf.put("web", "web-0", 1, 100);
        shelf.put("db", "db-0", 1, 100);
        let lives = shelf.0.path().join(Uuid::new_v4().to_string());
        note(&lives, &"web".parse().unwrap(), "web-2").unwrap();
        fs::write(lives.join("current.log"), "x").unwrap();
        let found = gone(shelf.0.path(), Some(&"web".parse().unwrap())).unwrap();
        let told: Vec<_> = found.iter().map(|gone| (gone.id, gone.instance.as_str(), gone.gone_at_ms)).collect();
        assert_eq!(told, [(id_of(&earlier).unwrap(), "web-0", 100), (id_of(&later).unwrap(), "web-1", 200)]);
        assert_eq!(gone(shelf.0.path(), Some(&"none".parse().unwrap())).unwrap(), []);
        let all = gone(shelf.0.path(), None).unwrap();
        assert_eq!(all.iter().filter(|gone| gone.workload.as_str() == "db").count(), 1);
        assert!(all.len() == 3 && all.iter().all(|gone| gone.bytes > 0), "{all:?}");
    }

    #[test]
    fn what_is_too_old_goes_and_what_lives_stays() {
        let shelf = shelf();
        let old = shelf.put("web", "web-0", 10, 0);
        let young = shelf.put("web", "web-1", 10, 2 * HOUR_MS);
        let lives = shelf.0.path().join("lives");
        note(&lives, &"web".parse().unwrap(), "web-2").unwrap();
        assert!(!shelf.sweep(24, 1 << 20, 23 * HOUR_MS));
        assert!(old.exists());
        assert!(!shelf.sweep(24, 1 << 20, 24 * HOUR_MS));
        assert!(!old.exists() && young.exists() && lives.exists());
        fs::write(young.join(GONE), "nonsense").unwrap();
        shelf.sweep(24, 1 << 20, 25 * HOUR_MS);
        assert!(!young.exists());
    }

    #[test]
    fn what_is_too_much_goes_oldest_first() {
        let shelf = shelf();
        let dirs: Vec<PathBuf> = (0..5).map(|i| shelf.put("web", "web-0", 100_000, i * HOUR_MS)).collect();
        shelf.sweep(1_000, 350_000, 5 * HOUR_MS);
        let there: Vec<bool> = dirs.iter().map(|dir| dir.exists()).collect();
        assert_eq!(there, [false, false, true, true, true]);
        shelf.sweep(1_000, 0, 5 * HOUR_MS);
        assert!(dirs.iter().all(|dir| !dir.exists()));
    }

    #[test]
    fn the_work_of_one_go_is_bounded() {
        let shelf = shelf();
        for _ in 0..MOST_AT_ONCE + 3 {
            shelf.put("web", "web-0", 1, 0);
        }
        assert!(shelf.sweep(1, 1 << 20, 2 * HOUR_MS), "there is more");
        assert_eq!(fs::read_dir(shelf.0.path()).unwrap().count(), 3);
        assert!(!shelf.sweep(1, 1 << 20, 2 * HOUR_MS));
        assert_eq!(fs::read_dir(shelf.0.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_says_nothing_or_is_nobodys_is_not_kept() {
        let shelf = shelf();
        assert!(!shelf.put("web", "web-0", 0, 0).exists(), "nothing was written");
        let nameless = shelf.0.path().join("nameless");
        fs::create_dir(&nameless).unwrap();
        fs::write(nameless.join("current.log"), "x").unwrap();
        let_go(&nameless, 0).unwrap();
        assert!(!nameless.exists());
        let_go(&shelf.0.path().join("none"), 0).unwrap();
    }
}
