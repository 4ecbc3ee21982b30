//! `registry login`, `registry logout`, `registry ls`, `registry import`.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{IsTerminal, Read},
    path::{Path, PathBuf},
};

use axum::body::Body;
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Deserialize;
use toft_model::registry::{MAX_PASSWORD_BYTES, RegistryName, check_username};
use zeroize::Zeroizing;

use super::{
    Failure,
    args::ListArgs,
    client::{Client, query_value},
    output, prompt,
    registry_args::LoginArgs,
    workloads::all,
};
use crate::api::types::Registry;

/// Largest file of logins that is read.
const MOST_FILE_BYTES: u64 = 4 << 20;

pub(super) async fn login(client: &Client, args: LoginArgs) -> Result<i32, Failure> {
    let asks = std::io::stdin().is_terminal() && !args.password_stdin;
    let username = match args.username {
        Some(username) => username,
        None if asks && prompt::possible() => prompt::line(&format!("user name at {}", args.registry))?,
        None => return Err(Failure::of(2, "there is no user name").hint("name one with `--username`")),
    };
    check_username(&username).map_err(|invalid| Failure::of(1, invalid.message).hint(invalid.hint))?;
    let password = if asks {
        if !prompt::possible() {
            return Err(
                Failure::of(1, "there is no password, and nobody can be asked").hint("send it to standard input")
            );
        }
        Zeroizing::new(prompt::secret(&format!("password of {username} at {}", args.registry))?)
    } else {
        read_password()?
    };
    let login = put(client, &args.registry, &username, &password).await?;
    if args.json {
        output::json(&login)?;
    } else {
        println!("{} as {}", login.registry, login.username);
    }
    Ok(0)
}

/// A line of standard input, without its end.
fn read_password() -> Result<Zeroizing<String>, Failure> {
    let failed = |error: std::io::Error| Failure::of(1, format!("standard input cannot be read: {error}"));
    // With its whole room from the start, so that no copy of it is left behind by growing.
    let mut password = Zeroizing::new(String::with_capacity(MAX_PASSWORD_BYTES + 3));
    std::io::stdin().lock().take(MAX_PASSWORD_BYTES as u64 + 2).read_to_string(&mut password).map_err(failed)?;
    let length = password.trim_end_matches(['\r', '\n']).len();
    password.truncate(length);
    Ok(password)
}

async fn put(
    client: &Client,
    registry: &RegistryName,
    username: &str,
    password: &Zeroizing<String>,
) -> Result<Registry, Failure> {
    if password.is_empty() || password.len() > MAX_PASSWORD_BYTES {
        return Err(Failure::of(1, format!("the password for `{registry}` is empty or too long"))
            .hint(format!("use 1 to {MAX_PASSWORD_BYTES} bytes")));
    }
    let path = format!("/api/v1/registries/{}?username={}", query_value(registry.as_str()), query_value(username));
    client.put_stream(&path, Body::from(password.as_bytes().to_vec())).await
}

pub(super) async fn logout(client: &Client, registries: Vec<RegistryName>) -> Result<i32, Failure> {
    let mut code = 0;
    for registry in registries {
        match client.delete(&format!("/api/v1/registries/{}", query_value(registry.as_str()))).await {
            Ok(()) => println!("{registry}"),
            Err(failure) => {
                failure.print();
                code = failure.exit_code;
            }
        }
    }
    Ok(code)
}

pub(super) async fn ls(client: &Client, args: ListArgs) -> Result<i32, Failure> {
    let logins: Vec<Registry> = all(client, "/api/v1/registries").await?;
    if args.json {
        output::json(&logins)?;
    } else if args.quiet {
        logins.iter().for_each(|login| println!("{}", login.registry));
    } else {
        let rows = logins
            .iter()
            .map(|login| vec![login.registry.clone(), login.username.clone(), output::age(&login.updated_at)]);
        output::table(&["REGISTRY", "USERNAME", "AGE"], rows);
    }
    Ok(0)
}

/// What Docker and Podman keep.
#[derive(Deserialize)]
struct Kept {
    #[serde(default)]
    auths: BTreeMap<String, Auth>,
    #[serde(default, rename = "credsStore")]
    store: Option<String>,
    #[serde(default, rename = "credHelpers")]
    helpers: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Auth {
    #[serde(default)]
    auth: Option<Zeroizing<String>>,
    #[serde(default, rename = "identitytoken")]
    identity_token: Option<Zeroizing<String>>,
}

/// A login that was found, or why it cannot be taken over.
type Found = (String, Result<(RegistryName, String, Zeroizing<String>), String>);

pub(super) async fn import(client: &Client, file: Option<PathBuf>, json: bool) -> Result<i32, Failure> {
    let path = match file {
        Some(path) => path,
        None => {
            let home = std::env::var_os("HOME").ok_or_else(|| Failure::of(2, "there is no HOME to look into"))?;
            Path::new(&home).join(".docker/config.json")
        }
    };
    let shown = path.display().to_string();
    let unreadable = |error: std::io::Error| Failure::of(1, format!("`{shown}` cannot be read: {error}"));
    let mut text = Zeroizing::new(Vec::new());
    File::open(&path).map_err(unreadable)?.take(MOST_FILE_BYTES).read_to_end(&mut text).map_err(unreadable)?;
    let kept: Kept = serde_json::from_slice(&text)
        .map_err(|error| Failure::of(1, format!("`{shown}` is no configuration of Docker: line {}", error.line())))?;
    let (mut taken, mut code) = (Vec::new(), 0);
    for (written, found) in logins(kept) {
        match found {
            Ok((registry, username, password)) => match put(client, &registry, &username, &password).await {
                Ok(login) => taken.push(login),
                Err(failure) => {
                    failure.print();
                    code = failure.exit_code;
                }
            },
            Err(reason) => {
                eprintln!("toft: `{}` was not taken over: {reason}", output::harmless(&written));
                code = 1;
            }
        }
    }
    if json {
        output::json(&taken)?;
    } else {
        taken.iter().for_each(|login| println!("{} as {}", login.registry, login.username));
        if taken.is_empty() && code == 0 {
            eprintln!("there are no logins in `{shown}`");
        }
    }
    Ok(code)
}

fn logins(kept: Kept) -> Vec<Found> {
    let mut found: Vec<Found> = Vec::new();
    for (written, auth) in kept.auths {
        let read = read_auth(&written, &auth, kept.store.as_deref().or(kept.helpers.get(&written).map(String::as_str)));
        found.push((written, read));
    }
    for (written, helper) in kept.helpers {
        if found.iter().all(|(known, _)| *known != written) {
            found.push((written, Err(by_helper(&helper))));
        }
    }
    found
}

fn read_auth(
    written: &str,
    auth: &Auth,
    store: Option<&str>,
) -> Result<(RegistryName, String, Zeroizing<String>), String> {
    let registry = written.parse::<RegistryName>().map_err(|invalid| invalid.message)?;
    let Some(packed) = auth.auth.as_ref().filter(|auth| !auth.is_empty()) else {
        return Err(match (&auth.identity_token, store) {
            (Some(_), _) => "it is a token that only Docker can renew".to_owned(),
            (None, Some(store)) => by_helper(store),
            (None, None) => "it holds no password".to_owned(),
        });
    };
    let bytes = STANDARD.decode(packed.as_bytes()).map(Zeroizing::new).map_err(|_| "it cannot be read".to_owned())?;
    let text = std::str::from_utf8(&bytes).map_err(|_| "it cannot be read".to_owned())?;
    let (username, password) = text.split_once(':').ok_or_else(|| "it cannot be read".to_owned())?;
    Ok((registry, username.to_owned(), Zeroizing::new(password.trim_end_matches('\0').to_owned())))
}

fn by_helper(helper: &str) -> String {
    let helper: String = helper.chars().filter(|c| !c.is_control()).take(60).collect();
    format!("its password is kept by `docker-credential-{helper}`; log in with `toft registry login`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dockers_logins_are_read_and_what_cannot_be_is_named() {
        let kept: Kept = serde_json::from_str(
            r#"{"auths": {
                "https://index.docker.io/v1/": {"auth": "am86cGFzczp3b3Jk"},
                "ghcr.io": {"auth": ""},
                "quay.io": {},
                "bad.example": {"auth": "***"},
                "odd.example": {"auth": "bm9jb2xvbg=="},
                "azure.example": {"identitytoken": "ey"},
                "nas": {"auth": "am86cA=="}
              }, "credHelpers": {"gcr.io": "gcloud", "quay.io": "pass"}, "HttpHeaders": {}}"#,
        )
        .unwrap();
        let found: BTreeMap<String, _> = logins(kept).into_iter().collect();
        let (registry, username, password) = found["https://index.docker.io/v1/"].as_ref().unwrap();
        assert_eq!((registry.as_str(), username.as_str(), password.as_str()), ("docker.io", "jo", "pass:word"));
        for (name, reason) in [
            ("ghcr.io", "holds no password"),
            ("quay.io", "docker-credential-pass"),
            ("gcr.io", "docker-credential-gcloud"),
            ("bad.example", "cannot be read"),
            ("odd.example", "cannot be read"),
            ("azure.example", "only Docker can renew"),
            ("nas", "no registry"),
        ] {
            let error = found[name].as_ref().unwrap_err();
            assert!(error.contains(reason), "{name}: {error}");
        }
        assert_eq!(found.len(), 8);
        let empty: Kept = serde_json::from_str("{}").unwrap();
        assert!(logins(empty).is_empty());
    }
}
