//! One image at its registry and the mirrors before it: its documents, and its blobs as they arrive.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::{
    HeaderMap, Response, StatusCode,
    body::Incoming,
    header::{ACCEPT, ACCEPT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderValue, RANGE},
};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use toft_model::image::ImageRef;
use tokio::time::Instant;

use super::{
    endpoint::Endpoint,
    error::{PullErrorKind, Trouble, shown},
    settings::Patience,
};

/// Largest index, manifest or config.
pub(crate) const MAX_DOCUMENT_BYTES: u64 = 4 << 20;
/// What is asked for; registries turn other kinds into these where they can.
const KINDS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";
/// Progress that makes up for the tries before it.
const PROGRESS_BYTES: u64 = 256 << 10;
/// A connection that brings less than [`PROGRESS_BYTES`] in this time is given up.
const SLOW: Duration = Duration::from_secs(60);

/// An index or a manifest.
#[derive(Debug, Clone)]
pub(crate) struct Document {
    /// Its kind.
    pub(crate) media_type: String,
    /// Its digest.
    pub(crate) digest: String,
    /// The very bytes.
    pub(crate) bytes: Vec<u8>,
}

/// One image at its registry.
pub struct Repository {
    image: ImageRef,
    /// Mirrors, then the registry itself.
    endpoints: Vec<Endpoint>,
    patience: Patience,
}

impl Repository {
    pub(super) fn new(image: ImageRef, endpoints: Vec<Endpoint>, patience: Patience) -> Self {
        Self { image, endpoints, patience }
    }

    /// The image that is asked for.
    pub fn image(&self) -> &ImageRef {
        &self.image
    }

    /// What the image's name stands for: a manifest or an index.
    pub(crate) async fn named(&self) -> Result<Document, Trouble> {
        let by = self.image.digest().or(self.image.tag()).unwrap_or("latest").to_owned();
        self.manifest(&by).await
    }

    /// The manifest or index of a tag or digest.
    pub(crate) async fn manifest(&self, by: &str) -> Result<Document, Trouble> {
        let (path, headers) = (format!("manifests/{by}"), asking(KINDS));
        let pinned = by.starts_with("sha256:").then_some(by);
        let mut tries = Tries::new(self.patience);
        let mut at = 0;
        loop {
            let endpoint = &self.endpoints[at];
            let fetched = async {
                let answer = endpoint.get(&path, &headers).await?;
                self.document(endpoint, answer, pinned).await
            };
            match fetched.await {
                Ok(document) => return Ok(document),
                Err(trouble) => self.next_try(&mut at, &mut tries, trouble).await?,
            }
        }
    }

    /// A small blob: a config.
    pub(crate) async fn small_blob(&self, digest: &str, size: u64) -> Result<Vec<u8>, Trouble> {
        let mut blob = self.blob(digest, size, 0);
        let mut bytes = Vec::new();
        while let Some(piece) = blob.next().await? {
            bytes.extend_from_slice(&piece);
        }
        if digest_of(&bytes) != digest {
            return Err(blob.wrong());
        }
        Ok(bytes)
    }

    /// A blob of `size` bytes from the byte `from` on.
    pub(crate) fn blob(&self, digest: &str, size: u64, from: u64) -> Blob<'_> {
        let tries = Tries::new(self.patience);
        Blob {
            repository: self,
            digest: digest.to_owned(),
            size,
            at: from,
            endpoint: 0,
            body: None,
            tries,
            since: from,
        }
    }

    /// After trouble: the next endpoint, or the last one again after a while.
    async fn next_try(&self, at: &mut usize, tries: &mut Tries, trouble: Trouble) -> Result<(), Trouble> {
        if *at + 1 < self.endpoints.len() {
            tracing::info!(image = %self.image, mirror = self.endpoints[*at].name(), reason = ?trouble, "a mirror did not help");
            *at += 1;
            return Ok(());
        }
        tries.after(trouble).await
    }

    async fn document(
        &self,
        endpoint: &Endpoint,
        answer: Response<Incoming>,
        pinned: Option<&str>,
    ) -> Result<Document, Trouble> {
        let name = endpoint.name();
        let bad = |kind, why: &str| Trouble::new(kind, format!("`{name}` hands out a manifest {why}"));
        let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let kind = header(CONTENT_TYPE.as_str()).unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim().to_owned();
        let told = header("docker-content-digest");
        let body = Limited::new(answer.into_body(), MAX_DOCUMENT_BYTES as usize).collect();
        let bytes = match tokio::time::timeout(self.patience.silence.max(SLOW), body).await {
            Ok(Ok(body)) => body.to_bytes().to_vec(),
            Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
                return Err(bad(PullErrorKind::BadContent, "larger than 4 MiB"));
            }
            Ok(Err(error)) => {
                return Err(bad(
                    PullErrorKind::Unreachable,
                    &format!("that breaks off: {}", shown(&error.to_string())),
                ));
            }
            Err(_) => return Err(bad(PullErrorKind::Unreachable, "that does not come to its end")),
        };
        let digest = digest_of(&bytes);
        let wanted = pinned.map(str::to_owned).or(told.filter(|told| told.starts_with("sha256:")));
        if let Some(wanted) = wanted.filter(|wanted| *wanted != digest) {
            let why = format!("that is not `{}` but `{digest}`", shown(&wanted));
            return Err(bad(PullErrorKind::BadContent, &why));
        }
        let media_type = media_type(&kind, &bytes).map_err(|why| bad(PullErrorKind::BadContent, &why))?;
        Ok(Document { media_type, digest, bytes })
    }
}

/// The kind of a document: what the answer says, which the document must not contradict.
fn media_type(told: &str, bytes: &[u8]) -> Result<String, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Typed {
        media_type: Option<String>,
        manifests: Option<serde::de::IgnoredAny>,
    }
    let typed: Typed = serde_json::from_slice(bytes).map_err(|error| format!("that cannot be read: {error}"))?;
    let generic = matches!(told, "" | "application/json" | "text/plain" | "application/octet-stream");
    match typed.media_type {
        Some(own) if generic || own == told => Ok(own),
        Some(own) => Err(format!("of two kinds at once, `{}` and `{}`", shown(told), shown(&own))),
        None if generic && typed.manifests.is_some() => Ok("application/vnd.oci.image.index.v1+json".to_owned()),
        None if generic => Ok("application/vnd.oci.image.manifest.v1+json".to_owned()),
        None => Ok(told.to_owned()),
    }
}

/// A blob as it arrives: taken up again where it broke off.
pub(crate) struct Blob<'a> {
    repository: &'a Repository,
    digest: String,
    size: u64,
    at: u64,
    endpoint: usize,
    body: Option<Incoming>,
    tries: Tries,
    /// Where the last count of progress began.
    since: u64,
}

impl Blob<'_> {
    /// The next piece; `None` after the last of its bytes. Never more bytes than its size.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Trouble> {
        while self.at < self.size {
            match self.piece().await {
                Ok(piece) => {
                    self.at += piece.len() as u64;
                    if self.at - self.since >= PROGRESS_BYTES {
                        self.since = self.at;
                        self.tries.progressed();
                    }
                    return Ok(Some(piece));
                }
                Err(trouble) => {
                    self.body = None;
                    let repository = self.repository;
                    repository.next_try(&mut self.endpoint, &mut self.tries, trouble).await?;
                }
            }
        }
        Ok(None)
    }

    async fn piece(&mut self) -> Result<Bytes, Trouble> {
        let name = self.repository.endpoints[self.endpoint].name();
        let broken = |why: &str| {
            let reason = format!("`{name}` broke off in the middle of `{}`: {why}", self.digest);
            Trouble::new(PullErrorKind::Unreachable, reason)
        };
        if self.tries.crawls(self.at) {
            return Err(broken("it sends too slowly"));
        }
        if self.body.is_none() {
            let (body, mut beyond) = self.open().await?;
            self.tries.begin(self.at);
            self.body = Some(body);
            beyond.truncate(self.left());
            if !beyond.is_empty() {
                return Ok(beyond);
            }
        }
        let left = self.left();
        let Some(body) = &mut self.body else { return Err(broken("there is no answer")) };
        loop {
            let frame = tokio::time::timeout(self.repository.patience.silence, body.frame());
            let data = match frame.await {
                Ok(Some(Ok(frame))) => frame.into_data(),
                Ok(Some(Err(error))) => return Err(broken(&shown(&error.to_string()))),
                Ok(None) => return Err(broken("its answer is too short")),
                Err(_) => return Err(broken("nothing comes any more")),
            };
            let Ok(mut data) = data else { continue };
            data.truncate(left);
            if !data.is_empty() {
                return Ok(data);
            }
        }
    }

    fn left(&self) -> usize {
        usize::try_from(self.size - self.at).unwrap_or(usize::MAX)
    }

    /// Asks for what is still missing.
    async fn open(&self) -> Result<(Incoming, Bytes), Trouble> {
        let endpoint = &self.repository.endpoints[self.endpoint];
        let mut headers = asking("*/*");
        if self.at > 0 {
            let range = HeaderValue::from_str(&format!("bytes={}-", self.at));
            headers.extend(range.ok().map(|range| (RANGE, range)));
        }
        let answer = endpoint.get(&format!("blobs/{}", self.digest), &headers).await?;
        let bad = |why: String| {
            let reason = format!("`{}` hands out `{}` {why}", endpoint.name(), self.digest);
            Trouble::new(PullErrorKind::BadContent, reason)
        };
        let text = |name| answer.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let partial = answer.status() == StatusCode::PARTIAL_CONTENT;
        if partial && text(CONTENT_RANGE).is_none_or(|range| !range.starts_with(&format!("bytes {}-", self.at))) {
            return Err(bad("in another part than was asked for".to_owned()));
        }
        let expected = if partial { self.size - self.at } else { self.size };
        if let Some(length) =
            text(CONTENT_LENGTH).and_then(|length| length.parse::<u64>().ok()).filter(|l| *l != expected)
        {
            return Err(bad(format!("with {length} bytes instead of {expected}")));
        }
        let mut body = answer.into_body();
        let beyond = if !partial && self.at > 0 { self.skip(&mut body).await? } else { Bytes::new() };
        Ok((body, beyond))
    }

    /// Reads over what is there already, for registries that know no ranges; gives what came beyond.
    async fn skip(&self, body: &mut Incoming) -> Result<Bytes, Trouble> {
        let mut left = self.at;
        loop {
            let frame = tokio::time::timeout(self.repository.patience.silence, body.frame()).await;
            let Ok(Some(Ok(frame))) = frame else {
                let reason = format!("`{}` broke off again", self.repository.image.registry());
                return Err(Trouble::new(PullErrorKind::Unreachable, reason));
            };
            let Ok(mut data) = frame.into_data() else { continue };
            let over = usize::try_from(left).unwrap_or(usize::MAX).min(data.len());
            left -= over as u64;
            if left == 0 {
                return Ok(data.split_off(over));
            }
        }
    }

    /// The bytes that came are not those of its digest.
    pub(crate) fn wrong(&self) -> Trouble {
        let name = self.repository.endpoints[self.endpoint].name();
        let reason = format!("`{name}` hands out something else under the digest `{}`", self.digest);
        Trouble::new(PullErrorKind::BadContent, reason)
    }
}

fn asking(kinds: &'static str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT, HeaderValue::from_static(kinds));
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    headers
}

pub(crate) fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// How often something was tried in vain, and how slowly it goes.
struct Tries {
    patience: Patience,
    failed: u32,
    counted: Option<(Instant, u64)>,
}

impl Tries {
    fn new(patience: Patience) -> Self {
        Self { patience, failed: 0, counted: None }
    }

    fn progressed(&mut self) {
        self.failed = 0;
    }

    fn begin(&mut self, at: u64) {
        self.counted = Some((Instant::now(), at));
    }

    /// Whether too little arrived in a long time; begins to count anew after each such time.
    fn crawls(&mut self, at: u64) -> bool {
        let Some((since, from)) = self.counted else { return false };
        if since.elapsed() < SLOW {
            return false;
        }
        self.counted = Some((Instant::now(), at));
        at - from < PROGRESS_BYTES
    }

    /// Waits before the next try, or gives up.
    async fn after(&mut self, trouble: Trouble) -> Result<(), Trouble> {
        self.failed += 1;
        self.counted = None;
        if !trouble.passes() || self.failed >= self.patience.tries {
            return Err(trouble);
        }
        tokio::time::sleep(self.patience.wait(self.failed, trouble.later)).await;
        Ok(())
    }
}
