//! The addresses of this machine, and word of their changes.

use std::{collections::BTreeSet, io, net::IpAddr, time::Duration};

use futures_util::{FutureExt, StreamExt, TryStreamExt};
use rtnetlink::{
    Handle, MulticastGroup,
    packet_route::{
        address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope},
        link::{LinkAttribute, LinkFlags, LinkMessage},
    },
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    MeshError,
    link::{failed, with_netlink},
};

/// Time in which changes are gathered: an address often goes and comes.
const GATHER: Duration = Duration::from_millis(500);
/// How often the addresses are looked at although nobody said that they changed.
const REPEAT: Duration = Duration::from_secs(60);
/// Interfaces of containers and virtual machines, by how their names begin. Nobody from elsewhere is behind them.
const INWARD: [&str; 6] = ["docker", "virbr", "cni", "podman", "veth", "toft"];

/// Makes `addresses` be those at which other machines may reach this one, until cancelled. Interfaces called one of
/// `ours` do not count.
pub async fn follow(ours: BTreeSet<String>, addresses: watch::Sender<BTreeSet<IpAddr>>, cancel: CancellationToken) {
    let mut failures = 0_u32;
    while !cancel.is_cancelled() {
        let listened = listen(&ours, &addresses, &cancel).await;
        if let Err(error) = listened {
            failures += 1;
            if failures == 1 {
                tracing::warn!(%error, "changes of this machine's addresses are noticed late");
            }
            let _ = cancel.run_until_cancelled(tokio::time::sleep(REPEAT)).await;
        }
    }
}

async fn listen(
    ours: &BTreeSet<String>,
    addresses: &watch::Sender<BTreeSet<IpAddr>>,
    cancel: &CancellationToken,
) -> Result<(), MeshError> {
    let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
    let opened = rtnetlink::new_multicast_connection(&groups);
    let (connection, _handle, mut news) =
        opened.map_err(|error| MeshError::io("listening for changes of addresses", &error))?;
    let told = async {
        loop {
            let now = with_netlink(async |handle| read(handle, ours).await).await?;
            addresses.send_if_modified(|before| {
                let changed = *before != now;
                *before = now;
                changed
            });
            match tokio::time::timeout(REPEAT, news.next()).await {
                Ok(None) => return Err(closed()),
                Ok(Some(_)) => {
                    tokio::time::sleep(GATHER).await;
                    // What else was said meanwhile is in what is read next.
                    while let Some(Some(_)) = news.next().now_or_never() {}
                }
                Err(_) => {}
            }
        }
    };
    tokio::select! {
        () = cancel.cancelled() => Ok(()),
        () = connection => Err(closed()),
        result = told => result,
    }
}

fn closed() -> MeshError {
    MeshError::io("listening for changes of addresses", &io::Error::other("the netlink socket closed"))
}

async fn read(handle: &Handle, ours: &BTreeSet<String>) -> Result<BTreeSet<IpAddr>, MeshError> {
    const DOING: &str = "reading this machine's addresses";
    let links: Vec<LinkMessage> = handle.link().get().execute().try_collect().await.map_err(failed(DOING))?;
    let outward = |link: &&LinkMessage| {
        let flags = link.header.flags;
        let name = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.as_str()),
            _ => None,
        });
        let inward = |name: &str| ours.contains(name) || is_inward(name);
        flags.contains(LinkFlags::Up) && !flags.contains(LinkFlags::Loopback) && !name.is_none_or(inward)
    };
    let links: BTreeSet<u32> = links.iter().filter(outward).map(|link| link.header.index).collect();
    let messages: Vec<AddressMessage> = handle.address().get().execute().try_collect().await.map_err(failed(DOING))?;
    Ok(messages.iter().filter(|message| links.contains(&message.header.index)).filter_map(usable).collect())
}

/// Whether an interface leads to containers or virtual machines on this machine. Docker calls its bridges `br-` and
/// twelve hexadecimal digits; a person's may begin like that too.
fn is_inward(name: &str) -> bool {
    let of_docker = |rest: &str| rest.len() == 12 && rest.bytes().all(|byte| byte.is_ascii_hexdigit());
    INWARD.iter().any(|start| name.starts_with(start)) || name.strip_prefix("br-").is_some_and(of_docker)
}

/// An address that others may send to: one of the whole network, which is there to stay.
fn usable(message: &AddressMessage) -> Option<IpAddr> {
    let gone = AddressHeaderFlags::Tentative | AddressHeaderFlags::Deprecated | AddressHeaderFlags::Dadfailed;
    if message.header.scope != AddressScope::Universe || message.header.flags.intersects(gone) {
        return None;
    }
    let of = |local: bool| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(address) if local => Some(*address),
            AddressAttribute::Address(address) if !local => Some(*address),
            _ => None,
        })
    };
    // Private addresses of IPv6 change every day; the machine has another beside each.
    let passing = |address: &IpAddr| address.is_ipv6() && message.header.flags.contains(AddressHeaderFlags::Secondary);
    of(true)
        .or_else(|| of(false))
        .filter(|address| !address.is_loopback() && !address.is_unspecified() && !passing(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_of_containers_are_known_by_their_names() {
        for name in ["docker0", "br-0123456789ab", "virbr0", "cni0", "veth12ab", "toft0", "toft-wg", "toftwg-1a"] {
            assert!(is_inward(name), "{name}");
        }
        for name in ["eth0", "enp3s0", "br0", "br-lan", "vmbr0", "bond0", "wlan0", "tailscale0"] {
            assert!(!is_inward(name), "{name}");
        }
    }
}
