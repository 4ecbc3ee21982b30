//! The bridge the containers of one appliance share, what the kernel must be told so that it forwards for them, and
//! what else uses IPv4 networks on this machine.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
};

use futures_util::{StreamExt, TryStreamExt};
use rtnetlink::{
    Handle, LinkBridge, LinkUnspec, RouteMessageBuilder,
    packet_route::{
        AddressFamily,
        address::{AddressAttribute, AddressMessage},
        link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteScope},
    },
};
use toft_model::node::Subnet;

use super::{
    HostNetwork, NetworkError, link,
    netlink::{failed, io_failed, missing},
    subnet::covered,
};

/// Makes the bridge exist, be up and have the subnet's gateway as its only IPv4 address.
pub(super) async fn ensure(handle: &Handle, name: &str, subnet: Subnet) -> Result<(), NetworkError> {
    const DOING: &str = "setting up the bridge";
    let bridge = match find(handle, name).await.map_err(failed(DOING))? {
        Some(bridge) => bridge,
        None => {
            // An address of its own: the kernel would otherwise change it as containers come and go.
            let message = LinkBridge::new(name).address(link::hardware_address(subnet.gateway())).build();
            handle.link().add(message).execute().await.map_err(failed(DOING))?;
            tracing::info!(bridge = name, %subnet, "bridge made");
            find(handle, name)
                .await
                .map_err(failed(DOING))?
                .ok_or_else(|| NetworkError::Failed { doing: DOING, reason: format!("`{name}` vanished") })?
        }
    };
    if !is_bridge(&bridge) {
        return Err(NetworkError::Failed { doing: DOING, reason: format!("`{name}` exists and is no bridge") });
    }
    let index = bridge.header.index;
    let (stale, right) = addresses(handle, index)
        .await?
        .into_iter()
        .partition::<Vec<_>, _>(|message| local(message) != Some((subnet.gateway(), subnet.prefix)));
    for message in stale {
        handle.address().del(message).execute().await.map_err(failed(DOING))?;
    }
    if right.is_empty() {
        let gateway = IpAddr::V4(subnet.gateway());
        handle.address().add(index, gateway, subnet.prefix).execute().await.map_err(failed(DOING))?;
    }
    if !bridge.header.flags.contains(LinkFlags::Up) {
        let up = LinkUnspec::new_with_index(index).up().build();
        handle.link().change(up).execute().await.map_err(failed(DOING))?;
    }
    Ok(())
}

/// Removes the bridge and the links [`link::attach`] put on it. What somebody else put there is let go, not removed.
pub(super) async fn remove(handle: &Handle, name: &str) -> Result<(), NetworkError> {
    const DOING: &str = "removing the bridge";
    let Some(bridge) = find(handle, name).await.map_err(failed(DOING))?.filter(is_bridge) else { return Ok(()) };
    let index = bridge.header.index;
    let links: Vec<LinkMessage> = handle.link().get().execute().try_collect().await.map_err(failed(DOING))?;
    let ours = links.iter().filter(|link| link::is_ours(link, index)).map(|link| link.header.index);
    for doomed in ours.chain([index]) {
        match handle.link().del(doomed).execute().await {
            // A container that ended meanwhile took its link along.
            Err(error) if missing(&error) => {}
            other => other.map_err(failed(DOING))?,
        }
    }
    tracing::info!(bridge = name, "bridge removed");
    Ok(())
}

/// The link called `name`, if there is one.
pub(super) async fn find(handle: &Handle, name: &str) -> Result<Option<LinkMessage>, rtnetlink::Error> {
    let mut links = handle.link().get().match_name(name).execute().boxed();
    match links.try_next().await {
        Err(error) if missing(&error) => Ok(None),
        other => other,
    }
}

/// Lets this machine forward packets, and the bridge carry packets whose source is 127.0.0.1 on their way to a
/// container.
pub(super) fn allow_forwarding(bridge: &str) -> Result<(), NetworkError> {
    const DOING: &str = "setting `net.ipv4` parameters of the kernel";
    for key in ["ip_forward", &format!("conf/{bridge}/route_localnet")] {
        let path = format!("/proc/sys/net/ipv4/{key}");
        let now = std::fs::read_to_string(&path).map_err(|error| io_failed(DOING, &error))?;
        if now.trim() != "1" {
            std::fs::write(&path, "1").map_err(|error| io_failed(DOING, &error))?;
        }
    }
    Ok(())
}

/// The IPv4 networks that routes and addresses of this machine use, without default routes and what belongs to the
/// bridge called `ignored`.
pub(super) async fn networks(handle: &Handle, ignored: &str) -> Result<Vec<HostNetwork>, NetworkError> {
    const DOING: &str = "reading the routes of this machine";
    let links: Vec<LinkMessage> = handle.link().get().execute().try_collect().await.map_err(failed(DOING))?;
    let links: HashMap<u32, (String, bool)> =
        links.iter().map(|link| (link.header.index, (name(link).to_owned(), is_bridge(link)))).collect();
    let found = |subnet, index: Option<u32>| {
        let (link, bridge) = index.and_then(|index| links.get(&index)).cloned().unwrap_or_default();
        let of_toft = bridge && (link == "toft0" || link.starts_with("toft-"));
        (link != ignored).then_some(HostNetwork { subnet, link, of_toft })
    };
    let mut networks = Vec::new();
    let mut query = RouteMessage::default();
    query.header.address_family = AddressFamily::Inet;
    let routes: Vec<RouteMessage> = handle.route().get(query).execute().try_collect().await.map_err(failed(DOING))?;
    for route in routes {
        let through = route.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(*index),
            _ => None,
        });
        let to = route.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(to)) => Some(*to),
            _ => None,
        });
        let subnet = to.and_then(|to| covered(to, route.header.destination_prefix_length));
        networks.extend(subnet.and_then(|subnet| found(subnet, through)));
    }
    let messages: Vec<AddressMessage> = handle.address().get().execute().try_collect().await.map_err(failed(DOING))?;
    for message in &messages {
        let subnet = local(message).and_then(|(address, prefix)| covered(address, prefix));
        networks.extend(subnet.and_then(|subnet| found(subnet, Some(message.header.index))));
    }
    networks.sort_by(|a, b| (a.subnet.base, a.subnet.prefix, &a.link).cmp(&(b.subnet.base, b.subnet.prefix, &b.link)));
    networks.dedup();
    Ok(networks)
}

/// Name of a link.
fn name(link: &LinkMessage) -> &str {
    let name = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    });
    name.unwrap_or_default()
}

/// The IPv4 addresses of the link with this index.
async fn addresses(handle: &Handle, index: u32) -> Result<Vec<AddressMessage>, NetworkError> {
    let all = handle.address().get().set_link_index_filter(index).execute();
    let all: Vec<AddressMessage> = all.try_collect().await.map_err(failed("reading the bridge's addresses"))?;
    Ok(all.into_iter().filter(|message| message.header.family == AddressFamily::Inet).collect())
}

/// The IPv4 address and prefix length of an address message.
fn local(message: &AddressMessage) -> Option<(Ipv4Addr, u8)> {
    message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(IpAddr::V4(address)) => Some((*address, message.header.prefix_len)),
        _ => None,
    })
}

/// Whether a link is a bridge.
pub(super) fn is_bridge(link: &LinkMessage) -> bool {
    kind(link) == Some(&InfoKind::Bridge)
}

/// What a link is.
pub(super) fn kind(link: &LinkMessage) -> Option<&InfoKind> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.iter().find_map(|info| match info {
            LinkInfo::Kind(kind) => Some(kind),
            _ => None,
        }),
        _ => None,
    })
}

/// The route to `gateway` itself.
pub(super) fn link_route(gateway: Ipv4Addr, index: u32) -> RouteMessage {
    RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(gateway, 32)
        .scope(RouteScope::Link)
        .output_interface(index)
        .build()
}

/// The default route through `gateway`.
pub(super) fn default_route(gateway: Ipv4Addr, index: u32) -> RouteMessage {
    RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).output_interface(index).build()
}
