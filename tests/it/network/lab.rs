//! Machines made of network namespaces: a host with a LAN behind it, containers, and small servers that tell who asked.
//! Nothing of it touches the machine's own network, and all of it ends with the test.

use std::{
    collections::BTreeSet,
    io::{self, Read},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    process::{Child, Command, Stdio},
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, setns, unshare};
use toft::agent::network::{
    NetworkConfig,
    kernel::{KernelNetwork, KernelNetworkConfig},
};
use toft_model::{
    instance::PublishedPort,
    node::Subnet,
    workload::{NetworkName, Protocol},
};
use tokio::{io::AsyncWriteExt, net, sync::oneshot};

/// The host's address in the LAN.
pub const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The LAN client's address.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// How long to wait for an answer that shall come.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long to wait for an answer that shall not come.
const IMPATIENCE: Duration = Duration::from_millis(400);

/// Runs `test` on a thread whose network namespace is a fresh host; skips it where namespaces or tools are missing.
pub fn on_host(test: impl AsyncFnOnce() + Send + 'static) {
    let equipped = nix::unistd::geteuid().is_root() && ["nft", "ip", "unshare"].iter().all(|tool| has(tool));
    if !equipped {
        eprintln!("skipped: needs root, nftables, iproute2 and util-linux");
        return;
    }
    let host = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        ip("link set lo up");
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test());
    });
    if let Err(panic) = host.join() {
        std::panic::resume_unwind(panic);
    }
}

fn has(tool: &str) -> bool {
    Command::new("sh").args(["-c", &format!("command -v {tool}")]).output().unwrap().status.success()
}

/// Runs a program in this thread's namespace and gives what it printed.
pub fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub fn ip(arguments: &str) -> String {
    run("ip", arguments)
}

pub fn nft(arguments: &str) -> String {
    run("nft", arguments)
}

/// Names of the links on this host.
pub fn links() -> Vec<String> {
    let name = |line: &str| line.split_whitespace().next().unwrap().split('@').next().unwrap().to_owned();
    ip("-br link").lines().map(name).collect()
}

/// The usual configuration with other networks: addresses with the names of the networks that each is in.
pub fn networks(subnet: &str, members: &[(Ipv4Addr, &[&str])]) -> NetworkConfig {
    let named = |names: &[&str]| NetworkName::of(None, &names.iter().map(|name| name.parse().unwrap()).collect());
    let members = members.iter().map(|(address, names)| (*address, named(names))).collect();
    NetworkConfig { members, ..config(subnet, &[]) }
}

/// The network of one appliance.
pub fn network(bridge: &str, table: &str) -> KernelNetwork {
    KernelNetwork::new(KernelNetworkConfig {
        bridge: bridge.to_owned(),
        table: table.to_owned(),
        mesh: "toft-wg".to_owned(),
    })
}

pub fn config(subnet: &str, ports: &[(u16, u16, Protocol, Ipv4Addr)]) -> NetworkConfig {
    let ports = ports
        .iter()
        .map(|&(host, container, protocol, to)| (PublishedPort { host, container, protocol }, to))
        .collect();
    let subnet: Subnet = subnet.parse().unwrap();
    let network = NetworkName::of(None, &BTreeSet::new());
    let members = (2..60).map(|offset| (subnet.nth(offset).unwrap(), network.clone())).collect();
    NetworkConfig { ports, members, ..NetworkConfig::new(subnet) }
}

/// A process that does nothing but hold a network namespace: a container, or another machine.
pub struct Namespace {
    child: Child,
}

impl Namespace {
    pub fn new() -> Self {
        let child = Command::new("unshare").args(["-n", "sleep", "300"]).stdin(Stdio::null()).spawn().unwrap();
        let namespace = Self { child };
        let ours = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        let theirs = format!("/proc/{}/ns/net", namespace.pid());
        eventually("a namespace of its own", || std::fs::read_link(&theirs).is_ok_and(|link| link != ours));
        namespace
    }

    /// A machine in the LAN of this host.
    pub fn lan() -> Self {
        let machine = Self::new();
        ip(&format!("link add lan0 type veth peer name eth0 netns {}", machine.pid()));
        ip(&format!("addr add {HOST}/24 dev lan0"));
        ip("link set lan0 up");
        machine.inside(|| {
            ip("link set lo up");
            ip(&format!("addr add {CLIENT}/24 dev eth0"));
            ip("link set eth0 up");
        });
        machine
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Does `work` on a thread inside.
    pub fn inside<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.spawn(work).join().unwrap()
    }

    /// Connects from here.
    pub fn connect(&self, address: Ipv4Addr, port: u16) -> io::Result<TcpStream> {
        self.inside(move || {
            let stream = TcpStream::connect_timeout(&SocketAddr::new(address.into(), port), PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            Ok(stream)
        })
    }

    /// Starts `work` on a thread inside.
    pub fn spawn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let file = std::fs::File::open(format!("/proc/{}/ns/net", self.pid())).unwrap();
        std::thread::spawn(move || {
            setns(file, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        })
    }

    /// Asks a server from here.
    pub fn ask(&self, protocol: Protocol, address: impl Into<IpAddr>, port: u16) -> io::Result<String> {
        let address = SocketAddr::new(address.into(), port);
        self.inside(move || ask(protocol, address, PATIENCE))
    }

    /// Whether a server can be reached from here; meant for `false`.
    pub fn reaches(&self, protocol: Protocol, address: impl Into<IpAddr>, port: u16) -> bool {
        let address = SocketAddr::new(address.into(), port);
        self.inside(move || ask(protocol, address, IMPATIENCE)).is_ok()
    }

    /// Starts a server inside that answers both protocols on `port` with `name` and the asker's address.
    pub fn serve(&self, name: &str, port: u16) -> Server {
        let name: Arc<str> = name.into();
        let (stop, stopped) = oneshot::channel();
        let (ready, started) = std::sync::mpsc::channel();
        let thread = self.spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let tcp = net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await.unwrap();
                let udp = net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).await.unwrap();
                ready.send(()).unwrap();
                tokio::select! { () = answer(&name, tcp, udp) => {}, _ = stopped => {} }
            });
        });
        started.recv().unwrap();
        Server { stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Ends its thread when dropped.
pub struct Server {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

async fn answer(name: &str, tcp: net::TcpListener, udp: net::UdpSocket) {
    let mut question = [0; 64];
    loop {
        tokio::select! {
            accepted = tcp.accept() => {
                let (mut stream, peer) = accepted.unwrap();
                let _ = stream.write_all(format!("{name} {}", peer.ip()).as_bytes()).await;
            }
            received = udp.recv_from(&mut question) => {
                let (_, peer) = received.unwrap();
                let _ = udp.send_to(format!("{name} {}", peer.ip()).as_bytes(), peer).await;
            }
        }
    }
}

/// Asks a server from this thread's namespace.
pub fn ask_from_host(protocol: Protocol, address: Ipv4Addr, port: u16) -> io::Result<String> {
    ask(protocol, SocketAddr::new(address.into(), port), PATIENCE)
}

/// Whether a server can be reached from this thread's namespace; meant for `false`.
pub fn host_reaches(protocol: Protocol, address: Ipv4Addr, port: u16) -> bool {
    ask(protocol, SocketAddr::new(address.into(), port), IMPATIENCE).is_ok()
}

fn ask(protocol: Protocol, address: SocketAddr, patience: Duration) -> io::Result<String> {
    match protocol {
        Protocol::Tcp => {
            let mut stream = TcpStream::connect_timeout(&address, patience)?;
            stream.set_read_timeout(Some(patience))?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        }
        Protocol::Udp => ask_with(&UdpSocket::bind("0.0.0.0:0")?, address, patience),
    }
}

/// Asks over a given socket, so that the flow stays the same from question to question.
pub fn ask_with(socket: &UdpSocket, address: SocketAddr, patience: Duration) -> io::Result<String> {
    socket.set_read_timeout(Some(patience))?;
    socket.send_to(b"?", address)?;
    let mut answer = [0; 64];
    let (length, from) = socket.recv_from(&mut answer)?;
    assert_eq!(from, address, "the answer must come from where the question went");
    Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
}

/// Waits until `condition` holds.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within 10 s");
        std::thread::sleep(Duration::from_millis(1));
    }
}
