//! The configuration file as written. Unknown keys are faults.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::{access::AccessSection, backup::BackupSection, mesh::MeshSection, registries::RegistryConfig};

/// Faults found in the configuration, all of them.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the configuration has {} fault(s)", .0.len())]
pub struct ConfigError(
    /// One sentence a fault, with file and key.
    pub Vec<String>,
);

/// One file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct File {
    pub(super) node: NodeSection,
    pub(super) api: ApiSection,
    pub(super) access: AccessSection,
    pub(super) runtime: RuntimeSection,
    pub(super) images: ImagesSection,
    pub(super) logs: LogsSection,
    pub(super) network: NetworkSection,
    pub(super) mesh: MeshSection,
    pub(super) cluster: ClusterSection,
    pub(super) backup: BackupSection,
    pub(super) volumes: VolumesSection,
    pub(super) gpu: GpuSection,
    pub(super) registries: BTreeMap<String, RegistryConfig>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct NodeSection {
    pub(super) name: Option<String>,
    pub(super) labels: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ApiSection {
    pub(super) bind: Option<String>,
    pub(super) json_logs: Option<bool>,
    pub(super) plain_http: Option<bool>,
    pub(super) names: Vec<String>,
    pub(super) certificate: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
    pub(super) max_connections: Option<usize>,
    pub(super) max_connections_per_address: Option<usize>,
    pub(super) hsts: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RuntimeSection {
    pub(super) containerd_address: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ImagesSection {
    pub(super) gc: Option<bool>,
    pub(super) gc_high_percent: Option<u8>,
    pub(super) gc_low_percent: Option<u8>,
    pub(super) gc_min_age: Option<String>,
    pub(super) http_proxy: Option<String>,
    pub(super) https_proxy: Option<String>,
    pub(super) no_proxy: Option<Vec<String>>,
    pub(super) proxy_username: Option<String>,
    pub(super) proxy_password_file: Option<PathBuf>,
    pub(super) from_nodes: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct LogsSection {
    pub(super) max_bytes: Option<String>,
    pub(super) max_files: Option<u32>,
    pub(super) gone_max_age: Option<String>,
    pub(super) gone_max_bytes: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct NetworkSection {
    pub(super) range: Option<String>,
    pub(super) ipv6: Option<bool>,
    pub(super) resolv_conf: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct VolumesSection {
    pub(super) bind_roots: Vec<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct GpuSection {
    pub(super) nvml: Option<PathBuf>,
    pub(super) cdi_dirs: Option<Vec<PathBuf>>,
    pub(super) mps_pipe_dir: Option<PathBuf>,
    pub(super) mps_log_dir: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ClusterSection {
    pub(super) bind: Option<String>,
    pub(super) address: Option<String>,
    pub(super) role: Option<String>,
}

impl File {
    /// Reads `path` and the `.toml` files of `directory` in the order of their names; later ones win key by key. What is
    /// not there is empty.
    pub(super) fn read(path: &Path, directory: Option<&Path>) -> Result<Self, ConfigError> {
        let mut paths = vec![path.to_owned()];
        if let Some(entries) = directory.and_then(|directory| std::fs::read_dir(directory).ok()) {
            let mut extra: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
            extra.retain(|path| path.extension().is_some_and(|ending| ending == "toml"));
            extra.sort();
            paths.extend(extra);
        }
        let mut faults = Vec::new();
        let mut merged = toml::Table::new();
        for path in paths {
            let text = match std::fs::read_to_string(&path) {
                Ok(text) => text,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => {
                    faults.push(format!("{}: cannot be read: {error}", path.display()));
                    continue;
                }
            };
            // Each file is checked alone, so that a fault is told with the file and line it stands in.
            match toml::from_str::<File>(&text).and_then(|_| toml::from_str::<toml::Table>(&text)) {
                Ok(table) => merge(&mut merged, table),
                Err(error) => faults.push(format!("{}: {}", path.display(), error.to_string().trim_end())),
            }
        }
        if !faults.is_empty() {
            return Err(ConfigError(faults));
        }
        merged.try_into().map_err(|error: toml::de::Error| ConfigError(vec![error.to_string()]))
    }
}

fn merge(into: &mut toml::Table, from: toml::Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(toml::Value::Table(old)), toml::Value::Table(new)) => merge(old, new),
            (_, value) => drop(into.insert(key, value)),
        }
    }
}
