//! Volumes: data that outlives containers. Their names are shared by the cluster; the data lies on one node, or on a
//! server that every node reaches.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{invalid::Invalid, name::Name};

/// Most volumes of a cluster.
pub const MAX_VOLUMES: u64 = 10_000;
/// Most labels of one volume.
pub const MAX_LABELS: usize = 64;
/// Most bytes of one option or label.
pub const MAX_TEXT_BYTES: usize = 4096;

/// What a volume is, as Compose's `driver_opts` of Docker's local driver say it. Without any it is a folder on the
/// node that uses it first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct VolumeOptions {
    /// File system to mount: `nfs`, `nfs4`, `cifs`, `smb3`, `tmpfs`, or `none` with `o=bind` for a folder of the node.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<VolumeKind>,
    /// What to mount: `HOST:/PATH`, `//HOST/SHARE`, or a path.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "nas.lan:/export/media")]
    pub device: Option<String>,
    /// Options of the mount, separated by commas; never a password.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "vers=4.2,soft,timeo=100")]
    pub o: Option<String>,
    /// The secret that holds the password for `cifs` and `smb3`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "nas-password")]
    pub secret: Option<Name>,
}

/// A file system that a volume can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum VolumeKind {
    /// A folder of the node.
    #[serde(rename = "none")]
    Folder,
    /// Memory of the node.
    Tmpfs,
    /// NFS of any version.
    Nfs,
    /// NFS 4.
    Nfs4,
    /// SMB, as Windows and Samba share folders.
    Cifs,
    /// SMB 3.
    Smb3,
}

impl VolumeKind {
    /// The kernel's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Folder => "none",
            Self::Tmpfs => "tmpfs",
            Self::Nfs => "nfs",
            Self::Nfs4 => "nfs4",
            Self::Cifs => "cifs",
            Self::Smb3 => "smb3",
        }
    }

    /// Whether it lies on a server, so that every node sees the same.
    pub fn is_remote(self) -> bool {
        match self {
            Self::Folder | Self::Tmpfs => false,
            Self::Nfs | Self::Nfs4 | Self::Cifs | Self::Smb3 => true,
        }
    }
}

impl VolumeOptions {
    /// Whether the data lies on a server, so that any node can use it.
    pub fn is_remote(&self) -> bool {
        self.kind.is_some_and(VolumeKind::is_remote)
    }

    /// Reads `KEY=VALUE` pairs, as `toft volume create --opt` and Compose have them.
    pub fn from_pairs(pairs: &BTreeMap<String, String>) -> Result<Self, Invalid> {
        let mut options = Self::default();
        for (key, value) in pairs {
            match key.as_str() {
                "type" => options.kind = Some(parse_kind(value).map_err(|e| e.at("type"))?),
                "device" => options.device = Some(value.clone()),
                "o" => options.o = Some(value.clone()),
                "secret" => options.secret = Some(value.parse().map_err(|e: Invalid| e.at("secret"))?),
                other => {
                    let message = format!("`{}` is no option of a volume", shown(other));
                    return Err(Invalid::value(message, "use `type`, `device`, `o` and `secret`"));
                }
            }
        }
        options.validate().map(|()| options)
    }

    /// Checks every rule that the types alone cannot hold. The first breach is told with its field; no value of an
    /// option is repeated, because it may be a password at the wrong place.
    pub fn validate(&self) -> Result<(), Invalid> {
        for (field, text) in [("device", &self.device), ("o", &self.o)] {
            let Some(text) = text else { continue };
            if text.is_empty() || text.len() > MAX_TEXT_BYTES || text.chars().any(char::is_control) {
                let message = format!("it is empty, longer than {MAX_TEXT_BYTES} bytes or holds a control character");
                return Err(Invalid::value(message, "write it as on the command line of mount(8)").at(field));
            }
        }
        self.validate_password()?;
        let needs = |field: &str, hint: &str| Err(Invalid::value(format!("there is no `{field}`"), hint).at(field));
        let device = self.device.as_deref();
        match self.kind {
            None if device.is_some() || self.o.is_some() => {
                needs("type", "say what is mounted: `nfs`, `nfs4`, `cifs`, `smb3`, `tmpfs` or `none`")
            }
            None => Ok(()),
            Some(VolumeKind::Folder) => match device {
                Some(path) if is_plain_path(path) && self.options().any(|(key, _)| matches!(key, "bind" | "rbind")) => {
                    Ok(())
                }
                _ => needs("device", "a folder of the node is `type=none`, `o=bind` and `device=/absolute/path`"),
            },
            Some(VolumeKind::Tmpfs) => Ok(()),
            Some(VolumeKind::Nfs | VolumeKind::Nfs4) => match device.and_then(|device| device.split_once(":/")) {
                Some(_) => Ok(()),
                None => {
                    needs("device", "write it like `nas.lan:/export/media`, or `:/export/media` with `o=addr=HOST`")
                }
            },
            Some(VolumeKind::Cifs | VolumeKind::Smb3) => {
                let share = device.and_then(|device| device.strip_prefix("//")).and_then(|rest| rest.split_once('/'));
                match share {
                    Some((host, share)) if !host.is_empty() && !share.is_empty() => Ok(()),
                    _ => needs("device", "write it like `//nas.lan/media`"),
                }
            }
        }
    }

    /// The words of `o`: key and value.
    pub fn options(&self) -> impl Iterator<Item = (&str, Option<&str>)> {
        let words = self.o.as_deref().unwrap_or_default().split(',').map(str::trim).filter(|word| !word.is_empty());
        words.map(|word| word.split_once('=').map_or((word, None), |(key, value)| (key, Some(value))))
    }

    fn validate_password(&self) -> Result<(), Invalid> {
        for (key, value) in self.options() {
            let key = key.to_ascii_lowercase();
            let password = key.starts_with("pass") || key.starts_with("cred") || key == "pwd";
            // `user=NAME%PASSWORD` and `user=DOMAIN/NAME%PASSWORD` are read so by mount.cifs.
            let hidden = matches!(key.as_str(), "user" | "username") && value.is_some_and(|text| text.contains('%'));
            if password || hidden {
                return Err(Invalid::value(
                    "the options hold a password or the path of one, which would be stored readable",
                    "create a secret with `toft secret create NAME`, and name it with the option `secret=NAME`",
                )
                .at("o"));
            }
        }
        let with_password = matches!(self.kind, Some(VolumeKind::Cifs | VolumeKind::Smb3));
        if self.secret.is_some() && !with_password {
            let message = "only `cifs` and `smb3` take a password";
            return Err(Invalid::value(message, "remove `secret`, or set `type`").at("secret"));
        }
        Ok(())
    }
}

/// Checks the labels of a volume.
pub fn validate_labels(labels: &BTreeMap<String, String>) -> Result<(), Invalid> {
    let odd = |text: &str| text.len() > MAX_TEXT_BYTES || text.chars().any(char::is_control);
    let bad = |(key, value): (&String, &String)| key.is_empty() || key.contains('=') || odd(key) || odd(value);
    if labels.len() > MAX_LABELS || labels.iter().any(bad) {
        let message = "a label is empty, too long or holds a control character, or there are too many";
        return Err(Invalid::value(message, format!("use at most {MAX_LABELS} labels `KEY=VALUE`")).at("labels"));
    }
    Ok(())
}

fn parse_kind(text: &str) -> Result<VolumeKind, Invalid> {
    use VolumeKind::{Cifs, Folder, Nfs, Nfs4, Smb3, Tmpfs};
    [Folder, Tmpfs, Nfs, Nfs4, Cifs, Smb3].into_iter().find(|kind| kind.as_str() == text).ok_or_else(|| {
        let message = format!("`{}` cannot be a volume", shown(text));
        Invalid::value(message, "use `nfs`, `nfs4`, `cifs`, `smb3`, `tmpfs`, or `none` with `o=bind`")
    })
}

fn is_plain_path(path: &str) -> bool {
    path.starts_with('/') && !path.split('/').any(|part| matches!(part, "." | ".."))
}

fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(60).collect()
}

/// A volume as the node gets it with an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeOrder {
    /// Tells it from an earlier volume of the same name.
    pub born: u64,
    /// What it is.
    #[serde(default)]
    pub options: VolumeOptions,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(pairs: &[(&str, &str)]) -> Result<VolumeOptions, Invalid> {
        VolumeOptions::from_pairs(&pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect())
    }

    #[test]
    fn options_are_read_as_compose_has_them() {
        let nfs = options(&[("type", "nfs"), ("o", "addr=10.0.0.1,rw"), ("device", ":/export")]).unwrap();
        assert!(nfs.is_remote());
        assert_eq!(nfs.options().collect::<Vec<_>>(), [("addr", Some("10.0.0.1")), ("rw", None)]);
        let bind = options(&[("type", "none"), ("o", "bind"), ("device", "/srv/media")]).unwrap();
        assert!(!bind.is_remote());
        let cifs = [("type", "cifs"), ("o", "username=me,vers=3.0"), ("device", "//nas/media"), ("secret", "nas")];
        assert_eq!(options(&cifs).unwrap().secret.unwrap().as_str(), "nas");
        assert_eq!(options(&[]).unwrap(), VolumeOptions::default());
        options(&[("type", "tmpfs"), ("o", "size=16m")]).unwrap();
        let text = serde_json::to_string(&nfs).unwrap();
        assert_eq!(text, r#"{"type":"nfs","device":":/export","o":"addr=10.0.0.1,rw"}"#);
    }

    #[test]
    fn what_cannot_be_mounted_is_told_with_its_field() {
        let check = |pairs: &[(&str, &str)], field: &str| {
            let refused = options(pairs).unwrap_err();
            assert_eq!(refused.field, field, "{pairs:?}: {refused}");
            assert!(!refused.hint.is_empty());
        };
        check(&[("type", "ext4")], "type");
        check(&[("colour", "red")], "");
        check(&[("device", "/srv")], "type");
        check(&[("type", "none"), ("device", "/srv")], "device");
        check(&[("type", "none"), ("o", "bind"), ("device", "srv")], "device");
        check(&[("type", "none"), ("o", "bind"), ("device", "/srv/../etc")], "device");
        check(&[("type", "nfs"), ("device", "/export")], "device");
        check(&[("type", "cifs"), ("device", "nas/media")], "device");
        check(&[("type", "cifs"), ("device", "///media")], "device");
        check(&[("type", "nfs"), ("device", "a:/\n")], "device");
        check(&[("type", "nfs"), ("device", &format!("a:/{}", "x".repeat(5000)))], "device");
        check(&[("type", "nfs"), ("device", "a:/x"), ("secret", "nas")], "secret");
        check(&[("type", "cifs"), ("device", "//a/b"), ("secret", "N A S")], "secret");
    }

    #[test]
    fn a_password_is_refused_and_never_repeated() {
        for o in [
            "password=hunter2",
            "username=me,pass=hunter2",
            "PASSWORD2=hunter2",
            "passwd=hunter2",
            "username=me%hunter2",
            "user=home/me%hunter2",
            "credentials=/hunter2",
            "rw, password=hunter2",
        ] {
            let refused = options(&[("type", "cifs"), ("device", "//nas/media"), ("o", o)]).unwrap_err();
            let text = format!("{refused:?}");
            assert!(refused.field == "o" && refused.hint.contains("toft secret create"), "{o}: {text}");
            assert!(!text.contains("hunter2"), "{text}");
        }
    }
}
