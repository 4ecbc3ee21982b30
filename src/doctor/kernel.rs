//! What the kernel has. Interfaces and packet rules are tried out in a network namespace of their own, which goes with the
//! thread that made it: lists of modules say little about kernels that were built another way.

use std::{
    fs,
    io::{self, Write},
    path::Path,
    process::{Command, Stdio},
};

use nix::sched::{CloneFlags, unshare};
use rtnetlink::{LinkBridge, LinkMessageBuilder, LinkVeth};

use super::{Check, Said, failure, is_root, ok, skipped, warning};

/// Rules of every kind that toft makes.
const RULES: &str = "table ip toft_doctor {
chain before { type nat hook prerouting priority -100; tcp dport 80 dnat to 10.0.0.2:80; }
chain after { type nat hook postrouting priority 100; ip saddr 10.0.0.0/24 masquerade; }
chain between { type filter hook forward priority 0; ct state established accept; }
}\n";
const MODULES: &str = "install the modules of this kernel: sudo apt-get install linux-modules-extra-$(uname -r)";

pub(super) fn checks() -> Vec<Check> {
    let kind = |name: &str| has_file_system(name);
    let overlay = match kind("overlay") || is_module("overlay") {
        true => ok("the kernel has it"),
        false => failure(
            "the kernel has no overlay file system, which layers of images need",
            format!("sudo modprobe overlay; {MODULES}"),
        ),
    };
    let mut checks = vec![
        release().of("kernel", "version"),
        overlay.of("kernel", "overlay"),
        seccomp(&fs::read_to_string("/proc/self/status").unwrap_or_default()).of("kernel", "seccomp"),
        pressure(Path::new("/proc/pressure/memory").exists()).of("kernel", "pressure"),
    ];
    checks.extend(cgroups());
    checks.extend(tried());
    checks
}

fn release() -> Said {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    judge_release(release.trim())
}

fn judge_release(release: &str) -> Said {
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) < (5, 6) => {
            warning(format!("{release}; `toft cp` needs 5.6 or newer"), "upgrade the distribution")
        }
        _ => ok(release.to_owned()),
    }
}

fn has_file_system(name: &str) -> bool {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    known.lines().any(|line| line.split_whitespace().last() == Some(name))
}

/// Whether the kernel could load that module.
fn is_module(name: &str) -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let dir = Path::new("/lib/modules").join(release.trim());
    let file = format!("/{name}.ko");
    ["modules.dep", "modules.builtin"]
        .iter()
        .any(|list| fs::read_to_string(dir.join(list)).is_ok_and(|text| text.lines().any(|line| line.contains(&file))))
}

fn seccomp(status: &str) -> Said {
    if status.lines().any(|line| line.starts_with("Seccomp:")) {
        return ok("system calls of containers can be filtered");
    }
    failure(
        "the kernel cannot filter system calls; containers do not start with the usual profile",
        "boot a kernel with CONFIG_SECCOMP_FILTER=y, as distributions have it",
    )
}

fn pressure(there: bool) -> Said {
    match there {
        true => ok("the kernel tells how long processes wait"),
        false => skipped("the kernel does not tell how long processes wait; add `psi=1` to its command line to see it"),
    }
}

/// Control groups of either version, with what limits are made of.
fn cgroups() -> Vec<Check> {
    let unified = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").ok();
    let version =
        match (&unified, Path::new("/sys/fs/cgroup/memory").exists() || Path::new("/sys/fs/cgroup/pids").exists()) {
            (Some(_), _) => ok("version 2"),
            (None, true) => ok("version 1"),
            (None, false) => {
                failure("no control groups are mounted at /sys/fs/cgroup", "sudo mount -t cgroup2 none /sys/fs/cgroup")
            }
        };
    let mut checks = vec![version.of("kernel", "control groups")];
    for (name, controller) in [("memory limits", "memory"), ("process limits", "pids"), ("cpu limits", "cpu")] {
        let there = match &unified {
            Some(controllers) => controllers.split_whitespace().any(|known| known == controller),
            None => Path::new("/sys/fs/cgroup").join(controller).exists(),
        };
        checks.push(judge_controller(controller, there).of("kernel", name));
    }
    checks
}

fn judge_controller(controller: &str, there: bool) -> Said {
    match (controller, there) {
        (_, true) => ok(format!("the controller `{controller}` is there")),
        ("memory", false) => failure(
            "the controller `memory` is off; containers can take all memory of the machine",
            "add `cgroup_enable=memory cgroup_memory=1` to the kernel's command line (/boot/firmware/cmdline.txt on a Raspberry Pi, GRUB_CMDLINE_LINUX in /etc/default/grub elsewhere) and reboot",
        ),
        (_, false) => warning(
            format!("the controller `{controller}` is off; limits of that kind are not kept"),
            "boot a kernel that has it, as distributions do",
        ),
    }
}

/// What was tried in a namespace of its own.
struct Tried {
    bridge: Result<(), String>,
    veth: Result<(), String>,
    rules: Result<(), Rules>,
}

enum Rules {
    Missing,
    Refused(String),
}

fn tried() -> Vec<Check> {
    const NAMES: [&str; 3] = ["bridge", "veth", "nftables"];
    let all = |said: fn() -> Said| NAMES.map(|name| said().of("kernel", name)).into();
    if !is_root() {
        return all(|| skipped("needs root: sudo toft doctor"));
    }
    let worker = std::thread::Builder::new().name("doctor".to_owned()).spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (bridge, veth) = runtime.block_on(interfaces())?;
        Ok::<_, io::Error>(Tried { bridge, veth, rules: rules() })
    });
    let Ok(Ok(tried)) = worker.map(|worker| worker.join().unwrap_or_else(|_| Err(io::Error::other("it panicked"))))
    else {
        return all(|| {
            failure("network namespaces cannot be made", "boot a kernel with CONFIG_NET_NS=y, as distributions have it")
        });
    };
    let interface = |name: &'static str, made: Result<(), String>| match made {
        Ok(()) => ok("one can be made").of("kernel", name),
        Err(why) => {
            failure(format!("none can be made: {why}"), format!("sudo modprobe {name}; {MODULES}")).of("kernel", name)
        }
    };
    vec![
        interface("bridge", tried.bridge),
        interface("veth", tried.veth),
        judge_rules(tried.rules).of("kernel", "nftables"),
    ]
}

fn judge_rules(rules: Result<(), Rules>) -> Said {
    match rules {
        Ok(()) => ok("`nft` is there, and the kernel takes its rules"),
        Err(Rules::Missing) => failure(
            "the program `nft` is not in PATH; published ports and the network of containers need it",
            "sudo apt-get install nftables    (and see that its directory, /usr/sbin, is in PATH)",
        ),
        Err(Rules::Refused(why)) => failure(
            format!("the kernel refuses packet rules: {why}"),
            format!("sudo modprobe -a nf_tables nft_nat nft_masq nft_ct nft_chain_nat; {MODULES}"),
        ),
    }
}

type Made = Result<(), String>;

async fn interfaces() -> io::Result<(Made, Made)> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    let asked = async {
        let bridge = handle.link().add(LinkBridge::new("probe0").build()).execute().await;
        let veth: LinkMessageBuilder<LinkVeth> = LinkVeth::new("probe1", "probe2");
        let veth = handle.link().add(veth.build()).execute().await;
        let told = |made: Result<(), rtnetlink::Error>| made.map_err(|error| words(&error));
        (told(bridge), told(veth))
    };
    tokio::select! {
        made = asked => Ok(made),
        () = connection => Err(io::Error::other("the kernel closed the socket")),
    }
}

fn words(error: &rtnetlink::Error) -> String {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io().to_string(),
        other => other.to_string(),
    }
}

/// Runs `nft` in the namespace of this thread.
fn rules() -> Result<(), Rules> {
    let mut command = Command::new("nft");
    command.args(["-f", "-"]).env("LC_ALL", "C").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let refused = |error: io::Error| Rules::Refused(error.to_string());
    let mut child = command.spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Rules::Missing,
        _ => refused(error),
    })?;
    if let Some(mut input) = child.stdin.take() {
        // It may have ended; its own words say why.
        let _ = input.write_all(RULES.as_bytes());
    }
    let output = child.wait_with_output().map_err(refused)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Rules::Refused(said.lines().next().unwrap_or("it does not say why").trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn what_is_missing_is_told_with_its_remedy() {
        let memory = judge_controller("memory", false);
        assert!(memory.verdict == Verdict::Failure && memory.fix.unwrap().contains("cgroup_enable=memory"));
        assert_eq!(judge_controller("cpu", false).verdict, Verdict::Warning);
        assert_eq!(judge_controller("cpu", true).verdict, Verdict::Ok);
        assert_eq!(seccomp("Name:\tx\n").verdict, Verdict::Failure);
        assert_eq!(seccomp("Seccomp:\t0\n").verdict, Verdict::Ok);
        assert_eq!(pressure(false).verdict, Verdict::NotApplicable);
        assert!(judge_rules(Err(Rules::Missing)).fix.unwrap().contains("apt-get install nftables"));
        assert!(judge_rules(Err(Rules::Refused("why".into()))).message.ends_with("why"));
    }

    #[test]
    fn kernels_are_told_apart_by_their_first_two_numbers() {
        for (release, verdict) in [
            ("5.4.0-100-generic", Verdict::Warning),
            ("5.10.1", Verdict::Ok),
            ("6.1", Verdict::Ok),
            ("odd", Verdict::Ok),
        ] {
            assert_eq!(judge_release(release).verdict, verdict, "{release}");
        }
    }

    #[test]
    fn this_kernel_can_be_tried_and_nothing_is_left() {
        let before = fs::read_dir("/sys/class/net").unwrap().count();
        let tried = tried();
        assert!(tried.iter().all(|check| check.verdict == Verdict::Ok), "{tried:?}");
        assert_eq!(fs::read_dir("/sys/class/net").unwrap().count(), before);
    }
}
