use std::{
    fs,
    io::Write,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use super::*;
use crate::agent::tree::hostile::{Door, attack};

/// A directory of its own for each test.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("toft-layer-{}", uuid::Uuid::new_v4()));
        fs::create_dir_all(path.join("root")).unwrap();
        fs::write(path.join("outside"), "untouched").unwrap();
        Self(path)
    }

    fn root(&self) -> PathBuf {
        self.0.join("root")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

/// An archive, entry by entry.
struct Layer(Builder<Vec<u8>>);

impl Layer {
    fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    /// The name is written as it is, also where the library would refuse it.
    fn add(mut self, kind: EntryType, name: &str, mode: u32, link: &str, contents: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(1000);
        header.set_gid(1001);
        header.set_mtime(1_600_000_000);
        header.set_size(contents.len() as u64);
        header.set_cksum();
        self.0.append(&header, contents).unwrap();
        self
    }

    fn file(self, name: &str, contents: &str) -> Self {
        self.add(EntryType::Regular, name, 0o644, "", contents.as_bytes())
    }

    fn directory(self, name: &str, mode: u32) -> Self {
        self.add(EntryType::Directory, name, mode, "", b"")
    }

    fn symlink(self, name: &str, target: &str) -> Self {
        self.add(EntryType::Symlink, name, 0o777, target, b"")
    }

    fn link(self, name: &str, target: &str) -> Self {
        self.add(EntryType::Link, name, 0o644, target, b"")
    }

    fn records(mut self, records: &[(&str, &[u8])]) -> Self {
        self.0.append_pax_extensions(records.iter().copied()).unwrap();
        self
    }

    fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// Gives a layer in small pieces, as a network does.
fn unpack(bytes: &[u8], root: &Path, place: Place) -> Result<Extracted, Fault> {
    give(bytes, true, root, place)
}

fn give(bytes: &[u8], whole: bool, root: &Path, place: Place) -> Result<Extracted, Fault> {
    let (feed, incoming) = incoming();
    let bytes = bytes.to_vec();
    let giver = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async move {
            for piece in bytes.chunks(1000) {
                if !feed.give(Bytes::copy_from_slice(piece)).await {
                    return;
                }
            }
            if whole {
                feed.end().await;
            }
        });
    });
    let extracted = extract(incoming, root, place);
    giver.join().unwrap();
    extracted
}

fn reason(fault: Result<Extracted, Fault>) -> String {
    match fault {
        Err(Fault::Layer(reason)) => reason,
        other => panic!("{other:?}"),
    }
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

fn attribute(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 1024];
    let length = rustix::fs::lgetxattr(path, name, &mut value[..]).ok()?;
    value.truncate(length);
    Some(value)
}

#[test]
fn files_are_what_the_layer_says() {
    let scratch = Scratch::new();
    let (root, capability) = (scratch.root(), [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let layer = Layer::new()
        .directory("./", 0o711)
        .directory("etc/", 0o750)
        .file("etc/hosts", "127.0.0.1 localhost\n")
        .add(EntryType::Regular, "etc/su", 0o4755, "", b"su")
        .symlink("etc/mtab", "/proc/mounts")
        .link("etc/same", "etc/hosts")
        .add(EntryType::Fifo, "etc/pipe", 0o600, "", b"")
        .records(&[("SCHILY.xattr.security.capability", &capability[..]), ("mtime", b"1600000000.25")])
        .file("ping", "#!")
        .records(&[("SCHILY.xattr.trusted.overlay.redirect", b"/elsewhere")])
        .file("plain", "")
        .bytes();
    let extracted = unpack(&layer, &root, Place::Lowest).unwrap();
    assert_eq!(extracted.diff_id, digest(&layer));
    let look = |name: &str| fs::symlink_metadata(root.join(name)).unwrap();
    assert_eq!(fs::read_to_string(root.join("etc/hosts")).unwrap(), "127.0.0.1 localhost\n");
    assert_eq!(look("etc/hosts").ino(), look("etc/same").ino());
    assert_eq!((look("etc").mode() & 0o7777, look("etc").uid(), look("etc").gid()), (0o750, 1000, 1001));
    assert_eq!(look("etc").mtime(), 1_600_000_000, "although files were written into it");
    assert_eq!(look("etc/su").mode() & 0o7777, 0o4755, "the owner is set before the rights");
    assert_eq!(fs::read_link(root.join("etc/mtab")).unwrap(), Path::new("/proc/mounts"));
    assert_eq!(look("etc/mtab").uid(), 1000);
    assert!(look("etc/pipe").file_type().is_fifo());
    assert_eq!((look("ping").mtime(), look("ping").mtime_nsec()), (1_600_000_000, 250_000_000));
    assert_eq!(attribute(&root.join("ping"), "security.capability").unwrap(), capability);
    assert_eq!(attribute(&root.join("plain"), "trusted.overlay.redirect"), None, "not an image's business");
    assert_eq!(look("").mode() & 0o7777, 0o711);
}

#[test]
fn what_a_writer_leaves_out_is_zero() {
    let scratch = Scratch::new();
    let mut header = Header::new_ustar();
    header.set_path("a").unwrap();
    header.set_size(0);
    header.set_cksum();
    let mut builder = Builder::new(Vec::new());
    builder.append(&header, &b""[..]).unwrap();
    unpack(&builder.into_inner().unwrap(), &scratch.root(), Place::Lowest).unwrap();
    let there = fs::metadata(scratch.root().join("a")).unwrap();
    assert_eq!((there.uid(), there.gid(), there.mode() & 0o7777, there.mtime()), (0, 0, 0, 0));
}

#[test]
fn every_compression_gives_the_same_files() {
    let plain = Layer::new().file("a", &"toft ".repeat(100_000)).bytes();
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let (first, second) = plain.split_at(plain.len() / 2);
    let members = [gzip(first), gzip(second)].concat();
    let zstd = zstd::encode_all(&plain[..], 1).unwrap();
    let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3][..], &zstd].concat();
    for packed in [plain.clone(), gzip(&plain), members, zstd, skippable] {
        let scratch = Scratch::new();
        let extracted = unpack(&packed, &scratch.root(), Place::Lowest).unwrap();
        assert_eq!(extracted.diff_id, digest(&plain));
        assert_eq!(fs::read(scratch.root().join("a")).unwrap().len(), 500_000);
    }
}

#[test]
fn what_follows_the_last_file_belongs_to_the_digest() {
    let scratch = Scratch::new();
    let layer = [Layer::new().file("a", "1").bytes(), vec![0; 9000], b"more".to_vec()].concat();
    assert_eq!(unpack(&layer, &scratch.root(), Place::Lowest).unwrap().diff_id, digest(&layer));
}

#[test]
fn nothing_leaves_the_root() {
    let outside = "leads out of the root";
    for (layer, expected) in [
        (Layer::new().file("../outside", "stolen"), outside),
        (Layer::new().file("a/../../outside", "stolen"), outside),
        (Layer::new().link("a", "../outside"), outside),
        (Layer::new().file("../.wh.outside", ""), outside),
        (Layer::new().link("a", "outside"), "not in it"),
        (Layer::new().symlink("up", "..").link("a", "up/outside"), "not in it"),
        (Layer::new().file("a/.wh...", ""), "hides nothing"),
        (Layer::new().file("a/.wh.", ""), "hides nothing"),
        (Layer::new().file("a", "").file("a/b", ""), "a"),
        (Layer::new().symlink("a", "b").symlink("b", "a").file("a/c", ""), "a"),
        (Layer::new().symlink(".", "/etc"), "place of the root"),
        (Layer::new().add(EntryType::new(b'Z'), "a", 0, "", b""), "unknown kind"),
    ] {
        let scratch = Scratch::new();
        let reason = reason(unpack(&layer.bytes(), &scratch.root(), Place::Above));
        assert!(reason.contains(expected), "{reason}");
        assert_eq!(fs::read_to_string(scratch.0.join("outside")).unwrap(), "untouched");
    }
    // Links that point out of the image are followed inside it.
    let scratch = Scratch::new();
    let root = scratch.root();
    let target = scratch.0.to_str().unwrap();
    assert!(target.len() < 90);
    let layer = Layer::new()
        .symlink("absolute", target)
        .file("absolute/outside", "inside")
        .symlink("relative", "../../../../..")
        .file("relative/here", "inside")
        .symlink("outside", &format!("{target}/outside"))
        .file("outside", "replaces the link")
        .symlink("place", "/")
        .directory("place/", 0o755)
        .file("place/below", "in a directory that replaced a link");
    let extracted = unpack(&layer.bytes(), &root, Place::Lowest).unwrap();
    assert_eq!(fs::read_to_string(scratch.0.join("outside")).unwrap(), "untouched");
    assert_eq!(fs::read_to_string(root.join(&target[1..]).join("outside")).unwrap(), "inside");
    assert!(extracted.implied.contains(Path::new(&target[1..])), "{extracted:?}");
    assert_eq!(fs::read_to_string(root.join("here")).unwrap(), "inside");
    assert_eq!(fs::read_to_string(root.join("outside")).unwrap(), "replaces the link");
    assert_eq!(fs::read_to_string(root.join("place/below")).unwrap(), "in a directory that replaced a link");
}

#[test]
fn later_entries_replace_earlier_ones() {
    let scratch = Scratch::new();
    let root = scratch.root();
    let layer = Layer::new()
        .file("tree/deep/file", "1")
        .file("tree", "a file now")
        .file("file", "1")
        .directory("file", 0o755)
        .file("file/in", "2")
        .directory("kept", 0o700)
        .file("kept/in", "3")
        .directory("kept", 0o755)
        .file("self", "4")
        .link("self", "self");
    let extracted = unpack(&layer.bytes(), &root, Place::Lowest).unwrap();
    assert_eq!(fs::read_to_string(root.join("tree")).unwrap(), "a file now");
    assert_eq!(fs::read_to_string(root.join("file/in")).unwrap(), "2");
    assert_eq!(fs::read_to_string(root.join("kept/in")).unwrap(), "3");
    assert_eq!(fs::metadata(root.join("kept")).unwrap().permissions().mode() & 0o777, 0o755);
    assert_eq!(fs::read_to_string(root.join("self")).unwrap(), "4");
    assert!(extracted.implied.is_empty(), "{extracted:?}");
}

#[test]
fn broken_layers_are_told_from_those_that_were_cut_off() {
    let scratch = Scratch::new();
    let layer = Layer::new().file("a", &"x".repeat(5000)).bytes();
    assert!(matches!(give(&layer[..3000], false, &scratch.root(), Place::Lowest), Err(Fault::CutOff)));
    assert!(matches!(give(&layer[..100], false, &scratch.root(), Place::Lowest), Err(Fault::CutOff)));
    assert!(matches!(give(&[], false, &scratch.root(), Place::Lowest), Err(Fault::CutOff)));
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&layer).unwrap();
    let mut gzip = gzip.finish().unwrap();
    gzip[20] ^= 0xff;
    for broken in [&layer[..3000], &gzip, &b"no archive at all".repeat(100), &[0x1f, 0x8b, 1]] {
        let reason = reason(unpack(broken, &Scratch::new().root(), Place::Lowest));
        assert!(reason.contains("cannot be read"), "{reason}");
    }
    // An empty layer is one without files.
    assert_eq!(unpack(&[], &scratch.root(), Place::Lowest).unwrap().diff_id, digest(&[]));
}

#[test]
fn what_is_said_about_a_file_is_bounded() {
    let scratch = Scratch::new();
    let long = vec![b'x'; 6 << 20];
    let layer = Layer::new().records(&[("comment", &long)]).file("a", "").bytes();
    let reason = reason(unpack(&layer, &scratch.root(), Place::Lowest));
    assert!(reason.contains("more than 4 MiB"), "{reason}");
    // Any number of files may say a little.
    let long = vec![b'x'; 1 << 20];
    let layer = (0..8).fold(Layer::new(), |layer, number| {
        layer.records(&[("comment", &long)]).file(&format!("a{number}"), &"y".repeat(100_000))
    });
    unpack(&layer.bytes(), &scratch.root(), Place::Lowest).unwrap();
}

/// What overlayfs shows of layers, unpacked and put on each other as the node does.
fn overlay(scratch: &Scratch, layers: Vec<Layer>, look: impl FnOnce(&Path)) {
    let mut lower: Vec<PathBuf> = Vec::new();
    for (number, layer) in layers.into_iter().enumerate() {
        let alone = scratch.0.join(format!("alone{number}"));
        fs::create_dir(&alone).unwrap();
        let place = if number == 0 { Place::Lowest } else { Place::Above };
        let extracted = unpack(&layer.bytes(), &alone, place).unwrap();
        if number == 0 {
            lower.push(alone);
            continue;
        }
        let upper = scratch.0.join(format!("upper{number}"));
        fs::create_dir(&upper).unwrap();
        merge(&extracted, &alone, &upper, &lower).unwrap();
        assert_eq!(fs::read_dir(&alone).unwrap().count(), 0);
        lower.insert(0, upper);
    }
    let shown = scratch.0.join("shown");
    fs::create_dir(&shown).unwrap();
    let lower: Vec<_> = lower.iter().map(|path| path.to_str().unwrap()).collect();
    let options = format!("lowerdir={}", lower.join(":"));
    let flags = nix::mount::MsFlags::MS_RDONLY;
    nix::mount::mount(Some("overlay"), &shown, Some("overlay"), flags, Some(options.as_str())).unwrap();
    let looked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| look(&shown)));
    nix::mount::umount(&shown).unwrap();
    if let Err(panic) = looked {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn layers_on_each_other_hide_and_keep_what_they_say() {
    let lowest = Layer::new()
        .file(".wh.nothing", "")
        .directory("etc", 0o750)
        .records(&[("SCHILY.xattr.user.note", b"below")])
        .directory("etc/deep", 0o701)
        .file("etc/deep/kept", "1")
        .file("etc/gone", "1")
        .directory("cache", 0o755)
        .file("cache/old", "1")
        .directory("again", 0o755)
        .file("again/old", "1")
        .directory("own", 0o755)
        .file("own/old", "1")
        .file("turned", "a file");
    let above = Layer::new()
        .file("etc/deep/new", "2")
        .file("etc/.wh.gone", "")
        .file("cache/.wh..wh..opq", "")
        .file("cache/new", "2")
        .file(".wh.again", "")
        .directory("again", 0o755)
        .file("again/new", "2")
        .directory("own", 0o755)
        .file("own/new", "2")
        .file(".wh.own", "")
        .file(".wh..wh.plnk", "")
        .file("turned/into", "a directory");
    let top =
        Layer::new().directory(".", 0o711).file("etc/deep/top", "3").file("cache/top", "3").file("turned/top", "3");
    let scratch = Scratch::new();
    overlay(&scratch, vec![lowest, above, top], |shown| {
        let names = |path: &str| {
            let mut names: Vec<_> = fs::read_dir(shown.join(path))
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        };
        assert_eq!(names(""), ["again", "cache", "etc", "own", "turned"]);
        assert_eq!(names("etc"), ["deep"]);
        assert_eq!(names("etc/deep"), ["kept", "new", "top"]);
        assert_eq!(names("cache"), ["new", "top"]);
        assert_eq!(names("again"), ["new"]);
        assert_eq!(names("own"), ["new"]);
        assert_eq!(names("turned"), ["into", "top"]);
        // Directories that the layers above only pass through look as before.
        let look = |path: &str| fs::metadata(shown.join(path)).unwrap();
        assert_eq!((look("etc").mode() & 0o7777, look("etc").uid()), (0o750, 1000));
        assert_eq!((look("etc/deep").mode() & 0o7777, look("etc/deep").uid()), (0o701, 1000));
        assert_eq!(look("etc/deep").mtime(), 1_600_000_000);
        assert_eq!(look("").mode() & 0o7777, 0o711);
        assert_eq!(attribute(&shown.join("etc"), "user.note"), attribute(&scratch.0.join("alone0/etc"), "user.note"));
    });
}

#[test]
fn a_layer_may_hide_all_that_is_below_it() {
    let scratch = Scratch::new();
    let layers = vec![
        Layer::new().file("old", "1").file("both/old", "1").file("file", "1"),
        Layer::new().file("second", "1").file(".wh.file", ""),
        Layer::new().file("both/new", "2").file(".wh..wh..opq", "").file("new", "2"),
    ];
    overlay(&scratch, layers, |shown| {
        let mut names: Vec<_> = fs::read_dir(shown).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["both", "new"]);
        assert_eq!(fs::read_dir(shown.join("both")).unwrap().count(), 1);
    });
}

#[test]
fn hostile_archives_write_nothing_outside() {
    for place in [Place::Lowest, Place::Above] {
        attack(Door::Layer, |archive, root| {
            unpack(archive, root, place).map(drop).map_err(|fault| format!("{fault:?}"))
        });
    }
}
