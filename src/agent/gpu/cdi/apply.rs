//! Puts edits into the specification that the runtime gets.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
};

use nix::sys::stat::{major, minor};
use oci_spec::runtime::{
    Hook, Hooks, Linux, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, LinuxResources, Mount, Process, Spec,
};

use super::{DeviceNode, EditHook, EditMount, Edits};

/// Applies `edits`. `Err` says in words for people which device is not there.
pub fn apply(spec: &mut Spec, edits: &Edits) -> Result<(), String> {
    if let Some(process) = spec.process_mut() {
        environment(process, &edits.env);
        groups(process, &edits.additional_gids);
    }
    let linux = spec.linux_mut().get_or_insert_with(Linux::default);
    for node in &edits.device_nodes {
        device(linux, node)?;
    }
    let mounts = spec.mounts_mut().get_or_insert_default();
    for edit in &edits.mounts {
        mounts.retain(|known| *known.destination() != edit.container_path);
        mounts.push(mount(edit));
    }
    // The outer ones first, so that none hides another.
    mounts.sort_by_key(|mount| mount.destination().components().count());
    for edit in &edits.hooks {
        hook(spec.hooks_mut().get_or_insert_with(Hooks::default), edit)?;
    }
    Ok(())
}

fn environment(process: &mut Process, pairs: &[String]) {
    let env = process.env_mut().get_or_insert_default();
    let key = |pair: &str| pair.split_once('=').map(|(key, _)| key.to_owned());
    for pair in pairs {
        match env.iter_mut().find(|known| key(known) == key(pair)) {
            Some(known) => known.clone_from(pair),
            None => env.push(pair.clone()),
        }
    }
}

fn groups(process: &mut Process, wanted: &[u32]) {
    let mut user = process.user().clone();
    let mut groups = user.additional_gids().clone().unwrap_or_default();
    for gid in wanted.iter().filter(|gid| **gid != 0) {
        if !groups.contains(gid) {
            groups.push(*gid);
        }
    }
    user.set_additional_gids((!groups.is_empty()).then_some(groups));
    process.set_user(user);
}

fn device(linux: &mut Linux, wanted: &DeviceNode) -> Result<(), String> {
    let host = wanted.host_path.as_ref().unwrap_or(&wanted.path);
    let shown = host.display();
    let metadata = fs::metadata(host);
    let found = metadata.as_ref().ok();
    let kind = match wanted.kind.as_deref() {
        Some("c") => LinuxDeviceType::C,
        Some("b") => LinuxDeviceType::B,
        Some("u") => LinuxDeviceType::U,
        Some("p") => LinuxDeviceType::P,
        Some(other) => return Err(format!("`{shown}` is to be a device of the unknown type `{other}`")),
        None => match found.map(fs::Metadata::file_type) {
            Some(kind) if kind.is_char_device() => LinuxDeviceType::C,
            Some(kind) if kind.is_block_device() => LinuxDeviceType::B,
            Some(kind) if kind.is_fifo() => LinuxDeviceType::P,
            Some(_) => return Err(format!("`{shown}` is no device")),
            None => return Err(format!("the device `{shown}` is not on this node")),
        },
    };
    let number = |of: fn(u64) -> u64| found.and_then(|found| i64::try_from(of(found.rdev())).ok());
    let known = |told: Option<i64>, own: Option<i64>| {
        told.or(own).ok_or_else(|| format!("the device `{shown}` is not on this node"))
    };
    let mut node = LinuxDevice::default();
    node.set_path(wanted.path.clone())
        .set_typ(kind)
        .set_major(known(wanted.major, number(major))?)
        .set_minor(known(wanted.minor, number(minor))?)
        .set_file_mode(wanted.file_mode.or(found.map(|found| found.mode() & 0o7777)))
        .set_uid(wanted.uid.or(found.map(MetadataExt::uid)))
        .set_gid(wanted.gid.or(found.map(MetadataExt::gid)));
    if kind != LinuxDeviceType::P {
        let mut rule = LinuxDeviceCgroup::from(&node);
        rule.set_access(Some(wanted.permissions.clone().unwrap_or_else(|| "rwm".to_owned())));
        let resources = linux.resources_mut().get_or_insert_with(LinuxResources::default);
        resources.devices_mut().get_or_insert_default().push(rule);
    }
    let devices = linux.devices_mut().get_or_insert_default();
    devices.retain(|known| known.path() != node.path());
    devices.push(node);
    Ok(())
}

fn mount(edit: &EditMount) -> Mount {
    let mut options = edit.options.clone();
    let kind = edit.kind.clone().filter(|kind| !kind.is_empty()).unwrap_or_else(|| "bind".to_owned());
    if kind == "bind" && !options.iter().any(|option| option == "bind" || option == "rbind") {
        options.push("bind".to_owned());
    }
    let mut mount = Mount::default();
    mount
        .set_destination(edit.container_path.clone())
        .set_typ(Some(kind))
        .set_source(Some(edit.host_path.clone()))
        .set_options(Some(options));
    mount
}

fn hook(hooks: &mut Hooks, edit: &EditHook) -> Result<(), String> {
    let mut hook = Hook::default();
    hook.set_path(edit.path.clone())
        .set_args((!edit.args.is_empty()).then(|| edit.args.clone()))
        .set_env((!edit.env.is_empty()).then(|| edit.env.clone()))
        .set_timeout(edit.timeout);
    let list = match edit.hook_name.as_str() {
        "prestart" => hooks.prestart_mut(),
        "createRuntime" => hooks.create_runtime_mut(),
        "createContainer" => hooks.create_container_mut(),
        "startContainer" => hooks.start_container_mut(),
        "poststart" => hooks.poststart_mut(),
        "poststop" => hooks.poststop_mut(),
        other => return Err(format!("`{other}` is no time at which a hook can be started")),
    };
    list.get_or_insert_default().push(hook);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_are_put_where_the_runtime_looks() {
        let mut spec = Spec::default();
        let edits: Edits = serde_json::from_value(serde_json::json!({
            "env": ["PATH=/x", "NEW=1"],
            "deviceNodes": [
                { "path": "/dev/gpu0", "hostPath": "/dev/null", "permissions": "rw" },
                { "path": "/dev/gpu1", "type": "c", "major": 195, "minor": 1, "fileMode": 438, "uid": 5, "gid": 6 },
            ],
            "mounts": [
                { "hostPath": "/lib/x", "containerPath": "/usr/lib/deep/x", "options": ["ro"] },
                { "hostPath": "/lib/y", "containerPath": "/usr", "type": "tmpfs" },
            ],
            "hooks": [{ "hookName": "createContainer", "path": "/bin/hook", "args": ["hook", "a"], "timeout": 5 }],
            "additionalGIDs": [0, 44, 44],
            "intelRdt": { "closID": "x" },
        }))
        .unwrap();
        apply(&mut spec, &edits).unwrap();
        let spec = serde_json::to_value(&spec).unwrap();
        let env = spec["process"]["env"].as_array().unwrap();
        assert!(env.contains(&"PATH=/x".into()) && env.contains(&"NEW=1".into()), "{env:?}");
        assert_eq!(env.iter().filter(|pair| pair.as_str().unwrap().starts_with("PATH=")).count(), 1);
        assert_eq!(spec["process"]["user"]["additionalGids"], serde_json::json!([44]));
        let devices = &spec["linux"]["devices"];
        assert_eq!((&devices[0]["major"], &devices[0]["minor"]), (&1.into(), &3.into()));
        assert_eq!((&devices[1]["minor"], &devices[1]["gid"]), (&1.into(), &6.into()));
        let rules = spec["linux"]["resources"]["devices"].as_array().unwrap();
        let rule = &rules[rules.len() - 2];
        assert_eq!((&rule["allow"], &rule["access"], &rule["major"]), (&true.into(), &"rw".into(), &1.into()));
        let places: Vec<&str> =
            spec["mounts"].as_array().unwrap().iter().map(|m| m["destination"].as_str().unwrap()).collect();
        let place = |path: &str| places.iter().position(|place| *place == path).unwrap();
        assert!(place("/usr") < place("/usr/lib/deep/x") && place("/dev") < place("/dev/pts"), "{places:?}");
        assert_eq!(spec["hooks"]["createContainer"][0]["args"][1], "a");
    }

    #[test]
    fn what_is_not_there_is_named() {
        let fails = |edits: serde_json::Value| {
            apply(&mut Spec::default(), &serde_json::from_value(edits).unwrap()).unwrap_err()
        };
        let why = fails(serde_json::json!({ "deviceNodes": [{ "path": "/dev/no-such-gpu" }] }));
        assert_eq!(why, "the device `/dev/no-such-gpu` is not on this node");
        assert!(fails(serde_json::json!({ "deviceNodes": [{ "path": "/etc/passwd" }] })).contains("is no device"));
        assert!(fails(serde_json::json!({ "deviceNodes": [{ "path": "/dev/x", "type": "z" }] })).contains("`z`"));
        assert!(fails(serde_json::json!({ "hooks": [{ "hookName": "someday", "path": "/x" }] })).contains("someday"));
    }
}
