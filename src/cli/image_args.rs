//! What can be typed after `toft image`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use toft_model::image::ImageRef;

use super::args::{ListArgs, parsed};

#[derive(Debug, Subcommand)]
pub(super) enum ImageCommand {
    /// List images
    Ls(ListArgs),
    /// Pull images from their registries
    Pull(PullArgs),
    /// Import an archive: an OCI image layout as tar, or what `docker save` writes; plain or gzip
    Import(ImportArgs),
    /// Remove images that no workload uses
    Rm {
        /// Images
        #[arg(required = true, value_name = "IMAGE", value_parser = parsed::<ImageRef>)]
        names: Vec<ImageRef>,
    },
    /// Remove every image that no workload uses
    Prune(PruneArgs),
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
pub(super) struct ImportArgs {
    /// Archive; `-` is standard input
    pub(super) file: PathBuf,
    /// Name for an image whose archive carries none
    #[arg(short, long, value_parser = parsed::<ImageRef>)]
    pub(super) name: Option<ImageRef>,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}
