//! The other nodes, as far as images go: what they have is taken from them before a registry is asked for it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{future::join_all, stream::BoxStream};
use toft_model::{ids::NodeId, image::ImageRef, name::Name};

/// Longest wait for a node to say what it has.
const ANSWER: Duration = Duration::from_secs(1);
/// Most digests that are asked for at once.
pub const MOST_DIGESTS: usize = 512;

/// Another node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// Which.
    pub id: NodeId,
    /// What it is called.
    pub name: Name,
}

/// What a node is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// What this name stands for there.
    pub image: Option<ImageRef>,
    /// Whether it has these blobs; at most [`MOST_DIGESTS`].
    pub digests: Vec<String>,
}

/// What a node has of what it was asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holding {
    /// Digest of the manifest or index that the name stands for, if that is there.
    pub named: Option<String>,
    /// Size in bytes of each blob that is there, by digest.
    pub sizes: BTreeMap<String, u64>,
}

/// A blob as it comes; why it broke off. A piece without bytes says that it is still waited for a turn.
pub type Pieces = BoxStream<'static, Result<Bytes, String>>;

/// Asks other nodes. What they answer is not to be relied on: digests are checked by who asks.
#[async_trait]
pub trait Neighbours: Send + Sync + 'static {
    /// The nodes that can be asked now.
    async fn nodes(&self) -> Vec<Neighbour>;

    /// What a node has.
    async fn find(&self, node: &Neighbour, wanted: Wanted) -> Result<Holding, String>;

    /// A blob from the byte `from` on. A node that serves enough others refuses, or lets wait who says so.
    async fn read(&self, node: &Neighbour, digest: &str, from: u64, waits: bool) -> Result<Pieces, String>;
}

/// Who has what, as far as one pull knows.
#[derive(Default)]
struct Known {
    /// Those that answer; `None` before the first question.
    nodes: Option<Vec<Neighbour>>,
    /// Who has a blob, and of which size.
    holders: HashMap<String, Vec<(Neighbour, u64)>>,
    /// Those that gave something else than was asked for.
    liars: BTreeSet<NodeId>,
}

/// The neighbours of one pull.
pub(super) struct Around {
    neighbours: Option<Arc<dyn Neighbours>>,
    known: Mutex<Known>,
}

impl Around {
    pub(super) fn new(neighbours: Option<Arc<dyn Neighbours>>) -> Self {
        Self { neighbours, known: Mutex::default() }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks every node at the same time; who does not answer soon is not asked again in this pull.
    async fn ask(&self, wanted: Wanted) -> Vec<(Neighbour, Holding)> {
        let Some(neighbours) = &self.neighbours else { return Vec::new() };
        let known = self.known().nodes.clone();
        let nodes = match known {
            Some(nodes) => nodes,
            None => tokio::time::timeout(ANSWER, neighbours.nodes()).await.unwrap_or_default(),
        };
        let questions = nodes.iter().map(async |node| {
            let answer = tokio::time::timeout(ANSWER, neighbours.find(node, wanted.clone())).await;
            match answer.unwrap_or_else(|_| Err("it does not answer in time".to_owned())) {
                Ok(holding) => Some((node.clone(), holding)),
                Err(reason) => {
                    tracing::debug!(node = %node.name, reason, "a node did not say what it has of an image");
                    None
                }
            }
        });
        let answers: Vec<_> = join_all(questions).await.into_iter().flatten().collect();
        let mut known = self.known();
        known.nodes = Some(answers.iter().map(|(node, _)| node.clone()).collect());
        for digest in wanted.digests {
            let holders = answers.iter().filter_map(|(node, holding)| {
                let size = holding.sizes.get(&digest)?;
                Some((node.clone(), *size))
            });
            let holders = holders.collect();
            known.holders.insert(digest, holders);
        }
        answers
    }

    /// Finds out who has these blobs.
    pub(super) async fn look_for(&self, digests: impl Iterator<Item = &str>) {
        let mut new: Vec<String> = {
            let known = self.known();
            digests.filter(|digest| !known.holders.contains_key(*digest)).map(str::to_owned).collect()
        };
        new.sort();
        new.dedup();
        for digests in new.chunks(MOST_DIGESTS) {
            self.ask(Wanted { image: None, digests: digests.to_vec() }).await;
        }
    }

    /// Who has a blob, of the size that is expected if one is; another comes first for another blob.
    pub(super) async fn holders(&self, digest: &str, size: Option<u64>) -> Vec<Neighbour> {
        self.look_for([digest].into_iter()).await;
        let known = self.known();
        let holders = known.holders.get(digest).into_iter().flatten();
        let fits =
            |(node, told): &&(Neighbour, u64)| !known.liars.contains(&node.id) && size.is_none_or(|size| size == *told);
        let mut holders: Vec<_> = holders.filter(fits).map(|(node, _)| node.clone()).collect();
        if !holders.is_empty() {
            let turn = digest.bytes().map(usize::from).sum::<usize>() % holders.len();
            holders.rotate_left(turn);
        }
        holders
    }

    /// What a name stands for by the word of the nodes that have it: the digest that most of them name, and who does.
    pub(super) async fn named(&self, image: &ImageRef) -> Option<(String, Vec<Neighbour>)> {
        let answers = self.ask(Wanted { image: Some(image.clone()), digests: Vec::new() }).await;
        let mut by_digest: BTreeMap<String, Vec<Neighbour>> = BTreeMap::new();
        for (node, holding) in answers {
            if let Some(digest) = holding.named {
                by_digest.entry(digest).or_default().push(node);
            }
        }
        by_digest.into_iter().max_by_key(|(_, nodes)| nodes.len())
    }

    /// Takes no more from nodes that gave something else than was asked for.
    pub(super) fn distrust(&self, nodes: &[Neighbour]) {
        for node in nodes {
            if self.known().liars.insert(node.id) {
                tracing::warn!(node = %node.name, "a node gave a part of an image that is not what its digest says");
            }
        }
    }

    /// Asks for a blob; never called without neighbours.
    pub(super) async fn read(&self, node: &Neighbour, digest: &str, from: u64, waits: bool) -> Result<Pieces, String> {
        match &self.neighbours {
            Some(neighbours) => neighbours.read(node, digest, from, waits).await,
            None => Err("there are no other nodes".to_owned()),
        }
    }
}
