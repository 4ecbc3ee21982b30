//! `/backups`.

use std::str::FromStr;

use axum::{
    Json,
    body::Body as RawBody,
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use toft_model::invalid::Invalid;
use tokio_util::io::ReaderStream;
use utoipa::ToSchema;

use super::{
    ApiError, ApiState,
    error::{Asked, Body, Parsed},
    query::ListQuery,
};
use crate::{
    api::types::{Backup, BackupStatus, Page},
    control::{ControlError, ErrorKind, ops::backups::LockWith},
};

/// Header with the SHA-256 of a backup that is sent, in hex.
pub const SHA256_HEADER: &str = "toft-sha256";

/// The backups in this node's folder, oldest first.
#[utoipa::path(get, path = "/backups", tag = "backups", params(ListQuery), responses((status = 200, body = Page<Backup>)))]
pub async fn list(State(api): State<ApiState>, Asked(query): Asked<ListQuery>) -> Result<Json<Page<Backup>>, ApiError> {
    let backups = api.ops.backups().await?.into_iter().map(Backup::from).collect();
    Ok(Json(query.page(backups, |backup: &Backup| backup.name.clone())?))
}

/// Makes a backup in this node's folder, locked with the key of its configuration. Answers when it is there and proved.
#[utoipa::path(post, path = "/backups", tag = "backups", responses((status = 201, body = Backup), (status = 409, body = crate::api::types::ErrorEnvelope)))]
pub async fn create(State(api): State<ApiState>) -> Result<(StatusCode, Json<Backup>), ApiError> {
    let stored = api.ops.create_backup().await?;
    Ok((StatusCode::CREATED, Json(stored.into())))
}

/// How backups are made, and how that goes.
#[utoipa::path(get, path = "/backups/status", tag = "backups", responses((status = 200, body = BackupStatus)))]
pub async fn status(State(api): State<ApiState>) -> Result<Json<BackupStatus>, ApiError> {
    Ok(Json(api.ops.backup_status()?.into()))
}

/// What locks a backup that is sent; nothing for the key of the configuration.
#[derive(Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BackupLock {
    /// A public key, `age1...`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipient: Option<String>,
    /// A passphrase of 12 characters or more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passphrase: Option<String>,
}

/// Makes a backup and sends it; nothing is kept on the node. The header `toft-sha256` has its checksum.
#[utoipa::path(post, path = "/backups/stream", tag = "backups", request_body = BackupLock, responses((status = 200, body = Vec<u8>, content_type = "application/octet-stream"), (status = 409, body = crate::api::types::ErrorEnvelope)))]
pub async fn stream(State(api): State<ApiState>, Body(lock): Body<BackupLock>) -> Result<Response, ApiError> {
    let lock = match lock {
        BackupLock { recipient: None, passphrase: None } => None,
        BackupLock { recipient: Some(text), passphrase: None } => Some(LockWith::Recipient(text)),
        BackupLock { recipient: None, passphrase: Some(text) } => Some(LockWith::Passphrase(text)),
        BackupLock { recipient: Some(_), passphrase: Some(_) } => {
            return Err(ControlError::new(ErrorKind::Invalid, "a backup is locked with a public key or a passphrase")
                .field("passphrase")
                .hint("send one of them")
                .into());
        }
    };
    let made = api.ops.stream_backup(lock).await?;
    let mut response = send(&made.name, made.file, made.size_bytes);
    if let Ok(sha256) = HeaderValue::from_str(&made.sha256) {
        response.headers_mut().insert(SHA256_HEADER, sha256);
    }
    Ok(response)
}

/// The bytes of a backup in this node's folder.
#[utoipa::path(get, path = "/backups/{name}/content", tag = "backups", params(("name" = String, Path)), responses((status = 200, body = Vec<u8>, content_type = "application/octet-stream"), (status = 404, body = crate::api::types::ErrorEnvelope)))]
pub async fn content(State(api): State<ApiState>, Parsed(name): Parsed<FileName>) -> Result<Response, ApiError> {
    let (file, size_bytes) = api.ops.open_backup(name.0.clone()).await?;
    Ok(send(&name.0, file, size_bytes))
}

fn send(name: &str, file: std::fs::File, size_bytes: u64) -> Response {
    let body = ReaderStream::with_capacity(tokio::fs::File::from_std(file), 256 << 10);
    let kinds = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CONTENT_LENGTH, size_bytes.to_string()),
        (header::CONTENT_DISPOSITION, format!("attachment; filename=\"{}\"", plain(name))),
    ];
    (kinds, RawBody::from_stream(body)).into_response()
}

/// A file name that a header can hold.
fn plain(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_') { c } else { '_' }).collect()
}

/// The name of a file; whether there is one of that name, the folder knows.
pub struct FileName(String);

impl FromStr for FileName {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        Ok(Self(text.to_owned()))
    }
}
