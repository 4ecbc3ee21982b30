//! `backup create`, `backup ls`, `backup verify`, `backup keygen`.

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use http_body_util::BodyExt;
use hyper::{Response, body::Incoming, header};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{
    Failure,
    args::ListArgs,
    backup_args::{BackupCreateArgs, BackupKeyArgs, BackupVerifyArgs},
    client::{Client, json, query_value},
    output, progress, prompt,
    workloads::all,
};
use crate::{
    api::{
        http::{BackupLock, SHA256_HEADER},
        types::{Backup, BackupStatus},
    },
    backup::{
        BackupError, Manifest,
        archive::{Locked, locked},
        keys::{self, Key, KeySource},
        verify,
    },
    observe::chain,
};

/// The error as people read it.
pub(super) fn failed(error: BackupError) -> Failure {
    let failure = Failure::of(1, chain(&error));
    match error.hint() {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

pub(super) fn keygen(output: &Path) -> Result<i32, Failure> {
    if output.symlink_metadata().is_ok() {
        return Err(Failure::of(1, format!("`{}` is there already", output.display()))
            .hint("choose another name: whoever loses a key loses the backups locked with it"));
    }
    println!("{}", keys::generate(output, &jiff::Timestamp::now().to_string()).map_err(failed)?);
    Ok(0)
}

pub(super) async fn ls(client: &Client, args: ListArgs) -> Result<i32, Failure> {
    let backups: Vec<Backup> = all(client, "/api/v1/backups").await?;
    if args.json {
        output::json(&backups)?;
        return Ok(0);
    }
    if args.quiet {
        backups.iter().for_each(|backup| println!("{}", output::harmless(&backup.name)));
        return Ok(0);
    }
    let rows = backups.iter().map(|backup| {
        let made_by = match (backup.condition.as_str(), backup.scheduled) {
            ("unknown", _) => "",
            (_, true) => "schedule",
            (_, false) => "hand",
        };
        let condition = match (backup.condition.as_str(), backup.verified) {
            ("good", true) => "verified",
            (other, _) => other,
        };
        vec![
            output::harmless(&backup.name),
            output::bytes(backup.size_bytes),
            backup.locked.clone().unwrap_or_else(|| "no backup".into()),
            made_by.to_owned(),
            condition.to_owned(),
            output::age(&backup.created_at),
        ]
    });
    output::table(&["BACKUP", "SIZE", "LOCKED", "MADE BY", "CONDITION", "AGE"], rows);
    let status: BackupStatus = client.get("/api/v1/backups/status").await?;
    if let (Some(why), Some(at)) = (&status.failure, &status.failed_at) {
        eprintln!("warning: the scheduled backup failed {} ago: {}", output::age(at), output::harmless(why));
    }
    Ok(0)
}

/// What `create --output` tells.
#[derive(Serialize)]
struct Written<'a> {
    path: &'a Path,
    size_bytes: u64,
    sha256: &'a str,
}

pub(super) async fn create(client: &Client, args: BackupCreateArgs) -> Result<i32, Failure> {
    let Some(output) = &args.output else {
        let spinner = progress::spinner("backing up");
        let made: Result<Backup, Failure> = client.post("/api/v1/backups", &()).await;
        spinner.finish_and_clear();
        let made = made?;
        if args.json {
            output::json(&made)?
        } else {
            println!("{}", made.name)
        }
        return Ok(0);
    };
    if output.symlink_metadata().is_ok() {
        return Err(Failure::of(1, format!("`{}` is there already", output.display())).hint("choose another name"));
    }
    let lock = chosen_lock(client, &args).await?;
    let spinner = progress::spinner("backing up");
    let answer = client.download("/api/v1/backups/stream", Some(json(&lock)?.into())).await;
    spinner.finish_and_clear();
    let (size_bytes, sha256) = save(answer?, output).await?;
    if args.json {
        output::json(&Written { path: output, size_bytes, sha256: &sha256 })?;
    } else {
        println!("{}", output.display());
    }
    Ok(0)
}

async fn chosen_lock(client: &Client, args: &BackupCreateArgs) -> Result<BackupLock, Failure> {
    if let Some(text) = &args.recipient {
        return Ok(BackupLock { recipient: Some(text.clone()), passphrase: None });
    }
    if let Some(path) = &args.key_file {
        // Only the public half leaves this process.
        let recipient = Key::from_key_file(path).map_err(failed)?.recipients().into_iter().next();
        return Ok(BackupLock { recipient, passphrase: None });
    }
    if let Some(path) = &args.passphrase_file {
        return Ok(BackupLock { recipient: None, passphrase: Some(passphrase(path)?) });
    }
    let status: BackupStatus = client.get("/api/v1/backups/status").await?;
    if status.key.is_some() || !prompt::possible() {
        return Ok(BackupLock::default());
    }
    let typed = prompt::new_secret("no key for backups is configured; passphrase for this one")?;
    Ok(BackupLock { recipient: None, passphrase: Some(typed) })
}

fn passphrase(path: &Path) -> Result<String, Failure> {
    use age::secrecy::ExposeSecret;
    match Key::from_passphrase_file(path).map_err(failed)? {
        Key::Passphrase(text) => Ok(text.expose_secret().to_owned()),
        Key::Pair(_) => Err(Failure::of(1, format!("`{}` holds no passphrase", path.display()))),
    }
}

/// Writes what is sent to a new file, which has its name only when it is whole; gives size and SHA-256.
async fn save(answer: Response<Incoming>, output: &Path) -> Result<(u64, String), Failure> {
    let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let length = header(header::CONTENT_LENGTH.as_str()).and_then(|text| text.parse::<u64>().ok());
    let promised = header(SHA256_HEADER);
    let part = Part::beside(output);
    let unwritable = |source: std::io::Error| {
        let failure = Failure::of(1, format!("`{}` cannot be written: {source}", output.display()));
        if source.kind() == std::io::ErrorKind::StorageFull {
            failure.hint("free some space and try again")
        } else {
            failure
        }
    };
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part.0).map_err(unwritable)?;
    let bar = progress::bytes("receiving", length);
    let mut digest = Sha256::new();
    let mut size = 0;
    let mut body = answer.into_body();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| Failure::of(1, format!("the connection to toft broke: {e}")))?;
        let Some(bytes) = frame.data_ref() else { continue };
        file.write_all(bytes).map_err(unwritable)?;
        digest.update(bytes);
        size += bytes.len() as u64;
        bar.inc(bytes.len() as u64);
    }
    bar.finish_and_clear();
    let sha256 = hex::encode(digest.finalize());
    if promised.is_some_and(|promised| promised != sha256) {
        return Err(Failure::of(1, "what arrived is not what was sent").hint("try again"));
    }
    part.keep(&file, output).map_err(unwritable)?;
    Ok((size, sha256))
}

/// A file that goes when this does.
pub(super) struct Part(pub(super) PathBuf);

impl Part {
    /// The name of `output` until it is whole.
    pub(super) fn beside(output: &Path) -> Self {
        let name = output.file_name().unwrap_or_default().to_string_lossy();
        Self(output.with_file_name(format!(".{name}.{}.part", std::process::id())))
    }

    /// Gives the file, which is whole, its name, flushed to the disk.
    pub(super) fn keep(&self, file: &File, output: &Path) -> std::io::Result<()> {
        file.sync_all()?;
        // A link, unlike a rename, replaces nothing that came there meanwhile.
        match fs::hard_link(&self.0, output) {
            // Not every file system has links.
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => fs::rename(&self.0, output)?,
            linked => linked?,
        }
        let folder = output.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder)?.sync_all()
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.0));
    }
}

/// What `verify --json` tells.
#[derive(Serialize)]
struct Verdict<'a> {
    file: &'a Path,
    good: bool,
    differences: &'a [String],
    manifest: &'a Manifest,
}

pub(super) async fn verify(client: &Client, args: BackupVerifyArgs) -> Result<i32, Failure> {
    let mut fetched = None;
    let mut configured = None;
    let path = if args.file.exists() {
        args.file.clone()
    } else {
        let (path, key) = find(client, &args.file, &mut fetched).await?;
        configured = key;
        path
    };
    let key = chosen_key(&path, &args.key, configured.as_ref())?;
    let bar = progress::bytes("verifying", fs::metadata(&path).ok().map(|meta| meta.len()));
    let verified = verify::verify(&path, &key, &std::env::temp_dir(), &mut |done, _| bar.set_position(done));
    bar.finish_and_clear();
    let verified = verified.map_err(failed)?;
    let (manifest, differences) = (&verified.manifest, &verified.differences);
    let good = differences.is_empty();
    if args.json {
        output::json(&Verdict { file: &args.file, good, differences, manifest })?;
    } else if good {
        println!("{} is good: {}", args.file.display(), described(manifest));
    }
    if good {
        return Ok(0);
    }
    let shown = output::harmless(&differences.join("; "));
    Err(failed(BackupError::Differs { path: args.file, differences: vec![shown] }))
}

/// A backup in one line.
pub(super) fn described(manifest: &Manifest) -> String {
    let count = |table: &str| manifest.tables.get(table).copied().unwrap_or(0);
    output::harmless(&format!(
        "node `{}` at {}, {} workload(s), index {}, toft {}",
        manifest.node_name,
        manifest.created_at,
        count("workloads"),
        manifest.applied_index,
        manifest.toft_version
    ))
}

/// The backup of the node's folder called `name`, as a file here: its own, or a copy that lasts as long as `fetched`.
/// Gives the node's key too, when that is here as well.
async fn find(
    client: &Client,
    name: &Path,
    fetched: &mut Option<Part>,
) -> Result<(PathBuf, Option<KeySource>), Failure> {
    let missing = || {
        Failure::of(1, format!("there is no file `{}`, nor a backup of that name in the node's folder", name.display()))
            .hint("`toft backup ls` shows the backups there are")
    };
    let backups: Vec<Backup> = all(client, "/api/v1/backups").await.map_err(|_| missing())?;
    let found = backups.into_iter().find(|backup| Path::new(&backup.name) == name).ok_or_else(missing)?;
    if client.is_local() && Path::new(&found.path).exists() {
        let status: BackupStatus = client.get("/api/v1/backups/status").await?;
        let key = match (status.key.as_deref(), status.key_path) {
            (Some("key_file"), Some(path)) => Some(KeySource::KeyFile(path.into())),
            (Some("passphrase_file"), Some(path)) => Some(KeySource::PassphraseFile(path.into())),
            _ => None,
        };
        return Ok((found.path.into(), key));
    }
    let copy = std::env::temp_dir().join(format!("toft-backup-{}", uuid::Uuid::new_v4().simple()));
    let copy = fetched.insert(Part(copy)).0.clone();
    let answer = client.download(&format!("/api/v1/backups/{}/content", query_value(&found.name)), None).await?;
    save(answer, &copy).await?;
    Ok((copy, None))
}

/// What opens the backup `path`: what was named, else what is configured, else what is typed.
pub(super) fn chosen_key(path: &Path, args: &BackupKeyArgs, configured: Option<&KeySource>) -> Result<Key, Failure> {
    let locked = locked(path).map_err(failed)?;
    if let Some(file) = &args.key_file {
        return Key::from_key_file(file).map_err(failed);
    }
    if let Some(file) = &args.passphrase_file {
        return Key::from_passphrase_file(file).map_err(failed);
    }
    match (locked, configured) {
        (Locked::Recipient, Some(KeySource::KeyFile(file))) => Key::from_key_file(file).map_err(failed),
        (Locked::Passphrase, Some(KeySource::PassphraseFile(file))) => Key::from_passphrase_file(file).map_err(failed),
        (Locked::Passphrase, _) if prompt::possible() => {
            Ok(Key::passphrase(prompt::secret(&format!("passphrase of {}", path.display()))?))
        }
        (locked, _) => {
            let needed = if locked == Locked::Passphrase { "passphrase" } else { "key file" };
            Err(failed(BackupError::OtherKey { path: path.to_owned(), needed }))
        }
    }
}
