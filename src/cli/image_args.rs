//! What can be typed after `toft image`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use toft_model::{image::ImageRef, name::Name};

use super::args::{ListArgs, parsed};

#[derive(Debug, Subcommand)]
pub(super) enum ImageCommand {
    /// List images
    Ls(ImagesArgs),
    /// Pull images from their registries
    Pull(PullArgs),
    /// Import an archive: an OCI image layout as tar, or what `docker save` writes; plain or gzip
    Import(ImportArgs),
    /// Remove images that no workload uses
    Rm {
        /// Images
        #[arg(required = true, value_name = "IMAGE", value_parser = parsed::<ImageRef>)]
        names: Vec<ImageRef>,
        #[command(flatten)]
        on: OnNode,
    },
    /// Remove every image that no workload uses
    Prune(ImagePruneArgs),
}

/// Whose images.
#[derive(Debug, Args)]
pub(super) struct OnNode {
    /// Node; the one that is asked by default
    #[arg(long, value_parser = parsed::<Name>)]
    pub(super) node: Option<Name>,
}

impl OnNode {
    /// As part of an address: with `&` before it.
    pub(super) fn query(&self) -> String {
        self.node.as_ref().map(|node| format!("&node={node}")).unwrap_or_default()
    }
}

#[derive(Debug, Args)]
pub(super) struct ImagesArgs {
    #[command(flatten)]
    pub(super) list: ListArgs,
    #[command(flatten)]
    pub(super) on: OnNode,
}

#[derive(Debug, Args)]
pub(super) struct PullArgs {
    /// Images
    #[arg(required = true, value_name = "IMAGE", value_parser = parsed::<ImageRef>)]
    pub(super) names: Vec<ImageRef>,
    /// Print progress and outcome as JSON, one object a line
    #[arg(long)]
    pub(super) json: bool,
    /// Print only the name of each image that came
    #[arg(short, long, conflicts_with = "json")]
    pub(super) quiet: bool,
    #[command(flatten)]
    pub(super) on: OnNode,
}

#[derive(Debug, Args)]
pub(super) struct PruneArgs {
    /// Do not ask
    #[arg(short, long)]
    pub(super) yes: bool,
    /// Print the removed images as JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct ImagePruneArgs {
    #[command(flatten)]
    pub(super) prune: PruneArgs,
    #[command(flatten)]
    pub(super) on: OnNode,
}

#[derive(Debug, Args)]
pub(super) struct ImportArgs {
    /// Archive; `-` is standard input
    pub(super) file: PathBuf,
    /// Name for an image whose archive carries none
    #[arg(short, long, value_parser = parsed::<ImageRef>)]
    pub(super) name: Option<ImageRef>,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) on: OnNode,
}
