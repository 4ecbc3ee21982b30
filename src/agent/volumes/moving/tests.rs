use std::{
    cell::{Cell, RefCell},
    fs::{self, File},
    io::Write,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, MetadataExt, PermissionsExt, symlink},
    },
    path::Path,
    process::Command,
};

use proptest::prelude::*;
use rustix::fs::{AtFlags, Mode, Timespec, Timestamps, XattrFlags, lsetxattr, mkfifoat, utimensat};

use super::*;
use crate::agent::volumes::paths;

fn open(path: &Path) -> std::os::fd::OwnedFd {
    paths::folder(path).unwrap()
}

fn sum(path: &Path) -> Sum {
    Sum::of(std::os::fd::AsFd::as_fd(&open(path)), &mut |_| true).unwrap()
}

fn bring(from: &Path, to: &Path) -> Carried {
    carry(&Local::new(open(from)), Incoming::new(open(to)), &mut |_| true).unwrap()
}

fn dated(path: &Path, seconds: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: 123_456_789 };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(rustix::fs::CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// A tree with one of everything.
fn odd(root: &Path) {
    fs::create_dir_all(root.join("deep/er/and empty")).unwrap();
    fs::write(root.join("deep/file"), "content").unwrap();
    fs::write(root.join("deep/empty"), "").unwrap();
    fs::hard_link(root.join("deep/file"), root.join("deep/again")).unwrap();
    fs::hard_link(root.join("deep/file"), root.join("z")).unwrap();
    symlink("../../../../etc/passwd", root.join("deep/out")).unwrap();
    symlink("/", root.join("root")).unwrap();
    mkfifoat(rustix::fs::CWD, root.join("pipe"), Mode::from_raw_mode(0o640)).unwrap();
    fs::write(root.join(std::ffi::OsStr::from_bytes(b"not \xff utf-8\nat all")), "x").unwrap();
    let sparse = File::create(root.join("sparse")).unwrap();
    sparse.write_all_at(b"begin", 0).unwrap();
    sparse.write_all_at(b"middle", 8 << 20).unwrap();
    sparse.set_len(64 << 20).unwrap();
    fs::write(root.join("program"), "#!/bin/sh").unwrap();
    std::os::unix::fs::chown(root.join("program"), Some(1234), Some(4321)).unwrap();
    fs::set_permissions(root.join("program"), fs::Permissions::from_mode(0o6755)).unwrap();
    lsetxattr(root.join("program"), "user.note", b"kept", XattrFlags::empty()).unwrap();
    lsetxattr(root.join("deep"), "user.note", b"kept, too", XattrFlags::empty()).unwrap();
    fs::set_permissions(root.join("deep/er"), fs::Permissions::from_mode(0o500)).unwrap();
    for (path, seconds) in [("root", 5), ("program", -5), ("deep/er", 1_000_000_000), ("deep", 7), ("", 9)] {
        dated(&root.join(path), seconds);
    }
}

#[test]
fn a_tree_arrives_as_it_was_and_again_nothing_comes() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    odd(from.path());
    // What lies there already is of another time.
    fs::create_dir_all(to.path().join("deep/file")).unwrap();
    fs::write(to.path().join("deep/file/below"), "x").unwrap();
    fs::write(to.path().join("sparse"), "something else").unwrap();
    symlink("/etc", to.path().join("program")).unwrap();
    symlink("/nowhere", to.path().join("gone")).unwrap();
    let first = bring(from.path(), to.path());
    assert_eq!(sum(to.path()), sum(from.path()));
    let there = fs::metadata(to.path().join("sparse")).unwrap();
    assert!(there.len() == 64 << 20 && there.blocks() * 512 < 1 << 20, "{} blocks", there.blocks());
    assert_eq!(fs::metadata(to.path().join("deep/file")).unwrap().nlink(), 3);
    assert!(first.came > 0 && first.came < 2 << 20, "{first:?}");
    let second = bring(from.path(), to.path());
    assert_eq!((second.came, second.bytes, second.entries), (0, first.bytes, first.entries));

    // What changed comes, what went goes, and names that parted are files of their own.
    fs::remove_file(from.path().join("z")).unwrap();
    fs::write(from.path().join("z"), "content").unwrap();
    fs::remove_dir_all(from.path().join("deep/er")).unwrap();
    fs::write(from.path().join("deep/er"), "a file now").unwrap();
    File::options().append(true).open(from.path().join("deep/file")).unwrap().write_all(b", and more").unwrap();
    bring(from.path(), to.path());
    assert_eq!(sum(to.path()), sum(from.path()));
    assert_eq!(fs::read_to_string(to.path().join("z")).unwrap(), "content");
}

/// A source that breaks off after so many bytes, and then no more.
struct Breaks {
    local: Local,
    left: Cell<u64>,
    asked: RefCell<Vec<Want>>,
}

impl Source for Breaks {
    fn list(&self, each: &mut dyn FnMut(Entry) -> Result<(), MoveError>) -> Result<(), MoveError> {
        self.local.list(each)
    }

    fn read(&self, wanted: &[Want], each: &mut dyn FnMut(Part<'_>) -> Result<(), MoveError>) -> Result<(), MoveError> {
        self.asked.borrow_mut().extend_from_slice(wanted);
        self.local.read(wanted, &mut |part| {
            if let Part::Bytes { bytes, .. } = part {
                let left = self.left.get().checked_sub(bytes.len() as u64);
                self.left.set(left.ok_or_else(|| MoveError::Source(io::ErrorKind::BrokenPipe.into()))?);
            }
            each(part)
        })
    }
}

#[test]
fn what_broke_off_goes_on_where_it_ends() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let content: Vec<u8> = (0..6_000_000_u32).map(|i| (i / 11) as u8).collect();
    fs::write(from.path().join("large"), &content).unwrap();
    fs::write(from.path().join("a"), "small").unwrap();
    let source = Breaks { local: Local::new(open(from.path())), left: Cell::new(2 << 20), asked: RefCell::default() };
    let again = |source: &Breaks| carry(source, Incoming::new(open(to.path())), &mut |_| true);
    assert!(matches!(again(&source), Err(MoveError::Source(_))));
    source.left.set(u64::MAX);
    source.asked.borrow_mut().clear();
    let carried = again(&source).unwrap();
    let asked = source.asked.borrow().clone();
    assert!(asked.len() == 1 && asked[0].from > 1 << 20 && asked[0].path == b"large", "{asked:?}");
    assert_eq!(carried.came, content.len() as u64 - asked[0].from);
    assert_eq!(sum(to.path()), sum(from.path()));

    // What has changed since begins anew.
    fs::write(from.path().join("large"), &content[1..]).unwrap();
    source.left.set(2 << 20);
    again(&source).unwrap_err();
    fs::write(from.path().join("large"), &content[2..]).unwrap();
    source.left.set(u64::MAX);
    again(&source).unwrap();
    assert_eq!(sum(to.path()), sum(from.path()));
    // It was told to stop.
    let stopped = carry(&source, Incoming::new(open(to.path())), &mut |_| false);
    assert!(matches!(stopped, Err(MoveError::Stopped)), "{stopped:?}");
}

/// A source that says what it is told to.
struct Says(Vec<Entry>, Vec<(u64, Vec<u8>)>);

impl Source for Says {
    fn list(&self, each: &mut dyn FnMut(Entry) -> Result<(), MoveError>) -> Result<(), MoveError> {
        self.0.iter().cloned().try_for_each(each)
    }

    fn read(&self, wanted: &[Want], each: &mut dyn FnMut(Part<'_>) -> Result<(), MoveError>) -> Result<(), MoveError> {
        for _ in wanted {
            for (offset, bytes) in &self.1 {
                each(Part::Bytes { offset: *offset, bytes })?;
            }
            each(Part::End)?;
        }
        Ok(())
    }
}

fn entry(path: &[u8], kind: Kind) -> Entry {
    let path = path.to_vec();
    Entry { path, kind, mode: 0o755, uid: 0, gid: 0, modified: (1, 0), attributes: Vec::new() }
}

#[test]
fn hostile_names_links_and_bytes_stay_inside() {
    let outside = tempfile::tempdir().unwrap();
    let root = outside.path().join("root");
    fs::create_dir(&root).unwrap();
    fs::write(outside.path().join("victim"), "whole").unwrap();
    let up = || Kind::Symlink(b"..".to_vec());
    let file = || Kind::File(4);
    let (dir, top) = (|path: &[u8]| entry(path, Kind::Directory), || entry(b"", Kind::Directory));
    let cases: Vec<Vec<Entry>> = vec![
        vec![top(), entry(b"../victim", file())],
        vec![top(), entry(b"/etc/victim", file())],
        vec![top(), entry(b"..", Kind::Directory)],
        vec![top(), entry(b"a\0b", file())],
        vec![top(), entry(&[b'x'; 300], file())],
        vec![top(), entry(b"a", up()), entry(b"a/victim", file())],
        vec![top(), entry(b"a", up()), dir(b"a"), entry(b"a/victim", file())],
        vec![top(), dir(b"d"), entry(b"d/../victim", file())],
        vec![top(), entry(b"l", Kind::Link(b"../victim".to_vec()))],
        vec![top(), entry(b"l", Kind::Link(b"nowhere".to_vec()))],
        vec![top(), dir(b"d"), entry(b"l", Kind::Link(b"d".to_vec()))],
        vec![top(), entry(b"b", file()), entry(b"a", file())],
        vec![top(), entry(b"a", file()), entry(b"a", file())],
        vec![top(), top()],
        vec![entry(b"a", file())],
        vec![top(), entry(b"a", Kind::File(u64::MAX))],
        vec![top(), Entry { attributes: vec![("trusted.x".into(), Vec::new())], ..entry(b"a", file()) }],
        vec![top(), Entry { attributes: vec![("user.toft.moving".into(), Vec::new())], ..entry(b"a", file()) }],
        vec![top(), Entry { mode: 0o10_0644, ..entry(b"a", file()) }],
    ];
    for entries in cases {
        let source = Says(entries, vec![(0, b"evil".to_vec())]);
        let refused = carry(&source, Incoming::new(open(&root)), &mut |_| true);
        assert!(matches!(refused, Err(MoveError::Hostile { .. })), "{:?}: {refused:?}", source.0);
        assert_eq!(fs::read_to_string(outside.path().join("victim")).unwrap(), "whole");
    }
    for parts in [
        vec![(2, b"evil".to_vec())],
        vec![(u64::MAX, b"evil".to_vec())],
        vec![(0, b"ev".to_vec()), (1, b"il".to_vec())],
    ] {
        let source = Says(vec![top(), entry(b"a", file())], parts);
        let refused = carry(&source, Incoming::new(open(&root)), &mut |_| true);
        assert!(matches!(refused, Err(MoveError::Hostile { .. })), "{:?}: {refused:?}", source.1);
    }
}

/// What is done to a tree.
#[derive(Debug, Clone)]
enum Change {
    File(u8, u8, Vec<u8>),
    Hole(u8, u32),
    Directory(u8),
    Symlink(u8, String),
    Link(u8, u8),
    Remove(u8),
    Mode(u8, u16),
    Attribute(u8, u8),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        (any::<u8>(), any::<u8>(), proptest::collection::vec(any::<u8>(), 0..3000))
            .prop_map(|(at, many, bytes)| Change::File(at, many, bytes)),
        (any::<u8>(), 0..3_000_000_u32).prop_map(|(at, length)| Change::Hole(at, length)),
        any::<u8>().prop_map(Change::Directory),
        (any::<u8>(), "[a-z./]{1,20}").prop_map(|(at, to)| Change::Symlink(at, format!("nowhere/{to}"))),
        (any::<u8>(), any::<u8>()).prop_map(|(at, to)| Change::Link(at, to)),
        any::<u8>().prop_map(Change::Remove),
        (any::<u8>(), 0..0o7777_u16).prop_map(|(at, mode)| Change::Mode(at, mode)),
        (any::<u8>(), any::<u8>()).prop_map(|(at, value)| Change::Attribute(at, value)),
    ]
}

/// One of some paths, in each other.
fn path(root: &Path, at: u8) -> std::path::PathBuf {
    let names = ["a", "b.c", "d e", "\u{fc}"];
    let part = |shift: u8| names[usize::from((at >> shift) & 3)];
    match at >> 6 {
        0 | 1 => root.join(part(0)),
        2 => root.join(part(0)).join(part(2)),
        _ => root.join(part(0)).join(part(2)).join(part(4)),
    }
}

fn apply(root: &Path, change: &Change) {
    // What cannot be done is not done.
    match change {
        Change::File(at, many, bytes) => drop(fs::write(path(root, *at), bytes.repeat(usize::from(*many % 90) + 1))),
        Change::Hole(at, length) => {
            let file = File::options().write(true).create(true).truncate(false).open(path(root, *at));
            drop(file.and_then(|file| file.set_len((*length).into())));
        }
        Change::Directory(at) => drop(fs::create_dir_all(path(root, *at))),
        Change::Symlink(at, to) => drop(symlink(to, path(root, *at))),
        Change::Link(at, to) => drop(fs::hard_link(path(root, *to), path(root, *at))),
        Change::Remove(at) => {
            let path = path(root, *at);
            drop(fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path)));
        }
        Change::Mode(at, mode) => {
            let path = path(root, *at);
            if fs::symlink_metadata(&path).is_ok_and(|meta| !meta.is_symlink()) {
                drop(fs::set_permissions(&path, fs::Permissions::from_mode((*mode).into())));
            }
        }
        Change::Attribute(at, value) => {
            let path = path(root, *at);
            let name = format!("user.{}", value % 3);
            lsetxattr(&path, name.as_str(), &[*value], XattrFlags::empty()).unwrap_or_default();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn what_arrives_equals_what_was_sent_whatever_was_there(
        first in proptest::collection::vec(change(), 0..25),
        then in proptest::collection::vec(change(), 0..15),
        there in proptest::collection::vec(change(), 0..15),
        breaks in 0..200_000_u64,
    ) {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        first.iter().for_each(|change| apply(from.path(), change));
        there.iter().for_each(|change| apply(to.path(), change));
        let source =
            Breaks { local: Local::new(open(from.path())), left: Cell::new(breaks), asked: RefCell::default() };
        drop(carry(&source, Incoming::new(open(to.path())), &mut |_| true));
        // Two writes within a tick of the kernel's clock look the same.
        std::thread::sleep(std::time::Duration::from_millis(12));
        then.iter().for_each(|change| apply(from.path(), change));
        bring(from.path(), to.path());
        prop_assert_eq!(sum(to.path()).entries, sum(from.path()).entries);
        let differs = Command::new("diff").args(["-r", "--no-dereference"]).args([from.path(), to.path()]).output();
        let differs = String::from_utf8_lossy(&differs.unwrap().stdout).into_owned();
        prop_assert!(differs.is_empty(), "{}", differs);
        prop_assert_eq!(sum(to.path()), sum(from.path()));
    }
}
