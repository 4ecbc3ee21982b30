//! Two questions to the kernel's packet filter that `nft` would answer slowly or not at all: is our table still the one
//! we made, and forget what you remember of a UDP port.

use std::{collections::BTreeSet, io};

use nix::sys::{
    socket::{setsockopt, sockopt},
    time::{TimeVal, TimeValLike},
};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

/// Family of tables for IPv4 and IPv6.
pub(super) const INET: u8 = 1;
/// Family of tables for frames on a bridge.
pub(super) const BRIDGE: u8 = 7;
const IPV4: u8 = 2;
const IPV6: u8 = 10;
const UDP: u8 = 17;

// Message types: linux/netlink.h, linux/netfilter/{nf_tables,nfnetlink_conntrack}.h.
const ERROR: u16 = 2;
const DONE: u16 = 3;
const GET_TABLE: u16 = 10 << 8 | 1;
const NEW_TABLE: u16 = 10 << 8;
const NEW_FLOW: u16 = 1 << 8;
const GET_FLOW: u16 = 1 << 8 | 1;
const DELETE_FLOW: u16 = 1 << 8 | 2;

const REQUEST: u16 = 0x1;
const ACKNOWLEDGE: u16 = 0x4;
const DUMP: u16 = 0x300;

// Attributes; the upper two bits of a type are flags.
const TYPE_MASK: u16 = 0x3fff;
const NESTED: u16 = 0x8000;
const TABLE_NAME: u16 = 1;
const TABLE_USE: u16 = 3;
const TABLE_HANDLE: u16 = 4;
const FLOW_TUPLE: u16 = 1;
const FLOW_ID: u16 = 12;
const FLOW_ZONE: u16 = 18;
const TUPLE_PROTOCOL: u16 = 2;
const PROTOCOL_NUMBER: u16 = 1;
const PROTOCOL_TO_PORT: u16 = 3;

/// Identity of a table: another table of the same name has another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TableIdentity {
    /// The kernel's number for it, never used twice.
    handle: Vec<u8>,
    /// How many chains and maps it has.
    members: Vec<u8>,
}

/// The table of that family called `name`, if there is one.
pub(super) fn table(family: u8, name: &str) -> io::Result<Option<TableIdentity>> {
    let mut text = name.as_bytes().to_vec();
    text.push(0);
    let mut body = Vec::new();
    put(&mut body, TABLE_NAME, &text);
    let socket = open()?;
    send(&socket, family, (GET_TABLE, REQUEST), &body)?;
    let mut found = None;
    receive(&socket, |kind, payload| {
        if kind == NEW_TABLE {
            found = Some(TableIdentity {
                handle: get(payload, TABLE_HANDLE).unwrap_or_default().to_vec(),
                members: get(payload, TABLE_USE).unwrap_or_default().to_vec(),
            });
        }
        // One answer to one question.
        true
    })
    .or_else(|error| if error.raw_os_error() == Some(nix::libc::ENOENT) { Ok(()) } else { Err(error) })?;
    Ok(found)
}

/// Makes the kernel forget every UDP flow that was sent to one of `ports`, and says how many there were. Otherwise a
/// sender that never pauses stays for ever with the translation its first packet found.
pub(super) fn forget_udp(ports: &BTreeSet<u16>) -> io::Result<usize> {
    Ok(forget_udp_of(IPV4, ports)? + forget_udp_of(IPV6, ports)?)
}

fn forget_udp_of(family: u8, ports: &BTreeSet<u16>) -> io::Result<usize> {
    let socket = open()?;
    send(&socket, family, (GET_FLOW, REQUEST | DUMP), &[])?;
    let mut flows: Vec<Vec<u8>> = Vec::new();
    receive(&socket, |kind, payload| {
        if kind == NEW_FLOW && udp_port(payload).is_some_and(|port| ports.contains(&port)) {
            let mut body = Vec::new();
            for (attribute, flag) in [(FLOW_TUPLE, NESTED), (FLOW_ID, 0), (FLOW_ZONE, 0)] {
                if let Some(value) = get(payload, attribute) {
                    put(&mut body, attribute | flag, value);
                }
            }
            flows.push(body);
        }
        false
    })?;
    for flow in &flows {
        send(&socket, family, (DELETE_FLOW, REQUEST | ACKNOWLEDGE), flow)?;
        match receive(&socket, |_, _| true) {
            // It ended by itself.
            Err(error) if error.raw_os_error() == Some(nix::libc::ENOENT) => {}
            other => other?,
        }
    }
    Ok(flows.len())
}

/// The port that the first packet of a UDP flow was sent to.
fn udp_port(flow: &[u8]) -> Option<u16> {
    let protocol = get(get(flow, FLOW_TUPLE)?, TUPLE_PROTOCOL)?;
    if get(protocol, PROTOCOL_NUMBER)? != [UDP] {
        return None;
    }
    get(protocol, PROTOCOL_TO_PORT)?.try_into().ok().map(u16::from_be_bytes)
}

/// A socket that gives up after a while: the kernel answers at once or never.
fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(5))?;
    socket.bind_auto()?;
    Ok(socket)
}

/// Sends one message of a kind, with flags and the attributes in `body`.
fn send(socket: &Socket, family: u8, (kind, flags): (u16, u16), body: &[u8]) -> io::Result<()> {
    let length = u32::try_from(20 + body.len()).map_err(io::Error::other)?;
    let mut message = Vec::with_capacity(20 + body.len());
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    message.extend([family, 0, 0, 0]);
    message.extend(body);
    socket.send_to(&message, &SocketAddr::new(0, 0), 0).map(|_| ())
}

/// Hands each message's type and attributes to `each` until that says `true`, or the kernel that it is done.
fn receive(socket: &Socket, mut each: impl FnMut(u16, &[u8]) -> bool) -> io::Result<()> {
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "malformed netlink message");
    let mut buffer = Vec::with_capacity(1 << 16);
    loop {
        buffer.clear();
        socket.recv(&mut buffer, 0)?;
        let mut rest = buffer.as_slice();
        while !rest.is_empty() {
            let length = number(rest, 0).ok_or_else(malformed)? as usize;
            let kind = rest.get(4..6).and_then(|b| b.try_into().ok()).map(u16::from_ne_bytes).ok_or_else(malformed)?;
            let message = rest.get(16..length).ok_or_else(malformed)?;
            match kind {
                DONE => return Ok(()),
                ERROR => match number(message, 0).ok_or_else(malformed)?.cast_signed() {
                    0 => return Ok(()),
                    code => return Err(io::Error::from_raw_os_error(-code)),
                },
                _ if each(kind, message.get(4..).ok_or_else(malformed)?) => return Ok(()),
                _ => {}
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

/// Appends an attribute.
fn put(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    // Values here are names and numbers, far below the 64 KiB an attribute can have.
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    body.extend(length.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

/// The value of the first attribute of this type.
fn get(mut body: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16::from_ne_bytes(body.get(..2)?.try_into().ok()?));
        let found = u16::from_ne_bytes(body.get(2..4)?.try_into().ok()?) & TYPE_MASK;
        let value = body.get(4..length)?;
        if found == kind {
            return Some(value);
        }
        body = body.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_again() {
        let mut protocol = Vec::new();
        put(&mut protocol, PROTOCOL_NUMBER, &[UDP]);
        put(&mut protocol, PROTOCOL_TO_PORT, &53_u16.to_be_bytes());
        let mut tuple = Vec::new();
        put(&mut tuple, TUPLE_PROTOCOL | NESTED, &protocol);
        let mut flow = Vec::new();
        put(&mut flow, FLOW_ID, &[0; 4]);
        put(&mut flow, FLOW_TUPLE | NESTED, &tuple);
        assert_eq!(udp_port(&flow), Some(53));
        assert_eq!(udp_port(&flow[..flow.len() - 9]), None);
        assert_eq!(udp_port(&[]), None);
    }
}
