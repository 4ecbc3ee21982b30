//! Nodes made of network namespaces on one switch. Nothing of it touches the machine's own network, and all of it ends
//! with the test.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, setns};
use tempfile::TempDir;
use toft_mesh::{
    Device, MeshError, Settings,
    fake::{FakeDevice, FakeNet},
    kernel::KernelDevice,
    keys::Keys,
    userspace::UserspaceDevice,
};
use toft_model::mesh::{DEFAULT_PORT, MeshConfig, MeshEndpoint, MeshPeer, MeshPeerStatus, MeshStatus, PublicKey};

/// Name of the mesh interface in every namespace.
pub const INTERFACE: &str = "toft-wg";
/// Port on which every node answers.
const ECHO: u16 = 7;
/// How long an answer that shall come is waited for; a handshake is tried again after five seconds.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long one that shall not come.
const IMPATIENCE: Duration = Duration::from_millis(700);

/// Runs a program and gives what it printed.
pub fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Waits until `condition` holds.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within 30 s");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A process that does nothing but hold a network namespace.
pub struct Namespace(Child);

impl Namespace {
    pub fn new() -> Self {
        let child = Command::new("unshare").args(["-n", "sleep", "600"]).stdin(Stdio::null()).spawn().unwrap();
        let namespace = Self(child);
        let ours = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        let theirs = format!("/proc/{}/ns/net", namespace.pid());
        eventually("a namespace", || std::fs::read_link(&theirs).is_ok_and(|link| link != ours));
        namespace.ip("link set lo up");
        namespace
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Starts `work` on a thread inside.
    pub fn spawn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let file = File::open(format!("/proc/{}/ns/net", self.pid())).unwrap();
        std::thread::spawn(move || {
            setns(file, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        })
    }

    /// Does `work` on a thread inside.
    pub fn inside<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.spawn(work).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    pub fn ip(&self, arguments: &str) -> String {
        let arguments = arguments.to_owned();
        self.inside(move || run("ip", &arguments))
    }

    /// Whether an interface is there.
    pub fn has_link(&self, name: &str) -> bool {
        let name = name.to_owned();
        self.inside(move || Command::new("ip").args(["link", "show", &name]).output().unwrap().status.success())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Several namespaces on one switch.
pub struct Switch {
    _switch: Namespace,
    pub nodes: Vec<Namespace>,
}

/// Where node `n` is on the switch.
pub fn underlay(n: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, n as u8 + 1))
}

/// Where node `n` is on the switch, in IPv6.
pub fn underlay6(n: usize) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, n as u16 + 1))
}

/// Its address in the mesh.
pub fn inner(n: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 99, n as u8 + 1, 1))
}

/// Its IPv6 address in the mesh.
pub fn inner6(n: usize) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0xfd99, 0, 0, n as u16 + 1, 0, 0, 0, 1))
}

impl Switch {
    pub fn new(count: usize) -> Self {
        let switch = Namespace::new();
        switch.ip("link add switch type bridge");
        switch.ip("link set switch up");
        let nodes: Vec<Namespace> = (0..count).map(|_| Namespace::new()).collect();
        for (n, node) in nodes.iter().enumerate() {
            switch.ip(&format!("link add port{n} type veth peer name under netns {}", node.pid()));
            switch.ip(&format!("link set port{n} master switch up"));
            node.ip(&format!("addr add {}/24 dev under", underlay(n)));
            node.ip(&format!("addr add {}/64 dev under nodad", underlay6(n)));
            node.ip("link set under up");
        }
        Self { _switch: switch, nodes }
    }
}

/// Which device is under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    Fake,
    Userspace,
    Kernel,
}

/// Nodes, each with a device that is not set yet.
pub struct Lab {
    pub nodes: Vec<Node>,
    pub switch: Option<Switch>,
    fake: Vec<Arc<FakeDevice>>,
}

pub struct Node {
    pub device: Arc<dyn Device>,
    pub keys: Arc<Keys>,
    pub config: MeshConfig,
    _dir: TempDir,
    _echo: Option<Echo>,
}

impl Lab {
    pub fn new(which: Which, count: usize) -> Self {
        let net = FakeNet::default();
        let mut fake = Vec::new();
        let switch = (which != Which::Fake).then(|| Switch::new(count));
        let node = |n: usize| {
            let dir = tempfile::tempdir().unwrap();
            let keys = Arc::new(Keys::open(dir.path()).unwrap());
            let settings = Settings { interface: INTERFACE.to_owned(), keys: Arc::clone(&keys) };
            let device: Arc<dyn Device> = match which {
                Which::Fake => {
                    let device = Arc::new(FakeDevice::new(&net, underlay(n)).with_keys(Arc::clone(&keys)));
                    fake.push(Arc::clone(&device));
                    device
                }
                Which::Userspace => Arc::new(UserspaceDevice::new(settings)),
                Which::Kernel => Arc::new(KernelDevice::new(settings)),
            };
            let config = MeshConfig {
                key: keys.current(),
                listen_port: DEFAULT_PORT,
                addresses: BTreeSet::from([inner(n), inner6(n)]),
                networks: BTreeSet::new(),
                mtu: None,
                peers: BTreeMap::new(),
            };
            let echo = switch.as_ref().map(|switch| Echo::start(&switch.nodes[n]));
            Node { device, keys, config, _dir: dir, _echo: echo }
        };
        let nodes = (0..count).map(node).collect();
        Self { nodes, switch, fake }
    }

    /// Nodes that all know each other and where they are.
    pub fn connected(which: Which, count: usize) -> Self {
        let mut lab = Self::new(which, count);
        for (one, other) in pairs(count) {
            lab.introduce(one, other, true);
        }
        for n in 0..count {
            lab.set(n).unwrap();
        }
        lab
    }

    /// Tells `one` who `other` is, and where.
    pub fn introduce(&mut self, one: usize, other: usize, with_address: bool) {
        let address = with_address.then(|| MeshEndpoint::direct(SocketAddr::new(underlay(other), DEFAULT_PORT)));
        let peer =
            MeshPeer { endpoints: address.into_iter().collect(), allowed: allowed(other), ..MeshPeer::default() };
        let key = self.nodes[other].keys.current();
        self.nodes[one].config.peers.insert(key, peer);
    }

    pub fn key(&self, n: usize) -> PublicKey {
        self.nodes[n].keys.current()
    }

    pub fn namespace(&self, n: usize) -> &Namespace {
        &self.switch.as_ref().unwrap().nodes[n]
    }

    /// What node `n`'s device is made of.
    pub fn settings(&self, n: usize) -> Settings {
        Settings { interface: INTERFACE.to_owned(), keys: Arc::clone(&self.nodes[n].keys) }
    }

    /// Gives node `n` another object for the kernel's device, as a daemon that was started again has.
    pub fn renew(&mut self, n: usize) {
        self.nodes[n].device = Arc::new(KernelDevice::new(self.settings(n)));
    }

    /// Runs `work` where node `n` is.
    fn at<T: Send + 'static, F: Future<Output = T>>(
        &self,
        n: usize,
        work: impl FnOnce(Arc<dyn Device>) -> F + Send + 'static,
    ) -> T {
        let device = Arc::clone(&self.nodes[n].device);
        let run = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(work(device))
        };
        match &self.switch {
            Some(switch) => switch.nodes[n].inside(run),
            None => run(),
        }
    }

    pub fn set(&self, n: usize) -> Result<(), MeshError> {
        let config = self.nodes[n].config.clone();
        self.at(n, |device| async move { device.set(&config).await })
    }

    pub fn status(&self, n: usize) -> Option<MeshStatus> {
        self.at(n, |device| async move { device.status().await.unwrap() })
    }

    pub fn remove(&self, n: usize) {
        self.at(n, |device| async move { device.remove().await.unwrap() });
    }

    /// What node `one` has seen of node `other`.
    pub fn seen(&self, one: usize, other: usize) -> MeshPeerStatus {
        self.status(one).unwrap().peers[&self.key(other)].clone()
    }

    /// Whether an answer comes back to node `from`.
    pub fn reaches(&self, from: usize, to: IpAddr) -> bool {
        self.asks(from, to, PATIENCE)
    }

    /// Whether an answer comes back although none should.
    pub fn reaches_nevertheless(&self, from: usize, to: IpAddr) -> bool {
        self.asks(from, to, IMPATIENCE)
    }

    fn asks(&self, from: usize, to: IpAddr, patience: Duration) -> bool {
        match &self.switch {
            Some(switch) => switch.nodes[from].inside(move || ask(to, patience)),
            None => self.fake[from].reaches(to),
        }
    }
}

/// What is behind node `n`.
pub fn allowed(n: usize) -> BTreeSet<toft_model::mesh::MeshNet> {
    [format!("10.99.{}.0/24", n + 1), format!("fd99:0:0:{:x}::/64", n + 1)]
        .iter()
        .map(|net| net.parse().unwrap())
        .collect()
}

/// Every one with every other, in both orders.
pub fn pairs(count: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..count).flat_map(move |one| (0..count).filter(move |other| *other != one).map(move |other| (one, other)))
}

/// A server that sends back what it is sent.
struct Echo {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    fn start(namespace: &Namespace) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let (ready, started) = std::sync::mpsc::channel();
        let thread = namespace.spawn(move || {
            let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, ECHO)).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            ready.send(()).unwrap();
            let mut bytes = vec![0; 65_536];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((length, from)) = socket.recv_from(&mut bytes) {
                    let _ = socket.send_to(&bytes[..length], from);
                }
            }
        });
        started.recv().unwrap();
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// A socket of this thread's namespace for that kind of address.
pub fn socket_for(to: IpAddr) -> UdpSocket {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    UdpSocket::bind((any, 0)).unwrap()
}

/// Asks for an echo again and again.
pub fn ask(to: IpAddr, patience: Duration) -> bool {
    let socket = socket_for(to);
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let deadline = Instant::now() + patience;
    let mut bytes = [0; 16];
    while Instant::now() < deadline {
        // There may be no way yet.
        let _ = socket.send_to(b"?", (to, ECHO));
        if socket.recv_from(&mut bytes).is_ok_and(|(length, _)| &bytes[..length] == b"?") {
            return true;
        }
    }
    false
}

/// Asks once with this content; the answer, if it comes.
pub fn echo(socket: &UdpSocket, to: IpAddr, content: &[u8]) -> Option<Vec<u8>> {
    socket.send_to(content, (to, ECHO)).ok()?;
    let mut bytes = vec![0; 65_536];
    let (length, _) = socket.recv_from(&mut bytes).ok()?;
    bytes.truncate(length);
    Some(bytes)
}

/// Sends `count` bytes by TCP from one namespace to another, where they are compared with what they should be.
pub fn transfer(from: &Namespace, to: &Namespace, address: IpAddr, count: usize, content: fn(usize) -> u8) {
    let (ready, port) = std::sync::mpsc::channel();
    let receiver = to.spawn(move || {
        let listener = TcpListener::bind((address, 0)).unwrap();
        ready.send(listener.local_addr().unwrap().port()).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut bytes = vec![0; 1 << 16];
        let mut received = 0;
        loop {
            let length = stream.read(&mut bytes).unwrap();
            if length == 0 {
                break received;
            }
            for (at, byte) in bytes[..length].iter().enumerate() {
                assert_eq!(*byte, content(received + at), "byte {}", received + at);
            }
            received += length;
        }
    });
    let port = port.recv().unwrap();
    from.inside(move || {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::new(address, port), PATIENCE).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut sent = 0;
        while sent < count {
            let piece: Vec<u8> = (sent..count.min(sent + (1 << 16))).map(content).collect();
            stream.write_all(&piece).unwrap();
            sent += piece.len();
        }
    });
    assert_eq!(receiver.join().unwrap(), count);
}

/// Bytes without a short period.
pub fn noise(at: usize) -> u8 {
    ((at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u8
}
