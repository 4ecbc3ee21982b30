//! Logins: the challenge of a registry, and the token that answers it.

use base64::{Engine, engine::general_purpose::STANDARD};
use http_body_util::{BodyExt, Limited};
use hyper::{
    HeaderMap, StatusCode, Uri,
    header::{AUTHORIZATION, HeaderValue, WWW_AUTHENTICATE},
};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::{
    error::{PullErrorKind, Trouble, shown},
    http::{Http, host},
};

/// Largest answer of a token service.
const MOST_TOKEN_BYTES: usize = 64 << 10;

/// A name and a password for a registry.
#[derive(Clone)]
pub struct Login {
    /// Name.
    pub username: String,
    /// Password or access token.
    pub password: Zeroizing<String>,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Login({})", self.username)
    }
}

impl Login {
    fn basic(&self) -> Result<HeaderValue, Trouble> {
        let pair = Zeroizing::new(format!("{}:{}", self.username, *self.password));
        header("Basic", &STANDARD.encode(pair.as_bytes()))
    }
}

/// What a registry asks for.
#[derive(Debug, PartialEq, Eq)]
enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

/// The `Authorization` that answers the challenge in `headers`.
pub(super) async fn answer(
    http: &Http,
    asked: &Uri,
    headers: &HeaderMap,
    repository: &str,
    login: Option<&Login>,
) -> Result<HeaderValue, Trouble> {
    let registry = host(asked);
    let challenges = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
    match challenges.filter_map(challenge).next() {
        Some(Challenge::Basic) => login.ok_or_else(|| no_login(&registry))?.basic(),
        Some(Challenge::Bearer { realm, service, scope }) => {
            let scope = scope.unwrap_or_else(|| format!("repository:{repository}:pull"));
            let uri = token_uri(asked, &realm, service.as_deref(), &scope)?;
            token(http, uri, &registry, login).await
        }
        None => {
            let reason = format!("`{registry}` wants a login of a kind that is not known");
            Err(Trouble::new(PullErrorKind::BadAnswer, reason))
        }
    }
}

/// Nobody logged in to that registry.
pub(super) fn no_login(registry: &str) -> Trouble {
    Trouble::new(PullErrorKind::Denied, format!("`{registry}` wants a login")).hint(login_hint(registry))
}

/// The registry does not like the login there is.
pub(super) fn refused(registry: &str, login: Option<&Login>) -> Trouble {
    let reason = match login {
        Some(login) => format!("`{registry}` refuses the login of `{}`, or it may not read this image", login.username),
        None => format!("`{registry}` hands it out to nobody without a login, or there is no such image"),
    };
    Trouble::new(PullErrorKind::Denied, reason).hint(login_hint(registry))
}

fn login_hint(registry: &str) -> String {
    let name = if registry == "registry-1.docker.io" { "docker.io" } else { registry };
    format!(
        "log in with `toft registry login {name}`, or name a login in the configuration: \
         [registries.\"{name}\"] username = \"...\", password_file = \"...\""
    )
}

fn header(kind: &str, value: &str) -> Result<HeaderValue, Trouble> {
    let text = Zeroizing::new(format!("{kind} {value}"));
    let mut header = HeaderValue::from_str(&text).map_err(|_| {
        Trouble::new(PullErrorKind::BadAnswer, "the token service hands out something that is no token")
    })?;
    header.set_sensitive(true);
    Ok(header)
}

fn token_uri(asked: &Uri, realm: &str, service: Option<&str>, scope: &str) -> Result<Uri, Trouble> {
    let bad = |why: &str| {
        let reason = format!("`{}` names a token service {why}: `{}`", host(asked), shown(realm));
        Trouble::new(PullErrorKind::BadAnswer, reason)
    };
    let mut text = realm.to_owned();
    text.push(if realm.contains('?') { '&' } else { '?' });
    if let Some(service) = service {
        text.push_str(&format!("service={}&", encoded(service)));
    }
    text.push_str(&format!("scope={}", encoded(scope)));
    let uri: Uri = text.parse().map_err(|_| bad("that is no address"))?;
    if uri.authority().is_none_or(|authority| authority.as_str().contains('@')) {
        return Err(bad("that is no address"));
    }
    // Passwords go there: without TLS only if the registry itself may be used so.
    match (asked.scheme_str(), uri.scheme_str()) {
        (_, Some("https")) | (Some("http"), Some("http")) => Ok(uri),
        _ => Err(bad("without TLS")),
    }
}

#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(alias = "access_token")]
    token: Option<String>,
}

async fn token(http: &Http, uri: Uri, registry: &str, login: Option<&Login>) -> Result<HeaderValue, Trouble> {
    let mut headers = HeaderMap::new();
    if let Some(login) = login {
        headers.insert(AUTHORIZATION, login.basic()?);
    }
    let service = host(&uri);
    let answer = http.get(uri, &headers).await?;
    match answer.status() {
        StatusCode::OK => {}
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(refused(registry, login)),
        status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
            let reason = format!("the token service `{service}` answered {status}");
            return Err(Trouble::new(PullErrorKind::Busy, reason));
        }
        status => {
            let reason = format!("the token service `{service}` answered {status}");
            return Err(Trouble::new(PullErrorKind::BadAnswer, reason));
        }
    }
    let bad = || Trouble::new(PullErrorKind::BadAnswer, format!("the token service `{service}` hands out no token"));
    let body = Limited::new(answer.into_body(), MOST_TOKEN_BYTES).collect();
    let body = tokio::time::timeout(http.silence(), body).await.map_err(|_| bad())?.map_err(|_| bad())?.to_bytes();
    let parsed: TokenAnswer = serde_json::from_slice(&body).map_err(|_| bad())?;
    header("Bearer", &Zeroizing::new(parsed.token.filter(|token| !token.is_empty()).ok_or_else(bad)?))
}

/// Reads one challenge: `Bearer realm="https://auth.example/token",service="registry.example"`.
fn challenge(text: &str) -> Option<Challenge> {
    let text = text.trim();
    let (kind, rest) = text.split_once(' ').unwrap_or((text, ""));
    if kind.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    if !kind.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let mut parameters = parameters(rest);
    let realm = parameters.remove("realm")?;
    Some(Challenge::Bearer { realm, service: parameters.remove("service"), scope: parameters.remove("scope") })
}

/// `key="value"` pairs with commas between; values may hold commas and escaped quotes.
fn parameters(text: &str) -> std::collections::BTreeMap<String, String> {
    let mut found = std::collections::BTreeMap::new();
    let mut rest = text.trim_start_matches([' ', ',']);
    while let Some((key, after)) = rest.split_once('=') {
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => {
                let mut value = String::new();
                let mut end = quoted.len();
                let mut characters = quoted.char_indices();
                while let Some((at, c)) = characters.next() {
                    match c {
                        '"' => {
                            end = at + 1;
                            break;
                        }
                        '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
                        c => value.push(c),
                    }
                }
                (value, &quoted[end..])
            }
            None => {
                let end = after.find(',').unwrap_or(after.len());
                (after[..end].trim().to_owned(), &after[end..])
            }
        };
        found.entry(key.trim().to_ascii_lowercase()).or_insert(value);
        rest = after.trim_start_matches([' ', ',']);
    }
    found
}

/// A text as part of an address.
pub(super) fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b':' | b'/' => out.push(byte.into()),
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let bearer = |text: &str| match challenge(text) {
            Some(Challenge::Bearer { realm, service, scope }) => (realm, service, scope),
            other => panic!("{text}: {other:?}"),
        };
        let (realm, service, scope) = bearer(
            r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#,
        );
        assert_eq!(realm, "https://auth.docker.io/token");
        assert_eq!(service.as_deref(), Some("registry.docker.io"));
        assert_eq!(scope.as_deref(), Some("repository:a/b:pull,push"));
        assert_eq!(bearer(r#"bearer REALM=x , service="a\"b""#), ("x".into(), Some("a\"b".into()), None));
        assert_eq!(challenge("Basic realm=\"x\""), Some(Challenge::Basic));
        for bad in ["", "Bearer", "Bearer realm", "Digest realm=x", "Bearer service=\"x", "Bearer =", "Bearer \\\"="] {
            assert_eq!(challenge(bad), None, "{bad}");
        }
    }

    #[test]
    fn passwords_do_not_leave_tls() {
        let asked: Uri = "https://r.example/v2/".parse().unwrap();
        let uri = token_uri(&asked, "https://a.example/t", Some("a b"), "repository:x:pull,push").unwrap();
        assert_eq!(uri.to_string(), "https://a.example/t?service=a%20b&scope=repository:x:pull%2Cpush");
        for bad in ["http://a.example/t", "a.example/t", "file:///t", "https://u:p@a.example/t", "/t", ""] {
            assert!(token_uri(&asked, bad, None, "x").is_err(), "{bad}");
        }
        let plain: Uri = "http://127.0.0.1/v2/".parse().unwrap();
        assert!(
            token_uri(&plain, "http://127.0.0.1/t?a=b", None, "x").unwrap().to_string().ends_with("/t?a=b&scope=x")
        );
    }

    #[test]
    fn a_login_does_not_show_its_password() {
        let login = Login { username: "u".to_owned(), password: "hidden".to_owned().into() };
        assert!(!format!("{login:?} {:?}", login.basic().unwrap()).contains("hidden"));
    }
}
