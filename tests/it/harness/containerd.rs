//! A private containerd in a directory of its own, started the way the daemon does it, and everything cleaned up
//! behind it whatever happens.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use nix::{
    mount::{MsFlags, mount},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use toft::agent::runtime::{
    Availability, LoggerCommand, Runtime,
    containerd::{ContainerdConfig, ContainerdRuntime},
    supervisor::{ContainerdSupervisor, find_binary},
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::mounts::unmount_below;

/// containerd, its supervisor and a directory for them.
pub struct Lab {
    pub dir: PathBuf,
    pub supervisor: Arc<ContainerdSupervisor>,
    /// Its containerd namespace, and its control group.
    pub name: String,
    supervising: Option<(CancellationToken, JoinHandle<()>)>,
}

/// What a lab's containerd lies on.
pub enum Disk {
    /// The machine's own.
    Own,
    /// A file system in memory, of that many MiB.
    Memory(u32),
    /// An ext4 of that many MiB in a file, which [`Lab::after_a_power_cut`] looks at.
    File(u32),
}

/// A runtime on a lab's containerd. Dropping it ends only the watching.
pub struct Connected {
    pub runtime: Arc<ContainerdRuntime>,
    stop: CancellationToken,
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Lab {
    /// Needs root, containerd, runc and a static busybox.
    pub async fn start() -> Self {
        Self::start_on(Disk::Own).await
    }

    /// The same on another disk.
    pub async fn start_on(disk: Disk) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let binary = find_binary().expect("containerd is installed");
        assert!(nix::unistd::geteuid().is_root(), "containers need root");
        let tag = format!("toft-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(&tag);
        fs::create_dir_all(dir.join("c")).unwrap();
        match disk {
            Disk::Own => {}
            Disk::Memory(mib) => {
                let size = format!("size={mib}m");
                mount(Some("tmpfs"), &dir.join("c"), Some("tmpfs"), MsFlags::empty(), Some(size.as_str())).unwrap();
            }
            Disk::File(mib) => {
                let file = dir.join("disk");
                fs::File::create(&file).unwrap().set_len(u64::from(mib) << 20).unwrap();
                run(Command::new("mkfs.ext4").arg("-q").arg(&file));
                // It writes what it is asked to write, and nothing by itself.
                run(Command::new("mount").args(["-o", "loop,commit=600"]).arg(&file).arg(dir.join("c")));
            }
        }
        let supervisor = Arc::new(ContainerdSupervisor::new(&dir.join("c"), binary).unwrap());
        let mut lab = Self { dir, supervisor, name: tag, supervising: None };
        lab.supervise();
        lab
    }

    /// Begins (again) to keep containerd alive.
    pub fn supervise(&mut self) {
        let stop = CancellationToken::new();
        let (supervisor, token) = (self.supervisor.clone(), stop.clone());
        let task = tokio::spawn(async move { supervisor.run(token).await });
        self.supervising = Some((stop, task));
    }

    /// Leaves containerd alone, as a daemon that was killed does.
    pub async fn desert(&mut self) {
        if let Some((stop, task)) = self.supervising.take() {
            stop.cancel();
            task.await.unwrap();
        }
    }

    pub fn config(&self) -> ContainerdConfig {
        ContainerdConfig {
            cgroup_parent: self.name.clone(),
            namespace: self.name.clone(),
            execs: self.dir.join("execs"),
            attach: self.dir.join("attach"),
            ..ContainerdConfig::at(self.supervisor.address())
        }
    }

    /// A runtime that is up.
    pub async fn connect(&self) -> Connected {
        let stop = CancellationToken::new();
        let (runtime, watching) = ContainerdRuntime::start(self.config(), stop.clone()).unwrap();
        tokio::spawn(watching);
        wait_up(&*runtime).await;
        Connected { runtime, stop }
    }

    /// Pid of the containerd that runs.
    pub fn pid(&self) -> Option<u32> {
        let config = self.dir.join("c/config.toml");
        processes(&config.to_string_lossy()).into_iter().find(|(_, line)| line.contains("--config")).map(|(pid, _)| pid)
    }

    /// A logger that writes what the container says into `<dir>/out` and `<dir>/err`, slowly.
    pub fn logger(&self) -> LoggerCommand {
        let program = self.dir.join("logger");
        if !program.exists() {
            let script = "#!/bin/busybox sh\ntrap '' TERM\nwhile [ $# -gt 1 ]; do eval \"$1=\\$2\"; shift 2; done\n\
                exec 5>&-\n\
                cat <&3 >>$dir/$CONTAINER_ID.out & cat <&4 >>$dir/$CONTAINER_ID.err & exec 3<&- 4<&-\nwait\n\
                echo done >$dir/$CONTAINER_ID.done\n";
            fs::write(&program, script).unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        }
        LoggerCommand { program, args: vec![("dir".into(), self.dir.to_string_lossy().into_owned())] }
    }

    /// Pids of the shims of a container.
    pub fn shims(&self, id: &str) -> Vec<u32> {
        let ours = processes(&format!("-id {id}"));
        ours.into_iter().filter(|(_, line)| line.contains("containerd-shim")).map(|(pid, _)| pid).collect()
    }

    /// What would be left in containerd's folder if the power were cut now: a copy of what has reached the disk.
    pub fn after_a_power_cut(&self) -> PathBuf {
        let (copy, folder) = (self.dir.join("disk-afterwards"), self.dir.join("afterwards"));
        run(Command::new("cp").arg("--sparse=always").arg(self.dir.join("disk")).arg(&copy));
        fs::create_dir(&folder).unwrap();
        run(Command::new("mount").args(["-o", "loop"]).arg(&copy).arg(&folder));
        folder
    }

    /// What a power cut does: every process of the lab ends at once, mounts and state are gone.
    pub fn switch_off(&self) {
        self.end_all();
        let _ = fs::remove_dir_all(self.dir.join("c/state"));
    }

    pub fn control_groups(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut roots = vec![PathBuf::from("/sys/fs/cgroup")];
        roots.extend(fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|entry| entry.path()));
        for root in roots {
            let group = root.join(&self.name);
            if group.is_dir() {
                found.push(group);
            }
        }
        found
    }
}

fn run(command: &mut Command) {
    let done = command.output().unwrap();
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
}

pub async fn wait_up(runtime: &dyn Runtime) {
    let mut availability = runtime.availability();
    let up = availability.wait_for(|now| matches!(now, Availability::Up(_)));
    tokio::time::timeout(Duration::from_secs(20) * super::slowness(), up).await.expect("containerd answers").unwrap();
}

/// Processes with `text` in their command line.
fn processes(text: &str) -> Vec<(u32, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(text) && pid != std::process::id() {
            found.push((pid, line));
        }
    }
    found
}

fn end(pid: u32) {
    let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
}

impl Lab {
    fn end_all(&self) {
        let dir = self.dir.to_string_lossy().into_owned();
        for _ in 0..50 {
            let mut left = processes(&format!("{dir}/"));
            for group in self.control_groups() {
                for entry in fs::read_dir(group).unwrap().flatten() {
                    let members = fs::read_to_string(entry.path().join("cgroup.procs")).unwrap_or_default();
                    left.extend(members.lines().filter_map(|pid| Some((pid.parse().ok()?, String::new()))));
                }
            }
            if left.is_empty() {
                break;
            }
            left.iter().for_each(|(pid, _)| end(*pid));
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = fs::remove_dir_all(Path::new("/run/containerd/runc").join(&self.name));
        let bundles = self.dir.join("c/state/io.containerd.runtime.v2.task").join(&self.name);
        for bundle in fs::read_dir(bundles).into_iter().flatten().flatten() {
            let address = fs::read_to_string(bundle.path().join("address")).unwrap_or_default();
            let _ = fs::remove_file(address.trim_start_matches("unix://"));
        }
        unmount_below(&self.dir);
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Some((stop, task)) = self.supervising.take() {
            stop.cancel();
            task.abort();
        }
        self.end_all();
        for group in self.control_groups() {
            for entry in fs::read_dir(&group).unwrap().flatten().filter(|entry| entry.path().is_dir()) {
                let _ = fs::remove_dir(entry.path());
            }
            let _ = fs::remove_dir(&group);
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}
