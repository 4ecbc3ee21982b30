//! A machine for one test: a network namespace, a directory, and a place among the few that may work at once. All that
//! was started on it ends with it, whatever happened.

use std::{
    fs::{self, File},
    io,
    net::{SocketAddr, TcpStream},
    os::{fd::AsRawFd, unix::process::CommandExt},
    path::PathBuf,
    process::Command,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use nix::{
    libc,
    sched::{CloneFlags, setns, unshare},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sha2::{Digest, Sha256};

use super::{
    http::{Answer, PATIENCE, exchange},
    mounts::unmount_below,
    slowness, tell_failures_at_once,
};

/// Machines that may be there at once: each has a containerd.
const AT_ONCE: u32 = 3;
/// Time in which what a test waits for must have come.
const DEADLINE: Duration = Duration::from_secs(60);

static TAKEN: Mutex<u32> = Mutex::new(0);
static LEFT: Condvar = Condvar::new();

/// One of the few places.
struct Place;

impl Place {
    fn take() -> Self {
        let mut taken = LEFT.wait_while(TAKEN.lock().unwrap(), |taken| *taken >= AT_ONCE).unwrap();
        *taken += 1;
        Self
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        *TAKEN.lock().unwrap() -= 1;
        LEFT.notify_one();
    }
}

/// The machine.
pub struct Machine {
    pub dir: PathBuf,
    network: File,
    place: Arc<Place>,
}

impl Machine {
    pub fn new() -> Arc<Self> {
        Self::at(Arc::new(Place::take()))
    }

    /// Another one that shares the place of this one: for those that do little.
    pub fn another(&self) -> Arc<Self> {
        Self::at(Arc::clone(&self.place))
    }

    fn at(place: Arc<Place>) -> Arc<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        tell_failures_at_once();
        assert!(nix::unistd::geteuid().is_root(), "these tests need root");
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("toft-it-{}-{number}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let namespace = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        let machine = Self { dir, network: namespace.join().unwrap(), place };
        machine.run("ip", &["link", "set", "lo", "up"]);
        Arc::new(machine)
    }

    /// A program in the machine's network.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let network = self.network.as_raw_fd();
        let enter = move || match unsafe { libc::setns(network, libc::CLONE_NEWNET) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        };
        // SAFETY: between fork and exec only one system call is made, on a descriptor that is open as long as `self`.
        unsafe { command.pre_exec(enter) };
        command
    }

    /// Runs a program that must succeed.
    pub fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.command(program).args(arguments).output().unwrap();
        assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Does `work` on a thread in the machine's network.
    pub fn spawn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> std::thread::JoinHandle<T> {
        let network = self.network.try_clone().unwrap();
        std::thread::spawn(move || {
            setns(network, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        })
    }

    /// Asks a port of the machine over HTTP.
    pub fn http(&self, port: u16, method: &str, path: &str, headers: &[(&str, &str)]) -> io::Result<Answer> {
        let (method, path) = (method.to_owned(), path.to_owned());
        let headers: Vec<_> = headers.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let asked = self.spawn(move || {
            let headers: Vec<_> = headers.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
            http_here(port, &method, &path, &headers)
        });
        asked.join().unwrap()
    }

    /// What a port answers, once somebody listens: that a process runs does not mean that it listens already.
    pub fn visit(&self, port: u16, path: &str) -> Answer {
        wait_until("the port answers", || self.http(port, "GET", path, &[]).ok())
    }

    /// Name of the control group of the appliance whose data lies in `data`.
    fn control_group(data: &std::path::Path) -> String {
        format!("toft-{}", hex::encode(&Sha256::digest(data.as_os_str().as_encoded_bytes())[..4]))
    }

    /// The directories of that control group, in every hierarchy.
    pub fn control_groups(&self, data: &std::path::Path) -> Vec<PathBuf> {
        let mut roots = vec![PathBuf::from("/sys/fs/cgroup")];
        roots.extend(fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|entry| entry.path()));
        roots.into_iter().map(|root| root.join(Self::control_group(data))).filter(|group| group.is_dir()).collect()
    }

    /// Kills every process in the containers of an appliance; they are gone when it returns.
    pub fn kill_containers(&self, data: &std::path::Path) {
        let members = || -> Vec<i32> {
            let mut pids = Vec::new();
            for group in self.control_groups(data) {
                for entry in fs::read_dir(group).into_iter().flatten().flatten() {
                    let text = fs::read_to_string(entry.path().join("cgroup.procs")).unwrap_or_default();
                    pids.extend(text.lines().filter_map(|pid| pid.parse::<i32>().ok()));
                }
            }
            pids
        };
        let ended = waited(|| {
            let left = members();
            left.iter().for_each(|pid| end(*pid));
            left.is_empty().then_some(())
        });
        if ended.is_none() {
            eprintln!("processes of containers are left: {:?}", members());
        }
    }

    /// Processes that have the machine's directory in their command line.
    pub fn processes(&self) -> Vec<(i32, String)> {
        let ours = format!("{}/", self.dir.display());
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if line.contains(&ours) {
                found.push((pid, line));
            }
        }
        found
    }

    /// Kills the machine's processes whose command line holds `word`.
    pub fn kill_processes(&self, word: &str) {
        let left = || self.processes().into_iter().filter(|(_, line)| line.contains(word)).collect::<Vec<_>>();
        let ended = waited(|| {
            let left = left();
            left.iter().for_each(|(pid, _)| end(*pid));
            left.is_empty().then_some(())
        });
        if ended.is_none() {
            eprintln!("processes are left: {:?}", left());
        }
    }

    /// Unmounts what is mounted below the directory.
    pub fn unmount(&self) {
        unmount_below(&self.dir);
    }

    /// Removes the emptied control groups of an appliance.
    pub fn remove_control_groups(&self, data: &std::path::Path) {
        for group in self.control_groups(data) {
            for entry in fs::read_dir(&group).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir()) {
                drop(fs::remove_dir(entry.path()));
            }
            drop(fs::remove_dir(&group));
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        for (pid, _) in self.processes() {
            end(pid);
        }
        self.unmount();
        drop(fs::remove_dir_all(&self.dir));
    }
}

/// Asks a port over HTTP from this thread's network.
pub fn http_here(port: u16, method: &str, path: &str, headers: &[(&str, &str)]) -> io::Result<Answer> {
    let stream = TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], port)), Duration::from_secs(5))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    exchange(stream, method, path, headers, b"")
}

/// Kills a process; one that has ended is no trouble.
pub fn end(pid: i32) {
    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
}

fn deadline() -> Duration {
    DEADLINE * slowness()
}

/// Waits until `probe` gives something.
pub fn wait_until<T>(what: &str, probe: impl FnMut() -> Option<T>) -> T {
    waited(probe).unwrap_or_else(|| panic!("{what}: not within {} s", deadline().as_secs()))
}

/// The same without a complaint: what cleans up must not panic.
fn waited<T>(mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + deadline();
    loop {
        match probe() {
            None if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(10)),
            found => return found,
        }
    }
}
