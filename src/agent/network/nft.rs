//! The `nft` program: one script in, one transaction, all or nothing.

use std::{io, process::Stdio, time::Duration};

use tokio::{io::AsyncWriteExt, process::Command};

use super::NetworkError;

/// How long one run may take. It waits for other users of nftables, and needs milliseconds by itself.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What is said to be going on when it fails.
const DOING: &str = "applying the packet rules";

/// Runs `script`.
pub(super) async fn run(script: &str) -> Result<(), NetworkError> {
    let failed = |reason: String| NetworkError::Failed { doing: DOING, reason };
    let output = tokio::time::timeout(TIMEOUT, feed(script))
        .await
        .map_err(|_| failed(format!("`nft` took longer than {} s", TIMEOUT.as_secs())))?
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                NetworkError::ToolMissing { tool: "nft", hint: "install it with `apt-get install nftables`" }
            }
            _ => failed(error.to_string()),
        })?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    if words.contains("Operation not permitted") {
        return Err(NetworkError::NotPermitted { doing: DOING });
    }
    let first = words.lines().next().unwrap_or_default().trim();
    Err(failed(if first.is_empty() { output.status.to_string() } else { first.to_owned() }))
}

/// Starts `nft`, writes the script and waits for the end.
async fn feed(script: &str) -> io::Result<std::process::Output> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(script.as_bytes()).await {
            // It ended early; its own words say why.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            other => other?,
        }
    }
    child.wait_with_output().await
}
