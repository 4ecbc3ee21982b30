//! `image ls`, `image import`, `image rm`.

use std::path::Path;

use axum::body::Body;
use toft_model::image::ImageRef;
use tokio::io::AsyncRead;
use tokio_util::io::ReaderStream;

use super::{
    Failure,
    client::{Client, query_value},
    image_args::{ImagePruneArgs, ImagesArgs, ImportArgs, OnNode},
    output, progress, prompt,
    workloads::all_of,
};
use crate::api::types::Image;

pub(super) async fn ls(client: &Client, args: ImagesArgs) -> Result<i32, Failure> {
    let ImagesArgs { list: args, on } = args;
    let images: Vec<Image> = all_of(client, "/api/v1/images", &on.query()).await?;
    if args.json {
        output::json(&images)?;
    } else if args.quiet {
        images.iter().for_each(|image| println!("{}", image.name));
    } else {
        let rows = images.iter().map(|image| {
            vec![
                image.name.clone(),
                image.digest.chars().skip("sha256:".len()).take(12).collect(),
                image.platform.clone(),
                output::bytes(image.size_bytes),
                output::age(&image.created_at),
            ]
        });
        output::table(&["IMAGE", "DIGEST", "PLATFORM", "SIZE", "AGE"], rows);
    }
    Ok(0)
}

pub(super) async fn import(client: &Client, args: ImportArgs) -> Result<i32, Failure> {
    let (reader, length) = open(&args.file).await?;
    let bar = progress::bytes("importing", length);
    let bytes = ReaderStream::with_capacity(bar.wrap_async_read(reader), 256 * 1024);
    let name = args.name.map(|name| format!("&name={}", query_value(name.as_str()))).unwrap_or_default();
    let asked = format!("{name}{}", args.on.query()).replacen('&', "?", 1);
    let uploaded =
        client.upload::<Vec<Image>>(&format!("/api/v1/images/import{asked}"), Body::from_stream(bytes)).await;
    bar.finish_and_clear();
    let images = uploaded?;
    if args.json {
        output::json(&images)?;
    } else {
        images.iter().for_each(|image| println!("{}", image.name));
    }
    Ok(0)
}

async fn open(path: &Path) -> Result<(Box<dyn AsyncRead + Send + Unpin>, Option<u64>), Failure> {
    if path == Path::new("-") {
        return Ok((Box::new(tokio_stdin()?), None));
    }
    let unreadable = |e: std::io::Error| Failure::of(1, format!("`{}` cannot be read: {e}", path.display()));
    let file = tokio::fs::File::open(path).await.map_err(unreadable)?;
    let meta = file.metadata().await.map_err(unreadable)?;
    if meta.is_dir() {
        return Err(Failure::of(1, format!("`{}` is a directory", path.display()))
            .hint("pack the layout first: `tar -C DIRECTORY -cf image.tar .`"));
    }
    Ok((Box::new(file), Some(meta.len()).filter(|length| *length > 0)))
}

fn tokio_stdin() -> Result<tokio::fs::File, Failure> {
    use std::os::fd::AsFd;
    let own = std::io::stdin().as_fd().try_clone_to_owned();
    own.map(|descriptor| tokio::fs::File::from_std(descriptor.into()))
        .map_err(|e| Failure::of(1, format!("standard input cannot be read: {e}")))
}

pub(super) async fn rm(client: &Client, names: Vec<ImageRef>, on: OnNode) -> Result<i32, Failure> {
    let mut code = 0;
    for name in names {
        match client.delete(&format!("/api/v1/images?name={}{}", query_value(name.as_str()), on.query())).await {
            Ok(()) => println!("{name}"),
            Err(failure) => {
                failure.print();
                code = failure.exit_code;
            }
        }
    }
    Ok(code)
}

pub(super) async fn prune(client: &Client, args: ImagePruneArgs) -> Result<i32, Failure> {
    let ImagePruneArgs { prune: args, on } = args;
    if !args.yes {
        if !prompt::possible() {
            return Err(Failure::of(1, "nobody can be asked whether the images shall go").hint("say so with --yes"));
        }
        if !prompt::confirm("remove every image that no workload uses?")? {
            return Ok(1);
        }
    }
    let removed: Vec<Image> =
        client.post(&format!("/api/v1/images/prune{}", on.query().replacen('&', "?", 1)), &()).await?;
    if args.json {
        output::json(&removed)?;
    } else {
        removed.iter().for_each(|image| println!("{}", image.name));
    }
    Ok(0)
}
