//! The mesh: a drawn map of who reaches whom and how, and the same as a table.

use std::{collections::BTreeMap, f64::consts::TAU};

use askama::Template;
use axum::{extract::State, response::Response};
use toft_model::{
    mesh::{MeshDevice, MeshPath},
    name::Name,
    units::{format_bytes, format_span_ms},
};

use super::{Dashboard, Frame, error::PageError, live, present::Pill, render, show};
use crate::control::ops::{
    Ops,
    mesh::{MeshView, PeerView},
};

/// Width of the map, and its height with one other node, with two, and with more.
const WIDTH: f64 = 760.0;
const HEIGHTS: [f64; 3] = [150.0, 200.0, 420.0];
/// Most nodes that are drawn; more would be a tangle, and the table has them all.
const MOST_DRAWN: usize = 24;

#[derive(Template)]
#[template(path = "mesh/index.html")]
struct Page {
    frame: Frame,
    map: Map,
}

#[derive(Template)]
#[template(path = "mesh/_map.html")]
struct Fragment {
    map: Map,
}

struct Map {
    /// Why there is none, if there is none.
    trouble: Option<String>,
    from: String,
    facts: Vec<(&'static str, String)>,
    places: Vec<Place>,
    ways: Vec<Way>,
    height: f64,
    peers: Vec<PeerLine>,
    drawn: bool,
}

/// Where a node is drawn.
struct Place {
    name: String,
    x: f64,
    y: f64,
    /// Where its name is written.
    text_y: f64,
    kind: &'static str,
}

/// A line of the map.
struct Way {
    from: (f64, f64),
    to: (f64, f64),
    middle: (f64, f64),
    kind: &'static str,
    trip: String,
}

struct PeerLine {
    name: String,
    path: Pill,
    via: Option<String>,
    trip: String,
    handshake: String,
    endpoint: String,
    address: String,
    sent: String,
    received: String,
    version: String,
}

impl PeerLine {
    fn of(peer: &PeerView, names: &BTreeMap<toft_model::ids::NodeId, Name>) -> Self {
        let seen = peer.seen.as_ref();
        let dash = || "-".to_owned();
        let path = match seen.and_then(|seen| seen.path) {
            Some(MeshPath::Direct) => Pill { tone: "ok", word: "direct" },
            Some(MeshPath::Relayed) => Pill { tone: "warn", word: "relayed" },
            None => Pill { tone: "bad", word: "not reached" },
        };
        Self {
            name: peer.node.to_string(),
            path,
            via: seen.and_then(|seen| seen.via).and_then(|via| names.get(&via)).map(ToString::to_string),
            trip: seen.and_then(|seen| seen.round_trip_us).map_or_else(dash, trip),
            handshake: seen.and_then(|seen| seen.handshake_age_ms).map_or_else(dash, |age| {
                format!("{} ago", format_span_ms(i64::try_from(age / 1_000 * 1_000).unwrap_or(i64::MAX)))
            }),
            endpoint: seen.and_then(|seen| seen.endpoint).map_or_else(dash, |endpoint| endpoint.to_string()),
            address: seen.map_or_else(dash, |seen| seen.address.to_string()),
            sent: seen.map_or_else(dash, |seen| format_bytes(seen.tx_bytes)),
            received: seen.map_or_else(dash, |seen| format_bytes(seen.rx_bytes)),
            version: seen.and_then(|seen| seen.version.clone()).unwrap_or_else(dash),
        }
    }
}

fn carrier(device: MeshDevice) -> &'static str {
    match device {
        MeshDevice::Kernel => "the kernel's WireGuard",
        MeshDevice::Userspace => "toft's own WireGuard",
        MeshDevice::Fake => "nobody: it is made up",
    }
}

fn trip(us: u64) -> String {
    match us {
        0..10_000 => format!("{:.1} ms", us as f64 / 1_000.0),
        _ => format!("{} ms", us / 1_000),
    }
}

impl Map {
    fn of(view: &MeshView, names: &BTreeMap<toft_model::ids::NodeId, Name>) -> Self {
        let seen = &view.seen;
        let facts = [
            ("Seen from", Some(view.from.to_string())),
            ("Carried by", seen.device.map(|device| carrier(device).to_owned())),
            ("Its address", seen.address.map(|address| address.to_string())),
            ("Listens at UDP port", seen.listen_port.map(|port| port.to_string())),
            ("Packets of up to", seen.mtu.map(|mtu| format!("{mtu} bytes"))),
        ];
        let mut map = Self {
            trouble: None,
            from: view.from.to_string(),
            facts: facts.into_iter().filter_map(|(key, value)| Some((key, value?))).collect(),
            places: Vec::new(),
            ways: Vec::new(),
            height: HEIGHTS[view.peers.len().saturating_sub(1).min(2)],
            peers: view.peers.iter().map(|peer| PeerLine::of(peer, names)).collect(),
            drawn: view.peers.len() < MOST_DRAWN && !view.peers.is_empty(),
        };
        if map.drawn {
            map.draw(view, names);
        }
        map
    }

    /// The node that looks in the middle, the others around it; two of them below it, so that no way covers another.
    fn draw(&mut self, view: &MeshView, names: &BTreeMap<toft_model::ids::NodeId, Name>) {
        let two = view.peers.len() == 2;
        let middle = (WIDTH / 2.0, if two { 36.0 } else { self.height / 2.0 - 8.0 });
        let reach = (WIDTH * 0.37, self.height * 0.36);
        let count = view.peers.len() as f64;
        let round = |value: f64| (value * 10.0).round() / 10.0;
        let at = |place: usize| {
            if two {
                return (WIDTH * [0.78, 0.22][place], self.height - 52.0);
            }
            let angle = place as f64 / count * TAU + if view.peers.len() == 1 { 0.0 } else { -TAU / 4.0 };
            (round(middle.0 + angle.cos() * reach.0), round(middle.1 + angle.sin() * reach.1))
        };
        for (place, peer) in view.peers.iter().enumerate() {
            let seen = peer.seen.as_ref();
            let path = seen.and_then(|seen| seen.path);
            let via = seen.and_then(|seen| seen.via).and_then(|via| names.get(&via));
            let through = via.and_then(|via| view.peers.iter().position(|other| other.node == *via));
            let to = at(place);
            let from = through.map_or(middle, at);
            let kind = match path {
                Some(MeshPath::Direct) => "",
                Some(MeshPath::Relayed) => "relayed",
                None => "none",
            };
            let trip = seen.and_then(|seen| seen.round_trip_us).map(trip).unwrap_or_default();
            // What is relayed may pass the middle, where another node stands.
            let part = if path == Some(MeshPath::Relayed) { 0.64 } else { 0.5 };
            let middle = (round(from.0 + (to.0 - from.0) * part), round(from.1 + (to.1 - from.1) * part - 6.0));
            self.ways.push(Way { from, to, middle, kind, trip });
            let kind = if path.is_none() { "away" } else { "" };
            self.places.push(Place { name: peer.node.to_string(), x: to.0, y: to.1, text_y: to.1 + 34.0, kind });
        }
        let (x, y) = middle;
        self.places.push(Place { name: view.from.to_string(), x, y, text_y: y + 34.0, kind: "own" });
    }
}

async fn read(ops: &Ops) -> Result<Map, PageError> {
    let names = ops.cluster().members.into_iter().map(|member| (member.node_id, member.name)).collect();
    Ok(match ops.mesh(None).await {
        Ok(view) => Map::of(&view, &names),
        Err(error) => Map {
            trouble: Some(error.message),
            from: String::new(),
            facts: Vec::new(),
            places: Vec::new(),
            ways: Vec::new(),
            height: HEIGHTS[0],
            peers: Vec::new(),
            drawn: false,
        },
    })
}

pub(super) async fn page(State(dashboard): State<Dashboard>) -> Result<Response, PageError> {
    show(&Page { frame: Frame::at("mesh"), map: read(&dashboard.ops).await? })
}

pub(super) async fn live(State(dashboard): State<Dashboard>) -> Response {
    let ops = dashboard.ops.clone();
    live::fragments(&dashboard, "mesh", move || {
        let ops = ops.clone();
        async move { render(&Fragment { map: read(&ops).await? }) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_as_fine_as_they_matter() {
        assert_eq!((trip(420), trip(9_940), trip(25_400)), ("0.4 ms".into(), "9.9 ms".into(), "25 ms".into()));
    }
}
