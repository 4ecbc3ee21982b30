//! One registry (or mirror) as it is asked for one repository: TLS or not, its login, its answers in our words.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http_body_util::{BodyExt, Limited};
use hyper::{
    HeaderMap, Response, StatusCode, Uri,
    body::Incoming,
    header::{AUTHORIZATION, HeaderValue, RETRY_AFTER},
};
use serde::Deserialize;
use tokio::sync::OnceCell;

use super::{
    Logins,
    auth::{self, Login},
    error::{PullErrorKind, Trouble, shown},
    http::Http,
    settings::Scheme,
};

/// Largest explanation of a failure that is read.
const MOST_EXPLANATION_BYTES: usize = 16 << 10;

/// One registry, asked for one repository.
pub(super) struct Endpoint {
    /// Its name, as references and the configuration have it.
    name: String,
    repository: String,
    http: Http,
    scheme: Scheme,
    logins: Arc<dyn Logins>,
    /// The scheme that it answers to.
    found: OnceCell<&'static str>,
    authorization: Mutex<Option<HeaderValue>>,
}

impl Endpoint {
    pub(super) fn new(name: String, repository: String, http: Http, scheme: Scheme, logins: Arc<dyn Logins>) -> Self {
        let (found, authorization) = (OnceCell::new(), Mutex::default());
        Self { name, repository, http, scheme, logins, found, authorization }
    }

    /// Its name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Asks for `path` below the repository (`blobs/sha256:...`); only answers that succeed are given.
    pub(super) async fn get(&self, path: &str, headers: &HeaderMap) -> Result<Response<Incoming>, Trouble> {
        let scheme = self.found.get_or_try_init(|| self.find_scheme()).await?;
        let uri = self.uri(scheme, &format!("{}/{path}", self.repository))?;
        let mut headers = headers.clone();
        let known = self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone();
        headers.extend(known.map(|known| (AUTHORIZATION, known)));
        let answer = self.http.get(uri.clone(), &headers).await?;
        if answer.status() != StatusCode::UNAUTHORIZED {
            return self.checked(answer, path).await;
        }
        let login = self.login().await?;
        let authorization = auth::answer(&self.http, &uri, answer.headers(), &self.repository, login.as_ref()).await?;
        headers.insert(AUTHORIZATION, authorization.clone());
        let answer = self.http.get(uri, &headers).await?;
        if matches!(answer.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            return Err(auth::refused(&self.name, login.as_ref()));
        }
        *self.authorization.lock().unwrap_or_else(PoisonError::into_inner) = Some(authorization);
        self.checked(answer, path).await
    }

    async fn login(&self) -> Result<Option<Login>, Trouble> {
        self.logins.login(&self.name).await.map_err(|reason| Trouble::new(PullErrorKind::Denied, reason))
    }

    fn uri(&self, scheme: &str, path: &str) -> Result<Uri, Trouble> {
        // What everybody calls `docker.io` answers elsewhere.
        let address = if self.name == "docker.io" { "registry-1.docker.io" } else { &self.name };
        format!("{scheme}://{address}/v2/{path}")
            .parse()
            .map_err(|_| Trouble::new(PullErrorKind::Unreachable, format!("`{}` is no address", self.name)))
    }

    async fn find_scheme(&self) -> Result<&'static str, Trouble> {
        match self.scheme {
            Scheme::Https => return Ok("https"),
            Scheme::Http => return Ok("http"),
            Scheme::Either => {}
        }
        match self.http.get(self.uri("https", "")?, &HeaderMap::new()).await {
            Ok(_) => Ok("https"),
            Err(trouble) if trouble.kind != PullErrorKind::Denied && trouble.kind != PullErrorKind::Unreachable => {
                Err(trouble)
            }
            // Some close the line when they are greeted so; a certificate that does not hold is still TLS.
            Err(secure) => match self.http.get(self.uri("http", "")?, &HeaderMap::new()).await {
                Ok(answer) if answer.status() == StatusCode::BAD_REQUEST => Err(secure),
                Ok(_) => Ok("http"),
                Err(trouble) if trouble.kind == PullErrorKind::BadAnswer => Ok("http"),
                Err(_) => Err(secure),
            },
        }
    }

    async fn checked(&self, answer: Response<Incoming>, path: &str) -> Result<Response<Incoming>, Trouble> {
        let status = answer.status();
        if status == StatusCode::OK || status == StatusCode::PARTIAL_CONTENT {
            return Ok(answer);
        }
        let name = &self.name;
        let later = answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let said = explanation(answer, self.http.silence()).await;
        let said = if said.is_empty() { String::new() } else { format!(" ({said})") };
        let mut trouble = match status.as_u16() {
            404 => match path.strip_prefix("manifests/") {
                Some(digest) if digest.starts_with("sha256:") => {
                    Trouble::new(PullErrorKind::NoSuchImage, format!("`{name}` has no `{digest}` of it{said}"))
                }
                Some(tag) => Trouble::new(
                    PullErrorKind::NoSuchImage,
                    format!("`{name}` has no `{}` with the tag `{tag}`{said}", self.repository),
                )
                .hint("look for a mistake in its name or tag; an image that was built here is brought by `toft image import`"),
                None => Trouble::new(PullErrorKind::BadContent, format!("`{name}` lacks a part of it, `{path}`{said}")),
            },
            401 | 403 => {
                let login = self.login().await?;
                auth::refused(name, login.as_ref())
            }
            429 => Trouble::new(PullErrorKind::Busy, format!("`{name}` allows no more pulls for now{said}"))
                .hint(format!("wait; a login may have a higher limit: `toft registry login {name}`")),
            408 | 500..=599 => Trouble::new(PullErrorKind::Busy, format!("`{name}` answered {status}{said}")),
            _ => Trouble::new(PullErrorKind::BadAnswer, format!("`{name}` answered {status}{said}")),
        };
        trouble.later = later.map(Duration::from_secs);
        Err(trouble)
    }
}

#[derive(Deserialize)]
struct Explanations {
    errors: Vec<Explanation>,
}

#[derive(Deserialize)]
struct Explanation {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// What a registry says of a failure.
async fn explanation(answer: Response<Incoming>, silence: Duration) -> String {
    let body = Limited::new(answer.into_body(), MOST_EXPLANATION_BYTES).collect();
    let Ok(Ok(body)) = tokio::time::timeout(silence, body).await else { return String::new() };
    let Ok(said) = serde_json::from_slice::<Explanations>(&body.to_bytes()) else { return String::new() };
    let first = said.errors.into_iter().next();
    first.map(|e| shown(if e.message.is_empty() { &e.code } else { &e.message })).unwrap_or_default()
}
