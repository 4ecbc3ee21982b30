//! The pair of virtual interfaces that joins one container to the bridge: `eth0` inside, and outside one named after
//! the container's address. The kernel removes both when the container's namespace ends.

use std::{
    fs::File,
    net::{IpAddr, Ipv4Addr},
    os::fd::AsRawFd,
    time::Duration,
};

use rtnetlink::{
    Handle, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVeth,
    packet_route::{
        link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkMessage, State},
        neighbour::NeighbourState,
    },
};
use toft_model::node::{Subnet, Subnet6};

use super::{
    NetworkError,
    bridge::{find, handle_add, kind, routes},
    netlink::{Netlink, exists, failed},
};

const DOING: &str = "attaching a container to the bridge";

/// Name of the interface inside.
const INSIDE: &str = "eth0";

/// Index of the loopback interface, the first of every namespace.
const LOOPBACK: u32 = 1;

/// How often it is looked whether a link carries packets, and the time between two looks.
const CARRY_LOOKS: u32 = 200;
const CARRY_PAUSE: Duration = Duration::from_millis(1);

/// Where a container gets connected.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    /// Name of the bridge.
    pub bridge: &'a str,
    /// Its network.
    pub subnet: Subnet,
    /// The container's address in it.
    pub address: Ipv4Addr,
    /// The IPv6 network, if there is one.
    pub subnet6: Option<Subnet6>,
}

impl Place<'_> {
    /// The container's addresses, each with the gateway's.
    fn addresses(&self) -> impl Iterator<Item = (IpAddr, IpAddr)> {
        let six = self.subnet6.map(|six| (six.address(self.subnet, self.address).into(), six.gateway().into()));
        std::iter::once((self.address.into(), self.subnet.gateway().into())).chain(six)
    }
}

/// Name of the interface outside: unique on this machine as the address is, and short enough.
pub(super) fn outside(address: Ipv4Addr) -> String {
    format!("toft{:08x}", u32::from(address))
}

/// A hardware address derived from `address`, so that neighbours need not learn a new one when a container or the
/// bridge is made again.
pub(super) fn hardware_address(address: Ipv4Addr) -> Vec<u8> {
    // The first byte says: locally administered, one receiver.
    [&[0x02, 0x74], address.octets().as_slice()].concat()
}

/// Whether `link` was made by [`attach`] for the bridge with index `bridge`.
pub(super) fn is_ours(link: &LinkMessage, bridge: u32) -> bool {
    let on_bridge = link.attributes.contains(&LinkAttribute::Controller(bridge));
    let named = link.attributes.iter().any(|attribute| match attribute {
        LinkAttribute::IfName(name) => name
            .strip_prefix("toft")
            .is_some_and(|rest| rest.len() == 8 && rest.bytes().all(|byte| byte.is_ascii_hexdigit())),
        _ => false,
    });
    on_bridge && named && kind(link) == Some(&InfoKind::Veth)
}

/// Brings loopback up in the namespace of `pid`.
pub(super) async fn loopback(pid: u32) -> Result<(), NetworkError> {
    let (inside, _) = Netlink::of_process(pid).await?;
    inside.run(async |handle| loopback_up(&handle).await).await
}

async fn loopback_up(handle: &Handle) -> Result<(), NetworkError> {
    let up = LinkUnspec::new_with_index(LOOPBACK).up().build();
    handle.link().change(up).execute().await.map_err(failed("bringing loopback up"))
}

/// Connects the namespace of `pid`. What is right already stays; an `eth0` that leads elsewhere is replaced.
pub(super) async fn attach(pid: u32, place: Place<'_>) -> Result<(), NetworkError> {
    let (inside, namespace) = Netlink::of_process(pid).await?;
    let here = Netlink::here()?;
    inside
        .run(async |inside| {
            here.run(async |host| {
                let bridge =
                    find(&host, place.bridge).await.map_err(failed(DOING))?.ok_or_else(|| gone(place.bridge))?;
                join(&host, &inside, &namespace, place, bridge.header.index).await?;
                let container = hardware_address(place.address);
                for (address, _) in place.addresses() {
                    // The packet rules see to it that nobody else answers for an IPv4 address; for IPv6 this does.
                    let state = if address.is_ipv4() { NeighbourState::Stale } else { NeighbourState::Permanent };
                    introduce(&host, bridge.header.index, address, &container, state).await?;
                }
                let bridge = bridge.attributes.iter().find_map(|attribute| match attribute {
                    LinkAttribute::Address(address) => Some(address.as_slice()),
                    _ => None,
                });
                configure(&inside, place, bridge).await?;
                for name in [&outside(place.address), place.bridge] {
                    carry(&host, name).await?;
                }
                carry(&inside, INSIDE).await
            })
            .await
        })
        .await
}

/// Makes the pair of interfaces be there and its outer end be on the bridge.
async fn join(
    host: &Handle,
    inside: &Handle,
    namespace: &File,
    place: Place<'_>,
    bridge: u32,
) -> Result<(), NetworkError> {
    let name = outside(place.address);

    let mut outer = find(host, &name).await.map_err(failed(DOING))?;
    if let Some(eth0) = find(inside, INSIDE).await.map_err(failed(DOING))? {
        if !outer.as_ref().is_some_and(|outer| paired(outer, &eth0)) {
            inside.link().del(eth0.header.index).execute().await.map_err(failed(DOING))?;
        } else if outer.as_ref().is_some_and(|outer| is_ours(outer, bridge)) {
            return Ok(());
        }
    }
    // Left over from an earlier container with this address, or off the bridge.
    if let Some(stale) = outer.take() {
        match host.link().del(stale.header.index).execute().await {
            Err(error) if super::netlink::missing(&error) => {}
            other => other.map_err(failed(DOING))?,
        }
    }

    // The peer comes up later: while the pair is being made the kernel refuses that.
    let peer = LinkMessageBuilder::<LinkUnspec>::new()
        .name(INSIDE)
        .address(hardware_address(place.address))
        .setns_by_fd(namespace.as_raw_fd())
        .build();
    let pair = LinkVeth::new(&name, INSIDE).set_info_data(InfoData::Veth(InfoVeth::Peer(peer))).controller(bridge).up();
    host.link().add(pair.build()).execute().await.map_err(failed(DOING))?;

    // A container that reaches itself through the host comes back by the port it went out of.
    let outer = find(host, &name).await.map_err(failed(DOING))?.ok_or_else(|| gone(&name))?;
    let hairpin = LinkBridgePort::new(outer.header.index).hairpin(true).build();
    host.link().set_port(hairpin).execute().await.map_err(failed(DOING))
}

/// Writes down which hardware address `address` belongs to behind the link `index`, so that nobody has to ask: a question that
/// comes before the container can answer is asked again only after a second, and packets wait for it. A stale entry is used
/// at once and checked later, a permanent one is never given up and nobody else is believed.
async fn introduce(
    handle: &Handle,
    index: u32,
    address: IpAddr,
    hardware: &[u8],
    state: NeighbourState,
) -> Result<(), NetworkError> {
    handle
        .neighbours()
        .add(index, address)
        .link_layer_address(hardware)
        .state(state)
        .replace()
        .execute()
        .await
        .map_err(failed(DOING))
}

/// Waits until a link carries packets. The kernel drops them until one of its own threads has seen that the other end is up,
/// which is soon unless the machine is busy; what comes later than that is waited for by nobody.
async fn carry(handle: &Handle, name: &str) -> Result<(), NetworkError> {
    for _ in 0..CARRY_LOOKS {
        let link = find(handle, name).await.map_err(failed(DOING))?.ok_or_else(|| gone(name))?;
        if link.attributes.contains(&LinkAttribute::OperState(State::Up)) {
            break;
        }
        tokio::time::sleep(CARRY_PAUSE).await;
    }
    Ok(())
}

fn gone(what: &str) -> NetworkError {
    NetworkError::Failed { doing: DOING, reason: format!("`{what}` is not there") }
}

/// Whether two links are each other's ends, as far as their indices tell.
fn paired(outer: &LinkMessage, inner: &LinkMessage) -> bool {
    outer.attributes.contains(&LinkAttribute::Link(inner.header.index))
        && inner.attributes.contains(&LinkAttribute::Link(outer.header.index))
}

/// Gives the interfaces inside address, life and a way out, over the gateway at `bridge`'s hardware address.
async fn configure(inside: &Handle, place: Place<'_>, bridge: Option<&[u8]>) -> Result<(), NetworkError> {
    loopback_up(inside).await?;
    let eth0 = find(inside, INSIDE).await.map_err(failed(DOING))?;
    let index = eth0.map(|link| link.header.index).ok_or_else(|| gone(INSIDE))?;
    let up = LinkUnspec::new_with_index(index).up().build();
    inside.link().change(up).execute().await.map_err(failed(DOING))?;
    // A network of its own: all that it sends passes the host, whose rules decide.
    for (address, gateway) in place.addresses() {
        let length = if address.is_ipv4() { 32 } else { 128 };
        settle(handle_add(inside, index, address, length).execute().await)?;
        for route in routes(gateway, index) {
            settle(inside.route().add(route).execute().await)?;
        }
        if let Some(bridge) = bridge {
            introduce(inside, index, gateway, bridge, NeighbourState::Stale).await?;
        }
    }
    Ok(())
}

/// What is there already is no error.
fn settle(result: Result<(), rtnetlink::Error>) -> Result<(), NetworkError> {
    match result {
        Err(error) if exists(&error) => Ok(()),
        other => other.map_err(failed(DOING)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_hardware_addresses_follow_the_address() {
        let address = Ipv4Addr::new(10, 210, 3, 17);
        assert_eq!(outside(address), "toft0ad20311");
        assert!(outside(Ipv4Addr::BROADCAST).len() <= 15);
        assert_eq!(hardware_address(address), [0x02, 0x74, 10, 210, 3, 17]);
    }
}
