//! `backup restore`: puts a backup into the data directory of an appliance that does not run.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{
    Failure,
    backup_args::BackupRestoreArgs,
    backups::{chosen_key, described},
    daemon::misconfigured,
    output, progress, prompt,
};
use crate::{
    agent::host::host_name,
    backup::{Manifest, keys::KeySource, restore::Present},
    config::{BackupKey, Config},
    daemon::{self, Restore},
    observe,
};

/// What `--json` tells.
#[derive(Serialize)]
struct Told<'a> {
    data_dir: &'a Path,
    replaced: Option<&'a Path>,
    manifest: &'a Manifest,
}

pub(super) fn restore(args: BackupRestoreArgs) -> Result<i32, Failure> {
    let config = Config::resolve(args.appliance.flags(), &host_name()).map_err(misconfigured)?;
    observe::init_logging("warn", false);
    let file = find(&args.file, &config.backup.dir);
    let configured = match &config.backup.key {
        Some(BackupKey::KeyFile(path)) => Some(KeySource::KeyFile(path.clone())),
        Some(BackupKey::PassphraseFile(path)) => Some(KeySource::PassphraseFile(path.clone())),
        Some(BackupKey::Recipient(_)) | None => None,
    };
    let key = chosen_key(&file, &args.key, configured.as_ref())?;
    let bar = progress::bytes("restoring", std::fs::metadata(&file).ok().map(|meta| meta.len()));
    let mut refusal = None;
    let mut agree = |manifest: &Manifest, present: &Present| {
        bar.finish_and_clear();
        let agreed = agreement(&config.paths.data, manifest, present, args.yes);
        agreed.unwrap_or_else(|failure| {
            refusal = Some(failure);
            false
        })
    };
    let order = Restore { file: &file, key: &key };
    let restored = daemon::restore(&config, &order, &mut |done, _| bar.set_position(done), &mut agree);
    bar.finish_and_clear();
    let Some(restored) = restored? else {
        return Err(refusal.unwrap_or_else(|| Failure::of(1, "nothing was changed")));
    };
    if args.json {
        let (data_dir, replaced) = (restored.data.as_path(), restored.replaced.as_deref());
        output::json(&Told { data_dir, replaced, manifest: &restored.manifest })?;
        return Ok(0);
    }
    println!("restored {}", described(&restored.manifest));
    if let Some(replaced) = restored.replaced {
        println!("what was there before is in {}", replaced.display());
    }
    println!("`toft up` starts with it");
    Ok(0)
}

/// A file, or the name of one in the folder of the backups.
fn find(file: &Path, folder: &Path) -> PathBuf {
    let bare = file.components().count() == 1 && !file.exists();
    let there = folder.join(file);
    if bare && there.exists() { there } else { file.to_owned() }
}

/// Whether a state that is there may be replaced.
fn agreement(data: &Path, manifest: &Manifest, present: &Present, yes: bool) -> Result<bool, Failure> {
    if yes {
        return Ok(true);
    }
    let told = conflict(data, manifest, present);
    if !prompt::possible() {
        return Err(Failure::of(1, told).hint(
            "nothing was changed; --yes replaces it and moves what is there into a folder `replaced-...` beside it",
        ));
    }
    eprintln!("The backup: {}.", described(manifest));
    eprintln!("But {told}. It would be moved into a folder `replaced-...` there, not deleted.");
    if prompt::confirm("Replace it?")? { Ok(true) } else { Err(Failure::of(1, "nothing was changed")) }
}

/// What stands in the way, in one sentence.
fn conflict(data: &Path, manifest: &Manifest, present: &Present) -> String {
    let data = data.display();
    if let (Some(here), Some(there)) = (&present.cluster_id, &manifest.cluster_id)
        && here != there
    {
        return format!("`{data}` holds the state of another cluster ({here}; the backup is of {there})");
    }
    match &present.node_id {
        Some(here) if *here != manifest.node_id => {
            format!("`{data}` holds the state of another node ({here}; the backup is of {})", manifest.node_id)
        }
        Some(_) => format!("`{data}` already holds a state of this node"),
        None => format!("`{data}` already holds a state of a node that it does not name"),
    }
}
