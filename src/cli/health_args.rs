//! The flags of `run` that say how it is found out whether a container works.

use clap::Args;
use toft_model::{
    units::parse_span_ms,
    workload::{HealthCheck, HealthTest},
};

use super::args::told;

#[derive(Debug, Args)]
#[command(next_help_heading = "Health")]
pub(super) struct HealthArgs {
    /// Works when this command, run by /bin/sh in the container, exits with 0
    #[arg(long, value_name = "COMMAND", group = "health")]
    health_cmd: Option<String>,
    /// Works when GET of this path on this port of the container answers with a status from 200 to 399
    #[arg(long, value_name = "PORT[/PATH]", group = "health", value_parser = parse_http)]
    health_http: Option<HealthTest>,
    /// Works when this port of the container takes a connection
    #[arg(long, value_name = "PORT", group = "health")]
    health_tcp: Option<u16>,
    /// Time between two checks [default: 30s]
    #[arg(long, value_name = "SPAN", requires = "health", value_parser = parse_span)]
    health_interval: Option<u32>,
    /// Time a check may take [default: 30s]
    #[arg(long, value_name = "SPAN", requires = "health", value_parser = parse_span)]
    health_timeout: Option<u32>,
    /// Failures in a row after which it does not work [default: 3]
    #[arg(long, value_name = "COUNT", requires = "health")]
    health_retries: Option<u32>,
    /// Time after the start in which failures do not count [default: 0s]
    #[arg(long, value_name = "SPAN", requires = "health", value_parser = parse_span)]
    health_start_period: Option<u32>,
}

impl HealthArgs {
    pub(super) fn spec(self) -> Option<HealthCheck> {
        let shell = |command: String| HealthTest::Exec { command: vec!["/bin/sh".into(), "-c".into(), command] };
        let tcp = self.health_tcp.map(|port| HealthTest::Tcp { port });
        let mut check = HealthCheck::new(self.health_cmd.map(shell).or(self.health_http).or(tcp)?);
        check.interval_ms = self.health_interval.unwrap_or(check.interval_ms);
        check.timeout_ms = self.health_timeout.unwrap_or(check.timeout_ms);
        check.retries = self.health_retries.unwrap_or(check.retries);
        check.start_period_ms = self.health_start_period.unwrap_or(check.start_period_ms);
        Some(check)
    }
}

fn parse_http(text: &str) -> Result<HealthTest, String> {
    let at = text.find('/').unwrap_or(text.len());
    let (port, path) = text.split_at(at);
    let port = port.parse().map_err(|_| format!("`{port}` is no port; write it like `8080/health`"))?;
    Ok(HealthTest::Http { port, path: if path.is_empty() { "/".into() } else { path.into() } })
}

fn parse_span(text: &str) -> Result<u32, String> {
    let ms = parse_span_ms(text).map_err(told)?;
    u32::try_from(ms).map_err(|_| format!("`{text}` is too long"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_paths_are_split() {
        assert_eq!(parse_http("80").unwrap(), HealthTest::Http { port: 80, path: "/".into() });
        assert_eq!(parse_http("80/a/b?c").unwrap(), HealthTest::Http { port: 80, path: "/a/b?c".into() });
        assert!(parse_http("/health").is_err() && parse_http("70000/").is_err());
    }
}
