//! Machines with an appliance each, some of them behind routers that translate addresses, joined by a switch that stands for
//! the internet.

use std::{fs, sync::Arc};

use super::{
    appliance::Appliance,
    lan::{Holder, MEMBERS},
    machine::Machine,
};

/// Where a machine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Everybody reaches it.
    Open,
    /// Behind a router that keeps a sender's port, whomever it sends to.
    Behind,
    /// Behind a router that gives each connection a port of its own, as chance will have it.
    Symmetric,
}

/// A machine's role.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spot(pub Place, pub &'static str);

/// The machines. Number `i` is called by the `i`th letter.
pub struct Internet {
    pub nodes: Vec<Appliance>,
    pub switch: Arc<Machine>,
    routers: Vec<Option<Arc<Machine>>>,
}

/// Where the world sees a machine: its own address or its router's.
pub fn outside(i: usize) -> String {
    format!("203.0.113.{}", i + 1)
}

/// Connects `machine` by its `inner` link to `outer` at `other`.
fn plug(other: &Machine, outer: &str, machine: &Machine, inner: &str) {
    let holder = Holder(machine.command("sleep").arg("300").spawn().unwrap());
    let pid = holder.0.id().to_string();
    other.run("ip", &["link", "add", outer, "type", "veth", "peer", "name", inner, "netns", &pid]);
    other.run("ip", &["link", "set", outer, "up"]);
    machine.run("ip", &["link", "set", inner, "up"]);
}

fn router(switch: &Machine, i: usize, place: Place) -> Arc<Machine> {
    let router = switch.another();
    router.spawn(|| fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap()).join().unwrap();
    plug(switch, &format!("port{i}"), &router, "wan");
    router.run("ip", &["addr", "add", &format!("{}/24", outside(i)), "dev", "wan"]);
    let how = if place == Place::Symmetric { "masquerade fully-random" } else { "masquerade" };
    for line in [
        "add table ip router",
        "add chain ip router post { type nat hook postrouting priority 100; }",
        &format!("add rule ip router post oifname wan {how}"),
        "add chain ip router in { type filter hook input priority 0; }",
        "add rule ip router in iifname wan ct state established,related accept",
        "add rule ip router in iifname wan drop",
        "add chain ip router through { type filter hook forward priority 0; }",
        "add rule ip router through ct state established,related accept",
        "add rule ip router through iifname wan drop",
    ] {
        router.run("nft", &[line]);
    }
    router
}

impl Internet {
    /// Machines at these places, none of which runs yet.
    pub fn prepare(spots: &[Spot]) -> Self {
        let switch = Machine::new();
        switch.run("ip", &["link", "add", "net", "type", "bridge"]);
        switch.run("ip", &["link", "set", "net", "up"]);
        let mut internet = Self { nodes: Vec::new(), routers: Vec::new(), switch };
        for (i, Spot(place, role)) in spots.iter().enumerate() {
            internet.add(i, *place, role);
        }
        internet
    }

    /// Machines at these places, all of one cluster. The first one must be open.
    pub fn start(spots: &[Spot]) -> Self {
        let mut internet = Self::prepare(spots);
        internet.nodes[0].up();
        for (i, Spot(_, role)) in spots.iter().enumerate().skip(1) {
            internet.join(i, role);
        }
        internet
    }

    /// Starts machine `i`, which joins through the first one.
    pub fn join(&mut self, i: usize, role: &str) {
        self.join_at(i, role, MEMBERS);
    }

    /// The same at another port of the first one.
    pub fn join_at(&mut self, i: usize, role: &str, port: u16) {
        let token = self.nodes[0].good(&format!("token create -q --role {role}"));
        let through = format!("{}:{port}", outside(0));
        let node = &mut self.nodes[i];
        let file = node.machine.dir.join("token");
        fs::write(&file, token).unwrap();
        node.set_flags(&["--join", &through, "--token-file", file.to_str().unwrap()]);
        node.up();
        node.set_flags(&[]);
    }

    fn add(&mut self, i: usize, place: Place, role: &str) {
        let machine = self.switch.another();
        let port = format!("port{i}");
        let (router, address) = match place {
            Place::Open => {
                plug(&self.switch, &port, &machine, "eth0");
                machine.run("ip", &["addr", "add", &format!("{}/24", outside(i)), "dev", "eth0"]);
                (None, outside(i))
            }
            Place::Behind | Place::Symmetric => {
                let router = router(&self.switch, i, place);
                plug(&router, "lan", &machine, "eth0");
                // Every home has the same addresses.
                router.run("ip", &["addr", "add", "192.168.1.1/24", "dev", "lan"]);
                machine.run("ip", &["addr", "add", "192.168.1.2/24", "dev", "eth0"]);
                machine.run("ip", &["route", "add", "default", "via", "192.168.1.1"]);
                (Some(router), "192.168.1.2".to_owned())
            }
        };
        self.switch.run("ip", &["link", "set", &port, "master", "net"]);
        let toft = Appliance::prepare(&machine, "d");
        let name = char::from(b'a' + i as u8);
        let text = format!("[node]\nname = \"{name}\"\n[cluster]\nbind = \"{address}:{MEMBERS}\"\nrole = \"{role}\"\n");
        fs::write(toft.data.join("toft.toml"), text).unwrap();
        self.nodes.push(toft);
        self.routers.push(router);
    }

    /// Takes a machine's cable out, or its router's.
    pub fn cut(&self, i: usize) {
        self.switch.run("ip", &["link", "set", &format!("port{i}"), "down"]);
    }

    /// Puts it in again.
    pub fn mend(&self, i: usize) {
        self.switch.run("ip", &["link", "set", &format!("port{i}"), "up"]);
    }

    /// Makes the router of a machine forget whom it let through: the kernel does when the link goes down.
    pub fn forget(&self, i: usize) {
        let router = self.routers[i].as_ref().expect("it is behind a router");
        router.run("ip", &["link", "set", "wan", "down"]);
        router.run("ip", &["link", "set", "wan", "up"]);
    }

    /// Lets no datagram leave a machine nor enter it.
    pub fn block_udp(&self, i: usize) {
        let machine = &self.nodes[i].machine;
        for line in [
            "add table inet blocked",
            "add chain inet blocked in { type filter hook input priority -300; }",
            "add rule inet blocked in iifname eth0 meta l4proto udp drop",
            "add chain inet blocked out { type filter hook output priority 300; }",
            "add rule inet blocked out oifname eth0 meta l4proto udp drop",
        ] {
            machine.run("nft", &[line]);
        }
    }

    /// Lets nothing pass between a machine and the others but TCP to their port 443.
    pub fn let_out_https_only(&self, i: usize) {
        for line in [
            "add table inet strict",
            "add chain inet strict in { type filter hook input priority -300; }",
            "add rule inet strict in iifname eth0 tcp sport 443 accept",
            "add rule inet strict in iifname eth0 drop",
            "add chain inet strict out { type filter hook output priority 300; }",
            "add rule inet strict out oifname eth0 tcp dport 443 accept",
            "add rule inet strict out oifname eth0 drop",
        ] {
            self.nodes[i].machine.run("nft", &[line]);
        }
    }

    pub fn unblock_udp(&self, i: usize) {
        self.nodes[i].machine.run("nft", &["delete table inet blocked"]);
    }

    /// How machine `i` says that it reaches the one called `other`.
    pub fn way(&self, i: usize, other: &str) -> Option<String> {
        let log = self.nodes[i].log();
        let told = log.lines().rev().filter_map(|line| line.split_once(&format!("`{other}` ")).map(|(_, rest)| rest));
        let is_way = |rest: &&str| {
            ["is reached", "comes here to be reached", "is not reached in the mesh"]
                .iter()
                .any(|way| rest.starts_with(way))
        };
        let mut told = told.filter(is_way);
        told.next().map(|rest| rest.split('\u{1b}').next().unwrap_or(rest).trim().to_owned())
    }
}
