//! GPUs: cards on the bus, their drivers, what programs reach them through, and what containers are given them by. Only what is
//! there is looked at; a machine without cards has one line.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use toft_model::gpu::GpuVendor;

use super::{Check, Said, failure, ok, skipped, warning};
use crate::{
    agent::gpu::{
        Driver, DriverError,
        cdi::{self, Library},
        nvml::NvmlDriver,
    },
    config::GpuConfig,
};

const AREA: &str = "gpu";
/// PCI's class of display controllers, and of accelerators.
const CLASSES: [&str; 2] = ["0x03", "0x12"];
const VENDORS: [(&str, GpuVendor); 3] =
    [("0x10de", GpuVendor::Nvidia), ("0x1002", GpuVendor::Amd), ("0x8086", GpuVendor::Intel)];
const INSTALL: &str =
    "install the driver: sudo apt-get install nvidia-driver    (Ubuntu: sudo ubuntu-drivers install), then reboot";
const GENERATE: &str =
    "sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml    (or remove the file: toft makes its own)";
const RELOAD: &str = "sudo reboot    (or, with nothing on the cards and toft stopped: sudo rmmod nvidia_uvm nvidia_drm nvidia_modeset nvidia; sudo modprobe nvidia)";

/// A card on the bus.
#[derive(Debug, Clone, PartialEq, Eq)]
struct OnBus {
    pci: String,
    /// The kernel's driver that has it.
    driver: Option<String>,
}

pub(super) fn checks(root: &Path, config: &GpuConfig) -> Vec<Check> {
    let cards = on_bus(root);
    if cards.is_empty() {
        return vec![skipped("there is no card of NVIDIA, AMD or Intel").of(AREA, "cards")];
    }
    let told = cards.iter().map(|(vendor, cards)| format!("{} of {vendor}", cards.len()));
    let mut checks = vec![ok(told.collect::<Vec<_>>().join(", ")).of(AREA, "cards")];
    if let Some(cards) = cards.get(&GpuVendor::Nvidia) {
        let loaded = cdi::nvidia_version(root);
        checks.push(module(root, cards, loaded.as_deref()).of(AREA, "nvidia driver"));
        checks.push(library(NvmlDriver::new(&config.nvml).look(), cards.len()).of(AREA, "nvidia library"));
        if let Some(version) = loaded {
            checks.push(devices(root).of(AREA, "nvidia devices"));
            checks.push(files(cdi::nvidia_files(root, &version)).of(AREA, "nvidia files"));
        }
    }
    if let Some(cards) = cards.get(&GpuVendor::Amd) {
        checks.push(of_kernel(root, cards, &["amdgpu"], "sudo modprobe amdgpu").of(AREA, "amd driver"));
        checks.push(kfd(root).of(AREA, "amd computing"));
    }
    if let Some(cards) = cards.get(&GpuVendor::Intel) {
        checks.push(
            of_kernel(root, cards, &["i915", "xe"], "sudo modprobe xe || sudo modprobe i915").of(AREA, "intel driver"),
        );
    }
    checks.push(specifications(&Library::read(&config.cdi_dirs)).of(AREA, "cdi"));
    checks.push(device_rules(root).of(AREA, "device rules"));
    checks
}

fn on_bus(root: &Path) -> BTreeMap<GpuVendor, Vec<OnBus>> {
    let mut found: BTreeMap<GpuVendor, Vec<OnBus>> = BTreeMap::new();
    for entry in fs::read_dir(root.join("sys/bus/pci/devices")).into_iter().flatten().flatten() {
        let text = |name: &str| fs::read_to_string(entry.path().join(name)).unwrap_or_default().trim().to_owned();
        let (class, vendor) = (text("class"), text("vendor"));
        let Some((_, vendor)) = VENDORS.iter().find(|(id, _)| *id == vendor) else { continue };
        if !CLASSES.iter().any(|known| class.starts_with(known)) {
            continue;
        }
        let driver = fs::canonicalize(entry.path().join("driver")).ok();
        let driver = driver.and_then(|path| Some(path.file_name()?.to_str()?.to_owned()));
        let pci = entry.file_name().to_string_lossy().into_owned();
        found.entry(*vendor).or_default().push(OnBus { pci, driver });
    }
    found.values_mut().for_each(|cards| cards.sort_by(|a, b| a.pci.cmp(&b.pci)));
    found
}

fn module(root: &Path, cards: &[OnBus], loaded: Option<&str>) -> Said {
    let with = |driver: &str| cards.iter().find(|card| card.driver.as_deref() == Some(driver));
    if let Some(card) = with("nouveau") {
        return failure(format!("the kernel uses nouveau for {}, on which nothing computes", card.pci), INSTALL);
    }
    if let Some(version) = loaded {
        return match with("vfio-pci") {
            Some(card) => warning(
                format!("{version}; {} is kept for virtual machines (vfio-pci)", card.pci),
                "give it back: remove its ids from the options of vfio-pci in /etc/modprobe.d, then reboot",
            ),
            None => ok(version.to_owned()),
        };
    }
    if let Some(card) = with("vfio-pci") {
        return failure(
            format!("{} is kept for virtual machines (vfio-pci)", card.pci),
            "give it back: remove its ids from the options of vfio-pci in /etc/modprobe.d, then reboot",
        );
    }
    if !has_module(root) {
        return failure("the driver is not installed for this kernel", INSTALL);
    }
    if secure_boot(root) {
        return failure(
            "the driver's module is not loaded, and Secure Boot refuses modules that nobody signed",
            "sudo mokutil --import /var/lib/dkms/mok.pub, reboot and enrol the key; or switch Secure Boot off",
        );
    }
    failure("the driver's module is not loaded", "sudo modprobe nvidia; if that fails: sudo dmesg | grep -i nvrm")
}

fn has_module(root: &Path) -> bool {
    let release = fs::read_to_string(root.join("proc/sys/kernel/osrelease")).unwrap_or_default();
    let list = root.join("lib/modules").join(release.trim()).join("modules.dep");
    let known = |line: &str| {
        line.split(':').next().is_some_and(|path| {
            let name = path.rsplit('/').next().unwrap_or(path);
            name.starts_with("nvidia.ko") || name.starts_with("nvidia-current.ko")
        })
    };
    fs::read_to_string(list).is_ok_and(|text| text.lines().any(known))
}

fn secure_boot(root: &Path) -> bool {
    let entries = fs::read_dir(root.join("sys/firmware/efi/efivars")).into_iter().flatten().flatten();
    let mut variables = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("SecureBoot-"));
    variables.next().and_then(|entry| fs::read(entry.path()).ok()).is_some_and(|bytes| bytes.last() == Some(&1))
}

/// What the driver's library shows of `expected` cards.
fn library(shown: Result<Vec<crate::agent::gpu::Card>, DriverError>, expected: usize) -> Said {
    let cards = match shown {
        Ok(cards) => cards,
        Err(DriverError::Away(reason)) if reason.contains("different versions") => return failure(reason, RELOAD),
        Err(DriverError::Away(reason)) => {
            return failure(reason, "sudo nvidia-smi    shows the same fault; `sudo dmesg | grep -i nvrm` says why");
        }
    };
    let whole: Vec<_> = cards.iter().filter(|card| card.parent.is_none()).collect();
    if let Some((card, fault)) = whole.iter().find_map(|card| Some((card, card.fault.as_ref()?))) {
        return failure(
            format!("{} ({}): {fault}", card.id, card.model),
            "switch the machine off and on again; if it comes back, look at power and seat of the card",
        );
    }
    match whole.len() {
        0 => failure(
            "there is no library libnvidia-ml.so.1, through which cards are looked at",
            "sudo apt-get install libnvidia-ml1    (Ubuntu: nvidia-utils of the driver's version), or name it: [gpu] nvml in toft.toml",
        ),
        shown if shown < expected => warning(
            format!("it shows {shown} of {expected} cards"),
            "sudo dmesg | grep -i nvrm    says what is wrong with the others",
        ),
        shown => ok(format!("{shown} cards, {}", whole[0].model)),
    }
}

fn devices(root: &Path) -> Said {
    let there = |name: &str| root.join("dev").join(name).exists();
    let first = (0..64).any(|number| there(&format!("nvidia{number}")));
    let missing: Vec<&str> =
        [("nvidiactl", there("nvidiactl")), ("nvidia0", first), ("nvidia-uvm", there("nvidia-uvm"))]
            .into_iter()
            .filter_map(|(name, there)| (!there).then_some(name))
            .collect();
    if missing.is_empty() {
        return ok("the device nodes are there");
    }
    let missing = missing.iter().map(|name| format!("/dev/{name}")).collect::<Vec<_>>().join(", ");
    failure(format!("{missing} missing"), "sudo nvidia-modprobe -c 0 -u    (of the package nvidia-modprobe)")
}

fn files(found: Result<usize, String>) -> Said {
    match found {
        Ok(count) => ok(format!("containers get {count} libraries, programs and files of the driver")),
        Err(reason) => failure(
            reason,
            "install the libraries of the same version as the module: sudo apt-get install --reinstall libcuda1 nvidia-driver-libs",
        ),
    }
}

/// Cards of the kernel's own drivers.
fn of_kernel(root: &Path, cards: &[OnBus], drivers: &[&str], fix: &str) -> Said {
    let name = drivers.join(" or ");
    for card in cards {
        match &card.driver {
            Some(driver) if drivers.contains(&driver.as_str()) => {}
            Some(other) => return warning(format!("{} is used by {other}, not by {name}", card.pci), fix),
            None => return failure(format!("no driver has {}", card.pci), fix),
        }
        let drm = root.join("sys/bus/pci/devices").join(&card.pci).join("drm");
        let nodes = fs::read_dir(drm).into_iter().flatten().flatten().map(|entry| entry.file_name());
        let nodes: Vec<PathBuf> = nodes.map(|name| root.join("dev/dri").join(name)).collect();
        if !nodes.iter().any(|node| node.to_string_lossy().contains("renderD") && node.exists()) {
            return failure(
                format!("{} has no node for rendering in /dev/dri", card.pci),
                "sudo udevadm trigger --subsystem-match=drm; if that does not help: sudo dmesg | grep -i drm",
            );
        }
    }
    ok(format!("{} cards with nodes in /dev/dri", cards.len()))
}

fn kfd(root: &Path) -> Said {
    match root.join("dev/kfd").exists() {
        true => ok("/dev/kfd is there"),
        false => warning(
            "there is no /dev/kfd: nothing computes on AMD's cards (ROCm)",
            "boot a kernel with CONFIG_HSA_AMD=y, as distributions have it, then: sudo modprobe amdgpu",
        ),
    }
}

fn specifications(library: &Library) -> Said {
    if let Some(fault) = library.faults.first() {
        return warning(format!("{}: {}", fault.path.display(), fault.reason), GENERATE);
    }
    match library.stale() {
        Some(reason) => warning(reason, GENERATE),
        None if library.knows("nvidia.com/gpu") || library.knows("amd.com/gpu") => {
            ok("specifications of devices are there and fit")
        }
        None => ok("there are no specifications of devices; toft makes its own"),
    }
}

/// Whether a container can be kept to its own devices.
fn device_rules(root: &Path) -> Said {
    let groups = root.join("sys/fs/cgroup");
    if groups.join("cgroup.controllers").exists() {
        return ok("control groups version 2, by programs in the kernel");
    }
    if groups.join("devices").exists() {
        return ok("control groups version 1");
    }
    failure(
        "control groups have no controller for devices: containers could not be kept to their own cards",
        "mount it: sudo mkdir -p /sys/fs/cgroup/devices; sudo mount -t cgroup -o devices cgroup /sys/fs/cgroup/devices",
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::{agent::gpu::fake, doctor::Verdict};

    /// A machine of files.
    struct Root(tempfile::TempDir);

    impl Root {
        fn new() -> Self {
            let root = Self(tempfile::tempdir().unwrap());
            root.put("sys/fs/cgroup/cgroup.controllers", "devices");
            root.put("proc/sys/kernel/osrelease", "6.1.0\n");
            root
        }

        fn put(&self, path: &str, text: &str) {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn card(&self, pci: &str, vendor: &str, driver: Option<&str>) {
            let device = format!("sys/bus/pci/devices/{pci}");
            self.put(&format!("{device}/class"), "0x030000\n");
            self.put(&format!("{device}/vendor"), &format!("{vendor}\n"));
            if let Some(driver) = driver {
                let folder = self.0.path().join("sys/bus/pci/drivers").join(driver);
                fs::create_dir_all(&folder).unwrap();
                let link = self.0.path().join(device).join("driver");
                let _ = fs::remove_file(&link);
                symlink(folder, link).unwrap();
            }
        }

        fn nvidia(&self) {
            self.card("0000:01:00.0", "0x10de", Some("nvidia"));
            self.put("proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.10  Tue\n");
            for file in ["dev/nvidiactl", "dev/nvidia0", "dev/nvidia-uvm", "usr/lib64/libcuda.so.570.86.10"] {
                self.put(file, "");
            }
        }

        fn checks(&self) -> Vec<Check> {
            let nvml = "/no/such/libnvidia-ml.so.1".into();
            let (mps_pipe_dir, mps_log_dir) = ("/tmp/nvidia-mps".into(), "/var/log/nvidia-mps".into());
            let cdi_dirs = vec![self.0.path().join("etc/cdi")];
            checks(self.0.path(), &GpuConfig { nvml, cdi_dirs, mps_pipe_dir, mps_log_dir })
        }

        #[track_caller]
        fn says(&self, name: &str, verdict: Verdict, words: &str, fix: &str) {
            let checks = self.checks();
            let check = checks.iter().find(|check| check.name == name).unwrap_or_else(|| panic!("{name}: {checks:?}"));
            let told = check.fix.clone().unwrap_or_default();
            assert!(check.verdict == verdict && check.message.contains(words) && told.contains(fix), "{check:?}");
            assert!(verdict == Verdict::Ok || verdict == Verdict::NotApplicable || !told.is_empty(), "{check:?}");
        }
    }

    #[test]
    fn a_machine_without_cards_has_one_line() {
        let root = Root::new();
        root.card("0000:00:02.0", "0x1234", None);
        root.says("cards", Verdict::NotApplicable, "no card", "");
        assert_eq!(root.checks().len(), 1);
    }

    #[test]
    fn every_fault_of_nvidias_driver_is_told_with_what_mends_it() {
        let root = Root::new();
        root.card("0000:01:00.0", "0x10de", Some("nouveau"));
        root.says("nvidia driver", Verdict::Failure, "nouveau", "install nvidia-driver");
        root.card("0000:01:00.0", "0x10de", Some("vfio-pci"));
        root.says("nvidia driver", Verdict::Failure, "virtual machines", "vfio-pci");
        let bare = Root::new();
        bare.card("0000:01:00.0", "0x10de", None);
        bare.says("nvidia driver", Verdict::Failure, "not installed for this kernel", "install nvidia-driver");
        bare.put("lib/modules/6.1.0/modules.dep", "updates/dkms/nvidia.ko.xz: kernel/x.ko\n");
        bare.says("nvidia driver", Verdict::Failure, "module is not loaded", "modprobe nvidia");
        bare.put("sys/firmware/efi/efivars/SecureBoot-8be4", "\0\0\0\0\u{1}");
        bare.says("nvidia driver", Verdict::Failure, "Secure Boot", "mokutil");

        let root = Root::new();
        root.nvidia();
        root.says("nvidia driver", Verdict::Ok, "570.86.10", "");
        root.says("nvidia library", Verdict::Failure, "no library", "libnvidia-ml1");
        root.says("nvidia devices", Verdict::Ok, "", "");
        root.says("nvidia files", Verdict::Ok, "containers get", "");
        fs::remove_file(root.0.path().join("dev/nvidia-uvm")).unwrap();
        root.says("nvidia devices", Verdict::Failure, "/dev/nvidia-uvm missing", "nvidia-modprobe -c 0 -u");
        fs::remove_file(root.0.path().join("usr/lib64/libcuda.so.570.86.10")).unwrap();
        root.says("nvidia files", Verdict::Failure, "libcuda.so.570.86.10", "--reinstall");
    }

    #[test]
    fn what_the_library_shows_is_judged() {
        let card = |fault: Option<&str>| crate::agent::gpu::Card {
            fault: fault.map(str::to_owned),
            ..fake::card(&"GPU-1".parse().unwrap(), 1_024)
        };
        let check = |shown, verdict, words: &str| {
            let said = library(shown, 2);
            assert!(said.verdict == verdict && said.message.contains(words), "{}", said.message);
            said.fix.unwrap_or_default()
        };
        check(Ok(vec![card(None), card(None)]), Verdict::Ok, "2 cards");
        assert!(check(Ok(vec![card(None)]), Verdict::Warning, "1 of 2").contains("dmesg"));
        let lost = Ok(vec![card(None), card(Some("it has fallen off the bus"))]);
        assert!(check(lost, Verdict::Failure, "fallen off").contains("off and on again"));
        let away = |why: &str| Err(DriverError::Away(why.into()));
        let mismatch = away("library and kernel module are of different versions");
        assert!(check(mismatch, Verdict::Failure, "different versions").contains("reboot"));
        assert!(check(away("unknown"), Verdict::Failure, "unknown").contains("nvidia-smi"));
    }

    #[test]
    fn cards_of_the_kernels_drivers_are_looked_at() {
        let root = Root::new();
        root.card("0000:03:00.0", "0x1002", None);
        root.says("amd driver", Verdict::Failure, "no driver has 0000:03:00.0", "modprobe amdgpu");
        root.says("amd computing", Verdict::Warning, "/dev/kfd", "amdgpu");
        root.card("0000:03:00.0", "0x1002", Some("vfio-pci"));
        root.says("amd driver", Verdict::Warning, "used by vfio-pci", "amdgpu");
        root.card("0000:03:00.0", "0x1002", Some("amdgpu"));
        root.says("amd driver", Verdict::Failure, "no node for rendering", "udevadm");
        root.put("sys/bus/pci/devices/0000:03:00.0/drm/renderD128/dev", "");
        root.put("dev/dri/renderD128", "");
        root.put("dev/kfd", "");
        root.says("amd driver", Verdict::Ok, "1 cards", "");
        root.says("amd computing", Verdict::Ok, "", "");
        root.card("0000:00:02.0", "0x8086", Some("i915"));
        root.says("intel driver", Verdict::Failure, "no node for rendering", "udevadm");
    }

    #[test]
    fn specifications_and_device_rules_are_looked_at() {
        let root = Root::new();
        root.nvidia();
        root.says("cdi", Verdict::Ok, "makes its own", "");
        root.put("etc/cdi/nvidia.yaml", "{");
        root.says("cdi", Verdict::Warning, "nvidia.yaml: it is not understood", "nvidia-ctk cdi generate");
        let spec = |library: &str| {
            format!(
                "cdiVersion: 0.5.0\nkind: nvidia.com/gpu\ndevices:\n- name: all\n  containerEdits:\n    mounts:\n    - {{hostPath: {library}, containerPath: /x}}\n"
            )
        };
        root.put("etc/cdi/nvidia.yaml", &spec("/no/such/libcuda.so.1.2"));
        root.says("cdi", Verdict::Warning, "of another driver", "nvidia-ctk cdi generate");
        root.put("etc/cdi/nvidia.yaml", &spec("/etc"));
        root.says("cdi", Verdict::Ok, "fit", "");
        root.says("device rules", Verdict::Ok, "version 2", "");
        fs::remove_file(root.0.path().join("sys/fs/cgroup/cgroup.controllers")).unwrap();
        root.says("device rules", Verdict::Failure, "no controller for devices", "mount -t cgroup");
        root.put("sys/fs/cgroup/devices/tasks", "");
        root.says("device rules", Verdict::Ok, "version 1", "");
    }
}
