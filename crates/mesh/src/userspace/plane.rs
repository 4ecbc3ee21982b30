//! The thread that carries packets. It owns the TUN device, the socket and the sessions; others send it commands. One
//! thread, because every hop between threads costs more than a packet does, and a thread of its own, so that the
//! daemon's tasks never wait for packets nor packets for them.

use std::{
    io,
    os::fd::AsFd,
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use nix::{
    errno::Errno,
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        eventfd::{EfdFlags, EventFd},
    },
};
use toft_model::mesh::{MeshConfig, MeshPeerStatus, PublicKey};
use tokio::sync::oneshot;

use super::{
    super::keys::PrivateKey,
    merge::Merger,
    peers::{Outbox, Peers},
    split::split,
    tun::{Next, Tun},
    udp::Udp,
};

/// How often sessions are asked whether time wants something of them.
const TICK: Duration = Duration::from_millis(250);
const TICKS_A_SECOND: u32 = 4;
/// How many reads of one kind are done before the other gets its turn.
const READS_A_TURN: usize = 32;
/// Datagrams that are collected before they are sent, and bytes before they are handed to the kernel.
const ENOUGH_DATAGRAMS: usize = 44;
const ENOUGH_BYTES: usize = 60_000;

/// What the thread is asked for.
pub(super) enum Command {
    /// To be as this configuration says.
    Set(Box<Wanted>),
    /// What it has seen.
    Status(oneshot::Sender<std::collections::BTreeMap<PublicKey, MeshPeerStatus>>),
}

/// A whole configuration.
pub(super) struct Wanted {
    pub key: PrivateKey,
    pub config: MeshConfig,
    pub mtu: u16,
}

/// The thread. It ends when this is dropped.
pub(super) struct Plane {
    commands: Option<mpsc::SyncSender<Command>>,
    wake: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Plane {
    /// Starts it.
    pub(super) fn start(tun: Tun, udp: Udp, key: &PrivateKey) -> io::Result<Self> {
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let interest = |which: u64| EpollEvent::new(EpollFlags::EPOLLIN, which);
        epoll.add(tun.as_fd(), interest(FROM_KERNEL))?;
        epoll.add(udp.as_fd(), interest(FROM_NETWORK))?;
        epoll.add(wake.as_fd(), interest(FROM_DAEMON))?;
        let (sender, commands) = mpsc::sync_channel(16);
        let (peers, woken) = (Peers::new(key), Arc::clone(&wake));
        let carrier = Carrier { tun, udp, peers, merger: Merger::default(), out: Outbox::new() };
        let thread = std::thread::Builder::new().name("mesh".to_owned()).spawn(move || {
            if let Err(error) = carrier.carry(&epoll, &woken, &commands) {
                tracing::warn!(%error, "the mesh device ended");
            }
        })?;
        Ok(Self { commands: Some(sender), wake, thread: Some(thread) })
    }

    /// Whether it goes on.
    pub(super) fn is_alive(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Sends a command; false when the thread has ended or is overwhelmed.
    pub(super) fn ask(&self, command: Command) -> bool {
        let sent = self.commands.as_ref().is_some_and(|commands| commands.try_send(command).is_ok());
        sent && self.wake.write(1).is_ok()
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        drop(self.commands.take());
        let _ = self.wake.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

const FROM_KERNEL: u64 = 0;
const FROM_NETWORK: u64 = 1;
const FROM_DAEMON: u64 = 2;

struct Carrier {
    tun: Tun,
    udp: Udp,
    peers: Peers,
    merger: Merger,
    out: Outbox,
}

impl Carrier {
    /// Carries packets until nobody sends commands any more, or the device is gone.
    fn carry(mut self, epoll: &Epoll, wake: &EventFd, commands: &mpsc::Receiver<Command>) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); 3];
        let mut next_tick = Instant::now() + TICK;
        let mut ticks = 0;
        loop {
            let wait = next_tick.saturating_duration_since(Instant::now());
            // A fraction of a millisecond is waited for too, rather than asked about again and again.
            let wait = u16::try_from(wait.as_micros().div_ceil(1_000)).unwrap_or(u16::MAX);
            let count = match epoll.wait(&mut events, EpollTimeout::from(wait)) {
                Ok(count) => count,
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
            };
            for event in &events[..count] {
                match event.data() {
                    FROM_KERNEL => self.outbound()?,
                    FROM_NETWORK => self.inbound()?,
                    _ => {
                        let _ = wake.read();
                        if !self.obey(commands) {
                            return Ok(());
                        }
                    }
                }
            }
            let now = Instant::now();
            if now >= next_tick {
                next_tick = now + TICK;
                ticks += 1;
                if ticks % TICKS_A_SECOND == 0 {
                    self.peers.end_second();
                }
                self.peers.tick(now, &mut self.out);
                self.flush_out();
            }
        }
    }

    /// Packets that this node sends.
    fn outbound(&mut self) -> io::Result<()> {
        let now = Instant::now();
        for _ in 0..READS_A_TURN {
            let (header, packet) = match self.tun.read()? {
                Next::Nothing => break,
                Next::Malformed => continue,
                Next::Packet(header, packet) => (header, packet),
            };
            let Some(way) = self.peers.way(packet) else { continue };
            let (peers, out) = (&mut self.peers, &mut self.out);
            // A malformed packet is lost, as it would be in the kernel.
            let _ = split(header, packet, |whole| peers.send(way, whole, now, out));
            if self.out.len() >= ENOUGH_DATAGRAMS {
                self.flush_out();
            }
        }
        self.flush_out();
        Ok(())
    }

    /// Datagrams that come in.
    fn inbound(&mut self) -> io::Result<()> {
        let mut waiting = 0;
        for _ in 0..READS_A_TURN {
            let mut message = match self.udp.receive() {
                Ok(Some(message)) => message,
                Ok(None) => break,
                // What a router or a peer answered to what was sent before.
                Err(_) => continue,
            };
            while !message.bytes.is_empty() {
                let length = message.datagram.min(message.bytes.len());
                let datagram: BytesMut = message.bytes.split_to(length);
                if let Some(packet) = self.peers.receive(message.from, datagram, &mut self.out) {
                    waiting += packet.len();
                    self.merger.push(packet);
                }
            }
            if waiting >= ENOUGH_BYTES {
                self.flush_in();
                waiting = 0;
            }
        }
        self.flush_in();
        self.flush_out();
        Ok(())
    }

    fn flush_in(&mut self) {
        let tun = &self.tun;
        self.merger.drain(|parts| tun.write(parts));
    }

    fn flush_out(&mut self) {
        if !self.out.is_empty() {
            self.udp.send(&self.out);
            self.out.clear();
        }
    }

    /// Does what was asked; false when nobody asks any more.
    fn obey(&mut self, commands: &mpsc::Receiver<Command>) -> bool {
        loop {
            match commands.try_recv() {
                Ok(Command::Set(wanted)) => {
                    let Wanted { key, config, mtu } = *wanted;
                    self.peers.set(&key, &config, mtu, Instant::now(), &mut self.out);
                    self.flush_out();
                }
                // Who asked may have gone.
                Ok(Command::Status(answer)) => drop(answer.send(self.peers.status())),
                Err(mpsc::TryRecvError::Empty) => return true,
                Err(mpsc::TryRecvError::Disconnected) => return false,
            }
        }
    }
}
