//! The web pages people use: server-rendered, readable without JavaScript, live with it.
//!
//! One file a page family, each with its page structs beside its handlers and its templates in `templates/<family>/`.
//! Every change is a form that posts and then redirects, so a page never depends on a script; scripts only replace
//! parts of a page by the same fragments the full page includes. [`live`] sends those fragments when the state moves.
//! This room decides nothing: it asks [`Ops`], and `access` has found out who asks before a page is asked for.

mod assets;
mod charts;
mod edit;
mod error;
mod events;
mod find;
mod forms;
mod gpus;
pub mod guard;
pub mod guide;
mod images;
mod kept;
mod lines;
mod live;
mod logs;
mod mesh;
mod node;
mod nodes;
mod overview;
mod people;
mod plain;
mod present;
mod pulls;
mod request;
mod run;
mod secrets;
mod settings;
mod shell;
mod shells;
mod sight;
mod usage;
mod versions;
mod volumes;
mod workload;
mod workloads;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use askama::Template;
use axum::{
    Router,
    extract::Request,
    http::HeaderMap,
    middleware,
    response::{Html, IntoResponse, Response},
    routing::{get, post},
};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tower_http::{CompressionLevel, compression::CompressionLayer};

use crate::control::{ControlError, actor, ops::Ops};
use error::PageError;
use live::Feeds;
use shells::Shells;

/// Most live streams at a time; a page that gets none stays usable and tries again.
const STREAMS: usize = 1_024;

/// What the handlers share.
#[derive(Clone)]
struct Dashboard {
    ops: Ops,
    streams: Arc<Semaphore>,
    feeds: Feeds,
    shells: Shells,
    shutdown: CancellationToken,
}

/// The pages, to be merged beside other routers. Live streams end only with their readers.
pub fn router(ops: Ops) -> Router {
    router_until(ops, CancellationToken::new())
}

/// The pages, whose live streams end when `shutdown` is cancelled: a server that drains its connections would wait
/// for them otherwise.
pub fn router_until(ops: Ops, shutdown: CancellationToken) -> Router {
    let state = Dashboard {
        ops,
        streams: Arc::new(Semaphore::new(STREAMS)),
        feeds: Feeds::default(),
        shells: Shells::default(),
        shutdown,
    };
    Router::new()
        .route("/", get(overview::page))
        .route("/find", get(find::page))
        .route("/events", get(events::page))
        .route("/mesh", get(mesh::page))
        .route("/run", get(run::page).post(run::submit))
        .route("/workloads", get(workloads::page))
        .route("/workloads/{name}", get(workload::page))
        .route("/workloads/{name}/start", post(workloads::start))
        .route("/workloads/{name}/stop", post(workloads::stop))
        .route("/workloads/{name}/restart", post(workloads::restart))
        .route("/workloads/{name}/remove", get(workload::confirm_removal).post(workload::remove))
        .route("/workloads/{name}/edit", get(edit::page).post(edit::submit))
        .route("/workloads/{name}/shell", get(shell::page))
        .route("/workloads/{name}/shell/socket", get(shell::socket))
        .route("/workloads/{name}/history", get(versions::page))
        .route("/workloads/{name}/rollback", post(versions::roll_back))
        .route("/workloads/{name}/logs", get(logs::page))
        .route("/logs", get(kept::page))
        .route("/logs/{name}", get(kept::one))
        .route("/nodes", get(nodes::page))
        .route("/nodes/{name}", get(node::page))
        .route("/nodes/{name}/cordon", get(node::confirm_cordon).post(node::cordon))
        .route("/nodes/{name}/uncordon", post(node::uncordon))
        .route("/nodes/{name}/drain", get(node::confirm_drain).post(node::drain))
        .route("/gpus", get(gpus::page))
        .route("/gpus/{node}/{place}", get(gpus::one))
        .route("/gpus/{node}/{place}/cordon", post(gpus::cordon))
        .route("/gpus/{node}/{place}/uncordon", post(gpus::uncordon))
        .route("/images", get(images::page).post(images::pull))
        .route("/images/remove", get(images::confirm_removal).post(images::remove))
        .route("/secrets", get(secrets::page))
        .route("/secrets/new", get(secrets::creation).post(secrets::create))
        .route("/secrets/{name}/update", get(secrets::change).post(secrets::update))
        .route("/secrets/{name}/remove", get(secrets::confirm_removal).post(secrets::remove))
        .route("/volumes", get(volumes::page))
        .route("/volumes/new", get(volumes::creation).post(volumes::create))
        .route("/volumes/{name}/move", get(volumes::ask_move).post(volumes::order_move))
        .route("/volumes/{name}/move/cancel", post(volumes::cancel_move))
        .route("/volumes/{name}/remove", get(volumes::confirm_removal).post(volumes::remove))
        .route("/ca", get(people::authority::page))
        .route("/ca.crt", get(people::authority::der))
        .route("/ca.pem", get(people::authority::pem))
        .route("/login", get(people::login::page).post(people::login::submit))
        .route("/login/code", post(people::login::submit_code))
        .route("/login/oidc", get(people::provider::begin))
        .route("/login/oidc/callback", get(people::provider::end))
        .route("/login/passkey", post(people::passkeys::sign_in))
        .route("/login/passkey/options", post(people::passkeys::ask))
        .route("/logout", post(people::login::sign_out))
        .route("/setup", get(people::setup::page).post(people::setup::submit))
        .route("/account", get(people::account::page))
        .route("/account/password", post(people::account::change_password))
        .route("/account/second-factor", get(people::factor::page).post(people::factor::turn_on))
        .route("/account/second-factor/off", post(people::factor::turn_off))
        .route("/account/passkeys", get(people::passkeys::page).post(people::passkeys::add))
        .route("/account/passkeys/options", post(people::passkeys::offer))
        .route("/account/passkeys/{id}/remove", get(people::passkeys::confirm_removal).post(people::passkeys::remove))
        .route("/account/tokens", post(people::account::create_token))
        .route("/account/tokens/{id}/revoke", post(people::account::revoke_token))
        .route("/account/sessions/{id}/end", post(people::account::end_session))
        .route("/users", get(people::users::page).post(people::users::create))
        .route("/users/{name}", get(people::users::one).post(people::users::change))
        .route("/users/{name}/password", post(people::users::set_password))
        .route("/users/{name}/second-factor/reset", post(people::users::reset_factor))
        .route(
            "/users/{name}/passkeys/{id}/remove",
            get(people::passkeys::confirm_removal_of).post(people::passkeys::remove_of),
        )
        .route("/access/passkeys", post(people::users::set_passkey_domain))
        .route("/access", post(people::users::configure_access))
        .route("/users/{name}/remove", get(people::users::confirm_removal).post(people::users::remove))
        .route("/audit", get(people::audit::page))
        .route("/settings", get(settings::page))
        .route("/settings/tokens", post(settings::make_token))
        .route("/settings/tokens/{id}/revoke", post(settings::revoke_token))
        .route("/settings/backups", post(settings::make_backup))
        .route("/settings/log", post(settings::set_filter))
        .route("/charts/nodes/{name}", get(charts::of_node))
        .route("/charts/gpus/{node}/{place}", get(charts::of_gpu))
        .route("/charts/workloads/{name}", get(charts::of_workload))
        .route("/live/overview", get(overview::live))
        .route("/live/events", get(events::live))
        .route("/live/gpus", get(gpus::live))
        .route("/live/gpus/{node}/{place}", get(gpus::live_one))
        .route("/live/mesh", get(mesh::live))
        .route("/live/nodes", get(nodes::live))
        .route("/live/volumes", get(volumes::live))
        .route("/live/images", get(images::live))
        .route("/live/nodes/{name}", get(node::live))
        .route("/live/workloads", get(workloads::live))
        .route("/live/workloads/{name}", get(workload::live))
        .route("/live/workloads/{name}/logs", get(logs::live))
        .route("/live/workloads/{name}/usage", get(usage::live))
        .route("/static/{*path}", get(assets::serve))
        .route("/favicon.ico", get(assets::favicon))
        .fallback(error::not_found)
        .method_not_allowed_fallback(error::wrong_method)
        .layer(middleware::from_fn(guard::pages))
        .layer(CompressionLayer::new().quality(CompressionLevel::Fastest))
        .with_state(state)
}

/// What somebody gets at a page who is not signed in: the way to the sign-in page, or that page with the form they sent.
pub async fn sign_in_first(request: Request) -> Response {
    people::login::sign_in_first(request).await
}

/// What somebody gets at a page who may not open it.
pub fn refused(headers: &HeaderMap, error: ControlError) -> Response {
    let error = PageError::from(error);
    guard::dressed(if headers.contains_key("hx-request") { error.notice() } else { error.page_at_the_door() })
}

/// What every full page's frame needs to know.
struct Frame {
    /// The entry of the navigation that is lit.
    here: &'static str,
    /// Who asks.
    who: Option<Who>,
    /// Whether somebody may look who is not signed in, and so is shown no navigation.
    outside: bool,
}

/// Who asks for a page.
struct Who {
    name: String,
    is_admin: bool,
}

impl Frame {
    fn at(here: &'static str) -> Self {
        let who = actor::current().map(|actor| Who { name: actor.name().to_owned(), is_admin: actor.is_admin() });
        Self { here, who, outside: false }
    }

    /// That of a page for everybody.
    fn outside() -> Self {
        Self { here: "", who: None, outside: true }
    }

    /// Address of a static file that changes with its content.
    fn asset(&self, path: &str) -> String {
        assets::url(path)
    }

    fn version(&self) -> &'static str {
        env!("CARGO_PKG_VERSION")
    }
}

/// A rendered page.
fn show(template: &impl Template) -> Result<Response, PageError> {
    Ok(Html(render(template)?).into_response())
}

fn render(template: &impl Template) -> Result<String, PageError> {
    template.render().map_err(|error| {
        tracing::error!(%error, "a page could not be rendered");
        PageError::internal()
    })
}
