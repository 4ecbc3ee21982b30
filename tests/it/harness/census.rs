//! Counts everything that an appliance can leave behind, in the kernel, in containerd and on the disk, so that what is
//! there after some work can be held against what was there before.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::linux::fs::MetadataExt,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use super::{appliance::Appliance, machine::wait_until, slowness};

/// Longest wait until everything is as before: containerd collects its garbage in its own time.
const SETTLING: Duration = Duration::from_secs(60);
/// Most files that the readers of the state hold open: a few connections are kept, however many there were.
const MOST_OF_READERS: usize = 20;
/// Files that are there or not by their owners' own rules, with nothing of a container in them.
const COMES_AND_GOES: [&str; 5] =
    ["logs/", "snapshots/", "state.sqlite-", "containerd/root/io.containerd.metadata", "d.log"];

/// What there is, by kind; the same thing twice stands there twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Census(BTreeMap<&'static str, Vec<String>>);

impl Census {
    /// Counts, once what has just ended is over.
    pub fn settled(toft: &Appliance) -> Self {
        let mut last = Self::of(toft);
        wait_until("nothing changes any more", || {
            std::thread::sleep(Duration::from_secs(1));
            let now = Self::of(toft);
            let same = now == last;
            last = now.clone();
            same.then_some(now)
        })
    }

    /// Counts.
    pub fn of(toft: &Appliance) -> Self {
        collect_garbage(toft);
        let (daemon, containerd) = (toft.pid() as i32, toft.containerd_pid());
        let (readers, open) =
            open_files(daemon).into_iter().partition::<Vec<_>, _>(|file| file.contains("/state.sqlite"));
        assert!(readers.len() <= MOST_OF_READERS, "{readers:?}");
        let mut kinds = BTreeMap::from([
            ("mounts of toft", mounts(toft, daemon)),
            ("mounts of containerd", mounts(toft, containerd)),
            ("open files of toft", open),
            ("open files of containerd", open_files(containerd)),
            ("processes", processes(toft, &[daemon, containerd])),
            ("control groups", control_groups(toft)),
            ("links", links(toft)),
            ("routes", lines(&routes(toft))),
            ("packet rules", lines(&toft.machine.run("nft", &["--stateless", "list", "ruleset"]))),
            ("listening sockets", listening(daemon)),
            ("files", files(&toft.data)),
            ("rows", rows(&toft.data)),
        ]);
        kinds.extend(in_containerd(toft));
        kinds.values_mut().for_each(|found| found.sort());
        Self(kinds)
    }

    /// All but one kind.
    pub fn without(mut self, kind: &str) -> Self {
        self.0.remove(kind).expect("it was counted");
        self
    }

    /// How many there are of a kind.
    pub fn count(&self, kind: &str) -> usize {
        self.0[kind].len()
    }

    /// Waits until everything is as it was when `self` was counted.
    pub fn wait_until_again(&self, toft: &Appliance) {
        let deadline = Instant::now() + SETTLING * slowness();
        loop {
            let differences = self.differences(&Self::of(toft));
            if differences.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "not as it was before:\n{}", differences.join("\n"));
            std::thread::sleep(Duration::from_millis(250));
        }
    }

    fn differences(&self, now: &Self) -> Vec<String> {
        let mut told = Vec::new();
        for (kind, before) in &self.0 {
            let after = &now.0[kind];
            let counted = |list: &[String]| {
                let mut counted = BTreeMap::<String, i32>::new();
                list.iter().for_each(|one| *counted.entry(one.clone()).or_default() += 1);
                counted
            };
            let (counted_before, counted_after) = (counted(before), counted(after));
            let all: BTreeSet<&String> = counted_before.keys().chain(counted_after.keys()).collect();
            let differing = all.into_iter().filter_map(|one| {
                let count = |counted: &BTreeMap<String, i32>| counted.get(one).copied().unwrap_or(0);
                let (was, is) = (count(&counted_before), count(&counted_after));
                (was != is).then(|| format!("  {kind}: {was} before, {is} now: {one}"))
            });
            told.extend(differing.take(20));
        }
        told
    }
}

/// The routes, without those to a link's own addresses: the kernel makes them a second or two after the link.
fn routes(toft: &Appliance) -> String {
    let all = toft.machine.run("ip", &["route", "show", "table", "all"]);
    all.lines().filter(|line| !line.contains("fe80::")).collect::<Vec<_>>().join("\n")
}

fn lines(text: &str) -> Vec<String> {
    text.lines().map(str::to_owned).collect()
}

/// What is mounted below the machine's directory, as a process sees it.
fn mounts(toft: &Appliance, pid: i32) -> Vec<String> {
    let ours = format!("{}/", toft.machine.dir.display());
    let table = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    table.lines().filter(|line| line.contains(&ours)).map(|line| line.split(' ').nth(4).unwrap().to_owned()).collect()
}

/// What a process holds open, without the numbers that the kernel gave it.
fn open_files(pid: i32) -> Vec<String> {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let target = open.filter_map(|entry| fs::read_link(entry.path()).ok());
    target.map(|target| target.display().to_string()).map(|name| name.split(":[").next().unwrap().to_owned()).collect()
}

/// Processes in the machine's network or below it, by what they are.
fn processes(toft: &Appliance, parents: &[i32]) -> Vec<String> {
    let network = |pid: i32| fs::metadata(format!("/proc/{pid}/ns/net")).map(|namespace| namespace.st_ino()).ok();
    let (ours, dir) = (network(parents[0]), format!("{}/", toft.machine.dir.display()));
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        // One that ended meanwhile is none.
        let Ok(status) = fs::read_to_string(entry.path().join("status")) else { continue };
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            line.trim_start_matches(':').trim().to_owned()
        };
        let line = String::from_utf8_lossy(&fs::read(entry.path().join("cmdline")).unwrap_or_default()).into_owned();
        let parent: i32 = field("PPid").parse().unwrap_or(0);
        if network(pid) == ours || line.contains(&dir) || parents.contains(&parent) {
            // A zombie counts: its number is taken as long as nobody asked for its end.
            found.push(format!(
                "{} {}",
                field("Name"),
                field("State").chars().next().filter(|c| *c == 'Z').unwrap_or(' ')
            ));
        }
    }
    found
}

/// Every control group below the appliance's own, in all hierarchies.
fn control_groups(toft: &Appliance) -> Vec<String> {
    fn below(group: &Path, found: &mut Vec<String>) {
        found.push(group.display().to_string());
        for entry in fs::read_dir(group).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir()) {
            below(&entry.path(), found);
        }
    }
    let mut found = Vec::new();
    toft.machine.control_groups(&toft.data).iter().for_each(|group| below(group, &mut found));
    found
}

/// Interfaces of the machine, and what is plugged into bridges.
fn links(toft: &Appliance) -> Vec<String> {
    let text = toft.machine.run("ip", &["-oneline", "link", "show"]);
    let mut found: Vec<String> = text
        .lines()
        .filter_map(|line| line.split(": ").nth(1))
        .map(|name| name.split('@').next().unwrap().to_owned())
        .collect();
    found.extend(
        lines(&toft.machine.run("bridge", &["fdb", "show"])).into_iter().filter(|line| line.contains("static")),
    );
    found
}

/// Unix sockets that somebody listens at, shims among them.
fn listening(pid: i32) -> Vec<String> {
    let table = fs::read_to_string(format!("/proc/{pid}/net/unix")).unwrap();
    // Its flags say that it accepts.
    let accepting = table.lines().skip(1).filter(|line| line.split_whitespace().nth(3) == Some("00010000"));
    accepting.filter_map(|line| line.split_whitespace().nth(7)).map(str::to_owned).collect()
}

/// Every file and directory of the appliance, those of images' snapshots apart.
fn files(data: &Path) -> Vec<String> {
    fn below(dir: &Path, data: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = path.strip_prefix(data).unwrap().display().to_string();
            if COMES_AND_GOES.iter().any(|word| name.starts_with(word)) {
                continue;
            }
            found.push(name.clone());
            // What is in a snapshot belongs to its image.
            let is_snapshot = name.contains("snapshotter") && dir.ends_with("snapshots");
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) && !is_snapshot {
                below(&path, data, found);
            }
        }
    }
    let mut found = Vec::new();
    below(data, data, &mut found);
    found
}

/// Tables of the state with as many entries as they have rows; stories and answers are bounded by rules of their own.
fn rows(data: &Path) -> Vec<String> {
    let state =
        rusqlite::Connection::open_with_flags(data.join("state.sqlite"), rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY)
            .unwrap();
    let mut found = Vec::new();
    for table in ["nodes", "workloads", "instances", "secrets", "subnets", "registries", "volumes", "removed_volumes"] {
        let count: i64 = state.query_row(&format!("SELECT COUNT(*) FROM {table}"), [], |row| row.get(0)).unwrap();
        found.extend((0..count).map(|_| table.to_owned()));
    }
    found
}

fn ctr(toft: &Appliance, arguments: &[&str]) -> String {
    let config = fs::read_to_string(toft.data.join("containerd/config.toml")).unwrap();
    let address =
        config.lines().find_map(|line| line.trim().strip_prefix("address = ")).expect("containerd has an address");
    let out = Command::new("ctr").args(["--address", address.trim_matches('"')]).args(arguments).output().unwrap();
    assert!(out.status.success(), "ctr {arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// Has containerd remove at once what nothing refers to any more; by itself it does so after a number of changes.
fn collect_garbage(toft: &Appliance) {
    let namespaces = ctr(toft, &["namespaces", "list", "--quiet"]);
    let Some(namespace) = namespaces.lines().next() else { return };
    let lease = ctr(toft, &["--namespace", namespace, "leases", "create", "census"]);
    ctr(toft, &["--namespace", namespace, "leases", "delete", "--sync", lease.trim()]);
}

/// What containerd knows, by name.
fn in_containerd(toft: &Appliance) -> BTreeMap<&'static str, Vec<String>> {
    let ctr = |arguments: &[&str]| ctr(toft, arguments);
    let namespaces = lines(&ctr(&["namespaces", "list", "--quiet"]));
    let mut found = BTreeMap::<&'static str, Vec<String>>::new();
    for namespace in &namespaces {
        for (kind, arguments) in [
            ("containers", &["containers", "list", "--quiet"][..]),
            ("tasks", &["tasks", "list", "--quiet"]),
            ("leases", &["leases", "list", "--quiet"]),
            ("blobs", &["content", "list", "--quiet"]),
            ("blobs being written", &["content", "active"]),
            ("images", &["images", "list", "--quiet"]),
            ("snapshots", &["snapshots", "list"]),
        ] {
            let listed = ctr(&[&["--namespace", namespace], arguments].concat());
            found.entry(kind).or_default().extend(lines(&listed));
        }
    }
    found.insert("namespaces of containerd", namespaces);
    found
}
