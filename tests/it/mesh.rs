//! The daemon's end of the mesh, with a peer that is Debian's wireguard-go, configured by hand.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    process::{Child, Stdio},
};

use serde_json::Value;

use crate::harness::{
    appliance::Appliance,
    machine::{Machine, wait_until},
};

/// A process that ends with the test.
struct Foreign(Child, String);

impl Drop for Foreign {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
        let _ = fs::remove_file(socket(&self.1));
    }
}

fn socket(name: &str) -> String {
    format!("/var/run/wireguard/{name}.sock")
}

fn foreign(machine: &Machine) -> Foreign {
    let name = format!("wgd{}", std::process::id());
    let mut command = machine.command("wireguard-go");
    let process = command.args(["-f", &name]).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let foreign = Foreign(process.expect("Debian's wireguard-go must be installed"), name);
    wait_until("wireguard-go", || fs::exists(socket(&foreign.1)).unwrap().then_some(()));
    foreign
}

fn mesh_links(machine: &Machine) -> Vec<String> {
    let links = machine.run("ip", &["-br", "link"]);
    links.lines().filter(|line| line.starts_with("toftwg-")).map(ToOwned::to_owned).collect()
}

/// Threads of the daemon that carry packets.
fn carriers(toft: &Appliance) -> usize {
    let tasks = fs::read_dir(format!("/proc/{}/task", toft.pid())).unwrap();
    let name = |task: std::io::Result<fs::DirEntry>| fs::read_to_string(task.unwrap().path().join("comm"));
    tasks.filter_map(|task| name(task).ok()).filter(|name| name.trim() == "mesh").count()
}

fn file_of(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), text).unwrap();
    file
}

#[test]
fn a_peer_written_down_reaches_the_node_and_a_lonely_node_has_no_mesh() {
    let machine = Machine::new();
    let mut toft = Appliance::start_on(&machine, "a");
    let key = toft.data.join("mesh/key");
    let secret = fs::read_to_string(&key).unwrap();
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!((mesh_links(&machine).len(), carriers(&toft)), (0, 0));

    let other = foreign(&machine);
    let other_secret = machine.run("wg", &["genkey"]);
    let public = |secret: &str| {
        let file = file_of(secret);
        machine.run("sh", &["-c", &format!("wg pubkey <{}", file.path().display())]).trim().to_owned()
    };
    let node: Value = serde_json::from_str(&fs::read_to_string(toft.data.join("node.json")).unwrap()).unwrap();
    let subnet = node["subnet"].as_str().unwrap().to_owned();
    let settings = format!(
        "[Interface]\nPrivateKey = {}\nListenPort = 51999\n[Peer]\nPublicKey = {}\nAllowedIPs = {subnet}\nEndpoint = 127.0.0.1:51820\nPersistentKeepalive = 1\n",
        other_secret.trim(),
        public(&secret)
    );
    let file = file_of(&settings);
    machine.run("wg", &["setconf", &other.1, &file.path().display().to_string()]);
    machine.run("ip", &["link", "set", &other.1, "up"]);

    let peers = format!("[mesh.peers.laptop]\nkey = \"{}\"\nallowed = [\"10.8.0.2\"]\n", public(&other_secret));
    let file = toft.data.join("toft.toml");
    let before = fs::read_to_string(&file).unwrap_or_default();
    fs::write(&file, format!("{before}{peers}")).unwrap();
    toft.stop();
    toft.up();
    wait_until("a handshake", || {
        let told = machine.run("wg", &["show", &other.1, "latest-handshakes"]);
        told.split_whitespace().last().is_some_and(|at| at != "0").then_some(())
    });
    assert_eq!(mesh_links(&machine).len(), 1);
    let name = mesh_links(&machine)[0].split_whitespace().next().unwrap().to_owned();
    let gateway = subnet.replace(".0/24", ".1/32");
    assert!(machine.run("ip", &["-br", "addr", "show", "dev", &name]).contains(&gateway));
    assert!(machine.run("ip", &["route", "show", "dev", &name]).contains("10.8.0.2"));
    assert_eq!(fs::read_to_string(&key).unwrap(), secret, "the key is kept");
    assert!(!toft.log().contains(secret.trim()));

    // Without the peer there is no mesh again, and ending the appliance leaves none.
    fs::write(&file, &before).unwrap();
    toft.stop();
    toft.up();
    wait_until("no mesh", || mesh_links(&machine).is_empty().then_some(()));
    fs::write(&file, format!("{before}{peers}")).unwrap();
    toft.stop();
    toft.up();
    wait_until("a mesh", || (mesh_links(&machine).len() == 1).then_some(()));
    toft.down().good();
    assert!(mesh_links(&machine).is_empty());
}

#[test]
fn a_peer_with_the_nodes_own_addresses_is_refused_and_told() {
    let machine = Machine::new();
    let mut toft = Appliance::prepare(&machine, "b");
    let file = toft.data.join("toft.toml");
    let before = fs::read_to_string(&file).unwrap_or_default();
    let peer =
        "[mesh.peers.thief]\nkey = \"xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=\"\nallowed = [\"10.210.0.0/16\"]\n";
    fs::write(&file, format!("{before}{peer}")).unwrap();
    toft.up();
    wait_until("the refusal", || toft.log().contains("overlaps").then_some(()));
    assert!(mesh_links(&machine).is_empty());
}
