//! Takes the connections of the members' port.
//!
//! What consensus says stays where consensus runs. Other services ([`super::services`]) are asked over connections of their
//! own, told apart by what the caller names in its hello (ALPN), and answered on the daemon's threads: whatever they carry
//! holds up no heartbeat.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::BoxFuture;
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::timeout,
};
use tokio_rustls::{
    LazyConfigAcceptor,
    server::{StartHandshake, TlsStream},
};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::{Connected, TcpConnectInfo, TlsConnectInfo};

use super::{Transport, limit::network, services::Services, tls};

/// What a caller names that speaks consensus, or wants to join.
pub(super) const MEMBERS: &[u8] = b"h2";
/// Longest wait for a caller's handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Handshakes at a time, and of one address.
const HANDSHAKES: Bound = Bound { all: 512, one: 32 };
/// Connections of strangers at a time, and of one address.
const STRANGERS: Bound = Bound { all: 64, one: 16 };
/// How long a member may still be answered when this one ends. One that is not reached any more would hold that up.
const LAST_ANSWERS: Duration = Duration::from_secs(2);
/// How long a stranger may stay.
const STAY: Duration = Duration::from_secs(120);
/// Connections whose handshake is done and that nobody has taken yet.
const DONE: usize = 64;
/// Pause after the system has given no connection: there are too many open files.
const PAUSE: Duration = Duration::from_millis(100);

/// So many at a time.
#[derive(Clone, Copy)]
struct Bound {
    all: usize,
    one: usize,
}

/// Counts what addresses have at a time.
struct Counts {
    bound: Bound,
    now: Mutex<(usize, HashMap<IpAddr, usize>)>,
}

/// One that is counted until this is dropped.
struct Counted {
    counts: Arc<Counts>,
    from: IpAddr,
}

impl Counts {
    fn new(bound: Bound) -> Arc<Self> {
        Arc::new(Self { bound, now: Mutex::default() })
    }

    /// Counts one more of an address, unless there are too many.
    fn count(self: &Arc<Self>, from: IpAddr) -> Option<Counted> {
        let from = network(from);
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        let (all, each) = &mut *now;
        let known = each.get(&from).copied().unwrap_or(0);
        if *all >= self.bound.all || known >= self.bound.one {
            return None;
        }
        *all += 1;
        each.insert(from, known + 1);
        Some(Counted { counts: Arc::clone(self), from })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut now = self.counts.now.lock().unwrap_or_else(PoisonError::into_inner);
        let (all, each) = &mut *now;
        *all -= 1;
        if let Some(known) = each.get_mut(&self.from) {
            *known -= 1;
            if *known == 0 {
                each.remove(&self.from);
            }
        }
    }
}

/// Stands at the members' port.
pub(super) struct Gate {
    tls: Arc<ServerConfig>,
    services: Arc<Services>,
    /// Where services are answered.
    elsewhere: tokio::runtime::Handle,
    handshakes: Arc<Counts>,
    strangers: Arc<Counts>,
}

impl Gate {
    /// A gate with the certificates of a member. Services are answered where this is called.
    pub(super) fn new(
        transport: &Transport,
        services: Arc<Services>,
        elsewhere: tokio::runtime::Handle,
    ) -> Result<Arc<Self>, rustls::Error> {
        let pem = |error: rustls::pki_types::pem::Error| rustls::Error::General(error.to_string());
        let provider = tls::provider();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(transport.authority.as_bytes()).map_err(pem)?)?;
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        let chain = CertificateDer::pem_slice_iter(transport.certificate.as_bytes()).collect::<Result<Vec<_>, _>>();
        let key = PrivateKeyDer::from_pem_slice(transport.key.as_bytes()).map_err(pem)?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.map_err(pem)?, key)?;
        config.alpn_protocols = vec![MEMBERS.to_vec(), super::services::NAME.to_vec()];
        Ok(Arc::new(Self {
            tls: Arc::new(config),
            services,
            elsewhere,
            handshakes: Counts::new(HANDSHAKES),
            strangers: Counts::new(STRANGERS),
        }))
    }

    /// Takes connections until `cancel`, and gives those that speak consensus or want to join.
    pub(super) fn open(
        self: Arc<Self>,
        listener: TcpListener,
        cancel: CancellationToken,
    ) -> mpsc::Receiver<io::Result<Guest>> {
        let (guests, taken) = mpsc::channel(DONE);
        tokio::spawn(async move {
            loop {
                let accepted = tokio::select! {
                    () = cancel.cancelled() => return,
                    accepted = listener.accept() => accepted,
                };
                let (stream, from) = match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        tracing::debug!(%error, "a connection of a member could not be taken");
                        tokio::time::sleep(PAUSE).await;
                        continue;
                    }
                };
                let Some(counted) = self.handshakes.count(from.ip()) else { continue };
                let (gate, guests, cancel) = (Arc::clone(&self), guests.clone(), cancel.clone());
                tokio::spawn(async move {
                    let greeted = timeout(HANDSHAKE_TIMEOUT, gate.greet(stream, from, &guests, &cancel)).await;
                    if let Ok(Err(error)) = greeted {
                        tracing::debug!(%error, %from, "a caller is no member, or broke off");
                    }
                    drop(counted);
                });
            }
        });
        taken
    }

    async fn greet(
        self: &Arc<Self>,
        stream: TcpStream,
        from: SocketAddr,
        guests: &mpsc::Sender<io::Result<Guest>>,
        cancel: &CancellationToken,
    ) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let hello = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream).await?;
        let asks_services =
            hello.client_hello().alpn().is_some_and(|mut names| names.any(|name| name == super::services::NAME));
        if asks_services {
            let stream = hello.io.into_std()?;
            let (gate, accepted, cancel) = (Arc::clone(self), hello.accepted, cancel.clone());
            let answered = self.elsewhere.spawn(async move {
                let hello = StartHandshake::from_parts(accepted, TcpStream::from_std(stream)?);
                let stream = hello.into_stream(Arc::clone(&gate.tls)).await?;
                gate.services.take(stream, cancel);
                Ok::<_, io::Error>(())
            });
            return answered.await.map_err(io::Error::other)?;
        }
        let stream = hello.into_stream(Arc::clone(&self.tls)).await?;
        let guest = if stream.get_ref().1.peer_certificates().is_some() {
            let cancel = cancel.clone();
            Guest::until(stream, async move {
                cancel.cancelled().await;
                tokio::time::sleep(LAST_ANSWERS).await;
            })
        } else {
            let Some(counted) = self.strangers.count(from.ip()) else {
                return Err(io::Error::other("too many strangers at a time"));
            };
            Guest::stranger(stream, counted)
        };
        // Nobody takes it when the door is closed.
        drop(guests.send(Ok(guest)).await);
        Ok(())
    }
}

/// A connection whose handshake is done.
pub(super) struct Guest {
    stream: TlsStream<TcpStream>,
    /// The connection ends with it.
    until: Option<BoxFuture<'static, ()>>,
    _counted: Option<Counted>,
}

impl Guest {
    fn stranger(stream: TlsStream<TcpStream>, counted: Counted) -> Self {
        Self { stream, until: Some(Box::pin(tokio::time::sleep(STAY))), _counted: Some(counted) }
    }

    /// One that is let in until something happens.
    pub(super) fn until(stream: TlsStream<TcpStream>, end: impl Future<Output = ()> + Send + 'static) -> Self {
        Self { stream, until: Some(Box::pin(end)), _counted: None }
    }

    fn ended(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        let over = self.until.as_mut().is_some_and(|until| until.as_mut().poll(context).is_ready());
        if !over {
            return Ok(());
        }
        // What has ended is not asked again.
        self.until = Some(Box::pin(std::future::ready(())));
        Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the caller's time is over"))
    }
}

impl Connected for Guest {
    type ConnectInfo = TlsConnectInfo<TcpConnectInfo>;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Guest {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.ended(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Guest {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_does_not_take_the_places_of_others() {
        let counts = Counts::new(Bound { all: 5, one: 3 });
        let address = |last: u8| IpAddr::from([192, 0, 2, last]);
        let mut held: Vec<Counted> = (0..10).filter_map(|_| counts.count(address(1))).collect();
        assert_eq!(held.len(), 3);
        held.extend((0..10).filter_map(|_| counts.count(address(2))));
        assert_eq!(held.len(), 5, "all together");
        assert!(counts.count(address(3)).is_none());
        held.remove(0);
        assert!(counts.count(address(3)).is_some());
        drop(held);
        let now = counts.now.lock().unwrap();
        assert!(now.0 == 0 && now.1.is_empty(), "nothing is remembered of who is gone");
    }
}
