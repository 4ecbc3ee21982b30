//! The folder: names, what is remembered, rotation.

use super::*;
use crate::backup::{Condition, schedule};
use std::time::Duration;

#[tokio::test]
async fn backups_are_listed_with_what_is_known_of_them() {
    let node = Node::new().await;
    let backups = Backups::new(node.settings(), node.state.clone());
    let first = backups.create().await.unwrap();
    assert!(first.name.starts_with("toft-box-2") && first.name.ends_with(".tar.gz.age"), "{}", first.name);
    assert_eq!((first.condition, first.locked), (Condition::Good, Some("passphrase")));
    assert!(first.record.as_ref().unwrap().verified);
    let second = backups.create().await.unwrap();
    assert_ne!(first.name, second.name, "two of the same second");
    fs::copy(&first.path, second.path.with_file_name("brought.tar.gz.age")).unwrap();
    fs::write(second.path.with_file_name("notes.txt"), "x").unwrap();
    File::options().append(true).open(&second.path).unwrap().set_len(100).unwrap();
    let mut found: Vec<_> =
        backups.list().await.unwrap().into_iter().map(|stored| (stored.name, stored.condition)).collect();
    found.sort_by_key(|(name, _)| *name != first.name);
    assert_eq!(found.len(), 3, "{found:?}");
    assert_eq!(found[0], (first.name.clone(), Condition::Good));
    assert!(found.contains(&(second.name, Condition::Changed)));
    assert!(found.contains(&("brought.tar.gz.age".into(), Condition::Unknown)));
    let mut left = node.listing();
    left.retain(|name| !name.starts_with("state.sqlite"));
    assert_eq!(
        left,
        ["admin-password", "backups", "backups.json", "cluster", "node.json", "raft.redb", "snapshots"],
        "nothing is left over"
    );
}

#[tokio::test]
async fn only_scheduled_backups_are_rotated_and_never_the_last_good_one() {
    let node = Node::new().await;
    let backups = Backups::new(node.settings(), node.state.clone());
    let by_hand = backups.create().await.unwrap();
    let mut scheduled = Vec::new();
    for _ in 0..4 {
        scheduled.push(backups.make_stored(true).await.unwrap());
    }
    let foreign = by_hand.path.with_file_name("toft-box-20200101T000000Z.tar.gz.age");
    fs::write(&foreign, "somebody else's").unwrap();
    // Two kept; the newest is damaged, so that one more stays.
    let newest = &scheduled[3].path;
    let mut bytes = fs::read(newest).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(newest, bytes).unwrap();
    assert_eq!(backups.rotate().await.unwrap(), [scheduled[0].name.as_str()]);
    assert!(by_hand.path.exists() && foreign.exists() && newest.exists());
    assert!(scheduled[1].path.exists() && scheduled[2].path.exists());
    for path in [&scheduled[2].path, newest] {
        fs::write(path, "x").unwrap();
    }
    assert!(backups.rotate().await.unwrap().is_empty(), "the last good one stays");
    assert!(verified(&scheduled[1].path).unwrap().differences.is_empty());
}

#[tokio::test]
async fn names_lead_nowhere_else() {
    let node = Node::new().await;
    let backups = Backups::new(node.settings(), node.state.clone());
    let made = backups.create().await.unwrap();
    assert!(backups.open(made.name.clone()).await.is_ok());
    std::os::unix::fs::symlink("/etc/passwd", made.path.with_file_name("link.tar.gz.age")).unwrap();
    fs::create_dir(made.path.with_file_name("dir.tar.gz.age")).unwrap();
    let inner = format!("../backups/{}", made.name);
    for name in
        ["", "..", "../admin-password", "/etc/passwd", "link.tar.gz.age", "dir.tar.gz.age", "x.tar.gz.age", &inner]
    {
        assert!(backups.open(name.to_owned()).await.is_err(), "{name}");
    }
}

#[tokio::test]
async fn one_backup_is_made_at_a_time_and_needs_a_key() {
    let node = Node::new().await;
    let backups = Backups::new(node.settings(), node.state.clone());
    let (first, second) = tokio::join!(backups.create(), backups.create());
    assert!(first.is_ok() && matches!(second, Err(BackupError::Busy)), "{second:?}");
    let backups = Backups::new(Settings { key: None, ..node.settings() }, node.state.clone());
    assert!(matches!(backups.create().await, Err(BackupError::NoKey)));
    assert!(matches!(backups.stream(None).await, Err(BackupError::NoKey)));
    let streamed = backups.stream(Some(lock())).await.unwrap();
    assert_eq!(streamed.file.metadata().unwrap().len(), streamed.size_bytes);
    assert!(!node.listing().iter().any(|name| name.contains("part") || name.contains("scratch")));
}

#[tokio::test]
async fn a_folder_that_is_away_is_not_made() {
    let node = Node::new().await;
    let dir = node.path("mnt/disk");
    let settings = Settings { dir: dir.clone(), dir_is_ours: false, ..node.settings() };
    let backups = Backups::new(settings, node.state.clone());
    let error = backups.create().await.unwrap_err();
    assert!(matches!(error, BackupError::Folder { .. }), "{error:?}");
    assert!(!dir.exists());
}

#[tokio::test]
async fn what_a_killed_daemon_left_goes() {
    let node = Node::new().await;
    let part = node.data().join("backups").join(format!(".toft-{}.part", Node::id()));
    fs::create_dir_all(node.data().join("backup-scratch")).unwrap();
    fs::create_dir_all(part.parent().unwrap()).unwrap();
    fs::write(node.data().join("backup-scratch/state.sqlite"), "half").unwrap();
    fs::write(&part, "half").unwrap();
    let backups = Backups::new(node.settings(), node.state.clone());
    assert!(!part.exists() && !node.data().join("backup-scratch").exists());
    fs::write(&part, "half again").unwrap();
    backups.create().await.unwrap();
    assert!(!part.exists());
}

#[tokio::test]
async fn the_schedule_makes_and_rotates_and_tells_its_failures() {
    let node = Node::new().await;
    let settings = Settings { every: Some(Duration::from_millis(100)), ..node.settings() };
    let passphrase = node.path("passphrase");
    let backups = Backups::new(settings, node.state.clone());
    let cancel = tokio_util::sync::CancellationToken::new();
    let task = tokio::spawn(schedule::run(backups.clone(), cancel.clone()));
    let until = async |what: &str, is: &mut dyn FnMut(&[String], &crate::backup::Status) -> bool| {
        for _ in 0..600 {
            let names: Vec<_> = backups.list().await.unwrap().into_iter().map(|stored| stored.name).collect();
            if is(&names, &backups.status()) {
                return names;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("never: {what}: {:?}", backups.status());
    };
    let first = until("one is made", &mut |names, _| !names.is_empty()).await;
    until("the first goes", &mut |names, _| names.len() == 2 && !names.contains(&first[0])).await;
    fs::write(&passphrase, "short").unwrap();
    until("a failure is told", &mut |_, status| status.failure.as_ref().is_some_and(|(_, why)| why.contains("12")))
        .await;
    fs::write(&passphrase, PASSPHRASE).unwrap();
    until("it goes on", &mut |_, status| status.failure.is_none() && status.next_at_ms.is_some()).await;
    cancel.cancel();
    task.await.unwrap();
}
