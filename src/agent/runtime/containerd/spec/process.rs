//! The process of a container: what is run, as whom, with which rights.

use std::path::Path;

use oci_spec::runtime::{
    Capabilities, Capability, LinuxCapabilities, PosixRlimit, PosixRlimitBuilder, PosixRlimitType, Process, User,
};

use super::Parts;

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Open files a process begins with, and up to how many it may ask for.
const OPEN_FILES: (u64, u64) = (1024, 1_048_576);

/// The rights Docker leaves to root in a container.
const CAPABILITIES: [Capability; 14] = [
    Capability::AuditWrite,
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Mknod,
    Capability::NetBindService,
    Capability::NetRaw,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

pub(super) fn build(parts: &Parts<'_>) -> Result<Process, String> {
    let mut process = Process::default();
    process
        .set_terminal(None)
        .set_console_size(None)
        .set_user(user(parts))
        .set_args(Some(arguments(parts)?))
        .set_env(Some(environment(parts)))
        .set_cwd(Path::new("/").join(&parts.image.config.working_dir))
        .set_capabilities(Some(capabilities()))
        .set_rlimits(Some(vec![open_files(parts.host.open_files)]))
        .set_no_new_privileges(Some(true));
    Ok(process)
}

/// Docker's rule: an entrypoint in the order also puts the image's command aside.
fn arguments(parts: &Parts<'_>) -> Result<Vec<String>, String> {
    let (order, image) = (parts.order, &parts.image.config);
    let mut arguments = order.entrypoint.clone().unwrap_or_else(|| image.entrypoint.clone());
    if order.entrypoint.is_none() && order.command.is_empty() {
        arguments.extend_from_slice(&image.cmd);
    } else {
        arguments.extend_from_slice(&order.command);
    }
    if arguments.first().is_none_or(String::is_empty) {
        return Err("it names no command to run, so the workload must name one".to_owned());
    }
    Ok(arguments)
}

/// Later ones win: defaults, the image, the order.
fn environment(parts: &Parts<'_>) -> Vec<String> {
    let mut pairs: Vec<(String, String)> =
        vec![("PATH".into(), DEFAULT_PATH.into()), ("HOSTNAME".into(), parts.order.hostname.clone())];
    let image = parts.image.config.env.iter().map(|entry| entry.split_once('=').unwrap_or((entry, "")));
    let order = parts.order.env.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    for (key, value) in image.chain(order) {
        match pairs.iter_mut().find(|(known, _)| known == key) {
            Some(pair) => value.clone_into(&mut pair.1),
            None => pairs.push((key.to_owned(), value.to_owned())),
        }
    }
    pairs.into_iter().map(|(key, value)| format!("{key}={value}")).collect()
}

fn user(parts: &Parts<'_>) -> User {
    let mut user = User::default();
    user.set_uid(parts.identity.uid).set_gid(parts.identity.gid);
    // The main group is among the further ones too: without that, a process could leave it and with it a ban.
    let groups = std::iter::once(parts.identity.gid).chain(parts.identity.groups.iter().copied());
    user.set_additional_gids(Some(groups.collect()));
    user
}

fn capabilities() -> LinuxCapabilities {
    let set: Capabilities = CAPABILITIES.into_iter().collect();
    let mut capabilities = LinuxCapabilities::default();
    capabilities
        .set_bounding(Some(set.clone()))
        .set_effective(Some(set.clone()))
        .set_permitted(Some(set))
        .set_inheritable(None)
        .set_ambient(None);
    capabilities
}

fn open_files(most: u64) -> PosixRlimit {
    let (soft, hard) = OPEN_FILES;
    PosixRlimitBuilder::default()
        .typ(PosixRlimitType::RlimitNofile)
        .soft(soft.min(most))
        .hard(hard.min(most))
        .build()
        .expect("every field has a value")
}
