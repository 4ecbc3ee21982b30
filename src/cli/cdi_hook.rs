//! `cdi-hook`: what the container runtime starts while it makes a container with a GPU. No command for people.

use std::path::PathBuf;

use clap::Subcommand;

use super::Failure;
use crate::{
    agent::gpu::cdi::hook::{self, Task},
    observe::chain,
};

#[derive(Debug, Subcommand)]
pub(super) enum HookCommand {
    /// Tell the loader of libraries that are mounted
    UpdateLdcache {
        /// Where they are, as the container sees it
        #[arg(long = "folder", required = true)]
        folders: Vec<PathBuf>,
    },
    /// Make links in the container
    CreateSymlinks {
        /// TARGET::LINK, as the container sees them
        #[arg(long = "link", required = true, value_parser = link)]
        links: Vec<(String, PathBuf)>,
    },
}

fn link(text: &str) -> Result<(String, PathBuf), String> {
    let (target, link) = text.split_once("::").ok_or("write TARGET::LINK")?;
    if target.is_empty() || !link.starts_with('/') {
        return Err("write TARGET::/LINK".into());
    }
    Ok((target.to_owned(), link.into()))
}

pub(super) fn cdi_hook(command: HookCommand) -> Result<i32, Failure> {
    let task = match command {
        HookCommand::UpdateLdcache { folders } => Task::UpdateCache { folders },
        HookCommand::CreateSymlinks { links } => Task::CreateLinks { links },
    };
    let faults = hook::run(&task, std::io::stdin().lock()).map_err(|error| Failure::of(1, chain(&error)))?;
    faults.iter().for_each(|fault| eprintln!("toft: {fault}"));
    Ok(0)
}
