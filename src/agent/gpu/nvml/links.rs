//! Ways between cards, as `nvidia-smi topo -m` calls them.

use nvml_wrapper::{Device, enum_wrappers::device::TopologyLevel};
use toft_model::gpu::{GpuId, GpuLink};

use super::{Links, address};

/// Most NVLinks of a card.
const MOST_LINKS: u32 = 18;

/// From each card to every other.
pub(super) fn between(devices: &[(GpuId, Device<'_>)]) -> Links {
    let places: Vec<Option<String>> =
        devices.iter().map(|(_, device)| device.pci_info().ok().and_then(|pci| address(&pci.bus_id))).collect();
    let ends: Vec<Vec<String>> = devices.iter().map(|(_, device)| ends(device)).collect();
    // What leads to no card leads to a switch, and through that to every card that has such a link too.
    let to_switch =
        |of: usize| ends[of].iter().filter(|end| !places.iter().flatten().any(|place| place == *end)).count();
    let link = |one: usize, other: usize| {
        let direct = places[other].as_ref().map_or(0, |place| ends[one].iter().filter(|end| *end == place).count());
        let way = match direct.max(to_switch(one).min(to_switch(other))) {
            0 => pcie(&devices[one].1, &devices[other].1)?.to_owned(),
            links => format!("NV{links}"),
        };
        Some(GpuLink { to: devices[other].0.clone(), way })
    };
    let all = 0..devices.len();
    all.clone()
        .map(|one| {
            let links = all.clone().filter(|other| *other != one).filter_map(|other| link(one, other)).collect();
            (devices[one].0.clone(), links)
        })
        .collect()
}

/// Where a card's active NVLinks lead.
fn ends(device: &Device<'_>) -> Vec<String> {
    let end = |number: u32| {
        let link = device.link_wrapper_for(number);
        if !link.is_active().ok()? {
            return None;
        }
        address(&link.remote_pci_info().ok()?.bus_id)
    };
    (0..MOST_LINKS).filter_map(end).collect()
}

fn pcie(one: &Device<'_>, other: &Device<'_>) -> Option<&'static str> {
    // SAFETY: the copy is used while the original is.
    let other = unsafe { Device::new(other.handle(), other.nvml()) };
    Some(match one.topology_common_ancestor(other).ok()? {
        TopologyLevel::Internal | TopologyLevel::Single => "PIX",
        TopologyLevel::Multiple => "PXB",
        TopologyLevel::HostBridge => "PHB",
        TopologyLevel::Node => "NODE",
        TopologyLevel::System => "SYS",
    })
}
