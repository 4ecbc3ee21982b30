//! `/images`.

use axum::{
    Json,
    body::Body as RawBody,
    extract::{DefaultBodyLimit, State},
    http::StatusCode,
};
use futures_util::TryStreamExt;
use serde::Deserialize;
use toft_model::image::ImageRef;
use tokio_util::io::StreamReader;
use utoipa::IntoParams;

use super::{ApiError, ApiState, error::Asked, query::ListQuery};
use crate::api::types::{Image, Page};

/// How an archive is imported.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct ImportQuery {
    /// Names an image whose archive carries no name.
    name: Option<String>,
}

/// Which image.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct ImageQuery {
    /// Its reference.
    name: String,
}

/// The images on this node, by name.
#[utoipa::path(get, path = "/images", tag = "images", params(ListQuery), responses((status = 200, body = Page<Image>)))]
pub async fn list(State(api): State<ApiState>, Asked(query): Asked<ListQuery>) -> Result<Json<Page<Image>>, ApiError> {
    let images = api.ops.images().await?.into_iter().map(Image::from).collect();
    Ok(Json(query.page(images, |image: &Image| image.name.clone())?))
}

/// Imports an archive: an OCI image layout as tar, or what `docker save` writes; plain or gzip.
#[utoipa::path(post, path = "/images/import", tag = "images", params(ImportQuery), request_body(content = Vec<u8>, content_type = "application/x-tar"), responses((status = 201, body = Vec<Image>)))]
pub async fn import(
    State(api): State<ApiState>,
    Asked(query): Asked<ImportQuery>,
    body: RawBody,
) -> Result<(StatusCode, Json<Vec<Image>>), ApiError> {
    let name = query.name.map(|name| name.parse::<ImageRef>().map_err(|e| e.at("name"))).transpose()?;
    let bytes = body.into_data_stream().map_err(std::io::Error::other);
    let images = api.ops.import_image(Box::new(StreamReader::new(bytes)), name).await?;
    Ok((StatusCode::CREATED, Json(images.into_iter().map(Image::from).collect())))
}

/// Removes an image that no workload names.
#[utoipa::path(delete, path = "/images", tag = "images", params(ImageQuery), responses((status = 204)))]
pub async fn remove(State(api): State<ApiState>, Asked(query): Asked<ImageQuery>) -> Result<StatusCode, ApiError> {
    let image = query.name.parse::<ImageRef>().map_err(|e| e.at("name"))?;
    api.ops.remove_image(image).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Archives may be of any size; they are streamed.
pub fn unlimited() -> DefaultBodyLimit {
    DefaultBodyLimit::disable()
}
