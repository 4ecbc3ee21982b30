//! Signing in and out. Works without JavaScript; tells nobody which names exist.

use askama::Template;
use axum::{
    Form,
    extract::{Extension, Query, Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Redirect, Response},
};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::{
    super::{Dashboard, Frame, error::PageError, forms::Mistake, guard, request::ReachedAs, show},
    kept::{Field, Kept},
    mistake, onwards,
    passkeys::domain_at,
};
use crate::{
    control::{
        ControlError, ErrorKind,
        ops::{SignIn, SignedIn},
    },
    identity::Visitor,
};

/// Longest name of a browser that is kept, in characters.
const LONGEST_AGENT: usize = 100;

#[derive(Template)]
#[template(path = "people/login.html")]
struct LoginPage {
    frame: Frame,
    name: String,
    next: String,
    /// A form that came when nobody was signed in, packed.
    kept: Option<String>,
    wrong: Option<Mistake>,
    /// A provider at which people can sign in too.
    provider: Option<Provider>,
    passkeys: Passkeys,
}

/// Whether passkeys can be shown here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Passkeys {
    /// Nobody has one.
    Nobodys,
    /// There are some, and the page was opened by a name.
    Asked,
    /// There are some, and the page was opened by an address, to which none belongs.
    AtAnAddress,
}

/// A provider, and the address that leads there.
struct Provider {
    name: String,
    address: String,
}

impl LoginPage {
    async fn of(dashboard: &Dashboard, reached: &ReachedAs, next: String) -> Self {
        let provider = dashboard.ops.provider_name().map(|name| {
            let query = serde_urlencoded::to_string([("next", next.as_str())]).unwrap_or_default();
            Provider { name: name.to_owned(), address: format!("/login/oidc?{query}") }
        });
        // Who cannot read the state now signs in otherwise, or not at all.
        let passkeys = match dashboard.ops.passkeys_are_there().await {
            Ok(true) if domain_at(dashboard, reached).await.is_some() => Passkeys::Asked,
            Ok(true) => Passkeys::AtAnAddress,
            Ok(false) | Err(_) => Passkeys::Nobodys,
        };
        Self { frame: Frame::at(""), name: String::new(), next, kept: None, wrong: None, provider, passkeys }
    }
}

/// The sign-in page with why it is shown again.
pub(super) async fn refused_with(
    dashboard: &Dashboard,
    reached: &ReachedAs,
    error: ControlError,
    (next, kept): (String, Option<Kept>),
) -> Result<Response, PageError> {
    let status = status_of(error.kind);
    let (wrong, kept) = (Some(mistake(error)), kept.map(|kept| kept.packed()));
    let mut page = show(&LoginPage { wrong, kept, ..LoginPage::of(dashboard, reached, next).await })?;
    *page.status_mut() = status;
    Ok(page)
}

fn status_of(kind: ErrorKind) -> StatusCode {
    match kind {
        ErrorKind::Unauthenticated | ErrorKind::Stale => StatusCode::UNAUTHORIZED,
        ErrorKind::Forbidden => StatusCode::FORBIDDEN,
        ErrorKind::Conflict => StatusCode::CONFLICT,
        ErrorKind::Invalid => StatusCode::UNPROCESSABLE_ENTITY,
        ErrorKind::Throttled => StatusCode::TOO_MANY_REQUESTS,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    }
}

#[derive(Template)]
#[template(path = "people/code.html")]
struct CodePage {
    frame: Frame,
    /// What tells that the first half was right.
    half: Zeroizing<String>,
    next: String,
    kept: Option<String>,
    wrong: Option<Mistake>,
}

#[derive(Template)]
#[template(path = "people/resume.html")]
struct ResumePage {
    frame: Frame,
    kept: Kept,
    fields: Vec<Field>,
}

/// Where to go on.
#[derive(Debug, Default, Deserialize)]
pub(in crate::dashboard) struct NextQuery {
    #[serde(default)]
    next: String,
}

impl NextQuery {
    pub(super) fn next(&self) -> &str {
        &self.next
    }
}

/// The form as typed.
#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
pub(in crate::dashboard) struct LoginForm {
    name: String,
    password: Zeroizing<String>,
    next: String,
    kept: String,
}

/// The second half as typed.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(in crate::dashboard) struct CodeForm {
    half: Zeroizing<String>,
    code: Zeroizing<String>,
    next: String,
    kept: String,
}

pub(in crate::dashboard) async fn page(
    State(dashboard): State<Dashboard>,
    Query(query): Query<NextQuery>,
    reached: ReachedAs,
) -> Result<Response, PageError> {
    show(&LoginPage::of(&dashboard, &reached, onwards(&query.next).to_owned()).await)
}

/// Asks for a code after the first half.
pub(super) fn ask_code(half: Zeroizing<String>, next: &str) -> Result<Response, PageError> {
    show(&CodePage { frame: Frame::at(""), half, next: next.to_owned(), kept: None, wrong: None })
}

pub(in crate::dashboard) async fn submit(
    State(dashboard): State<Dashboard>,
    visitor: Option<Extension<Visitor>>,
    reached: ReachedAs,
    headers: HeaderMap,
    Form(form): Form<LoginForm>,
) -> Result<Response, PageError> {
    let LoginForm { name, password, next, kept } = form;
    let visitor = visitor.map(|Extension(visitor)| visitor);
    let from = visitor.as_ref().and_then(|visitor| visitor.from);
    let kept = Kept::unpacked(&kept);
    let next = onwards(&next).to_owned();
    let signed_in = match dashboard.ops.sign_in(name.trim(), password, from, agent(&headers)).await {
        Ok(SignIn::In(signed_in)) => signed_in,
        Ok(SignIn::Half(half)) => {
            let kept = kept.map(|kept| kept.packed());
            return show(&CodePage { frame: Frame::at(""), half, next, kept, wrong: None });
        }
        Err(error) => {
            let status = status_of(error.kind);
            let kept = kept.map(|kept| kept.packed());
            let wrong = Some(mistake(error));
            let mut page = show(&LoginPage { name, kept, wrong, ..LoginPage::of(&dashboard, &reached, next).await })?;
            *page.status_mut() = status;
            return Ok(page);
        }
    };
    come_in(*signed_in, visitor, (&next, kept))
}

/// The code, after name and password.
pub(in crate::dashboard) async fn submit_code(
    State(dashboard): State<Dashboard>,
    visitor: Option<Extension<Visitor>>,
    reached: ReachedAs,
    headers: HeaderMap,
    Form(form): Form<CodeForm>,
) -> Result<Response, PageError> {
    let CodeForm { half, code, next, kept } = form;
    let visitor = visitor.map(|Extension(visitor)| visitor);
    let from = visitor.as_ref().and_then(|visitor| visitor.from);
    let kept = Kept::unpacked(&kept);
    let next = onwards(&next).to_owned();
    let error = match dashboard.ops.sign_in_with_code(&half, &code, from, agent(&headers)).await {
        Ok(signed_in) => return come_in(signed_in, visitor, (&next, kept)),
        Err(error) => error,
    };
    let status = status_of(error.kind);
    let (again, kept) = (error.kind != ErrorKind::Stale, kept.map(|kept| kept.packed()));
    let wrong = Some(mistake(error));
    let mut page = if again {
        show(&CodePage { frame: Frame::at(""), half, next, kept, wrong })?
    } else {
        show(&LoginPage { kept, wrong, ..LoginPage::of(&dashboard, &reached, next).await })?
    };
    *page.status_mut() = status;
    Ok(page)
}

/// What whoever has signed in just now gets: their cookie, and where they were going.
pub(super) fn come_in(
    signed_in: SignedIn,
    visitor: Option<Visitor>,
    (next, kept): (&str, Option<Kept>),
) -> Result<Response, PageError> {
    let mut response = match kept {
        Some(kept) => show(&ResumePage { frame: Frame::at(""), fields: kept.shown(), kept })?,
        None if signed_in.actor.is_first => Redirect::to("/setup").into_response(),
        None if signed_in.actor.lacks_factor => Redirect::to("/account/second-factor").into_response(),
        None => Redirect::to(next).into_response(),
    };
    let cookie = visitor.unwrap_or_else(nowhere).set_cookie(&signed_in.cookie);
    let mut cookie = HeaderValue::try_from(cookie).map_err(|_| PageError::internal())?;
    cookie.set_sensitive(true);
    response.headers_mut().append(header::SET_COOKIE, cookie);
    Ok(response)
}

pub(in crate::dashboard) async fn sign_out(
    State(dashboard): State<Dashboard>,
    visitor: Option<Extension<Visitor>>,
) -> Result<Response, PageError> {
    dashboard.ops.sign_out().await?;
    let mut response = Redirect::to("/login").into_response();
    let visitor = visitor.map_or_else(nowhere, |Extension(visitor)| visitor);
    if let Ok(cookie) = HeaderValue::try_from(visitor.set_cookie("")) {
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
    Ok(response)
}

fn nowhere() -> Visitor {
    Visitor { from: None, cookie: "__Host-toft".to_owned(), secure: true }
}

/// What the browser calls itself, for people who look for a session of theirs.
pub(super) fn agent(headers: &HeaderMap) -> String {
    in_short(headers.get(header::USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or_default())
}

/// `Firefox on Linux`; what is not known stays as it is, cut.
fn in_short(text: &str) -> String {
    // Those that call themselves others too come first.
    let browsers =
        [("Edg/", "Edge"), ("OPR/", "Opera"), ("Firefox/", "Firefox"), ("Chrome/", "Chrome"), ("Safari/", "Safari")];
    let systems = [
        ("Android", "Android"),
        ("iPhone", "iPhone"),
        ("iPad", "iPad"),
        ("Windows", "Windows"),
        ("Mac OS X", "macOS"),
        ("Linux", "Linux"),
    ];
    let known =
        |names: &[(&str, &'static str)]| names.iter().find(|(part, _)| text.contains(part)).map(|(_, name)| *name);
    match (known(&browsers), known(&systems)) {
        (Some(browser), Some(system)) => format!("{browser} on {system}"),
        (Some(browser), None) => browser.to_owned(),
        (None, _) => text.chars().filter(|c| !c.is_control()).take(LONGEST_AGENT).collect(),
    }
}

/// What somebody gets who is not signed in: the way to the sign-in page, or that page with the form they sent.
pub(in crate::dashboard) async fn sign_in_first(request: Request) -> Response {
    let by_script = request.headers().contains_key("hx-request");
    let here = request.uri().path_and_query().map_or("/", |path| path.as_str()).to_owned();
    if by_script {
        // The page that asked is opened again after the sign-in.
        let page = request.headers().get("hx-current-url").and_then(|url| url.to_str().ok());
        let page = page.and_then(|url| {
            url.split_once("://")?.1.find('/').map(|at| &url.split_once("://").map_or("", |(_, rest)| rest)[at..])
        });
        let to = login_with(onwards(page.unwrap_or("/")));
        let mut response = StatusCode::UNAUTHORIZED.into_response();
        if let Ok(to) = HeaderValue::try_from(to) {
            response.headers_mut().insert("hx-redirect", to);
        }
        return guard::dressed(response);
    }
    if matches!(*request.method(), Method::GET | Method::HEAD) {
        if request.headers().get(header::ACCEPT).is_some_and(|kinds| kinds == "text/event-stream") {
            return guard::dressed(StatusCode::UNAUTHORIZED.into_response());
        }
        return guard::dressed(Redirect::to(&login_with(onwards(&here))).into_response());
    }
    let kept = Kept::read(request).await.map(|kept| kept.packed());
    let wrong = Some(Mistake {
        message: "your session has ended".to_owned(),
        hint: Some(match kept {
            Some(_) => "sign in again; what you typed comes back".to_owned(),
            None => "sign in again; nothing was changed".to_owned(),
        }),
    });
    let (frame, next) = (Frame::at(""), "/".to_owned());
    let (provider, passkeys) = (None, Passkeys::Nobodys);
    let page = LoginPage { frame, name: String::new(), next, kept, wrong, provider, passkeys };
    let mut response = show(&page).unwrap_or_else(|error| error.page());
    *response.status_mut() = StatusCode::UNAUTHORIZED;
    guard::dressed(response)
}

fn login_with(next: &str) -> String {
    match serde_urlencoded::to_string([("next", next)]) {
        Ok(query) if next != "/" => format!("/login?{query}"),
        Ok(_) | Err(_) => "/login".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn browsers_are_named_in_short() {
        for (text, want) in [
            ("Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0", "Firefox on Linux"),
            (
                "Mozilla/5.0 (Windows NT 10.0) AppleWebKit/537.36 Chrome/140.0 Safari/537.36 Edg/140.0",
                "Edge on Windows",
            ),
            ("Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) Version/18.0 Safari/604.1", "Safari on iPhone"),
            ("curl/8.5.0", "curl/8.5.0"),
            ("", ""),
        ] {
            assert_eq!(in_short(text), want);
        }
        assert_eq!(in_short(&"x".repeat(1_000)).len(), LONGEST_AGENT);
    }
}
