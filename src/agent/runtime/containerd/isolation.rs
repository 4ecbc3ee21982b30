//! The container runtimes that this node has, by short names: programs that speak containerd's shim protocol, and
//! drop-in replacements of runc.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use containerd_client::services::v1::container::Runtime as RuntimeName;
use prost::Message;
use prost_types::Any;
use toft_model::workload::Isolation;

use super::super::supervisor::{find_program, search_path};

/// The usual shim, which starts runc and what can stand in for it.
const RUNC_SHIM: &str = "io.containerd.runc.v2";
/// What can stand in for runc.
const LIKE_RUNC: [&str; 3] = ["crun", "youki", "sysbox-runc"];
const SHIM_PREFIX: &str = "containerd-shim-";

/// The part of the shim's options that is used here.
#[derive(Clone, PartialEq, Message)]
struct Options {
    #[prost(string, tag = "6")]
    binary_name: String,
}

/// A runtime of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Found {
    /// A shim of its own, by the name containerd knows it under.
    Shim(String),
    /// A program for the usual shim.
    LikeRunc(PathBuf),
}

/// Names of the runtimes that can be asked for.
pub(crate) fn names() -> Vec<String> {
    find(&search_path()).into_keys().collect()
}

/// The same with the program that does the work, where it is called as the runtime is.
pub(crate) fn programs() -> Vec<(String, Option<PathBuf>)> {
    let places = search_path();
    find(&places).into_keys().map(|name| (name.clone(), find_program(&name, &places))).collect()
}

/// What containerd shall run a container with. `Err` says in words for people why it cannot.
pub(super) fn choose(wanted: Option<&Isolation>) -> Result<RuntimeName, String> {
    let plain = |name: &str| RuntimeName { name: name.to_owned(), options: None };
    let Some(wanted) = wanted.filter(|wanted| wanted.as_str() != Isolation::USUAL) else { return Ok(plain(RUNC_SHIM)) };
    match find(&search_path()).remove(wanted.as_str()) {
        Some(Found::Shim(name)) => Ok(plain(&name)),
        Some(Found::LikeRunc(program)) => {
            let options = Options { binary_name: program.display().to_string() };
            let type_url = "containerd.runc.v1.Options".to_owned();
            Ok(RuntimeName {
                name: RUNC_SHIM.to_owned(),
                options: Some(Any { type_url, value: options.encode_to_vec() }),
            })
        }
        None => Err(format!("this node has no container runtime `{wanted}`")),
    }
}

fn find(places: &[PathBuf]) -> BTreeMap<String, Found> {
    let mut found = BTreeMap::new();
    let mut newest: BTreeMap<String, u32> = BTreeMap::new();
    for entry in places.iter().filter_map(|place| fs::read_dir(place).ok()).flatten().flatten() {
        let name = entry.file_name();
        let shim = name.to_str().and_then(|name| name.strip_prefix(SHIM_PREFIX)?.rsplit_once("-v"));
        let Some((name, Ok(version))) = shim.map(|(name, version)| (name, version.parse::<u32>())) else { continue };
        if name.parse::<Isolation>().is_ok() && is_program(&entry.path()) {
            let known = newest.entry(name.to_owned()).or_default();
            *known = version.max(*known);
        }
    }
    let usual = newest.remove(Isolation::USUAL).is_some();
    for (name, version) in newest {
        let shim = format!("io.containerd.{name}.v{version}");
        found.insert(name, Found::Shim(shim));
    }
    if usual {
        if find_program(Isolation::USUAL, places).is_some() {
            found.insert(Isolation::USUAL.to_owned(), Found::Shim(RUNC_SHIM.to_owned()));
        }
        let like = LIKE_RUNC.into_iter().filter_map(|name| Some((name, find_program(name, places)?)));
        found.extend(like.map(|(name, path)| (name.to_owned(), Found::LikeRunc(path))));
    }
    found
}

fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runtimes_are_known_by_their_programs() {
        let dir = tempfile::tempdir().unwrap();
        let program = |name: &str, mode| {
            let path = dir.path().join(name);
            fs::write(&path, "").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        };
        let places = [dir.path().join("absent"), dir.path().to_owned()];
        program("crun", 0o755);
        assert!(find(&places).is_empty(), "without the shim nothing can start it");
        for name in ["containerd-shim-runc-v2", "containerd-shim-runc-v1", "containerd-shim-kata-v2", "runc"] {
            program(name, 0o755);
        }
        program("containerd-shim-runsc-v1", 0o644);
        program("containerd-shim-BAD-v1", 0o755);
        let found = find(&places);
        assert_eq!(found.keys().collect::<Vec<_>>(), ["crun", "kata", "runc"]);
        assert_eq!(found["kata"], Found::Shim("io.containerd.kata.v2".into()));
        assert_eq!(found["crun"], Found::LikeRunc(dir.path().join("crun")));
    }

    #[test]
    fn one_that_is_absent_is_told() {
        assert!(choose(Some(&"nosuch".parse().unwrap())).unwrap_err().contains("`nosuch`"));
        assert_eq!(choose(None).unwrap().name, RUNC_SHIM);
    }
}
