//! Opens the doors: one TCP port and the unix socket.

use std::{
    io::IsTerminal,
    net::{Ipv4Addr, Ipv6Addr},
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use async_trait::async_trait;
use axum::{
    extract::Request,
    http::{HeaderMap, HeaderValue, header},
    middleware,
    response::Response,
};
use toft_model::identity::UserName;
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;
use tower::util::option_layer;
use tower_http::set_header::SetResponseHeaderLayer;
use zeroize::Zeroizing;

use super::{
    directories::Directories,
    identity::admin_password,
    tasks::Tasks,
    web::{Web, trust_root},
};
use crate::{
    access::{self, Door, Kind, Refusals},
    api::http::{
        self, ApiState,
        serve::{self, Limits},
    },
    config::{Config, OidcConfig},
    control::{
        ControlError,
        loops::{cards, signing_keys, uses},
        ops::Provider,
    },
    dashboard,
    files::write_whole,
    identity::{FirstPassword, Gate, Lengths},
    oidc::{Oidc, Settings},
};

/// The open doors.
pub(super) struct Doors {
    /// The TCP address, as the beginning of a URL.
    pub(super) url: String,
    /// The tasks that answer.
    pub(super) tasks: Tasks,
}

/// Binds and begins to answer. Who comes through the socket is root already; who comes through TCP proves who they are.
pub(super) async fn open(
    mut api: ApiState,
    config: &Config,
    directories: &Directories,
    cancel: CancellationToken,
) -> anyhow::Result<Doors> {
    let gate = Gate::new().context("preparing for those who come in")?;
    gate.set_lengths(Lengths { whole: config.access.session_max, idle: config.access.session_idle });
    api.ops = api.ops.with_gate(Arc::clone(&gate)).with_trust_root(trust_root(directories)?);
    if let Some(oidc) = &config.access.oidc {
        api.ops = api.ops.with_provider(provider(oidc)?);
    }
    // Once `admin` has a password of their own, no file counts.
    let first = api.ops.user(&UserName::first()).await;
    if !first.is_ok_and(|first| first.has_password) {
        let (password, fresh) = admin_password(directories)?;
        if fresh && std::io::stderr().is_terminal() {
            eprintln!(
                "The password of `admin` is {password}; it is kept in {}.",
                directories.password_file().display()
            );
        }
        gate.set_first(FirstPassword::new(&password));
    }
    let tcp = bind(config).await?;
    let address = tcp.local_addr().context("asking for the TCP address")?;
    let socket = directories.socket();
    match std::fs::remove_file(&socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("removing the old socket `{}`", socket.display()));
        }
        _ => {}
    }
    let unix = UnixListener::bind(&socket).with_context(|| {
        format!("binding the socket `{}` (its path may be at most 107 bytes long)", socket.display())
    })?;
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o600))
        .context("keeping others from the socket")?;
    // Who listens everywhere is reached here by loopback.
    let mut named = address;
    if address.ip().is_unspecified() {
        let loopback = if address.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
        named.set_ip(loopback);
    }
    let scheme = if config.api.tls.is_some() { "https" } else { "http" };
    write_whole(&directories.url_file(), 0o644, format!("{scheme}://{named}/\n").as_bytes())
        .context("writing the URL file")?;

    let mut tasks = Tasks::default();
    tasks.spawn("uses of sessions", uses::run(api.ops.clone(), cancel.clone()));
    tasks.spawn("cards of other nodes", cards::run(api.ops.clone(), cancel.clone()));
    tasks.spawn("signing keys", signing_keys::run(api.ops.clone(), cancel.clone()));
    let ops = api.ops.clone();
    let pages = dashboard::router_until(api.ops.clone(), cancel.clone());
    let app = http::router(api).merge(pages);
    let app = if config.api.styleguide { app.merge(dashboard::guide::router()) } else { app };
    let through = |kind: Kind| {
        let door = Door::new(ops.clone(), kind, Arc::new(Pages));
        app.clone().layer(middleware::from_fn_with_state(door, access::guard))
    };
    let hsts = config.api.tls.as_ref().and_then(|tls| tls.hsts).map(hsts);
    let (kind, tls) = match &config.api.tls {
        Some(tls) => {
            let web = Web::open(config, tls, directories)?;
            let server = web.server()?;
            tasks.spawn("certificate of the TCP door", web.run(cancel.clone()));
            (Kind::Tls, Some(server))
        }
        None => (Kind::Plain(address.port()), None),
    };
    let limits =
        Limits { connections: config.api.max_connections, per_address: config.api.max_connections_per_address };
    let by_tcp = through(kind).layer(option_layer(hsts));
    tasks.spawn("TCP door", serve::tcp(tcp, by_tcp, (tls, limits), cancel.clone()));
    tasks.spawn("socket door", serve::unix(unix, through(Kind::Socket), limits.connections, cancel));
    Ok(Doors { url: format!("{scheme}://{address}"), tasks })
}

/// The provider at which people sign in.
fn provider(oidc: &OidcConfig) -> anyhow::Result<Provider> {
    let secret = |path: &PathBuf| {
        let text = Zeroizing::new(std::fs::read_to_string(path)?);
        Ok::<_, std::io::Error>(Zeroizing::new(text.trim().to_owned()))
    };
    let file = oidc.client_secret_file.as_ref();
    let client_secret = file.map(secret).transpose().context("reading the file of `access.oidc.client_secret_file`")?;
    let settings = Settings {
        name: oidc.name.clone(),
        issuer: oidc.issuer.clone(),
        client_id: oidc.client_id.clone(),
        client_secret,
        scopes: oidc.scopes.clone(),
        groups_claim: oidc.groups_claim.clone(),
        name_claim: oidc.name_claim.clone(),
        roles: oidc.roles.clone(),
        ca_file: oidc.ca_file.clone(),
    };
    Ok(Provider::new(Oidc::new(settings).context("preparing for those who come from a provider")?))
}

/// Tells browsers to speak nothing but TLS with this host.
fn hsts(span: Duration) -> SetResponseHeaderLayer<HeaderValue> {
    let value = HeaderValue::try_from(format!("max-age={}", span.as_secs())).expect("digits are a header's value");
    SetResponseHeaderLayer::overriding(header::STRICT_TRANSPORT_SECURITY, value)
}

/// What people get at pages who are not let in.
struct Pages;

#[async_trait]
impl Refusals for Pages {
    async fn sign_in_first(&self, request: Request) -> Response {
        dashboard::sign_in_first(request).await
    }

    fn refused(&self, headers: &HeaderMap, error: ControlError) -> Response {
        dashboard::refused(headers, error)
    }
}

async fn bind(config: &Config) -> anyhow::Result<TcpListener> {
    let wanted = config.api.bind;
    match TcpListener::bind(wanted).await {
        Err(error)
            if error.kind() == std::io::ErrorKind::AddrInUse && config.paths.private && !config.api.bind_chosen =>
        {
            TcpListener::bind((wanted.ip(), 0)).await.context("binding a free port")
        }
        other => other.with_context(|| format!("binding {wanted}; choose another address with --bind")),
    }
}
