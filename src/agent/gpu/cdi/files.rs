//! Specifications in files, JSON or YAML, as `nvidia-ctk cdi generate` writes them. Whoever can write one can run programs as
//! root, so a file that others than root can write is not read.

use std::{
    collections::BTreeMap,
    fs,
    io::Read,
    os::unix::fs::MetadataExt,
    path::{Component, Path, PathBuf},
};

use serde::Deserialize;
use toft_model::gpu::CdiName;

use super::{Edits, hooks};

/// Largest file, in bytes.
const LARGEST: u64 = 4 << 20;
/// Most files of a folder, devices of a file, and entries of each list of edits.
const MOST_FILES: usize = 256;
const MOST_DEVICES: usize = 1_024;
const MOST_ENTRIES: usize = 4_096;
/// Most devices that are told when one is not known.
const MOST_TOLD: usize = 8;
/// Longest text of any kind, in bytes.
const LONGEST: usize = 4_096;
/// Longest wait for a hook, in seconds.
const LONGEST_HOOK: i64 = 300;

/// A file as written. What newer versions say besides is left out.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SpecFile {
    cdi_version: String,
    kind: String,
    devices: Vec<SpecDevice>,
    #[serde(default)]
    container_edits: Edits,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SpecDevice {
    name: String,
    #[serde(default)]
    container_edits: Edits,
}

/// A file that was not taken, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecFault {
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub reason: String,
}

/// All that the folders hold.
#[derive(Debug, Default)]
pub struct Library {
    devices: BTreeMap<(String, String), Entry>,
    /// Files that were not taken.
    pub faults: Vec<SpecFault>,
}

#[derive(Debug)]
struct Entry {
    folder: usize,
    path: PathBuf,
    edits: Edits,
    /// Another file of the same folder says something else of the same device.
    ambiguous: bool,
}

impl Library {
    /// Reads every specification. Of a device that two folders know the later one's is taken.
    pub fn read(folders: &[PathBuf]) -> Self {
        let mut library = Self::default();
        for (rank, folder) in folders.iter().enumerate() {
            let Ok(entries) = fs::read_dir(folder) else { continue };
            let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
            paths.retain(|path| path.extension().is_some_and(|ending| ending == "json" || ending == "yaml"));
            paths.sort();
            for path in paths.into_iter().take(MOST_FILES) {
                match read(&path) {
                    Ok(spec) => library.take(rank, &path, spec),
                    Err(reason) => library.faults.push(SpecFault { path, reason }),
                }
            }
        }
        library
    }

    fn take(&mut self, folder: usize, path: &Path, spec: SpecFile) {
        for device in spec.devices {
            let mut edits = spec.container_edits.clone();
            edits.extend(device.container_edits);
            let key = (spec.kind.clone(), device.name);
            let ambiguous = self.devices.get(&key).is_some_and(|known| known.folder == folder);
            self.devices.insert(key, Entry { folder, path: path.to_owned(), edits, ambiguous });
        }
    }

    /// The edits of a device. `Err` says why it cannot be given.
    pub fn named(&self, name: &CdiName) -> Result<Edits, String> {
        let found = self.find(&name.kind, std::slice::from_ref(&name.device));
        match found {
            Some(Ok(edits)) if edits.is_empty() => Err("its specification says nothing of it".into()),
            Some(found) => found,
            None => {
                let all = self.devices.keys().map(|(kind, device)| format!("{kind}={device}"));
                let known: Vec<String> = all.filter(|known| known.starts_with(&name.kind)).take(MOST_TOLD).collect();
                Err(match known.is_empty() {
                    true => format!("no specification on this node describes a `{}`", name.kind),
                    false => format!("the specifications on this node know {}", known.join(", ")),
                })
            }
        }
    }

    /// Whether there is anything of a kind, such as `nvidia.com/gpu`.
    pub fn knows(&self, kind: &str) -> bool {
        self.devices.keys().any(|(known, _)| known == kind)
    }

    /// Why a specification is of another driver than the one that is there, when one is.
    pub fn stale(&self) -> Option<String> {
        self.devices.values().find_map(Entry::stale)
    }

    /// The edits of the first of `names` that is known among the devices of a kind. `Err` says why what is known cannot be
    /// used.
    pub fn find(&self, kind: &str, names: &[String]) -> Option<Result<Edits, String>> {
        let known = names.iter().find_map(|name| self.devices.get_key_value(&(kind.to_owned(), name.clone())))?;
        let ((_, name), entry) = known;
        let path = entry.path.display();
        if entry.ambiguous {
            return Some(Err(format!("two files beside `{path}` say different things of the device `{kind}={name}`")));
        }
        Some(match entry.stale() {
            Some(reason) => Err(reason),
            None => Ok(entry.edits.clone()),
        })
    }
}

impl Entry {
    /// Why it does not fit the files that are there, if so.
    fn stale(&self) -> Option<String> {
        let path = self.path.display();
        let gone = self.edits.mounts.iter().find(|mount| is_bind(mount) && !mount.host_path.exists());
        if let Some(gone) = gone {
            let gone = gone.host_path.display();
            return Some(format!("`{path}` names `{gone}`, which is not there: it is of another driver"));
        }
        // Whichever program toft is.
        hooks::complete(self.edits.clone(), Path::new("/")).err().map(|why| format!("`{path}`: {why}"))
    }
}

fn is_bind(mount: &super::EditMount) -> bool {
    mount.kind.as_deref().is_none_or(|kind| kind.is_empty() || kind == "bind")
}

fn read(path: &Path) -> Result<SpecFile, String> {
    let text = text(path)?;
    let parsed = if path.extension().is_some_and(|ending| ending == "json") {
        serde_json::from_str(&text).map_err(|error| error.to_string())
    } else {
        serde_saphyr::from_str(&text).map_err(|error| error.to_string())
    };
    let short = |text: String| text.chars().take(300).collect::<String>();
    let spec: SpecFile = parsed.map_err(|error| format!("it is not understood: {}", short(error)))?;
    check(&spec).map_err(short)?;
    Ok(spec)
}

fn text(path: &Path) -> Result<String, String> {
    let file = fs::File::open(path).map_err(|error| format!("it cannot be read: {error}"))?;
    let metadata = file.metadata().map_err(|error| format!("it cannot be looked at: {error}"))?;
    if !metadata.is_file() {
        return Err("it is no file".into());
    }
    let owner = nix::unistd::geteuid().as_raw();
    if (metadata.uid() != 0 && metadata.uid() != owner) || metadata.mode() & 0o022 != 0 {
        return Err("others than root can write to it".into());
    }
    let mut text = String::new();
    file.take(LARGEST + 1).read_to_string(&mut text).map_err(|error| format!("it cannot be read: {error}"))?;
    if text.len() as u64 > LARGEST {
        return Err("it is larger than 4 MiB".into());
    }
    Ok(text)
}

fn check(spec: &SpecFile) -> Result<(), String> {
    let version = spec.cdi_version.trim_start_matches('v');
    let mut numbers = version.split('.').map(|part| part.parse::<u32>().ok());
    if !matches!((numbers.next(), numbers.next()), (Some(Some(0..=1)), Some(Some(_)))) {
        return Err(format!("its version `{version}` is not known"));
    }
    if !CdiName::is_kind(&spec.kind) {
        return Err("its kind is not written as `vendor.com/class`".into());
    }
    if spec.devices.len() > MOST_DEVICES {
        return Err(format!("it has more than {MOST_DEVICES} devices"));
    }
    check_edits(&spec.container_edits).map_err(|why| format!("containerEdits: {why}"))?;
    for device in &spec.devices {
        let shown: String = device.name.chars().take(40).collect();
        if !CdiName::is_device(&device.name) {
            return Err(format!("`{shown}` is no name of a device"));
        }
        check_edits(&device.container_edits).map_err(|why| format!("device `{shown}`: {why}"))?;
    }
    Ok(())
}

fn check_edits(edits: &Edits) -> Result<(), String> {
    let Edits { env, device_nodes, mounts, hooks, additional_gids } = edits;
    for (what, count) in [
        ("env", env.len()),
        ("deviceNodes", device_nodes.len()),
        ("mounts", mounts.len()),
        ("hooks", hooks.len()),
        ("additionalGIDs", additional_gids.len()),
    ] {
        if count > MOST_ENTRIES {
            return Err(format!("there are more than {MOST_ENTRIES} {what}"));
        }
    }
    let key = |pair: &String| pair.split_once('=').is_some_and(|(key, _)| !key.is_empty());
    if !env.iter().all(key) {
        return Err("a variable of the environment is not written as `KEY=VALUE`".into());
    }
    texts(env)?;
    for node in device_nodes {
        path(&node.path)?;
        node.host_path.as_deref().filter(|host| !host.as_os_str().is_empty()).map_or(Ok(()), path)?;
        let access = node.permissions.as_deref().unwrap_or("rwm");
        if access.len() > 3 || !access.chars().all(|c| "rwm".contains(c)) {
            return Err("the permissions of a device are not of `r`, `w` and `m`".into());
        }
    }
    for mount in mounts {
        path(&mount.container_path)?;
        if is_bind(mount) {
            path(&mount.host_path)?;
        }
        texts(&mount.options)?;
    }
    for hook in hooks {
        path(&hook.path)?;
        texts(&hook.args)?;
        texts(&hook.env)?;
        if hook.timeout.is_some_and(|seconds| !(0..=LONGEST_HOOK).contains(&seconds)) {
            return Err(format!("a hook may take 0 to {LONGEST_HOOK} seconds"));
        }
    }
    Ok(())
}

fn texts(texts: &[String]) -> Result<(), String> {
    if texts.len() > MOST_ENTRIES || texts.iter().any(|text| text.len() > LONGEST || text.contains('\0')) {
        return Err("a text is too long, or holds a zero byte".into());
    }
    Ok(())
}

fn path(path: &Path) -> Result<(), String> {
    let text = path.as_os_str().as_encoded_bytes();
    let shown: String = path.to_string_lossy().chars().take(60).collect();
    if !path.is_absolute() || text.len() > LONGEST || text.contains(&0) {
        return Err(format!("`{shown}` is no absolute path"));
    }
    if path.components().any(|part| part == Component::ParentDir) {
        return Err(format!("`{shown}` leads upwards"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// As `nvidia-ctk cdi generate` writes it.
    const YAML: &str = "---
cdiVersion: 0.5.0
kind: nvidia.com/gpu
containerEdits:
  env: [NVIDIA_VISIBLE_DEVICES=void]
  deviceNodes:
  - path: /dev/nvidiactl
  hooks:
  - args: [nvidia-cdi-hook, update-ldcache, --folder, /usr/lib64]
    hookName: createContainer
    path: /usr/bin/nvidia-cdi-hook
  mounts:
  - containerPath: /usr/bin/nvidia-smi
    hostPath: /bin/sh
    options: [ro, nosuid, nodev, bind]
devices:
- name: \"0\"
  containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
- name: all
  containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
    - path: /dev/nvidia1
";

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    fn read_one(name: &str, text: &str) -> Library {
        let dir = folder(&[(name, text)]);
        Library::read(&[dir.path().to_owned()])
    }

    #[test]
    fn what_nvidias_tool_writes_is_understood() {
        let library = read_one("nvidia.yaml", YAML);
        assert_eq!(library.faults, []);
        assert!(library.knows("nvidia.com/gpu") && !library.knows("amd.com/gpu"));
        let names = ["GPU-1".to_owned(), "0".to_owned()];
        let edits = library.find("nvidia.com/gpu", &names).unwrap().unwrap();
        let nodes: Vec<_> = edits.device_nodes.iter().map(|node| node.path.to_str().unwrap()).collect();
        assert_eq!(nodes, ["/dev/nvidiactl", "/dev/nvidia0"]);
        assert_eq!((edits.hooks.len(), edits.mounts.len(), edits.env.len()), (1, 1, 1));
        assert!(library.find("nvidia.com/gpu", &["7".to_owned()]).is_none());
    }

    #[test]
    fn later_folders_win_and_one_folder_must_agree() {
        let json = |minor: u32| {
            format!(
                r#"{{"cdiVersion":"0.6.0","kind":"amd.com/gpu","devices":[{{"name":"0","containerEdits":{{"deviceNodes":[{{"path":"/dev/g{minor}"}}]}}}}]}}"#
            )
        };
        let (first, second) = (folder(&[("a.json", &json(1))]), folder(&[("b.json", &json(2)), ("c.txt", "no")]));
        let folders = [first.path().to_owned(), second.path().to_owned(), "/no/such/folder".into()];
        let library = Library::read(&folders);
        let names = ["0".to_owned()];
        let edits = library.find("amd.com/gpu", &names).unwrap().unwrap();
        assert_eq!(edits.device_nodes[0].path, Path::new("/dev/g2"));
        fs::write(second.path().join("d.json"), json(3)).unwrap();
        let why = Library::read(&folders).find("amd.com/gpu", &names).unwrap().unwrap_err();
        assert!(why.contains("say different things"), "{why}");
    }

    #[test]
    fn a_specification_of_another_driver_is_told() {
        let old = YAML.replace("/bin/sh", "/usr/lib/libcuda.so.1.2.3");
        let why = read_one("x.yaml", &old).find("nvidia.com/gpu", &["0".to_owned()]).unwrap().unwrap_err();
        assert!(why.contains("libcuda.so.1.2.3`, which is not there"), "{why}");
        let other = YAML.replace("/usr/bin/nvidia-cdi-hook", "/no/such/program");
        let library = read_one("x.yaml", &other);
        assert!(library.stale().unwrap().contains("the program `/no/such/program` of a hook is not there"));
    }

    #[test]
    fn hostile_files_are_refused_with_a_reason() {
        let fault = |name: &str, text: &str| {
            let library = read_one(name, text);
            assert!(library.devices.is_empty() && library.faults.len() == 1, "{text:.80}");
            library.faults[0].reason.clone()
        };
        for (change, with, reason) in [
            ("cdiVersion: 0.5.0", "cdiVersion: 7.0.0", "version `7.0.0`"),
            ("cdiVersion: 0.5.0", "cdiVersion: [1]", "not understood"),
            ("kind: nvidia.com/gpu", "kind: nvidia", "vendor.com/class"),
            ("kind: nvidia.com/gpu", "kind: ../x/gpu", "vendor.com/class"),
            ("name: all", "name: \"../../etc\"", "is no name of a device"),
            ("/dev/nvidiactl", "/dev/../etc/passwd", "leads upwards"),
            ("/dev/nvidiactl", "dev/nvidia", "no absolute path"),
            ("path: /usr/bin/nvidia-cdi-hook", "path: nvidia-cdi-hook", "no absolute path"),
            ("hostPath: /bin/sh", "hostPath: sh", "no absolute path"),
            ("[NVIDIA_VISIBLE_DEVICES=void]", "[nothing]", "`KEY=VALUE`"),
        ] {
            assert!(YAML.contains(change), "{change}");
            let why = fault("x.yaml", &YAML.replace(change, with));
            assert!(why.contains(reason), "{with}: {why}");
        }
        for text in ["", "\0", "{", "[]", "null", "a: &a [*a, *a]", &"[".repeat(100_000), &"- ".repeat(50_000)] {
            fault("x.yaml", text);
            fault("x.json", text);
        }
        let bomb =
            (1..60).map(|i| format!("a{i}: &a{i} [*a{}, *a{}, *a{}]\n", i - 1, i - 1, i - 1)).collect::<String>();
        fault("x.yaml", &format!("a0: &a0 [x, x, x, x, x]\n{bomb}"));
        assert_eq!(fault("x.json", &" ".repeat(5 << 20)), "it is larger than 4 MiB");
        let many = format!("[{}]", vec!["A=1"; 5_000].join(","));
        assert!(fault("x.yaml", &YAML.replace("[NVIDIA_VISIBLE_DEVICES=void]", &many)).contains("more than 4096 env"));
        let long = YAML.replace("=void", &format!("={}", "x".repeat(5_000)));
        assert!(fault("x.yaml", &long).contains("too long"));
    }

    #[test]
    fn what_others_can_write_is_not_read() {
        let dir = folder(&[("x.yaml", YAML)]);
        fs::set_permissions(dir.path().join("x.yaml"), fs::Permissions::from_mode(0o666)).unwrap();
        fs::create_dir(dir.path().join("y.json")).unwrap();
        let library = Library::read(&[dir.path().to_owned()]);
        let reasons: Vec<_> = library.faults.iter().map(|fault| fault.reason.as_str()).collect();
        assert_eq!(reasons, ["others than root can write to it", "it is no file"]);
    }
}
