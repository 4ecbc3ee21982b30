//! What somebody sees who listens on the way.

use std::{
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use nix::{
    sys::socket::{
        AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, recvfrom, setsockopt, socket, sockopt,
    },
    sys::time::TimeVal,
};
use std::os::fd::AsRawFd;

use crate::lab::{Lab, Namespace, Which, inner, inner6, transfer};

/// Frames that passed one interface.
pub struct Capture {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    frames: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Capture {
    /// Begins to listen on `interface`.
    pub fn start(namespace: &Namespace, interface: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let frames = Arc::new(Mutex::new(Vec::new()));
        let (stopped, kept) = (Arc::clone(&stop), Arc::clone(&frames));
        let index: usize = namespace
            .ip(&format!("-o link show {interface}"))
            .split(':')
            .next()
            .and_then(|index| index.parse().ok())
            .unwrap();
        let (ready, started) = std::sync::mpsc::channel();
        let thread = namespace.spawn(move || {
            let all = SockProtocol::EthAll;
            let fd = socket(AddressFamily::Packet, SockType::Raw, SockFlag::empty(), all).unwrap();
            setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(0, 50_000)).unwrap();
            setsockopt(&fd, sockopt::RcvBufForce, &(64 << 20)).unwrap();
            ready.send(()).unwrap();
            let mut bytes = vec![0; 1 << 17];
            loop {
                // Frames of the other interfaces come too.
                match recvfrom::<SockaddrStorage>(fd.as_raw_fd(), &mut bytes) {
                    Ok((length, from)) => {
                        if from.and_then(|from| from.as_link_addr().map(|link| link.ifindex())) == Some(index) {
                            kept.lock().unwrap_or_else(PoisonError::into_inner).push(bytes[..length].to_vec());
                        }
                    }
                    Err(_) if stopped.load(Ordering::Relaxed) => return,
                    Err(_) => {}
                }
            }
        });
        started.recv().unwrap();
        Self { stop, thread: Some(thread), frames }
    }

    /// Ends, and gives what was seen.
    pub fn end(mut self) -> Vec<Vec<u8>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
        std::mem::take(&mut *self.frames.lock().unwrap())
    }
}

const SECRET: &[u8] = b"this must not be read on the way";

fn content(at: usize) -> u8 {
    SECRET[at % SECRET.len()]
}

fn has_secret(frames: &[Vec<u8>]) -> bool {
    // Whatever part of a period a frame begins with.
    let part = &SECRET[5..15];
    frames.iter().any(|frame| frame.windows(part.len()).any(|window| window == part))
}

fn nothing_is_readable_on_the_way(which: Which) {
    let lab = Lab::connected(which, 2);
    assert!(lab.reaches(0, inner(1)));
    let (under, within) = (Capture::start(lab.namespace(1), "under"), Capture::start(lab.namespace(1), "toft-wg"));
    for address in [inner(1), inner6(1)] {
        transfer(lab.namespace(0), lab.namespace(1), address, 300_000, content);
    }
    std::thread::sleep(Duration::from_millis(100));
    let (under, within) = (under.end(), within.end());
    assert!(has_secret(&within), "the test must be able to find it where it is readable");
    let bytes: usize = under.iter().map(Vec::len).sum();
    assert!(bytes > 600_000, "{bytes} bytes seen");
    assert!(!has_secret(&under));
    // Nor who talks to whom inside.
    let inside = |address: IpAddr| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    for pair in [[inner(0), inner(1)], [inner6(0), inner6(1)]] {
        let both = pair.map(inside).concat();
        assert!(within.iter().any(|frame| frame.windows(both.len()).any(|window| window == both)));
        assert!(!under.iter().any(|frame| frame.windows(both.len()).any(|window| window == both)));
    }
}

#[test]
fn userspace() {
    nothing_is_readable_on_the_way(Which::Userspace);
}

#[test]
#[ignore = "needs a kernel with WireGuard"]
fn kernel() {
    nothing_is_readable_on_the_way(Which::Kernel);
}
