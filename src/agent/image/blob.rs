//! A blob as it arrives: from the nodes that have it, then from the mirrors and the registry, and taken up again where it
//! broke off, wherever that is.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use http_body_util::BodyExt;
use hyper::{
    StatusCode,
    body::Incoming,
    header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderValue, RANGE},
};

use super::{
    endpoint::Endpoint,
    error::{PullErrorKind, Trouble, shown},
    neighbours::{Neighbour, Pieces},
    repository::{Repository, asking},
    tries::{PROGRESS_BYTES, SLOW, Tries},
};

/// Longest time without a sign of life of a node.
const NODE_SILENCE: Duration = Duration::from_secs(10);
/// A node that brings too little in this time is given up as long as there are others to ask.
const NODE_SLOW: Duration = Duration::from_secs(10);

/// What the bytes come out of.
enum Body {
    Node(Pieces),
    Registry(Incoming),
}

/// Who is asked.
#[derive(Clone, Copy)]
enum Source<'a> {
    Node(&'a Neighbour),
    Registry(&'a Endpoint),
}

impl Source<'_> {
    fn name(&self) -> String {
        match self {
            Self::Node(node) => format!("node {}", node.name),
            Self::Registry(endpoint) => endpoint.name().to_owned(),
        }
    }
}

/// A blob as it arrives.
pub(crate) struct Blob<'a> {
    repository: &'a Repository,
    digest: String,
    size: u64,
    at: u64,
    /// Where it began; what was there before came from who knows where.
    began: u64,
    holders: Vec<Neighbour>,
    /// Which of the holders and then the endpoints is asked.
    source: usize,
    body: Option<Body>,
    tries: Tries,
    /// Where the last count of progress began.
    since: u64,
    /// Whether all have been asked once, so that a turn is worth waiting for.
    waits: bool,
    /// Trouble with a node since the first was asked.
    of_nodes: Option<Trouble>,
    /// The nodes that gave some of it.
    givers: Vec<Neighbour>,
}

impl<'a> Blob<'a> {
    pub(super) fn new(
        repository: &'a Repository,
        (digest, size): (&str, u64),
        holders: Vec<Neighbour>,
        from: u64,
    ) -> Self {
        Self {
            repository,
            digest: digest.to_owned(),
            size,
            at: from,
            began: from,
            holders,
            source: 0,
            body: None,
            tries: Tries::new(repository.patience),
            since: from,
            waits: false,
            of_nodes: None,
            givers: Vec::new(),
        }
    }

    fn source(&self) -> Source<'_> {
        match self.holders.get(self.source) {
            Some(node) => Source::Node(node),
            None => Source::Registry(&self.repository.endpoints[self.source - self.holders.len()]),
        }
    }

    /// The node that gives it now; `None` when it is a registry.
    pub(crate) fn node(&self) -> Option<&Neighbour> {
        self.holders.get(self.source)
    }

    /// The next piece; `None` after the last of its bytes. Never more bytes than its size.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Trouble> {
        while self.at < self.size {
            match self.piece().await {
                Ok(piece) => {
                    self.took(&piece);
                    return Ok(Some(piece));
                }
                Err(trouble) => {
                    self.body = None;
                    self.go_on(trouble).await?;
                }
            }
        }
        Ok(None)
    }

    fn took(&mut self, piece: &Bytes) {
        let count = piece.len() as u64;
        self.at += count;
        if self.at - self.since >= PROGRESS_BYTES {
            self.since = self.at;
            self.tries.progressed();
        }
        let node = self.holders.get(self.source);
        self.repository.tally.count(node.is_some(), count);
        if let Some(node) = node
            && !self.givers.contains(node)
        {
            self.givers.push(node.clone());
        }
    }

    /// After trouble: whoever comes next; after the last, the first again in a while.
    async fn go_on(&mut self, trouble: Trouble) -> Result<(), Trouble> {
        let (image, source) = (&self.repository.image, self.source().name());
        let last = self.holders.len() + self.repository.endpoints.len() - 1;
        if self.node().is_some() {
            tracing::info!(%image, source, reason = ?trouble, "a node did not help");
            self.of_nodes = Some(trouble);
            self.source += 1;
            return Ok(());
        }
        if self.source < last {
            tracing::info!(%image, mirror = source, reason = ?trouble, "a mirror did not help");
            self.source += 1;
            return Ok(());
        }
        if self.holders.is_empty() {
            return self.tries.after(trouble).await;
        }
        // The registry may not know what a node has.
        let trouble = match self.of_nodes.take() {
            Some(of_nodes) if !trouble.passes() => of_nodes.and(&trouble),
            _ => trouble,
        };
        self.tries.after(trouble).await?;
        (self.source, self.waits) = (0, true);
        Ok(())
    }

    async fn piece(&mut self) -> Result<Bytes, Trouble> {
        let name = self.source().name();
        let digest = self.digest.clone();
        let middle = format!("`{name}` broke off in the middle of `{digest}`");
        let broken = |why: &str| Trouble::new(PullErrorKind::Unreachable, format!("{middle}: {why}"));
        let slow = if self.node().is_some() && !self.waits { NODE_SLOW } else { SLOW };
        if self.tries.crawls(self.at, slow) {
            return Err(broken("it sends too slowly"));
        }
        if self.body.is_none() {
            let repository = self.repository;
            let rest = Rest { repository, digest, size: self.size, at: self.at, waits: self.waits };
            let opened = match self.node().cloned() {
                Some(node) => rest.ask(Source::Node(&node)).await,
                None => rest.ask(Source::Registry(&repository.endpoints[self.source - self.holders.len()])).await,
            };
            let (body, mut beyond) = opened?;
            self.tries.begin(self.at);
            self.body = Some(body);
            beyond.truncate(self.left());
            if !beyond.is_empty() {
                return Ok(beyond);
            }
        }
        let (left, silence) = (self.left(), self.repository.patience.silence);
        let mut data = match &mut self.body {
            None => return Err(broken("there is no answer")),
            Some(Body::Node(pieces)) => loop {
                match tokio::time::timeout(silence.min(NODE_SILENCE), pieces.next()).await {
                    Ok(Some(Ok(data))) if !data.is_empty() => break data,
                    // It lets this one wait for its turn.
                    Ok(Some(Ok(_))) if self.tries.crawls(self.at, slow) => return Err(broken("it has no time")),
                    Ok(Some(Ok(_))) => {}
                    Ok(Some(Err(why))) => return Err(broken(&shown(&why))),
                    Ok(None) => return Err(broken("its answer is too short")),
                    Err(_) => return Err(broken("nothing comes any more")),
                }
            },
            Some(Body::Registry(body)) => loop {
                match tokio::time::timeout(silence, body.frame()).await {
                    Ok(Some(Ok(frame))) => match frame.into_data() {
                        Ok(data) if !data.is_empty() => break data,
                        _ => {}
                    },
                    Ok(Some(Err(error))) => return Err(broken(&shown(&error.to_string()))),
                    Ok(None) => return Err(broken("its answer is too short")),
                    Err(_) => return Err(broken("nothing comes any more")),
                }
            },
        };
        data.truncate(left);
        Ok(data)
    }

    fn left(&self) -> usize {
        usize::try_from(self.size - self.at).unwrap_or(usize::MAX)
    }

    /// The bytes that came are not those of its digest. `Ok` when another try from its first byte on may do better: nodes that
    /// gave some of it are asked no more, and what was there before it began is not used again.
    pub(crate) fn wrong(&self) -> Result<(), Trouble> {
        self.repository.around.distrust(&self.givers);
        if !self.givers.is_empty() || self.began > 0 {
            return Ok(());
        }
        let reason = format!("`{}` hands out something else under the digest `{}`", self.source().name(), self.digest);
        Err(Trouble::new(PullErrorKind::BadContent, reason))
    }
}

/// What is still missing of a blob.
struct Rest<'a> {
    repository: &'a Repository,
    digest: String,
    size: u64,
    at: u64,
    waits: bool,
}

impl Rest<'_> {
    /// Asks for what is still missing; gives what came with the answer.
    async fn ask(&self, source: Source<'_>) -> Result<(Body, Bytes), Trouble> {
        match source {
            Source::Registry(endpoint) => {
                let (body, beyond) = self.ask_registry(endpoint).await?;
                Ok((Body::Registry(body), beyond))
            }
            Source::Node(node) => {
                let asked = self.repository.around.read(node, &self.digest, self.at, self.waits);
                let why = match tokio::time::timeout(NODE_SILENCE, asked).await {
                    Ok(Ok(pieces)) => return Ok((Body::Node(pieces), Bytes::new())),
                    Ok(Err(why)) => shown(&why),
                    Err(_) => "it does not answer".to_owned(),
                };
                let reason = format!("node {} does not give `{}`: {why}", node.name, self.digest);
                Err(Trouble::new(PullErrorKind::Unreachable, reason))
            }
        }
    }

    async fn ask_registry(&self, endpoint: &Endpoint) -> Result<(Incoming, Bytes), Trouble> {
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
}
