//! The specification of a workload: everything the user writes, nothing that the cluster decides.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{
    HealthCheck, Mount, NetworkName, OnNodeLoss, PlacementSpec, PortSpec, ProcessSpec, RestartPolicy, UpdateSpec,
    is_default,
};
use crate::{gpu::GpuRequest, image::ImageRef, invalid::Invalid, name::Name, pull::PullPolicy, secret::SecretMount};

/// Whether a workload is kept running or runs to completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum WorkloadKind {
    /// Kept running.
    #[default]
    Service,
    /// Runs to completion.
    Job,
}

/// Which network the containers see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum NetworkMode {
    /// An address of its own on the node's bridge.
    #[default]
    Bridge,
    /// The host's own network.
    Host,
    /// Loopback only.
    None,
}

/// Limits an instance runs under; absent means unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Resources {
    /// CPU time in thousandths of a core, 1 to 1 024 000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_millis: Option<u32>,
    /// Memory in bytes, at least 4 MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// CPU time in thousandths of a core that it gets when all want more than there is, and that a node must have left;
    /// 1 to 1 024 000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_reserved_millis: Option<u32>,
    /// Memory in bytes that is taken from it last, and that a node must have left; at least 4 MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_reserved_bytes: Option<u64>,
    /// Most processes and threads, 0 for no limit; 4096 when absent, so that no container can take all that the node has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids_limit: Option<u32>,
}

impl Resources {
    /// Most processes and threads when nothing else is said.
    pub const USUAL_PIDS: u32 = 4_096;

    fn validate(&self) -> Result<(), Invalid> {
        const LEAST_MEMORY: u64 = 4 << 20;
        for (field, cpu) in [("cpu_millis", self.cpu_millis), ("cpu_reserved_millis", self.cpu_reserved_millis)] {
            if let Some(cpu) = cpu.filter(|cpu| !(1..=1_024_000).contains(cpu)) {
                return Err(Invalid::value(format!("{cpu} is out of range"), "use 1 to 1024000").at(field));
            }
        }
        for (field, memory) in
            [("memory_bytes", self.memory_bytes), ("memory_reserved_bytes", self.memory_reserved_bytes)]
        {
            if let Some(memory) = memory.filter(|memory| !(LEAST_MEMORY..=1 << 50).contains(memory)) {
                return Err(
                    Invalid::value(format!("{memory} is out of range"), "use at least 4194304 (4 MiB)").at(field)
                );
            }
        }
        let more = |reserved: Option<u64>, limit: Option<u64>| limit.is_some_and(|limit| reserved > Some(limit));
        let cpu = more(self.cpu_reserved_millis.map(u64::from), self.cpu_millis.map(u64::from));
        if cpu || more(self.memory_reserved_bytes, self.memory_bytes) {
            return Err(Invalid::value("more is reserved than the limit allows", "raise the limit, or reserve less")
                .at(if cpu { "cpu_reserved_millis" } else { "memory_reserved_bytes" }));
        }
        match self.pids_limit {
            Some(pids) if pids > 4_194_304 => {
                Err(Invalid::value(format!("{pids} is out of range"), "use 0 (no limit) to 4194304").at("pids_limit"))
            }
            _ => Ok(()),
        }
    }
}

/// What a user asks to run. Unknown fields are refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WorkloadSpec {
    /// Unique in the cluster; a DNS label.
    #[schema(value_type = String, example = "web")]
    pub name: Name,
    /// Service (default) or job.
    #[serde(default)]
    pub kind: WorkloadKind,
    /// The image to run.
    #[schema(value_type = String, example = "toft/demo")]
    pub image: ImageRef,
    /// When the image is asked of its registry.
    #[serde(default, skip_serializing_if = "PullPolicy::is_default")]
    pub pull_policy: PullPolicy,
    /// Replaces the image's entrypoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// Replaces the image's command when not empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// Environment, added to the image's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Ports to publish on the host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortSpec>,
    /// Secrets the containers see as files in `/run/secrets`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SecretMount>,
    /// Volumes, and files and folders of the node, that the containers see.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    /// Copies to run, 0 to 1000.
    #[serde(default = "one")]
    pub replicas: u32,
    /// What happens when the process ends: `always`, `on-failure`, `on-failure:N` or `no`. Default: `always` for a
    /// service, `no` for a job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "on-failure:3")]
    pub restart: Option<RestartPolicy>,
    /// Limits.
    #[serde(default)]
    pub resources: Resources,
    /// Which network the containers see.
    #[serde(default)]
    pub network: NetworkMode,
    /// The workloads it belongs to: they have a network of their own, and short names in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "shop")]
    pub deployment: Option<Name>,
    /// Further networks its instances are in, at most 16; those that share one reach each other. Without any, and without
    /// a deployment, they are in the network `default`.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub networks: BTreeSet<Name>,
    /// Only this node may run it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub node: Option<Name>,
    /// Free labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Milliseconds between the stop signal and the kill, 0 to 600 000.
    #[serde(default = "ten_seconds")]
    pub stop_grace_ms: u32,
    /// How the process runs: as whom, with which rights.
    #[serde(default, skip_serializing_if = "is_default")]
    pub process: ProcessSpec,
    /// How it is found out whether a container that runs also works.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthCheck>,
    /// GPUs of each instance: a count, a vendor, a model, a range of memory or a share of a card's memory, such as `1`,
    /// `nvidia:1`, `rtx4090:2`, `24GB..:1`, `vram=8GiB` or `all`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "rtx4090:2")]
    pub gpus: Option<GpuRequest>,
    /// How instances are replaced when the specification changes.
    #[serde(default, skip_serializing_if = "is_default")]
    pub update: UpdateSpec,
    /// Where instances may be, where they should be, and what they may push aside.
    #[serde(default, skip_serializing_if = "is_default")]
    pub placement: PlacementSpec,
    /// What becomes of instances whose node is lost: `reschedule` or `wait`. Default: `wait` for what writes to a volume or a
    /// folder of its node, `reschedule` for the rest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_node_loss: Option<OnNodeLoss>,
    /// Never two of an instance at a time, not even for a moment: updates and moves stop the one before they start the other, and a
    /// node that is cut off stops its own before another starts elsewhere.
    #[serde(default, skip_serializing_if = "is_default")]
    pub exclusive: bool,
}

fn one() -> u32 {
    1
}

fn ten_seconds() -> u32 {
    10_000
}

impl WorkloadSpec {
    /// Most instances of one workload.
    pub const MAX_REPLICAS: u32 = 1_000;
    /// Most published ports.
    pub const MAX_PORTS: usize = 64;
    /// Most entries in each of `env`, `labels`, `command` and `entrypoint`.
    pub const MAX_ENTRIES: usize = 1_024;
    /// Most bytes of all texts in `env`, `labels`, `command` and `entrypoint` together; the kernel's own limit for
    /// arguments and environment starts at 128 KiB a string.
    pub const MAX_TEXT_BYTES: usize = 512 * 1024;

    /// A service with defaults for all but its name and image.
    pub fn new(name: Name, image: ImageRef) -> Self {
        Self {
            name,
            kind: WorkloadKind::Service,
            image,
            pull_policy: PullPolicy::default(),
            entrypoint: None,
            command: Vec::new(),
            env: BTreeMap::new(),
            ports: Vec::new(),
            secrets: Vec::new(),
            mounts: Vec::new(),
            replicas: 1,
            restart: None,
            resources: Resources::default(),
            network: NetworkMode::Bridge,
            deployment: None,
            networks: BTreeSet::new(),
            node: None,
            labels: BTreeMap::new(),
            stop_grace_ms: ten_seconds(),
            process: ProcessSpec::default(),
            health: None,
            gpus: None,
            update: UpdateSpec::default(),
            placement: PlacementSpec::default(),
            on_node_loss: None,
            exclusive: false,
        }
    }

    /// The policy in force: the one written, or the kind's default.
    pub fn restart_policy(&self) -> RestartPolicy {
        self.restart.unwrap_or(match self.kind {
            WorkloadKind::Service => RestartPolicy::Always,
            WorkloadKind::Job => RestartPolicy::No,
        })
    }

    /// Checks every rule that the types alone cannot hold. The first breach is told with its field.
    pub fn validate(&self) -> Result<(), Invalid> {
        if self.replicas > Self::MAX_REPLICAS {
            return Err(Invalid::value(
                format!("{} replicas are more than {}", self.replicas, Self::MAX_REPLICAS),
                "split the load over several workloads",
            )
            .at("replicas"));
        }
        if self.stop_grace_ms > 600_000 {
            return Err(
                Invalid::value("the grace period is longer than 10 minutes", "use at most 600000").at("stop_grace_ms")
            );
        }
        self.resources.validate().map_err(|e| e.at("resources"))?;
        self.placement.validate().map_err(|e| e.at("placement"))?;
        self.process.validate(self.network).map_err(|e| e.at("process"))?;
        self.health.as_ref().map_or(Ok(()), HealthCheck::validate).map_err(|e| e.at("health"))?;
        self.update.validate().map_err(|e| e.at("update"))?;
        self.validate_texts()?;
        SecretMount::validate_all(&self.secrets)?;
        self.validate_networks().map_err(|e| e.at("networks"))?;
        Mount::validate_all(&self.mounts, &self.process.tmpfs, &self.secrets)?;
        self.validate_ports()
    }

    /// Checks the rules of command, environment and labels only.
    pub(crate) fn validate_texts(&self) -> Result<(), Invalid> {
        let mut total = 0;
        let entrypoint = self.entrypoint.as_deref().unwrap_or_default();
        for (field, words) in [("entrypoint", entrypoint), ("command", &self.command)] {
            count_within(words.len()).map_err(|e| e.at(field))?;
            for (i, word) in words.iter().enumerate() {
                total += word.len();
                no_nul(word).map_err(|e| e.at(&format!("{field}[{i}]")))?;
            }
        }
        if self.entrypoint.as_ref().is_some_and(|words| words.first().is_some_and(String::is_empty)) {
            return Err(Invalid::value("the program's name is empty", "name the program to start").at("entrypoint[0]"));
        }
        for (field, map) in [("env", &self.env), ("labels", &self.labels)] {
            count_within(map.len()).map_err(|e| e.at(field))?;
            for (key, value) in map {
                total += key.len() + value.len();
                let shown: String = key.chars().take(60).collect();
                if key.is_empty() || key.contains('=') || key.chars().any(char::is_control) {
                    return Err(Invalid::value(
                        format!("`{shown}` is no valid key"),
                        "a key is not empty and holds no `=` and no control characters",
                    )
                    .at(field));
                }
                no_nul(value).map_err(|e| e.at(&format!("{field}.{shown}")))?;
            }
        }
        if total > Self::MAX_TEXT_BYTES {
            return Err(Invalid::value(
                format!("command, environment and labels hold {total} bytes, more than {}", Self::MAX_TEXT_BYTES),
                "put large data into a file of the image or a volume",
            )
            .at("env"));
        }
        Ok(())
    }

    fn validate_networks(&self) -> Result<(), Invalid> {
        if !self.networks.is_empty() && self.network != NetworkMode::Bridge {
            return Err(Invalid::value(
                "only containers with an address of their own can be in networks",
                "remove the networks, or set `network` to `bridge`",
            ));
        }
        NetworkName::validate(&self.networks)
    }

    fn validate_ports(&self) -> Result<(), Invalid> {
        if self.ports.len() > Self::MAX_PORTS {
            return Err(
                Invalid::value(format!("more than {} ports", Self::MAX_PORTS), "publish fewer ports").at("ports")
            );
        }
        if !self.ports.is_empty() && self.network != NetworkMode::Bridge {
            return Err(Invalid::value(
                "ports can only be published from the bridge network",
                "remove the ports, or set `network` to `bridge`",
            )
            .at("ports"));
        }
        for (i, port) in self.ports.iter().enumerate() {
            let part = if port.container == 0 {
                "container"
            } else if port.host == Some(0) {
                "host"
            } else {
                continue;
            };
            return Err(Invalid::value("port 0 does not exist", "use 1 to 65535").at(&format!("ports[{i}].{part}")));
        }
        for (i, port) in self.ports.iter().enumerate() {
            let same = |other: &PortSpec| other.host == port.host && other.protocol == port.protocol;
            if port.host.is_some() && self.ports[..i].iter().any(same) {
                return Err(Invalid::value(format!("`{port}` publishes a host port twice"), "use each host port once")
                    .at(&format!("ports[{i}].host")));
            }
        }
        Ok(())
    }
}

fn count_within(count: usize) -> Result<(), Invalid> {
    if count > WorkloadSpec::MAX_ENTRIES {
        return Err(Invalid::value(
            format!("{count} entries are more than {}", WorkloadSpec::MAX_ENTRIES),
            "put long lists into a file of the image",
        ));
    }
    Ok(())
}

fn no_nul(text: &str) -> Result<(), Invalid> {
    if text.contains('\0') {
        return Err(Invalid::value("the text holds a NUL character", "remove the NUL character"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(target: &str) -> super::super::VolumeMount {
        let (name, target) = ("data".parse().unwrap(), target.to_owned());
        super::super::VolumeMount { name, target, read_only: false, subpath: None, no_copy: false }
    }

    fn spec() -> WorkloadSpec {
        WorkloadSpec::new("web".parse().unwrap(), "toft/demo".parse().unwrap())
    }

    #[test]
    fn a_short_body_is_completed_with_defaults() {
        let parsed: WorkloadSpec = serde_json::from_str(r#"{"name":"web","image":"toft/demo"}"#).unwrap();
        assert_eq!(parsed, spec());
        assert_eq!(parsed.restart_policy(), RestartPolicy::Always);
    }

    #[test]
    fn unknown_fields_are_refused() {
        let error = serde_json::from_str::<WorkloadSpec>(r#"{"name":"web","image":"a","colour":1}"#).unwrap_err();
        assert!(error.to_string().contains("colour"), "{error}");
    }

    #[test]
    fn breaches_name_their_field() {
        let check = |field: &str, change: &dyn Fn(&mut WorkloadSpec)| {
            let mut spec = spec();
            change(&mut spec);
            assert_eq!(spec.validate().unwrap_err().field, field);
        };
        check("replicas", &|s| s.replicas = 1001);
        check("stop_grace_ms", &|s| s.stop_grace_ms = 600_001);
        check("resources.cpu_millis", &|s| s.resources.cpu_millis = Some(0));
        check("resources.memory_bytes", &|s| s.resources.memory_bytes = Some(1));
        check("resources.cpu_reserved_millis", &|s| {
            s.resources = Resources { cpu_millis: Some(1), cpu_reserved_millis: Some(2), ..Resources::default() };
        });
        check("resources.memory_reserved_bytes", &|s| s.resources.memory_reserved_bytes = Some(1));
        check("resources.pids_limit", &|s| s.resources.pids_limit = Some(u32::MAX));
        check("mounts[0].target", &|s| s.mounts = vec![Mount::Volume(volume("/proc/x"))]);
        check("process.hostname", &|s| s.process.hostname = Some(String::new()));
        check("command[1]", &|s| s.command = vec!["a".into(), "b\0".into()]);
        check("entrypoint[0]", &|s| s.entrypoint = Some(vec![String::new()]));
        check("env", &|s| drop(s.env.insert("a=b".into(), "c".into())));
        check("env.K", &|s| drop(s.env.insert("K".into(), "\0".into())));
        check("env", &|s| drop(s.env.insert("K".into(), "x".repeat(600_000))));
        check("ports[1].host", &|s| s.ports = vec!["80:1".parse().unwrap(), "80:2".parse().unwrap()]);
        check("ports", &|s| {
            s.ports = vec!["80:1".parse().unwrap()];
            s.network = NetworkMode::Host;
        });
        check("update.parallel", &|s| s.update.parallel = 0);
        check("networks", &|s| s.networks = BTreeSet::from(["host".parse().unwrap()]));
        check("networks", &|s| s.networks = (0..17).map(|i| format!("n{i}").parse().unwrap()).collect());
        check("networks", &|s| {
            s.networks = BTreeSet::from(["lan".parse().unwrap()]);
            s.network = NetworkMode::None;
        });
        assert!(spec().validate().is_ok());
    }
}
