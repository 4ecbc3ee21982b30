//! Opens the doors: one TCP port on loopback and the unix socket.

use std::{io::IsTerminal, net::SocketAddr, os::unix::fs::PermissionsExt};

use anyhow::Context;
use axum::middleware;
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;

use super::{directories::Directories, identity::admin_password, tasks::Tasks};
use crate::{
    access::{self, Password},
    api::http::{self, ApiState, serve},
    config::Config,
    dashboard,
    files::write_whole,
};

/// The open doors.
pub(super) struct Doors {
    /// The TCP address.
    pub(super) address: SocketAddr,
    /// The tasks that answer.
    pub(super) tasks: Tasks,
}

/// Binds and begins to answer. Who comes through the socket is root already; who comes through TCP tells the password.
pub(super) async fn open(
    api: ApiState,
    config: &Config,
    directories: &Directories,
    cancel: CancellationToken,
) -> anyhow::Result<Doors> {
    let (password, fresh) = admin_password(directories)?;
    if fresh && std::io::stderr().is_terminal() {
        eprintln!("The password of `admin` is {password}; it is kept in {}.", directories.password_file().display());
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
    write_whole(&directories.url_file(), 0o644, format!("http://{address}/\n").as_bytes())
        .context("writing the URL file")?;

    let pages = dashboard::router_until(api.ops.clone(), cancel.clone());
    let app = http::router(api).merge(pages);
    let app = if config.api.styleguide { app.merge(dashboard::guide::router()) } else { app };
    let guarded = app.clone().layer(middleware::from_fn_with_state(Password::new(&password), access::require));
    let mut tasks = Tasks::default();
    tasks.spawn("TCP door", serve::tcp(tcp, guarded, cancel.clone()));
    tasks.spawn("socket door", serve::unix(unix, app, cancel));
    Ok(Doors { address, tasks })
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
