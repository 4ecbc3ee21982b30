//! What is run: the container's own process as it was ordered, changed by the order.

use std::os::fd::OwnedFd;

use nix::{
    fcntl::{OFlag, open},
    sys::stat::Mode,
};
use oci_spec::runtime::{BoxBuilder, Process, Spec, User};
use toft_model::exec::ExecOrder;

use super::{STARTING, failed};
use crate::agent::runtime::{RuntimeError, containerd::users};

/// What a shell exits with when a command cannot be executed.
const NOT_EXECUTABLE: i32 = 126;
/// What programs take the terminal for unless told otherwise, as with Docker.
const TERM: &str = "xterm";

/// The process as JSON. `spec` is the container's specification, `pid` its main process.
pub(super) async fn build(spec: Vec<u8>, order: &ExecOrder, pid: u32) -> Result<Vec<u8>, RuntimeError> {
    let unreadable = |error: serde_json::Error| failed(STARTING, format!("the container's specification: {error}"));
    let spec: Spec = serde_json::from_slice(&spec).map_err(unreadable)?;
    let mut process = spec.process().clone().unwrap_or_default();
    change(&mut process, order);
    if let Some(wanted) = order.user.clone() {
        let looked_up = tokio::task::spawn_blocking(move || user(&wanted, pid)).await;
        process.set_user(looked_up.map_err(|error| failed(STARTING, error.to_string()))??);
    }
    serde_json::to_vec(&process).map_err(unreadable)
}

fn change(process: &mut Process, order: &ExecOrder) {
    let mut env = process.env().clone().unwrap_or_default();
    let mut set = |key: &str, value: &str| {
        env.retain(|pair| pair.split_once('=').is_none_or(|(known, _)| known != key));
        env.push(format!("{key}={value}"));
    };
    if order.terminal.is_some() {
        set("TERM", TERM);
    }
    order.env.iter().for_each(|(key, value)| set(key, value));
    process.set_args(Some(order.command.clone())).set_env(Some(env)).set_terminal(Some(order.terminal.is_some()));
    if let Some(size) = order.terminal {
        // The builder fails for want of a field only, and has defaults.
        process.set_console_size(BoxBuilder::default().width(size.columns).height(size.rows).build().ok());
    }
    if let Some(dir) = &order.dir {
        process.set_cwd(dir.into());
    }
}

/// A user of the running container, by its own databases.
fn user(wanted: &str, pid: u32) -> Result<User, RuntimeError> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root: OwnedFd = open(format!("/proc/{pid}/root").as_str(), flags, Mode::empty())
        .map_err(|error| failed(STARTING, format!("the container's files cannot be reached: {error}")))?;
    let identity = users::inside(&root, wanted.trim())
        .map_err(|reason| RuntimeError::StartFailed { reason, exit_code: NOT_EXECUTABLE })?;
    let mut groups = identity.groups.clone();
    if !groups.contains(&identity.gid) {
        groups.insert(0, identity.gid);
    }
    let mut user = User::default();
    user.set_uid(identity.uid).set_gid(identity.gid).set_additional_gids(Some(groups));
    Ok(user)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use toft_model::exec::TerminalSize;

    use super::*;

    const SPEC: &str = r#"{"ociVersion":"1.0.2","root":{"path":"rootfs"},"process":{"args":["sleep"],"cwd":"/srv",
        "env":["A=1","TERM=dumb","B=2"],"user":{"uid":5,"gid":6},"noNewPrivileges":true}}"#;

    fn order() -> ExecOrder {
        let env = BTreeMap::from([("A".to_owned(), "x=y".to_owned())]);
        ExecOrder { command: vec!["sh".into()], env, user: None, dir: None, stdin: true, terminal: None }
    }

    async fn built(order: &ExecOrder) -> serde_json::Value {
        serde_json::from_slice(&build(SPEC.into(), order, std::process::id()).await.unwrap()).unwrap()
    }

    #[tokio::test]
    async fn the_containers_own_process_is_changed_as_ordered() {
        let process = built(&order()).await;
        assert_eq!(process["args"], serde_json::json!(["sh"]));
        assert_eq!(process["env"], serde_json::json!(["TERM=dumb", "B=2", "A=x=y"]));
        assert_eq!((&process["cwd"], &process["user"]["uid"]), (&"/srv".into(), &5.into()));
        assert_eq!((&process["noNewPrivileges"], &process["terminal"]), (&true.into(), &false.into()));
        let terminal = Some(TerminalSize { columns: 90, rows: 30 });
        let process =
            built(&ExecOrder { terminal, dir: Some("/tmp".into()), user: Some("7:8".into()), ..order() }).await;
        assert_eq!(process["consoleSize"], serde_json::json!({"width": 90, "height": 30}));
        assert_eq!((&process["cwd"], &process["terminal"]), (&"/tmp".into(), &true.into()));
        assert_eq!(process["user"], serde_json::json!({"uid": 7, "gid": 8, "additionalGids": [8]}));
        assert!(process["env"].as_array().unwrap().contains(&"TERM=xterm".into()), "{process}");
    }

    #[tokio::test]
    async fn a_specification_that_cannot_be_read_is_told() {
        assert!(matches!(build(b"{".to_vec(), &order(), 1).await, Err(RuntimeError::Failed { .. })));
    }
}
