//! File systems in memory: `path[:option,...]`.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{is_default, plain, shown, validate_target};
use crate::{invalid::Invalid, units::parse_bytes};

/// An empty file system in memory, gone with the process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TmpfsMount {
    /// Where.
    #[schema(example = "/run")]
    pub path: String,
    /// Most bytes in it; half of the node's memory when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// Permissions as octal digits; `1777` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// Owner; root when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Group; root's when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
    /// Whether programs in it can be run.
    #[serde(default, skip_serializing_if = "is_default")]
    pub exec: bool,
}

impl TmpfsMount {
    /// Options of mount(8).
    pub fn options(&self) -> Vec<String> {
        let mut options: Vec<String> = ["nosuid", "nodev"].map(str::to_owned).to_vec();
        options.push(if self.exec { "exec" } else { "noexec" }.to_owned());
        options.push(format!("mode={}", self.mode.as_deref().unwrap_or("1777")));
        let numbers = [("size", self.size_bytes), ("uid", self.uid.map(u64::from)), ("gid", self.gid.map(u64::from))];
        for (name, number) in numbers {
            if let Some(number) = number {
                options.push(format!("{name}={number}"));
            }
        }
        options
    }

    pub(super) fn validate_all(mounts: &[Self]) -> Result<(), Invalid> {
        for (i, mount) in mounts.iter().enumerate() {
            mount.validate().map_err(|e| e.at(&format!("tmpfs[{i}]")))?;
            if mounts[..i].iter().any(|other| plain(&other.path) == plain(&mount.path)) {
                return Err(Invalid::value(format!("`{}` is named twice", shown(&mount.path)), "name each path once")
                    .at(&format!("tmpfs[{i}].path")));
            }
        }
        Ok(())
    }

    fn validate(&self) -> Result<(), Invalid> {
        validate_target(&self.path).map_err(|e| e.at("path"))?;
        if let Some(bytes) = self.size_bytes.filter(|bytes| !(4096..=1 << 44).contains(bytes)) {
            return Err(Invalid::value(format!("{bytes} is out of range"), "use at least 4096").at("size_bytes"));
        }
        match &self.mode {
            Some(mode) if !(3..=4).contains(&mode.len()) || !mode.bytes().all(|byte| (b'0'..=b'7').contains(&byte)) => {
                Err(Invalid::value(format!("`{}` is no file mode", shown(mode)), "write it like `1777`").at("mode"))
            }
            _ => Ok(()),
        }
    }
}

impl FromStr for TmpfsMount {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let (path, options) = text.split_once(':').unwrap_or((text, ""));
        let mut mount = Self { path: path.to_owned(), ..Self::default() };
        for option in options.split(',').filter(|option| !option.is_empty()) {
            let number = |text: &str| {
                text.parse::<u32>()
                    .map_err(|_| Invalid::value(format!("`{}` is no number", shown(text)), "use a user's number"))
            };
            match option.split_once('=') {
                Some(("size", size)) => mount.size_bytes = Some(parse_bytes(size)?),
                Some(("mode", mode)) => mount.mode = Some(mode.to_owned()),
                Some(("uid", uid)) => mount.uid = Some(number(uid)?),
                Some(("gid", gid)) => mount.gid = Some(number(gid)?),
                None if option == "exec" => mount.exec = true,
                // What it is in any case.
                None if ["noexec", "rw", "nosuid", "nodev"].contains(&option) => {}
                _ => {
                    return Err(Invalid::value(
                        format!("`{}` is no option of a file system in memory", shown(option)),
                        "use `size=`, `mode=`, `uid=`, `gid=` and `exec`",
                    ));
                }
            }
        }
        mount.validate().map(|()| mount)
    }
}
