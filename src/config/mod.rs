//! Configuration: as written in files, environment and flags ([`file`]), and resolved ([`Config`]).
//!
//! A flag beats the environment, the environment a file, a file the default. All faults are told at once, each with the
//! key it is about.

mod access;
mod backup;
mod file;
mod mesh;
mod oidc;
mod proxy;
mod registries;
mod resolve;

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use toft_model::{name::Name, node::Subnet};

pub use access::{AccessConfig, TlsConfig};
pub use backup::{BackupConfig, BackupKey};
pub use file::ConfigError;
pub use mesh::MeshConfig;
pub use oidc::OidcConfig;
pub use proxy::{ProxyAddress, ProxyConfig, ProxyVariables};
pub use registries::RegistryConfig;
pub use resolve::{DEFAULT_DATA_DIR, DEFAULT_SOCKET, Flags};

/// Everything the daemon is built from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where everything that must outlive the daemon lies.
    pub paths: Paths,
    /// This node.
    pub node: NodeConfig,
    /// The doors.
    pub api: ApiConfig,
    /// Who comes in through them.
    pub access: AccessConfig,
    /// The container runtime.
    pub runtime: RuntimeConfig,
    /// When unused images make room on the disk; absent: never.
    pub images: Option<ImagesConfig>,
    /// Whether other nodes are asked for images before registries are.
    pub images_from_nodes: bool,
    /// How pulls of images leave this network.
    pub proxy: ProxyConfig,
    /// Logs of containers.
    pub logs: LogsConfig,
    /// The network of containers.
    pub network: NetworkConfig,
    /// The encrypted network between nodes.
    pub mesh: MeshConfig,
    /// The other members of the cluster.
    pub cluster: ClusterConfig,
    /// Backups of this node.
    pub backup: BackupConfig,
    /// What containers may see of the node's own folders.
    pub volumes: VolumesConfig,
    /// GPUs of this node.
    pub gpu: GpuConfig,
    /// Registries that are spoken to in a way of their own, by `HOST[:PORT]`.
    pub registries: BTreeMap<String, RegistryConfig>,
}

/// Where things lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// State, ledger, logs; root only.
    pub data: PathBuf,
    /// Socket, pid file.
    pub run: PathBuf,
    /// Whether this is an appliance beside the machine's own, with everything under its data directory.
    pub private: bool,
}

/// This node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeConfig {
    /// Its name; by default the nearest valid name to the host's.
    pub name: Name,
    /// Whether somebody chose that name.
    pub name_chosen: bool,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

/// The doors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiConfig {
    /// Address of the one TCP port.
    pub bind: SocketAddr,
    /// Whether somebody chose that address; otherwise a private appliance takes a free port when it is taken.
    pub bind_chosen: bool,
    /// Whether the dashboard shows what it is made of; only made-up clusters do.
    pub styleguide: bool,
    /// Whether log lines are JSON.
    pub json_logs: bool,
    /// How TLS is spoken there; absent: not at all, on loopback.
    pub tls: Option<TlsConfig>,
    /// Most connections there, and most on the socket.
    pub max_connections: usize,
    /// Most connections there from one address, or one IPv6 /64.
    pub max_connections_per_address: usize,
}

/// The other members of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterConfig {
    /// Where this node listens for them; absent: it lets nobody join.
    pub bind: Option<SocketAddr>,
    /// Where they reach it, `HOST:PORT`; by default where it listens.
    pub address: Option<String>,
    /// What this node does.
    pub role: NodeRole,
    /// Whether somebody said so.
    pub role_chosen: bool,
    /// Which cluster to join, if this node belongs to none.
    pub join: Option<JoinConfig>,
}

/// What a node does for the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeRole {
    /// Runs workloads.
    Server,
    /// Runs nothing; it votes, so that two servers have a majority.
    Witness,
}

/// Which cluster to join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinConfig {
    /// A member of it, `HOST:PORT`.
    pub address: String,
    /// File that holds the token.
    pub token_file: PathBuf,
}

/// The container runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeConfig {
    /// Socket of the containerd to use; absent: a running one, else a private one.
    pub containerd: Option<PathBuf>,
}

/// When unused images make room on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImagesConfig {
    /// From that many percent of the disk in use on, the oldest go.
    pub high_percent: u8,
    /// Until fewer percent than that are in use.
    pub low_percent: u8,
    /// What came more recently than that stays.
    pub min_age: Duration,
}

/// Logs of containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogsConfig {
    /// Bytes after which a file is rotated.
    pub max_bytes: u64,
    /// Files kept an instance.
    pub max_files: u32,
    /// How long logs are kept of instances that are gone.
    pub gone_max_age: Duration,
    /// Bytes of those logs together.
    pub gone_max_bytes: u64,
}

/// What containers may see of the node's own folders.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VolumesConfig {
    /// Folders below which everything can be mounted into containers; none, unless somebody says so.
    pub bind_roots: Vec<PathBuf>,
}

/// GPUs of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuConfig {
    /// NVIDIA's library for looking at its cards: a path, or a name that the loader finds.
    pub nvml: PathBuf,
    /// Folders with specifications of devices for containers (CDI); those in later ones win.
    pub cdi_dirs: Vec<PathBuf>,
    /// Where NVIDIA's service for sharing cards (MPS) has its pipes.
    pub mps_pipe_dir: PathBuf,
    /// Where it has its logs.
    pub mps_log_dir: PathBuf,
}

/// The network of containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkConfig {
    /// Addresses of the cluster; each node takes a /24 of it.
    pub range: Subnet,
    /// Whether containers have IPv6 addresses too.
    pub ipv6: bool,
    /// The file that names the servers asked for names that are not ours.
    pub resolv_conf: PathBuf,
}
