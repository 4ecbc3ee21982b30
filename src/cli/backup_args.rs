//! What can be typed after `toft backup`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::args::{ApplianceArgs, ListArgs};

#[derive(Debug, Subcommand)]
pub(super) enum BackupCommand {
    /// Make a backup while everything goes on
    #[command(after_help = CREATE_HELP)]
    Create(BackupCreateArgs),
    /// List the backups in the node's folder
    Ls(ListArgs),
    /// Prove a backup by restoring it into a scratch folder
    Verify(BackupVerifyArgs),
    /// Put a backup into the data directory of an appliance that does not run
    Restore(BackupRestoreArgs),
    /// Make a key for backups and print its public half
    Keygen {
        /// New file for the key; keep a copy away from this machine
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
    },
}

const CREATE_HELP: &str = "Without --output the backup goes into the node's folder, locked with the key of its configuration. With --output it is
written to FILE on this machine and nothing stays on the node; it is locked with the key given here, else with the
configured one, else with a passphrase that is asked for.";

#[derive(Debug, Args)]
pub(super) struct BackupCreateArgs {
    /// Write it to this new file
    #[arg(short, long, value_name = "FILE")]
    pub(super) output: Option<PathBuf>,
    /// Lock it for the holder of this public key: age1...
    #[arg(long, value_name = "KEY", requires = "output", conflicts_with_all = ["key_file", "passphrase_file"])]
    pub(super) recipient: Option<String>,
    /// Lock it for the key in this file
    #[arg(long, value_name = "FILE", requires = "output", conflicts_with = "passphrase_file")]
    pub(super) key_file: Option<PathBuf>,
    /// Lock it with the passphrase on the first line of this file
    #[arg(long, value_name = "FILE", requires = "output")]
    pub(super) passphrase_file: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// What opens a backup.
#[derive(Debug, Args)]
pub(super) struct BackupKeyArgs {
    /// File with the key that opens it, as `toft backup keygen` wrote it
    #[arg(long, env = "TOFT_BACKUP_KEY_FILE", value_name = "FILE")]
    pub(super) key_file: Option<PathBuf>,
    /// File with the passphrase that opens it on its first line
    #[arg(long, env = "TOFT_BACKUP_PASSPHRASE_FILE", value_name = "FILE", conflicts_with = "key_file")]
    pub(super) passphrase_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct BackupVerifyArgs {
    /// File, or name of a backup in the node's folder
    #[arg(value_name = "FILE|NAME")]
    pub(super) file: PathBuf,
    #[command(flatten)]
    pub(super) key: BackupKeyArgs,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct BackupRestoreArgs {
    /// File, or name of a backup in the node's folder
    pub(super) file: PathBuf,
    #[command(flatten)]
    pub(super) key: BackupKeyArgs,
    #[command(flatten)]
    pub(super) appliance: ApplianceArgs,
    /// Replace a state that is there already; it is moved aside
    #[arg(short, long)]
    pub(super) yes: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}
