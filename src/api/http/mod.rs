//! The HTTP API: one file a resource, the OpenAPI document from the same code.
//!
//! The same routes answer under `/api/v1` and `/v1`.

mod attach;
mod audit;
mod backups;
mod cluster;
mod consistency;
mod document;
mod error;
mod events;
mod exec;
mod files;
mod gpus;
mod health;
mod idempotency;
mod images;
mod instances;
mod kept;
pub mod members;
mod mesh;
mod nodes;
mod passkeys;
mod placement;
mod query;
mod rebalance;
mod registries;
mod second_factors;
mod secrets;
mod series;
pub mod serve;
mod signed_tokens;
mod stats;
mod users;
mod versions;
mod volumes;
mod workloads;

use std::sync::Arc;

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use utoipa::{IntoParams, OpenApi, openapi::RefOr};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    control::{ControlError, ErrorKind, ops::Ops},
    observe::metrics::Metrics,
};

pub use backups::{BackupLock, SHA256_HEADER};
use consistency::ConsistencyQuery;
pub use error::ApiError;
pub use health::Readiness;
pub use idempotency::KEY_HEADER;
use idempotency::KeyHeader;
pub use kept::KeptPage;

/// Most bytes of a JSON body.
pub const MAX_BODY_BYTES: usize = 1 << 20;

/// What every handler can use.
#[derive(Clone)]
pub struct ApiState {
    /// The operations.
    pub ops: Ops,
    /// What renders `/metrics`.
    pub metrics: Metrics,
    /// What answers `/ready`.
    pub readiness: Arc<dyn Readiness>,
    /// The last page of workloads.
    pub kept: KeptPage,
}

#[derive(OpenApi)]
#[openapi(
    info(title = "toft", description = "Runs containers on homelab boxes.", license(name = "Apache-2.0 OR MIT")),
    components(schemas(crate::api::types::ExecCommand))
)]
struct ApiDoc;

/// What the cluster's state answers, the same on every node.
fn state_resources() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .routes(routes!(workloads::list, workloads::create))
        .routes(routes!(workloads::show, workloads::put, workloads::remove))
        .routes(routes!(workloads::label))
        .routes(routes!(workloads::start))
        .routes(routes!(workloads::stop))
        .routes(routes!(workloads::restart))
        .routes(routes!(versions::list))
        .routes(routes!(versions::roll_back))
        .routes(routes!(workloads::wait))
        .routes(routes!(workloads::logs))
        .routes(routes!(instances::list))
        .routes(routes!(nodes::list))
        .routes(routes!(nodes::show, placement::configure_node))
        .routes(routes!(placement::remaining))
        .routes(routes!(placement::explain))
        .routes(routes!(placement::show, placement::change))
        .routes(routes!(rebalance::remaining, rebalance::order, rebalance::stop))
        .routes(routes!(rebalance::plan))
        .routes(routes!(events::list))
}

/// What this node alone answers.
fn node_resources() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .routes(routes!(cluster::show))
        .routes(routes!(users::list, users::create))
        .routes(routes!(users::show, users::change, users::remove))
        .routes(routes!(users::sessions))
        .routes(routes!(users::end_session))
        .routes(routes!(users::api_tokens, users::create_api_token))
        .routes(routes!(users::revoke_api_token))
        .routes(routes!(audit::list))
        .routes(routes!(audit::export))
        .routes(routes!(users::me))
        .routes(routes!(users::authority))
        .routes(routes!(users::change_password))
        .routes(routes!(second_factors::show, second_factors::turn_on))
        .routes(routes!(second_factors::offer))
        .routes(routes!(signed_tokens::sign))
        .routes(routes!(signed_tokens::rotate))
        .routes(routes!(second_factors::turn_off))
        .routes(routes!(second_factors::reset))
        .routes(routes!(passkeys::own))
        .routes(routes!(passkeys::remove_own))
        .routes(routes!(passkeys::list))
        .routes(routes!(passkeys::remove))
        .routes(routes!(second_factors::access, second_factors::configure_access))
        .routes(routes!(members::list, members::create))
        .routes(routes!(members::revoke))
        .routes(routes!(members::join))
        .routes(routes!(members::leave))
        .routes(routes!(members::remove_node))
        .routes(routes!(mesh::show))
        .routes(routes!(mesh::ping))
        .routes(routes!(images::list))
        .merge(OpenApiRouter::new().routes(routes!(images::import)).layer(images::unlimited()))
        .routes(routes!(images::pull))
        .routes(routes!(images::pulls))
        .routes(routes!(images::prune))
        .routes(routes!(images::remove))
        .routes(routes!(exec::exec))
        .routes(routes!(attach::attach))
        .routes(routes!(registries::list))
        .routes(routes!(registries::put, registries::remove))
        .routes(routes!(nodes::facts))
        .routes(routes!(gpus::list))
        .routes(routes!(gpus::configure))
        .routes(routes!(series::of_node))
        .routes(routes!(series::of_gpu))
        .routes(routes!(series::of_instance))
        .routes(routes!(files::stat))
        .merge(OpenApiRouter::new().routes(routes!(files::read, files::write)).layer(images::unlimited()))
        .routes(routes!(stats::show))
        .routes(routes!(stats::stream))
        .routes(routes!(stats::processes))
        .routes(routes!(secrets::list, secrets::create))
        .routes(routes!(secrets::show, secrets::put, secrets::remove))
        .routes(routes!(volumes::list, volumes::create))
        .routes(routes!(volumes::show, volumes::remove))
        .routes(routes!(volumes::prune))
        .routes(routes!(volumes::backup))
        .routes(routes!(volumes::begin_move, volumes::show_move, volumes::cancel_move))
        .merge(OpenApiRouter::new().routes(routes!(volumes::restore)).layer(images::unlimited()))
        .routes(routes!(backups::list, backups::create))
        .routes(routes!(backups::status))
        .routes(routes!(backups::stream))
        .routes(routes!(backups::content))
}

/// The OpenAPI document.
pub fn openapi() -> utoipa::openapi::OpenApi {
    let mut state = state_resources();
    for item in state.get_openapi_mut().paths.paths.values_mut() {
        let changes = [&mut item.post, &mut item.put, &mut item.patch, &mut item.delete];
        for operation in changes.into_iter().flatten() {
            let key = KeyHeader::into_params(|| None);
            operation.parameters.get_or_insert_default().extend(key.into_iter().map(RefOr::T));
        }
        if let Some(operation) = &mut item.get {
            let consistency = ConsistencyQuery::into_params(|| None);
            operation.parameters.get_or_insert_default().extend(consistency.into_iter().map(RefOr::T));
        }
    }
    let nested = OpenApiRouter::with_openapi(ApiDoc::openapi())
        .nest("/api/v1", state.merge(node_resources()))
        .routes(routes!(health::health))
        .routes(routes!(health::ready))
        .routes(routes!(health::metrics))
        .routes(routes!(signed_tokens::keys));
    document::completed(nested.into_openapi())
}

/// Every route of the API.
pub fn router(state: ApiState) -> Router {
    let (of_state, _) = state_resources().split_for_parts();
    let (of_node, _) = node_resources().split_for_parts();
    let resources = of_state
        .layer(middleware::from_fn_with_state(state.clone(), consistency::ensure))
        .merge(of_node)
        .route("/openapi.json", get(|| async { axum::Json(openapi()) }))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES));
    Router::new()
        .nest("/api/v1", resources.clone())
        .nest("/v1", resources)
        .route("/health", get(health::health))
        .route("/ready", get(health::ready))
        .route("/metrics", get(health::metrics))
        .route("/.well-known/jwks.json", get(signed_tokens::keys))
        .layer(middleware::from_fn(count))
        .with_state(state)
}

async fn not_found(request: Request) -> Response {
    let path: String = request.uri().path().chars().take(200).collect();
    ApiError(
        ControlError::new(ErrorKind::NotFound, format!("there is no resource at `{path}`"))
            .hint("see /api/v1/openapi.json"),
    )
    .into_response()
}

async fn method_not_allowed(request: Request) -> Response {
    let mut response = ApiError(
        ControlError::new(ErrorKind::Invalid, format!("this resource does not answer {}", request.method()))
            .hint("see /api/v1/openapi.json"),
    )
    .into_response();
    *response.status_mut() = axum::http::StatusCode::METHOD_NOT_ALLOWED;
    response
}

async fn count(request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    let class = match response.status().as_u16() / 100 {
        2 => "2xx",
        3 => "3xx",
        4 => "4xx",
        _ => "5xx",
    };
    metrics::counter!("toft_http_requests_total", "class" => class).increment(1);
    response
}
