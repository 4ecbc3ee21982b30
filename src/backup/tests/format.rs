//! What is written is what is read, and nothing else opens it.

use super::*;

#[tokio::test]
async fn a_backup_brings_everything_back() {
    let node = Node::new().await;
    let path = node.back_up().await;
    let verdict = verified(&path).unwrap();
    assert_eq!(verdict.differences, Vec::<String>::new());
    let manifest = verdict.manifest;
    assert_eq!((manifest.format, manifest.node_name.as_str()), (1, "box"));
    assert!(manifest.applied_index >= 3, "{}", manifest.applied_index);
    assert_eq!((manifest.node_id.as_str(), manifest.tables["workloads"]), (Node::id(), 3));
    let paths: Vec<&str> = manifest.files.iter().map(|file| file.path.as_str()).collect();
    for path in ["state.sqlite", "node.json", "cluster/authority.key", "cluster/more/node.key", "admin-password"] {
        assert!(paths.contains(&path), "{path}: {paths:?}");
    }

    let empty = node.path("new");
    fs::create_dir(&empty).unwrap();
    assert_eq!(restored(&path, &empty).unwrap(), None, "nothing was there before");
    for file in ["node.json", "cluster/authority.pem", "cluster/cluster.key", "cluster/more/node.key", "admin-password"]
    {
        assert_eq!(fs::read(empty.join(file)).unwrap(), fs::read(node.data().join(file)).unwrap(), "{file}");
    }
    let state = open(&empty).await;
    let names: Vec<_> =
        state.read(WorkloadRow::all).await.unwrap().iter().map(|row| row.spec.name.to_string()).collect();
    assert_eq!(names.len(), 3, "{names:?}");
    let mut left: Vec<_> = fs::read_dir(&empty).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.retain(|name| !name.to_str().unwrap().starts_with("state.sqlite-"));
    left.sort();
    assert_eq!(left, ["admin-password", "cluster", "node.json", "raft.redb", "snapshots", "state.sqlite"]);
}

#[tokio::test]
async fn files_are_for_their_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let node = Node::new().await;
    let path = node.back_up().await;
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o600);
    let empty = node.path("new");
    fs::create_dir(&empty).unwrap();
    restored(&path, &empty).unwrap();
    for file in ["state.sqlite", "node.json", "admin-password", "cluster/more/node.key"] {
        assert_eq!(mode(&empty.join(file)), 0o600, "{file}");
    }
}

#[tokio::test]
async fn a_key_file_opens_what_its_public_half_locked() {
    let node = Node::new().await;
    let (mine, other) = (node.path("mine.key"), node.path("other.key"));
    let public = super::super::keys::generate(&mine, "now").unwrap();
    super::super::keys::generate(&other, "now").unwrap();
    assert!(super::super::keys::generate(&mine, "now").is_err(), "a key is never overwritten");
    node.try_back_up("k.age", Lock::recipient(&public).unwrap()).await.unwrap();
    let path = node.path("k.age");
    let open = |key: &Key| verify(&path, key, node.dir.path(), &mut |_, _| ());
    assert!(open(&Key::from_key_file(&mine).unwrap()).unwrap().differences.is_empty());
    let error = open(&Key::from_key_file(&other).unwrap()).unwrap_err();
    assert!(matches!(error, BackupError::WrongKey { key: "key file", .. }), "{error:?}");
    let error = open(&key()).unwrap_err();
    assert!(matches!(error, BackupError::OtherKey { needed: "key file", .. }), "{error:?}");
    let locked = node.back_up().await;
    let error = verify(&locked, &Key::from_key_file(&mine).unwrap(), node.dir.path(), &mut |_, _| ()).unwrap_err();
    assert!(matches!(error, BackupError::OtherKey { needed: "passphrase", .. }), "{error:?}");
}

#[tokio::test]
async fn another_passphrase_opens_nothing_and_says_so() {
    let node = Node::new().await;
    let path = node.back_up().await;
    let wrong = Key::passphrase("correct horse batterx".into());
    let error = verify(&path, &wrong, node.dir.path(), &mut |_, _| ()).unwrap_err();
    assert!(matches!(error, BackupError::WrongKey { key: "passphrase", .. }), "{error:?}");
    assert!(error.to_string().contains("b.tar.gz.age") && error.hint().is_some());
    let before = node.listing();
    assert!(restore::stage(&path, &wrong, &node.data(), &mut |_, _| ()).is_err());
    assert_eq!(node.listing(), before);
}

#[test]
fn keys_that_cannot_be_used_are_told_without_showing_them() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("k");
    for (text, word) in
        [("", "no key"), ("# only\n", "no key"), ("hunter2\n", "line 1"), ("#\nAGE-SECRET-KEY-1AAAA", "line 2")]
    {
        fs::write(&path, text).unwrap();
        let error = Key::from_key_file(&path).err().unwrap();
        assert!(error.to_string().contains(word), "{error}");
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }
    fs::write(&path, "\nsecond line\n").unwrap();
    assert!(Key::from_passphrase_file(&path).is_err());
    fs::write(&path, "short\n").unwrap();
    let error = KeySource::PassphraseFile(path.clone()).lock().err().unwrap();
    assert!(error.to_string().contains("12 characters"), "{error}");
    assert!(Key::from_key_file(&dir.path().join("absent")).is_err());
    assert!(Lock::recipient("age1qqqq").is_err());
    let error = Lock::recipient("AGE-SECRET-KEY-1QQ").err().unwrap();
    assert!(!error.to_string().contains("1QQ"), "{error}");
}

#[tokio::test]
async fn a_state_that_is_damaged_is_not_backed_up() {
    let node = Node::new().await;
    let copy = node.path("copy.sqlite");
    node.state.copy_to(&copy, |_, _| ()).await.unwrap();
    let mut bytes = fs::read(&copy).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 4096].fill(0xa5);
    fs::write(&copy, bytes).unwrap();
    assert!(super::super::digest::examine(&copy).unwrap().is_err());
}
