//! Mounts what a volume says it is. The kernel is asked directly, option by option: no program is started, so that a
//! password is in no argument and no file, and what the kernel says about a wrong option can be told.

use std::{
    io,
    net::{IpAddr, ToSocketAddrs},
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use rustix::{
    io::Errno,
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags},
};
use toft_model::{
    name::Name,
    volume::{VolumeKind, VolumeOptions},
};

use super::{VolumeError, mountinfo, paths};
use crate::seal::Plain;

/// Versions of NFS, tried in this order when none is asked for.
const NFS_VERSIONS: [&str; 4] = ["4.2", "4.1", "4.0", "3"];

/// A volume to be mounted.
pub(super) struct Wanted<'a> {
    pub(super) name: &'a Name,
    pub(super) node: &'a Name,
    pub(super) options: &'a VolumeOptions,
    pub(super) password: Option<&'a Plain>,
}

impl Wanted<'_> {
    /// Mounts it on `place`. `source` is the folder of a volume that is one.
    pub(super) fn mount(&self, kind: VolumeKind, place: &Path, source: Option<OwnedFd>) -> Result<(), VolumeError> {
        let failed = |reason: String| VolumeError::Mount { volume: self.name.clone(), reason };
        let tree = match (kind, source) {
            (VolumeKind::Folder, Some(folder)) => paths::tree_of(&folder, true).map_err(|e| failed(e.to_string()))?,
            (VolumeKind::Folder, None) => return Err(failed("its folder is not there".to_owned())),
            (VolumeKind::Tmpfs, _) => self.open(kind, &[])?,
            (VolumeKind::Nfs | VolumeKind::Nfs4, _) => self.open_nfs(kind)?,
            (VolumeKind::Cifs | VolumeKind::Smb3, _) => {
                let host = self.device().trim_start_matches('/').split('/').next().unwrap_or_default();
                let address = match self.option("ip").or_else(|| self.option("addr")) {
                    Some(host) => self.resolve(host)?,
                    None => self.resolve(host)?,
                };
                self.open(kind, &[("source", self.device().to_owned()), ("ip", address.to_string())])?
            }
        };
        paths::put(&tree, place).map_err(|e| failed(e.to_string()))?;
        let read_only = self.options.options().any(|word| word == ("ro", None));
        if kind == VolumeKind::Folder && read_only {
            mountinfo::make_read_only(place).map_err(|e| failed(e.to_string()))?;
        }
        Ok(())
    }

    fn device(&self) -> &str {
        self.options.device.as_deref().unwrap_or_default()
    }

    fn option(&self, wanted: &str) -> Option<&str> {
        self.options.options().find_map(|(key, value)| value.filter(|_| key == wanted))
    }

    fn open_nfs(&self, kind: VolumeKind) -> Result<OwnedFd, VolumeError> {
        let (host, path) = self.device().split_once(":/").unwrap_or_default();
        let address = self.resolve(self.option("addr").unwrap_or(host.trim_matches(['[', ']'])))?;
        // The kernel wants a name before the path, whichever.
        let host = match (host, address) {
            ("", IpAddr::V6(address)) => format!("[{address}]"),
            ("", address) => address.to_string(),
            (host, _) => host.to_owned(),
        };
        let base = [("source", format!("{host}:/{path}")), ("addr", address.to_string())];
        let said = self
            .options
            .options()
            .any(|(key, _)| matches!(key, "vers" | "nfsvers" | "v3" | "v4" | "v4.0" | "v4.1" | "v4.2"));
        if said || kind == VolumeKind::Nfs4 {
            return self.open(kind, &base);
        }
        let mut last = None;
        for version in NFS_VERSIONS {
            let [source, address] = base.clone();
            match self.open(kind, &[source, address, ("vers", version.to_owned())]) {
                Err(error @ VolumeError::Mount { .. }) => last = Some(error),
                opened => return opened,
            }
        }
        Err(last.unwrap_or_else(|| VolumeError::Hangs(self.name.to_string())))
    }

    fn resolve(&self, host: &str) -> Result<IpAddr, VolumeError> {
        let failed = |reason: String| VolumeError::Mount { volume: self.name.clone(), reason };
        let found = (host, 0).to_socket_addrs().map_err(|e| failed(format!("its server is not found: {e}")))?;
        found.map(|address| address.ip()).next().ok_or_else(|| failed("its server has no address".to_owned()))
    }

    /// A mount that lies nowhere yet, of these options and those of the volume.
    fn open(&self, kind: VolumeKind, base: &[(&str, String)]) -> Result<OwnedFd, VolumeError> {
        let told = |reason: String| VolumeError::Mount { volume: self.name.clone(), reason };
        let context = rustix::mount::fsopen(kind.as_str(), FsOpenFlags::FSOPEN_CLOEXEC);
        let context = context.map_err(|error| match error {
            Errno::NODEV => self.no_client(kind),
            error => told(io::Error::from(error).to_string()),
        })?;
        let failed = |key: &str, error: Errno| told(explained(&context, key, error));
        for (key, value) in base {
            rustix::mount::fsconfig_set_string(context.as_fd(), *key, value).map_err(|e| failed(key, e))?;
        }
        let mut attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
        for (key, value) in self.options.options() {
            if base.iter().any(|(known, _)| *known == key) || (key == "addr" && kind != VolumeKind::Tmpfs) {
                continue;
            }
            let set = match (key, value) {
                ("ro", None) => {
                    attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
                    // The file system itself as well: its server need not take writes then.
                    rustix::mount::fsconfig_set_flag(context.as_fd(), "ro")
                }
                ("noexec", None) => {
                    attributes |= MountAttrFlags::MOUNT_ATTR_NOEXEC;
                    Ok(())
                }
                ("noatime", None) => {
                    attributes |= MountAttrFlags::MOUNT_ATTR_NOATIME;
                    Ok(())
                }
                // What it is in any case, or what only mount(8) and init systems know.
                ("rw" | "nosuid" | "nodev" | "suid" | "dev" | "exec" | "relatime" | "defaults", None)
                | ("auto" | "noauto" | "_netdev" | "nofail" | "bg" | "fg", None) => Ok(()),
                (key, None) => rustix::mount::fsconfig_set_flag(context.as_fd(), key),
                (key, Some(value)) => rustix::mount::fsconfig_set_string(context.as_fd(), key, value),
            };
            set.map_err(|error| failed(key, error))?;
        }
        if let Some(password) = self.password {
            let bytes = password.as_bytes();
            // A file with a password often ends in the end of its line.
            let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
            let set = rustix::mount::fsconfig_set_string(context.as_fd(), "password", bytes);
            set.map_err(|error| failed("password", error))?;
        }
        rustix::mount::fsconfig_create(context.as_fd()).map_err(|error| failed("", error))?;
        rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
            .map_err(|error| failed("", error))
    }

    fn no_client(&self, kind: VolumeKind) -> VolumeError {
        let (what, package, module) = match kind {
            VolumeKind::Nfs | VolumeKind::Nfs4 => ("NFS", "nfs-common", "nfs"),
            VolumeKind::Cifs | VolumeKind::Smb3 => ("SMB", "cifs-utils", "cifs"),
            VolumeKind::Folder | VolumeKind::Tmpfs => ("tmpfs", "linux-image", "tmpfs"),
        };
        VolumeError::NoClient { node: self.node.clone(), what, package, module }
    }
}

/// What the kernel has to say about a failure, else the error's own words. No option's value is in it.
fn explained(context: &OwnedFd, key: &str, error: Errno) -> String {
    let mut said = Vec::new();
    let mut message = [0; 512];
    while let Ok(length @ 1..) = rustix::io::read(context, &mut message) {
        // A letter for its weight comes first.
        let text = String::from_utf8_lossy(&message[..length]);
        said.push(text.trim().trim_start_matches(['e', 'w', 'i']).trim().to_owned());
    }
    let error = io::Error::from(error);
    match (key, said.is_empty()) {
        ("", true) => error.to_string(),
        ("", false) => format!("{} ({error})", said.join("; ")),
        // It may hold what was written after the key.
        (key, _) => format!("the kernel does not take its option `{key}` ({error})"),
    }
}
