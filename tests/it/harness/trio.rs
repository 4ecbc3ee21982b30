//! Three members of one cluster, each on a machine of its own, joined by a switch: witnesses, which have the whole state and no
//! containers, where those play no part.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Child,
    sync::Arc,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use super::{
    appliance::Appliance,
    http::{Answer, exchange},
    machine::{Machine, wait_until},
};

/// Where the members listen for each other.
const PORT: u16 = 7444;

/// The cluster. Member `i` is called `n` and its number.
pub struct Trio {
    pub nodes: [Appliance; 3],
    switch: Arc<Machine>,
}

fn address(i: usize) -> String {
    format!("192.0.2.{}", i + 1)
}

fn name(i: usize) -> String {
    format!("n{i}")
}

/// A process that does nothing but hold a machine's network open for `ip`.
struct Holder(Child);

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Trio {
    /// Three witnesses.
    pub fn start() -> Self {
        Self::of("witness")
    }

    /// Three that run containers.
    pub fn of_servers() -> Self {
        Self::of("server")
    }

    /// All three vote, and each of them says so.
    fn of(role: &str) -> Self {
        let switch = Machine::new();
        switch.run("ip", &["link", "add", "lan", "type", "bridge"]);
        switch.run("ip", &["link", "set", "lan", "up"]);
        let nodes = [0, 1, 2].map(|i| {
            let machine = switch.another();
            let holder = Holder(machine.command("sleep").arg("300").spawn().unwrap());
            let (port, holder_id) = (format!("port{i}"), holder.0.id().to_string());
            let pair = ["link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &holder_id];
            switch.run("ip", &pair);
            switch.run("ip", &["link", "set", &port, "master", "lan", "up"]);
            machine.run("ip", &["addr", "add", &format!("{}/24", address(i)), "dev", "eth0"]);
            machine.run("ip", &["link", "set", "eth0", "up"]);
            let toft = Appliance::prepare(&machine, "d");
            let (name, address) = (name(i), address(i));
            let text =
                format!("[node]\nname = \"{name}\"\n[cluster]\nbind = \"{address}:{PORT}\"\nrole = \"{role}\"\n");
            fs::write(toft.data.join("toft.toml"), text).unwrap();
            toft
        });
        let mut trio = Self { nodes, switch };
        trio.nodes[0].up();
        let token = trio.nodes[0].good(&format!("token create -q --uses 2 --role {role}"));
        let through = format!("{}:{PORT}", address(0));
        for node in &mut trio.nodes[1..] {
            let file = node.machine.dir.join("token");
            fs::write(&file, &token).unwrap();
            node.set_flags(&["--join", &through, "--token-file", file.to_str().unwrap()]);
            node.up();
            node.set_flags(&[]);
        }
        for i in 0..3 {
            wait_until("all three vote", || (trio.members_that(i, "votes")? == 3).then_some(()));
        }
        trio
    }

    /// The sockets on which clients reach the members, whatever happens to the network.
    pub fn sockets(&self) -> [PathBuf; 3] {
        [0, 1, 2].map(|i| self.nodes[i].data.join("toft.sock"))
    }

    fn status(&self, i: usize) -> Option<Value> {
        let answer = ask(&self.sockets()[i], Duration::from_secs(1), "GET", "/api/v1/cluster", &[], "").ok()?;
        (answer.status == 200).then(|| answer.json())
    }

    fn members_that(&self, i: usize, what: &str) -> Option<usize> {
        let status = self.status(i)?;
        Some(status["members"].as_array()?.iter().filter(|member| member[what] == true).count())
    }

    /// How much of the log a member has applied.
    pub fn applied(&self, i: usize) -> Option<u64> {
        self.status(i)?["applied"].as_u64()
    }

    /// Who leads and knows it; waits until somebody does.
    pub fn leader(&self) -> usize {
        wait_until("somebody leads", || (0..3).find(|i| self.status(*i).is_some_and(|seen| seen["leader"] == name(*i))))
    }

    /// Takes a member's cable out.
    pub fn cut(&self, i: usize) {
        self.switch.run("ip", &["link", "set", &format!("port{i}"), "down"]);
    }

    /// Puts it in again.
    pub fn mend(&self, i: usize) {
        self.switch.run("ip", &["link", "set", &format!("port{i}"), "up"]);
    }

    /// Two members cannot hear each other any more; both hear the third.
    pub fn part(&self, one: usize, other: usize) {
        for (here, there) in [(one, other), (other, one)] {
            let machine = &self.nodes[here].machine;
            machine.run("nft", &["add table ip parted"]);
            machine.run("nft", &["add chain ip parted input { type filter hook input priority 0; }"]);
            machine.run("nft", &[&format!("add rule ip parted input ip saddr {} drop", address(there))]);
        }
    }

    pub fn join(&self, one: usize, other: usize) {
        for here in [one, other] {
            self.nodes[here].machine.run("nft", &["delete table ip parted"]);
        }
    }

    /// Each link loses so many of a hundred packets, in both directions. Not every kernel has netem; all have this.
    pub fn lose(&self, percent: u32) {
        for node in &self.nodes {
            node.machine.run("nft", &["add table ip lossy"]);
            node.machine.run("nft", &["add chain ip lossy input { type filter hook input priority 0; }"]);
            let rule = format!("add rule ip lossy input iifname eth0 numgen random mod 100 < {percent} drop");
            node.machine.run("nft", &[&rule]);
        }
    }

    pub fn lose_nothing(&self) {
        for node in &self.nodes {
            node.machine.run("nft", &["delete table ip lossy"]);
        }
    }

    /// Each member sends no more than so much, like `8mbit`.
    pub fn narrow(&self, rate: &str) {
        for node in &self.nodes {
            let queue =
                ["qdisc", "add", "dev", "eth0", "root", "tbf", "rate", rate, "burst", "32k", "latency", "400ms"];
            node.machine.run("tc", &queue);
        }
    }

    /// Stops a member's process where it is.
    pub fn pause(&self, i: usize) {
        kill(Pid::from_raw(self.nodes[i].pid() as i32), Signal::SIGSTOP).unwrap();
    }

    /// Lets it go on.
    pub fn resume(&self, i: usize) {
        kill(Pid::from_raw(self.nodes[i].pid() as i32), Signal::SIGCONT).unwrap();
    }
}

/// Asks a member, who may be down, hung or slow.
pub fn ask(
    socket: &Path,
    patience: Duration,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> std::io::Result<Answer> {
    let stream = std::os::unix::net::UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    exchange(stream, method, path, headers, body.as_bytes())
}
