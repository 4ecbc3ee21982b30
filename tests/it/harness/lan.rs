//! Machines with an appliance each, joined by a switch, at which somebody can listen.

use std::{
    ffi::OsString,
    fs,
    os::fd::AsRawFd,
    process::Child,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use nix::{
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt},
    sys::time::TimeVal,
};

use super::{appliance::Appliance, machine::Machine};

/// Where members listen for each other.
pub const MEMBERS: u16 = 7444;

/// The machines. Number `i` has the addresses `192.0.2.(i+1)`, and its appliance is called by the `i`th letter.
pub struct Lan {
    pub nodes: Vec<Appliance>,
    pub switch: Arc<Machine>,
}

/// A process that does nothing but hold a machine's network open for `ip`.
pub(super) struct Holder(pub(super) Child);

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

pub fn address(i: usize) -> String {
    format!("192.0.2.{}", i + 1)
}

impl Lan {
    /// As many as `roles`, each `server` or `witness`, none of which runs yet.
    pub fn prepare(roles: &[&str]) -> Self {
        let switch = Machine::new();
        switch.run("ip", &["link", "add", "lan", "type", "bridge"]);
        switch.run("ip", &["link", "set", "lan", "up"]);
        switch.run("ip", &["addr", "add", "192.0.2.250/24", "dev", "lan"]);
        let node = |(i, role): (usize, &&str)| {
            let machine = switch.another();
            let holder = Holder(machine.command("sleep").arg("300").spawn().unwrap());
            let (port, holder_id) = (format!("port{i}"), holder.0.id().to_string());
            switch.run("ip", &["link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &holder_id]);
            switch.run("ip", &["link", "set", &port, "master", "lan", "up"]);
            machine.run("ip", &["link", "set", "eth0", "up"]);
            machine.run("ip", &["addr", "add", &format!("{}/24", address(i)), "dev", "eth0"]);
            let toft = Appliance::prepare(&machine, "d");
            let name = char::from(b'a' + i as u8);
            let text = format!(
                "[node]\nname = \"{name}\"\n[cluster]\nbind = \"{}:{MEMBERS}\"\nrole = \"{role}\"\n",
                address(i)
            );
            fs::write(toft.data.join("toft.toml"), text).unwrap();
            toft
        };
        let nodes = roles.iter().enumerate().map(node).collect();
        Self { nodes, switch }
    }

    /// The same, all of one cluster.
    pub fn start(roles: &[&str]) -> Self {
        let mut lan = Self::prepare(roles);
        lan.nodes[0].up();
        for (i, role) in roles.iter().enumerate().skip(1) {
            let token = lan.nodes[0].good(&format!("token create -q --role {role}"));
            lan.join(i, &token);
        }
        lan
    }

    /// Starts machine `i`, which joins through the first one.
    pub fn join(&mut self, i: usize, token: &str) {
        let through = format!("{}:{MEMBERS}", address(0));
        let node = &mut self.nodes[i];
        let file = node.machine.dir.join("token");
        fs::write(&file, token).unwrap();
        node.set_flags(&["--join", &through, "--token-file", file.to_str().unwrap()]);
        node.up();
        node.set_flags(&[]);
    }

    /// Gives a machine another address, and takes the one it had.
    pub fn move_to(&self, i: usize, address: &str) {
        let machine = &self.nodes[i].machine;
        machine.run("ip", &["addr", "flush", "dev", "eth0", "scope", "global"]);
        machine.run("ip", &["addr", "add", address, "dev", "eth0"]);
    }
}

/// What passes the switch.
pub struct Capture {
    stop: Arc<AtomicBool>,
    frames: Arc<Mutex<Vec<Vec<u8>>>>,
    thread: Option<JoinHandle<()>>,
}

impl Capture {
    /// Begins to listen on everything that `machine` has.
    pub fn start(machine: &Machine) -> Self {
        Self::begin(machine, None)
    }

    /// Begins to listen on one link of `machine`.
    pub fn on(machine: &Machine, link: &str) -> Self {
        Self::begin(machine, Some(link.to_owned()))
    }

    fn begin(machine: &Machine, link: Option<String>) -> Self {
        let (stop, frames) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (stopped, kept) = (Arc::clone(&stop), Arc::clone(&frames));
        let (ready, started) = std::sync::mpsc::channel();
        let thread = machine.spawn(move || {
            let all = SockProtocol::EthAll;
            let fd = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, all).unwrap();
            setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(0, 50_000)).unwrap();
            setsockopt(&fd, sockopt::RcvBufForce, &(64 << 20)).unwrap();
            if let Some(link) = link {
                setsockopt(&fd, sockopt::BindToDevice, &OsString::from(link)).unwrap();
            }
            ready.send(()).unwrap();
            let mut bytes = vec![0; 1 << 17];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok(length) = recv(fd.as_raw_fd(), &mut bytes, MsgFlags::empty()) {
                    kept.lock().unwrap().push(bytes[..length].to_vec());
                }
            }
        });
        started.recv().unwrap();
        Self { stop, frames, thread: Some(thread) }
    }

    /// Ends, and gives what was seen.
    pub fn end(mut self) -> Vec<Vec<u8>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
        std::mem::take(&mut self.frames.lock().unwrap())
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
