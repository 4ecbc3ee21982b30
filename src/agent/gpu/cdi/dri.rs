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
