//! Volumes on a real containerd: they outlive containers, get what images have, and lead nowhere else.

use std::{
    fs,
    io::Write,
    os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink},
    path::Path,
};

use serde_json::{Value, json};

use crate::{
    cluster::{join, prepare, status},
    harness::{
        appliance::Appliance,
        machine::{Machine, wait_until},
        outage::all_ready,
    },
};

/// An appliance whose containers may see what lies below `srv` in the machine's directory.
fn with_folders() -> Appliance {
    let mut toft = Appliance::prepare(&Machine::new(), "d");
    let srv = toft.machine.dir.join("srv");
    fs::create_dir(&srv).unwrap();
    let text = format!("[volumes]\nbind_roots = [\"{}\"]\n", srv.display());
    fs::write(toft.data.join("toft.toml"), text).unwrap();
    toft.up();
    toft.import_busybox();
    toft
}

/// What a script in a container says, run once with these flags.
fn says(toft: &Appliance, flags: &[&str], script: &str) -> String {
    let ran = toft.toft(&[&["run", "--rm"], flags, &["busybox", "--", "sh", "-c", script]].concat());
    assert_eq!(ran.code, 0, "{flags:?}: {ran:?}");
    ran.out.trim_end().to_owned()
}

/// Why a container with these flags does not start.
fn why_not(toft: &Appliance, flags: &[&str]) -> String {
    let why = toft.toft(&[&["run", "-n", "refused"], flags, &["busybox", "--", "sleep", "1000"]].concat()).bad(125);
    toft.good("rm refused");
    why
}

fn volume(toft: &Appliance, name: &str) -> Value {
    toft.get(&format!("/api/v1/volumes/{name}")).good()
}

/// How much is mounted below a directory.
fn mounted(below: &Path) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let places = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    places.filter(|place| Path::new(place).starts_with(below)).map(str::to_owned).collect()
}

fn ours(toft: &Appliance) -> Vec<String> {
    ["volumes", "mounts"].iter().flat_map(|name| mounted(&toft.data.join(name))).collect()
}

#[test]
fn data_outlives_containers_and_goes_when_it_is_asked_for() {
    let mut toft = with_folders();
    let sleeps = ["busybox", "--", "sh", "-c", "cat /data/* ; trap 'exit 0' TERM; while true; do sleep 0.1; done"];
    toft.toft(&[&["run", "-n", "web", "-v", "data:/data", "-e", "A=1"], &sleeps[..]].concat()).good();
    assert_eq!(says(&toft, &["-v", "data:/there"], "echo kept >/there/file; ls /there"), "file");

    // The container is replaced when its specification changes; what it wrote stays.
    let first = toft.instance("web")["id"].clone();
    let mut spec = toft.get("/api/v1/workloads/web").good()["spec"].clone();
    spec["env"]["A"] = json!("2");
    toft.put("/api/v1/workloads/web", &[], &spec).good();
    toft.instance_until("web", "is another", |now| now["id"] != first && now["state"] == "running");
    wait_until("it reads what was written", || toft.logs("web").contains(&"kept".to_owned()).then_some(()));

    let shown = volume(&toft, "data");
    assert_eq!((&shown["used_by"], &shown["running"]), (&json!(["web"]), &json!(["web"])), "{shown}");
    assert!(shown["size_bytes"].as_u64().unwrap() >= 4096, "{shown}");
    let path = Path::new(shown["path"].as_str().unwrap()).to_owned();
    assert_eq!(fs::read_to_string(path.join("file")).unwrap(), "kept\n");
    let table = toft.good("volume ls");
    assert!(table.contains("data") && table.contains("local") && table.contains("web"), "{table}");
    let refused = toft.toft(&["volume", "rm", "data"]).bad(1);
    assert!(refused.contains("used by `web`"), "{refused}");
    assert_eq!(toft.request("DELETE", "/api/v1/volumes/data", &[], b"").status, 409);

    // After the end of everything, and with only the ledger to go by, it is the same volume.
    toft.down().good();
    assert!(path.join("file").exists() && ours(&toft).is_empty());
    toft.up();
    toft.instance_until("web", "runs", |now| now["state"] == "running");
    assert_eq!(says(&toft, &["-v", "data:/there:ro"], "cat /there/file"), "kept");

    toft.good("rm web");
    assert_eq!(toft.good("volume rm data").trim(), "data");
    wait_until("its data is gone", || (!path.exists()).then_some(()));
    assert_eq!(says(&toft, &["-v", "data:/there"], "ls /there"), "", "the name begins anew");
    toft.good("volume create spare --label tier=back");
    assert_eq!(toft.json("volume prune --yes --json").as_array().unwrap().len(), 2);
    assert_eq!(toft.good("volume ls -q"), "");
    assert!(!toft.log().contains("kept"), "what volumes hold is in no log");
}

#[test]
fn mounts_are_as_asked_and_lead_nowhere_else() {
    let toft = with_folders();
    let srv = toft.machine.dir.join("srv");
    // An empty volume gets what the image has, with its owners, once.
    let stat = "stat -c '%a %u:%g' /srv/seeded /srv/seeded/seed; cat /srv/seeded/seed";
    assert_eq!(says(&toft, &["-v", "seeded:/srv/seeded"], stat), "750 1000:1001\n640 7:8\nseed");
    assert_eq!(says(&toft, &["-v", "seeded:/elsewhere"], "echo changed >/elsewhere/seed; echo ok"), "ok");
    assert_eq!(says(&toft, &["-v", "seeded:/srv/seeded"], "cat /srv/seeded/seed"), "changed");
    assert_eq!(
        says(&toft, &["-v", "bare:/srv/seeded:nocopy"], "ls -a /srv/seeded | wc -l; stat -c %u /srv/seeded"),
        "2\n0"
    );
    // Who does not run as root can write where the image lets it.
    assert_eq!(says(&toft, &["-u", "1000:1001", "-v", "own:/srv/seeded"], "echo x >/srv/seeded/x && echo ok"), "ok");

    let write = "echo x 2>/dev/null >/d/new && echo written || echo read-only";
    assert_eq!(says(&toft, &["-v", "seeded:/d:ro"], write), "read-only");
    assert_eq!(says(&toft, &["--mount", "type=volume,src=seeded,dst=/d"], write), "written");
    let part = ["--mount", "source=seeded,target=/d,volume-subpath=deep/part,readonly"];
    assert!(why_not(&toft, &part).contains("cannot be opened in volume `seeded`"));
    says(&toft, &["-v", "seeded:/d"], "mkdir -p /d/deep/part; echo inner >/d/deep/part/f; ln -s /etc /d/deep/out");
    assert_eq!(says(&toft, &part, "cat /d/f"), "inner");
    let out = ["--mount", "source=seeded,target=/d,volume-subpath=deep/out"];
    assert!(why_not(&toft, &out).contains("may not lead out of the volume"));
    let tmpfs = ["--mount", "type=tmpfs,target=/d,tmpfs-size=1m"];
    let fills = "dd if=/dev/zero of=/d/x bs=64k count=64 2>/dev/null && echo unbounded || wc -c </d/x";
    assert_eq!(says(&toft, &tmpfs, fills), "1048576");

    // Folders of the node.
    fs::create_dir(srv.join("media")).unwrap();
    fs::write(srv.join("media/film"), "film\n").unwrap();
    fs::create_dir(toft.machine.dir.join("private")).unwrap();
    symlink("../private", srv.join("escape")).unwrap();
    let at = |path: &Path, rest: &str| format!("{}:/d{rest}", path.display());
    assert_eq!(
        says(&toft, &["-v", &at(&srv.join("media"), ":ro")], &format!("cat /d/film; {write}")),
        "film\nread-only"
    );
    assert_eq!(says(&toft, &["-v", &at(&srv.join("media"), "")], write), "written");
    assert!(srv.join("media/new").exists());
    assert_eq!(says(&toft, &["-v", &at(&srv.join("media/film"), "")], "cat /d"), "film", "a file");
    for refused in [toft.machine.dir.join("private"), srv.join("escape"), "/etc".into(), toft.data.clone()] {
        let why = why_not(&toft, &["-v", &at(&refused, "")]);
        assert!(why.contains("does not let containers see") && why.contains("bind_roots"), "{why}");
    }
    assert!(why_not(&toft, &["-v", &at(&srv.join("absent"), "")]).contains("cannot be opened on node"));
    for (bad, words) in
        [("data:/proc/x", "cannot be covered"), ("data:rel", "no absolute path"), ("a:/b/../c", "leads elsewhere")]
    {
        assert!(toft.toft(&["run", "-v", bad, "busybox"]).bad(2).contains(words), "{bad}");
    }

    // A volume that is a folder or memory goes through the same door as one on a server.
    toft.toft(&[
        "volume",
        "create",
        "films",
        "-o",
        "type=none",
        "-o",
        "o=bind",
        "-o",
        &format!("device={}", srv.join("media").display()),
    ])
    .good();
    assert_eq!(says(&toft, &["-v", "films:/films"], "cat /films/film"), "film");
    toft.good("volume create memory -o type=tmpfs -o o=size=1m");
    assert_eq!(says(&toft, &["-v", "memory:/d"], fills), "1048576");
    wait_until("nothing stays mounted that nobody uses", || ours(&toft).is_empty().then_some(()));
    toft.good("volume rm films");
    wait_until("the volume is gone", || (!toft.data.join("volumes/films").exists()).then_some(()));
    assert!(srv.join("media/film").exists(), "the folder is not the volume's");
    toft.good("volume create nas -o type=nfs -o device=127.0.0.1:/export");
    let why = why_not(&toft, &["-v", "nas:/d"]);
    assert!(why.contains("no NFS client") || why.contains("volume `nas` could not be mounted"), "{why}");
    let refused =
        toft.toft(&["volume", "create", "x", "-o", "type=cifs", "-o", "device=//a/b", "-o", "o=password=hunter2"]);
    let refused = refused.bad(2);
    assert!(refused.contains("toft secret create") && !refused.contains("hunter2"), "{refused}");
    let body = json!({"name": "x", "options": {"type": "cifs", "device": "//a/b", "o": "username=a,password=hunter2"}});
    let answer = toft.post("/api/v1/volumes", &body);
    assert_eq!(answer.status, 400);
    assert!(!answer.text().contains("hunter2") && !toft.log().contains("hunter2"), "{}", answer.text());
    let body = json!({"name": "x", "options": {"type": "cifs", "device": "//a/b", "secret": "absent"}});
    let refused = toft.post("/api/v1/volumes", &body);
    assert_eq!((refused.status, refused.text().contains("options.secret")), (400, true), "{}", refused.text());
    for body in [
        json!({"name": "../x"}),
        json!({"name": "x", "options": {"type": "ext4", "device": "/dev/sda"}}),
        json!({"name": "x", "options": {"colour": "red"}}),
        json!({"name": "x", "labels": {"a=b": "c"}}),
        json!({"name": "x", "node": "nowhere"}),
        json!({"name": "x", "driver": "local"}),
    ] {
        assert_eq!(toft.post("/api/v1/volumes", &body).status, 400, "{body}");
    }
    assert!(ours(&toft).is_empty(), "{:?}", ours(&toft));
}

/// Everything that can be said of a tree, one line a file.
fn described(root: &Path) -> Vec<String> {
    let (mut lines, mut open) = (Vec::new(), vec![root.to_owned()]);
    while let Some(path) = open.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let name = path.strip_prefix(root).unwrap().display();
        let owner = format!("{}:{} {}", meta.uid(), meta.gid(), meta.mtime());
        let content = if meta.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
        let link = fs::read_link(&path).unwrap_or_default();
        lines.push(format!("{name} {:o} {owner} {} {content:?} {link:?}", meta.mode(), meta.nlink()));
        if meta.is_dir() {
            open.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    lines.sort();
    lines
}

/// A backup that holds one hostile entry.
fn hostile(path: &str, link: Option<&str>) -> Vec<u8> {
    let mut tar = tar::Builder::new(zstd::Encoder::new(Vec::new(), 1).unwrap());
    let manifest = json!({"format": 1, "volume": "x", "node": "x", "created_at": "x", "toft_version": "x"}).to_string();
    let mut put = |path: &str, kind: tar::EntryType, link: &str, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_mode(0o777);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1);
        header.set_cksum();
        tar.append(&header, content).unwrap();
    };
    put("toft-volume.json", tar::EntryType::Regular, "", manifest.as_bytes());
    put("data", tar::EntryType::Directory, "", b"");
    if let Some(link) = link {
        put("data/x", tar::EntryType::Symlink, link, b"");
    }
    put(path, tar::EntryType::Regular, "", b"hostile");
    tar.into_inner().unwrap().finish().unwrap()
}

#[test]
fn a_backup_brings_back_the_same_tree_and_nothing_else() {
    let toft = with_folders();
    says(&toft, &["-v", "data:/d"], "true");
    let data = Path::new(volume(&toft, "data")["path"].as_str().unwrap()).to_owned();
    fs::create_dir_all(data.join("deep/er")).unwrap();
    fs::write(data.join("deep/er/file"), "content").unwrap();
    chown(data.join("deep/er/file"), Some(1000), Some(1001)).unwrap();
    fs::set_permissions(data.join("deep/er/file"), fs::Permissions::from_mode(0o4640)).unwrap();
    fs::hard_link(data.join("deep/er/file"), data.join("again")).unwrap();
    symlink("/etc/passwd", data.join("link")).unwrap();
    fs::File::create(data.join("sparse")).unwrap().set_len(32 << 20).unwrap();
    fs::set_permissions(&data, fs::Permissions::from_mode(0o1750)).unwrap();
    let wanted = described(&data);

    let dir = &toft.machine.dir;
    let [plain, sealed, pass] = ["plain", "sealed", "pass"].map(|name| dir.join(name).display().to_string());
    fs::write(&pass, "correct horse battery\n").unwrap();
    assert_eq!(toft.toft(&["volume", "backup", "data", "-o", &plain]).good().trim(), plain);
    let made = toft.toft(&["volume", "backup", "data", "-o", &sealed, "--passphrase-file", &pass, "--json"]).good();
    let made: Value = serde_json::from_str(&made).unwrap();
    assert_eq!(made["size_bytes"], fs::metadata(&sealed).unwrap().len());
    assert!(fs::metadata(&plain).unwrap().len() < 1 << 20, "holes take no room");
    assert_eq!(fs::metadata(&plain).unwrap().mode() & 0o777, 0o600);
    assert!(toft.toft(&["volume", "backup", "data", "-o", &plain]).bad(1).contains("is there already"));
    let named = toft.client(&["volume", "backup", "absent"]).current_dir(dir).output().unwrap();
    assert!(String::from_utf8_lossy(&named.stderr).contains("there is no volume `absent`"));

    let restore = |more: &[&str]| toft.toft(&[&["volume", "restore", "data"], more].concat());
    assert!(restore(&[&plain]).bad(1).contains("is not empty"));
    toft.good("volume rm data");
    wait_until("its data is gone", || (!data.exists()).then_some(()));
    let told = restore(&[&plain]).good();
    assert!(told.contains("data: ") && told.contains("files"), "{told}");
    assert_eq!(described(&data), wanted);
    assert!(fs::metadata(data.join("sparse")).unwrap().blocks() < 100);
    fs::write(data.join("later"), "").unwrap();
    let other = dir.join("other").display().to_string();
    fs::write(&other, "another passphrase\n").unwrap();
    assert!(restore(&[&sealed, "--passphrase-file", &other, "--replace"]).bad(1).contains("cannot be opened"));
    assert!(data.join("later").exists());
    restore(&[&sealed, "--passphrase-file", &pass, "--replace"]).good();
    assert_eq!(described(&data), wanted);

    // While it is used a backup is made with a warning, and nothing is put in its place.
    toft.good("run -n web -v data:/d busybox -- sleep 1000");
    let busy = dir.join("busy").display().to_string();
    let told = toft.toft(&["volume", "backup", "data", "-o", &busy]);
    assert!(told.code == 0 && told.err.contains("warning: web may write"), "{told:?}");
    let refused = restore(&[&plain, "--replace"]).bad(1);
    assert!(refused.contains("`web`") && refused.contains("toft stop web"), "{refused}");
    toft.good("rm web");

    // What is damaged or hostile changes nothing.
    let before = described(&data);
    let bytes = fs::read(&plain).unwrap();
    let bad = dir.join("bad");
    for (content, words) in [
        (bytes[..bytes.len() - 10].to_vec(), "damaged or cut short"),
        (b"not a backup".to_vec(), "no backup of a volume"),
        (hostile("data/../../../escaped", None), "leads out of the volume"),
        (hostile("/escaped", None), "leads out of the volume"),
        (hostile("data/x/escaped", Some("../../..")), "goes through a symbolic link"),
        (hostile("data/x", Some("/etc/toft-escaped")), "named twice"),
    ] {
        fs::File::create(&bad).unwrap().write_all(&content).unwrap();
        let refused = restore(&[bad.to_str().unwrap(), "--replace"]).bad(1);
        assert!(refused.contains(words), "{words}: {refused}");
        assert_eq!(described(&data), before);
    }
    for escaped in [toft.data.join("escaped"), toft.data.join("volumes/escaped"), dir.join("escaped")] {
        assert!(!escaped.exists(), "{escaped:?}");
    }
    assert!(!Path::new("/etc/toft-escaped").exists() && !Path::new("/escaped").exists());
}

#[test]
fn a_volume_ties_its_workloads_to_its_node_and_goes_when_the_node_is_back() {
    let machine = Machine::new();
    let mut a = prepare(&machine, "a", 7541);
    a.up();
    let mut b = prepare(&machine, "b", 7542);
    join(&mut b, &a, 7541);
    // A third vote, so that two can decide while one is away.
    let mut c = prepare(&machine, "c", 7543);
    let text = fs::read_to_string(c.data.join("toft.toml")).unwrap();
    fs::write(c.data.join("toft.toml"), text + "role = \"witness\"\n").unwrap();
    join(&mut c, &a, 7541);
    wait_until("all three vote", || {
        (status(&a)["members"].as_array()?.iter().filter(|m| m["votes"] == true).count() == 3).then_some(())
    });
    assert!(c.toft(&["volume", "backup", "x"]).bad(1).contains("no volume `x`"));
    wait_until("both nodes are there", || all_ready(&a, 2));
    b.import_busybox();
    a.good("volume create data --node b");
    a.good("run -n db --replicas 2 -v data:/d busybox -- sleep 1000");
    let nodes: Vec<Value> = a.json("ps --json").as_array().unwrap().iter().map(|one| one["node"].clone()).collect();
    assert_eq!(nodes, ["b", "b"]);
    a.good("run -n other --node a --no-wait -v data:/d busybox -- sleep 1000");
    let pending =
        wait_until("it waits", || a.get("/api/v1/workloads/other").good()["pending"].as_str().map(str::to_owned));
    assert!(pending.contains("a: volume `data` lies on b"), "{pending}");
    // Whichever node is asked.
    let file = machine.dir.join("x").display().to_string();
    a.toft(&["exec", "db-0", "--", "sh", "-c", "echo kept > /d/file"]).good();
    a.good(&format!("volume backup data -o {file}"));
    assert_eq!(volume(&a, "data")["path"], b.data.join("volumes/data/_data").display().to_string());
    a.good("rm other db");
    a.good(&format!("volume restore data {file} --replace"));
    assert_eq!(fs::read_to_string(b.data.join("volumes/data/_data/file")).unwrap(), "kept\n");

    // Removed while its node is away: the node deletes the data when it is back, and nothing else.
    let folder = b.data.join("volumes/data");
    assert!(folder.join("_data").exists());
    fs::create_dir_all(b.data.join("volumes/stranger/_data")).unwrap();
    b.kill();
    a.good("volume rm data");
    b.set_flags(&[]);
    b.up();
    wait_until("its data is gone", || (!folder.exists()).then_some(()));
    wait_until("what is unknown is told", || b.log().contains("volumes/stranger` holds data").then_some(()));
    assert!(b.data.join("volumes/stranger/_data").exists(), "and left alone");
}
