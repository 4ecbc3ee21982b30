//! Edits for cards of the kernel's own drivers (AMD, Intel), made from `/dev/dri` and `/sys`.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use toft_model::gpu::GpuVendor;

use super::{DeviceNode, Edits};
use crate::agent::gpu::sysfs::is_pci;

/// What a container needs of the card at a place on the bus. `root` is `/`.
pub(super) fn edits(root: &Path, vendor: GpuVendor, pci: &str) -> Result<Edits, String> {
    let nodes = nodes(root, pci);
    if !nodes.iter().any(|node| node.file_name().is_some_and(|name| name.to_string_lossy().starts_with("renderD"))) {
        return Err(format!("the card at {pci} has no node for rendering in /dev/dri"));
    }
    let mut edits = Edits::default();
    let mut add = |inside: PathBuf| {
        let host = root.join(inside.strip_prefix("/").unwrap_or(&inside));
        // Who is not root gets at it through its group.
        if let Ok(metadata) = fs::metadata(&host)
            && metadata.gid() != 0
            && !edits.additional_gids.contains(&metadata.gid())
        {
            edits.additional_gids.push(metadata.gid());
        }
        edits.device_nodes.push(DeviceNode::of(inside, host));
    };
    nodes.into_iter().for_each(&mut add);
    if vendor == GpuVendor::Amd {
        if !root.join("dev/kfd").exists() {
            return Err("there is no /dev/kfd, through which programs compute on AMD's cards".into());
        }
        add("/dev/kfd".into());
    }
    Ok(edits)
}

/// The devices in `/dev/dri` of the card at a place on the bus.
pub(super) fn card_nodes(root: &Path, pci: &str) -> Vec<DeviceNode> {
    let host = |inside: &Path| root.join(inside.strip_prefix("/").unwrap_or(inside));
    nodes(root, pci).into_iter().map(|inside| DeviceNode::of(inside.clone(), host(&inside))).collect()
}

/// The nodes in `/dev/dri` of the card at a place on the bus.
pub(super) fn nodes(root: &Path, pci: &str) -> Vec<PathBuf> {
    if !is_pci(pci) {
        return Vec::new();
    }
    let entries = fs::read_dir(root.join("sys/bus/pci/devices").join(pci).join("drm"));
    let names = entries.into_iter().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let known = |name: &String| {
        let number = name.strip_prefix("card").or_else(|| name.strip_prefix("renderD"));
        number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let mut nodes: Vec<PathBuf> = names.filter(known).map(|name| Path::new("/dev/dri").join(name)).collect();
    nodes.retain(|node| root.join(node.strip_prefix("/").unwrap_or(node)).exists());
    nodes.sort();
    nodes
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::chown;

    use super::*;

    const PCI: &str = "0000:03:00.0";

    fn machine(nodes: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("dev/dri")).unwrap();
        for node in nodes {
            fs::create_dir_all(dir.path().join("sys/bus/pci/devices").join(PCI).join("drm").join(node)).unwrap();
            let host = dir.path().join("dev/dri").join(node);
            fs::write(&host, "").unwrap();
            chown(&host, None, Some(if node.starts_with("render") { 105 } else { 44 })).unwrap();
        }
        dir
    }

    #[test]
    fn a_card_comes_with_its_nodes_and_the_groups_that_own_them() {
        // Connectors lie beside the nodes and are none; another card's nodes are not given.
        let dir = machine(&["card1", "renderD129"]);
        let connector = dir.path().join("sys/bus/pci/devices").join(PCI).join("drm/card1-DP-1");
        fs::create_dir_all(connector).unwrap();
        fs::write(dir.path().join("dev/dri/renderD128"), "").unwrap();
        let inside = |edits: &Edits| edits.device_nodes.iter().map(|node| node.path.clone()).collect::<Vec<_>>();
        let intel = edits(dir.path(), GpuVendor::Intel, PCI).unwrap();
        assert_eq!(inside(&intel), [Path::new("/dev/dri/card1"), Path::new("/dev/dri/renderD129")]);
        assert_eq!(intel.additional_gids, [44, 105]);
        let why = edits(dir.path(), GpuVendor::Amd, PCI).unwrap_err();
        assert!(why.contains("/dev/kfd"), "{why}");
        fs::write(dir.path().join("dev/kfd"), "").unwrap();
        let amd = edits(dir.path(), GpuVendor::Amd, PCI).unwrap();
        assert_eq!(inside(&amd).last().unwrap(), Path::new("/dev/kfd"));
        assert!(amd.mounts.is_empty() && amd.hooks.is_empty());
    }

    #[test]
    fn a_card_that_cannot_compute_is_told() {
        for (nodes, pci) in [(&["card1"][..], PCI), (&["card1", "renderD129"], "../../x"), (&[], PCI)] {
            let dir = machine(nodes);
            let why = edits(dir.path(), GpuVendor::Intel, pci).unwrap_err();
            assert!(why.contains("no node for rendering"), "{why}");
        }
    }
}
