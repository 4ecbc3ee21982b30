//! The process of a container: what is run, as whom, with which rights.

use std::path::Path;

use oci_spec::runtime::{PosixRlimit, PosixRlimitBuilder, PosixRlimitType, Process, User};
use toft_model::workload::{ProcessSpec, Ulimit};

use super::{Parts, capabilities};
use crate::agent::gpu::cdi::{NO_DEVICES, VISIBLE_DEVICES};

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Open files a process begins with, and up to how many it may ask for.
const OPEN_FILES: (u64, u64) = (1024, 1_048_576);
/// What programs take the terminal for unless told otherwise, as with Docker.
const TERM: &str = "xterm";
/// What the logger is told so that it is a container's first process.
const INIT_WORD: &str = "init";

pub(super) fn build(parts: &Parts<'_>) -> Result<Process, String> {
    let order = &parts.order.process;
    let mut process = Process::default();
    process
        .set_terminal(order.tty.then_some(true))
        .set_console_size(None)
        .set_user(user(parts))
        .set_args(Some(arguments(parts)?))
        .set_env(Some(environment(parts)))
        .set_cwd(Path::new("/").join(&parts.image.config.working_dir))
        .set_capabilities(Some(capabilities::sets(&capabilities::wanted(order, parts.host.capabilities))))
        .set_rlimits(Some(limits(order, parts.host.open_files)))
        .set_no_new_privileges(Some(!order.allow_new_privileges && !order.privileged));
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
    if let Some(init) = &parts.order.init {
        let init = [init.display().to_string(), INIT_WORD.to_owned()];
        arguments.splice(0..0, init);
    }
    Ok(arguments)
}

/// Later ones win: defaults, the image, the order.
fn environment(parts: &Parts<'_>) -> Vec<String> {
    let mut pairs: Vec<(String, String)> =
        vec![("PATH".into(), DEFAULT_PATH.into()), ("HOSTNAME".into(), parts.order.hostname.clone())];
    pairs.extend(parts.order.process.tty.then(|| ("TERM".into(), TERM.into())));
    let image = parts.image.config.env.iter().map(|entry| entry.split_once('=').unwrap_or((entry, "")));
    let order = parts.order.env.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    for (key, value) in image.chain(order) {
        match pairs.iter_mut().find(|(known, _)| known == key) {
            Some(pair) => value.clone_into(&mut pair.1),
            None => pairs.push((key.to_owned(), value.to_owned())),
        }
    }
    // Images ask for every card of the node this way. Who was given cards is told so by their edits; no other program beside
    // the runtime shall read it otherwise.
    if let Some((_, value)) = pairs.iter_mut().find(|(key, _)| key == VISIBLE_DEVICES) {
        NO_DEVICES.clone_into(value);
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

/// Docker's limits and the order's.
fn limits(process: &ProcessSpec, most_files: u64) -> Vec<PosixRlimit> {
    let (soft, hard) = OPEN_FILES;
    let mut limits = vec![limit(PosixRlimitType::RlimitNofile, soft.min(most_files), hard.min(most_files))];
    for (name, Ulimit { soft, hard }) in &process.ulimits {
        let Ok(kind) = format!("RLIMIT_{}", name.as_str().to_ascii_uppercase()).parse::<PosixRlimitType>() else {
            continue;
        };
        limits.retain(|limit| limit.typ() != kind);
        // -1 is the kernel's word for no limit, too.
        limits.push(limit(kind, *soft as u64, *hard as u64));
    }
    limits
}

fn limit(kind: PosixRlimitType, soft: u64, hard: u64) -> PosixRlimit {
    PosixRlimitBuilder::default().typ(kind).soft(soft).hard(hard).build().expect("every field has a value")
}
