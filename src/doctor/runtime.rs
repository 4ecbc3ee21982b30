//! containerd and what it starts containers with.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use super::{Check, Said, failure, ok, warning};
use crate::{
    agent::runtime::{
        containerd::{self, isolation},
        supervisor::{USUAL_SOCKETS, find_program, search_path, version_of},
    },
    config::Config,
};

/// Longest wait for containerd to answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// The oldest version that works.
const OLDEST: (u32, u32) = (1, 6);
const INSTALL: &str = "sudo apt-get install containerd    (or `containerd.io` from Docker's archive)";

pub(super) async fn checks(config: &Config, daemon_runs: bool) -> Vec<Check> {
    let places = search_path();
    let program = find_program("containerd", &places);
    let version = match &program {
        Some(program) => version_of(program).await,
        None => None,
    };
    let installed = Installed { program: program.is_some(), version };
    let own = config.paths.data.join("containerd").join("containerd.sock");
    let sockets: Vec<PathBuf> = match &config.runtime.containerd {
        Some(chosen) => vec![chosen.clone()],
        None if config.paths.private || own.exists() => vec![own],
        None => USUAL_SOCKETS.iter().map(PathBuf::from).collect(),
    };
    let mut answers = None;
    for socket in sockets {
        if socket.exists() && containerd::answers(&socket, PATIENCE).await {
            answers = Some(socket);
            break;
        }
    }
    let chosen = config.runtime.containerd.as_deref();
    vec![
        judge(&installed, answers.as_deref(), chosen, daemon_runs).of("runtime", "containerd"),
        runtimes(&isolation::names()).of("runtime", "runtimes"),
    ]
}

struct Installed {
    program: bool,
    version: Option<String>,
}

fn judge(installed: &Installed, answers: Option<&Path>, chosen: Option<&Path>, daemon_runs: bool) -> Said {
    let version = installed.version.as_deref().unwrap_or("of an unknown version");
    let old = installed.version.as_deref().and_then(numbers).filter(|numbers| *numbers < OLDEST);
    match (answers, chosen) {
        _ if old.is_some() => {
            failure(format!("containerd {version} is too old; 1.6 is the oldest that works"), INSTALL)
        }
        (Some(socket), _) => ok(format!("{version}, answers on {}", socket.display())),
        (None, Some(chosen)) => failure(
            format!("nothing answers on {}, which the configuration names", chosen.display()),
            "sudo systemctl start containerd    (or correct `runtime.containerd_address` in /etc/toft/toft.toml)",
        ),
        (None, None) if !installed.program => failure("is not installed, and none runs", INSTALL),
        (None, None) if daemon_runs => {
            failure("does not answer; toft tries to start it", "journalctl -u toft -n 50; sudo systemctl restart toft")
        }
        (None, None) => ok(format!("{version} is installed; toft starts one of its own")),
    }
}

fn numbers(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split(['.', '~', '+', '-']).map_while(|part| part.parse().ok());
    Some((numbers.next()?, numbers.next()?))
}

fn runtimes(names: &[String]) -> Said {
    const FIX: &str = "sudo apt-get install runc";
    match names {
        [] => failure("neither runc nor another runtime is installed with its shim", FIX),
        names if names.iter().any(|name| name == "runc") => ok(names.join(", ")),
        names => warning(format!("{}, but not runc, which is the default", names.join(", ")), FIX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn what_is_missing_is_told_with_the_command_that_installs_it() {
        let installed = |version: &str| Installed { program: true, version: Some(version.into()) };
        let (none, socket) = (Installed { program: false, version: None }, Path::new("/run/x.sock"));
        let absent = judge(&none, None, None, false);
        assert!(absent.verdict == Verdict::Failure && absent.fix.unwrap().contains("apt-get install containerd"));
        assert_eq!(judge(&installed("1.6.20~ds1"), None, None, false).verdict, Verdict::Ok);
        assert_eq!(judge(&installed("1.6.20"), None, None, true).verdict, Verdict::Failure);
        assert_eq!(judge(&installed("1.6.20"), Some(socket), None, true).verdict, Verdict::Ok);
        let elsewhere = judge(&installed("2.1.0"), None, Some(socket), false);
        assert!(elsewhere.verdict == Verdict::Failure && elsewhere.message.contains("/run/x.sock"));
        assert!(judge(&installed("1.4.13"), Some(socket), None, true).message.contains("too old"));
        assert_eq!(runtimes(&[]).verdict, Verdict::Failure);
        assert_eq!(runtimes(&["crun".into()]).verdict, Verdict::Warning);
        assert_eq!(runtimes(&["crun".into(), "runc".into()]).verdict, Verdict::Ok);
    }
}
