//! What can be typed after `toft secret`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use toft_model::name::Name;

use super::args::{ListArgs, parsed};

#[derive(Debug, Subcommand)]
pub(super) enum SecretCommand {
    /// Create a secret
    #[command(after_help = VALUE_HELP)]
    Create(SecretValueArgs),
    /// Change a secret's value; what runs keeps the old one until it is restarted
    #[command(after_help = VALUE_HELP)]
    Update(SecretValueArgs),
    /// List secrets and who uses them
    Ls(ListArgs),
    /// Show everything about a secret but its value, as JSON
    Inspect {
        /// Secret
        #[arg(value_parser = parsed::<Name>)]
        name: Name,
    },
    /// Remove secrets that no workload uses
    Rm {
        /// Secrets
        #[arg(required = true, value_name = "NAME", value_parser = parsed::<Name>)]
        names: Vec<Name>,
    },
}

const VALUE_HELP: &str =
    "The value is the file, byte for byte. Without FILE it is asked for on a terminal, else read from standard input:
  toft secret create db-password
  openssl rand -hex 32 | toft secret create session-key -

Containers see it as a file: toft run --secret db-password IMAGE gives them /run/secrets/db-password.";

#[derive(Debug, Args)]
pub(super) struct SecretValueArgs {
    /// Secret
    #[arg(value_parser = parsed::<Name>)]
    pub(super) name: Name,
    /// File with the value; `-` is standard input
    pub(super) file: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}
