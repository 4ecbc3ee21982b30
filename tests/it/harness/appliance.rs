//! A real appliance: the built program on a machine of its own, with a real containerd.

use std::{
    fs::{self, OpenOptions},
    io::{BufRead, BufReader, Read, Seek, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, OnceLock, mpsc},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

use super::{
    http::{Answer, PATIENCE, exchange},
    image,
    machine::{Machine, wait_until},
    slowness,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_toft");
/// Longest time a command may take.
const COMMAND: Duration = Duration::from_secs(90);

/// What a command did.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ran {
    /// Its output, if it succeeded.
    pub fn good(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.out
    }

    /// Its complaint, if it ended with `code`.
    pub fn bad(self, code: i32) -> String {
        assert_eq!(self.code, code, "{self:?}");
        self.err
    }
}

/// The appliance. Dropping it ends everything it started.
pub struct Appliance {
    pub machine: Arc<Machine>,
    pub data: PathBuf,
    daemon: Option<Child>,
    flags: Vec<String>,
    variables: Vec<(String, String)>,
    programs: Option<PathBuf>,
}

impl Appliance {
    /// One that is ready, on a new machine.
    pub fn start() -> Self {
        Self::start_on(&Machine::new(), "d")
    }

    /// One that is ready, on a machine that is there already.
    pub fn start_on(machine: &Arc<Machine>, name: &str) -> Self {
        let mut appliance = Self::prepare(machine, name);
        appliance.up();
        appliance
    }

    /// A data directory without anything that runs.
    pub fn prepare(machine: &Arc<Machine>, name: &str) -> Self {
        let data = machine.dir.join(name);
        fs::create_dir_all(&data).unwrap();
        Self {
            machine: Arc::clone(machine),
            data,
            daemon: None,
            flags: Vec::new(),
            variables: Vec::new(),
            programs: None,
        }
    }

    fn program(&self) -> Command {
        let mut command = self.machine.command(PROGRAM);
        let matters = |name: &str| name.starts_with("TOFT_") || name.to_ascii_lowercase().ends_with("_proxy");
        for (name, _) in std::env::vars_os().filter(|(name, _)| matters(&name.to_string_lossy())) {
            command.env_remove(name);
        }
        command.env("HOME", &self.machine.dir).env_remove("RUST_LOG").stdin(Stdio::null());
        command
    }

    /// `toft up`, ready to be started or changed.
    pub fn up_command(&self) -> Command {
        let mut command = self.program();
        // Unless a test says otherwise, so that it can read what is answered.
        command.env("TOFT_PLAIN_HTTP", "true");
        command.args(["up", "--data-dir"]).arg(&self.data).args(&self.flags).envs(self.variables.iter().cloned());
        if let Some(programs) = &self.programs {
            let path = std::env::var_os("PATH").unwrap_or_default();
            let places = std::iter::once(programs.clone()).chain(std::env::split_paths(&path));
            command.env("PATH", std::env::join_paths(places).unwrap());
        }
        command
    }

    /// Further arguments for `toft up`.
    pub fn set_flags(&mut self, flags: &[&str]) {
        self.flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
    }

    /// Environment variables for `toft up`.
    pub fn set_variables(&mut self, variables: &[(&str, &str)]) {
        self.variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    }

    /// A folder whose programs it finds before all others.
    pub fn set_programs(&mut self, folder: &Path) {
        self.programs = Some(folder.to_owned());
    }

    /// Starts it without waiting.
    pub fn launch(&mut self) {
        assert!(self.daemon.is_none(), "it runs already");
        let log = OpenOptions::new().create(true).append(true).open(self.log_path()).unwrap();
        self.daemon = Some(self.up_command().stdout(Stdio::null()).stderr(log).spawn().unwrap());
    }

    /// Starts it and waits until it is ready.
    pub fn up(&mut self) {
        self.launch();
        wait_until("the appliance is ready", || {
            if let Some(status) = self.daemon.as_mut().unwrap().try_wait().unwrap() {
                panic!("`toft up` ended with {status}:\n{}", self.log());
            }
            self.try_request("GET", "/ready", &[], b"").ok().filter(|answer| answer.status == 200)
        });
    }

    /// Runs `toft up`, which is expected to refuse.
    pub fn up_refuses(&self) -> Ran {
        output(self.up_command())
    }

    /// Whether its daemon was started and has not been ended.
    pub fn runs(&self) -> bool {
        self.daemon.is_some()
    }

    pub fn pid(&self) -> u32 {
        self.daemon.as_ref().unwrap().id()
    }

    /// Ends the daemon as a crash would.
    pub fn kill(&mut self) {
        let mut daemon = self.daemon.take().unwrap();
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }

    /// Ends the daemon as an administrator would, and gives its exit code.
    pub fn stop(&mut self) -> i32 {
        kill(Pid::from_raw(self.pid() as i32), Signal::SIGTERM).unwrap();
        self.ended()
    }

    /// Waits for the daemon's end, and gives its exit code.
    pub fn ended(&mut self) -> i32 {
        let mut daemon = self.daemon.take().unwrap();
        let status = wait_until("the daemon ends", || daemon.try_wait().unwrap());
        status.code().unwrap_or(-1)
    }

    /// Runs `toft down` while the daemon runs; takes note of the daemon's end only afterwards.
    pub fn down(&mut self) -> Ran {
        let mut daemon = self.daemon.take().unwrap();
        let ran = output(self.down_command());
        assert!(daemon.wait().unwrap().success());
        ran
    }

    /// A command of the daemon's own, on its data directory.
    pub fn own(&self, arguments: &[&str]) -> Ran {
        let mut command = self.program();
        command.args(arguments).arg("--data-dir").arg(&self.data);
        output(command)
    }

    fn down_command(&self) -> Command {
        let mut command = self.program();
        command.args(["down", "--data-dir"]).arg(&self.data);
        command
    }

    fn log_path(&self) -> PathBuf {
        self.data.with_extension("log")
    }

    /// What the daemon said, over all its lives.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// A client command, to be started.
    pub fn client(&self, arguments: &[&str]) -> Command {
        let mut command = self.program();
        command.arg("--connect").arg(format!("unix://{}/toft.sock", self.data.display())).args(arguments);
        command
    }

    /// Runs a client command to its end.
    pub fn toft(&self, arguments: &[&str]) -> Ran {
        output(self.client(arguments))
    }

    /// Runs a client command that reads `input`.
    pub fn reading(&self, arguments: &[&str], input: &str) -> Ran {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(input.as_bytes()).unwrap();
        file.rewind().unwrap();
        let mut command = self.client(arguments);
        command.stdin(file);
        output(command)
    }

    /// Runs a client command given as one line, which must succeed.
    pub fn good(&self, line: &str) -> String {
        self.toft(&line.split(' ').collect::<Vec<_>>()).good()
    }

    /// What a client command prints as JSON.
    pub fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.good(line)).unwrap()
    }

    /// Starts a client command and gives its output line by line.
    pub fn follow(&self, arguments: &[&str]) -> Follower {
        let mut child = self.client(arguments).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Follower { child, lines }
    }

    pub fn try_request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> std::io::Result<Answer> {
        let stream = UnixStream::connect(self.data.join("toft.sock"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        exchange(stream, method, path, headers, body)
    }

    /// Asks through the socket.
    pub fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        self.try_request(method, path, headers, body).unwrap_or_else(|e| panic!("{method} {path}: {e}"))
    }

    pub fn get(&self, path: &str) -> Answer {
        self.request("GET", path, &[], b"")
    }

    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.request("POST", path, &[], body.to_string().as_bytes())
    }

    pub fn put(&self, path: &str, headers: &[(&str, &str)], body: &Value) -> Answer {
        self.request("PUT", path, headers, body.to_string().as_bytes())
    }

    /// The one instance of a workload.
    pub fn instance(&self, workload: &str) -> Value {
        self.get(&format!("/api/v1/workloads/{workload}")).good()["instances"][0].clone()
    }

    /// Waits until the one instance of a workload is as it should be.
    pub fn instance_until(&self, workload: &str, what: &str, mut is: impl FnMut(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        wait_until(&format!("{workload} {what}"), || {
            last = self.instance(workload);
            is(&last).then(|| last.clone())
        })
    }

    /// The records of what a workload wrote.
    pub fn records(&self, workload: &str, query: &str) -> Vec<Value> {
        let answer = self.get(&format!("/api/v1/workloads/{workload}/logs{query}"));
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// What a workload wrote, a text a line.
    pub fn logs(&self, workload: &str) -> Vec<String> {
        self.records(workload, "").iter().map(|record| record["text"].as_str().unwrap().to_owned()).collect()
    }

    /// The newest log file of a workload's one instance, also while no daemon runs.
    pub fn log_file(&self, instance: &Value) -> PathBuf {
        self.data.join("logs").join(instance["id"].as_str().unwrap()).join("current.log")
    }

    /// Puts the image `busybox` into the store.
    pub fn import_busybox(&self) {
        static ARCHIVE: OnceLock<Vec<u8>> = OnceLock::new();
        let archive =
            ARCHIVE.get_or_init(|| image::busybox("docker.io/library/busybox:latest", json!({"Cmd": ["sh"]})));
        let imported = self.request("POST", "/api/v1/images/import", &[], archive);
        assert_eq!(imported.good()[0]["name"], "busybox:latest");
    }

    /// How many containers have a shim.
    pub fn shims(&self) -> usize {
        let shim = |line: &str| line.contains("containerd-shim") && line.contains(&format!("{}/", self.data.display()));
        self.machine.processes().iter().filter(|(_, line)| shim(line)).count()
    }

    pub fn containerd_pid(&self) -> i32 {
        let config = format!("--config {}/containerd/config.toml", self.data.display());
        let found = self.machine.processes().into_iter().find(|(_, line)| line.contains(&config));
        found.expect("containerd runs").0
    }
}

impl Drop for Appliance {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- what the appliance in {} said:\n{}---", self.data.display(), self.log());
        }
        if self.daemon.is_some() {
            self.kill();
        }
        // Killed first, for many a test's container has no ear for a stop signal.
        self.machine.kill_containers(&self.data);
        if self.data.join("containerd").exists() {
            let down = output(self.down_command());
            if down.code != 0 {
                eprintln!("`toft down` failed: {down:?}");
            }
        }
        self.machine.kill_processes(&format!("{}/", self.data.display()));
        self.machine.remove_control_groups(&self.data);
    }
}

/// A command that goes on, and its lines.
pub struct Follower {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Follower {
    /// The next line.
    pub fn line(&self) -> String {
        self.lines.recv_timeout(COMMAND * slowness()).expect("another line")
    }

    /// Waits for the end; gives the exit code and the lines that were left.
    pub fn end(mut self) -> (i32, Vec<String>) {
        let status = wait_until("the command ends", || self.child.try_wait().unwrap());
        (status.code().unwrap_or(-1), self.lines.iter().collect())
    }

    /// Sends a signal, as a terminal would.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn output(mut command: Command) -> Ran {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let read = |mut pipe: Box<dyn Read + Send>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            drop(pipe.read_to_end(&mut bytes));
            String::from_utf8_lossy(&bytes).into_owned()
        })
    };
    let out = read(Box::new(child.stdout.take().unwrap()));
    let err = read(Box::new(child.stderr.take().unwrap()));
    let deadline = Instant::now() + COMMAND * slowness();
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break Some(status),
            None if Instant::now() > deadline => {
                child.kill().unwrap();
                child.wait().unwrap();
                break None;
            }
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    let ran = Ran {
        code: status.and_then(|status| status.code()).unwrap_or(-1),
        out: out.join().unwrap(),
        err: err.join().unwrap(),
    };
    assert!(status.is_some(), "it did not end: {command:?} {ran:?}");
    ran
}
