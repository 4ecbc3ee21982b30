//! One image where it can be found: with the nodes that have it, at the mirrors of its registry, and there. Its documents; its
//! blobs are in [`super::blob`].

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::StreamExt;
use http_body_util::{BodyExt, Limited};
use hyper::{
    HeaderMap, Response,
    body::Incoming,
    header::{ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE, HeaderValue},
};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use toft_model::{image::ImageRef, name::Name};

use super::{
    blob::Blob,
    endpoint::Endpoint,
    error::{PullErrorKind, Trouble, shown},
    neighbours::{Around, Neighbour},
    settings::Patience,
    tries::{SLOW, Tries},
};

/// Largest index, manifest or config.
pub(crate) const MAX_DOCUMENT_BYTES: u64 = 4 << 20;
/// What is asked for; registries turn other kinds into these where they can.
const KINDS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";
/// Longest wait for a registry's word on a tag when a node has the image.
const ENOUGH: Duration = Duration::from_secs(5);
/// Longest wait for a document of a node.
const NODE_DOCUMENT: Duration = Duration::from_secs(5);

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

/// Who says what a tag stands for. A digest speaks for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TagWord {
    /// Its registry alone: the tag may have moved.
    Registry,
    /// Its registry, and another node when that one does not help.
    RegistryOrNode,
}

/// Bytes that came, by where from.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    nodes: AtomicU64,
    registries: AtomicU64,
}

impl Tally {
    pub(super) fn count(&self, of_node: bool, bytes: u64) {
        let (sum, from) = if of_node { (&self.nodes, "node") } else { (&self.registries, "registry") };
        sum.fetch_add(bytes, Ordering::Relaxed);
        metrics::counter!("toft_image_bytes_total", "from" => from).increment(bytes);
    }

    /// Bytes of nodes, and of registries.
    pub(super) fn sums(&self) -> (u64, u64) {
        (self.nodes.load(Ordering::Relaxed), self.registries.load(Ordering::Relaxed))
    }
}

/// One image where it can be found.
pub struct Repository {
    pub(super) image: ImageRef,
    /// Mirrors, then the registry itself.
    pub(super) endpoints: Vec<Endpoint>,
    pub(super) patience: Patience,
    pub(super) around: Around,
    pub(super) tally: Tally,
    word: TagWord,
    /// The node that said what the tag stands for.
    by_word_of: Mutex<Option<Name>>,
}

impl Repository {
    pub(super) fn new(image: ImageRef, endpoints: Vec<Endpoint>, patience: Patience) -> Self {
        let (around, tally, by_word_of) = (Around::new(None), Tally::default(), Mutex::default());
        Self { image, endpoints, patience, around, tally, word: TagWord::Registry, by_word_of }
    }

    /// Asks other nodes, too.
    pub(super) fn with_nodes(self, around: Around, word: TagWord) -> Self {
        Self { around, word, ..self }
    }

    /// The image that is asked for.
    pub fn image(&self) -> &ImageRef {
        &self.image
    }

    /// What the image's name stands for: a manifest or an index. `known` says whether the name stands for something here already:
    /// then no other node is asked what it stands for, since it may stand for something older there.
    pub(crate) async fn named(&self, known: bool) -> Result<Document, Trouble> {
        if let Some(digest) = self.image.digest() {
            return self.manifest(digest).await;
        }
        let tag = self.image.tag().unwrap_or("latest");
        let mut registry = std::pin::pin!(self.of_registry(tag));
        if known || self.word == TagWord::Registry {
            return registry.await;
        }
        let mut around = std::pin::pin!(self.around.named(&self.image));
        let (answer, named) = tokio::select! {
            biased;
            answer = &mut registry => (Some(answer), None),
            named = &mut around => (None, Some(named)),
        };
        let trouble = match (answer, &named) {
            (Some(Ok(document)), _) => return Ok(document),
            (Some(Err(trouble)), _) => trouble,
            (None, Some(None)) => return registry.await,
            (None, _) => match tokio::time::timeout(ENOUGH, registry).await {
                Ok(Ok(document)) => return Ok(document),
                Ok(Err(trouble)) => trouble,
                Err(_) => Trouble::new(
                    PullErrorKind::Unreachable,
                    format!("`{}` does not answer in time", self.image.registry()),
                ),
            },
        };
        let named = match named {
            Some(named) => named,
            None => around.await,
        };
        let Some((digest, nodes)) = named else { return Err(trouble) };
        // Nobody else is left to ask, so that a turn is worth waiting for.
        for waits in [false, true] {
            if let Some((document, node)) = self.of_nodes(&nodes, &digest, waits).await {
                tracing::info!(image = %self.image, %node, reason = ?trouble, "what the tag stands for was learned from a node");
                *self.by_word_of.lock().unwrap_or_else(PoisonError::into_inner) = Some(node);
                return Ok(document);
            }
        }
        Err(trouble)
    }

    /// The node by whose word the tag stands for what [`named`](Self::named) gave; `None` when the registry said it.
    pub(crate) fn by_word_of(&self) -> Option<Name> {
        self.by_word_of.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The manifest or index of a digest.
    pub(crate) async fn manifest(&self, digest: &str) -> Result<Document, Trouble> {
        let holders = self.around.holders(digest, None).await;
        if let Some((document, _)) = self.of_nodes(&holders, digest, false).await {
            return Ok(document);
        }
        let trouble = match self.of_registry(digest).await {
            Ok(document) => return Ok(document),
            Err(trouble) => trouble,
        };
        self.of_nodes(&holders, digest, true).await.map(|(document, _)| document).ok_or(trouble)
    }

    /// A document of the first of these nodes that gives it, and that node's name.
    async fn of_nodes(&self, nodes: &[Neighbour], digest: &str, waits: bool) -> Option<(Document, Name)> {
        for node in nodes {
            if let Some(document) = self.of_node(node, digest, waits).await {
                return Some((document, node.name.clone()));
            }
        }
        None
    }

    /// Finds out at once which nodes have these blobs.
    pub(crate) async fn look_for(&self, digests: impl Iterator<Item = &str>) {
        self.around.look_for(digests).await;
    }

    async fn of_registry(&self, by: &str) -> Result<Document, Trouble> {
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
                Ok(document) => {
                    self.tally.count(false, document.bytes.len() as u64);
                    return Ok(document);
                }
                Err(trouble) => self.next_try(&mut at, &mut tries, trouble).await?,
            }
        }
    }

    /// A document that a node has; `None` when the node does not help. `waits` as with [`Neighbours::read`].
    ///
    /// [`Neighbours::read`]: super::Neighbours::read
    async fn of_node(&self, node: &Neighbour, digest: &str, waits: bool) -> Option<Document> {
        let read = async {
            let mut pieces = self.around.read(node, digest, 0, waits).await?;
            let mut bytes = Vec::new();
            while let Some(piece) = pieces.next().await {
                bytes.extend_from_slice(&piece?);
                if bytes.len() as u64 > MAX_DOCUMENT_BYTES {
                    return Err("it is larger than 4 MiB".to_owned());
                }
            }
            if digest_of(&bytes) != digest {
                self.around.distrust(std::slice::from_ref(node));
                return Err("it is not what its digest says".to_owned());
            }
            let media_type = media_type("", &bytes)?;
            Ok(Document { media_type, digest: digest.to_owned(), bytes })
        };
        match tokio::time::timeout(NODE_DOCUMENT, read).await.unwrap_or_else(|_| Err("it does not come".to_owned())) {
            Ok(document) => {
                self.tally.count(true, document.bytes.len() as u64);
                Some(document)
            }
            Err(reason) => {
                tracing::info!(image = %self.image, node = %node.name, reason, "a node did not give a document of an image");
                None
            }
        }
    }

    /// A small blob: a config.
    pub(crate) async fn small_blob(&self, digest: &str, size: u64) -> Result<Vec<u8>, Trouble> {
        loop {
            let mut blob = self.blob(digest, size, 0).await;
            let mut bytes = Vec::new();
            while let Some(piece) = blob.next().await? {
                bytes.extend_from_slice(&piece);
            }
            if digest_of(&bytes) == digest {
                return Ok(bytes);
            }
            blob.wrong()?;
        }
    }

    /// A blob of `size` bytes from the byte `from` on.
    pub(crate) async fn blob(&self, digest: &str, size: u64, from: u64) -> Blob<'_> {
        let holders = self.around.holders(digest, Some(size)).await;
        Blob::new(self, (digest, size), holders, from)
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

pub(super) fn asking(kinds: &'static str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT, HeaderValue::from_static(kinds));
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    headers
}

pub(crate) fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}
