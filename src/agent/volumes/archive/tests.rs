use std::{
    fs,
    io::{Cursor, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            ffi::OsStrExt,
            fs::{MetadataExt, PermissionsExt, chown, symlink},
        },
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::fs::{FileType, Mode, Timespec, Timestamps, XattrFlags};
use tar::{Builder, EntryType, Header};

use super::*;
use crate::agent::tree::hostile::{Door, attack};

fn open(path: &Path) -> OwnedFd {
    fs::File::open(path).unwrap().into()
}

fn written(path: &Path) -> (Summary, Vec<u8>) {
    write(open(path).as_fd(), &Manifest::new("data", "box"), Vec::new()).unwrap()
}

/// Everything that can be said of a tree, one line a file.
fn described(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut open_dirs = vec![root.to_owned()];
    while let Some(path) = open_dirs.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let name = path.strip_prefix(root).unwrap().display();
        let kind = FileType::from_raw_mode(meta.mode());
        let mut line = format!(
            "{name} {kind:?} {:o} {}:{} {}.{}",
            meta.mode() & 0o7777,
            meta.uid(),
            meta.gid(),
            meta.mtime(),
            meta.mtime_nsec()
        );
        if meta.is_symlink() {
            line += &format!(" -> {}", fs::read_link(&path).unwrap().display());
        } else if meta.is_file() {
            let mut value = Vec::with_capacity(100);
            let own = rustix::fs::fgetxattr(open(&path), "user.note", rustix::buffer::spare_capacity(&mut value));
            line += &format!(" {} bytes, {} names, {own:?} {value:?}", meta.len(), meta.nlink());
            line += &hex::encode(<sha2::Sha256 as sha2::Digest>::digest(fs::read(&path).unwrap()));
        } else if meta.is_dir() {
            open_dirs.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        lines.push(line);
    }
    lines.sort();
    lines
}

fn touch(path: &Path, seconds: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: 123_456_789 };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// A tree with one of everything.
fn tree() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir_all(at("deep/er")).unwrap();
    fs::write(at("deep/er/file"), "content").unwrap();
    fs::set_permissions(at("deep/er/file"), fs::Permissions::from_mode(0o4751)).unwrap();
    chown(at("deep/er/file"), Some(1000), Some(3_000_000_000)).unwrap();
    // The bit went with the owner.
    fs::set_permissions(at("deep/er/file"), fs::Permissions::from_mode(0o4751)).unwrap();
    rustix::fs::fsetxattr(open(&at("deep/er/file")), "user.note", b"a\0b\n=", XattrFlags::empty()).unwrap();
    fs::hard_link(at("deep/er/file"), at("another name")).unwrap();
    fs::create_dir(at("closed")).unwrap();
    fs::set_permissions(at("closed"), fs::Permissions::from_mode(0o1070)).unwrap();
    symlink("/etc/passwd", at("absolute")).unwrap();
    symlink("deep//er/../er", at("odd")).unwrap();
    symlink("t".repeat(300), at("long target")).unwrap();
    std::os::unix::fs::lchown(at("absolute"), Some(7), Some(8)).unwrap();
    fs::write(at(&"n".repeat(255)), "long").unwrap();
    fs::write(dir.path().join(std::ffi::OsStr::from_bytes(b"no\xfftext")), "").unwrap();
    fs::create_dir_all(at(&["d"; 120].join("/"))).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, at("pipe"), FileType::Fifo, Mode::from_raw_mode(0o640), 0).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, at("null"), FileType::CharacterDevice, Mode::RWXU, rustix::fs::makedev(1, 3))
        .unwrap();
    let sparse = fs::File::create(at("sparse")).unwrap();
    sparse.set_len(64 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"in the middle", 33 << 20).unwrap();
    for name in ["deep/er/file", "deep", "closed", "absolute", "sparse", "pipe"] {
        touch(&at(name), 1_000_000_000 + name.len() as i64);
    }
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o2775)).unwrap();
    chown(dir.path(), Some(5), Some(6)).unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o2775)).unwrap();
    touch(dir.path(), -5);
    dir
}

#[test]
fn a_tree_comes_back_as_it_was() {
    let from = tree();
    let (summary, bytes) = written(from.path());
    assert_eq!(summary.left_out, 1, "a device");
    let to = tempfile::tempdir().unwrap();
    assert_eq!(read(open(to.path()).as_fd(), Cursor::new(&bytes)).unwrap().entries, summary.entries);
    let copied = tempfile::tempdir().unwrap();
    copy(open(from.path()).as_fd(), open(copied.path()).as_fd()).unwrap();
    fs::remove_file(from.path().join("null")).unwrap();
    touch(from.path(), -5);
    let wanted = described(from.path());
    assert!(wanted.len() > 130 && wanted.iter().any(|line| line.contains("4751 1000:3000000000")), "{wanted:#?}");
    assert_eq!(described(to.path()), wanted);
    assert_eq!(described(copied.path()), wanted);
    let [first, second] =
        ["deep/er/file", "another name"].map(|name| fs::metadata(to.path().join(name)).unwrap().ino());
    assert_eq!(first, second);
    let sparse = fs::metadata(to.path().join("sparse")).unwrap();
    assert!(sparse.blocks() * 512 < 1 << 20, "{} blocks of 64 MiB", sparse.blocks());
}

#[test]
fn what_is_cut_short_or_changed_is_refused() {
    let from = tree();
    let (_, bytes) = written(from.path());
    for length in [0, 1, 511, 512, 1024, 5_000, bytes.len() / 2, bytes.len() - 2_500] {
        let to = tempfile::tempdir().unwrap();
        let error = read(open(to.path()).as_fd(), Cursor::new(&bytes[..length])).unwrap_err();
        let known = matches!(error, ArchiveError::Damaged(_) | ArchiveError::NotABackup(_));
        assert!(known, "{length}: {error}");
    }
    let to = tempfile::tempdir().unwrap();
    let error = read(open(to.path()).as_fd(), Cursor::new(vec![7; 5_000])).unwrap_err();
    assert!(matches!(error, ArchiveError::NotABackup(_)), "{error}");
}

/// An archive made by somebody else: the usual beginning, then what `add` adds.
fn forged(add: impl FnOnce(&mut Builder<Vec<u8>>)) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    let text = serde_json::to_vec(&Manifest::new("data", "box")).unwrap();
    put(&mut tar, MANIFEST, EntryType::Regular, "", &text);
    put(&mut tar, "data", EntryType::Directory, "", b"");
    add(&mut tar);
    tar.into_inner().unwrap()
}

fn put(tar: &mut Builder<Vec<u8>>, path: &str, kind: EntryType, link: &str, content: &[u8]) {
    let mut header = Header::new_gnu();
    header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_size(content.len() as u64);
    header.set_mode(0o755);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1);
    header.set_cksum();
    tar.append(&header, content).unwrap();
}

/// Reads a forged archive, and sees to it that nothing outside the volume was made or changed.
fn refused(archive: &[u8]) -> String {
    let lab = tempfile::tempdir().unwrap();
    let [volume, outside] = ["volume", "outside"].map(|name| lab.path().join(name));
    fs::create_dir(&volume).unwrap();
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("precious"), "as it was").unwrap();
    let before = described(&outside);
    let error = read(open(&volume).as_fd(), Cursor::new(archive)).unwrap_err();
    assert_eq!(described(&outside), before);
    let mut names: Vec<PathBuf> = fs::read_dir(lab.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.sort();
    assert_eq!(names, [outside, volume]);
    crate::observe::chain(&error)
}

#[test]
fn a_hostile_archive_leaves_the_volume_nowhere() {
    use EntryType::{Block, Char, Directory, Fifo, Link, Regular, Symlink};
    let one = |path: &str, kind: EntryType, link: &str| refused(&forged(|tar| put(tar, path, kind, link, b"")));
    for path in [
        "../outside/x",
        "data/../../outside/x",
        "data/..",
        "data/./x",
        "data//x",
        "/etc/x",
        "/data/x",
        "datax",
        "other/x",
        "",
        "data/a/../../../outside/precious",
    ] {
        assert!(one(path, Regular, "").contains("leads out of the volume"), "{path}");
    }
    assert!(one("data/x/y", Regular, "").contains("does not lie in a folder of the volume"));
    assert!(one("data", Regular, "").contains("own folder") && one("data", Directory, "").contains("own folder"));
    for kind in [Char, Block] {
        assert!(one("data/sda", kind, "").contains("is a device"));
    }
    for link in ["../outside/precious", "/etc/passwd", "data", "data/../../outside/precious", "precious"] {
        assert!(one("data/x", Link, link).contains("outside the volume"), "{link}");
    }
    assert!(one("data/x", Link, "data/absent").contains("not in it"));
    assert!(one("data/x", Symlink, "").contains("link to nothing"));
    assert!(one("data/x", EntryType::new(b'Z'), "").contains("unknown kind"));

    // Through a link that the archive made itself.
    for (link, next, kind) in [
        ("../outside", "data/x/new", Regular),
        ("../outside", "data/x/new", Directory),
        ("../outside", "data/x/new", Fifo),
        ("../outside", "data/x/precious", Symlink),
        ("/", "data/x/tmp/toft-hostile", Regular),
        (".", "data/x/y", Regular),
        ("../outside/precious", "data/x", Regular),
        ("../outside", "data/x", Directory),
    ] {
        let error = refused(&forged(|tar| {
            put(tar, "data/x", Symlink, link, b"");
            put(tar, next, kind, if kind == Symlink { "a" } else { "" }, b"");
        }));
        assert!(error.contains("symbolic link") || error.contains("named twice"), "{link} {next}: {error}");
    }
    let error = refused(&forged(|tar| {
        put(tar, "data/x", Symlink, "../outside", b"");
        put(tar, "data/hard", Link, "data/x/precious", b"");
    }));
    assert!(error.contains("not in it"), "{error}");
    let error = refused(&forged(|tar| {
        put(tar, "data/x", Symlink, "../outside/precious", b"");
        put(tar, "data/hard", Link, "data/x", b"");
        put(tar, "data/hard", Regular, "", b"changed");
    }));
    assert!(error.contains("named twice"), "{error}");
}

#[test]
fn attributes_and_sizes_have_bounds() {
    let with = |key: &str, value: &[u8]| {
        refused(&forged(|tar| {
            tar.append_pax_extensions([(key, value)]).unwrap();
            put(tar, "data/x", EntryType::Regular, "", b"");
        }))
    };
    assert!(with("SCHILY.xattr.trusted.overlay.redirect", b"x").contains("not allowed"));
    assert!(with("SCHILY.xattr.security.selinux", b"x").contains("not allowed"));
    assert!(with("GNU.sparse.major", b"1").contains("map of holes is damaged"));
    assert!(with("path", b"data/../../outside/x").contains("leads out"));
    assert!(with("path", &[b"data/".as_slice(), &b"x/".repeat(3_000)].concat()).contains("too long"));
    assert!(with("SCHILY.xattr.user.big", &vec![b'x'; 5 << 20]).contains("more than 4 MiB"));
    let raw = |records: &[u8]| {
        refused(&forged(|tar| {
            put(tar, "", EntryType::XHeader, "", records);
            put(tar, "data/x", EntryType::Regular, "", b"");
        }))
    };
    for records in
        [&b"x"[..], b"11 path=a\n", b"99999999999999999999 path=a\n", b"-1 a=b\n", b"2 a=b\n", b"8 pathab\n", b"0 "]
    {
        assert!(raw(records).contains("list of attributes is damaged"), "{records:?}");
    }
    let twice = refused(&forged(|tar| {
        tar.append_pax_extensions([("mtime", b"1.000000000".as_slice())]).unwrap();
        tar.append_pax_extensions([("mtime", b"1.000000000".as_slice())]).unwrap();
    }));
    assert!(twice.contains("list of attributes is damaged"), "{twice}");
    let behind = refused(&forged(|tar| {
        put(tar, END, EntryType::Regular, "", br#"{"entries":1,"bytes":0}"#);
        put(tar, "data/x", EntryType::Regular, "", b"");
    }));
    assert!(behind.contains("behind its end"), "{behind}");
    let counts = refused(&forged(|tar| put(tar, END, EntryType::Regular, "", br#"{"entries":9,"bytes":0}"#)));
    assert!(counts.contains("not as much"), "{counts}");
    let mut newer = Builder::new(Vec::new());
    put(&mut newer, MANIFEST, EntryType::Regular, "", br#"{"format":2,"more":true}"#);
    assert!(refused(&newer.into_inner().unwrap()).contains("format 2"));
    let mut other = Builder::new(Vec::new());
    put(&mut other, "etc/passwd", EntryType::Regular, "", b"root");
    assert!(refused(&other.into_inner().unwrap()).contains("no backup of a volume"));
}

/// Sets a mark when it goes, however a test ends.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_file_that_changes_while_it_is_read_does_no_harm() {
    let from = tempfile::tempdir().unwrap();
    let path = from.path().join("log");
    fs::write(&path, vec![b'x'; 1 << 20]).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut i = 0;
            while !stop.load(Ordering::Relaxed) {
                i += 1;
                let file = fs::File::options().append(true).open(&path).unwrap();
                if i % 2 == 0 {
                    (&file).write_all(&[b'y'; 1 << 16]).unwrap()
                } else {
                    file.set_len(1 << 18).unwrap()
                }
                fs::write(from.path().join(format!("come-{}", i % 7)), "").unwrap();
                drop(fs::remove_file(from.path().join(format!("come-{}", (i + 3) % 7))));
                std::thread::yield_now();
            }
        });
        let _ends = Ends(&stop);
        for _ in 0..10 {
            let (summary, bytes) = written(from.path());
            let to = tempfile::tempdir().unwrap();
            assert_eq!(read(open(to.path()).as_fd(), Cursor::new(bytes)).unwrap().bytes, summary.bytes);
        }
    });
}

#[test]
fn hostile_archives_write_nothing_outside() {
    attack(Door::Volume, |archive, root| {
        read(open(root).as_fd(), Cursor::new(archive)).map(drop).map_err(|error| error.to_string())
    });
}
