//! Devices of the node that a container sees.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use nix::sys::stat::{major, minor};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};
use toft_model::workload::{DeviceMapping, ProcessSpec};

/// Most devices of one container; a folder of them may hold many.
const MOST_DEVICES: usize = 4096;
/// Folders in a folder of devices that are looked into.
const DEEPEST: usize = 4;
/// Places in `/dev` that every container has of its own.
const OWN: [&str; 5] = ["/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/console", "/dev/fd"];

/// A device and what may be done with it.
#[derive(Debug, Clone)]
pub(in crate::agent::runtime::containerd) struct Device {
    node: LinuxDevice,
    access: String,
}

impl Device {
    pub(super) fn node(&self) -> LinuxDevice {
        self.node.clone()
    }

    pub(super) fn rule(&self) -> LinuxDeviceCgroup {
        let mut rule = LinuxDeviceCgroup::from(&self.node);
        rule.set_access(Some(self.access.clone()));
        rule
    }
}

/// The devices that `process` asks for; all that there are for a privileged one. `Err` says in words for people which is
/// not there.
pub(in crate::agent::runtime::containerd) fn find(process: &ProcessSpec) -> Result<Vec<Device>, String> {
    let mut found = Vec::new();
    if process.privileged {
        collect(Path::new("/dev"), Path::new("/dev"), "rwm", DEEPEST, &mut found)?;
    }
    // Those that CDI names come with the edits.
    for mapping in process.devices.iter().filter(|mapping| mapping.cdi().is_none()) {
        named(mapping, &mut found)?;
    }
    Ok(found)
}

fn named(mapping: &DeviceMapping, found: &mut Vec<Device>) -> Result<(), String> {
    let host = Path::new(&mapping.host);
    let before = found.len();
    let metadata = fs::metadata(host).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => format!("the device `{}` is not on this node", host.display()),
        _ => format!("the device `{}` cannot be looked at: {error}", host.display()),
    })?;
    if metadata.is_dir() {
        collect(host, Path::new(mapping.inside()), mapping.access(), DEEPEST, found)?;
    } else {
        found.extend(device(&metadata, mapping.inside().into(), mapping.access()));
    }
    if found.len() == before {
        return Err(format!("`{}` is no device", host.display()));
    }
    Ok(())
}

/// Every device below `folder`, as it shall appear below `inside`.
fn collect(folder: &Path, inside: &Path, access: &str, deep: usize, found: &mut Vec<Device>) -> Result<(), String> {
    let entries =
        fs::read_dir(folder).map_err(|error| format!("`{}` cannot be looked into: {error}", folder.display()))?;
    for entry in entries.flatten() {
        let (path, inside) = (entry.path(), inside.join(entry.file_name()));
        if OWN.iter().any(|own| inside.starts_with(own)) {
            continue;
        }
        // Of the entry itself: links would only name the same devices again, or lead out of the folder.
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.is_dir() && deep > 0 {
            collect(&path, &inside, access, deep - 1, found)?;
        }
        found.extend(device(&metadata, inside, access));
        if found.len() > MOST_DEVICES {
            return Err(format!("`{}` holds more than {MOST_DEVICES} devices", folder.display()));
        }
    }
    Ok(())
}

fn device(metadata: &fs::Metadata, path: PathBuf, access: &str) -> Option<Device> {
    let kind = metadata.file_type();
    let typ = match () {
        () if kind.is_char_device() => LinuxDeviceType::C,
        () if kind.is_block_device() => LinuxDeviceType::B,
        () => return None,
    };
    let number = |number: u64| i64::try_from(number).ok();
    let mut node = LinuxDevice::default();
    node.set_path(path)
        .set_typ(typ)
        .set_major(number(major(metadata.rdev()))?)
        .set_minor(number(minor(metadata.rdev()))?)
        .set_file_mode(Some(metadata.mode() & 0o7777))
        .set_uid(Some(metadata.uid()))
        .set_gid(Some(metadata.gid()));
    Some(Device { node, access: access.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(devices: &[&str]) -> Result<Vec<Device>, String> {
        let devices = devices.iter().map(|text| text.parse().unwrap()).collect();
        find(&ProcessSpec { devices, ..ProcessSpec::default() })
    }

    #[test]
    fn devices_are_found_by_their_numbers() {
        let found = of(&["/dev/null:/dev/hole:r"]).unwrap();
        assert_eq!(found.len(), 1);
        let node = found[0].node();
        assert_eq!((node.major(), node.minor(), node.path().as_path()), (1, 3, Path::new("/dev/hole")));
        assert_eq!(found[0].rule().access().as_deref(), Some("r"));
    }

    #[test]
    fn what_is_no_device_is_told() {
        assert!(of(&["/dev/no-such-device"]).unwrap_err().contains("is not on this node"));
        let privileged = find(&ProcessSpec { privileged: true, ..ProcessSpec::default() }).unwrap();
        let paths: Vec<_> = privileged.iter().map(|device| device.node().path().clone()).collect();
        assert!(paths.contains(&"/dev/null".into()) && !paths.iter().any(|path| path.starts_with("/dev/pts")));
    }
}
