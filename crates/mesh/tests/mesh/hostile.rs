//! What anybody on the network can send to the port: noise, pieces, replays, strangers' handshakes, floods.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use gotatun::{
    noise::{Tunn, index_table::IndexTable, rate_limiter::RateLimiter},
    packet::Packet,
    x25519,
};
use toft_model::mesh::{DEFAULT_PORT, MeshPeerStatus};

use crate::{
    capture::Capture,
    lab::{Lab, Which, ask, inner, noise, underlay},
};

/// A stranger's first message to node 0, which only who knows its public key can make.
fn stranger(lab: &Lab) -> Tunn {
    let mut seed = [0; 32];
    seed.iter_mut().enumerate().for_each(|(at, byte)| *byte = noise(at + std::process::id() as usize));
    let secret = x25519::StaticSecret::from(seed);
    let limiter = Arc::new(RateLimiter::new(&x25519::PublicKey::from(&secret), 100));
    let remote = x25519::PublicKey::from(lab.key(0).0);
    Tunn::new(secret, remote, None, None, IndexTable::from_os_rng(), limiter)
}

fn initiation(tunn: &mut Tunn) -> Vec<u8> {
    let packet: Packet = tunn.format_handshake_initiation(true).unwrap().into();
    packet.to_vec()
}

/// Sends datagrams to node 0 from a third node.
fn send(lab: &Lab, datagrams: Vec<Vec<u8>>) {
    lab.namespace(2).inside(move || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        for datagram in datagrams {
            socket.send_to(&datagram, (underlay(0), DEFAULT_PORT)).unwrap();
        }
    });
}

fn is_unmoved(before: &MeshPeerStatus, after: &MeshPeerStatus) -> bool {
    let same = |status: &MeshPeerStatus| (status.endpoint, status.rx_bytes, status.tx_bytes);
    same(before) == same(after) && after.handshake_age_ms >= before.handshake_age_ms
}

#[test]
fn what_strangers_send_changes_nothing() {
    let lab = Lab::connected(Which::Userspace, 3);
    assert!(lab.reaches(1, inner(0)));
    let capture = Capture::start(lab.namespace(0), "under");
    assert!(lab.namespace(1).inside(|| (0..20).all(|_| ask(inner(0), Duration::from_secs(5)))));
    let frames = capture.end();
    // What came from node 1: Ethernet, IPv4 without options, UDP.
    let to_us = |frame: &&Vec<u8>| {
        frame.len() > 42 && frame[12..14] == [8, 0] && frame[23] == 17 && frame[36..38] == DEFAULT_PORT.to_be_bytes()
    };
    let heard: Vec<Vec<u8>> = frames.iter().filter(to_us).map(|frame| frame[42..].to_vec()).collect();
    let data: Vec<Vec<u8>> = heard.into_iter().filter(|datagram| datagram[0] == 4).collect();
    assert!(data.len() >= 20, "{}", data.len());
    let before = lab.seen(0, 1);

    // Replays, also cut short, prolonged and with single bits turned.
    send(&lab, data.clone());
    send(&lab, data.iter().flat_map(|one| (0..one.len()).step_by(7).map(|length| one[..length].to_vec())).collect());
    send(&lab, data.iter().map(|one| [one.as_slice(), &[0; 16]].concat()).collect());
    let turned = |one: &Vec<u8>| {
        (0..one.len())
            .map(|at| one.iter().enumerate().map(|(n, byte)| if n == at { byte ^ 0x10 } else { *byte }).collect())
            .collect::<Vec<_>>()
    };
    send(&lab, data.iter().take(5).flat_map(turned).collect());
    // Noise of every length, and noise that begins like a message.
    send(&lab, (0..1_500).map(|length| (0..length).map(|at| noise(at * 31 + length)).collect()).collect());
    for kind in 0..=5_u8 {
        let begins = |length: usize| {
            [&[kind, 0, 0, 0][..], &(0..length).map(|at| noise(at + length)).collect::<Vec<_>>()].concat()
        };
        send(&lab, [0, 4, 12, 28, 44, 60, 88, 144, 145, 1_400].map(begins).to_vec());
    }
    // Handshakes of somebody nobody knows, whole and in pieces.
    let mut unknown = stranger(&lab);
    let first = initiation(&mut unknown);
    send(&lab, (0..first.len()).map(|length| first[..length].to_vec()).collect());
    send(&lab, (0..20).map(|_| initiation(&mut unknown)).collect());
    std::thread::sleep(Duration::from_millis(200));

    let after = lab.seen(0, 1);
    assert!(is_unmoved(&before, &after), "{before:?}\n{after:?}");
    assert_eq!(lab.seen(0, 2).rx_bytes, 0);
    assert!(lab.reaches(0, inner(1)) && lab.reaches(1, inner(0)));
    assert_eq!(lab.seen(0, 1).endpoint, Some(SocketAddr::new(underlay(1), DEFAULT_PORT)));
}

#[test]
fn a_peer_cannot_speak_for_another() {
    let lab = Lab::connected(Which::Userspace, 3);
    assert!(lab.reaches(1, inner(0)) && lab.reaches(2, inner(0)));
    // Node 2 takes the address of node 1 and asks from there; it has its own tunnel to node 0.
    lab.namespace(2).ip(&format!("addr add {}/32 dev toft-wg", inner(1)));
    let capture = Capture::start(lab.namespace(0), "toft-wg");
    let answered = lab.namespace(2).inside(|| {
        let socket = UdpSocket::bind((inner(1), 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        (0..10).any(|_| {
            socket.send_to(b"stolen", (inner(0), 7)).unwrap();
            socket.recv_from(&mut [0; 16]).is_ok()
        })
    });
    assert!(!answered);
    let seen = capture.end();
    assert!(!seen.iter().any(|packet| packet.windows(6).any(|window| window == b"stolen")), "it came in");
    assert!(lab.reaches(2, inner(0)), "under its own address it may");
    assert!(lab.reaches(1, inner(0)));
}

/// CPU time in seconds of the thread that carries node `n`'s packets.
fn cpu(lab: &Lab, n: usize) -> f64 {
    let namespace = std::fs::read_link(format!("/proc/{}/ns/net", lab.namespace(n).pid())).unwrap();
    let ticks = |path: std::path::PathBuf| -> Option<u64> {
        let text = std::fs::read_to_string(path.join("stat")).ok()?;
        let (name, rest) = text.rsplit_once(')')?;
        let there = std::fs::read_link(path.join("ns/net")).ok()? == namespace;
        // State, five numbers, and so on; user and system time are the twelfth and thirteenth.
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let time = |at: usize| fields.get(at)?.parse::<u64>().ok();
        (name.ends_with("(mesh") && there).then(|| time(11).zip(time(12)).map(|(user, system)| user + system))?
    };
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    tasks.filter_map(|task| ticks(task.unwrap().path())).sum::<u64>() as f64 / 100.0
}

/// Memory in kB of this process.
fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    memory.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn a_flood_of_handshakes_costs_little_and_stops_nobody() {
    let lab = Lab::connected(Which::Userspace, 3);
    assert!(lab.reaches(1, inner(0)));
    // Each is a message that only who knows the public key can make, and each is another one.
    let mut unknown = stranger(&lab);
    let messages: Vec<Vec<u8>> = (0..500).map(|_| initiation(&mut unknown)).collect();
    let (stop, sent, answers) =
        (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (cpu_before, memory_before) = (cpu(&lab, 0), memory());
    let begun = Instant::now();
    let flood = {
        let (stop, sent, answers) = (Arc::clone(&stop), Arc::clone(&sent), Arc::clone(&answers));
        lab.namespace(2).spawn(move || {
            // From many addresses, so that no limit for one of them stops it.
            for n in 100..200 {
                crate::lab::run("ip", &format!("addr add 192.0.2.{n}/24 dev under"));
            }
            let sockets: Vec<UdpSocket> =
                (100..200_u8).map(|n| UdpSocket::bind((std::net::Ipv4Addr::new(192, 0, 2, n), 0)).unwrap()).collect();
            sockets.iter().for_each(|socket| socket.set_nonblocking(true).unwrap());
            for (n, message) in messages.iter().cycle().enumerate() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let socket = &sockets[n % sockets.len()];
                sent.fetch_add(
                    usize::from(socket.send_to(message, (underlay(0), DEFAULT_PORT)).is_ok()),
                    Ordering::Relaxed,
                );
                while let Ok((length, _)) = socket.recv_from(&mut [0; 256]) {
                    // No answer is longer than the question.
                    assert!(length <= message.len());
                    answers.fetch_add(1, Ordering::Relaxed);
                }
                if n % 64 == 0 {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        })
    };
    std::thread::sleep(Duration::from_millis(500));
    // Who has a session goes on, and who needs one gets one.
    let mut came = 0;
    for _ in 0..20 {
        came += u32::from(lab.reaches(1, inner(0)));
    }
    lab.remove(1);
    lab.set(1).unwrap();
    assert!(lab.reaches(1, inner(0)), "a new session while the flood goes on");
    stop.store(true, Ordering::Relaxed);
    flood.join().unwrap();
    let seconds = begun.elapsed().as_secs_f64();
    let (sent, answers) = (sent.load(Ordering::Relaxed), answers.load(Ordering::Relaxed));
    assert_eq!(came, 20);
    assert!(sent > 5_000, "{sent} in {seconds} s are no flood");
    assert!(answers as f64 <= 5_000.0 * (seconds + 1.0), "{answers} answers in {seconds} s");
    // A handshake that is looked into costs some 150 microseconds, a datagram that is dropped one or two.
    let each = (cpu(&lab, 0) - cpu_before) / sent as f64;
    assert!(each < 60e-6, "{each} s of CPU for each of {sent} datagrams");
    // Other tests may run beside this one.
    let now = memory();
    assert!(now < memory_before + 64_000, "{memory_before} kB became {now} kB");
}
