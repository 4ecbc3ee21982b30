//! Files that are damaged, foreign or made to do harm: refused, each in its way, and nothing is changed.

use std::io::Write;

use flate2::{Compression, write::GzEncoder};
use proptest::{prelude::*, sample::Index, test_runner::TestRunner};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::*;

/// Checks that neither a verification nor a restore accepts the file, nor leaves anything behind; gives the error.
fn refused(node: &Node, path: &Path) -> BackupError {
    let before = node.listing();
    let state = fs::read(node.data().join("state.sqlite")).unwrap();
    let error = match verified(path) {
        Err(error) => error,
        Ok(verdict) => {
            assert!(!verdict.differences.is_empty(), "it was accepted");
            BackupError::Differs { path: path.to_owned(), differences: verdict.differences }
        }
    };
    assert!(restore::stage(path, &key(), &node.data(), &mut |_, _| ()).is_err());
    assert_eq!(node.listing(), before);
    assert_eq!(fs::read(node.data().join("state.sqlite")).unwrap(), state);
    assert!(error.to_string().contains(path.file_name().unwrap().to_str().unwrap()), "{error}");
    assert!(error.hint().is_some(), "{error:?}");
    error
}

#[tokio::test]
async fn a_file_cut_short_anywhere_is_refused() {
    let node = Node::new().await;
    let whole = fs::read(node.back_up().await).unwrap();
    let header = whole.windows(4).position(|bytes| bytes == b"\n---").unwrap();
    let chunk = header + 1 + 48 + 16;
    let lengths = [
        0,
        1,
        21,
        22,
        30,
        31,
        40,
        header,
        header + 5,
        chunk,
        chunk + 1,
        chunk + 1_000,
        whole.len() - 17,
        whole.len() - 1,
    ];
    for length in lengths {
        let path = node.path("cut.tar.gz.age");
        fs::write(&path, &whole[..length]).unwrap();
        let error = refused(&node, &path);
        assert!(matches!(error, BackupError::Damaged { .. }), "{length}: {error:?}");
        fs::remove_file(path).unwrap();
    }
}

#[tokio::test]
async fn a_flipped_bit_anywhere_is_refused() {
    let node = Node::new().await;
    let whole = fs::read(node.back_up().await).unwrap();
    let path = node.path("flipped.tar.gz.age");
    TestRunner::default()
        .run(&(any::<Index>(), 0..8u32), |(at, bit)| {
            let mut bytes = whole.clone();
            bytes[at.index(whole.len())] ^= 1 << bit;
            fs::write(&path, bytes).unwrap();
            // In the header it looks like another passphrase or another kind of file; afterwards it is damage.
            drop(refused(&node, &path));
            Ok(())
        })
        .unwrap();
}

#[tokio::test]
async fn bytes_after_the_end_are_refused() {
    let node = Node::new().await;
    let mut bytes = fs::read(node.back_up().await).unwrap();
    bytes.extend([0; 100]);
    let path = node.path("longer.tar.gz.age");
    fs::write(&path, bytes).unwrap();
    assert!(matches!(refused(&node, &path), BackupError::Damaged { .. }));
}

#[tokio::test]
async fn other_files_are_no_backups() {
    let node = Node::new().await;
    let path = node.path("other.tar.gz.age");
    for content in [
        &b"my shopping list, which is long enough to be read"[..],
        &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        b"-----BEGIN AGE ENCRYPTED FILE-----\n",
    ] {
        fs::write(&path, content).unwrap();
        assert!(matches!(refused(&node, &path), BackupError::NotABackup { .. }));
    }
    fs::write(&path, sealed(b"plain text, not an archive")).unwrap();
    assert!(matches!(refused(&node, &path), BackupError::NotABackup { .. }));
    let error = verified(&node.path("absent")).unwrap_err();
    assert!(matches!(error, BackupError::Unreadable { .. }) && error.hint().is_some());
}

/// Locks bytes with the passphrase.
fn sealed(plain: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut writer = lock().encryptor().unwrap().wrap_output(&mut out).unwrap();
    writer.write_all(plain).unwrap();
    writer.finish().unwrap();
    out
}

/// One entry of an archive that nobody checked.
struct Entry {
    path: Vec<u8>,
    kind: tar::EntryType,
    content: Vec<u8>,
    link: Option<&'static str>,
}

fn file(path: &str, content: &[u8]) -> Entry {
    Entry { path: path.into(), kind: tar::EntryType::Regular, content: content.to_vec(), link: None }
}

fn packed(entries: &[Entry]) -> Vec<u8> {
    let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for entry in entries {
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..entry.path.len()].copy_from_slice(&entry.path);
        header.set_size(entry.content.len() as u64);
        header.set_entry_type(entry.kind);
        if let Some(link) = entry.link {
            header.set_link_name(link).unwrap();
        }
        header.set_mode(0o777);
        header.set_cksum();
        tar.append(&header, entry.content.as_slice()).unwrap();
    }
    tar.into_inner().unwrap().finish().unwrap()
}

/// The manifest and files of a good backup, to be changed.
async fn parts(node: &Node) -> (Value, Vec<Entry>) {
    let path = node.back_up().await;
    let into = node.path("unpacked");
    fs::create_dir(&into).unwrap();
    let unpacked = unpack::unpack(&path, &key(), &into, &mut |_, _| ()).unwrap();
    let files =
        unpacked.manifest.files.iter().map(|entry| file(&entry.path, &fs::read(into.join(&entry.path)).unwrap()));
    let files = files.collect();
    fs::remove_dir_all(into).unwrap();
    (serde_json::to_value(unpacked.manifest).unwrap(), files)
}

fn built(node: &Node, manifest: &Value, files: Vec<Entry>) -> PathBuf {
    let mut entries = vec![file("manifest.json", &serde_json::to_vec(manifest).unwrap())];
    entries.extend(files);
    let path = node.path("built.tar.gz.age");
    fs::write(&path, sealed(&packed(&entries))).unwrap();
    path
}

/// Lists one more file in the manifest.
fn list(manifest: &mut Value, path: &str, content: &[u8]) {
    let entry = json!({"path": path, "size_bytes": content.len(), "sha256": hex::encode(Sha256::digest(content))});
    manifest["files"].as_array_mut().unwrap().push(entry);
}

#[tokio::test]
async fn what_the_tests_build_is_good_when_unchanged() {
    let node = Node::new().await;
    let (manifest, files) = parts(&node).await;
    assert!(verified(&built(&node, &manifest, files)).unwrap().differences.is_empty());
}

#[tokio::test]
async fn paths_that_lead_out_are_refused_even_when_listed() {
    let node = Node::new().await;
    for path in
        ["../outside", "/tmp/outside", "cluster/../../outside", "cluster/../node.json", "logs/x", "state.sqlite-wal"]
    {
        let (mut manifest, mut files) = parts(&node).await;
        list(&mut manifest, path, b"x");
        files.push(file(path, b"x"));
        assert!(matches!(refused(&node, &built(&node, &manifest, files)), BackupError::NotABackup { .. }), "{path}");
        assert!(!node.path("outside").exists() && !Path::new("/tmp/outside").exists());
        fs::remove_file(node.path("b.tar.gz.age")).unwrap();
    }
}

#[tokio::test]
async fn entries_that_are_no_listed_plain_files_are_refused() {
    let node = Node::new().await;
    type Change = fn(&mut Value, &mut Vec<Entry>);
    let changes: [(&str, Change); 9] = [
        ("unlisted", |_, files| files.push(file("cluster/extra", b"x"))),
        ("a link", |manifest, files| {
            list(manifest, "cluster/link", b"");
            files.push(Entry {
                path: b"cluster/link".to_vec(),
                kind: tar::EntryType::Symlink,
                content: vec![],
                link: Some("/etc/passwd"),
            });
        }),
        ("a hard link", |manifest, files| {
            list(manifest, "cluster/link", b"");
            files.push(Entry {
                path: b"cluster/link".to_vec(),
                kind: tar::EntryType::Link,
                content: vec![],
                link: Some("node.json"),
            });
        }),
        ("a device", |manifest, files| {
            list(manifest, "cluster/null", b"");
            files.push(Entry {
                path: b"cluster/null".to_vec(),
                kind: tar::EntryType::Char,
                content: vec![],
                link: None,
            });
        }),
        ("a long name", |_, files| {
            files.insert(
                0,
                Entry {
                    path: b"././@LongLink".to_vec(),
                    kind: tar::EntryType::GNULongName,
                    content: b"../outside\0".to_vec(),
                    link: None,
                },
            );
        }),
        ("twice", |_, files| {
            let again = file("node.json", &files[1].content.clone());
            files.insert(2, again);
        }),
        ("another order", |_, files| files.swap(0, 1)),
        ("a size", |manifest, _| manifest["files"][1]["size_bytes"] = json!(1)),
        ("a huge size", |manifest, _| manifest["files"][1]["size_bytes"] = json!(1u64 << 40)),
    ];
    for (what, change) in changes {
        let (mut manifest, mut files) = parts(&node).await;
        change(&mut manifest, &mut files);
        assert!(matches!(refused(&node, &built(&node, &manifest, files)), BackupError::NotABackup { .. }), "{what}");
        fs::remove_file(node.path("b.tar.gz.age")).unwrap();
    }
}

#[tokio::test]
async fn content_that_differs_from_the_manifest_is_told() {
    let node = Node::new().await;
    type Change = fn(&mut Value, &mut Vec<Entry>);
    let changes: [(&str, Change); 7] = [
        ("`admin-password` is not the file", |_, files| files.last_mut().unwrap().content[0] ^= 1),
        ("`admin-password` is missing", |_, files| drop(files.pop())),
        ("row count of `workloads` is 3, the manifest says 4", |manifest, _| {
            manifest["tables"]["workloads"] = json!(4)
        }),
        ("row count of `ghosts` is absent", |manifest, _| manifest["tables"]["ghosts"] = json!(1)),
        ("applied index", |manifest, _| manifest["applied_index"] = json!(99)),
        ("digest of the state's content", |manifest, _| manifest["content_sha256"] = json!("00")),
        ("is of node", |manifest, _| manifest["node_id"] = json!("another")),
    ];
    for (what, change) in changes {
        let (mut manifest, mut files) = parts(&node).await;
        change(&mut manifest, &mut files);
        let error = refused(&node, &built(&node, &manifest, files));
        assert!(error.to_string().contains(what), "{what}: {error}");
        fs::remove_file(node.path("b.tar.gz.age")).unwrap();
    }
}

#[tokio::test]
async fn a_damaged_database_inside_a_good_archive_is_told() {
    let node = Node::new().await;
    let (mut manifest, mut files) = parts(&node).await;
    let state = &mut files[0].content;
    let middle = state.len() / 2;
    state[middle..middle + 4096].fill(0xa5);
    manifest["files"][0]["sha256"] = json!(hex::encode(Sha256::digest(&*state)));
    let error = refused(&node, &built(&node, &manifest, files));
    assert!(error.to_string().contains("is damaged"), "{error}");
}

#[tokio::test]
async fn newer_backups_are_refused_with_the_toft_that_reads_them() {
    let node = Node::new().await;
    for (field, words) in [("format", "backup format 99"), ("schema_version", "schema version 99")] {
        let (mut manifest, files) = parts(&node).await;
        manifest[field] = json!(99);
        manifest["toft_version"] = json!("7.5.0");
        // A newer format may have any other fields.
        manifest.as_object_mut().unwrap().remove("node_name");
        let error = refused(&node, &built(&node, &manifest, files));
        assert!(matches!(error, BackupError::Newer { .. }), "{error:?}");
        assert!(error.to_string().contains(words) && error.hint().unwrap().contains("7.5.0"), "{error}");
        fs::remove_file(node.path("b.tar.gz.age")).unwrap();
    }
}

#[tokio::test]
async fn an_archive_without_a_manifest_or_with_more_behind_it_is_refused() {
    let node = Node::new().await;
    let (manifest, files) = parts(&node).await;
    let path = node.path("built.tar.gz.age");
    fs::write(&path, sealed(&packed(&files))).unwrap();
    assert!(matches!(refused(&node, &path), BackupError::NotABackup { .. }));
    let text = serde_json::to_vec(&manifest).unwrap();
    let mut entries = vec![file("manifest.json", &text)];
    entries.extend(files);
    let good = packed(&entries);
    for more in [&b"more"[..], &packed(&[file("x", b"y")])] {
        fs::write(&path, sealed(&[&good, more].concat())).unwrap();
        assert!(matches!(refused(&node, &path), BackupError::NotABackup { .. }));
    }
    let huge = vec![b' '; 2 << 20];
    fs::write(&path, sealed(&packed(&[file("manifest.json", &huge)]))).unwrap();
    assert!(matches!(refused(&node, &path), BackupError::NotABackup { .. }));
}

#[tokio::test]
async fn work_that_no_backup_asks_for_is_refused_before_it_is_done() {
    let node = Node::new().await;
    let text = String::from_utf8_lossy(&fs::read(node.back_up().await).unwrap()[..80]).into_owned();
    let bytes = fs::read(node.path("b.tar.gz.age")).unwrap();
    let end = text.find(" 8\n").unwrap();
    let costly = [&bytes[..end], b" 30", &bytes[end + 2..]].concat();
    let path = node.path("costly.tar.gz.age");
    fs::write(&path, costly).unwrap();
    let error = refused(&node, &path);
    assert!(error.to_string().contains("2^30"), "{error}");
}
