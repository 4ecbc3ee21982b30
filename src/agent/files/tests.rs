//! Trees that change, links that lead away, and archives made to do harm.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::Read,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink},
    },
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::fs::{Mode, OFlags, open};
use tar::{Builder, EntryType, Header};
use toft_model::files::FileKind;

use super::{
    super::tree::hostile::{Door, attack},
    *,
};

fn opened(dir: &Path) -> OwnedFd {
    open(dir, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap()
}

fn unpack(into: &Path, owner: Owner, archive: &[u8]) -> Result<u64, String> {
    let how = Unpack { owner, rename: None };
    how.run(opened(into).as_fd(), archive).map(|written| written.entries).map_err(|error| error.to_string())
}

fn packed(root: &Path, path: &str, follow: bool) -> Vec<u8> {
    let mut out = Vec::new();
    Source::within(opened(root).as_fd(), path, follow).unwrap().pack(&mut out).unwrap();
    out
}

fn names(archive: &[u8]) -> Vec<String> {
    let mut archive = tar::Archive::new(archive);
    let mut names: Vec<String> =
        archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string()).collect();
    names.sort();
    names
}

/// An entry with exactly these bytes for names, which a library would refuse to write.
fn entry(builder: &mut Builder<Vec<u8>>, kind: EntryType, name: &[u8], link: &[u8], content: &[u8]) {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_000_000_000);
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link);
    header.set_cksum();
    builder.append(&header, content).unwrap();
}

fn archive(build: impl FnOnce(&mut Builder<Vec<u8>>)) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    build(&mut builder);
    builder.into_inner().unwrap()
}

#[test]
fn what_is_packed_is_unpacked_as_it_was() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let tree = from.path().join("srv/tree");
    fs::create_dir_all(tree.join("empty")).unwrap();
    fs::create_dir_all(tree.join("x".repeat(120)).join("y".repeat(120))).unwrap();
    let deep = tree.join("x".repeat(120)).join("y".repeat(120)).join("file");
    fs::write(&deep, vec![7; 300_000]).unwrap();
    fs::set_permissions(&deep, fs::Permissions::from_mode(0o4751)).unwrap();
    File::options().write(true).open(&deep).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    symlink("/nowhere/".repeat(20), tree.join("link")).unwrap();
    rustix::fs::mknodat(opened(&tree), "pipe", rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(tree.join("socket")).unwrap();
    fs::set_permissions(tree.join("empty"), fs::Permissions::from_mode(0o500)).unwrap();
    fs::write(tree.join(OsStr::new("new\nline")), "x").unwrap();
    let bytes = packed(from.path(), "/srv/tree/", false);
    let count = unpack(to.path(), Owner::AsArchived, &bytes).unwrap();
    let copy = to.path().join("tree");
    assert_eq!(fs::read(copy.join("x".repeat(120)).join("y".repeat(120)).join("file")).unwrap(), vec![7; 300_000]);
    let told = copy.join("x".repeat(120)).join("y".repeat(120)).join("file").metadata().unwrap();
    assert_eq!((told.mode() & 0o7777, told.mtime()), (0o4751, 0));
    assert_eq!(fs::read_link(copy.join("link")).unwrap(), Path::new(&"/nowhere/".repeat(20)));
    assert!(copy.join("pipe").metadata().unwrap().file_type().is_fifo());
    assert_eq!(copy.join("empty").metadata().unwrap().mode() & 0o777, 0o500);
    assert_eq!(fs::read(copy.join("new\nline")).unwrap(), b"x");
    assert!(!copy.join("socket").exists(), "sockets are left out");
    assert_eq!(count, 8);
    assert_eq!(unpack(to.path(), Owner::Root, &bytes).unwrap(), 8, "what is there is replaced");
    assert_eq!(unpack(to.path(), Owner::Caller, &packed(from.path(), "srv/tree/link", false)).unwrap(), 1);

    // The names that archives begin with.
    assert_eq!(names(&packed(from.path(), "/srv/tree/empty", false)), ["empty"]);
    assert_eq!(names(&packed(from.path(), "/srv/.", false))[0], ".");
    assert!(names(&packed(from.path(), "/", false)).contains(&"srv/tree/link".to_owned()));
    let into = tempfile::tempdir().unwrap();
    let renamed = Unpack { owner: Owner::Root, rename: Some("other".into()) };
    renamed.run(opened(into.path()).as_fd(), bytes.as_slice()).unwrap();
    assert_eq!(fs::read_dir(into.path()).unwrap().count(), 1);
    assert!(into.path().join("other/empty").is_dir());
}

#[test]
fn no_link_and_no_dots_lead_out_of_the_root() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "outside").unwrap();
    let root = outside.path().join("root");
    fs::create_dir_all(root.join("etc")).unwrap();
    fs::write(root.join("etc/passwd"), "inside").unwrap();
    fs::write(root.join("secret"), "decoy").unwrap();
    symlink(outside.path().join("secret"), root.join("absolute")).unwrap();
    symlink("../../../../../../secret", root.join("etc/relative")).unwrap();
    symlink("/etc", root.join("dir")).unwrap();
    symlink("loop", root.join("loop")).unwrap();
    symlink("/proc/self/root", root.join("magic")).unwrap();
    let fd = opened(&root);
    let read = |path: &str| {
        let bytes = packed(&root, path, true);
        let mut text = String::new();
        tar::Archive::new(bytes.as_slice())
            .entries()
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        text
    };
    for path in ["/../../secret", "etc/../../../secret", "etc/relative", "/secret"] {
        assert_eq!(read(path), "decoy", "{path}");
    }
    assert_eq!((read("dir/passwd").as_str(), read("dir/../etc/passwd").as_str()), ("inside", "inside"));
    let fails = |path: &str, follow: bool| Source::within(fd.as_fd(), path, follow).unwrap_err().to_string();
    assert!(fails("absolute", true).contains("there is no"), "it names a path that the container has not");
    assert!(fails("magic/etc/passwd", true).contains("there is no"));
    fails("loop", true);
    assert!(fails("", true).contains("empty"));
    assert!(fails(&"x/".repeat(3000), true).contains("longer than 4096"));
    assert!(fails("a\0b", true).contains("zero byte"));
    assert!(fails("/nothing/here", true).contains("`/nothing/here`"));
    assert!(fails("etc/passwd/more", true).contains("no directory"));
    let link = stat(fd.as_fd(), "absolute", false).unwrap();
    assert_eq!(link.kind, FileKind::Link);
    assert_eq!(link.target.as_deref(), outside.path().join("secret").to_str());
    assert_eq!(stat(fd.as_fd(), "dir/", false).unwrap().kind, FileKind::Directory, "a slash follows");
    assert!(matches!(open_dir(fd.as_fd(), "etc/passwd"), Err(FileError::NotADirectory { .. })));

    let devices = tempfile::tempdir().unwrap();
    rustix::fs::mknodat(
        opened(devices.path()),
        "null",
        rustix::fs::FileType::CharacterDevice,
        Mode::RUSR,
        rustix::fs::makedev(1, 3),
    )
    .unwrap();
    let refused = Source::within(opened(devices.path()).as_fd(), "null", true).unwrap_err();
    assert!(matches!(refused, FileError::Special { .. }), "{refused}");
    assert_eq!(names(&packed(devices.path(), ".", true)), ["."], "in a tree they are left out");
}

#[test]
fn a_process_that_swaps_directories_for_links_gains_nothing() {
    let outside = tempfile::tempdir().unwrap();
    let root = outside.path().join("root");
    fs::create_dir_all(root.join("a/b")).unwrap();
    fs::create_dir_all(outside.path().join("b")).unwrap();
    fs::write(outside.path().join("b/file"), "outside").unwrap();
    fs::write(root.join("a/b/file"), "inside").unwrap();
    symlink("../..", root.join("evil")).unwrap();
    let stop = AtomicBool::new(false);
    let many = archive(|b| entry(b, EntryType::Regular, b"a/b/new", b"", b"written"));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let fd = opened(&root);
            while !stop.load(Ordering::Relaxed) {
                // The directory and the link change places in one step.
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                rustix::fs::renameat_with(&fd, "a", &fd, "evil", flags).unwrap();
            }
        });
        let (mut read, mut written) = (0, 0);
        for _ in 0..3_000 {
            if let Ok(source) = Source::within(opened(&root).as_fd(), "a/b", true) {
                let mut out = Vec::new();
                if source.pack(&mut out).is_ok() {
                    read += 1;
                    assert!(!String::from_utf8_lossy(&out).contains("outside"), "what lies outside was read");
                }
            }
            written += u32::from(unpack(&root, Owner::Root, &many).is_ok());
            assert!(!outside.path().join("b/new").exists(), "something was written outside");
        }
        stop.store(true, Ordering::Relaxed);
        assert!(read > 0 && written > 0, "read {read}, written {written}");
    });
}

#[test]
fn archives_made_to_do_harm_are_refused_and_write_nothing_outside() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("victim"), "safe").unwrap();
    let into = outside.path().join("into");
    let refused = |what: &str, words: &str, build: &dyn Fn(&mut Builder<Vec<u8>>)| {
        fs::create_dir(&into).unwrap();
        let error = unpack(&into, Owner::AsArchived, &archive(build)).unwrap_err();
        assert!(error.contains(words), "{what}: {error}");
        assert_eq!(fs::read_to_string(outside.path().join("victim")).unwrap(), "safe", "{what}");
        assert_eq!(fs::metadata(outside.path().join("victim")).unwrap().nlink(), 1, "{what}");
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 2, "{what}");
        fs::remove_dir_all(&into).unwrap();
    };
    let victim = outside.path().join("victim");
    let victim = victim.to_str().unwrap().as_bytes();
    refused("absolute", "absolute path", &|b| entry(b, EntryType::Regular, victim, b"", b"evil"));
    refused("dots", "leads out", &|b| entry(b, EntryType::Regular, b"../victim", b"", b"evil"));
    refused("dots inside", "leads out", &|b| entry(b, EntryType::Regular, b"a/../../victim", b"", b"evil"));
    refused("a directory outside", "leads out", &|b| entry(b, EntryType::Directory, b"../new/", b"", b""));
    refused("a link, then through it", "goes through a symbolic link", &|b| {
        entry(b, EntryType::Symlink, b"out", b"..", b"");
        entry(b, EntryType::Regular, b"out/victim", b"", b"evil");
    });
    refused("a link, then deep through it", "goes through a symbolic link", &|b| {
        entry(b, EntryType::Symlink, b"out", b"..", b"");
        entry(b, EntryType::Regular, b"out/new/file", b"", b"evil");
    });
    refused("a hard link outside", "leads out", &|b| entry(b, EntryType::Link, b"hard", b"../victim", b""));
    refused("a hard link by a full path", "absolute path", &|b| entry(b, EntryType::Link, b"hard", victim, b""));
    refused("a hard link to a link, then through it", "goes through a symbolic link", &|b| {
        entry(b, EntryType::Symlink, b"soft", b"..", b"");
        entry(b, EntryType::Link, b"hard", b"soft", b"");
        entry(b, EntryType::Regular, b"hard/victim", b"", b"evil");
    });
    refused("a hard link through a link", "not in it", &|b| {
        entry(b, EntryType::Symlink, b"out", b"..", b"");
        entry(b, EntryType::Link, b"hard", b"out/victim", b"");
    });
    refused("a device", "is a device", &|b| entry(b, EntryType::Char, b"null", b"", b""));
    refused("a disk", "is a device", &|b| entry(b, EntryType::Block, b"sda", b"", b""));
    refused("an unknown kind", "unknown kind", &|b| entry(b, EntryType::new(b'Z'), b"x", b"", b""));
    refused("a sparse file whose map does not fit", "map of holes", &|b| {
        entry(b, EntryType::GNUSparse, b"x", b"", b"more than the map says");
    });
    refused("a name without end", "too long", &|b| {
        entry(b, EntryType::GNULongName, b"././@LongLink", b"", &vec![b'x'; 1 << 20]);
    });
    refused("attributes without end", "more than 4 MiB", &|b| {
        entry(b, EntryType::XHeader, b"pax", b"", &vec![b'x'; 5 << 20]);
    });
    refused("damaged attributes", "damaged", &|b| entry(b, EntryType::XHeader, b"pax", b"", b"nonsense\n"));
    refused("attributes that rename", "leads out", &|b| {
        entry(b, EntryType::XHeader, b"pax", b"", b"18 path=../victim\n");
        entry(b, EntryType::Regular, b"harmless", b"", b"evil");
    });
    refused("a size that lies", "ends too early", &|b| {
        entry(b, EntryType::XHeader, b"pax", b"", b"22 size=9000000000000\n");
        entry(b, EntryType::Regular, b"big", b"", b"evil");
    });
    refused("a file for a directory", "cannot be replaced", &|b| {
        entry(b, EntryType::Directory, b"d/", b"", b"");
        entry(b, EntryType::Regular, b"d", b"", b"x");
    });
    refused("a directory for a file", "cannot be replaced", &|b| {
        entry(b, EntryType::Regular, b"d", b"", b"x");
        entry(b, EntryType::Directory, b"d/", b"", b"");
    });
    refused("a file below a file", "no directory", &|b| {
        entry(b, EntryType::Regular, b"d", b"", b"x");
        entry(b, EntryType::Regular, b"d/e", b"", b"x");
    });

    fs::create_dir(&into).unwrap();
    // A link that was there before is replaced, not written through.
    symlink("../victim", into.join("file")).unwrap();
    let plain = archive(|b| entry(b, EntryType::Regular, b"file", b"", b"mine"));
    assert_eq!(unpack(&into, Owner::Root, &plain), Ok(1));
    assert_eq!(fs::read_to_string(outside.path().join("victim")).unwrap(), "safe");
    assert!(fs::symlink_metadata(into.join("file")).unwrap().is_file());
    // Hard links within the archive are made.
    let linked = archive(|b| {
        entry(b, EntryType::Regular, b"one", b"", b"x");
        entry(b, EntryType::Link, b"two", b"one", b"");
        entry(b, EntryType::Link, b"two", b"one", b"");
    });
    assert_eq!(unpack(&into, Owner::Root, &linked), Ok(3));
    assert_eq!(fs::metadata(into.join("one")).unwrap().nlink(), 2);
    for (what, bytes) in [
        ("nothing", Vec::new()),
        ("words", b"this is no archive".repeat(100)),
        ("cut off", plain[..700].to_vec()),
        ("without its end", plain[..1024].to_vec()),
    ] {
        assert!(unpack(&into, Owner::Root, &bytes).is_err(), "{what}");
    }
}

#[test]
fn owners_and_rights_are_those_that_were_asked_for() {
    let archive = archive(|b| {
        let mut header = Header::new_gnu();
        header.set_size(1);
        header.set_mode(0o6755);
        header.set_uid(1234);
        header.set_gid(5678);
        b.append_data(&mut header, "dir/program", &b"x"[..]).unwrap();
    });
    let check = |owner: Owner, expected: (u32, u32, u32)| {
        let into = tempfile::tempdir().unwrap();
        unpack(into.path(), owner, &archive).unwrap();
        let told = into.path().join("dir/program").metadata().unwrap();
        assert_eq!((told.uid(), told.gid(), told.mode() & 0o7777), expected, "{owner:?}");
        let implied = into.path().join("dir").metadata().unwrap();
        assert_eq!((implied.uid(), implied.mode() & 0o7777), (0, 0o755));
    };
    check(Owner::AsArchived, (1234, 5678, 0o6755));
    check(Owner::Root, (0, 0, 0o6755));
    check(Owner::Caller, (0, 0, 0o755));
}

#[test]
fn a_file_that_shrinks_or_grows_meanwhile_leaves_a_whole_archive() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    fs::write(&path, vec![1; 200_000]).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let file = File::options().write(true).open(&path).unwrap();
            for size in [10, 500_000, 0, 200_000].into_iter().cycle() {
                file.set_len(size).unwrap();
                if stop.load(Ordering::Relaxed) {
                    return;
                }
            }
        });
        for _ in 0..200 {
            let bytes = packed(dir.path(), "file", false);
            let mut read = tar::Archive::new(bytes.as_slice());
            let mut entry = read.entries().unwrap().next().unwrap().unwrap();
            let stated = entry.size();
            assert_eq!(std::io::copy(&mut entry, &mut std::io::sink()).unwrap(), stated);
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn hostile_archives_write_nothing_outside() {
    for owner in [Owner::AsArchived, Owner::Root, Owner::Caller] {
        attack(Door::Files, |archive, root| unpack(root, owner, archive).map(drop));
    }
}
