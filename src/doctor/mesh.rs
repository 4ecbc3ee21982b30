//! Whether this machine can carry the mesh, and its port.

use std::{
    fs::OpenOptions,
    io,
    net::{Ipv6Addr, UdpSocket},
    path::Path,
};

use nix::sched::{CloneFlags, unshare};
use toft_mesh::{DEFAULT_INTERFACE, kernel::KernelDevice};

use super::{Check, Said, failure, is_root, ok, skipped};
use crate::config::MeshConfig;

const TUN: &str = "/dev/net/tun";

pub(super) fn checks(config: &MeshConfig, daemon: bool) -> Vec<Check> {
    const NAMES: [&str; 2] = ["mesh device", "mesh port"];
    if !config.enabled {
        return NAMES.map(|name| skipped("is off (`mesh.enabled`)").of("network", name)).into();
    }
    let interface = config.interface.as_deref().unwrap_or(DEFAULT_INTERFACE);
    let there = daemon && Path::new("/sys/class/net").join(interface).exists();
    let bound = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, config.listen_port)).map(drop);
    let device = if is_root() { device(kernel(), tun()) } else { skipped("needs root: sudo toft doctor") };
    vec![device.of("network", NAMES[0]), port(config.listen_port, bound, there).of("network", NAMES[1])]
}

/// Whether the kernel has WireGuard, tried out in a network namespace of a thread of its own.
fn kernel() -> io::Result<bool> {
    let worker = std::thread::Builder::new().name("doctor".to_owned()).spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(KernelDevice::is_supported()).map_err(io::Error::other)
    })?;
    worker.join().unwrap_or_else(|_| Err(io::Error::other("it panicked")))
}

fn tun() -> io::Result<()> {
    OpenOptions::new().read(true).write(true).open(TUN).map(drop)
}

fn device(kernel: io::Result<bool>, tun: io::Result<()>) -> Said {
    match (kernel, tun) {
        (Ok(true), _) => ok("the kernel has WireGuard"),
        (_, Ok(())) => ok(format!(
            "the kernel has no WireGuard, so toft carries the mesh itself on {TUN} (`sudo modprobe wireguard` would be faster)"
        )),
        (kernel, Err(tun)) => failure(
            format!(
                "neither the kernel nor toft can carry the mesh: {}; {TUN}: {tun}",
                kernel.err().map_or_else(|| "there is no module `wireguard`".to_owned(), |error| error.to_string())
            ),
            "sudo modprobe wireguard || sudo modprobe tun",
        ),
    }
}

fn port(port: u16, bound: io::Result<()>, there: bool) -> Said {
    match bound {
        Ok(()) => ok(format!("UDP port {port} is free")),
        Err(_) if there => ok(format!("UDP port {port} is the mesh's")),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => failure(
            format!("UDP port {port} is taken by another process"),
            format!(
                "sudo ss -lunp 'sport = :{port}'    (shows whose it is; or set `mesh.listen_port` in /etc/toft/toft.toml)"
            ),
        ),
        Err(error) => failure(
            format!("nobody can listen on UDP port {port}: {error}"),
            "set `mesh.listen_port` in /etc/toft/toft.toml to another port",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn either_device_will_do() {
        let gone = || Err(io::Error::from(io::ErrorKind::NotFound));
        assert_eq!(device(Ok(true), gone()).verdict, Verdict::Ok);
        assert!(device(Ok(false), Ok(())).message.contains("toft carries"));
        let neither = device(Ok(false), gone());
        assert!(neither.verdict == Verdict::Failure && neither.fix.unwrap().contains("modprobe"));
    }

    #[test]
    fn a_taken_port_is_told_apart_from_our_own() {
        let taken = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
        let number = taken.local_addr().unwrap().port();
        let bind = || UdpSocket::bind((Ipv6Addr::UNSPECIFIED, number)).map(drop);
        let said = port(number, bind(), false);
        assert!(said.verdict == Verdict::Failure && said.fix.unwrap().contains(&format!(":{number}")));
        assert_eq!(port(number, bind(), true).verdict, Verdict::Ok);
        drop(taken);
        assert!(port(number, bind(), false).message.contains("free"));
    }
}
