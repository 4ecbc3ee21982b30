//! `cp`: files out of containers and into them.

use std::{
    fs, io,
    io::IsTerminal,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use axum::body::Body;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use indicatif::ProgressBar;
use rustix::fs::{Mode, OFlags, open};
use toft_model::files::{FileKind, FileStat, FilesWritten};
use tokio::{
    io::{AsyncRead, AsyncWriteExt},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::io::{ReaderStream, StreamReader, SyncIoBridge};

use super::{
    Failure,
    client::{Client, query_value},
    cp_args::{CpArgs, End},
    exec, progress,
};
use crate::{
    agent::files::{FileError, Owner, Source, Unpack},
    observe::chain,
};

/// Bytes of input read at once.
const PART: usize = 128 * 1024;
/// Parts on their way.
const WAITING: usize = 4;
/// Links that are followed one after the other.
const MOST_LINKS: u32 = 40;

/// A path in a container.
struct Inside<'a> {
    client: &'a Client,
    instance: String,
    path: String,
}

pub(super) async fn cp(client: &Client, args: CpArgs) -> Result<i32, Failure> {
    let CpArgs { archive, follow_link, from, to } = args;
    match (from, to) {
        (End::Inside { name, index, path }, to @ (End::Local(_) | End::Stream)) => {
            let instance = exec::instance(client, &name, index).await?;
            let from = Inside { client, instance, path };
            match to {
                End::Local(to) => out_to(&from, &to, archive, follow_link).await?,
                _ => out_to_stream(&from, follow_link).await?,
            }
        }
        (from @ (End::Local(_) | End::Stream), End::Inside { name, index, path }) => {
            let instance = exec::instance(client, &name, index).await?;
            let to = Inside { client, instance, path };
            match from {
                End::Local(from) => into(&from, to, archive, follow_link).await?,
                _ => into_from_stream(&to, archive).await?,
            }
        }
        _ => {
            return Err(Failure::of(2, "one end of the copy must be in a container, and only one")
                .hint("write it like `toft cp web:/etc/hosts .` or `toft cp hosts web:/etc`"));
        }
    }
    Ok(0)
}

impl Inside<'_> {
    async fn stat(&self, follow: bool) -> Result<FileStat, Failure> {
        let path = query_value(&self.path);
        let path = format!("/api/v1/instances/{}/files/stat?path={path}&follow={follow}", self.instance);
        self.client.get(&path).await
    }

    async fn archive(&self, follow: bool) -> Result<Incoming, Failure> {
        let path = query_value(&self.path);
        let path = format!("/api/v1/instances/{}/files?path={path}&follow={follow}", self.instance);
        Ok(self.client.download(&path, None).await?.into_body())
    }

    async fn write(&self, archive: Body, keep_owner: bool) -> Result<FilesWritten, Failure> {
        let path = query_value(&self.path);
        let path = format!("/api/v1/instances/{}/files?path={path}&keep_owner={keep_owner}", self.instance);
        self.client.put_stream(&path, archive).await
    }

    fn ends_in_slash(&self) -> bool {
        self.path.ends_with('/')
    }

    /// Splits the path into a directory and a name in it.
    fn into_parent(self) -> (Self, String) {
        let trimmed = self.path.trim_end_matches('/');
        let (parent, name) = trimmed.rsplit_once('/').unwrap_or(("", trimmed));
        let name = name.to_owned();
        let path = if parent.is_empty() { "/".to_owned() } else { parent.to_owned() };
        (Self { path, ..self }, name)
    }
}

async fn out_to_stream(from: &Inside<'_>, follow: bool) -> Result<(), Failure> {
    if io::stdout().is_terminal() {
        return Err(Failure::of(2, "an archive is no text for a terminal").hint("send it on: `| tar -x`, or `>FILE`"));
    }
    let mut body = from.archive(follow).await?;
    let mut out = tokio::io::stdout();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| broke_off(&error))?;
        let Some(data) = frame.data_ref() else { continue };
        match out.write_all(data).await {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            written => written.map_err(|error| Failure::of(1, format!("the output could not be written: {error}")))?,
        }
    }
    out.flush().await.map_err(|error| Failure::of(1, format!("the output could not be written: {error}")))
}

async fn out_to(from: &Inside<'_>, to: &str, keep_owner: bool, follow: bool) -> Result<(), Failure> {
    let stat = from.stat(follow).await?;
    if stat.kind == FileKind::Other {
        return Err(Failure::of(1, format!("`{}` is a device or a socket, which is not copied", from.path)));
    }
    let place = Place::of(to, &stat)?;
    let body = from.archive(follow).await?;
    let length = (stat.kind == FileKind::File).then_some(stat.size_bytes);
    let bar = progress::later("copying", length);
    let bytes = StreamReader::new(body.into_data_stream().map_err(io::Error::other));
    let bytes = SyncIoBridge::new(bar.wrap_async_read(bytes));
    let owner = if keep_owner { Owner::AsArchived } else { Owner::Caller };
    let unpacked = tokio::task::spawn_blocking(move || {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let into = open(&place.directory, flags, Mode::empty())
            .map_err(|errno| FileError::Io { path: place.directory.display().to_string(), source: errno.into() })?;
        Unpack { owner, rename: place.rename }.run(into.as_fd(), io::BufReader::with_capacity(PART, bytes))
    });
    let unpacked = unpacked.await.map_err(|error| Failure::of(1, error.to_string()))?;
    bar.finish_and_clear();
    unpacked.map(drop).map_err(|error| not_copied(&error))
}

/// Where files of this machine go.
struct Place {
    /// A directory that is there, by its full path without links.
    directory: PathBuf,
    /// Another name for what is copied.
    rename: Option<String>,
}

impl Place {
    fn of(to: &str, from: &FileStat) -> Result<Self, Failure> {
        let is_directory = from.kind == FileKind::Directory;
        let unusable = |error: &io::Error| Failure::of(1, format!("`{to}` cannot be used: {error}"));
        let into = |directory: &Path| fs::canonicalize(directory).map_err(|error| unusable(&error));
        match fs::metadata(to) {
            Ok(there) if there.is_dir() => Ok(Self { directory: into(Path::new(to))?, rename: None }),
            Ok(_) if is_directory => Err(directory_to_file(to)),
            Ok(_) => {
                // A link stays, and what it leads to is replaced.
                let file = into(Path::new(to))?;
                let name = file.file_name().map(|name| name.to_string_lossy().into_owned());
                Ok(Self { directory: file.parent().unwrap_or(Path::new("/")).to_owned(), rename: name })
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(unusable(&error)),
            Err(_) if to.ends_with('/') && !is_directory => Err(no_directory(to)),
            Err(_) => {
                let path = Path::new(to);
                let (Some(name), Some(parent)) = (path.file_name(), path.parent()) else {
                    return Err(no_directory(to));
                };
                let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
                let directory = into(parent)?;
                if from.name == "." {
                    fs::create_dir(path).map_err(|error| unusable(&error))?;
                    return Ok(Self { directory: into(path)?, rename: None });
                }
                Ok(Self { directory, rename: Some(name.to_string_lossy().into_owned()) })
            }
        }
    }
}

async fn into_from_stream(to: &Inside<'_>, keep_owner: bool) -> Result<(), Failure> {
    if io::stdin().is_terminal() {
        return Err(Failure::of(2, "an archive cannot be typed").hint("pipe it in: `tar -c DIRECTORY | toft cp - ...`"));
    }
    let own = io::stdin().as_fd().try_clone_to_owned();
    let own = own.map_err(|error| Failure::of(1, format!("standard input cannot be read: {error}")))?;
    let bar = progress::later("copying", None);
    let body = body_of(tokio::fs::File::from_std(own.into()), &bar);
    let written = to.write(body, keep_owner).await;
    bar.finish_and_clear();
    written.map(drop)
}

fn body_of(from: impl AsyncRead + Send + Unpin + 'static, bar: &ProgressBar) -> Body {
    Body::from_stream(ReaderStream::with_capacity(bar.wrap_async_read(from), PART))
}

async fn into(from: &str, to: Inside<'_>, keep_owner: bool, follow: bool) -> Result<(), Failure> {
    let source = Source::local(from, follow || from.ends_with('/')).map_err(|error| not_copied(&error))?;
    let kind = source.kind().map_err(|error| not_copied(&error))?;
    let (to, name) = placed(to, source.name(), kind == FileKind::Directory).await?;
    let source = source.named(&name);
    let bar = progress::later("copying", None);
    let (sender, parts) = mpsc::channel::<io::Result<Bytes>>(WAITING);
    let packing = tokio::task::spawn_blocking(move || source.pack_into(sender));
    let told = bar.clone();
    let parts = ReceiverStream::new(parts).inspect(move |part| {
        if let Ok(part) = part {
            told.inc(part.len() as u64);
        }
    });
    let written = to.write(Body::from_stream(parts), keep_owner).await;
    bar.finish_and_clear();
    let packed = packing.await.map_err(|error| Failure::of(1, error.to_string()))?;
    match (written, packed) {
        (Ok(_), Ok(())) => Ok(()),
        // What the node refused is why packing could not go on.
        (Err(failure), Ok(())) => Err(failure),
        (Err(failure), Err(FileError::Io { source, .. })) if source.kind() == io::ErrorKind::BrokenPipe => Err(failure),
        (_, Err(error)) => Err(not_copied(&error)),
    }
}

/// The directory in the container that a source goes into, and the source's name there.
async fn placed<'a>(mut to: Inside<'a>, name: &str, is_directory: bool) -> Result<(Inside<'a>, String), Failure> {
    for _ in 0..MOST_LINKS {
        match to.stat(true).await {
            Ok(there) if there.kind == FileKind::Directory => return Ok((to, name.to_owned())),
            Ok(_) if is_directory => return Err(directory_to_file(&to.path)),
            Ok(_) => {
                let itself = to.stat(false).await?;
                let Some(target) = itself.target else { return Ok(to.into_parent()) };
                // A link stays, and what it leads to is replaced.
                let (parent, _) = to.into_parent();
                let path = if target.starts_with('/') { target } else { format!("{}/{target}", parent.path) };
                to = Inside { path, ..parent };
            }
            Err(failure) if !failure.is("not_found") => return Err(failure),
            Err(_) if to.ends_in_slash() && !is_directory => return Err(no_directory(&to.path)),
            Err(_) => return Ok(to.into_parent()),
        }
    }
    Err(Failure::of(1, format!("`{}` is a link to a link, and so on", to.path)))
}

fn no_directory(path: &str) -> Failure {
    Failure::of(1, format!("the directory `{path}` is not there")).hint("make it first, or leave out the slash")
}

fn directory_to_file(path: &str) -> Failure {
    Failure::of(1, format!("a directory cannot be copied to the file `{path}`"))
}

fn broke_off(error: &hyper::Error) -> Failure {
    Failure::of(1, format!("the copy broke off: {error}")).hint("what came before it may be there; repeat the copy")
}

fn not_copied(error: &FileError) -> Failure {
    let failure = Failure::of(1, chain(error));
    match error {
        FileError::Refused { .. } => failure.hint("what came before it may be there; repeat the copy"),
        _ => failure,
    }
}
