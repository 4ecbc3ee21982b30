//! The OCI runtime specification of a container: Docker's defaults, the image's wishes, the order's limits. Pure but
//! for what [`Host`] found out about this machine.

mod capabilities;
pub(super) mod devices;
mod host;
mod mounts;
mod process;
mod seccomp;

use std::collections::HashMap;

use oci_spec::runtime::{
    Linux, LinuxCpu, LinuxDeviceCgroup, LinuxMemory, LinuxNamespace, LinuxNamespaceType, LinuxPids, LinuxResources,
    Root, Spec,
};
use toft_model::workload::{Resources, Seccomp};

pub(super) use host::Host;

use super::{media::ImageConfig, users::Identity};
use crate::agent::runtime::{ContainerSpec, NetworkNamespace};

/// Length of a period in which a container may use its share of CPU, in microseconds.
const CPU_PERIOD_US: u64 = 100_000;
/// Least share the kernel accepts, in microseconds.
const LEAST_CPU_QUOTA_US: i64 = 1_000;
/// Weight of a reserved core, and the least weight there is.
const SHARES_OF_A_CORE: u64 = 1_024;
const LEAST_SHARES: u64 = 2;

/// Everything a specification is made from.
pub(super) struct Parts<'a> {
    pub(super) order: &'a ContainerSpec,
    pub(super) image: &'a ImageConfig,
    pub(super) identity: &'a Identity,
    pub(super) cgroup_parent: &'a str,
    pub(super) host: &'a Host,
    pub(super) devices: &'a [devices::Device],
}

/// Builds the specification. `Err` says in words for people why the image cannot be run.
pub(super) fn build(parts: &Parts<'_>) -> Result<Spec, String> {
    let mut spec = Spec::default();
    let mut root = Root::default();
    root.set_path("rootfs".into()).set_readonly(Some(parts.order.process.read_only));
    spec.set_version("1.0.2".to_owned())
        .set_root(Some(root))
        .set_process(Some(process::build(parts)?))
        .set_hostname(Some(parts.order.hostname.clone()))
        .set_mounts(Some(mounts::all(&parts.order.process, &parts.order.mounts, &parts.order.files)))
        .set_linux(Some(linux(parts)))
        .set_annotations(None);
    Ok(spec)
}

fn linux(parts: &Parts<'_>) -> Linux {
    let new_network = parts.order.network == NetworkNamespace::New;
    let mut kinds =
        vec![LinuxNamespaceType::Pid, LinuxNamespaceType::Ipc, LinuxNamespaceType::Uts, LinuxNamespaceType::Mount];
    if new_network {
        kinds.push(LinuxNamespaceType::Network);
    }
    if parts.host.unified_cgroups {
        kinds.push(LinuxNamespaceType::Cgroup);
    }
    let namespaces = kinds.into_iter().map(|kind| {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(kind);
        namespace
    });
    let mut linux = Linux::default();
    linux
        .set_namespaces(Some(namespaces.collect()))
        .set_cgroups_path(Some(format!("/{}/{}", parts.cgroup_parent.trim_matches('/'), parts.order.id).into()))
        .set_resources(Some(resources(parts)))
        .set_devices((!parts.devices.is_empty()).then(|| parts.devices.iter().map(devices::Device::node).collect()));
    let process = &parts.order.process;
    if process.privileged {
        linux.set_masked_paths(None).set_readonly_paths(None);
    } else {
        linux
            .set_masked_paths(Some(mounts::MASKED.map(str::to_owned).to_vec()))
            .set_readonly_paths(Some(mounts::READ_ONLY.map(str::to_owned).to_vec()));
        if process.seccomp == Seccomp::Default && parts.host.filters_calls {
            let wanted = capabilities::wanted(process, parts.host.capabilities);
            linux.set_seccomp(Some(seccomp::filter(&wanted)));
        }
    }
    let mut settings: HashMap<String, String> = HashMap::new();
    if new_network && parts.host.network_settings {
        // As Docker does: in a network of its own every user may listen on low ports and send pings.
        settings.insert("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned());
        settings.insert("net.ipv4.ping_group_range".to_owned(), "0 2147483647".to_owned());
    }
    settings.extend(process.sysctls.iter().map(|(name, value)| (name.clone(), value.clone())));
    if !settings.is_empty() {
        linux.set_sysctl(Some(settings));
    }
    linux
}

fn resources(parts: &Parts<'_>) -> LinuxResources {
    let (limits, host) = (parts.order.resources, parts.host);
    let mut all = LinuxDeviceCgroup::default();
    all.set_allow(parts.order.process.privileged).set_access(Some("rwm".to_owned()));
    let mut resources = LinuxResources::default();
    resources.set_devices(Some(std::iter::once(all).chain(parts.devices.iter().map(devices::Device::rule)).collect()));
    let pids = limits.pids_limit.unwrap_or(Resources::USUAL_PIDS);
    if pids > 0 && host.limits_pids {
        let mut limit = LinuxPids::default();
        limit.set_limit(pids.into());
        resources.set_pids(Some(limit));
    }
    let mut cpu = LinuxCpu::default();
    if let Some(millis) = limits.cpu_reserved_millis {
        cpu.set_shares(Some((u64::from(millis) * SHARES_OF_A_CORE / 1000).max(LEAST_SHARES)));
    }
    if let Some(millis) = limits.cpu_millis {
        let quota = i64::from(millis).saturating_mul(CPU_PERIOD_US as i64 / 1000).max(LEAST_CPU_QUOTA_US);
        cpu.set_period(Some(CPU_PERIOD_US)).set_quota(Some(quota));
    }
    if cpu != LinuxCpu::default() {
        resources.set_cpu(Some(cpu));
    }
    let mut memory = LinuxMemory::default();
    if let Some(bytes) = limits.memory_reserved_bytes {
        memory.set_reservation(Some(i64::try_from(bytes).unwrap_or(i64::MAX)));
    }
    if let Some(bytes) = limits.memory_bytes {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        memory.set_limit(Some(bytes));
        if host.limits_swap {
            memory.set_swap(Some(bytes));
        }
    }
    if memory != LinuxMemory::default() {
        resources.set_memory(Some(memory));
    }
    resources
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn order() -> ContainerSpec {
        let id = "0192f0c0-0000-7000-8000-000000000001".parse().unwrap();
        ContainerSpec {
            env: BTreeMap::from([("A".into(), "order".into())]),
            hostname: "web-1".into(),
            resources: Resources { cpu_millis: Some(1500), memory_bytes: Some(64 << 20), ..Resources::default() },
            files: BTreeMap::from([("/etc/hosts".into(), "/var/lib/toft/hosts".into())]),
            ..ContainerSpec::plain(id, "busybox".parse().unwrap(), &["sleep", "9"])
        }
    }

    fn host() -> Host {
        Host {
            unified_cgroups: true,
            limits_swap: true,
            network_settings: true,
            limits_pids: true,
            filters_calls: true,
            capabilities: u64::MAX,
            open_files: 20_000,
        }
    }

    fn json(order: &ContainerSpec, host: &Host) -> serde_json::Value {
        let image = r#"{"os":"linux","architecture":"amd64","config":{"Env":["A=image","B=image"],"Cmd":["sh"],
            "WorkingDir":"srv"},"rootfs":{}}"#;
        let image = serde_json::from_str(image).unwrap();
        let identity = Identity { uid: 5, gid: 6, groups: vec![7] };
        let parts = Parts { order, image: &image, identity: &identity, cgroup_parent: "/toft/", host, devices: &[] };
        serde_json::to_value(build(&parts).unwrap()).unwrap()
    }

    #[test]
    fn the_order_the_image_and_the_defaults_come_together() {
        let spec = json(&order(), &host());
        assert_eq!(spec["process"]["args"], serde_json::json!(["sleep", "9"]));
        assert_eq!(spec["process"]["cwd"], "/srv");
        let env: Vec<&str> = spec["process"]["env"].as_array().unwrap().iter().map(|e| e.as_str().unwrap()).collect();
        assert!(env.contains(&"A=order") && env.contains(&"B=image") && env.contains(&"HOSTNAME=web-1"), "{env:?}");
        assert!(!env.contains(&"A=image") && env.iter().any(|e| e.starts_with("PATH=")), "{env:?}");
        assert_eq!(spec["process"]["user"], serde_json::json!({"uid": 5, "gid": 6, "additionalGids": [6, 7]}));
        assert_eq!(spec["process"]["rlimits"][0]["hard"], 20_000);
        assert_eq!(spec["linux"]["cgroupsPath"], "/toft/0192f0c0-0000-7000-8000-000000000001");
        assert_eq!(spec["linux"]["resources"]["cpu"], serde_json::json!({"quota": 150_000, "period": 100_000}));
        assert_eq!(spec["linux"]["resources"]["memory"], serde_json::json!({"limit": 64 << 20, "swap": 64 << 20}));
        assert_eq!(spec["linux"]["resources"]["pids"]["limit"], 4096);
        let hosts = spec["mounts"].as_array().unwrap().last().unwrap();
        assert_eq!((hosts["destination"].as_str(), hosts["type"].as_str()), (Some("/etc/hosts"), Some("bind")));
    }

    #[test]
    fn an_image_that_asks_for_every_gpu_gets_none() {
        let env = BTreeMap::from([("NVIDIA_VISIBLE_DEVICES".into(), "all".into())]);
        let spec = json(&ContainerSpec { env, ..order() }, &host());
        assert!(spec["process"]["env"].as_array().unwrap().contains(&"NVIDIA_VISIBLE_DEVICES=void".into()));
        assert!(!json(&order(), &host()).to_string().contains("NVIDIA_VISIBLE_DEVICES"), "nobody asked");
    }

    #[test]
    fn the_hosts_network_is_shared_on_request() {
        let kinds = |spec: serde_json::Value| spec["linux"]["namespaces"].to_string();
        let mut order = order();
        assert!(kinds(json(&order, &host())).contains("network"));
        order.network = NetworkNamespace::Host;
        let old = Host { unified_cgroups: false, ..host() };
        let spec = json(&order, &old);
        assert!(spec["linux"].get("sysctl").is_none());
        let kinds = kinds(spec);
        assert!(!kinds.contains("network") && !kinds.contains("cgroup"), "{kinds}");
    }

    #[test]
    fn the_process_is_as_ordered() {
        let mut order = order();
        order.init = Some("/run/toft-init".into());
        order.process.read_only = true;
        order.process.shm_size_bytes = Some(1 << 20);
        order.process.tmpfs = vec!["/tmp:size=1m".parse().unwrap()];
        order.process.sysctls.insert("net.core.somaxconn".into(), "9".into());
        order.process.ulimits =
            [("nofile=7:9"), ("core=0")].map(|text| toft_model::workload::Ulimit::parse_named(text).unwrap()).into();
        order.resources.pids_limit = Some(0);
        order.resources.cpu_reserved_millis = Some(500);
        order.resources.memory_reserved_bytes = Some(8 << 20);
        let spec = json(&order, &host());
        assert_eq!(spec["root"]["readonly"], true);
        assert_eq!(spec["process"]["args"], serde_json::json!(["/run/toft-init", "init", "sleep", "9"]));
        let mounts = spec["mounts"].as_array().unwrap();
        let options = |path: &str| mounts.iter().find(|m| m["destination"] == path).unwrap()["options"].to_string();
        assert!(options("/dev/shm").contains("size=1048576") && options("/tmp").contains("size=1048576"));
        assert_eq!(spec["linux"]["sysctl"]["net.core.somaxconn"], "9");
        assert_eq!(spec["linux"]["sysctl"]["net.ipv4.ip_unprivileged_port_start"], "0");
        let limit = |name: &str| {
            let limits = spec["process"]["rlimits"].as_array().unwrap();
            let limit = limits.iter().find(|limit| limit["type"] == name).unwrap();
            (limit["soft"].as_u64(), limit["hard"].as_u64())
        };
        assert_eq!(limit("RLIMIT_NOFILE"), (Some(7), Some(9)));
        assert_eq!(limit("RLIMIT_CORE"), (Some(0), Some(0)));
        let resources = &spec["linux"]["resources"];
        assert!(resources.get("pids").is_none());
        assert_eq!(
            (&resources["cpu"]["shares"], &resources["memory"]["reservation"]),
            (&512.into(), &(8 << 20).into())
        );
        assert_eq!(spec["process"]["noNewPrivileges"], true);
        assert!(spec["linux"]["seccomp"].is_object());
    }

    #[test]
    fn a_privileged_process_has_everything() {
        let mut order = order();
        order.process.privileged = true;
        let spec = json(&order, &host());
        assert!(spec["linux"].get("seccomp").is_none() && spec["linux"].get("maskedPaths").is_none());
        assert_eq!(spec["linux"]["resources"]["devices"][0]["allow"], true);
        assert_eq!(spec["process"]["capabilities"]["effective"].as_array().unwrap().len(), 41);
        assert_eq!(spec["process"]["noNewPrivileges"], false);
        let sys = spec["mounts"].as_array().unwrap().iter().find(|mount| mount["destination"] == "/sys").unwrap();
        assert!(!sys["options"].to_string().contains("\"ro\""), "{sys}");
    }

    #[test]
    fn an_image_without_a_command_is_refused() {
        let image = serde_json::from_str(r#"{"os":"linux","architecture":"amd64","rootfs":{}}"#).unwrap();
        let order = ContainerSpec { command: Vec::new(), ..order() };
        let identity = Identity::default();
        let host = host();
        let parts = Parts {
            order: &order,
            image: &image,
            identity: &identity,
            cgroup_parent: "toft",
            host: &host,
            devices: &[],
        };
        assert!(build(&parts).unwrap_err().contains("command"));
    }
}
