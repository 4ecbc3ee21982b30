//! `secret create`, `secret update`, `secret ls`, `secret inspect`, `secret rm`.

use std::{
    fs::File,
    io::{IsTerminal, Read},
    path::Path,
};

use axum::body::Body;
use toft_model::{name::Name, secret::MAX_VALUE_BYTES};
use zeroize::Zeroizing;

use super::{
    Failure,
    args::ListArgs,
    client::{Client, query_value},
    output, prompt,
    secret_args::SecretValueArgs,
    workloads::all,
};
use crate::api::types::Secret;

pub(super) async fn create(client: &Client, args: SecretValueArgs) -> Result<i32, Failure> {
    let value = value(args.file.as_deref(), &args.name)?;
    let path = format!("/api/v1/secrets?name={}", query_value(args.name.as_str()));
    let secret: Secret = client.upload(&path, Body::from(value.to_vec())).await?;
    told(&secret, args.json)
}

pub(super) async fn update(client: &Client, args: SecretValueArgs) -> Result<i32, Failure> {
    let path = format!("/api/v1/secrets/{}", args.name);
    // Read first: a name that is mistyped shall not become a new secret, and nobody is asked for a value in vain.
    let known: Secret = client.get(&path).await?;
    let value = value(args.file.as_deref(), &args.name)?;
    let secret: Secret = client.replace(&path, known.version, Body::from(value.to_vec())).await?;
    if !secret.outdated.is_empty() && !args.json {
        eprintln!("still with the old value, until `toft restart`: {}", secret.outdated.join(", "));
    }
    told(&secret, args.json)
}

fn told(secret: &Secret, json: bool) -> Result<i32, Failure> {
    if json {
        output::json(secret)?;
    } else {
        println!("{}", secret.name);
    }
    Ok(0)
}

/// The value, from a file, standard input or a person.
fn value(file: Option<&Path>, name: &Name) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let value = match file {
        None if std::io::stdin().is_terminal() => {
            if !prompt::possible() {
                return Err(Failure::of(1, "there is no value, and nobody can be asked")
                    .hint("name a file with it, or send it to standard input"));
            }
            Zeroizing::new(prompt::new_secret(&format!("value of {name}"))?.into_bytes())
        }
        None => read(std::io::stdin().lock(), "standard input")?,
        Some(path) if path == Path::new("-") => read(std::io::stdin().lock(), "standard input")?,
        Some(path) => {
            let shown = path.display().to_string();
            let file = File::open(path).map_err(|e| Failure::of(1, format!("`{shown}` cannot be read: {e}")))?;
            read(file, &shown)?
        }
    };
    match value.len() {
        0 => Err(Failure::of(1, "the value is empty").hint(format!("use 1 to {MAX_VALUE_BYTES} bytes"))),
        1..=MAX_VALUE_BYTES => Ok(value),
        _ => Err(Failure::of(1, format!("the value has more than {MAX_VALUE_BYTES} bytes"))
            .hint("put large data into an image or encrypt it, and keep its key as a secret")),
    }
}

fn read(from: impl Read, shown: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
    // With its whole room from the start, so that no copy of it is left behind by growing.
    let mut value = Zeroizing::new(Vec::with_capacity(MAX_VALUE_BYTES + 1));
    let read = from.take(MAX_VALUE_BYTES as u64 + 1).read_to_end(&mut value);
    read.map_err(|e| Failure::of(1, format!("`{shown}` cannot be read: {e}")))?;
    Ok(value)
}

pub(super) async fn ls(client: &Client, args: ListArgs) -> Result<i32, Failure> {
    let secrets: Vec<Secret> = all(client, "/api/v1/secrets").await?;
    if args.json {
        output::json(&secrets)?;
    } else if args.quiet {
        secrets.iter().for_each(|secret| println!("{}", secret.name));
    } else {
        let rows = secrets.iter().map(|secret| {
            let user = |name: &String| match secret.outdated.contains(name) {
                true => format!("{name} (older value)"),
                false => name.clone(),
            };
            vec![
                secret.name.clone(),
                secret.version.to_string(),
                output::bytes(secret.size_bytes),
                output::age(&secret.created_at),
                output::age(&secret.updated_at),
                secret.used_by.iter().map(user).collect::<Vec<_>>().join(", "),
            ]
        });
        output::table(&["NAME", "VERSION", "SIZE", "AGE", "CHANGED", "USED BY"], rows);
    }
    Ok(0)
}

pub(super) async fn inspect(client: &Client, name: &Name) -> Result<i32, Failure> {
    let secret: Secret = client.get(&format!("/api/v1/secrets/{name}")).await?;
    output::json(&secret)?;
    Ok(0)
}

pub(super) async fn rm(client: &Client, names: Vec<Name>) -> Result<i32, Failure> {
    let mut code = 0;
    for name in names {
        match client.delete(&format!("/api/v1/secrets/{name}")).await {
            Ok(()) => println!("{name}"),
            Err(failure) => {
                failure.print();
                code = failure.exit_code;
            }
        }
    }
    Ok(code)
}
