//! Who may come through a door, and what they may do there. docs/access.md tells the whole.
//!
//! Each request is looked up in the table of [`rules`] by the path that the router matched; then it is found out who asks, from what
//! they show; then it is refused, or runs as them. What is refused here has reached no handler.

mod origin;
pub mod rules;
mod shown;

use std::{net::IpAddr, sync::Arc};

use async_trait::async_trait;
use axum::extract::FromRequestParts;
use axum::{
    body::Body,
    extract::{MatchedPath, RawPathParams, Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use futures_util::StreamExt;
use toft_model::{identity::Role, name::Name};

use crate::{
    api::http::{ApiError, serve::Peer},
    control::{
        ControlError, ErrorKind,
        actor::{self, Actor, Way},
        ops::{Noted, Ops},
    },
    identity::Visitor,
};
use rules::{Found, Need, Rule};
pub use shown::COOKIE;
use shown::Shown;

/// What people get who are not let in at a page.
#[async_trait]
pub trait Refusals: Send + Sync + 'static {
    /// Nobody is known: the way to sign in, from which they come back to where they were going.
    async fn sign_in_first(&self, request: Request) -> Response;

    /// Somebody is known who may not, or the question cannot be answered now.
    fn refused(&self, headers: &HeaderMap, error: ControlError) -> Response;
}

/// A door.
#[derive(Clone)]
pub struct Door {
    ops: Ops,
    kind: Kind,
    refusals: Arc<dyn Refusals>,
    cookie: Arc<str>,
}

/// Which door.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The unix socket: whoever can open it is root.
    Socket,
    /// TCP without TLS, on loopback; with its port.
    Plain(u16),
    /// TCP with TLS.
    Tls,
}

impl Kind {
    /// What the cookie of a session is called there. Cookies do not know ports, and without TLS `__Host-` is not taken everywhere.
    pub fn cookie(self) -> String {
        match self {
            Self::Plain(port) => format!("toft-{port}"),
            Self::Socket | Self::Tls => COOKIE.to_owned(),
        }
    }
}

impl Door {
    /// A door to `ops`.
    pub fn new(ops: Ops, kind: Kind, refusals: Arc<dyn Refusals>) -> Self {
        Self { ops, kind, refusals, cookie: kind.cookie().into() }
    }

    fn refuse(&self, request: &Request, error: ControlError) -> Response {
        let response = if rules::is_api(request.uri().path()) {
            ApiError(error.clone()).into_response()
        } else {
            self.refusals.refused(request.headers(), error.clone())
        };
        with_headers(response, &error)
    }

    /// The same to somebody who is known: a page shows them no more than they may.
    fn refuse_them(&self, request: &Request, error: ControlError, actor: Actor) -> Response {
        actor::say(Arc::new(actor), || self.refuse(request, error))
    }

    async fn nobody(&self, request: Request, error: ControlError) -> Response {
        if rules::is_api(request.uri().path()) {
            self.refuse(&request, error)
        } else {
            self.refusals.sign_in_first(request).await
        }
    }

    /// Who asks; an error when what they show proves nothing, or there are too many attempts.
    async fn identify(&self, shown: Option<Shown>, from: Option<IpAddr>) -> Result<Option<Actor>, ControlError> {
        let found = match shown {
            None => None,
            Some(Shown::Cookie(value)) => self.ops.identify_session(&value, from).await?,
            Some(Shown::Token(text)) => self.ops.identify_token(&text, from).await?,
            Some(Shown::Password(name, password)) => {
                return self.ops.identify_password(&name, password, from).await.map(Some);
            }
            Some(Shown::Nonsense) => None,
        };
        Ok(found)
    }

    /// Refuses who may not.
    async fn allow(&self, rule: &Rule, actor: &Actor, named: Option<&str>) -> Result<(), ControlError> {
        // Where nothing hangs on the workload, nothing is looked up.
        let deployment = match rule.need {
            Need::Workload | Need::Instance if rules::admits(rule.need, &actor.rights, None) => return Ok(()),
            Need::Workload | Need::Instance if actor.rights.grants.is_empty() => None,
            Need::Workload => match named.map(str::parse::<Name>) {
                Some(Ok(name)) => Some(self.ops.deployment_of_workload(&name).await?),
                Some(Err(_)) | None => None,
            },
            Need::Instance => match named {
                Some(name) => self.ops.deployment_of_instance(name).await?,
                None => None,
            },
            Need::Nothing | Need::Known | Need::Role(_) | Need::Specification => None,
        };
        if rules::admits(rule.need, &actor.rights, deployment.as_ref()) {
            return Ok(());
        }
        // The table has refused; these say it in words.
        match (rule.need, deployment) {
            (Need::Role(role), _) => actor.need(role)?,
            (_, Some(deployment)) => actor.need_on(&deployment)?,
            (_, None) => actor.need(Role::Operator)?,
        }
        Err(ControlError::new(ErrorKind::Forbidden, "this may not be done"))
    }
}

fn nobody_is_known() -> ControlError {
    ControlError::new(ErrorKind::Unauthenticated, "who asks is not known").hint(
        "show an API token (`Authorization: Bearer`), or a name and password; the first password of `admin` is in the file \
         `admin-password` of the data directory, which root can read",
    )
}

fn with_headers(mut response: Response, error: &ControlError) -> Response {
    let headers = response.headers_mut();
    match error.kind {
        // Browsers ask for a password when they are asked for Basic, and then send it along from everywhere.
        ErrorKind::Unauthenticated => {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"toft\""));
        }
        ErrorKind::Throttled => {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("10"));
        }
        _ => {}
    }
    response
}

/// Middleware: lets a request through as whoever asks, or refuses it.
pub async fn guard(State(door): State<Door>, mut request: Request, next: Next) -> Response {
    if door.kind == Kind::Socket {
        return act(&door, request, next, Actor::root()).await;
    }
    if let Kind::Plain(_) = door.kind
        && let Err(error) = origin::loopback_host(&request)
    {
        return door.refuse(&request, error);
    }
    let from = request.extensions().get::<Peer>().map(|Peer(address)| address.ip().to_canonical());
    let over_tls = door.kind == Kind::Tls;
    let visitor = Visitor { from, cookie: door.cookie.to_string(), secure: over_tls };
    request.extensions_mut().insert(visitor);
    let rule = rule_of(&request);
    let is_open = matches!(rule, Found::Rule(Rule { need: Need::Nothing, .. }));
    let changes = origin::changes(&request);
    // Nobody shall be signed in as somebody else by another site.
    if changes && let Err(error) = origin::same_site(&request, is_open, over_tls) {
        return door.refuse(&request, error);
    }
    if is_open {
        return next.run(request).await;
    }
    let shown = shown::read(request.headers(), &door.cookie);
    let actor = match door.identify(shown, from).await {
        Ok(Some(actor)) => actor,
        Ok(None) => return door.nobody(request, nobody_is_known()).await,
        Err(error) if error.kind == ErrorKind::Unauthenticated => return door.nobody(request, error).await,
        Err(error) => return door.refuse(&request, error),
    };
    if changes
        && matches!(actor.way, Way::Session(_))
        && let Err(error) = origin::same_site(&request, true, over_tls)
    {
        return door.refuse_them(&request, error, actor);
    }
    match rule {
        Found::Rule(rule) => {
            let (request, named) = name_in_path(request).await;
            match door.allow(rule, &actor, named.as_deref()).await {
                Ok(()) => act(&door, request, next, actor).await,
                Err(error) => door.refuse_them(&request, error, actor),
            }
        }
        Found::OtherMethod => {
            let error =
                ControlError::new(ErrorKind::Invalid, format!("this address does not answer {}", request.method()))
                    .hint("see /api/v1/openapi.json");
            let mut response = door.refuse_them(&request, error, actor);
            *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
            response
        }
        // There is nothing at such an address; if there is after all, nobody has said who may.
        Found::Nothing if request.extensions().get::<MatchedPath>().is_none() => act(&door, request, next, actor).await,
        Found::Nothing => {
            tracing::error!(path = request.uri().path(), "a route has no rule and is answered to nobody");
            let error = ControlError::new(ErrorKind::Forbidden, "nobody has said who may use this address");
            door.refuse_them(&request, error, actor)
        }
    }
}

fn rule_of(request: &Request) -> Found {
    match request.extensions().get::<MatchedPath>() {
        Some(matched) => rules::find(request.method(), matched.as_str()),
        None => Found::Nothing,
    }
}

/// The `name` of the path.
async fn name_in_path(request: Request) -> (Request, Option<String>) {
    let (mut parts, body) = request.into_parts();
    let named = match RawPathParams::from_request_parts(&mut parts, &()).await {
        Ok(params) => params.iter().find(|(key, _)| *key == "name").map(|(_, value)| value.to_owned()),
        Err(_) => None,
    };
    (Request::from_parts(parts, body), named)
}

/// Whether an answer may go on for as long as somebody reads it.
fn goes_on(response: &Response) -> bool {
    let kind = response.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    ["text/event-stream", "application/x-ndjson"].iter().any(|lasting| kind.starts_with(lasting))
}

/// The same answer, which ends at the latest when `ended` does.
fn until(response: Response, ended: impl Future<Output = ()> + Send + 'static) -> Response {
    let (parts, body) = response.into_parts();
    Response::from_parts(parts, Body::from_stream(body.into_data_stream().take_until(Box::pin(ended))))
}

/// Runs a request as somebody, and notes what no command tells of.
async fn act(door: &Door, request: Request, next: Next, actor: Actor) -> Response {
    let noted = match rule_of(&request) {
        Found::Rule(Rule { noted: Some(action), .. }) => {
            Some(Noted { action, subject: request.uri().path().to_owned() })
        }
        Found::Rule(_) | Found::OtherMethod | Found::Nothing => None,
    };
    actor::act(Arc::new(actor), async {
        let response = next.run(request).await;
        let done = response.status().is_success()
            || response.status().is_redirection()
            || response.status() == StatusCode::SWITCHING_PROTOCOLS;
        if let Some(noted) = noted.filter(|_| done) {
            door.ops.note(noted).await;
        }
        if goes_on(&response) { until(response, door.ops.until_shut_out()) } else { response }
    })
    .await
}
