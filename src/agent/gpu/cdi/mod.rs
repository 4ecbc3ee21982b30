//! What a container needs to use a card, in the words of the Container Device Interface (CDI): device nodes, mounts, hooks and
//! environment. Specifications are read from files ([`files`]), or made from what lies on the machine where there are none
//! ([`nvidia`], [`dri`]), and put into the runtime's specification ([`apply`]).

mod apply;
mod dri;
mod files;
pub mod hook;
mod hooks;
mod inject;
mod mps;
mod nvidia;

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use nix::sys::stat::{major, minor};

use serde::{Deserialize, Serialize};

pub use apply::apply;
pub use files::{Library, SpecFault};
pub use inject::{InjectError, Injector};
pub use mps::MpsPlaces;

/// The variable by which images and Docker's users speak of cards.
pub const VISIBLE_DEVICES: &str = "NVIDIA_VISIBLE_DEVICES";
/// What it says when there are none.
pub const NO_DEVICES: &str = "void";

/// What is changed of a container's specification.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Edits {
    /// `KEY=VALUE`; they replace what the container has.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Device nodes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub device_nodes: Vec<DeviceNode>,
    /// What is mounted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<EditMount>,
    /// Programs that the runtime starts on the node.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hooks: Vec<EditHook>,
    /// Groups that the process has besides.
    #[serde(rename = "additionalGIDs", skip_serializing_if = "Vec::is_empty")]
    pub additional_gids: Vec<u32>,
}

/// A device node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DeviceNode {
    /// Path inside.
    pub path: PathBuf,
    /// Path on the node; the same when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_path: Option<PathBuf>,
    /// `c`, `b`, `u` or `p`; as on the node when absent. So are the next five.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Major number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub major: Option<i64>,
    /// Minor number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minor: Option<i64>,
    /// Permissions of the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_mode: Option<u32>,
    /// Owner.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
    /// What the container may do with it, of `rwm`; all when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub permissions: Option<String>,
}

/// Something of the node that is mounted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EditMount {
    /// Path on the node, or what the kind of file system makes of it.
    pub host_path: PathBuf,
    /// Path inside.
    pub container_path: PathBuf,
    /// Options of the mount.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
    /// Kind of the file system; a bind mount when absent.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
}

/// A program that the runtime starts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EditHook {
    /// When: `createContainer` and the other names of the OCI specification.
    pub hook_name: String,
    /// The program.
    pub path: PathBuf,
    /// Its arguments, the name first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Its environment.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Seconds it may take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<i64>,
}

/// The version of NVIDIA's module that the kernel has loaded. `root` is `/`.
pub fn nvidia_version(root: &Path) -> Option<String> {
    nvidia::loaded_version(root)
}

/// How many libraries, programs and files of NVIDIA's driver containers can be given. `Err` says what is missing.
pub fn nvidia_files(root: &Path, version: &str) -> Result<usize, String> {
    nvidia::common(root, version).map(|edits| edits.mounts.len())
}

impl Edits {
    /// Whether nothing is changed.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Puts `others` behind these; what both say is said once.
    pub fn extend(&mut self, others: Self) {
        fn add<T: PartialEq>(to: &mut Vec<T>, from: Vec<T>) {
            for one in from {
                if !to.contains(&one) {
                    to.push(one);
                }
            }
        }
        add(&mut self.env, others.env);
        add(&mut self.device_nodes, others.device_nodes);
        add(&mut self.mounts, others.mounts);
        add(&mut self.hooks, others.hooks);
        add(&mut self.additional_gids, others.additional_gids);
    }

    /// Gives `KEY=VALUE` in place of what was given for that key.
    pub fn set_env(&mut self, key: &str, value: &str) {
        self.env.retain(|pair| pair.split_once('=').is_none_or(|(known, _)| known != key));
        self.env.push(format!("{key}={value}"));
    }
}

impl DeviceNode {
    /// Its major and minor number, as said, or as they are on the node.
    fn numbers(&self) -> Option<(u64, u64)> {
        let said = |number: Option<i64>| number.and_then(|number| u64::try_from(number).ok());
        if let (Some(major), Some(minor)) = (said(self.major), said(self.minor)) {
            return Some((major, minor));
        }
        let number = fs::metadata(self.host_path.as_ref().unwrap_or(&self.path)).ok()?.rdev();
        Some((said(self.major).unwrap_or(major(number)), said(self.minor).unwrap_or(minor(number))))
    }

    /// A node with the numbers it has at `host_path`.
    pub(super) fn of(path: impl Into<PathBuf>, host_path: PathBuf) -> Self {
        let path = path.into();
        let host_path = (path != host_path).then_some(host_path);
        Self { path, host_path, ..Self::default() }
    }
}

impl EditMount {
    /// A file or folder that can be read.
    pub(super) fn read_only(host_path: PathBuf, container_path: impl Into<PathBuf>) -> Self {
        let options = ["ro", "nosuid", "nodev", "rbind", "rprivate"].map(str::to_owned).to_vec();
        Self { host_path, container_path: container_path.into(), options, kind: None }
    }
}
