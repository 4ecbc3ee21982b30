//! The sockets, and who may take up how much of them.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::fd::AsRawFd,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use hickory_proto::{
    op::ResponseCode,
    rr::{Name, RData, Record, RecordType, rdata},
};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, getsockname, listen, setsockopt, socket, sockopt,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::watch,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::{
    message::{self, Answer, Arrived, Question, record},
    upstream::{UnderWay, Upstream},
    zone::{Found, OwnAddresses, Wanted, Zone},
};

/// The port that is tried first: the same after every start, so that the packet rules stay right meanwhile.
const PREFERRED_PORT: u16 = 10_053;
/// Questions to the machine's name servers under way, of one container and altogether.
const EACH: usize = 64;
const MOST: usize = 512;
/// Connections, of one container and altogether.
const EACH_CONNECTED: usize = 8;
const MOST_CONNECTED: usize = 64;
/// Longest question that is read over UDP.
const LONGEST_QUESTION: usize = 4_096;
/// How long a connection may say nothing, or take for one message.
const SILENCE: Duration = Duration::from_secs(10);
/// Questions answered in a row before others get a turn.
const IN_A_ROW: usize = 64;

/// What belongs to the server, and is bound.
pub struct NameServer {
    udp: UdpSocket,
    tcp: TcpListener,
    desk: Desk,
}

/// What every question needs.
struct Desk {
    zone: watch::Receiver<Arc<Zone>>,
    upstream: Upstream,
    own: OwnAddresses,
}

impl NameServer {
    /// Binds the gateway's address, which need not be there yet, on some port. Questions for what is not in the zone go to
    /// the servers that the first of `places` names.
    pub fn bind(
        gateway: Ipv4Addr,
        own: OwnAddresses,
        places: Vec<PathBuf>,
        zone: watch::Receiver<Arc<Zone>>,
    ) -> io::Result<Self> {
        let (udp, tcp) = sockets(gateway, PREFERRED_PORT).or_else(|_| sockets(gateway, 0))?;
        Ok(Self {
            udp: UdpSocket::from_std(udp)?,
            tcp: TcpListener::from_std(tcp)?,
            desk: Desk { zone, upstream: Upstream::new(places, gateway.into()), own },
        })
    }

    /// The port.
    pub fn port(&self) -> io::Result<u16> {
        Ok(self.udp.local_addr()?.port())
    }

    /// Answers until `cancel`.
    pub async fn run(self, cancel: CancellationToken) {
        let Self { udp, tcp, desk } = self;
        let (udp, desk) = (Arc::new(udp), Arc::new(desk));
        tokio::select! {
            () = cancel.cancelled() => {}
            () = answer_datagrams(udp, Arc::clone(&desk)) => {}
            () = answer_connections(tcp, desk) => {}
        }
    }
}

/// A socket of each kind on the same port.
fn sockets(gateway: Ipv4Addr, port: u16) -> nix::Result<(std::net::UdpSocket, std::net::TcpListener)> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let [a, b, c, d] = gateway.octets();
    let datagrams = socket(AddressFamily::Inet, SockType::Datagram, flags, None)?;
    setsockopt(&datagrams, sockopt::IpFreebind, &true)?;
    bind(datagrams.as_raw_fd(), &SockaddrIn::new(a, b, c, d, port))?;
    let port = getsockname::<SockaddrIn>(datagrams.as_raw_fd())?.port();
    let streams = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
    setsockopt(&streams, sockopt::IpFreebind, &true)?;
    setsockopt(&streams, sockopt::ReuseAddr, &true)?;
    bind(streams.as_raw_fd(), &SockaddrIn::new(a, b, c, d, port))?;
    listen(&streams, Backlog::new(128)?)?;
    Ok((datagrams.into(), streams.into()))
}

async fn answer_datagrams(socket: Arc<UdpSocket>, desk: Arc<Desk>) {
    let under_way = UnderWay::default();
    let mut asking = JoinSet::new();
    let mut buffer = vec![0; LONGEST_QUESTION];
    loop {
        tokio::select! {
            readable = socket.readable() => if let Err(error) = readable {
                tracing::warn!(%error, "the name server's socket failed");
                tokio::time::sleep(SILENCE).await;
            },
            Some(_) = asking.join_next() => continue,
        }
        for _ in 0..IN_A_ROW {
            let (length, from) = match socket.try_recv_from(&mut buffer) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // What an earlier answer met on its way.
                Err(_) => continue,
            };
            let Some((asker, arrived)) = desk.arrived(from, &buffer[..length], "udp") else { continue };
            match arrived {
                Arrived::Noise => {}
                Arrived::Refused(bytes) => drop(socket.try_send_to(&bytes, from)),
                Arrived::Question(question) => {
                    let limit = Some(question.udp_limit());
                    let answer = match desk.zone_answer(asker, &question) {
                        Some(answer) => answer,
                        None => match under_way.take(from.ip(), EACH, MOST) {
                            Some(place) => {
                                let (socket, desk) = (Arc::clone(&socket), Arc::clone(&desk));
                                asking.spawn(async move {
                                    let answer = desk.upstream.ask(&question).await;
                                    if let Some(bytes) = question.answered(&answer, limit) {
                                        // Whoever asked may be gone.
                                        drop(socket.send_to(&bytes, from).await);
                                    }
                                    drop(place);
                                });
                                continue;
                            }
                            None => overloaded(),
                        },
                    };
                    if let Some(bytes) = question.answered(&answer, limit) {
                        drop(socket.try_send_to(&bytes, from));
                    }
                }
            }
        }
        // One flood of questions does not keep the others of this thread waiting.
        tokio::task::yield_now().await;
    }
}

async fn answer_connections(listener: TcpListener, desk: Arc<Desk>) {
    let connected = UnderWay::default();
    let mut connections = JoinSet::new();
    loop {
        let (stream, from) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::debug!(%error, "a connection for names could not be accepted");
                    // Too many open files: waiting is all that helps.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
            Some(_) = connections.join_next() => continue,
        };
        let Some(place) = connected.take(from.ip(), EACH_CONNECTED, MOST_CONNECTED) else { continue };
        let desk = Arc::clone(&desk);
        connections.spawn(async move {
            let mut stream = stream;
            while let Ok(Some(())) = converse(&mut stream, from, &desk).await {}
            drop(place);
        });
    }
}

/// One question and its answer over a connection; `None` when it is at its end.
async fn converse(stream: &mut TcpStream, from: SocketAddr, desk: &Desk) -> io::Result<Option<()>> {
    let read = async {
        let length = stream.read_u16().await?;
        let mut bytes = vec![0; length.into()];
        stream.read_exact(&mut bytes).await?;
        Ok::<_, io::Error>(bytes)
    };
    let bytes = tokio::time::timeout(SILENCE, read).await??;
    let Some((asker, arrived)) = desk.arrived(from, &bytes, "tcp") else { return Ok(None) };
    let bytes = match arrived {
        Arrived::Noise => return Ok(None),
        Arrived::Refused(bytes) => bytes,
        Arrived::Question(question) => {
            let answer = match desk.zone_answer(asker, &question) {
                Some(answer) => answer,
                None => desk.upstream.ask(&question).await,
            };
            let Some(bytes) = question.answered(&answer, None) else { return Ok(None) };
            bytes
        }
    };
    let Ok(length) = u16::try_from(bytes.len()) else { return Ok(None) };
    let message = [&length.to_be_bytes(), bytes.as_slice()].concat();
    tokio::time::timeout(SILENCE, stream.write_all(&message)).await??;
    Ok(Some(()))
}

fn overloaded() -> Answer {
    metrics::counter!("toft_dns_failures_total", "reason" => "overloaded").increment(1);
    Answer::failed(ResponseCode::ServFail)
}

impl Desk {
    /// What arrived, and from which container; `None` when it came from anywhere else.
    fn arrived(&self, from: SocketAddr, bytes: &[u8], transport: &'static str) -> Option<(Ipv4Addr, Arrived)> {
        let IpAddr::V4(asker) = from.ip() else { return None };
        if !self.zone.borrow().knows(asker) {
            metrics::counter!("toft_dns_queries_total", "transport" => transport, "outcome" => "stranger").increment(1);
            return None;
        }
        let arrived = message::read(bytes);
        let outcome = match &arrived {
            Arrived::Question(_) => "question",
            Arrived::Refused(_) => "refused",
            Arrived::Noise => "noise",
        };
        metrics::counter!("toft_dns_queries_total", "transport" => transport, "outcome" => outcome).increment(1);
        Some((asker, arrived))
    }

    /// The answer to a question for what is ours; `None` for others to answer.
    fn zone_answer(&self, asker: Ipv4Addr, question: &Question) -> Option<Answer> {
        let name = question.name();
        if let Some(below) = below_domain(name) {
            return Some(self.named(asker, question, below.as_deref()));
        }
        let labels = usize::from(name.num_labels());
        let net = name.parse_arpa_name().ok().filter(|_| labels > 2)?;
        if !self.own.hold(net.addr(), net.prefix_len()) {
            return None;
        }
        if net.prefix_len() < net.max_prefix_len() {
            return Some(Answer::own(ResponseCode::NoError, Vec::new()));
        }
        let zone = self.zone.borrow();
        let Some(instance) = zone.name_of(asker, net.addr()) else {
            return Some(Answer::own(ResponseCode::NXDomain, Vec::new()));
        };
        let target = Name::from_ascii(format!("{instance}.{}.", super::zone::DOMAIN)).ok()?;
        let wanted = matches!(question.kind(), RecordType::PTR | RecordType::ANY);
        let records = wanted.then(|| record(name, RData::PTR(rdata::PTR(target))));
        Some(Answer::own(ResponseCode::NoError, records.into_iter().collect()))
    }

    /// The answer for a name of the zone: `below` is what stands before the domain.
    fn named(&self, asker: Ipv4Addr, question: &Question, below: Option<&str>) -> Answer {
        let name = question.name();
        let wanted = match question.kind() {
            RecordType::A => Wanted::Addresses { v4: true, v6: false },
            RecordType::AAAA => Wanted::Addresses { v4: false, v6: true },
            RecordType::ANY => Wanted::Addresses { v4: true, v6: true },
            _ => Wanted::Other,
        };
        let found = match below {
            Some("") => Found::Nothing,
            Some(below) => self.zone.borrow().find(asker, below, wanted),
            None => Found::NoName,
        };
        match found {
            Found::Some(addresses) => {
                let data = |address| match address {
                    IpAddr::V4(address) => RData::A(rdata::A(address)),
                    IpAddr::V6(address) => RData::AAAA(rdata::AAAA(address)),
                };
                let records = addresses.into_iter().map(|address| record(name, data(address))).collect();
                Answer::own(ResponseCode::NoError, records)
            }
            Found::Nothing if below == Some("") && question.kind() == RecordType::SOA => {
                let records: Vec<Record> = vec![message::start_of_authority(message::domain())];
                Answer::own(ResponseCode::NoError, records)
            }
            Found::Nothing => Answer::own(ResponseCode::NoError, Vec::new()),
            Found::NoName => Answer::own(ResponseCode::NXDomain, Vec::new()),
        }
    }
}

/// What of a name stands before our domain, in small letters; the inner `None` when no name of ours looks like that, the
/// outer one when the name is not ours.
fn below_domain(name: &Name) -> Option<Option<String>> {
    let labels: Vec<&[u8]> = name.iter().collect();
    let (below, domain) = labels.split_at_checked(labels.len().checked_sub(2)?)?;
    if !domain[0].eq_ignore_ascii_case(b"toft") || !domain[1].eq_ignore_ascii_case(b"internal") {
        return None;
    }
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'-';
    if !below.iter().all(|label| label.iter().all(plain)) {
        return Some(None);
    }
    let text = below.join(&b'.').to_ascii_lowercase();
    Some(String::from_utf8(text).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_before_the_domain_is_found() {
        let check = |name: &str, want: Option<Option<&str>>| {
            let got = below_domain(&Name::from_ascii(name).unwrap());
            assert_eq!(got.as_ref().map(Option::as_deref), want, "{name}");
        };
        check("Web.Shop.TOFT.internal.", Some(Some("web.shop")));
        check("toft.internal.", Some(Some("")));
        check("a_b.toft.internal.", Some(None));
        check("toft.internal.example.org.", None);
        check("nottoft.internal.", None);
        check("internal.", None);
        check(".", None);
    }
}
