//! What befalls the machines of a local network and the links between them, and what is seen of that.

use std::{
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use super::{
    appliance::Appliance,
    lan::{Lan, address},
    machine::wait_until,
    slowness,
    trio::ask,
};

/// Longest wait for a node's answer about itself.
const PATIENCE: Duration = Duration::from_secs(2);

/// What machine `i` is called.
pub fn name(i: usize) -> String {
    char::from(b'a' + i as u8).to_string()
}

/// What a node tells of `path` by what it knows itself, if it answers in time.
pub fn local(toft: &Appliance, path: &str) -> Option<Value> {
    let socket: PathBuf = toft.data.join("toft.sock");
    let path = format!("{path}?consistency=local");
    let answer = ask(&socket, PATIENCE * slowness(), "GET", &path, &[], "").ok()?;
    (answer.status == 200).then(|| answer.json())
}

/// The state of a node as `toft` knows it.
pub fn state_of(toft: &Appliance, node: &str) -> Option<String> {
    Some(local(toft, &format!("/api/v1/nodes/{node}"))?["state"].as_str()?.to_owned())
}

/// Whether `toft` knows so many nodes, all of which are ready.
pub fn all_ready(toft: &Appliance, count: usize) -> Option<()> {
    let nodes = local(toft, "/api/v1/nodes")?;
    let nodes = nodes["items"].as_array()?;
    (nodes.len() == count && nodes.iter().all(|node| node["state"] == "ready")).then_some(())
}

/// Where the instances of a workload are, and in which state, as one node knows it; sorted.
pub fn instances(toft: &Appliance, workload: &str) -> Option<Vec<(String, String)>> {
    let told = local(toft, &format!("/api/v1/workloads/{workload}"))?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut all: Vec<_> =
        told["instances"].as_array()?.iter().map(|one| (text(&one["node"]), text(&one["state"]))).collect();
    all.sort();
    Some(all)
}

/// The nodes on which instances of a workload run, as one node knows it; sorted, a name for each instance.
pub fn running_on(toft: &Appliance, workload: &str) -> Option<Vec<String>> {
    let all = instances(toft, workload)?.into_iter();
    Some(all.filter(|(_, state)| state == "running").map(|(node, _)| node).collect())
}

impl Lan {
    /// Waits until so many vote, and each node that runs says so.
    pub fn until_voters(&self, count: usize) {
        for toft in self.nodes.iter().filter(|toft| toft.runs()) {
            wait_until(&format!("{count} vote"), || {
                let members = local(toft, "/api/v1/cluster")?;
                let votes = members["members"].as_array()?.iter().filter(|member| member["votes"] == true).count();
                (votes == count).then_some(())
            });
        }
    }

    /// Waits until each of these nodes says that all of them are ready.
    pub fn until_ready(&self, servers: &[usize]) {
        for i in servers {
            for other in servers {
                let ready = || (state_of(&self.nodes[*i], &name(*other))? == "ready").then_some(());
                wait_until(&format!("{} is ready, as {} says", name(*other), name(*i)), ready);
            }
        }
    }

    /// Waits until one of these leads and knows it.
    pub fn leader_among(&self, some: &[usize]) -> usize {
        wait_until("somebody leads", || {
            some.iter().copied().find(|i| {
                local(&self.nodes[*i], "/api/v1/cluster").is_some_and(|seen| seen["leader"] == name(*i).as_str())
            })
        })
    }

    /// Takes a machine's cable out.
    pub fn cut(&self, i: usize) {
        self.switch.run("ip", &["link", "set", &format!("port{i}"), "down"]);
    }

    /// Puts it in again.
    pub fn mend(&self, i: usize) {
        self.switch.run("ip", &["link", "set", &format!("port{i}"), "up"]);
    }

    /// Nobody of one side hears anybody of the other any more.
    pub fn part(&self, one: &[usize], other: &[usize]) {
        for (side, far) in [(one, other), (other, one)] {
            let from: Vec<String> = far.iter().map(|i| address(*i)).collect();
            for here in side {
                let machine = &self.nodes[*here].machine;
                machine.run("nft", &["add table ip parted"]);
                machine.run("nft", &["add chain ip parted input { type filter hook input priority -300; }"]);
                let rule = format!("add rule ip parted input ip saddr {{ {} }} drop", from.join(", "));
                machine.run("nft", &[&rule]);
            }
        }
    }

    /// All hear each other again.
    pub fn heal(&self) {
        for toft in &self.nodes {
            toft.machine.run("nft", &["delete table ip parted"]);
        }
    }

    /// Stops a daemon where it is.
    pub fn pause(&self, i: usize) {
        kill(Pid::from_raw(self.nodes[i].pid() as i32), Signal::SIGSTOP).unwrap();
    }

    /// Lets it go on.
    pub fn resume(&self, i: usize) {
        kill(Pid::from_raw(self.nodes[i].pid() as i32), Signal::SIGCONT).unwrap();
    }

    /// Runs a workload on node `i` first, though others could have it as well.
    pub fn run_first_on(&self, i: usize, servers: &[usize], line: &str) {
        let others: Vec<usize> = servers.iter().copied().filter(|other| *other != i).collect();
        let asked = &self.nodes[i];
        others.iter().for_each(|other| drop(asked.good(&format!("node cordon {}", name(*other)))));
        asked.good(line);
        others.iter().for_each(|other| drop(asked.good(&format!("node uncordon {}", name(*other)))));
    }

    /// Asks a published port of machine `i`, from its own network.
    pub fn visit(&self, i: usize, port: u16) -> Option<Value> {
        let answer = self.nodes[i].machine.http(port, "GET", "/json", &[]).ok()?;
        (answer.status == 200).then(|| answer.json())
    }

    /// Asks a published port of machine `i` from machine `from`.
    pub fn visit_from(&self, from: usize, i: usize, port: u16) -> bool {
        let to: SocketAddr = format!("{}:{port}", address(i)).parse().unwrap();
        let dial = move || std::net::TcpStream::connect_timeout(&to, Duration::from_secs(2)).is_ok();
        self.nodes[from].machine.spawn(dial).join().unwrap()
    }

    /// Waits until a change asked of node `i` is taken; gives how long that took.
    pub fn until_written(&self, i: usize, line: &str) -> Duration {
        let began = Instant::now();
        let arguments: Vec<&str> = line.split(' ').collect();
        wait_until(&format!("`{line}` is taken by {}", name(i)), || {
            (self.nodes[i].toft(&arguments).code == 0).then_some(())
        });
        began.elapsed()
    }
}
