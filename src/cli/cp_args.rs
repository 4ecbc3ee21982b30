//! What can be typed after `cp`.

use std::str::FromStr;

use clap::Args;
use toft_model::name::Name;

use super::args::told;

pub(super) const CP_HELP: &str = "Examples:
  toft cp web:/etc/app.conf .                 a file out of the first running instance of `web`
  toft cp site/. web/1:/srv/site              what the directory `site` holds, into the instance `web-1`
  toft cp web:/var/lib/app - | gzip >app.tgz  a directory as a tar archive
  tar -c data | toft cp - web:/srv            unpack a tar archive

As with `docker cp`: a directory is copied into one that is there, and becomes one that is not; with `/.` at the end of the
source, what it holds is copied. What is copied in belongs to root, what is copied out to whoever copies, unless -a keeps
owners. Stopped containers work too; of them, volumes are not seen.";

#[derive(Debug, Args)]
pub(super) struct CpArgs {
    /// Keep owners and groups, by their numbers
    #[arg(short, long)]
    pub(super) archive: bool,
    /// Copy what a link leads to instead of the link
    #[arg(short = 'L', long)]
    pub(super) follow_link: bool,
    /// WORKLOAD[/INSTANCE]:PATH, a path of this machine, or `-` for a tar archive from standard input
    #[arg(value_name = "SOURCE")]
    pub(super) from: End,
    /// WORKLOAD[/INSTANCE]:PATH, a path of this machine, or `-` for a tar archive to standard output
    #[arg(value_name = "DESTINATION")]
    pub(super) to: End,
}

/// One end of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// Standard input or output.
    Stream,
    /// A path of this machine.
    Local(String),
    /// A path in a container.
    Inside {
        /// Workload or instance.
        name: Name,
        /// Which instance of the workload.
        index: Option<u32>,
        path: String,
    },
}

impl FromStr for End {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("the path is empty".into());
        }
        let (whose, path) = match text.split_once(':') {
            _ if text == "-" => return Ok(Self::Stream),
            // As with Docker, `./a:b` is a path of this machine.
            Some((whose, path)) if !whose.starts_with(['/', '.']) => (whose, path),
            _ => return Ok(Self::Local(text.to_owned())),
        };
        if path.is_empty() {
            return Err(format!("no path follows `{whose}:`; write it like `web:/etc`"));
        }
        let (name, index) = match whose.split_once('/') {
            None => (whose, None),
            Some((name, instance)) => {
                let number = instance.strip_prefix(name).and_then(|rest| rest.strip_prefix('-')).unwrap_or(instance);
                let number = number.parse().map_err(|_| format!("`{instance}` is no instance of `{name}`"))?;
                (name, Some(number))
            }
        };
        let name = name.parse().map_err(|invalid| {
            format!("{}; a path of this machine with a colon is written `./{text}`", told(invalid))
        })?;
        Ok(Self::Inside { name, index, path: path.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_apart_as_docker_does() {
        let inside =
            |name: &str, index, path: &str| End::Inside { name: name.parse().unwrap(), index, path: path.into() };
        for (text, end) in [
            ("-", End::Stream),
            ("a", End::Local("a".into())),
            ("/a:b", End::Local("/a:b".into())),
            ("./a:b", End::Local("./a:b".into())),
            ("web:/etc", inside("web", None, "/etc")),
            ("web/1:x:y", inside("web", Some(1), "x:y")),
            ("web/web-12:/", inside("web", Some(12), "/")),
            ("web-1:/", inside("web-1", None, "/")),
        ] {
            assert_eq!(text.parse::<End>().unwrap(), end, "{text}");
        }
        for bad in ["", "web:", "web/db-1:/", "web/x:/", "Web:/", "a/b/c:/"] {
            assert!(bad.parse::<End>().is_err(), "{bad}");
        }
        assert!("C:\\x".parse::<End>().unwrap_err().contains("`./C:\\x`"));
    }
}
