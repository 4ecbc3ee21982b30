use std::{
    fs::{self, File},
    io::Write,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink},
    },
    path::Path,
    process::{Command, Stdio},
};

use rustix::fs::{Mode, OFlags, XattrFlags};
use tar::EntryType;

use super::*;

const EVERYTHING: Policy = Policy {
    links: Links::Refused,
    existing: Existing::FilesReplaced,
    parents: Parents::Made,
    devices: Devices::Refused,
    owner: Owner::AsArchived,
    attributes: |_| Attribute::Kept,
    zeros: Zeros::Written,
};

fn opened(dir: &Path) -> OwnedFd {
    rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap()
}

fn unpack(archive: &[u8], into: &Path, policy: Policy) -> Result<(), Fault> {
    let mut tree = Tree::new(opened(into).as_fd(), policy)?;
    let mut members = Members::new(archive);
    while let Some(member) = members.next_member()? {
        let path = strict(&member.name)?;
        let target = (member.kind == EntryType::Link).then(|| strict(&member.link)).transpose()?;
        match path.as_os_str().is_empty() {
            true => tree.describe_root(&member)?,
            false => drop(tree.add(&path, target.as_deref(), &member, &mut members)?),
        }
    }
    tree.finish().map(drop)
}

fn packed(dir: &Path, sparse: bool) -> Vec<u8> {
    let mut packer = Packer::new(Vec::new(), Packing { mounts: Mounts::Entered, sparse });
    packer.add(&opened(dir), b".").unwrap();
    packer.finish().unwrap()
}

fn attribute(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = Vec::with_capacity(70_000);
    rustix::fs::lgetxattr(path, name, rustix::buffer::spare_capacity(&mut value)).ok().map(|_| value)
}

fn set(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::setxattr(path, name, value, XattrFlags::empty()).unwrap();
}

/// 6 MiB with data in the middle and at the end, and a hole at the end of another.
fn holes(dir: &Path) {
    let file = File::create(dir.join("holes")).unwrap();
    file.write_all_at(&[7; 5000], 1 << 20).unwrap();
    file.write_all_at(b"end", (6 << 20) - 3).unwrap();
    let file = File::create(dir.join("open end")).unwrap();
    file.write_all_at(b"begin", 0).unwrap();
    file.set_len(5 << 20).unwrap();
    File::create(dir.join("only a hole")).unwrap().set_len(3 << 20).unwrap();
}

fn assert_holes(from: &Path, to: &Path) {
    for name in ["holes", "open end", "only a hole"] {
        assert!(fs::read(from.join(name)).unwrap() == fs::read(to.join(name)).unwrap(), "{name}");
        let blocks = fs::metadata(to.join(name)).unwrap().blocks();
        assert!(blocks * 512 < 200_000, "{name}: {blocks} blocks");
    }
}

#[test]
fn attributes_capabilities_and_lists_come_back_and_nothing_is_inherited() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let at = |name: &str| from.path().join(name);
    fs::create_dir(at("dir")).unwrap();
    fs::write(at("dir/file"), "x").unwrap();
    fs::write(at("ping"), "x").unwrap();
    // A value may hold anything, ends of lines too.
    set(&at("dir/file"), "user.note", b"a\0b\n12 path=no\n=\xff");
    set(&at("dir/file"), "user.empty", b"");
    set(&at("dir"), "user.big", &vec![b'\n'; 3000]);
    // Capabilities whose numbers hold the end of a line.
    let capability = [1, 0, 0, 2, 10, 4, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    set(&at("ping"), "security.capability", &capability);
    // Version 2; the owner, user 7, the group, the mask, others.
    let entry =
        |tag: u16, rights: u16, id: u32| [&tag.to_le_bytes()[..], &rights.to_le_bytes(), &id.to_le_bytes()].concat();
    let list = [
        2u32.to_le_bytes().to_vec(),
        entry(1, 7, u32::MAX),
        entry(2, 5, 7),
        entry(4, 5, u32::MAX),
        entry(16, 5, u32::MAX),
        entry(32, 0, u32::MAX),
    ]
    .concat();
    set(&at("dir"), "system.posix_acl_default", &list);
    set(&at("dir"), "system.posix_acl_access", &list);
    fs::set_permissions(at("dir/file"), fs::Permissions::from_mode(0o640)).unwrap();
    let archive = packed(from.path(), true);
    unpack(&archive, to.path(), EVERYTHING).unwrap();
    let there = |name: &str| to.path().join(name);
    assert_eq!(attribute(&there("dir/file"), "user.note").unwrap(), b"a\0b\n12 path=no\n=\xff");
    assert_eq!(attribute(&there("dir/file"), "user.empty").unwrap(), b"");
    assert_eq!(attribute(&there("dir"), "user.big").unwrap().len(), 3000);
    assert_eq!(attribute(&there("ping"), "security.capability").unwrap(), capability);
    assert_eq!(attribute(&there("dir"), "system.posix_acl_default").unwrap(), list);
    assert_eq!(attribute(&there("dir"), "system.posix_acl_access").unwrap(), list);
    assert_eq!(attribute(&there("dir/file"), "system.posix_acl_access"), None, "it was there before the directory's");
    assert_eq!(fs::metadata(there("dir/file")).unwrap().mode() & 0o7777, 0o640);
    // What a policy does not want.
    let other = tempfile::tempdir().unwrap();
    unpack(&archive, other.path(), Policy { attributes: |_| Attribute::LeftOut, ..EVERYTHING }).unwrap();
    assert_eq!(attribute(&other.path().join("dir/file"), "user.note"), None);
    let refused = unpack(&archive, other.path(), Policy { attributes: |_| Attribute::Refused, ..EVERYTHING });
    assert!(matches!(refused, Err(Fault::Refused { why: Why::Attribute(_), .. })), "{refused:?}");
}

#[test]
fn names_of_one_file_stay_names_of_one_file() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let at = |name: &str| from.path().join(name);
    let long = format!("{}/{}", "d".repeat(150), "e".repeat(150));
    fs::create_dir(at(&"d".repeat(150))).unwrap();
    fs::write(at(&long), vec![7; 100_000]).unwrap();
    for name in ["a", "b"] {
        fs::hard_link(at(&long), at(name)).unwrap();
    }
    symlink("a", at("soft")).unwrap();
    rustix::fs::linkat(opened(from.path()), "soft", opened(from.path()), "soft too", rustix::fs::AtFlags::empty())
        .unwrap();
    // One whose other name lies outside stays alone.
    let outside = tempfile::tempdir_in(from.path().parent().unwrap()).unwrap();
    fs::write(at("shared"), "x").unwrap();
    fs::hard_link(at("shared"), outside.path().join("other")).unwrap();
    let archive = packed(from.path(), true);
    assert!(archive.len() < 150_000, "the content is there once: {} bytes", archive.len());
    unpack(&archive, to.path(), EVERYTHING).unwrap();
    let told = |name: &str| fs::symlink_metadata(to.path().join(name)).unwrap();
    assert_eq!((told("a").ino(), told("a").ino()), (told("b").ino(), told(&long).ino()));
    assert_eq!((told("a").nlink(), told("shared").nlink()), (3, 1));
    assert_eq!((told("soft").ino(), told("soft").nlink()), (told("soft too").ino(), 2));
    // Once more over what is there.
    unpack(&archive, to.path(), EVERYTHING).unwrap();
    assert_eq!((told("a").ino(), told("a").nlink()), (told(&long).ino(), 3));
}

#[test]
fn holes_stay_holes_and_cost_nothing() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    holes(from.path());
    let archive = packed(from.path(), true);
    assert!(archive.len() < 100_000, "{} bytes", archive.len());
    unpack(&archive, to.path(), EVERYTHING).unwrap();
    assert_holes(from.path(), to.path());
    // Written as zeros, they come back as holes on demand.
    let zeros = packed(from.path(), false);
    assert!(zeros.len() > 14 << 20);
    unpack(&zeros, to.path(), Policy { zeros: Zeros::Holes, ..EVERYTHING }).unwrap();
    assert_holes(from.path(), to.path());
}

#[test]
fn archives_of_gnu_tar_are_read_and_ours_by_it() {
    let from = tempfile::tempdir().unwrap();
    holes(from.path());
    set(&from.path().join("holes"), "user.note", b"kept");
    fs::hard_link(from.path().join("holes"), from.path().join("same")).unwrap();
    fs::write(from.path().join("n".repeat(200)), "long").unwrap();
    // Many stretches, so that a map goes on.
    let many = File::create(from.path().join("many")).unwrap();
    for i in 0..300 {
        many.write_all_at(&[i as u8; 4096], i * 65536).unwrap();
    }
    let tar = |flags: &[&str]| {
        let mut tar = Command::new("tar");
        tar.arg("-C").arg(from.path()).args(flags);
        tar
    };
    for flags in [
        &["-cS", "--format=gnu", "."][..],
        &["-cS", "--format=pax", "--xattrs", "."],
        &["-cS", "--format=pax", "--xattrs", "--sparse-version=0.1", "."],
        &["-cS", "--format=pax", "--xattrs", "--sparse-version=0.0", "."],
    ] {
        let made = tar(flags).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let to = tempfile::tempdir().unwrap();
        unpack(&made.stdout, to.path(), EVERYTHING).unwrap_or_else(|fault| panic!("{flags:?}: {fault}"));
        assert_holes(from.path(), to.path());
        for name in ["many", &"n".repeat(200)] {
            assert!(fs::read(from.path().join(name)).unwrap() == fs::read(to.path().join(name)).unwrap(), "{flags:?}");
        }
        if flags[1] == "--format=pax" {
            assert_eq!(attribute(&to.path().join("holes"), "user.note").unwrap(), b"kept");
        }
    }
    let to = tempfile::tempdir().unwrap();
    let mut child = Command::new("tar");
    let mut child = child.args(["--xattrs", "-x", "-C"]).arg(to.path()).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&packed(from.path(), true)).unwrap();
    assert!(child.wait().unwrap().success());
    assert_holes(from.path(), to.path());
    assert_eq!(attribute(&to.path().join("holes"), "user.note").unwrap(), b"kept");
    assert_eq!(fs::metadata(to.path().join("same")).unwrap().nlink(), 2);
    assert!(fs::read(from.path().join("many")).unwrap() == fs::read(to.path().join("many")).unwrap());
}

#[test]
fn trees_may_be_deeper_than_there_are_descriptors() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let deep = from.path().join(["d"; 400].join("/"));
    fs::create_dir_all(&deep).unwrap();
    for name in ["one", "two"] {
        fs::create_dir(deep.join(name)).unwrap();
        fs::write(deep.join(name).join("file"), name).unwrap();
    }
    fs::write(from.path().join("d/d/beside"), "x").unwrap();
    unpack(&packed(from.path(), true), to.path(), EVERYTHING).unwrap();
    let copy = to.path().join(["d"; 400].join("/"));
    for name in ["one", "two"] {
        assert_eq!(fs::read_to_string(copy.join(name).join("file")).unwrap(), name);
    }
    assert!(to.path().join("d/d/beside").exists());
}

#[test]
fn times_are_kept_to_the_nanosecond_also_before_1970() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let times = [(0, 0), (1, 5), (-1, 0), (-1, 999_999_999), (-5, 123_456_789), (4_000_000_000, 1)];
    for (i, (tv_sec, tv_nsec)) in times.iter().enumerate() {
        let path = from.path().join(i.to_string());
        fs::write(&path, "").unwrap();
        let time = rustix::fs::Timespec { tv_sec: *tv_sec, tv_nsec: *tv_nsec };
        let both = rustix::fs::Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(rustix::fs::CWD, &path, &both, rustix::fs::AtFlags::empty()).unwrap();
    }
    unpack(&packed(from.path(), true), to.path(), EVERYTHING).unwrap();
    for (i, wanted) in times.into_iter().enumerate() {
        let told = fs::metadata(to.path().join(i.to_string())).unwrap();
        assert_eq!((told.mtime(), told.mtime_nsec()), wanted);
    }
}
