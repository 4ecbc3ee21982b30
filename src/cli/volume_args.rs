//! What can be typed after `toft volume`, and how `toft run` mounts.

use std::{collections::BTreeMap, path::PathBuf};

use clap::{Args, Subcommand};
use toft_model::{
    name::Name,
    workload::{AnyMount, Mount, TmpfsMount},
};

use super::{
    args::{ListArgs, parsed},
    backup_args::BackupKeyArgs,
    image_args::PruneArgs,
};

#[derive(Debug, Subcommand)]
pub(super) enum VolumeCommand {
    /// Create a volume; the first use of a name creates one, too
    #[command(after_help = CREATE_HELP)]
    Create(VolumeCreateArgs),
    /// List volumes, where they lie and who uses them
    Ls(ListArgs),
    /// Show everything about a volume, as JSON
    Inspect {
        /// Volume
        #[arg(value_parser = parsed::<Name>)]
        name: Name,
    },
    /// Remove volumes that no workload uses; their data is deleted
    Rm {
        /// Volumes
        #[arg(required = true, value_name = "NAME", value_parser = parsed::<Name>)]
        names: Vec<Name>,
    },
    /// Remove every volume that no workload uses; their data is deleted
    Prune(PruneArgs),
    /// Bring a volume to another node, with what uses it
    #[command(after_help = MOVE_HELP)]
    Move(VolumeMoveArgs),
    /// Write a volume's data to one file on this machine
    #[command(after_help = BACKUP_HELP)]
    Backup(VolumeBackupArgs),
    /// Put a backup into a volume, which is created if it is not there
    Restore(VolumeRestoreArgs),
}

const CREATE_HELP: &str =
    "Without options a volume is a folder on the node that uses it first. Options are those of Compose:
  toft volume create media -o type=nfs -o device=nas.lan:/export/media -o o=vers=4.2,soft
  toft volume create films -o type=cifs -o device=//nas.lan/films -o o=username=me -o secret=nas-password
  toft volume create photos -o type=none -o o=bind -o device=/srv/photos
A password is the value of a secret: toft secret create nas-password";

const MOVE_HELP: &str = "The data is copied while the volume is used. Then what uses it stops, what has changed since follows, both copies
are compared, and what uses it starts on the other node; the copy here is deleted last. Nodes may be restarted meanwhile.";

#[derive(Debug, Args)]
pub(super) struct VolumeMoveArgs {
    /// Volume
    #[arg(value_parser = parsed::<Name>)]
    pub(super) name: Name,
    /// Node to bring it to
    #[arg(long, value_name = "NODE", value_parser = parsed::<Name>)]
    pub(super) to: Option<Name>,
    /// Take the order back: the volume stays where it is
    #[arg(long, conflicts_with_all = ["to", "detach"])]
    pub(super) cancel: bool,
    /// Do not wait until it is there
    #[arg(short, long)]
    pub(super) detach: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

const BACKUP_HELP: &str = "The file is a tar compressed with zstd; locked with a key or passphrase it is an age file around that. The volume can be
in use: what is written meanwhile may be in the backup by halves, so stop databases first, or dump them.";

#[derive(Debug, Args)]
pub(super) struct VolumeCreateArgs {
    /// Volume
    #[arg(value_parser = parsed::<Name>)]
    pub(super) name: Name,
    /// What it is: type, device, o, secret
    #[arg(short, long = "opt", value_name = "KEY=VALUE")]
    pub(super) options: Vec<String>,
    /// Label it
    #[arg(short, long = "label", value_name = "KEY=VALUE")]
    pub(super) labels: Vec<String>,
    /// Node that its data is to lie on [default: the one that uses it first]
    #[arg(long, value_parser = parsed::<Name>)]
    pub(super) node: Option<Name>,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct VolumeBackupArgs {
    /// Volume
    #[arg(value_parser = parsed::<Name>)]
    pub(super) name: Name,
    /// New file to write it to [default: NAME.tar.zst, with .age when it is locked]
    #[arg(short, long, value_name = "FILE")]
    pub(super) output: Option<PathBuf>,
    /// Lock it for the holder of this public key: age1...
    #[arg(long, value_name = "KEY", conflicts_with_all = ["key_file", "passphrase_file"])]
    pub(super) recipient: Option<String>,
    /// Lock it for the key in this file
    #[arg(long, value_name = "FILE", conflicts_with = "passphrase_file")]
    pub(super) key_file: Option<PathBuf>,
    /// Lock it with the passphrase on the first line of this file
    #[arg(long, value_name = "FILE")]
    pub(super) passphrase_file: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct VolumeRestoreArgs {
    /// Volume
    #[arg(value_parser = parsed::<Name>)]
    pub(super) name: Name,
    /// File that `toft volume backup` wrote
    pub(super) file: PathBuf,
    /// Delete what the volume holds, once the backup was read whole
    #[arg(long)]
    pub(super) replace: bool,
    #[command(flatten)]
    pub(super) key: BackupKeyArgs,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// The flags of `run` that mount.
#[derive(Debug, Args)]
pub(super) struct MountArgs {
    /// Mount a volume, or a path of the node: NAME:TARGET[:ro] or /PATH:TARGET[:ro]
    #[arg(short = 'v', long = "volume", value_name = "VOLUME", value_parser = parsed::<Mount>)]
    volumes: Vec<Mount>,
    /// Mount as Docker's --mount does: type=volume|bind|tmpfs,source=...,target=...[,readonly]
    #[arg(long = "mount", value_name = "MOUNT", value_parser = parsed::<AnyMount>)]
    mounts: Vec<AnyMount>,
}

impl MountArgs {
    /// The mounts, and the file systems in memory among them.
    pub(super) fn spec(self) -> (Vec<Mount>, Vec<TmpfsMount>) {
        let (mut mounts, mut tmpfs) = (self.volumes, Vec::new());
        for mount in self.mounts {
            match mount {
                AnyMount::Mount(mount) => mounts.push(mount),
                AnyMount::Tmpfs(mount) => tmpfs.push(mount),
            }
        }
        (mounts, tmpfs)
    }
}

/// `KEY=VALUE` each, as a map.
pub(super) fn options(texts: &[String]) -> Result<BTreeMap<String, String>, super::Failure> {
    super::run::pairs(texts.to_vec(), false)
}
