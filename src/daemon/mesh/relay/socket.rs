//! Where the device finds a peer that is relayed: a socket at this machine's own loopback.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Mutex,
    time::Duration,
};

use toft_model::ids::NodeId;
use tokio::{net::UdpSocket, time::Instant};

use super::{Shared, lock, queue::LARGEST};

/// How often packets are tried directly, for how long, and how many at most.
const TRY_EVERY: Duration = Duration::from_secs(5);
const TRY_FOR: Duration = Duration::from_millis(200);
const TRIES: u32 = 32;
/// Most addresses at which a peer is tried.
const ADDRESSES: usize = 8;
/// Largest packet that is tried: it fits everywhere.
const SMALL: usize = 1_280;
/// How WireGuard's packets of a session begin. Handshakes are not tried: of two copies of one the second is taken for a replay.
const DATA: [u8; 4] = [4, 0, 0, 0];

/// The socket.
pub(super) struct Socket {
    socket: UdpSocket,
    pub(super) address: SocketAddr,
    direct: Mutex<Vec<SocketAddr>>,
}

/// When packets are tried directly.
struct Tries {
    began: Instant,
    left: u32,
}

impl Tries {
    /// Whether this packet is tried.
    fn one(&mut self, now: Instant) -> bool {
        if now.duration_since(self.began) >= TRY_EVERY {
            (self.began, self.left) = (now, TRIES);
        }
        let tried = self.left > 0 && now.duration_since(self.began) < TRY_FOR;
        self.left = self.left.saturating_sub(u32::from(tried));
        tried
    }
}

impl Socket {
    /// One that speaks with the device at `port` and nobody else.
    pub(super) fn open(port: u16) -> io::Result<Self> {
        let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.connect((Ipv4Addr::LOCALHOST, port))?;
        socket.set_nonblocking(true)?;
        let address = socket.local_addr()?;
        Ok(Self { socket: UdpSocket::from_std(socket)?, address, direct: Mutex::default() })
    }

    /// Where the peer may be reached directly.
    pub(super) fn try_at(&self, mut places: Vec<SocketAddr>) {
        places.truncate(ADDRESSES);
        *lock(&self.direct) = places;
    }

    /// Gives a datagram of the peer to the device. One that it has no room for is lost.
    pub(super) fn give(&self, content: &[u8]) {
        drop(self.socket.try_send(content));
    }

    /// Takes what the device sends to the peer.
    pub(super) async fn read(&self, shared: &Shared, peer: NodeId) {
        let mut buffer = vec![0; LARGEST + 1];
        let now = Instant::now();
        let mut tries = Tries { began: now.checked_sub(TRY_EVERY).unwrap_or(now), left: 0 };
        loop {
            let length = match self.socket.recv(&mut buffer).await {
                Ok(length) => length,
                // The device was not there when something was sent to it.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
                Err(error) => return tracing::warn!(%error, "packets to a node are not relayed any more"),
            };
            let content = &buffer[..length];
            if content.starts_with(&DATA) && length <= SMALL && tries.one(Instant::now()) {
                self.try_directly(shared, content);
            }
            shared.send(peer, content.to_vec());
        }
    }

    fn try_directly(&self, shared: &Shared, content: &[u8]) {
        let Some(knocker) = &shared.knocker else { return };
        for place in lock(&self.direct).iter() {
            // Where there is no way, there is none.
            drop(knocker.send(shared.port, *place, content));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_packets_are_tried_now_and_then() {
        let start = Instant::now();
        let mut tries = Tries { began: start, left: TRIES };
        let tried = |tries: &mut Tries, ms: u64| tries.one(start + Duration::from_millis(ms));
        assert_eq!((0..100).filter(|ms| tried(&mut tries, *ms)).count(), TRIES as usize);
        assert!(!tried(&mut tries, 4_999));
        assert!(tried(&mut tries, 5_000) && tried(&mut tries, 5_199));
        assert!(!tried(&mut tries, 5_200));
    }
}
