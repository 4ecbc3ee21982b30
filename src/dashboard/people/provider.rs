//! Signing in by way of a provider: to it, and back.

use axum::{
    extract::{Extension, Query, State},
    http::{HeaderMap, HeaderValue, Uri, header},
    response::{IntoResponse, Redirect, Response},
};
use serde::Deserialize;

use super::{
    super::{Dashboard, error::PageError, request::ReachedAs},
    login::{NextQuery, agent, ask_code, come_in, refused_with},
    onwards,
};
use crate::{
    control::{
        ControlError, ErrorKind,
        ops::{CameBack, SignIn},
    },
    identity::Visitor,
};

/// Where the provider sends people back to.
const BACK: &str = "/login/oidc/callback";
/// Longest texts that come back, in bytes.
const LONGEST: usize = 4_096;

/// What the provider gives the browser.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(in crate::dashboard) struct BackQuery {
    code: String,
    state: String,
    error: String,
}

/// What the browser keeps while somebody is at the provider: a cookie beside that of sessions, as narrow.
fn meanwhile(visitor: &Visitor) -> Visitor {
    Visitor { cookie: format!("{}-oidc", visitor.cookie), ..visitor.clone() }
}

fn kept(headers: &HeaderMap, name: &str) -> Option<String> {
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = cookies.filter(|text| text.len() <= 4 * LONGEST).flat_map(|text| text.split(';'));
    pairs.find_map(|pair| {
        let (key, value) = pair.trim().split_once('=')?;
        (key == name && value.len() <= LONGEST).then(|| value.to_owned())
    })
}

/// The address of this node as the browser reached it, to which the provider sends it back. Providers send to none that they were not
/// told before.
fn back(visitor: &Visitor, headers: &HeaderMap, uri: &Uri, reached: &ReachedAs) -> Result<String, PageError> {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let host = host.or(uri.authority().map(|authority| authority.as_str())).filter(|_| reached.0.is_some());
    let plain = host
        .filter(|host| host.len() <= 260 && host.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_:[]".contains(&b)));
    let scheme = if visitor.secure { "https" } else { "http" };
    match plain {
        Some(host) => Ok(format!("{scheme}://{host}{BACK}")),
        None => Err(ControlError::new(ErrorKind::Invalid, "this node was asked by no name")
            .hint("open it by its name or address")
            .into()),
    }
}

fn visitor_of(visitor: Option<Extension<Visitor>>) -> Result<Visitor, PageError> {
    let nobody = || ControlError::new(ErrorKind::Conflict, "whoever uses the socket is root already").into();
    visitor.map(|Extension(visitor)| visitor).ok_or_else(nobody)
}

fn with_cookie(mut response: Response, cookie: String) -> Result<Response, PageError> {
    let mut cookie = HeaderValue::try_from(cookie).map_err(|_| PageError::internal())?;
    cookie.set_sensitive(true);
    response.headers_mut().append(header::SET_COOKIE, cookie);
    Ok(response)
}

/// To the provider.
pub(in crate::dashboard) async fn begin(
    State(dashboard): State<Dashboard>,
    visitor: Option<Extension<Visitor>>,
    Query(query): Query<NextQuery>,
    reached: ReachedAs,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, PageError> {
    let next = onwards(query.next()).to_owned();
    if dashboard.ops.provider_name().is_none() {
        return Ok(Redirect::to("/login").into_response());
    }
    let visitor = visitor_of(visitor)?;
    let back = back(&visitor, &headers, &uri, &reached)?;
    match dashboard.ops.begin_at_provider(next.clone(), &back, visitor.from).await {
        Ok(to) => with_cookie(Redirect::to(&to.address).into_response(), meanwhile(&visitor).set_cookie(&to.cookie)),
        Err(error) => refused_with(&dashboard, &reached, error, (next, None)).await,
    }
}

/// Back from it.
pub(in crate::dashboard) async fn end(
    State(dashboard): State<Dashboard>,
    visitor: Option<Extension<Visitor>>,
    Query(query): Query<BackQuery>,
    reached: ReachedAs,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, PageError> {
    if dashboard.ops.provider_name().is_none() {
        return Ok(Redirect::to("/login").into_response());
    }
    let visitor = visitor_of(visitor)?;
    let meanwhile = meanwhile(&visitor);
    let cookie = kept(&headers, &meanwhile.cookie).unwrap_or_default();
    let fits = [&query.code, &query.state].iter().all(|text| text.len() <= LONGEST);
    let came = if !query.error.is_empty() || !fits {
        let said: String = query.error.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '_').take(60).collect();
        Err(ControlError::new(ErrorKind::Unauthenticated, format!("the provider did not sign you in: {said}"))
            .hint("begin again"))
    } else {
        let back = back(&visitor, &headers, &uri, &reached)?;
        let came = CameBack { cookie: &cookie, state: &query.state, code: &query.code, back: &back };
        dashboard.ops.sign_in_by_provider(came, visitor.from, agent(&headers)).await
    };
    let forget = meanwhile.set_cookie("");
    let response = match came {
        Ok(from) => match from.sign_in {
            SignIn::In(signed_in) => come_in(*signed_in, Some(visitor), (onwards(&from.next), None))?,
            SignIn::Half(half) => ask_code(half, onwards(&from.next))?,
        },
        Err(error) => refused_with(&dashboard, &reached, error, ("/".to_owned(), None)).await?,
    };
    with_cookie(response, forget)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_back_is_the_address_that_was_asked() {
        let visitor = Visitor { from: None, cookie: "__Host-toft".into(), secure: true };
        let back = |host: &str| {
            let headers: HeaderMap = [(header::HOST, HeaderValue::from_str(host).unwrap())].into_iter().collect();
            back(&visitor, &headers, &Uri::from_static("/login/oidc"), &ReachedAs(Some("x".into()))).ok()
        };
        assert_eq!(back("box.lan:7443").unwrap(), "https://box.lan:7443/login/oidc/callback");
        assert_eq!(back("[fd00::1]:7443").unwrap(), "https://[fd00::1]:7443/login/oidc/callback");
        for bad in ["evil/x", "a b", "a@b", "a?b", "a#b", "\"<b>"] {
            assert_eq!(back(bad), None, "{bad}");
        }
        assert_eq!(meanwhile(&visitor).cookie, "__Host-toft-oidc");
        let headers: HeaderMap = [(header::COOKIE, HeaderValue::from_static("__Host-toft=a; __Host-toft-oidc=b; x=c"))]
            .into_iter()
            .collect();
        assert_eq!(kept(&headers, "__Host-toft-oidc").as_deref(), Some("b"));
    }
}
