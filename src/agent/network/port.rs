//! Whether a host port is free: by trying to bind it, and letting go at once.

use std::os::fd::AsRawFd;

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

/// Binds the wildcard address of one family and closes the socket again.
fn try_bind(protocol: Protocol, family: AddressFamily, address: &dyn SockaddrLike) -> Result<(), Errno> {
    let kind = match protocol {
        Protocol::Tcp => SockType::Stream,
        Protocol::Udp => SockType::Datagram,
    };
    let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
    if family == AddressFamily::Inet6 {
        setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    }
    if protocol == Protocol::Tcp {
        // Passes over connections that linger, not over a socket that listens. For UDP it would share the port.
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    }
    bind(socket.as_raw_fd(), address)
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
