//! Others' WireGuard at the other end: Debian's `wireguard-go`, configured by hand with `wg`.

use std::{
    io::Write,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use toft_model::mesh::{DEFAULT_PORT, MeshEndpoint, MeshPeer, PublicKey};

use crate::lab::{
    Lab, Namespace, Which, allowed, ask, eventually, inner, inner6, noise, transfer, underlay, underlay6,
};

/// wireguard-go in a namespace.
struct Foreign {
    process: Child,
    key: PublicKey,
    name: String,
}

fn wg(arguments: &[&str], input: &str) -> String {
    let mut child = Command::new("wg")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("Debian's wireguard-tools must be installed");
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "wg {arguments:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

impl Foreign {
    /// Starts it as node `n`, with node 0 as its peer.
    fn start(lab: &Lab, n: usize, address: Option<std::net::IpAddr>) -> Self {
        // Its control socket lies where those of all namespaces lie.
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("wgt{}x{number}", std::process::id());
        let secret = wg(&["genkey"], "");
        let key = wg(&["pubkey"], &secret).parse().unwrap();
        let namespace = lab.namespace(n);
        let own = name.clone();
        let process = namespace.inside(move || {
            let start =
                Command::new("wireguard-go").args(["-f", &own]).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
            start.expect("Debian's wireguard-go must be installed")
        });
        let foreign = Self { process, key, name };
        eventually("wireguard-go", || std::fs::exists(foreign.socket()).unwrap());
        let endpoint = address.map(|address| std::net::SocketAddr::new(address, DEFAULT_PORT).to_string());
        foreign.configure(namespace, &secret, &lab.key(0), endpoint.as_deref());
        namespace.ip(&format!("addr add {}/32 dev {}", inner(n), foreign.name));
        namespace.ip(&format!("addr add {}/128 dev {} nodad", inner6(n), foreign.name));
        namespace.ip(&format!("link set {} mtu 1420 up", foreign.name));
        for net in allowed(0) {
            namespace.ip(&format!("route add {net} dev {}", foreign.name));
        }
        foreign
    }

    fn socket(&self) -> String {
        format!("/var/run/wireguard/{}.sock", self.name)
    }

    fn configure(&self, namespace: &Namespace, secret: &str, peer: &PublicKey, endpoint: Option<&str>) {
        let nets: Vec<String> = allowed(0).iter().map(ToString::to_string).collect();
        let mut text = format!(
            "[Interface]\nPrivateKey = {secret}\nListenPort = {DEFAULT_PORT}\n[Peer]\nPublicKey = {peer}\nAllowedIPs = {}\n",
            nets.join(", ")
        );
        if let Some(endpoint) = endpoint {
            text.push_str(&format!("Endpoint = {endpoint}\n"));
        }
        let name = self.name.clone();
        namespace.inside(move || wg(&["setconf", &name, "/dev/stdin"], &text));
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_file(self.socket());
    }
}

fn peer(n: usize, endpoint: Option<std::net::IpAddr>) -> MeshPeer {
    let at = |address| MeshEndpoint::direct(std::net::SocketAddr::new(address, DEFAULT_PORT));
    MeshPeer { endpoints: endpoint.map(at).into_iter().collect(), allowed: allowed(n), ..MeshPeer::default() }
}

#[test]
fn a_foreign_peer_is_reached_and_data_arrives_whole() {
    let mut lab = Lab::new(Which::Userspace, 2);
    // Only we know where the other is, and it speaks IPv6 on the way.
    let foreign = Foreign::start(&lab, 1, None);
    lab.nodes[0].config.peers.insert(foreign.key, peer(1, Some(underlay6(1))));
    lab.set(0).unwrap();
    assert!(lab.reaches(0, inner(1)) || lab.namespace(1).inside(|| ask(inner(0), std::time::Duration::from_secs(5))));
    for (from, to, address) in [(0, 1, inner(1)), (1, 0, inner(0)), (0, 1, inner6(1)), (1, 0, inner6(0))] {
        transfer(lab.namespace(from), lab.namespace(to), address, 5_000_000, noise);
    }
    let seen = lab.status(0).unwrap().peers[&foreign.key].clone();
    assert!(seen.is_live() && seen.rx_bytes > 10_000_000 && seen.tx_bytes > 10_000_000, "{seen:?}");
}

#[test]
fn a_foreign_peer_reaches_us() {
    let mut lab = Lab::new(Which::Userspace, 2);
    let foreign = Foreign::start(&lab, 1, Some(underlay(0)));
    lab.nodes[0].config.peers.insert(foreign.key, peer(1, None));
    lab.set(0).unwrap();
    assert!(lab.reaches(1, inner(0)));
    assert!(lab.reaches(0, inner(1)));
    transfer(lab.namespace(1), lab.namespace(0), inner(0), 5_000_000, noise);
    // What we think of it, it thinks of us.
    let shown = wg(&["show", &foreign.name, "transfer"], "");
    assert!(shown.contains(&lab.key(0).to_string()), "{shown}");
}

#[test]
#[ignore = "needs a kernel with WireGuard"]
fn kernel_and_userspace_understand_each_other() {
    let mut lab = Lab::connected(Which::Kernel, 2);
    lab.remove(1);
    lab.nodes[1].device = std::sync::Arc::new(toft_mesh::userspace::UserspaceDevice::new(lab.settings(1)));
    lab.set(1).unwrap();
    assert!(lab.reaches(0, inner(1)) && lab.reaches(1, inner(0)));
    for (from, to, address) in [(0, 1, inner(1)), (1, 0, inner(0)), (0, 1, inner6(1)), (1, 0, inner6(0))] {
        transfer(lab.namespace(from), lab.namespace(to), address, 2_000_000, noise);
    }
}

#[test]
fn large_and_small_packets_arrive_whole() {
    let lab = Lab::connected(Which::Userspace, 2);
    assert!(lab.reaches(0, inner(1)));
    for address in [inner(1), inner6(1)] {
        transfer(lab.namespace(0), lab.namespace(1), address, 20_000_000, noise);
        lab.namespace(0).inside(move || {
            let socket = crate::lab::socket_for(address);
            socket.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
            // Those that are larger than the tunnel are cut up by the kernel.
            for length in [0, 1, 15, 16, 17, 1_371, 1_372, 1_391, 1_392, 1_393, 1_500, 9_000, 60_000] {
                let content: Vec<u8> = (0..length).map(noise).collect();
                assert_eq!(crate::lab::echo(&socket, address, &content), Some(content), "{length} bytes");
            }
        });
    }
}
