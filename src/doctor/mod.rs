//! Looks at a machine as toft needs it, and says for each failure which command mends it. It changes nothing, and needs
//! no daemon; what it tries out it tries in a network namespace of its own.

mod clock;
mod dns;
mod gpu;
mod kernel;
mod mesh;
mod network;
mod ports;
mod runtime;
mod storage;

#[cfg(test)]
mod tests;

use std::path::Path;

use serde::Serialize;

use crate::config::{Config, ConfigError};

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It is as it should be.
    Ok,
    /// It works, but not well, or not for everything.
    Warning,
    /// Something will not work.
    Failure,
    /// It could not be looked at, or does not matter here.
    NotApplicable,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What it belongs to: `kernel`, `storage`, `network`, `runtime`, `gpu`, `system`.
    pub area: &'static str,
    /// What was looked at.
    pub name: &'static str,
    /// How it is.
    pub verdict: Verdict,
    /// How it is, in one line.
    pub message: String,
    /// The command that mends it, or what to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

/// What a check says: all of it but what it is about.
struct Said {
    verdict: Verdict,
    message: String,
    fix: Option<String>,
}

fn ok(message: impl Into<String>) -> Said {
    Said { verdict: Verdict::Ok, message: message.into(), fix: None }
}

fn warning(message: impl Into<String>, fix: impl Into<String>) -> Said {
    Said { verdict: Verdict::Warning, message: message.into(), fix: Some(fix.into()) }
}

fn failure(message: impl Into<String>, fix: impl Into<String>) -> Said {
    Said { verdict: Verdict::Failure, message: message.into(), fix: Some(fix.into()) }
}

fn skipped(message: impl Into<String>) -> Said {
    Said { verdict: Verdict::NotApplicable, message: message.into(), fix: None }
}

impl Said {
    fn of(self, area: &'static str, name: &'static str) -> Check {
        Check { area, name, verdict: self.verdict, message: self.message, fix: self.fix }
    }
}

/// Looks at the GPUs alone.
pub async fn examine_gpus(config: &Config) -> Vec<Check> {
    let config = config.gpu.clone();
    blocking(move || gpu::checks(Path::new("/"), &config)).await
}

/// Looks at everything. Without a configuration that can be read, at what does not depend on it.
pub async fn examine(config: &Result<Config, ConfigError>) -> Vec<Check> {
    let mut checks = Vec::new();
    let daemon = config.as_ref().ok().and_then(|config| daemon_pid(&config.paths.run));
    match config {
        Ok(_) => checks.push(ok("can be read").of("system", "configuration")),
        Err(error) => {
            let fix = "edit /etc/toft/toft.toml and /etc/toft/toft.d/*.toml; packaging/toft.toml shows every key";
            checks.push(failure(error.0.join("; "), fix).of("system", "configuration"));
        }
    }
    checks.push(match daemon {
        Some(pid) => ok(format!("runs as process {pid}")).of("system", "daemon"),
        None => skipped("does not run; `sudo systemctl start toft` starts it").of("system", "daemon"),
    });
    checks.extend(clock::checks());
    checks.extend(storage::memory());
    checks.extend(blocking(kernel::checks).await);
    if let Ok(config) = config {
        let data = config.paths.data.clone();
        checks.extend(blocking(move || storage::checks(&data)).await);
        checks.extend(runtime::checks(config, daemon.is_some()).await);
        let (bind, members) = (config.api.bind, config.cluster.bind);
        checks.extend(blocking(move || ports::checks(bind, members, daemon)).await);
        let mesh = config.mesh.clone();
        checks.extend(blocking(move || mesh::checks(&mesh, daemon.is_some())).await);
        checks.extend(examine_gpus(config).await);
    }
    checks.extend(blocking(network::checks).await);
    checks.push(dns::check(Path::new("/etc/resolv.conf")).await.of("network", "dns"));
    checks
}

async fn blocking(work: impl FnOnce() -> Vec<Check> + Send + 'static) -> Vec<Check> {
    match tokio::task::spawn_blocking(work).await {
        Ok(checks) => checks,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

/// The daemon of that appliance, if it runs.
fn daemon_pid(run: &Path) -> Option<u32> {
    let pid: u32 = std::fs::read_to_string(run.join("toft.pid")).ok()?.trim().parse().ok()?;
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    // The number may be another's by now.
    line.split(|byte| *byte == 0).any(|word| word == b"up").then_some(pid)
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}
