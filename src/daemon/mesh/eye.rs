//! What this node sees of the mesh, for whoever asks, and packets sent to find out.

use std::{
    collections::BTreeMap,
    io,
    net::Ipv4Addr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use toft_model::{
    ids::NodeId,
    mesh::{
        MeshLink, MeshPath, MeshStatus, MeshWay, TALK_PORT, canonical,
        view::{MOST_PACKETS, MeshSeen, PeerSeen, PingRow},
    },
    state::MeshSight,
};
use tokio::{
    net::UdpSocket,
    sync::{Semaphore, watch},
    time::{Instant, MissedTickBehavior, interval, timeout_at},
};

use super::{
    Me,
    talk::{Clock, Message, Pulse, bound, parse, random},
};
use crate::control::{ControlError, ErrorKind, ops::mesh::CLOCK_APART_MS};

/// Time between two packets to the same node.
const PACE: Duration = Duration::from_millis(100);
/// How long the last answers are waited for.
const LATE: Duration = Duration::from_secs(1);
/// Pings at a time.
const PINGS: usize = 4;

/// What there is to be seen.
pub(super) struct Panel {
    pub(super) me: Me,
    /// Every node, this one too.
    pub(super) sights: watch::Receiver<Vec<MeshSight>>,
    pub(super) observed: watch::Receiver<Option<MeshStatus>>,
    /// How each node answers, by its address in the mesh.
    pub(super) pulse: watch::Receiver<BTreeMap<Ipv4Addr, Pulse>>,
    pub(super) clocks: watch::Receiver<BTreeMap<Ipv4Addr, Clock>>,
    /// The way to each node.
    pub(super) links: watch::Receiver<Vec<MeshLink>>,
}

/// Looks at the mesh of this node, from when there is one. Clones share it.
#[derive(Clone)]
pub(in crate::daemon) struct MeshEye {
    panel: Arc<OnceLock<Panel>>,
    pings: Arc<Semaphore>,
    /// What it sees on machines that are made up.
    made_up: Option<Arc<dyn Fn() -> MeshSeen + Send + Sync>>,
}

impl MeshEye {
    /// One that sees nothing yet.
    pub(in crate::daemon) fn none() -> Self {
        Self { panel: Arc::default(), pings: Arc::new(Semaphore::new(PINGS)), made_up: None }
    }

    /// One that sees what is made up.
    pub(in crate::daemon) fn that_sees(made_up: impl Fn() -> MeshSeen + Send + Sync + 'static) -> Self {
        Self { made_up: Some(Arc::new(made_up)), ..Self::none() }
    }

    /// Shows it the mesh.
    pub(super) fn open(&self, panel: Panel) {
        drop(self.panel.set(panel));
    }

    /// What it sees now.
    pub(in crate::daemon) fn seen(&self) -> MeshSeen {
        if let Some(made_up) = &self.made_up {
            return made_up();
        }
        let mut seen = MeshSeen {
            address: None,
            device: None,
            listen_port: None,
            mtu: None,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            peers: Vec::new(),
        };
        let Some(panel) = self.panel.get() else { return seen };
        let (observed, pulse, clocks) = (panel.observed.borrow(), panel.pulse.borrow(), panel.clocks.borrow());
        let links = panel.links.borrow();
        let now = Instant::now();
        seen.address = Some(panel.me.subnet.gateway().into());
        if let Some(status) = &*observed {
            seen.device = Some(status.device);
            (seen.listen_port, seen.mtu) = (Some(status.listen_port), Some(status.mtu));
        }
        for sight in panel.others() {
            let address = sight.subnet.gateway();
            let peer = observed.as_ref().and_then(|status| status.peers.get(&sight.mesh.key));
            let pulse = pulse.get(&address).filter(|pulse| pulse.beats(now));
            let clock = clocks.get(&address).filter(|_| pulse.is_some());
            // Without an answer nobody knows whether anything arrives.
            let there = peer.filter(|_| pulse.is_some());
            let link = links.iter().find(|link| link.node_id == sight.node_id && there.is_some());
            let via = link.and_then(|link| match link.way {
                MeshWay::Relayed { through } => Some(through),
                MeshWay::Direct | MeshWay::None => None,
            });
            seen.peers.push(PeerSeen {
                node_id: sight.node_id,
                address: address.into(),
                endpoint: peer.and_then(|peer| peer.endpoint).map(canonical),
                path: via.map(|_| MeshPath::Relayed).or_else(|| there.and_then(|peer| peer.path)),
                via,
                handshake_age_ms: peer.and_then(|peer| peer.handshake_age_ms),
                rx_bytes: peer.map_or(0, |peer| peer.rx_bytes),
                tx_bytes: peer.map_or(0, |peer| peer.tx_bytes),
                round_trip_us: pulse.map(|pulse| micros(pulse.round_trip)),
                clock_ahead_ms: clock.map(|clock| clock.ahead_ms),
                version: clock.map(|clock| clock.version.clone()),
                disk_full: clock.is_some_and(|clock| clock.disk_full),
            });
        }
        seen
    }

    /// Milliseconds by which other nodes' clocks are ahead of this one's, where that is worth a word.
    pub(in crate::daemon) fn clocks_apart(&self) -> BTreeMap<NodeId, i64> {
        let Some(panel) = self.panel.get() else { return BTreeMap::new() };
        let clocks = panel.clocks.borrow();
        let apart = |clock: &&Clock| clock.ahead_ms.abs() > CLOCK_APART_MS;
        if !clocks.values().any(|clock| apart(&clock)) {
            return BTreeMap::new();
        }
        let of = |sight: MeshSight| Some((sight.node_id, clocks.get(&sight.subnet.gateway()).filter(apart)?.ahead_ms));
        panel.others().filter_map(of).collect()
    }

    /// Sends so many packets to every other node, and tells what came back.
    pub(in crate::daemon) async fn ping(&self, packets: u32) -> Result<Vec<PingRow>, ControlError> {
        let none = || {
            ControlError::new(ErrorKind::Conflict, "this node has no mesh")
                .hint("`[mesh] enabled` turns it on; `toft doctor` says what it lacks")
        };
        let Some(panel) = self.panel.get() else { return Err(none()) };
        if packets == 0 || packets > MOST_PACKETS {
            return Err(ControlError::new(ErrorKind::Invalid, format!("{packets} packets cannot be sent"))
                .field("packets")
                .hint(format!("send 1 to {MOST_PACKETS}")));
        }
        let _place = self.pings.try_acquire().map_err(|_| {
            ControlError::new(ErrorKind::Unavailable, format!("{PINGS} pings of this node are under way already"))
                .hint("try again in a moment")
        })?;
        let failed = |error: io::Error| {
            ControlError::new(ErrorKind::Unavailable, format!("nothing can be sent through the mesh: {error}"))
        };
        let socket = bound((panel.me.subnet.gateway(), 0)).map_err(failed)?;
        let mut rows: BTreeMap<Ipv4Addr, PingRow> = panel
            .others()
            .map(|sight| {
                (sight.subnet.gateway(), PingRow { node_id: sight.node_id, sent: 0, round_trips_us: Vec::new() })
            })
            .collect();
        let mut asked = BTreeMap::new();
        let mut ticks = interval(PACE);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for _ in 0..packets {
            let turn = ticks.tick();
            tokio::pin!(turn);
            loop {
                tokio::select! {
                    _ = &mut turn => break,
                    () = hear(&socket, &mut rows, &mut asked) => {}
                }
            }
            for (address, row) in &mut rows {
                let number = random().map_err(failed)?;
                let Ok(text) = serde_json::to_vec(&Message::Ping { number }) else { continue };
                row.sent += 1;
                asked.insert(number, (*address, Instant::now()));
                // What cannot be sent has no answer.
                drop(socket.send_to(&text, (*address, TALK_PORT)).await);
            }
        }
        let last = Instant::now() + LATE;
        while !asked.is_empty() && timeout_at(last, hear(&socket, &mut rows, &mut asked)).await.is_ok() {}
        Ok(rows.into_values().collect())
    }
}

/// Waits for a packet, and counts it if it is an answer.
async fn hear(
    socket: &UdpSocket,
    rows: &mut BTreeMap<Ipv4Addr, PingRow>,
    asked: &mut BTreeMap<u64, (Ipv4Addr, Instant)>,
) {
    let mut buffer = [0; 256];
    let Ok((length, std::net::SocketAddr::V4(from))) = socket.recv_from(&mut buffer).await else {
        // A peer whose port is closed is no reason to spin.
        return tokio::time::sleep(Duration::from_millis(1)).await;
    };
    let Some(Message::Pong { number, .. }) = parse(&buffer[..length]) else { return };
    let known = asked.get(&number).filter(|(address, _)| address == from.ip());
    if let Some((address, at)) = known
        && let Some(row) = rows.get_mut(address)
    {
        row.round_trips_us.push(micros(at.elapsed()));
        asked.remove(&number);
    }
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

impl Panel {
    fn others(&self) -> impl Iterator<Item = MeshSight> + use<> {
        let me = self.me.node_id;
        let sights = self.sights.borrow().clone().into_iter();
        sights.filter(move |sight| sight.node_id != me)
    }
}
