//! Archives made to do harm, for everyone who unpacks.

use std::{
    fs,
    os::unix::fs::{MetadataExt, symlink},
    path::Path,
};

use tar::{Builder, EntryType, Header};

/// Who unpacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::agent) enum Door {
    Layer,
    Files,
    Volume,
}

/// What must come of it; in any case nothing outside the root is read, made or changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Refused,
    Taken,
}

use Door::{Files, Layer, Volume};
use EntryType::{Block, Char, Directory, Fifo, GNULongLink, GNULongName, GNUSparse, Link, Regular, Symlink, XHeader};

type Entries = Vec<(EntryType, Vec<u8>, Vec<u8>, Vec<u8>)>;

/// An entry with exactly these bytes for names, which a library would refuse to write.
fn put(builder: &mut Builder<Vec<u8>>, kind: EntryType, name: &[u8], link: &[u8], content: &[u8]) {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(content.len() as u64);
    header.set_mode(0o6777);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_000_000_000);
    let fill = |field: &mut [u8; 100], bytes: &[u8]| {
        field[..bytes.len().min(100)].copy_from_slice(&bytes[..bytes.len().min(100)])
    };
    fill(&mut header.as_old_mut().name, name);
    fill(&mut header.as_old_mut().linkname, link);
    header.set_cksum();
    builder.append(&header, content).unwrap();
}

/// One entry; a `~` in a name stands for the root as the door calls it.
fn e(kind: EntryType, name: &str, link: &str, content: &[u8]) -> (EntryType, Vec<u8>, Vec<u8>, Vec<u8>) {
    (kind, name.into(), link.into(), content.to_vec())
}

fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let length = (1..8).map(|digits| rest + digits).find(|all| all.to_string().len() + rest == *all).unwrap();
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

fn cases(outside: &str) -> Vec<(&'static str, &'static [Door], Entries)> {
    let file = |name: &str| e(Regular, name, "", b"evil");
    let dir = |name: &str| e(Directory, name, "", b"");
    let link = |name: &str, to: &str| e(Symlink, name, to, b"");
    let hard = |name: &str, to: &str| e(Link, name, to, b"");
    let victim = format!("{outside}/victim");
    let all: &'static [Door] = &[Layer, Files, Volume];
    let strict: &'static [Door] = &[Files, Volume];
    vec![
        // Who is named refuses it; the others take it.
        ("dots", all, vec![file("~../victim")]),
        ("dots inside", all, vec![dir("~a"), file("~a/../../victim")]),
        ("many dots", all, vec![file(&format!("~{}victim", "../".repeat(20)))]),
        ("a directory outside", all, vec![dir("~../new/")]),
        ("an absolute path", strict, vec![file(&victim)]),
        ("the root as a file", &[Layer, Volume], vec![file("~.")]),
        ("the root as a link", &[Layer, Volume], vec![link("~.", outside)]),
        ("through a link", strict, vec![link("~out", outside), file("~out/victim")]),
        ("through a relative link", strict, vec![link("~out", "../outside"), file("~out/victim")]),
        ("deep through a link", strict, vec![link("~out", outside), file("~out/new/file")]),
        ("a directory through a link", strict, vec![link("~out", outside), dir("~out/new")]),
        ("a pipe through a link", strict, vec![link("~out", outside), e(Fifo, "~out/pipe", "", b"")]),
        ("a link through a link", strict, vec![link("~out", outside), link("~out/more", "victim")]),
        ("through two links", strict, vec![link("~b", outside), link("~a", "b"), file("~a/victim")]),
        ("links in a circle", all, vec![link("~a", "b"), link("~b", "a"), file("~a/x")]),
        ("through the root of the process", strict, vec![link("~p", "/proc/self/root"), file(&format!("~p{victim}"))]),
        ("a link, then a file", &[Volume], vec![link("~file", &victim), file("~file")]),
        ("a link, then a directory", strict, vec![link("~out", outside), dir("~out"), file("~out/victim")]),
        ("a directory, then a link", strict, vec![dir("~out"), link("~out", outside), file("~out/victim")]),
        ("a full directory, then a link", strict, vec![file("~out/x"), link("~out", outside), file("~out/victim")]),
        ("a hard link outside", all, vec![hard("~hard", "~../outside/victim")]),
        ("a hard link by a full path", all, vec![hard("~hard", &victim), file("~hard")]),
        ("a hard link through a link", all, vec![link("~out", outside), hard("~hard", "~out/victim")]),
        ("a hard link to a link", &[Volume], vec![link("~soft", &victim), hard("~hard", "~soft"), file("~hard")]),
        ("through a hard link to a link", strict, vec![link("~s", outside), hard("~h", "~s"), file("~h/victim")]),
        ("a hard link to the root", all, vec![hard("~hard", "~.")]),
        ("a hard link to a directory", all, vec![dir("~d"), hard("~hard", "~d")]),
        ("a hard link to nothing", all, vec![hard("~hard", "")]),
        ("a hard link to itself", all, vec![hard("~hard", "~hard")]),
        ("a link to nothing", all, vec![link("~link", "")]),
        ("a character device", strict, vec![e(Char, "~null", "", b"")]),
        ("a block device", strict, vec![e(Block, "~sda", "", b"")]),
        ("an unknown kind", all, vec![e(EntryType::new(b'Z'), "~x", "", b"")]),
        ("a name twice", &[Volume], vec![file("~x"), file("~x")]),
        ("a directory twice", &[Volume], vec![dir("~x"), dir("~x")]),
        ("a file over a directory", strict, vec![dir("~d"), file("~d")]),
        ("a file over a full directory", strict, vec![dir("~d"), file("~d/x"), file("~d")]),
        ("a directory over a file", strict, vec![file("~d"), dir("~d")]),
        ("a pipe over a file", &[Volume], vec![file("~p"), e(Fifo, "~p", "", b"")]),
        ("a file below a file", all, vec![file("~d"), file("~d/e")]),
        ("a file below a pipe", all, vec![e(Fifo, "~p", "", b""), file("~p/e")]),
        ("a name without end", all, vec![e(GNULongName, "././@LongLink", "", &vec![b'x'; 1 << 20]), file("~x")]),
        ("a link without end", all, vec![e(GNULongLink, "././@LongLink", "", &vec![b'x'; 1 << 20]), link("~x", "")]),
        ("a part of a name without end", all, vec![e(GNULongName, "l", "", &vec![b'x'; 300]), file("~x")]),
        ("long names without end", all, {
            let mut many: Entries = (0..1100).map(|_| e(GNULongName, "l", "", &vec![b'x'; 4000])).collect();
            many.push(file("~x"));
            many
        }),
        ("attributes without end", all, vec![e(XHeader, "pax", "", &vec![b'x'; 5 << 20]), file("~x")]),
        ("attributes that are none", all, vec![e(XHeader, "pax", "", b"nonsense\n"), file("~x")]),
        (
            "two lists of attributes",
            all,
            vec![
                e(XHeader, "pax", "", &record("mtime", b"1")),
                e(XHeader, "pax", "", &record("mtime", b"1")),
                file("~x"),
            ],
        ),
        ("a name among the attributes", all, vec![e(XHeader, "pax", "", &record("path", b"../victim")), file("~x")]),
        ("a zero in a name", all, vec![e(XHeader, "pax", "", &record("path", b"a\0b")), file("~x")]),
        ("a size that lies", all, vec![e(XHeader, "pax", "", &record("size", b"9000000000000")), file("~big")]),
        ("a size that cannot be", all, vec![e(XHeader, "pax", "", &record("size", b"-1")), file("~x")]),
        ("an owner that cannot be", all, vec![e(XHeader, "pax", "", &record("uid", b"4294967295")), file("~x")]),
        ("holes without a map", all, vec![e(XHeader, "pax", "", &record("GNU.sparse.major", b"1")), file("~x")]),
        (
            "holes that go backwards",
            all,
            vec![
                e(
                    XHeader,
                    "pax",
                    "",
                    &[record("GNU.sparse.map", b"2,2,0,2"), record("GNU.sparse.size", b"9")].concat(),
                ),
                file("~x"),
            ],
        ),
        (
            "holes out of the file",
            all,
            vec![
                e(XHeader, "pax", "", &[record("GNU.sparse.map", b"0,4"), record("GNU.sparse.size", b"1")].concat()),
                file("~x"),
            ],
        ),
        (
            "a map of holes without end",
            all,
            vec![
                e(
                    XHeader,
                    "pax",
                    "",
                    &[
                        record("GNU.sparse.major", b"1"),
                        record("GNU.sparse.minor", b"0"),
                        record("GNU.sparse.realsize", b"9"),
                    ]
                    .concat(),
                ),
                e(Regular, "~x", "", &b"9999999999\n0\n".repeat(500_000)),
            ],
        ),
        ("an old map of holes that does not fit", all, vec![e(GNUSparse, "~x", "", b"more than the map says")]),
    ]
}

/// Has a door unpack everything that was thought of, and looks whether something outside was touched.
pub(in crate::agent) fn attack(door: Door, unpack: impl Fn(&[u8], &Path) -> Result<(), String>) {
    let lab = tempfile::tempdir().unwrap();
    let outside = lab.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("victim"), "safe").unwrap();
    symlink("victim", outside.join("link")).unwrap();
    let state = || {
        let told = fs::metadata(outside.join("victim")).unwrap();
        let mut names: Vec<_> = fs::read_dir(&outside).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        let content = fs::read_to_string(outside.join("victim")).unwrap();
        (content, told.mode(), told.nlink(), told.uid(), told.mtime(), fs::metadata(&outside).unwrap().mtime(), names)
    };
    let before = state();
    for (what, refusing, entries) in cases(outside.to_str().unwrap()) {
        let root = lab.path().join("root");
        fs::create_dir(&root).unwrap();
        let mut builder = Builder::new(Vec::new());
        if door == Volume {
            let manifest = crate::agent::volumes::archive::Manifest::new("data", "box");
            let manifest = serde_json::to_vec(&manifest).unwrap();
            put(&mut builder, Regular, b"toft-volume.json", b"", &manifest);
            put(&mut builder, Directory, b"data", b"", b"");
        }
        let prefix = if door == Volume { "data/" } else { "" };
        let named = |name: &[u8]| String::from_utf8_lossy(name).replace('~', prefix).into_bytes();
        for (kind, name, link, content) in &entries {
            put(&mut builder, *kind, &named(name), &named(link), content);
        }
        let outcome = unpack(&builder.into_inner().unwrap(), &root);
        let wanted = if refusing.contains(&door) { Outcome::Refused } else { Outcome::Taken };
        let got = if outcome.is_err() { Outcome::Refused } else { Outcome::Taken };
        assert_eq!(got, wanted, "{door:?}, {what}: {outcome:?}");
        assert_eq!(state(), before, "{door:?}, {what}");
        assert_eq!(fs::read_dir(lab.path()).unwrap().count(), 2, "{door:?}, {what}");
        fs::remove_dir_all(&root).unwrap();
    }
}
