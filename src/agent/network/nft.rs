//! The `nft` program: one script in, one transaction, all or nothing.

use std::{io, process::Stdio, time::Duration};

use tokio::{io::AsyncWriteExt, process::Command};

use super::NetworkError;

/// How long one run may take. It waits for other users of nftables, the first one for modules of the kernel too, and needs
/// milliseconds by itself.
const TIMEOUT: Duration = Duration::from_secs(25);

/// What is said to be going on when it fails.
const DOING: &str = "applying the packet rules";

/// Runs `script`.
pub(super) async fn run(script: &str) -> Result<(), NetworkError> {
    run_with("nft", script).await
}

async fn run_with(program: &str, script: &str) -> Result<(), NetworkError> {
    let failed = |reason: String| NetworkError::Failed { doing: DOING, reason };
    let output = tokio::time::timeout(TIMEOUT, feed(program, script))
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

/// Starts the program, writes the script and waits for the end.
async fn feed(program: &str, script: &str) -> io::Result<std::process::Output> {
    let mut child = Command::new(program)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_missing_program_says_how_to_get_it() {
        let error = run_with("nft-that-nobody-installed", "").await.unwrap_err();
        assert!(matches!(error, NetworkError::ToolMissing { tool: "nft", hint } if hint.contains("apt-get")));
    }

    #[tokio::test]
    async fn a_failure_without_words_tells_the_status() {
        let error = run_with("false", &"x".repeat(1 << 20)).await.unwrap_err();
        assert_eq!(error.to_string(), "applying the packet rules failed: exit status: 1");
    }
}
