//! Makes a backup of a running node.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use super::{
    BackupError, Manifest,
    archive::{self, Sealed, Source},
    digest::{Facts, examine},
    keys::Lock,
    manifest::{CLUSTER, FORMAT, FileEntry, MAX_FILES, MAX_SMALL_BYTES, NODE, PASSWORD, STATE},
    verify::Scratch,
};
use crate::consensus::Handle;

/// Where a backup comes from and goes to.
pub(super) struct Order {
    /// The data directory.
    pub(super) data: PathBuf,
    /// A folder for the copy of the state; made and removed.
    pub(super) scratch: PathBuf,
    /// The new file.
    pub(super) target: PathBuf,
    /// What locks it.
    pub(super) lock: Lock,
    /// This node.
    pub(super) node_name: String,
    /// This node.
    pub(super) node_id: String,
}

/// A backup that was just made.
pub(super) struct Made {
    pub(super) manifest: Manifest,
    pub(super) sealed: Sealed,
}

/// Makes it while the node works. When it fails, the target is removed.
pub(super) async fn make(state: &Handle, order: Order) -> Result<Made, BackupError> {
    let scratch = Scratch::new(order.scratch.clone())?;
    let copy = scratch.path().join(STATE);
    state.copy_to(&copy, |_, _| ()).await.map_err(BackupError::Copy)?;
    let work = move || {
        let facts = examine(&copy)?.map_err(BackupError::StateDamaged)?;
        let (files, sources) = gather(&order.data, copy)?;
        let manifest = describe(&order, facts, files);
        manifest.check().map_err(BackupError::Unfit)?;
        let target = Unfinished(Some(order.target.clone()));
        let sealed = archive::write(&order.target, &order.lock, &manifest, &sources)?;
        target.done();
        drop(scratch);
        Ok(Made { manifest, sealed })
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(made) => made,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

fn describe(order: &Order, facts: Facts, files: Vec<FileEntry>) -> Manifest {
    Manifest {
        format: FORMAT,
        toft_version: env!("CARGO_PKG_VERSION").into(),
        schema_version: facts.schema_version,
        cluster_id: facts.cluster_id,
        node_id: order.node_id.clone(),
        node_name: order.node_name.clone(),
        applied_index: facts.applied_index,
        created_at: jiff::Timestamp::now().to_string(),
        files,
        tables: facts.tables,
        content_sha256: facts.content_sha256,
    }
}

/// What belongs into a backup: the copied state, and the small files as they are now.
fn gather(data: &Path, state: PathBuf) -> Result<(Vec<FileEntry>, Vec<Source>), BackupError> {
    let unreadable = |path: &Path, source| BackupError::Unreadable { path: path.to_owned(), source };
    let measured = archive::measure(&state).map_err(|source| unreadable(&state, source))?;
    let mut files = vec![FileEntry { path: STATE.into(), size_bytes: measured.size_bytes, sha256: measured.sha256 }];
    let mut sources = vec![Source::File(state)];
    let mut names = vec![NODE.to_owned()];
    let cluster = data.join(CLUSTER);
    walk(&cluster, CLUSTER, &mut names).map_err(|source| unreadable(&cluster, source))?;
    if data.join(PASSWORD).exists() {
        names.push(PASSWORD.into());
    }
    for name in names {
        let path = data.join(&name);
        let bytes = read_small(&path).map_err(|source| unreadable(&path, source))?;
        let sha256 = hex::encode(Sha256::digest(&bytes));
        files.push(FileEntry { path: name, size_bytes: bytes.len() as u64, sha256 });
        sources.push(Source::Bytes(bytes));
    }
    Ok((files, sources))
}

/// The files under `folder`, in the order of their names, called `prefix/...`.
fn walk(folder: &Path, prefix: &str, names: &mut Vec<String>) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    let mut entries = entries.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let name = entry.file_name().into_string().map_err(|_| io::Error::other("a file name is no text"))?;
        let name = format!("{prefix}/{name}");
        let kind = entry.file_type()?;
        if kind.is_dir() {
            walk(&entry.path(), &name, names)?;
        } else if kind.is_file() {
            names.push(name);
        }
        if names.len() > MAX_FILES {
            return Err(io::Error::other(format!("it holds more than {MAX_FILES} files")));
        }
    }
    Ok(())
}

fn read_small(path: &Path) -> io::Result<Vec<u8>> {
    if fs::metadata(path)?.len() > MAX_SMALL_BYTES {
        return Err(io::Error::other(format!("it is larger than {MAX_SMALL_BYTES} bytes")));
    }
    fs::read(path)
}

/// A file that goes unless it is done.
struct Unfinished(Option<PathBuf>);

impl Unfinished {
    fn done(mut self) {
        self.0 = None;
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let Some(path) = &self.0 else { return };
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, "`{}` could not be removed", path.display());
            }
            _ => {}
        }
    }
}
