//! Host ports: whether one is free, and keeping it from others.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, SockaddrLike, bind, setsockopt, socket, sockopt,
    },
};
use toft_model::{instance::PublishedPort, workload::Protocol};

use super::NetworkError;

/// Fails when somebody holds the port on any IPv4 or IPv6 address. Connections in TIME_WAIT do not count.
pub fn check_free(port: PublishedPort) -> Result<(), NetworkError> {
    let number = port.host;
    try_bind(port.protocol, AddressFamily::Inet, &SockaddrIn::new(0, 0, 0, 0, number))
        .and_then(|()| {
            let any = std::net::SocketAddrV6::new(std::net::Ipv6Addr::UNSPECIFIED, number, 0, 0);
            match try_bind(port.protocol, AddressFamily::Inet6, &SockaddrIn6::from(any)) {
                // A machine without IPv6.
                Err(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL) => Ok(()),
                other => other,
            }
        })
        .map_err(|errno| match errno {
            Errno::EADDRINUSE => NetworkError::PortTaken { port: number, protocol: port.protocol },
            other => NetworkError::Failed { doing: "checking a host port", reason: other.desc().to_lowercase() },
        })
}

/// A host port that no other process can bind as long as this lives. Nothing listens on it: packets to a published port
/// are led away before they would reach a socket.
#[derive(Debug)]
pub struct PortClaim {
    _sockets: Vec<OwnedFd>,
}

impl PortClaim {
    /// Claims a port that is free; what stands in the way (connections that linger, a lack of descriptors) leaves the port
    /// published and unguarded.
    pub fn of(port: PublishedPort) -> Self {
        let any = std::net::SocketAddrV6::new(std::net::Ipv6Addr::UNSPECIFIED, port.host, 0, 0);
        let sockets = [
            bound(port.protocol, AddressFamily::Inet, &SockaddrIn::new(0, 0, 0, 0, port.host), false),
            bound(port.protocol, AddressFamily::Inet6, &SockaddrIn6::from(any), false),
        ];
        let kept = sockets.into_iter().filter_map(|socket| {
            socket
                .inspect_err(|errno| {
                    tracing::debug!(port = port.host, error = errno.desc(), "a published port is not kept from others");
                })
                .ok()
        });
        Self { _sockets: kept.collect() }
    }

    /// A claim on nothing.
    pub fn none() -> Self {
        Self { _sockets: Vec::new() }
    }
}

/// Binds the wildcard address of one family and closes the socket again. Passes over connections that linger.
fn try_bind(protocol: Protocol, family: AddressFamily, address: &dyn SockaddrLike) -> Result<(), Errno> {
    bound(protocol, family, address, true).map(drop)
}

/// A socket bound to `address`.
fn bound(
    protocol: Protocol,
    family: AddressFamily,
    address: &dyn SockaddrLike,
    over_lingering: bool,
) -> Result<OwnedFd, Errno> {
    let kind = match protocol {
        Protocol::Tcp => SockType::Stream,
        Protocol::Udp => SockType::Datagram,
    };
    let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
    if family == AddressFamily::Inet6 {
        setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    }
    if protocol == Protocol::Tcp && over_lingering {
        // Passes over connections that linger, not over a socket that listens. For UDP it would share the port.
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    }
    bind(socket.as_raw_fd(), address)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    fn check(host: u16, protocol: Protocol) -> Result<(), NetworkError> {
        check_free(PublishedPort { host, container: 1, protocol })
    }

    fn taken(result: Result<(), NetworkError>) -> bool {
        matches!(result, Err(NetworkError::PortTaken { .. }))
    }

    #[test]
    fn a_claimed_port_is_taken_until_the_claim_is_dropped() {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let claim = PortClaim::of(PublishedPort { host: port, container: 1, protocol });
            assert!(taken(check(port, protocol)));
            drop(claim);
            check(port, protocol).unwrap();
        }
    }

    #[test]
    fn a_listener_on_one_address_takes_the_port() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let port = listener.local_addr().unwrap().port();
            assert!(taken(check(port, Protocol::Tcp)), "{address}");
            drop(listener);
            check(port, Protocol::Tcp).unwrap();
        }
    }

    #[test]
    fn a_bound_udp_socket_takes_the_port() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        assert!(taken(check(port, Protocol::Udp)));
        drop(socket);
        check(port, Protocol::Udp).unwrap();
    }

    #[test]
    fn a_connection_in_time_wait_does_not_count() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let client = std::net::TcpStream::connect(address).unwrap();
        let (server, _) = listener.accept().unwrap();
        // The side that closes first is the one that waits.
        drop(server);
        drop(client);
        drop(listener);
        check(address.port(), Protocol::Tcp).unwrap();
    }
}
