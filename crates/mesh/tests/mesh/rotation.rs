//! Keys that change while packets flow.

use std::time::Duration;

use toft_mesh::keys::Step;
use toft_model::mesh::MeshPeer;

use crate::lab::{Lab, Which, echo, eventually, inner, socket_for};

/// Asks for an echo every few milliseconds until told to stop, and gives how many were asked for and how many came.
fn stream(
    lab: &Lab,
    from: usize,
    to: usize,
    stop: std::sync::mpsc::Receiver<()>,
) -> std::thread::JoinHandle<(u32, u32)> {
    let address = inner(to);
    lab.namespace(from).spawn(move || {
        let socket = socket_for(address);
        socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let (mut asked, mut came) = (0_u32, 0);
        while stop.recv_timeout(Duration::from_millis(3)) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            asked += 1;
            came +=
                u32::from(echo(&socket, address, &asked.to_be_bytes()).as_deref() == Some(&asked.to_be_bytes()[..]));
        }
        (asked, came)
    })
}

#[test]
fn no_packet_is_lost_when_a_node_changes_its_key() {
    let mut lab = Lab::connected(Which::Userspace, 2);
    assert!(lab.reaches(0, inner(1)));
    let (stops, streams): (Vec<_>, Vec<_>) = [(0, 1), (1, 0)]
        .map(|(from, to)| {
            let (stop, stopped) = std::sync::mpsc::channel();
            (stop, stream(&lab, from, to, stopped))
        })
        .into_iter()
        .unzip();
    for round in 0..3 {
        let old = lab.key(1);
        let Step::Announce(next) = lab.nodes[1].keys.step(Duration::ZERO, false).unwrap() else {
            panic!("no next key")
        };
        lab.nodes[0].config.peers.get_mut(&old).unwrap().next_key = Some(next);
        lab.set(0).unwrap();
        lab.nodes[1].keys.switch().unwrap();
        lab.nodes[1].config.key = next;
        lab.set(1).unwrap();
        eventually("the next key in use", || lab.status(0).unwrap().peers[&old].uses_next_key);
        std::thread::sleep(Duration::from_millis(100));
        let peer = lab.nodes[0].config.peers.remove(&old).unwrap();
        lab.nodes[0].config.peers.insert(next, MeshPeer { next_key: None, ..peer });
        lab.set(0).unwrap();
        assert!(lab.status(0).unwrap().peers[&next].is_live(), "round {round}");
        std::thread::sleep(Duration::from_millis(100));
    }
    drop(stops);
    for stream in streams {
        let (asked, came) = stream.join().unwrap();
        assert!(asked > 50 && came == asked, "{came} of {asked} came");
    }
}
