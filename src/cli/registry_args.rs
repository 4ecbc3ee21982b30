//! What can be typed after `toft registry`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use toft_model::registry::RegistryName;

use super::args::{ListArgs, parsed};

#[derive(Debug, Subcommand)]
pub(super) enum RegistryCommand {
    /// Log in at a registry, for all nodes; the password is encrypted at rest
    #[command(after_help = LOGIN_HELP)]
    Login(LoginArgs),
    /// Forget the logins at registries
    Logout {
        /// Registries
        #[arg(required = true, value_name = "REGISTRY", value_parser = parsed::<RegistryName>)]
        registries: Vec<RegistryName>,
    },
    /// List the logins there are
    Ls(ListArgs),
    /// Take over the logins of Docker or Podman
    Import {
        /// Their file; default: ~/.docker/config.json
        file: Option<PathBuf>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

const LOGIN_HELP: &str = "The password or access token is asked for on a terminal, else read from standard input:
  toft registry login ghcr.io -u jo
  pass show ghcr | toft registry login ghcr.io -u jo";

#[derive(Debug, Args)]
pub(super) struct LoginArgs {
    /// Registry
    #[arg(default_value = "docker.io", value_parser = parsed::<RegistryName>)]
    pub(super) registry: RegistryName,
    /// User name; asked for when it is not given
    #[arg(short, long)]
    pub(super) username: Option<String>,
    /// Read the password from standard input, also when that is a terminal
    #[arg(long)]
    pub(super) password_stdin: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}
