//! The interface of the mesh as the kernel's routing knows it: its addresses, its size, and the routes into it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use futures_util::{StreamExt, TryStreamExt};
use rtnetlink::{
    Handle, LinkUnspec, RouteMessageBuilder,
    packet_route::{
        AddressFamily,
        address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope},
        link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType},
    },
};
use toft_model::mesh::{MeshConfig, MeshNet};

use super::{MeshError, path::Sizes};

/// Does `work` with an open netlink socket.
pub(super) async fn with_netlink<T>(work: impl AsyncFnOnce(&Handle) -> Result<T, MeshError>) -> Result<T, MeshError> {
    let (connection, handle, _) =
        rtnetlink::new_connection().map_err(|error| MeshError::io("opening a netlink socket", &error))?;
    tokio::select! {
        result = work(&handle) => result,
        () = connection => {
            Err(MeshError::Failed { doing: "asking the kernel", reason: "the netlink socket closed".to_owned() })
        }
    }
}

/// An interface that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    /// Its number.
    pub index: u32,
    /// What it is.
    pub kind: Kind,
    /// Size of its packets in bytes.
    pub mtu: u32,
    up: bool,
}

/// Kinds of interfaces that carry the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Wireguard,
    Tun,
    Other,
}

/// The interface called `name`, if there is one.
pub(super) async fn find(handle: &Handle, name: &str) -> Result<Option<Found>, MeshError> {
    let mut links = handle.link().get().match_name(name.to_owned()).execute().boxed();
    let message: Option<LinkMessage> = match links.try_next().await {
        Err(error) if missing(&error) => None,
        other => other.map_err(failed("looking for the mesh interface"))?,
    };
    Ok(message.map(|message| {
        let mut found = Found {
            index: message.header.index,
            kind: Kind::Other,
            mtu: 0,
            up: message.header.flags.contains(LinkFlags::Up),
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::Mtu(mtu) => found.mtu = *mtu,
                LinkAttribute::LinkInfo(infos) => {
                    for info in infos {
                        match info {
                            LinkInfo::Kind(InfoKind::Wireguard) => found.kind = Kind::Wireguard,
                            LinkInfo::Kind(InfoKind::Tun) => found.kind = Kind::Tun,
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        found
    }))
}

/// Removes an interface of ours. What else has the name stays and is an error.
pub(super) async fn remove(handle: &Handle, name: &str) -> Result<(), MeshError> {
    match find(handle, name).await? {
        None => Ok(()),
        Some(Found { kind: Kind::Other, .. }) => Err(MeshError::NameTaken { name: name.to_owned() }),
        Some(found) => match handle.link().del(found.index).execute().await {
            Err(error) if missing(&error) => Ok(()),
            other => other.map_err(failed("removing the mesh interface")),
        },
    }
}

/// Gives the interface its size, addresses and routes, and takes every other address and route from it.
pub(super) async fn shape(
    handle: &Handle,
    name: &str,
    config: &MeshConfig,
    sizes: &Sizes,
    merged: Option<u32>,
) -> Result<(), MeshError> {
    const DOING: &str = "setting up the mesh interface";
    let vanished = || MeshError::Failed { doing: DOING, reason: format!("`{name}` vanished") };
    let found = find(handle, name).await?.ok_or_else(vanished)?;
    if found.mtu != u32::from(sizes.device) || !found.up {
        let mut change = LinkUnspec::new_with_index(found.index).mtu(sizes.device.into()).up();
        if let Some(bytes) = merged {
            change = change.append_extra_attribute(LinkAttribute::GsoMaxSize(bytes));
        }
        handle.link().change(change.build()).execute().await.map_err(failed(DOING))?;
    }
    addresses(handle, found.index, &config.addresses).await?;
    let mut routes: BTreeMap<MeshNet, Option<u32>> = BTreeMap::new();
    for (key, peer) in &config.peers {
        let size = sizes.peers.get(key).copied().filter(|size| *size < sizes.device).map(u32::from);
        routes.extend(peer.allowed.iter().map(|net| (*net, size)));
    }
    self::routes(handle, found.index, &routes).await
}

async fn addresses(handle: &Handle, index: u32, wanted: &BTreeSet<IpAddr>) -> Result<(), MeshError> {
    const DOING: &str = "setting the mesh interface's addresses";
    let there = handle.address().get().set_link_index_filter(index).execute();
    let there: Vec<AddressMessage> = there.try_collect().await.map_err(failed(DOING))?;
    let mut missing_ones = wanted.clone();
    for message in there.into_iter().filter(|message| message.header.scope != AddressScope::Link) {
        let address = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(address) | AddressAttribute::Address(address) => Some(*address),
            _ => None,
        });
        let whole = address.filter(|address| message.header.prefix_len == MeshNet::of(*address).prefix());
        if !whole.is_some_and(|address| missing_ones.remove(&address)) {
            settle(handle.address().del(message).execute().await, DOING)?;
        }
    }
    for address in missing_ones {
        let mut request = handle.address().add(index, address, MeshNet::of(address).prefix());
        if address.is_ipv6() {
            // That nobody else has it is known.
            request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        }
        settle(request.execute().await, DOING)?;
    }
    Ok(())
}

async fn routes(handle: &Handle, index: u32, wanted: &BTreeMap<MeshNet, Option<u32>>) -> Result<(), MeshError> {
    const DOING: &str = "setting the routes of the mesh";
    let mut missing_ones = wanted.clone();
    let mut changed = BTreeSet::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut query = RouteMessage::default();
        query.header.address_family = family;
        let there = match handle.route().get(query).execute().try_collect::<Vec<_>>().await {
            // Machines without IPv6.
            Err(_) if family == AddressFamily::Inet6 => continue,
            other => other.map_err(failed(DOING))?,
        };
        for route in there {
            // What the kernel made with an address goes with that address.
            let ours = route.header.protocol == RouteProtocol::Static && leads_to(&route, index);
            let Some(net) = network(&route).filter(|_| ours) else { continue };
            if missing_ones.get(&net).is_some_and(|size| *size == metric(&route)) {
                missing_ones.remove(&net);
            } else if wanted.contains_key(&net) {
                changed.insert(net);
            } else {
                settle(handle.route().del(route).execute().await, DOING)?;
            }
        }
    }
    for (net, size) in missing_ones {
        let message = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(net.address(), net.prefix())
            .map_err(|error| MeshError::Failed { doing: DOING, reason: error.to_string() })?
            .output_interface(index)
            .protocol(RouteProtocol::Static)
            .kind(RouteType::Unicast);
        let mut message = message.build();
        if net.address().is_ipv4() {
            message.header.scope = RouteScope::Link;
        }
        if let Some(size) = size {
            message.attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(size)]));
        }
        let request = handle.route().add(message);
        // Only what is ours is replaced.
        let request = if changed.contains(&net) { request.replace() } else { request };
        match request.execute().await {
            Err(error) if code(&error) == Some(nix::errno::Errno::EEXIST) => {
                return Err(MeshError::RouteTaken { net });
            }
            other => other.map_err(failed(DOING))?,
        }
    }
    Ok(())
}

fn leads_to(route: &RouteMessage, index: u32) -> bool {
    route.attributes.contains(&RouteAttribute::Oif(index))
}

fn network(route: &RouteMessage) -> Option<MeshNet> {
    let address = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(IpAddr::V4(*address)),
        RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    });
    MeshNet::new(address?, route.header.destination_prefix_length).ok()
}

fn metric(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Metrics(metrics) => metrics.iter().find_map(|metric| match metric {
            RouteMetric::Mtu(size) => Some(*size),
            _ => None,
        }),
        _ => None,
    })
}

/// What is there already, or gone already, is no error.
fn settle(result: Result<(), rtnetlink::Error>, doing: &'static str) -> Result<(), MeshError> {
    match result {
        Err(error) if missing(&error) || code(&error) == Some(nix::errno::Errno::EEXIST) => Ok(()),
        other => other.map_err(failed(doing)),
    }
}

/// What a netlink error means to callers.
pub(super) fn failed(doing: &'static str) -> impl Fn(rtnetlink::Error) -> MeshError {
    move |error| match error {
        rtnetlink::Error::NetlinkError(message) => MeshError::io(doing, &message.to_io()),
        other => MeshError::Failed { doing, reason: other.to_string() },
    }
}

/// Whether the kernel answered that there is no such thing.
fn missing(error: &rtnetlink::Error) -> bool {
    use nix::errno::Errno;
    matches!(code(error), Some(Errno::ENODEV | Errno::ENOENT | Errno::ESRCH | Errno::EADDRNOTAVAIL))
}

/// The kernel's number for an error.
pub(super) fn code(error: &rtnetlink::Error) -> Option<nix::errno::Errno> {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io().raw_os_error().map(nix::errno::Errno::from_raw),
        _ => None,
    }
}
