//! From what was written to what is meant.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use toft_model::{
    invalid::Invalid,
    name::Name,
    node::Subnet,
    units::{parse_bytes, parse_span_ms},
};

use super::{
    ApiConfig, ClusterConfig, Config, ConfigError, GpuConfig, ImagesConfig, JoinConfig, LogsConfig, NetworkConfig,
    NodeConfig, NodeRole, Paths, ProxyConfig, ProxyVariables, RuntimeConfig, TlsConfig, VolumesConfig, access,
    file::File, registries,
};

/// Data directory of the machine's own appliance.
pub const DEFAULT_DATA_DIR: &str = "/var/lib/toft";
/// Socket of the machine's own appliance.
pub const DEFAULT_SOCKET: &str = "/run/toft/toft.sock";
const DEFAULT_RUN_DIR: &str = "/run/toft";
const DEFAULT_RESOLV_CONF: &str = "/etc/resolv.conf";
/// The name without a number is there only where programs are built.
const DEFAULT_NVML: &str = "libnvidia-ml.so.1";
/// NVIDIA's own.
const DEFAULT_MPS_PIPE_DIR: &str = "/tmp/nvidia-mps";
const DEFAULT_MPS_LOG_DIR: &str = "/var/log/nvidia-mps";
/// Those of the CDI specification.
const DEFAULT_CDI_DIRS: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];
const DEFAULT_BIND: &str = "127.0.0.1:7443";

/// What the command line and the environment said.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    /// Data directory.
    pub data_dir: Option<PathBuf>,
    /// Configuration file instead of the usual one.
    pub config: Option<PathBuf>,
    /// Address of the one TCP port.
    pub bind: Option<String>,
    /// Whether it is answered there without TLS.
    pub plain_http: Option<bool>,
    /// Name of this node.
    pub name: Option<String>,
    /// Address for the other members.
    pub cluster_bind: Option<String>,
    /// What this node does.
    pub role: Option<String>,
    /// A member of the cluster to join.
    pub join: Option<String>,
    /// File that holds the token for that.
    pub token_file: Option<PathBuf>,
    /// The environment's proxies.
    pub proxies: ProxyVariables,
}

impl Config {
    /// Resolves flags and files. `host_name` names the node when nobody did.
    pub fn resolve(flags: Flags, host_name: &str) -> Result<Self, ConfigError> {
        let mut faults = Vec::new();
        let data = flags.data_dir.unwrap_or_else(|| DEFAULT_DATA_DIR.into());
        let private = data != Path::new(DEFAULT_DATA_DIR);
        if private && !data.is_absolute() {
            faults.push(format!("--data-dir: `{}` is no absolute path", data.display()));
        }
        let file = match &flags.config {
            Some(path) if !path.exists() => {
                Err(ConfigError(vec![format!("--config: `{}` is not there", path.display())]))
            }
            Some(path) => File::read(path, None),
            None if private => File::read(&data.join("toft.toml"), None),
            None => File::read(Path::new("/etc/toft/toft.toml"), Some(Path::new("/etc/toft/toft.d"))),
        };
        let file = file.unwrap_or_else(|error| {
            faults.extend(error.0);
            File::default()
        });
        let mut note =
            |key: &str, invalid: Invalid| faults.push(format!("{key}: {} ({})", invalid.message, invalid.hint));

        let name = flags.name.or(file.node.name);
        let name_chosen = name.is_some();
        let name = match name {
            None => Name::nearest(host_name.split('.').next().unwrap_or_default(), "node"),
            Some(name) => name.parse().unwrap_or_else(|e| {
                note("node.name", e);
                Name::nearest("node", "node")
            }),
        };
        let bind_text = flags.bind.or(file.api.bind.clone());
        let bind_chosen = bind_text.is_some();
        let bind = bind_text.unwrap_or_else(|| DEFAULT_BIND.into());
        let bind = bind_address(&bind).unwrap_or_else(|e| {
            note("api.bind", e);
            SocketAddr::from(([127, 0, 0, 1], 7443))
        });
        let plain_http = flags.plain_http.or(file.api.plain_http).unwrap_or(false);
        let tls = TlsConfig::resolve(&file.api, (bind, plain_http), &mut note);
        let (max_connections, max_connections_per_address) = access::connections(&file.api, &mut note);
        let listens = match flags.cluster_bind.or(file.cluster.bind).map(|text| member_address(&text)) {
            None => None,
            Some(Ok(address)) => Some(address),
            Some(Err(e)) => {
                note("cluster.bind", e);
                None
            }
        };
        if file.cluster.address.is_some() && listens.is_none() {
            note("cluster.address", Invalid::value("nobody listens there", "set cluster.bind too"));
        }
        let role = flags.role.or(file.cluster.role);
        let role_chosen = role.is_some();
        let role = match role.as_deref() {
            None | Some("server") => NodeRole::Server,
            Some("witness") => NodeRole::Witness,
            Some(other) => {
                note("cluster.role", Invalid::value(format!("`{other}` is no role"), "use server or witness"));
                NodeRole::Server
            }
        };
        let join = match (flags.join, flags.token_file) {
            (None, None) => None,
            (Some(address), Some(token_file)) => Some(JoinConfig { address, token_file }),
            _ => {
                note("--join", Invalid::value("an address and a token are needed", "give --join and --token-file"));
                None
            }
        };
        let cluster = ClusterConfig { bind: listens, address: file.cluster.address, role, role_chosen, join };
        let max_bytes = match file.logs.max_bytes.as_deref().map(parse_bytes) {
            None => 10 << 20,
            Some(Ok(bytes)) if bytes >= 64 << 10 => bytes,
            Some(Ok(_)) => {
                note("logs.max_bytes", Invalid::value("the size is too small", "use at least 64KiB"));
                0
            }
            Some(Err(e)) => {
                note("logs.max_bytes", e);
                0
            }
        };
        let max_files = file.logs.max_files.unwrap_or(3);
        if !(1..=100).contains(&max_files) {
            note("logs.max_files", Invalid::value(format!("{max_files} is out of range"), "use 1 to 100"));
        }
        let [high_percent, low_percent] =
            [file.images.gc_high_percent.unwrap_or(85), file.images.gc_low_percent.unwrap_or(75)];
        if high_percent > 100 || low_percent > high_percent {
            let message = format!("{low_percent} and {high_percent} are no bounds");
            note("images.gc_low_percent", Invalid::value(message, "use at most gc_high_percent, and that at most 100"));
        }
        let min_age = parse_span_ms(file.images.gc_min_age.as_deref().unwrap_or("10m")).unwrap_or_else(|e| {
            note("images.gc_min_age", e);
            0
        });
        let images = ImagesConfig { high_percent, low_percent, min_age: Duration::from_millis(min_age) };
        let proxy = ProxyConfig::resolve(&file.images, flags.proxies, &mut note);
        let gone_max_age = parse_span_ms(file.logs.gone_max_age.as_deref().unwrap_or("7d")).unwrap_or_else(|e| {
            note("logs.gone_max_age", e);
            0
        });
        let gone_max_bytes = parse_bytes(file.logs.gone_max_bytes.as_deref().unwrap_or("1GiB")).unwrap_or_else(|e| {
            note("logs.gone_max_bytes", e);
            0
        });
        let gone_max_age = Duration::from_millis(gone_max_age);
        let range = match file.network.range.as_deref().unwrap_or("10.210.0.0/16").parse::<Subnet>() {
            Ok(range) if range.prefix <= 24 => Some(range),
            Ok(_) => {
                note(
                    "network.range",
                    Invalid::value("the range is smaller than a /24", "use a prefix length up to 24"),
                );
                None
            }
            Err(e) => {
                note("network.range", e);
                None
            }
        };
        let resolv_conf = file.network.resolv_conf.unwrap_or_else(|| DEFAULT_RESOLV_CONF.into());
        if !resolv_conf.is_absolute() {
            note("network.resolv_conf", Invalid::value("it is no absolute path", "write it like `/etc/resolv.conf`"));
        }
        for root in &file.volumes.bind_roots {
            if !root.is_absolute() || root.components().any(|part| part == std::path::Component::ParentDir) {
                let message = format!("`{}` is no absolute path", root.display());
                note("volumes.bind_roots", Invalid::value(message, "write it like `/srv`"));
            }
        }
        let gpu = GpuConfig {
            nvml: file.gpu.nvml.unwrap_or_else(|| DEFAULT_NVML.into()),
            cdi_dirs: file.gpu.cdi_dirs.unwrap_or_else(|| DEFAULT_CDI_DIRS.map(PathBuf::from).to_vec()),
            mps_pipe_dir: file.gpu.mps_pipe_dir.unwrap_or_else(|| DEFAULT_MPS_PIPE_DIR.into()),
            mps_log_dir: file.gpu.mps_log_dir.unwrap_or_else(|| DEFAULT_MPS_LOG_DIR.into()),
        };
        let mps = [("gpu.mps_pipe_dir", &gpu.mps_pipe_dir), ("gpu.mps_log_dir", &gpu.mps_log_dir)];
        let folders = gpu.cdi_dirs.iter().map(|dir| ("gpu.cdi_dirs", dir)).chain(mps);
        for (field, dir) in folders.filter(|(_, dir)| !dir.is_absolute()) {
            let message = format!("`{}` is no absolute path", dir.display());
            note(field, Invalid::value(message, "write it like `/etc/cdi`"));
        }
        let access = file.access.resolve(&mut note);
        let backup = file.backup.resolve(&data, &mut note);
        let mesh = file.mesh.resolve(&mut note);
        registries::check(&file.registries, &mut note);
        let (true, Some(range)) = (faults.is_empty(), range) else { return Err(ConfigError(faults)) };
        let run = if private { data.clone() } else { DEFAULT_RUN_DIR.into() };
        Ok(Self {
            paths: Paths { data, run, private },
            node: NodeConfig { name, name_chosen, labels: file.node.labels },
            api: ApiConfig {
                styleguide: false,
                bind,
                bind_chosen,
                json_logs: file.api.json_logs.unwrap_or(false),
                tls,
                max_connections,
                max_connections_per_address,
            },
            access,
            runtime: RuntimeConfig { containerd: file.runtime.containerd_address },
            images: file.images.gc.unwrap_or(true).then_some(images),
            images_from_nodes: file.images.from_nodes.unwrap_or(true),
            proxy,
            logs: LogsConfig { max_bytes, max_files, gone_max_age, gone_max_bytes },
            network: NetworkConfig { range, ipv6: file.network.ipv6.unwrap_or(false), resolv_conf },
            mesh,
            cluster,
            backup,
            volumes: VolumesConfig { bind_roots: file.volumes.bind_roots },
            gpu,
            registries: file.registries,
        })
    }
}

fn member_address(text: &str) -> Result<SocketAddr, Invalid> {
    let address: SocketAddr = text.parse().map_err(|_| {
        Invalid::value(format!("`{text}` is no address"), "write it like `192.168.1.10:7444` or `[fd00::1]:7444`")
    })?;
    if address.ip().is_unspecified() {
        return Err(Invalid::value(
            format!("`{text}` is every address of this machine"),
            "name the one address that the other members reach",
        ));
    }
    Ok(address)
}

fn bind_address(text: &str) -> Result<SocketAddr, Invalid> {
    text.parse().map_err(|_| {
        Invalid::value(
            format!("`{text}` is no address"),
            "write it like `127.0.0.1:7443`, `0.0.0.0:7443` or `[::]:7443`",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(text: &str) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("toft.toml"), text).unwrap();
        Config::resolve(Flags { data_dir: Some(dir.path().to_owned()), ..Flags::default() }, "My-Box.lan")
    }

    #[test]
    fn an_empty_file_gives_the_defaults() {
        let config = resolve("").unwrap();
        assert_eq!(config.node.name.as_str(), "my-box");
        assert_eq!(config.api.bind.to_string(), "127.0.0.1:7443");
        assert!(config.paths.private);
        assert_eq!(config.paths.run, config.paths.data);
    }

    #[test]
    fn every_fault_is_told_with_its_key() {
        let text = "[node]\nname = 'A B'\n[access]\nsession_idle = 'long'\nsession_max = '400d'\n[api]\nbind = '0.0.0.0:x'\nmax_connections = 3\nmax_connections_per_address = 0\n[logs]\nmax_bytes = '1'\nmax_files = 0\ngone_max_age = 'long'\ngone_max_bytes = 'much'\n[images]\ngc_high_percent = 80\ngc_low_percent = 90\ngc_min_age = 'long'\n[volumes]\nbind_roots = ['srv']\n[network]\nrange = 'x'\nresolv_conf = 'x'\n";
        let faults = resolve(text).unwrap_err().0;
        for key in [
            "node.name",
            "api.bind",
            "api.max_connections",
            "api.max_connections_per_address",
            "access.session_idle",
            "access.session_max",
            "logs.max_bytes",
            "logs.max_files",
            "logs.gone_max_age",
            "logs.gone_max_bytes",
            "network.range",
            "network.resolv_conf",
            "images.gc_low_percent",
            "images.gc_min_age",
            "volumes.bind_roots",
        ] {
            assert!(faults.iter().any(|fault| fault.starts_with(key)), "{key}: {faults:?}");
        }
    }

    #[test]
    fn a_provider_is_told_with_what_its_groups_give() {
        let text = "[access.oidc]\nissuer = 'https://id.lan/realms/home'\nclient_id = 'toft'\n";
        let config = resolve(&format!("{text}[access.oidc.roles]\nadmins = 'admin'\n'*' = 'viewer'\n")).unwrap();
        let oidc = config.access.oidc.unwrap();
        assert_eq!((oidc.name_claim.as_str(), oidc.groups_claim.as_str()), ("preferred_username", "groups"));
        assert_eq!(oidc.roles.len(), 2);
        let hostile =
            "issuer = 'id.lan?x'\nclient_id = ''\nscopes = ['a b']\nclient_secret_file = 'x'\nroles = { a = 'king' }\n";
        let faults = resolve(&format!("[access.oidc]\n{hostile}")).unwrap_err().0;
        for key in ["issuer", "client_id", "scopes", "client_secret_file", "roles"] {
            let key = format!("access.oidc.{key}: ");
            assert!(faults.iter().any(|fault| fault.starts_with(&key)), "{key}: {faults:?}");
        }
        for bad in [
            "[access.oidc]\nissuer = 'https://id.lan'\n",
            "[access.oidc]\nclient_secret = 'x'\n",
            "[api]\nhsts = '900d'\n",
            "[api]\nhsts = 'long'\n",
        ] {
            assert!(resolve(bad).is_err(), "{bad}");
        }
        assert_eq!(resolve("[api]\nhsts = '180d'\n").unwrap().api.tls.unwrap().hsts.unwrap().as_secs(), 15_552_000);
    }

    #[test]
    fn the_packaged_example_shows_the_defaults() {
        let example = include_str!("../../packaging/toft.toml");
        let shown: Vec<_> = example
            .lines()
            .map(|line| line.strip_prefix("# ").filter(|rest| rest.contains(" = ")).unwrap_or(line))
            .collect();
        let shown = resolve(&shown.join("\n")).unwrap();
        let defaults = resolve("").unwrap();
        let connections = |config: &Config| (config.api.max_connections, config.api.max_connections_per_address);
        assert_eq!(connections(&shown), connections(&defaults));
        let few = resolve("[api]\nmax_connections = 100\n").unwrap();
        assert_eq!(connections(&few), (100, 100), "one address has no more than all");
        assert_eq!((shown.logs, shown.network), (defaults.logs, defaults.network));
        assert_eq!((shown.mesh.enabled, shown.mesh.listen_port), (defaults.mesh.enabled, defaults.mesh.listen_port));
        assert!(shown.mesh.peers.len() == 1 && defaults.mesh.peers.is_empty());
        assert_eq!((shown.api.bind, shown.api.json_logs), (defaults.api.bind, defaults.api.json_logs));
        assert_eq!(shown.access, defaults.access);
        assert_eq!(shown.backup.keep, defaults.backup.keep);
        assert_eq!(shown.backup.every.map(|every| every.as_secs()), Some(24 * 60 * 60));
        assert!(!shown.volumes.bind_roots.is_empty() && defaults.volumes.bind_roots.is_empty());
        assert!(!shown.node.labels.is_empty() && shown.runtime.containerd.is_some());
    }

    #[test]
    fn registries_are_named_like_in_references() {
        let config = resolve("[registries.'nas:5000']\nplain_http = true\nmirrors = ['docker.io']\n").unwrap();
        assert_eq!(config.registries["nas:5000"].plain_http, Some(true));
        for (text, words) in [
            ("[registries.'https://nas']", "`https://nas` is no name"),
            ("[registries.nas]", "`nas` is no name"),
            ("[registries.'nas.lan']\nmirrors = ['a b']", "`a b` is no name"),
            ("[registries.'nas.lan']\nca_file = 'ca.pem'", "no absolute path"),
            ("[registries.'nas.lan']\ninsecure = true", "insecure"),
            ("[registries.'nas.lan']\nusername = 'me'", "half a login"),
            ("[registries.'nas.lan']\nusername = 'a:b'\npassword_file = '/x'", "no user name"),
        ] {
            let faults = resolve(text).unwrap_err().0;
            assert!(faults.iter().any(|fault| fault.contains(words)), "{words}: {faults:?}");
        }
    }

    #[test]
    fn unknown_keys_are_told_with_file_and_line() {
        let fault = &resolve("[node]\ncolour = 1\n").unwrap_err().0[0];
        assert!(fault.contains("toft.toml") && fault.contains("colour") && fault.contains("line 2"), "{fault}");
    }
}
