//! Asks a container whether it works: over HTTP or TCP from inside its own network namespace, or with a command in it.
//! Knows nothing of what follows from the answer.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use http_body_util::Empty;
use hyper::{Request, body::Bytes, header};
use hyper_util::rt::TokioIo;
use nix::sched::{CloneFlags, setns};
use toft_model::{
    ids::InstanceId,
    instance::{Assignment, NetworkOrder},
    workload::HealthTest,
};
use tokio::{
    net::{TcpSocket, TcpStream},
    sync::{mpsc, oneshot},
};

use super::runtime::Runtime;
use crate::observe::chain;

/// An answer of one process.
#[derive(Debug)]
pub struct Answer {
    /// The instance.
    pub id: InstanceId,
    /// The process that was asked.
    pub pid: u32,
    /// How it failed, if it did.
    pub outcome: Result<(), String>,
}

/// Asks process `pid` of an instance at its interval, for as long as the future is polled and somebody listens.
pub async fn watch(runtime: Arc<dyn Runtime>, order: Assignment, pid: u32, answers: mpsc::Sender<Answer>) {
    let Some(check) = &order.container.health else { return };
    let id = order.instance_id;
    let limit = Duration::from_millis(check.timeout_ms.into());
    let own_network = order.container.network != NetworkOrder::Host;
    loop {
        tokio::time::sleep(Duration::from_millis(check.interval_ms.into())).await;
        // A command is killed by the runtime, which takes a moment more.
        let longest = limit + Duration::from_secs(30);
        let longest = if matches!(check.test, HealthTest::Exec { .. }) { longest } else { limit };
        let asked = ask(&*runtime, id, &check.test, own_network.then_some(pid), limit);
        let outcome = match tokio::time::timeout(longest, asked).await {
            Ok(outcome) => outcome,
            Err(_) => Err(format!("there was no answer within {} ms", check.timeout_ms)),
        };
        if answers.send(Answer { id, pid, outcome }).await.is_err() {
            return;
        }
    }
}

/// Asks once. `namespace_of`: the process whose network is to be used instead of the node's.
async fn ask(
    runtime: &dyn Runtime,
    id: InstanceId,
    test: &HealthTest,
    namespace_of: Option<u32>,
    limit: Duration,
) -> Result<(), String> {
    match test {
        HealthTest::Tcp { port } => connect(namespace_of, *port).await.map(drop),
        HealthTest::Http { port, path } => http(connect(namespace_of, *port).await?, *port, path).await,
        HealthTest::Exec { command } => match runtime.run_inside(id, command, limit).await {
            Ok(ran) if ran.exit_code == 0 => Ok(()),
            Ok(ran) => Err(format!("the check exited with code {}: {}", ran.exit_code, ran.output.trim())),
            Err(error) => Err(chain(&error)),
        },
    }
}

/// A connection to a port on loopback, over IPv4 or else IPv6.
async fn connect(namespace_of: Option<u32>, port: u16) -> Result<TcpStream, String> {
    let mut failure = String::new();
    for address in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
        let connected = async { socket(namespace_of, address).await?.connect(SocketAddr::new(address, port)).await };
        match connected.await {
            Ok(stream) => return Ok(stream),
            Err(error) if failure.is_empty() => failure = format!("port {port} does not answer: {error}"),
            Err(_) => {}
        }
    }
    Err(failure)
}

/// A socket belongs for ever to the namespace it was opened in, so only opening needs a thread that visits it.
async fn socket(namespace_of: Option<u32>, address: IpAddr) -> io::Result<TcpSocket> {
    let open = move || if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let Some(pid) = namespace_of else { return open() };
    let namespace = std::fs::File::open(format!("/proc/{pid}/ns/net"))?;
    let (sender, receiver) = oneshot::channel();
    std::thread::Builder::new().name("netns".to_owned()).spawn(move || {
        let opened = setns(namespace, CloneFlags::CLONE_NEWNET).map_err(io::Error::from).and_then(|()| open());
        // Nobody listens any more when the caller was cancelled.
        let _ = sender.send(opened);
    })?;
    receiver.await.unwrap_or_else(|_| Err(io::Error::other("the thread ended early")))
}

async fn http(stream: TcpStream, port: u16, path: &str) -> Result<(), String> {
    let told = |error: &dyn std::error::Error| format!("the answer is no HTTP: {error}");
    let request = Request::get(path)
        .header(header::HOST, format!("localhost:{port}"))
        .header(header::USER_AGENT, concat!("toft/", env!("CARGO_PKG_VERSION")))
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| told(&error))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| told(&error))?;
    let answer = sender.send_request(request);
    tokio::pin!(answer, connection);
    let answer = loop {
        tokio::select! {
            answer = &mut answer => break answer.map_err(|error| told(&error))?,
            ended = &mut connection => ended.map_err(|error| told(&error))?,
        }
    };
    let status = answer.status();
    if status.is_success() || status.is_redirection() { Ok(()) } else { Err(format!("the answer is {status}")) }
}
