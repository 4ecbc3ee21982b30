//! `toft cp`: files out of containers and into them, on a real containerd.

use std::{
    fs,
    io::Write,
    os::unix::fs::{MetadataExt, symlink},
    path::{Path, PathBuf},
    process::Stdio,
};

use serde_json::Value;
use tar::{Builder, EntryType, Header};

use crate::harness::{appliance::Appliance, machine::wait_until};

/// An appliance with a container that runs, and a directory of this machine.
struct Desk {
    toft: Appliance,
    here: PathBuf,
}

impl Desk {
    fn new(flags: &str) -> Self {
        let toft = Appliance::start();
        toft.import_busybox();
        toft.good(&format!("run -n web{flags} busybox -- sleep 1000"));
        let here = toft.machine.dir.join("here");
        fs::create_dir(&here).unwrap();
        Self { toft, here }
    }

    fn path(&self, name: &str) -> String {
        self.here.join(name).display().to_string()
    }

    fn file(&self, name: &str, content: &str) -> String {
        let path = self.here.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path.display().to_string()
    }

    fn cp(&self, from: &str, to: &str) {
        assert_eq!(self.toft.toft(&["cp", from, to]).good(), "");
    }

    fn refused(&self, from: &str, to: &str, code: i32, words: &str) {
        let error = self.toft.toft(&["cp", from, to]).bad(code);
        assert!(error.contains(words), "{from} {to}: {error}");
    }

    fn sh(&self, script: &str) -> String {
        self.toft.toft(&["exec", "web", "--", "sh", "-c", script]).good()
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.here.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }
}

#[test]
fn files_and_directories_go_where_docker_would_put_them() {
    let desk = Desk::new("");
    let (one, tree) = (desk.file("one", "1"), desk.path("tree"));
    desk.file("tree/deep/file", "deep");
    // Into the container: a file.
    desk.cp(&one, "web:/tmp");
    desk.cp(&one, "web:/tmp/other");
    desk.cp(&one, "web/0:/tmp/again");
    desk.cp(&one, "web-0:tmp/relative");
    assert_eq!(desk.sh("cat /tmp/one /tmp/other /tmp/again /tmp/relative"), "1111");
    desk.file("one", "2");
    desk.cp(&one, "web:/tmp/one");
    assert_eq!(desk.sh("cat /tmp/one"), "2", "a file that is there is replaced");
    desk.refused(&one, "web:/nowhere/", 1, "directory `/nowhere/` is not there");
    desk.refused(&one, "web:/no/where", 1, "there is no `/no`");
    // A directory: into one that is there, or as one that is not; with `/.`, what it holds.
    desk.cp(&tree, "web:/srv1");
    desk.cp(&tree, "web:/srv1");
    desk.cp(&format!("{tree}/."), "web:/srv2");
    desk.cp(&format!("{tree}/."), "web:/tmp");
    assert_eq!(desk.sh("cat /srv1/deep/file /srv1/tree/deep/file /srv2/deep/file /tmp/deep/file"), "deepdeepdeepdeep");
    desk.refused(&tree, "web:/tmp/one", 1, "a directory cannot be copied to the file");
    // Out of it.
    desk.cp("web:/tmp/one", &desk.path("out"));
    fs::create_dir(desk.here.join("dir")).unwrap();
    desk.cp("web:/tmp/one", &desk.path("dir"));
    desk.cp("web:/srv1", &desk.path("dir"));
    desk.cp("web:/srv1/deep", &desk.path("new"));
    desk.cp("web:/srv1/.", &desk.path("content"));
    desk.cp("web:/srv1/deep/.", &desk.path("content"));
    for (name, content) in [
        ("out", "2"),
        ("dir/one", "2"),
        ("dir/srv1/deep/file", "deep"),
        ("new/file", "deep"),
        ("content/deep/file", "deep"),
        ("content/file", "deep"),
    ] {
        assert_eq!(desk.read(name), content, "{name}");
    }
    desk.refused("web:/srv1", &one, 1, "a directory cannot be copied to the file");
    desk.refused("web:/tmp/one", &desk.path("none/"), 1, "is not there");
    desk.refused("web:/none", &desk.path("x"), 1, "there is no `/none`");
    desk.refused("web:/tmp/one/more", &desk.path("x"), 1, "no directory");
    desk.refused("web:/dev/null", &desk.path("x"), 1, "device");
    desk.refused("nobody:/x", &desk.path("x"), 1, "there is no instance `nobody`");
    desk.refused(&one, &desk.path("x"), 2, "one end of the copy");
    desk.refused("web:/x", "web:/y", 2, "one end of the copy");
    desk.refused("web:", &desk.path("x"), 2, "no path follows");
}

#[test]
fn owners_links_and_times_are_kept_as_asked() {
    let desk = Desk::new("");
    let file = desk.file("mine", "x");
    fs::File::options().write(true).open(&file).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    std::os::unix::fs::chown(&file, Some(1234), Some(4321)).unwrap();
    desk.cp(&file, "web:/tmp/rooted");
    desk.toft.good(&format!("cp -a {file} web:/tmp/kept"));
    assert_eq!(desk.sh("busybox stat -c '%u %g %a %Y' /tmp/rooted /tmp/kept"), "0 0 644 0\n1234 4321 644 0\n");
    desk.cp("web:/tmp/kept", &desk.path("ours"));
    desk.toft.good(&format!("cp -a web:/tmp/kept {}", desk.path("theirs")));
    let owner = |name: &str| fs::metadata(desk.here.join(name)).unwrap().uid();
    assert_eq!((owner("ours"), owner("theirs")), (0, 1234));
    assert_eq!(fs::metadata(desk.here.join("ours")).unwrap().mtime(), 0);

    desk.sh(
        "busybox ln -s kept /tmp/link; busybox ln -s /tmp /to-dir; busybox ln -s /etc/shadow-of-the-host /dangling",
    );
    desk.cp("web:/tmp/link", &desk.path("link"));
    assert_eq!(fs::read_link(desk.here.join("link")).unwrap(), Path::new("kept"));
    desk.toft.good(&format!("cp -L web:/tmp/link {}", desk.path("followed")));
    assert_eq!(desk.read("followed"), "x");
    desk.cp("web:/to-dir/kept", &desk.path("through"));
    assert_eq!(desk.read("through"), "x");
    desk.refused("web:/dangling/", &desk.path("x"), 1, "there is no");
    // A link at the destination stays, and what it leads to is written: in the container, never outside.
    let changed = desk.file("changed", "changed");
    desk.cp(&changed, "web:/tmp/link");
    assert_eq!(desk.sh("busybox readlink /tmp/link; cat /tmp/kept"), "kept\nchanged");
    desk.cp(&changed, "web:/to-dir");
    assert_eq!(desk.sh("cat /tmp/changed"), "changed");
    symlink("changed", desk.here.join("local-link")).unwrap();
    desk.cp(&desk.path("local-link"), "web:/tmp/as-link");
    desk.toft.good(&format!("cp -L {} web:/tmp/as-file", desk.path("local-link")));
    assert_eq!(desk.sh("busybox readlink /tmp/as-link; cat /tmp/as-file"), "changed\nchanged");
}

fn attribute(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 100];
    let length = rustix::fs::lgetxattr(path, name, &mut value[..]).ok()?;
    value.truncate(length);
    Some(value)
}

#[test]
fn attributes_hard_links_and_holes_go_in_and_come_out() {
    let desk = Desk::new("");
    let tree = desk.here.join("tree");
    fs::create_dir_all(tree.join("dir")).unwrap();
    fs::write(tree.join("one"), "content").unwrap();
    fs::hard_link(tree.join("one"), tree.join("dir/two")).unwrap();
    fs::File::create(tree.join("holes")).unwrap().set_len(64 << 20).unwrap();
    let set = |name: &str, attribute: &str, value: &[u8]| {
        rustix::fs::setxattr(tree.join(name), attribute, value, rustix::fs::XattrFlags::empty()).unwrap();
    };
    let capability = [1, 0, 0, 2, 10, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    set("one", "user.note", b"line\nanother\0");
    set("dir", "user.folder", b"yes");
    set("one", "security.capability", &capability);
    desk.cp(&tree.display().to_string(), "web:/srv1");
    desk.toft.good(&format!("cp -a {} web:/srv2", tree.display()));
    for copy in ["srv1", "srv2"] {
        let told = desk.sh(&format!("busybox stat -c '%i %h' /{copy}/one /{copy}/dir/two"));
        let lines: Vec<&str> = told.lines().collect();
        assert!(lines.len() == 2 && lines[0] == lines[1] && lines[0].ends_with(" 2"), "{told}");
        let told = desk.sh(&format!("busybox stat -c '%s %b' /{copy}/holes"));
        let (size, blocks) = told.trim().split_once(' ').unwrap();
        assert!(size == "67108864" && blocks.parse::<u64>().unwrap() < 1000, "{told}");
    }
    desk.sh("busybox ln /srv1/one /srv1/three");
    for (flags, name, rights) in [("", "plain", None), (" -a", "whole", Some(capability.to_vec()))] {
        desk.toft.good(&format!("cp{flags} web:/srv1 {}", desk.path(name)));
        let at = |inside: &str| desk.here.join(name).join(inside);
        assert_eq!(attribute(&at("one"), "user.note").unwrap(), b"line\nanother\0");
        assert_eq!(attribute(&at("dir"), "user.folder").unwrap(), b"yes");
        assert_eq!(attribute(&at("one"), "security.capability"), rights, "rights come with the owner only");
        let told = |name: &str| fs::metadata(at(name)).unwrap();
        assert_eq!(
            (told("one").nlink(), told("one").ino(), told("one").ino()),
            (3, told("three").ino(), told("dir/two").ino())
        );
        assert_eq!(told("holes").len(), 64 << 20);
        assert!(told("holes").blocks() < 1000, "{}", told("holes").blocks());
    }
    // Again over what is there, from a container that is stopped.
    desk.toft.good("stop web");
    desk.cp("web:/srv1/.", &desk.path("plain"));
    assert_eq!(fs::metadata(desk.here.join("plain/one")).unwrap().nlink(), 3);
}

#[test]
fn links_of_a_container_never_lead_out_of_it() {
    let desk = Desk::new("");
    let secret = desk.file("secret", "of the host");
    desk.sh(&format!(
        "busybox ln -s {secret} /out; busybox ln -s ../../../../../../../.. /up; busybox ln -s /proc/1/root /magic"
    ));
    desk.toft.toft(&["cp", "-L", "web:/out", &desk.path("x")]).bad(1);
    desk.refused(&format!("web:/up{secret}"), &desk.path("x"), 1, "there is no");
    desk.refused(&format!("web:/magic{secret}"), &desk.path("x"), 1, "");
    desk.refused(&format!("web:/proc/self/root{secret}"), &desk.path("x"), 1, "");
    desk.refused(&format!("web:/../..{secret}"), &desk.path("x"), 1, "there is no");
    let evil = desk.file("evil", "evil");
    desk.toft.toft(&["cp", &evil, "web:/out"]);
    desk.toft.toft(&["cp", &evil, &format!("web:/up{}", desk.path("planted"))]).bad(1);
    assert_eq!(desk.read("secret"), "of the host");
    assert!(!desk.here.join("planted").exists());
}

/// An archive with one entry, written as no library would.
fn hostile(entries: &[(EntryType, &str, &str)]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (kind, name, link) in entries {
        let mut header = Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(if *kind == EntryType::Regular { 4 } else { 0 });
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        builder.append(&header, if *kind == EntryType::Regular { &b"evil"[..] } else { b"" }).unwrap();
    }
    builder.into_inner().unwrap()
}

#[test]
fn hostile_archives_are_refused_by_the_node() {
    let desk = Desk::new("");
    let put = |path: &str, body: &[u8]| {
        desk.toft.request("PUT", &format!("/api/v1/instances/web-0/files?path={path}"), &[], body)
    };
    for (what, entries) in [
        ("absolute", &[(EntryType::Regular, "/tmp/evil", "")][..]),
        ("dots", &[(EntryType::Regular, "../evil", "")]),
        ("through a link", &[(EntryType::Symlink, "out", "/"), (EntryType::Regular, "out/evil", "")]),
        ("a hard link", &[(EntryType::Link, "evil", "../etc/passwd")]),
        ("a device", &[(EntryType::Char, "evil", "")]),
    ] {
        assert_eq!(put("/tmp", &hostile(entries)).refusal(400)["code"], "invalid", "{what}");
    }
    assert_eq!(put("/tmp", b"no archive").refusal(400)["code"], "invalid");
    assert_eq!(put("/nowhere", &hostile(&[])).refusal(404)["field"], "path");
    assert_eq!(put("/etc/passwd", &hostile(&[])).refusal(409)["field"], "path");
    assert_eq!(put("", &hostile(&[])).refusal(400)["code"], "invalid");
    assert_eq!(put(&"x".repeat(5_000), &hostile(&[])).refusal(400)["code"], "invalid");
    assert_eq!(desk.sh("busybox find / -xdev -name evil"), "");
    // A large body after what is refused: the refusal is heard all the same.
    let mut large = hostile(&[(EntryType::Char, "evil", "")]);
    large.resize(32 << 20, 7);
    assert_eq!(put("/tmp", &large).refusal(400)["code"], "invalid");
    for (query, status) in [("?path=/etc&colour=red", 400), ("", 400), ("?path=/none", 404)] {
        desk.toft.get(&format!("/api/v1/instances/web-0/files{query}")).refusal(status);
        desk.toft.get(&format!("/api/v1/instances/web-0/files/stat{query}")).refusal(status);
    }
    desk.toft.get("/api/v1/instances/nobody-0/files?path=/etc").refusal(404);
}

#[test]
fn what_the_container_sees_is_copied_and_a_read_only_root_refuses() {
    let desk = Desk::new(" --read-only --tmpfs /scratch");
    let file = desk.file("file", "through memory");
    desk.sh("echo inside >/scratch/inside");
    desk.cp("web:/scratch/inside", &desk.path("inside"));
    assert_eq!(desk.read("inside"), "inside\n");
    desk.cp(&file, "web:/scratch");
    assert_eq!(desk.sh("cat /scratch/file"), "through memory");
    let error = desk.toft.toft(&["cp", &file, "web:/etc/file"]).bad(1);
    assert!(error.contains("read-only") && error.contains("hint:"), "{error}");
    desk.cp("web:/etc/passwd", &desk.path("passwd"));
    desk.cp("web:/etc/hosts", &desk.path("hosts"));
    assert!(desk.read("passwd").contains("web:x:1000") && desk.read("hosts").contains("web-0"));
    // A whole root: what the kernel says of itself has no end, and is left out.
    desk.cp("web:/", &desk.path("root"));
    assert!(desk.here.join("root/proc").is_dir() && desk.here.join("root/bin/busybox").is_file());
    assert_eq!(fs::read_dir(desk.here.join("root/proc")).unwrap().count(), 0);
}

#[test]
fn stopped_containers_work_too_and_those_that_are_gone_are_told() {
    let desk = Desk::new("");
    desk.sh("echo kept >/kept");
    desk.toft.good("stop web");
    let data = desk.toft.data.display().to_string();
    let mounts = || {
        let all = fs::read_to_string(format!("/proc/{}/mountinfo", desk.toft.pid())).unwrap();
        all.lines().filter(|line| line.contains(&data)).count()
    };
    let before = mounts();
    desk.cp("web:/kept", &desk.path("kept"));
    assert_eq!(desk.read("kept"), "kept\n");
    let file = desk.file("new", "written while it was down");
    desk.cp(&file, "web:/new");
    for _ in 0..5 {
        desk.cp("web:/new", &desk.path("back"));
    }
    assert_eq!(desk.read("back"), "written while it was down");
    assert_eq!(mounts(), before, "a mount is left");
    desk.toft.good("start web");
    assert_eq!(desk.sh("cat /new /kept"), "written while it was downkept\n");
    desk.cp("web:/new", &desk.path("again"));
    desk.toft.good("rm web");
    desk.refused("web:/new", &desk.path("x"), 1, "there is no instance `web`");
    // One whose container was never made: its image is nowhere.
    desk.toft.good("run -n never --no-wait --pull never nosuchimage");
    wait_until("it is placed", || {
        let ran = desk.toft.toft(&["cp", "never:/etc", &desk.path("x")]);
        ran.err.contains("not made yet").then_some(())
    });
}

#[test]
fn archives_stream_through_and_memory_stays_small() {
    let desk = Desk::new("");
    let memory = || {
        let status = fs::read_to_string(format!("/proc/{}/status", desk.toft.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap().to_owned();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap() << 10
    };
    let big = vec![0x5a_u8; 96 << 20];
    fs::write(desk.here.join("big"), &big).unwrap();
    desk.cp("web:/etc/passwd", &desk.path("warm"));
    let before = memory();
    desk.cp(&desk.path("big"), "web:/tmp/big");
    desk.cp("web:/tmp/big", &desk.path("back"));
    assert!(fs::read(desk.here.join("back")).unwrap() == big, "what came back differs");
    let grown = memory().saturating_sub(before);
    assert!(grown < 32 << 20, "{grown} bytes more");

    let mut builder = Builder::new(Vec::new());
    let mut header = Header::new_gnu();
    header.set_size(2);
    header.set_mode(0o600);
    builder.append_data(&mut header, "piped/in", &b"hi"[..]).unwrap();
    let mut child = desk.toft.client(&["cp", "-", "web:/tmp"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&builder.into_inner().unwrap()).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(desk.sh("cat /tmp/piped/in"), "hi");
    let out = desk.toft.client(&["cp", "web:/tmp/piped", "-"]).output().unwrap();
    let mut archive = tar::Archive::new(out.stdout.as_slice());
    let names: Vec<String> =
        archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string()).collect();
    assert_eq!((out.status.code(), names), (Some(0), vec!["piped".to_owned(), "piped/in".to_owned()]));
    let stat: Value = desk.toft.get("/api/v1/instances/web-0/files/stat?path=/tmp/piped/in").good();
    assert_eq!((&stat["kind"], &stat["size_bytes"], &stat["mode"]), (&"file".into(), &2.into(), &0o600.into()));
}
