//! What containers see of the node's disks: named volumes and folders of the host. File systems in memory are part of
//! how a process runs ([`super::ProcessSpec::tmpfs`]).

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{
    TmpfsMount, is_default,
    process::{plain, shown, validate_path, validate_target},
};
use crate::{invalid::Invalid, name::Name, secret::SecretMount, units::parse_bytes};

/// Something of outside that is mounted into a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Mount {
    /// A named volume.
    Volume(VolumeMount),
    /// A file or folder of the node.
    Bind(BindMount),
}

/// A named volume in a container. The first use of a name that is not there creates the volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeMount {
    /// The volume.
    #[schema(value_type = String, example = "db-data")]
    pub name: Name,
    /// Where the container sees it.
    #[schema(example = "/var/lib/postgresql/data")]
    pub target: String,
    /// Whether it can only be read.
    #[serde(default, skip_serializing_if = "is_default")]
    pub read_only: bool,
    /// Folder or file of the volume that is mounted instead of the whole; it must be there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subpath: Option<String>,
    /// Whether an empty volume stays empty: otherwise it gets what the image has at the target, with its owners.
    #[serde(default, skip_serializing_if = "is_default")]
    pub no_copy: bool,
}

/// A file or folder of the node in a container. The node's configuration says below which folders they may lie.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BindMount {
    /// Absolute path on the node; it must be there.
    #[schema(example = "/srv/media")]
    pub source: String,
    /// Where the container sees it.
    #[schema(example = "/media")]
    pub target: String,
    /// Whether it can only be read.
    #[serde(default, skip_serializing_if = "is_default")]
    pub read_only: bool,
}

impl Mount {
    /// Most mounts of one workload.
    pub const MAX_IN_ONE: usize = 64;

    /// Where the container sees it.
    pub fn target(&self) -> &str {
        match self {
            Self::Volume(volume) => &volume.target,
            Self::Bind(bind) => &bind.target,
        }
    }

    /// The named volume, if it is one.
    pub fn volume(&self) -> Option<&VolumeMount> {
        match self {
            Self::Volume(volume) => Some(volume),
            Self::Bind(_) => None,
        }
    }

    /// Checks what the types cannot hold, for all mounts of one workload beside its other file systems.
    pub(super) fn validate_all(mounts: &[Self], tmpfs: &[TmpfsMount], secrets: &[SecretMount]) -> Result<(), Invalid> {
        if mounts.len() > Self::MAX_IN_ONE {
            let message = format!("{} mounts are more than {}", mounts.len(), Self::MAX_IN_ONE);
            return Err(Invalid::value(message, "mount a folder that holds several of them").at("mounts"));
        }
        for (i, mount) in mounts.iter().enumerate() {
            mount.validate().map_err(|e| e.at(&format!("mounts[{i}]")))?;
            let target = plain(mount.target());
            let taken = mounts[..i].iter().any(|other| plain(other.target()) == target)
                || tmpfs.iter().any(|tmpfs| plain(&tmpfs.path) == target)
                || (!secrets.is_empty() && target == SecretMount::DIRECTORY);
            if taken {
                let message = format!("two things are to be mounted on `{}`", shown(&target));
                return Err(
                    Invalid::value(message, "give one of them another `target`").at(&format!("mounts[{i}].target"))
                );
            }
        }
        Ok(())
    }

    fn validate(&self) -> Result<(), Invalid> {
        validate_target(self.target()).map_err(|e| e.at("target"))?;
        match self {
            Self::Volume(VolumeMount { subpath: Some(path), .. }) => {
                validate_subpath(path).map_err(|e| e.at("subpath"))
            }
            Self::Volume(_) => Ok(()),
            Self::Bind(bind) => validate_path(&bind.source).map_err(|e| e.at("source")),
        }
    }

    /// Reads `type=volume,source=data,target=/data,readonly` and its like, as `--mount` has it.
    pub fn parse_long(text: &str) -> Result<AnyMount, Invalid> {
        let mut long = Long::default();
        for part in text.split(',') {
            long.take(part)?;
        }
        long.finish()
    }
}

/// What `--mount` can ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AnyMount {
    /// A volume or a folder of the node.
    Mount(Mount),
    /// A file system in memory.
    Tmpfs(TmpfsMount),
}

impl FromStr for AnyMount {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        Mount::parse_long(text)
    }
}

const LONG: &str = "write it like `type=volume,source=data,target=/data`, with `readonly`, `volume-subpath=` and \
                    `volume-nocopy` for a volume, `type=bind` for a path of the node, or `type=tmpfs` with \
                    `tmpfs-size=` and `tmpfs-mode=`";

#[derive(Default)]
struct Long {
    kind: Option<String>,
    source: Option<String>,
    target: Option<String>,
    read_only: bool,
    subpath: Option<String>,
    no_copy: bool,
    size: Option<u64>,
    mode: Option<String>,
}

impl Long {
    fn take(&mut self, part: &str) -> Result<(), Invalid> {
        let bad = |why: &str| Invalid::value(format!("`{}` {why}", shown(part)), LONG);
        let (key, value) = part.split_once('=').map_or((part, None), |(key, value)| (key, Some(value)));
        let text = || value.filter(|text| !text.is_empty()).map(str::to_owned).ok_or_else(|| bad("has no value"));
        let flag = || match value {
            None | Some("true" | "1") => Ok(true),
            Some("false" | "0") => Ok(false),
            Some(_) => Err(bad("is neither true nor false")),
        };
        match key {
            "type" => self.kind = Some(text()?),
            "source" | "src" => self.source = Some(text()?),
            "target" | "destination" | "dst" => self.target = Some(text()?),
            "readonly" | "ro" => self.read_only = flag()?,
            "volume-subpath" => self.subpath = Some(text()?),
            "volume-nocopy" => self.no_copy = flag()?,
            "tmpfs-size" => self.size = Some(parse_bytes(&text()?)?),
            "tmpfs-mode" => self.mode = Some(text()?),
            // What it is in any case.
            "bind-propagation" if matches!(value, Some("private" | "rprivate")) => {}
            "bind-propagation" => return Err(bad("is not possible: mounts are private to their container")),
            _ => return Err(bad("says nothing about a mount")),
        }
        Ok(())
    }

    fn finish(self) -> Result<AnyMount, Invalid> {
        let missing = |what: &str| Invalid::value(format!("the mount has no {what}"), LONG);
        let target = self.target.ok_or_else(|| missing("`target`"))?;
        let source = self.source.ok_or_else(|| missing("`source`"));
        let (of_volume, of_tmpfs) =
            (self.subpath.is_some() || self.no_copy, self.size.is_some() || self.mode.is_some());
        let odd = |kind: &str| Invalid::value(format!("an option does not belong to a mount of type {kind}"), LONG);
        let mount = match self.kind.as_deref().unwrap_or("volume") {
            "volume" if of_tmpfs => return Err(odd("volume")),
            "volume" => Mount::Volume(VolumeMount {
                name: source?.parse()?,
                target,
                read_only: self.read_only,
                subpath: self.subpath,
                no_copy: self.no_copy,
            }),
            "bind" if of_tmpfs || of_volume => return Err(odd("bind")),
            "bind" => Mount::Bind(BindMount { source: source?, target, read_only: self.read_only }),
            "tmpfs" if of_volume || self.read_only || source.is_ok() => return Err(odd("tmpfs")),
            "tmpfs" => {
                let tmpfs =
                    TmpfsMount { path: target, size_bytes: self.size, mode: self.mode, ..TmpfsMount::default() };
                return Ok(AnyMount::Tmpfs(tmpfs));
            }
            other => return Err(Invalid::value(format!("`{}` is no type of mount", shown(other)), LONG)),
        };
        mount.validate().map(|()| AnyMount::Mount(mount))
    }
}

/// `SOURCE:TARGET[:ro]`, as `-v` has it: a source that begins with `/` is a path of the node, any other a volume.
impl FromStr for Mount {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let hint = "write it like `data:/data`, or `/srv/media:/media:ro` for a folder of the node";
        let bad = |why: &str| Invalid::value(format!("`{}` {why}", shown(text)), hint);
        let mut parts = text.split(':');
        let (Some(source), Some(target), options, None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(bad(if text.contains(':') { "has too many parts" } else { "names no volume" }));
        };
        let (mut read_only, mut no_copy) = (false, false);
        for option in options.unwrap_or_default().split(',').filter(|option| !option.is_empty()) {
            match option {
                "ro" => read_only = true,
                "nocopy" => no_copy = true,
                // What it is in any case.
                "rw" | "private" | "rprivate" => {}
                // Labels of SELinux, which toft does not set.
                "z" | "Z" => return Err(bad("asks for an SELinux label, which toft does not set")),
                _ => return Err(bad("has an option that is neither `ro`, `rw` nor `nocopy`")),
            }
        }
        let target = target.to_owned();
        let mount = if source.starts_with('/') {
            Self::Bind(BindMount { source: source.to_owned(), target, read_only })
        } else if source.starts_with(['.', '~']) {
            return Err(bad("begins with no absolute path"));
        } else {
            Self::Volume(VolumeMount { name: source.parse()?, target, read_only, subpath: None, no_copy })
        };
        mount.validate().map(|()| mount)
    }
}

/// A path below the root of a volume.
fn validate_subpath(path: &str) -> Result<(), Invalid> {
    let odd = path.len() > 4096
        || path.chars().any(char::is_control)
        || path.split('/').any(|part| matches!(part, "" | "." | ".."));
    if odd {
        let message = format!("`{}` is no path inside a volume", shown(path));
        return Err(Invalid::value(message, "write it like `site/assets`, without `.`, `..` and a `/` at its ends"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(text: &str) -> Mount {
        text.parse().unwrap()
    }

    #[test]
    fn short_forms_are_read_as_docker_reads_them() {
        let Mount::Volume(volume) = mount("data:/var/lib/x:ro,nocopy") else { panic!("no volume") };
        assert_eq!((volume.name.as_str(), volume.target.as_str()), ("data", "/var/lib/x"));
        assert!(volume.read_only && volume.no_copy);
        let Mount::Bind(bind) = mount("/srv/media:/media") else { panic!("no bind") };
        assert_eq!((bind.source.as_str(), bind.read_only), ("/srv/media", false));
        for bad in [
            "",
            "/data",
            "data",
            "data:",
            "data:data",
            "data:/",
            "data:/proc",
            "data:/proc/x",
            "data:/sys",
            "data:/dev",
            "data:/dev/sda",
            "data:/a/../b",
            "data:/a\0",
            "data:/a:ro:x",
            "data:/a:z",
            "data:/a:shared",
            "./x:/a",
            "~/x:/a",
            "../x:/a",
            "/srv/../etc:/a",
            "Data:/a",
            "a/b:/a",
            &format!("data:/{}", "x".repeat(5000)),
        ] {
            let refused = bad.parse::<Mount>().unwrap_err();
            assert!(!refused.hint.is_empty() && refused.message.len() < 200, "{bad}: {refused}");
        }
    }

    #[test]
    fn long_forms_are_read_as_docker_reads_them() {
        let AnyMount::Mount(long) = "type=volume,src=data,dst=/d,readonly,volume-nocopy=true".parse().unwrap() else {
            panic!("no volume")
        };
        assert_eq!(long, mount("data:/d:ro,nocopy"));
        let AnyMount::Mount(long) = "type=bind,source=/srv,target=/d,readonly=false".parse().unwrap() else {
            panic!("no bind")
        };
        assert_eq!(long, mount("/srv:/d"));
        let AnyMount::Tmpfs(tmpfs) = "type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=700".parse().unwrap() else {
            panic!("no tmpfs")
        };
        assert_eq!((tmpfs.size_bytes, tmpfs.mode.as_deref()), (Some(1 << 20), Some("700")));
        let AnyMount::Mount(Mount::Volume(part)) = "source=data,target=/d,volume-subpath=a/b".parse().unwrap() else {
            panic!("no volume")
        };
        assert_eq!(part.subpath.as_deref(), Some("a/b"));
        for bad in [
            "",
            "type=volume",
            "type=volume,source=data",
            "type=volume,target=/d",
            "type=cluster,source=a,target=/d",
            "type=bind,source=a,target=/d",
            "type=bind,source=/a,target=/d,volume-nocopy",
            "type=bind,source=/a,target=/d,bind-propagation=shared",
            "type=tmpfs,source=a,target=/d",
            "type=volume,source=a,target=/d,tmpfs-size=1m",
            "type=volume,source=a,target=/d,volume-subpath=../x",
            "type=volume,source=a,target=/d,volume-subpath=/x",
            "type=volume,source=a,target=/d,volume-subpath=a//b",
            "type=volume,source=a,target=/d,readonly=perhaps",
            "type=volume,source=a,target=/d,colour=red",
        ] {
            assert!(bad.parse::<AnyMount>().is_err(), "{bad}");
        }
    }

    #[test]
    fn one_place_takes_one_mount() {
        let tmpfs = TmpfsMount { path: "/t/".into(), ..TmpfsMount::default() };
        let secret = SecretMount::new("db".parse().unwrap());
        let check = |mounts: &[&str], field: &str| {
            let mounts: Vec<Mount> = mounts.iter().map(|text| mount(text)).collect();
            let refused = Mount::validate_all(&mounts, std::slice::from_ref(&tmpfs), std::slice::from_ref(&secret));
            assert_eq!(refused.unwrap_err().field, field);
        };
        check(&["a:/d", "b:/d"], "mounts[1].target");
        check(&["a:/d", "/srv://d/"], "mounts[1].target");
        check(&["a:/t"], "mounts[0].target");
        check(&["a:/run/secrets"], "mounts[0].target");
        let many: Vec<String> = (0..65).map(|i| format!("a:/d{i}")).collect();
        check(&many.iter().map(String::as_str).collect::<Vec<_>>(), "mounts");
        Mount::validate_all(&[mount("a:/d"), mount("a:/d/e")], &[tmpfs], &[secret]).unwrap();
    }

    #[test]
    fn unknown_fields_are_refused() {
        let text = r#"{"type":"volume","name":"a","target":"/a","colour":1}"#;
        assert!(serde_json::from_str::<Mount>(text).unwrap_err().to_string().contains("colour"));
        let short: Mount = serde_json::from_str(r#"{"type":"bind","source":"/a","target":"/a"}"#).unwrap();
        assert_eq!(serde_json::to_string(&short).unwrap(), r#"{"type":"bind","source":"/a","target":"/a"}"#);
    }
}
