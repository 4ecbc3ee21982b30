//! Edits for NVIDIA's cards, made from the driver's own files: what `nvidia-ctk cdi generate` would write.
//!
//! Instead of making links in the container, each library is mounted under all of its names in the folders where the loaders of
//! Debian's and Fedora's families look by themselves. One hook ([`super::hook`]) besides tells the loader's cache, for
//! those who look there.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use super::{DeviceNode, EditMount, Edits, dri};
use crate::agent::gpu::{Handle, sysfs};

/// Folders in which drivers put their libraries, those of this machine's kind first.
const FOLDERS: [&str; 13] = [
    "usr/lib/x86_64-linux-gnu",
    "usr/lib/aarch64-linux-gnu",
    "usr/lib/x86_64-linux-gnu/nvidia/current",
    "usr/lib/aarch64-linux-gnu/nvidia/current",
    "usr/lib64",
    "usr/lib64/nvidia",
    "usr/lib",
    "lib64",
    "lib/x86_64-linux-gnu",
    "lib/aarch64-linux-gnu",
    "usr/local/nvidia/lib64",
    "usr/local/lib",
    "run/opengl-driver/lib",
];
/// Folders with programs.
const PROGRAM_FOLDERS: [&str; 6] = ["usr/bin", "usr/sbin", "bin", "sbin", "usr/local/bin", "usr/local/nvidia/bin"];
/// How the driver's libraries are called.
const LIBRARIES: [&str; 10] = [
    "libcuda.",
    "libcudadebugger.",
    "libnvidia-",
    "libnvcuvid.",
    "libnvoptix.",
    "libEGL_nvidia.",
    "libGLX_nvidia.",
    "libGLESv1_CM_nvidia.",
    "libGLESv2_nvidia.",
    "libvdpau_nvidia.",
];
/// The driver's programs.
const PROGRAMS: [&str; 5] =
    ["nvidia-smi", "nvidia-debugdump", "nvidia-persistenced", "nvidia-cuda-mps-control", "nvidia-cuda-mps-server"];
/// Files by which libraries for graphics find the driver, and sockets of its services.
const FILES: [&str; 7] = [
    "etc/vulkan/icd.d/nvidia_icd.json",
    "usr/share/vulkan/icd.d/nvidia_icd.json",
    "usr/share/glvnd/egl_vendor.d/10_nvidia.json",
    "usr/share/egl/egl_external_platform.d/15_nvidia_gbm.json",
    "usr/share/nvidia/nvoptix.bin",
    "run/nvidia-persistenced/socket",
    "run/nvidia-fabricmanager/socket",
];
/// Devices that every card needs, and those that are given where they are there.
const CONTROL: &str = "dev/nvidiactl";
const OPTIONAL: [&str; 3] = ["dev/nvidia-uvm", "dev/nvidia-uvm-tools", "dev/nvidia-modeset"];
/// Most libraries; there are some forty.
const MOST_LIBRARIES: usize = 512;

/// Where the loaders of containers look.
pub(super) fn inside() -> [&'static str; 2] {
    match std::env::consts::ARCH {
        "aarch64" => ["/usr/lib/aarch64-linux-gnu", "/usr/lib64"],
        _ => ["/usr/lib/x86_64-linux-gnu", "/usr/lib64"],
    }
}

/// What containers need of the driver, whichever card they have. `root` is `/`, `version` what the driver calls itself.
pub(super) fn common(root: &Path, version: &str) -> Result<Edits, String> {
    if version.is_empty() || !version.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'.' || byte == b'-') {
        return Err("the version of NVIDIA's driver is not known".into());
    }
    let libraries = libraries(root, version);
    if !libraries.keys().any(|name| name.starts_with("libcuda.so")) {
        return Err(format!("the library libcuda.so.{version} of NVIDIA's driver is not on this node"));
    }
    let mut edits = Edits::default();
    // Triton asks the linker's cache of the image, which knows nothing of what is mounted.
    edits.set_env("TRITON_LIBCUDA_PATH", inside()[0]);
    for (name, host) in &libraries {
        let mount = |folder| EditMount::read_only(host.clone(), Path::new(folder).join(name));
        edits.mounts.extend(inside().map(mount));
    }
    for program in PROGRAMS {
        let host = PROGRAM_FOLDERS.iter().map(|folder| root.join(folder).join(program)).find(|path| path.is_file());
        edits.mounts.extend(host.map(|host| EditMount::read_only(host, Path::new("/usr/bin").join(program))));
    }
    for file in FILES {
        let host = root.join(file);
        if host.exists() {
            edits.mounts.push(EditMount::read_only(host, Path::new("/").join(file)));
        }
    }
    if !root.join(CONTROL).exists() {
        return Err(format!("the device /{CONTROL} is not on this node"));
    }
    let there = OPTIONAL.into_iter().filter(|device| root.join(device).exists());
    let nodes = std::iter::once(CONTROL).chain(there);
    edits.device_nodes.extend(nodes.map(|device| DeviceNode::of(Path::new("/").join(device), root.join(device))));
    Ok(edits)
}

/// What a container needs of one card, or a part of one, besides.
pub(super) fn of_card(root: &Path, handle: &Handle) -> Result<Edits, String> {
    let minor = handle.minor.ok_or("the number of the card's device is not known")?;
    let mut edits = Edits::default();
    let mut add = |device: String| {
        let host = root.join(&device);
        if !host.exists() {
            return Err(format!("the device /{device} is not on this node"));
        }
        edits.device_nodes.push(DeviceNode::of(Path::new("/").join(&device), host));
        Ok(())
    };
    add(format!("dev/nvidia{minor}"))?;
    if let Some(mig) = handle.mig {
        let instance = format!("proc/driver/nvidia/capabilities/gpu{minor}/mig/gi{}", mig.gpu_instance);
        for access in [format!("{instance}/access"), format!("{instance}/ci{}/access", mig.compute_instance)] {
            let told = sysfs::text(&root.join(&access)).unwrap_or_default();
            let number =
                told.lines().find_map(|line| line.strip_prefix("DeviceFileMinor:")?.trim().parse::<u32>().ok());
            let number = number.ok_or_else(|| format!("/{access} does not tell the number of a device"))?;
            add(format!("dev/nvidia-caps/nvidia-cap{number}"))?;
        }
    } else if let Some(pci) = &handle.pci {
        for node in dri::nodes(root, pci) {
            add(node.strip_prefix("/").unwrap_or(&node).display().to_string())?;
        }
    }
    Ok(edits)
}

/// The version in `/proc/driver/nvidia/version`.
pub(super) fn loaded_version(root: &Path) -> Option<String> {
    let text = sysfs::text(&root.join("proc/driver/nvidia/version"))?;
    let line = text.lines().find(|line| line.starts_with("NVRM version:"))?;
    let is_version = |word: &&str| word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.');
    line.split_whitespace().find(is_version).map(str::to_owned)
}

/// Every name of every library of the driver, and the file it stands for.
fn libraries(root: &Path, version: &str) -> BTreeMap<String, PathBuf> {
    let mut found = BTreeMap::new();
    let ending = format!(".so.{version}");
    let folders = FOLDERS.iter().map(|folder| root.join(folder)).chain(configured(root));
    for folder in folders {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let Ok(name) = entry.file_name().into_string() else { continue };
            if !LIBRARIES.iter().any(|known| name.starts_with(known)) || found.len() >= MOST_LIBRARIES {
                continue;
            }
            let Ok(file) = fs::canonicalize(entry.path()) else { continue };
            let of_driver = file.file_name().is_some_and(|name| name.to_string_lossy().ends_with(&ending));
            if of_driver && file.is_file() {
                found.entry(name).or_insert(file);
            }
        }
    }
    found
}

/// The folders that the machine's loader is told to look in besides.
fn configured(root: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(root.join("etc/ld.so.conf.d")).into_iter().flatten().flatten().map(|entry| entry.path());
    let texts = files.take(256).filter_map(|path| sysfs::text(&path)).collect::<Vec<_>>();
    let lines = texts.iter().flat_map(|text| text.lines()).map(str::trim).filter(|line| line.starts_with('/'));
    // Others are for programs of other machines.
    lines.filter(|line| !line.contains("i386") && !line.contains("lib32")).map(|line| root.join(&line[1..])).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::agent::gpu::Mig;

    const VERSION: &str = "570.86.10";

    fn put(root: &Path, files: &[&str]) {
        for file in files {
            let path = root.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
    }

    fn machine() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        put(
            root,
            &[
                "usr/lib/x86_64-linux-gnu/libcuda.so.570.86.10",
                "usr/lib/x86_64-linux-gnu/libnvidia-ml.so.570.86.10",
                "usr/lib/x86_64-linux-gnu/libnvidia-old.so.535.1",
                "usr/lib/x86_64-linux-gnu/libcudart.so.570.86.10",
                "opt/nv/libnvoptix.so.570.86.10",
                "usr/lib/i386-linux-gnu/libcuda.so.570.86.10",
                "usr/bin/nvidia-smi",
                "run/nvidia-persistenced/socket",
                "dev/nvidiactl",
                "dev/nvidia-uvm",
                "dev/nvidia0",
                "dev/nvidia1",
                "dev/dri/card1",
                "dev/dri/renderD128",
                "dev/nvidia-caps/nvidia-cap12",
                "dev/nvidia-caps/nvidia-cap13",
                "sys/bus/pci/devices/0000:01:00.0/drm/card1/x",
                "sys/bus/pci/devices/0000:01:00.0/drm/renderD128/x",
            ],
        );
        let libraries = root.join("usr/lib/x86_64-linux-gnu");
        symlink("libcuda.so.570.86.10", libraries.join("libcuda.so.1")).unwrap();
        symlink("libcuda.so.1", libraries.join("libcuda.so")).unwrap();
        symlink("libnvidia-old.so.535.1", libraries.join("libnvidia-old.so.1")).unwrap();
        symlink("/etc/passwd", libraries.join("libnvidia-evil.so.570.86.10")).unwrap();
        let conf = root.join("etc/ld.so.conf.d");
        fs::create_dir_all(&conf).unwrap();
        fs::write(conf.join("nv.conf"), "# x\n/opt/nv\n/usr/lib/i386-linux-gnu\n").unwrap();
        let caps = root.join("proc/driver/nvidia/capabilities/gpu1/mig/gi7");
        fs::create_dir_all(caps.join("ci0")).unwrap();
        fs::write(caps.join("access"), "DeviceFileMinor: 12\nDeviceFileMode: 292\n").unwrap();
        fs::write(caps.join("ci0/access"), "DeviceFileMinor: 13\n").unwrap();
        dir
    }

    fn inside_of(edits: &Edits) -> Vec<String> {
        edits.device_nodes.iter().map(|node| node.path.display().to_string()).collect()
    }

    #[test]
    fn libraries_are_mounted_under_all_their_names() {
        let dir = machine();
        let edits = common(dir.path(), VERSION).unwrap();
        let folder = inside()[0];
        let names: Vec<String> = edits
            .mounts
            .iter()
            .filter_map(|mount| mount.container_path.strip_prefix(folder).ok())
            .map(|name| name.display().to_string())
            .collect();
        assert_eq!(
            names,
            [
                "libcuda.so",
                "libcuda.so.1",
                "libcuda.so.570.86.10",
                "libnvidia-ml.so.570.86.10",
                "libnvoptix.so.570.86.10"
            ]
        );
        let other = |path: &str| edits.mounts.iter().any(|mount| mount.container_path == Path::new(path));
        assert!(
            other("/usr/lib64/libcuda.so.1") && other("/usr/bin/nvidia-smi") && !other("/usr/bin/nvidia-debugdump")
        );
        assert!(other("/run/nvidia-persistenced/socket"));
        assert!(edits.mounts.iter().all(|mount| mount.options.contains(&"ro".to_owned())));
        assert_eq!(inside_of(&edits), ["/dev/nvidiactl", "/dev/nvidia-uvm"]);
        assert!(edits.hooks.is_empty());
        assert_eq!(edits.device_nodes[0].host_path, Some(dir.path().join("dev/nvidiactl")));
    }

    #[test]
    fn a_container_sees_its_cards_and_no_others() {
        let dir = machine();
        let handle = |minor, mig| Handle { minor: Some(minor), pci: Some("0000:01:00.0".into()), mig, index: 0 };
        let card = of_card(dir.path(), &handle(0, None)).unwrap();
        assert_eq!(inside_of(&card), ["/dev/nvidia0", "/dev/dri/card1", "/dev/dri/renderD128"]);
        let mig = Mig { index: 0, gpu_instance: 7, compute_instance: 0 };
        let part = of_card(dir.path(), &handle(1, Some(mig))).unwrap();
        assert_eq!(
            inside_of(&part),
            ["/dev/nvidia1", "/dev/nvidia-caps/nvidia-cap12", "/dev/nvidia-caps/nvidia-cap13"]
        );
        let gone = of_card(dir.path(), &handle(5, None)).unwrap_err();
        assert_eq!(gone, "the device /dev/nvidia5 is not on this node");
        let mig = Mig { gpu_instance: 8, ..mig };
        assert!(of_card(dir.path(), &handle(1, Some(mig))).unwrap_err().contains("gi8/access"));
    }

    #[test]
    fn what_is_missing_is_named() {
        let dir = machine();
        let why = common(dir.path(), "575.1").unwrap_err();
        assert_eq!(why, "the library libcuda.so.575.1 of NVIDIA's driver is not on this node");
        assert!(common(dir.path(), "../..").is_err() && common(dir.path(), "").is_err());
        fs::remove_file(dir.path().join("dev/nvidiactl")).unwrap();
        assert_eq!(common(dir.path(), VERSION).unwrap_err(), "the device /dev/nvidiactl is not on this node");
    }

    #[test]
    fn the_kernels_module_tells_its_version() {
        let dir = machine();
        assert_eq!(loaded_version(dir.path()), None);
        let path = dir.path().join("proc/driver/nvidia/version");
        for (text, want) in [
            (
                "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.10  Tue Jan\nGCC version: gcc 12.2.0\n",
                Some(VERSION),
            ),
            ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.10  Release Build\n", Some(VERSION)),
            ("GCC version: 12.2.0", None),
        ] {
            fs::write(&path, text).unwrap();
            assert_eq!(loaded_version(dir.path()).as_deref(), want);
        }
    }
}
