//! `toft dev` as a fixture: a whole cluster on made-up machines.

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use super::{machine::wait_until, mounts::unmount_below, tell_failures_at_once};

/// A made-up cluster that ends with its test.
pub struct Dev {
    /// Its process.
    pub process: Child,
    _folder: tempfile::TempDir,
    /// Its folder.
    pub data: PathBuf,
}

impl Dev {
    /// Starts one.
    pub fn start(arguments: &[&str]) -> Self {
        tell_failures_at_once();
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("dev");
        let mut command = Command::new(env!("CARGO_BIN_EXE_toft"));
        command.args(["dev", "--bind", "127.0.0.1:0", "--data-dir"]).arg(&data).args(arguments);
        let process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let dev = Self { process, _folder: folder, data };
        wait_until("the first node answers", || dev.toft(&["node", "ls"]));
        dev
    }

    /// Address of the first node's dashboard, and the first password of `admin`.
    pub fn address(&self) -> (String, String) {
        let read = |name: &str| std::fs::read_to_string(self.data.join("node-1").join(name)).unwrap();
        (read("toft.url").trim().trim_end_matches('/').to_owned(), read("admin-password").trim().to_owned())
    }

    /// Sends JSON to the API of the first node.
    pub fn send(&self, method: &str, path: &str, body: &Value) -> super::http::Answer {
        let stream = std::os::unix::net::UnixStream::connect(self.data.join("node-1/toft.sock")).unwrap();
        super::http::exchange(stream, method, path, &[], body.to_string().as_bytes()).unwrap()
    }

    /// What a command of the first node prints, when it works.
    pub fn toft(&self, arguments: &[&str]) -> Option<String> {
        let ran = self.command(arguments).output().unwrap();
        ran.status.success().then(|| String::from_utf8(ran.stdout).unwrap())
    }

    /// A command of the first node, not run yet.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let socket = format!("unix://{}", self.data.join("node-1/toft.sock").display());
        let mut command = Command::new(env!("CARGO_BIN_EXE_toft"));
        command.args(["--connect", &socket]).args(arguments);
        command
    }

    /// What it prints as JSON, asked for as such.
    pub fn json(&self, arguments: &[&str]) -> Vec<Value> {
        let text = self.toft(&[arguments, &["--json"]].concat());
        serde_json::from_str(&text.expect("the command works")).unwrap()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.process.id().cast_signed()), signal).unwrap();
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        // Whoever is killed leaves what it has mounted.
        unmount_below(&self.data);
    }
}
