//! `volume create`, `ls`, `inspect`, `rm`, `prune`, `backup`, `restore`.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufReader, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use age::stream::StreamWriter;
use axum::body::Body;
use bytes::Bytes;
use http_body_util::BodyExt;
use serde::Serialize;
use sha2::{Digest, Sha256};
use toft_model::{name::Name, volume::VolumeOptions};
use tokio_stream::wrappers::ReceiverStream;

use super::{
    Failure,
    args::{ListArgs, told},
    backups::{Part, chosen_key, failed},
    client::Client,
    image_args::PruneArgs,
    output, progress, prompt,
    volume_args::{VolumeBackupArgs, VolumeCreateArgs, VolumeRestoreArgs, options},
    workloads::all,
};
use crate::{
    api::types::{Volume, VolumeRequest, VolumeRestored},
    backup::{
        keys::{KeySource, Lock},
        stream,
    },
};

/// Bytes of a backup that are sent at once.
const CHUNK: usize = 256 << 10;

pub(super) async fn create(client: &Client, args: VolumeCreateArgs) -> Result<i32, Failure> {
    let chosen = VolumeOptions::from_pairs(&options(&args.options)?)
        .map_err(|invalid| Failure::of(2, told(invalid.at("--opt"))))?;
    let labels = options(&args.labels)?;
    let request = VolumeRequest { name: args.name, node: args.node, options: chosen, labels };
    let volume: Volume = client.post("/api/v1/volumes", &request).await?;
    if args.json {
        output::json(&volume)?;
    } else {
        println!("{}", volume.name);
    }
    Ok(0)
}

pub(super) async fn ls(client: &Client, args: ListArgs) -> Result<i32, Failure> {
    let volumes: Vec<Volume> = all(client, "/api/v1/volumes").await?;
    if args.json {
        output::json(&volumes)?;
    } else if args.quiet {
        volumes.iter().for_each(|volume| println!("{}", volume.name));
    } else {
        let rows = volumes.iter().map(|volume| {
            let kind = volume.options.kind.map_or("local", |kind| kind.as_str());
            vec![
                volume.name.clone(),
                kind.to_owned(),
                match (&volume.moving, &volume.node) {
                    (Some(moving), Some(node)) => format!("{node} ({})", moving.summary),
                    (_, node) => node.clone().unwrap_or_default(),
                },
                volume.size_bytes.map(output::bytes).unwrap_or_default(),
                output::age(&volume.created_at),
                volume.used_by.join(", "),
            ]
        });
        output::table(&["NAME", "TYPE", "NODE", "SIZE", "AGE", "USED BY"], rows);
    }
    Ok(0)
}

pub(super) async fn inspect(client: &Client, name: &Name) -> Result<i32, Failure> {
    let volume: Volume = client.get(&format!("/api/v1/volumes/{name}")).await?;
    output::json(&volume)?;
    Ok(0)
}

pub(super) async fn rm(client: &Client, names: Vec<Name>) -> Result<i32, Failure> {
    let mut code = 0;
    for name in names {
        match client.delete(&format!("/api/v1/volumes/{name}")).await {
            Ok(()) => println!("{name}"),
            Err(failure) => {
                failure.print();
                code = failure.exit_code;
            }
        }
    }
    Ok(code)
}

pub(super) async fn prune(client: &Client, args: PruneArgs) -> Result<i32, Failure> {
    if !args.yes {
        if !prompt::possible() {
            return Err(Failure::of(1, "nobody can be asked whether the volumes shall go").hint("say so with --yes"));
        }
        if !prompt::confirm("delete the data of every volume that no workload uses?")? {
            return Ok(1);
        }
    }
    let removed: Vec<Volume> = client.post("/api/v1/volumes/prune", &()).await?;
    if args.json {
        output::json(&removed)?;
    } else {
        removed.iter().for_each(|volume| println!("{}", volume.name));
    }
    Ok(0)
}

/// What `backup --json` tells.
#[derive(Serialize)]
struct Written<'a> {
    path: &'a Path,
    size_bytes: u64,
    sha256: &'a str,
}

pub(super) async fn backup(client: &Client, args: VolumeBackupArgs) -> Result<i32, Failure> {
    let lock = lock(&args)?;
    let ending = if lock.is_some() { "tar.zst.age" } else { "tar.zst" };
    let path = args.output.clone().unwrap_or_else(|| PathBuf::from(format!("{}.{ending}", args.name)));
    if path.symlink_metadata().is_ok() {
        return Err(Failure::of(1, format!("`{}` is there already", path.display())).hint("choose another name"));
    }
    let volume: Volume = client.get(&format!("/api/v1/volumes/{}", args.name)).await?;
    if !volume.running.is_empty() {
        let users = volume.running.join(", ");
        eprintln!(
            "warning: {users} may write while the backup is made; what is written meanwhile may be in it by halves"
        );
    }
    let answer = client.download(&format!("/api/v1/volumes/{}/backup", args.name), None).await?;
    let part = Part::beside(&path);
    let unwritable = |source: io::Error| unwritable(&path, &source);
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part.0).map_err(unwritable)?;
    let mut out = Out::new(Counted { file, digest: Sha256::new(), size: 0 }, lock.as_ref())?;
    let bar = progress::bytes("backing up", None);
    let mut body = answer.into_body();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| {
            Failure::of(1, "the backup broke off before its end; nothing was kept")
                .hint("the log of the volume's node says why")
        })?;
        let Some(bytes) = frame.data_ref() else { continue };
        out.write_all(bytes).map_err(unwritable)?;
        bar.inc(bytes.len() as u64);
    }
    bar.finish_and_clear();
    let Counted { file, digest, size } = out.finish().map_err(unwritable)?;
    part.keep(&file, &path).map_err(unwritable)?;
    let sha256 = hex::encode(digest.finalize());
    if args.json {
        output::json(&Written { path: &path, size_bytes: size, sha256: &sha256 })?;
    } else {
        println!("{}", path.display());
    }
    Ok(0)
}

fn unwritable(path: &Path, source: &io::Error) -> Failure {
    let failure = Failure::of(1, format!("`{}` cannot be written: {source}", path.display()));
    match source.kind() {
        io::ErrorKind::StorageFull => failure.hint("free some space and try again"),
        _ => failure,
    }
}

fn lock(args: &VolumeBackupArgs) -> Result<Option<Lock>, Failure> {
    let source = match (&args.recipient, &args.key_file, &args.passphrase_file) {
        (Some(text), _, _) => KeySource::Recipient(text.clone()),
        (None, Some(path), _) => KeySource::KeyFile(path.clone()),
        (None, None, Some(path)) => KeySource::PassphraseFile(path.clone()),
        (None, None, None) => return Ok(None),
    };
    source.lock().map(Some).map_err(failed)
}

/// A file whose bytes are counted and hashed.
struct Counted {
    file: File,
    digest: Sha256,
    size: u64,
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.digest.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// A backup on its way to the disk. The passphrase never leaves this process.
enum Out {
    Plain(Counted),
    Sealed(Box<StreamWriter<Counted>>),
}

impl Out {
    fn new(counted: Counted, lock: Option<&Lock>) -> Result<Self, Failure> {
        Ok(match lock {
            None => Self::Plain(counted),
            Some(lock) => Self::Sealed(Box::new(stream::seal(lock, counted).map_err(failed)?)),
        })
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(out) => out.write_all(bytes),
            Self::Sealed(out) => out.write_all(bytes),
        }
    }

    fn finish(self) -> io::Result<Counted> {
        match self {
            Self::Plain(out) => Ok(out),
            Self::Sealed(out) => out.finish(),
        }
    }
}

pub(super) async fn restore(client: &Client, args: VolumeRestoreArgs) -> Result<i32, Failure> {
    let path = &args.file;
    let unreadable = |e: io::Error| Failure::of(1, format!("`{}` cannot be read: {e}", path.display()));
    let sealed = stream::is_sealed(path).map_err(failed)?;
    let key = if sealed { Some(chosen_key(path, &args.key, None)?) } else { None };
    let file = File::open(path).map_err(unreadable)?;
    let bar = progress::bytes("restoring", file.metadata().ok().map(|meta| meta.len()));
    let counted = bar.wrap_read(BufReader::with_capacity(CHUNK, file));
    let reader: Box<dyn Read + Send> = match key {
        None => Box::new(counted),
        Some(key) => Box::new(stream::open(path, &key, counted).map_err(failed)?),
    };
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    // Ends with the file, or with the other side.
    let reads = tokio::task::spawn_blocking(move || {
        let outcome = pour(reader, &sender);
        if let Err(error) = &outcome {
            drop(sender.blocking_send(Err(io::Error::other(error.to_string()))));
        }
        outcome
    });
    let address = format!("/api/v1/volumes/{}/restore?replace={}", args.name, args.replace);
    let restored = client.upload::<VolumeRestored>(&address, Body::from_stream(ReceiverStream::new(receiver))).await;
    bar.finish_and_clear();
    let read = reads.await.map_err(|error| Failure::of(1, format!("`{}` cannot be read: {error}", path.display())))?;
    // What was wrong with the file explains more than what became of the request.
    if let Err(error) = read {
        return Err(unreadable(error).hint("the volume is as it was"));
    }
    let restored = restored?;
    if args.json {
        output::json(&restored)?;
    } else {
        println!("{}: {} files, {}", args.name, restored.entries, output::bytes(restored.bytes));
    }
    Ok(0)
}

fn pour(mut reader: impl Read, sender: &tokio::sync::mpsc::Sender<io::Result<Bytes>>) -> io::Result<()> {
    loop {
        let mut chunk = vec![0; CHUNK];
        let length = reader.read(&mut chunk)?;
        chunk.truncate(length);
        // Nobody listens any more: the answer says why.
        if length == 0 || sender.blocking_send(Ok(chunk.into())).is_err() {
            return Ok(());
        }
    }
}
