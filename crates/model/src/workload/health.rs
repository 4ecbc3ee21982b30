//! How it is found out whether a container that runs also works.

use serde::{Deserialize, Serialize};

use crate::invalid::Invalid;

/// A question that is asked of a running container again and again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HealthCheck {
    /// The question.
    pub test: HealthTest,
    /// Milliseconds between two questions, 100 to 86 400 000; also before the first.
    #[serde(default = "half_a_minute")]
    pub interval_ms: u32,
    /// Milliseconds an answer may take, 100 to 600 000.
    #[serde(default = "half_a_minute")]
    pub timeout_ms: u32,
    /// Failures in a row that make it unhealthy, 1 to 1000.
    #[serde(default = "three")]
    pub retries: u32,
    /// Milliseconds after the start in which failures do not count, 0 to 86 400 000.
    #[serde(default, skip_serializing_if = "super::is_default")]
    pub start_period_ms: u32,
}

/// What is asked. The node asks from the container's own network, at its loopback address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum HealthTest {
    /// `GET` of a path over HTTP; a status from 200 to 399 is good.
    Http {
        /// Port inside the container.
        #[schema(minimum = 1)]
        port: u16,
        /// Path with its query; `/` when absent.
        #[serde(default = "root")]
        #[schema(example = "/health")]
        path: String,
    },
    /// Whether a TCP port takes a connection.
    Tcp {
        /// Port inside the container.
        #[schema(minimum = 1)]
        port: u16,
    },
    /// A command in the container; exit code 0 is good.
    Exec {
        /// Program and arguments.
        command: Vec<String>,
    },
}

fn half_a_minute() -> u32 {
    30_000
}

fn three() -> u32 {
    3
}

fn root() -> String {
    "/".to_owned()
}

impl HealthCheck {
    /// Longest path that is asked for, in bytes.
    pub const MAX_PATH: usize = 2048;
    /// Most bytes of a command.
    pub const MAX_COMMAND: usize = 32 * 1024;

    /// The question with Docker's times.
    pub fn new(test: HealthTest) -> Self {
        Self { test, interval_ms: half_a_minute(), timeout_ms: half_a_minute(), retries: three(), start_period_ms: 0 }
    }

    /// Checks every rule that the types alone cannot hold. The first breach is told with its field.
    pub fn validate(&self) -> Result<(), Invalid> {
        for (field, value, range) in [
            ("interval_ms", self.interval_ms, 100..=86_400_000),
            ("timeout_ms", self.timeout_ms, 100..=600_000),
            ("retries", self.retries, 1..=1000),
            ("start_period_ms", self.start_period_ms, 0..=86_400_000),
        ] {
            if !range.contains(&value) {
                let hint = format!("use {} to {}", range.start(), range.end());
                return Err(Invalid::value(format!("{value} is out of range"), hint).at(field));
            }
        }
        self.test.validate().map_err(|e| e.at("test"))
    }
}

impl HealthTest {
    fn validate(&self) -> Result<(), Invalid> {
        let port_exists = |port: u16| match port {
            0 => Err(Invalid::value("port 0 does not exist", "use 1 to 65535").at("port")),
            _ => Ok(()),
        };
        match self {
            Self::Http { port, path } => {
                port_exists(*port).map_err(|e| e.at("http"))?;
                let plain = path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
                if !plain || path.len() > HealthCheck::MAX_PATH {
                    return Err(Invalid::value(
                        "the path does not begin with `/`, is too long, or holds blanks, `#` or other letters than ASCII",
                        "write it like `/health`, other characters as %XX",
                    )
                    .at("http.path"));
                }
                Ok(())
            }
            Self::Tcp { port } => port_exists(*port).map_err(|e| e.at("tcp")),
            Self::Exec { command } => {
                let bytes: usize = command.iter().map(|word| word.len() + 1).sum();
                let nul = command.iter().any(|word| word.contains('\0'));
                if command.first().is_none_or(String::is_empty) || nul || bytes > HealthCheck::MAX_COMMAND {
                    return Err(Invalid::value(
                        "the command is empty, too long, or holds a NUL character",
                        "name a program of the image and its arguments, at most 32 KiB",
                    )
                    .at("exec.command"));
                }
                Ok(())
            }
        }
    }
}

/// Whether a container that runs also works, as its check found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// It has not answered well yet.
    Starting,
    /// It answers well.
    Healthy,
    /// It failed several times in a row.
    Unhealthy,
}

impl Health {
    /// The word for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_check_is_completed_with_defaults() {
        let check: HealthCheck = serde_json::from_str(r#"{"test":{"http":{"port":80}}}"#).unwrap();
        assert_eq!(check, HealthCheck::new(HealthTest::Http { port: 80, path: "/".into() }));
        check.validate().unwrap();
        let text = serde_json::to_string(&check).unwrap();
        assert_eq!(serde_json::from_str::<HealthCheck>(&text).unwrap(), check);
        for bad in [
            r#"{"test":{"udp":{"port":1}}}"#,
            r#"{"test":{"tcp":{"port":1,"x":2}}}"#,
            r#"{"test":{"tcp":{"port":70000}}}"#,
            r#"{"test":{"tcp":{"port":1}},"every":1}"#,
        ] {
            assert!(serde_json::from_str::<HealthCheck>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn breaches_name_their_field() {
        let check = |field: &str, check: HealthCheck| assert_eq!(check.validate().unwrap_err().field, field);
        let tcp = |port| HealthCheck::new(HealthTest::Tcp { port });
        let http = |path: &str| HealthCheck::new(HealthTest::Http { port: 1, path: path.into() });
        let exec = |command: &[&str]| {
            HealthCheck::new(HealthTest::Exec { command: command.iter().map(|word| (*word).to_owned()).collect() })
        };
        check("test.tcp.port", tcp(0));
        check("interval_ms", HealthCheck { interval_ms: 99, ..tcp(1) });
        check("timeout_ms", HealthCheck { timeout_ms: 600_001, ..tcp(1) });
        check("retries", HealthCheck { retries: 0, ..tcp(1) });
        check("start_period_ms", HealthCheck { start_period_ms: u32::MAX, ..tcp(1) });
        for path in ["", "health", "/a b", "/a\r\nX: y", "/#", "/ä", &"/".repeat(3000)] {
            check("test.http.path", http(path));
        }
        check("test.exec.command", exec(&[]));
        check("test.exec.command", exec(&["", "a"]));
        check("test.exec.command", exec(&["a\0"]));
        check("test.exec.command", exec(&[&"a".repeat(40_000)]));
    }
}
