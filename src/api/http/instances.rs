//! `/instances`.

use axum::{Json, extract::State};

use super::{ApiError, ApiState, error::Asked, query::ListQuery};
use crate::api::types::{Instance, Page};

/// Every instance, by workload and number.
#[utoipa::path(get, path = "/instances", tag = "instances", params(ListQuery), responses((status = 200, body = Page<Instance>)))]
pub async fn list(
    State(api): State<ApiState>,
    Asked(query): Asked<ListQuery>,
) -> Result<Json<Page<Instance>>, ApiError> {
    let instances = api.ops.instances().await?.iter().map(Instance::from).collect();
    Ok(Json(query.page(instances, |instance: &Instance| instance.name.clone())?))
}
