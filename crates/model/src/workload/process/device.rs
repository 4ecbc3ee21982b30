//! Devices of the node that a container may use: `host[:inside][:rwm]`, or `vendor.com/class=name` of the Container Device
//! Interface (CDI).

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{shown, validate_path};
use crate::{gpu::CdiName, invalid::Invalid};

/// A device, or every device in a folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeviceMapping {
    /// Path on the node, below `/dev`; links are followed. Or `vendor.com/class=name`, a device that a CDI specification of
    /// the node describes; one of a GPU (`nvidia.com/gpu=0`) is the same as asking for it in `gpus`.
    #[schema(example = "/dev/dri")]
    pub host: String,
    /// Path inside; the same when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inside: Option<String>,
    /// What it may do: `r`ead, `w`rite, `m`ake the node; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<String>,
}

impl DeviceMapping {
    /// Path inside.
    pub fn inside(&self) -> &str {
        self.inside.as_deref().unwrap_or(&self.host)
    }

    /// What it may do.
    pub fn access(&self) -> &str {
        self.access.as_deref().unwrap_or("rwm")
    }

    /// What CDI calls it, when it is named so.
    pub fn cdi(&self) -> Option<CdiName> {
        CdiName::is_meant(&self.host).then(|| self.host.parse().ok())?
    }

    pub(super) fn validate_all(devices: &[Self]) -> Result<(), Invalid> {
        for (i, device) in devices.iter().enumerate() {
            device.validate().map_err(|e| e.at(&format!("devices[{i}]")))?;
        }
        Ok(())
    }

    fn validate(&self) -> Result<(), Invalid> {
        if CdiName::is_meant(&self.host) {
            self.host.parse::<CdiName>().map_err(|e| e.at("host"))?;
            let besides = [("inside", &self.inside), ("access", &self.access)];
            let Some((field, _)) = besides.iter().find(|(_, said)| said.is_some()) else { return Ok(()) };
            let message = format!("`{}` is given as its specification says", self.host);
            return Err(Invalid::value(message, format!("leave out `{field}`")).at(field));
        }
        for (field, path) in [("host", &self.host), ("inside", self.inside.as_ref().unwrap_or(&self.host))] {
            validate_path(path).map_err(|e| e.at(field))?;
            if path.strip_prefix("/dev/").is_none_or(|rest| rest.trim_matches('/').is_empty()) {
                return Err(Invalid::value(
                    format!("`{}` is not below `/dev`", shown(path)),
                    "name a device such as `/dev/dri`",
                )
                .at(field));
            }
        }
        let access = self.access();
        if !is_access(access) {
            return Err(Invalid::value(
                format!("`{}` is no access", shown(access)),
                "use some of `r`, `w` and `m`, each once",
            )
            .at("access"));
        }
        Ok(())
    }
}

fn is_access(text: &str) -> bool {
    let once = |letter: char| text.matches(letter).count() <= 1;
    !text.is_empty() && text.chars().all(|letter| "rwm".contains(letter)) && "rwm".chars().all(once)
}

impl FromStr for DeviceMapping {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        if CdiName::is_meant(text) {
            let device = Self { host: text.to_owned(), inside: None, access: None };
            return device.validate().map(|()| device);
        }
        let parts: Vec<&str> = text.split(':').collect();
        let device = |host: &str, inside: Option<&str>, access: Option<&str>| Self {
            host: host.to_owned(),
            inside: inside.filter(|inside| *inside != host).map(str::to_owned),
            access: access.map(str::to_owned),
        };
        let device = match parts.as_slice() {
            [host] => device(host, None, None),
            [host, access] if is_access(access) => device(host, None, Some(access)),
            [host, inside] => device(host, Some(inside), None),
            [host, inside, access] => device(host, Some(inside), Some(access)),
            _ => {
                return Err(Invalid::value(
                    format!("`{}` is no device", shown(text)),
                    "write `host[:inside][:rwm]`, such as `/dev/dri` or `/dev/ttyUSB0:/dev/modem:rw`, or a CDI name",
                ));
            }
        };
        device.validate().map(|()| device)
    }
}
