//! The bridge the containers of one appliance share, what the kernel must be told so that it forwards for them, and
//! what else uses IPv4 networks on this machine.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use futures_util::{StreamExt, TryStreamExt};
use rtnetlink::{
    AddressAddRequest, Handle, LinkBridge, LinkUnspec, RouteMessageBuilder,
    packet_route::{
        AddressFamily,
        address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope},
        link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteScope},
    },
};
use toft_model::node::{Subnet, Subnet6};

use super::{
    HostNetwork, NetworkError, link,
    netlink::{failed, io_failed, missing},
    subnet::covered,
};

/// Makes the bridge exist, be up and have the gateways of the subnets as its only addresses of more than one link.
pub(super) async fn ensure(
    handle: &Handle,
    name: &str,
    subnet: Subnet,
    subnet6: Option<Subnet6>,
) -> Result<(), NetworkError> {
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
    let wanted6 = subnet6.map(|subnet6| (IpAddr::V6(subnet6.gateway()), Subnet6::PREFIX));
    let mut wanted: Vec<(IpAddr, u8)> = vec![(IpAddr::V4(subnet.gateway()), subnet.prefix)];
    wanted.extend(wanted6);
    for message in addresses(handle, index).await? {
        let found = address_of(&message);
        if found.is_some_and(|found| wanted.contains(&found)) {
            wanted.retain(|other| Some(*other) != found);
        } else {
            handle.address().del(message).execute().await.map_err(failed(DOING))?;
        }
    }
    for (gateway, prefix) in wanted {
        handle_add(handle, index, gateway, prefix).execute().await.map_err(failed(DOING))?;
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

/// Lets this machine forward IPv6 packets, and go on learning its own way out from its router: a kernel that forwards
/// would otherwise stop listening to it.
pub(super) fn allow_forwarding_v6() -> Result<(), NetworkError> {
    const DOING: &str = "setting `net.ipv6` parameters of the kernel";
    const ROOT: &str = "/proc/sys/net/ipv6/conf";
    let failed = |error: std::io::Error| io_failed(DOING, &error);
    let forwarding = format!("{ROOT}/all/forwarding");
    if std::fs::read_to_string(&forwarding).map_err(failed)?.trim() == "1" {
        return Ok(());
    }
    for interface in std::fs::read_dir(ROOT).map_err(failed)? {
        let listens = interface.map_err(failed)?.path().join("accept_ra");
        // An interface may go away meanwhile.
        if std::fs::read_to_string(&listens).is_ok_and(|now| now.trim() == "1") {
            drop(std::fs::write(&listens, "2"));
        }
    }
    std::fs::write(&forwarding, "1").map_err(failed)
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

/// What gives a link an address, to be used at once: that nobody else has it is known.
pub(super) fn handle_add(handle: &Handle, index: u32, address: IpAddr, prefix: u8) -> AddressAddRequest {
    let mut request = handle.address().add(index, address, prefix);
    if address.is_ipv6() {
        request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
    }
    request
}

/// The addresses of the link with this index, without those that hold for the link alone.
async fn addresses(handle: &Handle, index: u32) -> Result<Vec<AddressMessage>, NetworkError> {
    let all = handle.address().get().set_link_index_filter(index).execute();
    let all: Vec<AddressMessage> = all.try_collect().await.map_err(failed("reading the bridge's addresses"))?;
    Ok(all.into_iter().filter(|message| message.header.scope != AddressScope::Link).collect())
}

/// The address and prefix length of an address message.
fn address_of(message: &AddressMessage) -> Option<(IpAddr, u8)> {
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let address = local.or_else(|| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    });
    Some((address?, message.header.prefix_len))
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

/// The routes of a container: to `gateway` itself, and by it everywhere.
pub(super) fn routes(gateway: IpAddr, index: u32) -> [RouteMessage; 2] {
    match gateway {
        IpAddr::V4(gateway) => {
            let new = || RouteMessageBuilder::<Ipv4Addr>::new().output_interface(index);
            [new().destination_prefix(gateway, 32).scope(RouteScope::Link).build(), new().gateway(gateway).build()]
        }
        IpAddr::V6(gateway) => {
            let new = || RouteMessageBuilder::<Ipv6Addr>::new().output_interface(index);
            [new().destination_prefix(gateway, 128).build(), new().gateway(gateway).build()]
        }
    }
}
