//! `/images`.

use axum::{
    Json,
    body::Body as RawBody,
    extract::{DefaultBodyLimit, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::{StreamExt, TryStreamExt};
use serde::Deserialize;
use toft_model::{image::ImageRef, name::Name};
use tokio_util::io::StreamReader;
use utoipa::IntoParams;

use super::{
    ApiError, ApiState,
    error::{Asked, Body},
    query::ListQuery,
};
use crate::{
    api::types::{ErrorBody, Image, Page, Pull, PullLine, PullRequest},
    control::node_access::PullStep,
};

/// How an archive is imported.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct ImportQuery {
    /// Names an image whose archive carries no name.
    name: Option<String>,
    /// The node; the one that is asked when absent.
    #[param(value_type = Option<String>)]
    node: Option<Name>,
}

/// Which image.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct ImageQuery {
    /// Its reference.
    name: String,
    /// The node; the one that is asked when absent.
    #[param(value_type = Option<String>)]
    node: Option<Name>,
}

/// On which node.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct OnNode {
    /// The node; the one that is asked when absent.
    #[param(value_type = Option<String>)]
    node: Option<Name>,
}

/// Which page of which node's images.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct ImagesQuery {
    /// Items on a page, 1 to 1000; default 1000.
    limit: Option<usize>,
    /// Only items after this name.
    after: Option<String>,
    /// The node; the one that is asked when absent.
    #[param(value_type = Option<String>)]
    node: Option<Name>,
}

/// The images on a node, by name.
#[utoipa::path(get, path = "/images", tag = "images", params(ImagesQuery), responses((status = 200, body = Page<Image>)))]
pub async fn list(
    State(api): State<ApiState>,
    Asked(query): Asked<ImagesQuery>,
) -> Result<Json<Page<Image>>, ApiError> {
    let ImagesQuery { limit, after, node } = query;
    let images = api.ops.images(node.as_ref()).await?.into_iter().map(Image::from).collect();
    Ok(Json(ListQuery { limit, after }.page(images, |image: &Image| image.name.clone())?))
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
    let images = api.ops.import_image(query.node.as_ref(), Box::new(StreamReader::new(bytes)), name).await?;
    Ok((StatusCode::CREATED, Json(images.into_iter().map(Image::from).collect())))
}

/// Pulls an image from its registry, or joins a pull under way. The answer is one JSON object a line: `progress` until
/// the last, which has `image` or `error`. The pull goes on when nobody reads the answer any more.
#[utoipa::path(post, path = "/images/pull", tag = "images", request_body = PullRequest, responses((status = 200, body = PullLine, content_type = "application/x-ndjson")))]
pub async fn pull(State(api): State<ApiState>, Body(asked): Body<PullRequest>) -> Result<Response, ApiError> {
    let image = asked.image.parse::<ImageRef>().map_err(|e| e.at("image"))?;
    let lines = api.ops.pull_image(asked.node.as_ref(), image).await?.map(|step| {
        let line = match step {
            PullStep::Progress(progress) => PullLine::Progress(progress),
            PullStep::Done(image) => PullLine::Image(image.into()),
            PullStep::Failed(error) => PullLine::Error(ErrorBody::from(error)),
        };
        let mut text = serde_json::to_string(&line).map_err(std::io::Error::other)?;
        text.push('\n');
        Ok::<_, std::io::Error>(text)
    });
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], RawBody::from_stream(lines)).into_response())
}

/// A node's pulls: those under way with how far each layer is, then those that failed in the last quarter of an hour.
#[utoipa::path(get, path = "/images/pulls", tag = "images", params(OnNode), responses((status = 200, body = Vec<Pull>)))]
pub async fn pulls(State(api): State<ApiState>, Asked(on): Asked<OnNode>) -> Result<Json<Vec<Pull>>, ApiError> {
    Ok(Json(api.ops.image_pulls_on(on.node.as_ref()).await?.into_iter().map(Pull::from).collect()))
}

/// Removes every image that nothing uses, and gives them.
#[utoipa::path(post, path = "/images/prune", tag = "images", params(OnNode), responses((status = 200, body = Vec<Image>)))]
pub async fn prune(State(api): State<ApiState>, Asked(on): Asked<OnNode>) -> Result<Json<Vec<Image>>, ApiError> {
    Ok(Json(api.ops.prune_images(on.node.as_ref()).await?.into_iter().map(Image::from).collect()))
}

/// Removes an image that no workload names.
#[utoipa::path(delete, path = "/images", tag = "images", params(ImageQuery), responses((status = 204)))]
pub async fn remove(State(api): State<ApiState>, Asked(query): Asked<ImageQuery>) -> Result<StatusCode, ApiError> {
    let image = query.name.parse::<ImageRef>().map_err(|e| e.at("name"))?;
    api.ops.remove_image(query.node.as_ref(), image).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Archives may be of any size; they are streamed.
pub fn unlimited() -> DefaultBodyLimit {
    DefaultBodyLimit::disable()
}
