//! Other nodes in memory, for tests of what takes images from them. They can be told to lie, to break off and to say nothing.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use toft_model::{ids::NodeId, image::ImageRef, name::Name};

use super::{Holding, Neighbour, Neighbours, Pieces, Wanted};

/// Bytes given at once.
const PIECE: usize = 64 << 10;

/// How a node misbehaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Whim {
    /// Not at all.
    #[default]
    None,
    /// It gives other bytes, as many as it should.
    Lies,
    /// It breaks off after so many bytes, each time.
    BreaksAfter(usize),
    /// It gives nothing, and does not say so.
    Silent,
    /// It does not even say what it has.
    Hangs,
    /// It serves others, unless one waits.
    Busy,
}

#[derive(Debug, Default)]
struct Shelf {
    blobs: HashMap<String, Bytes>,
    names: HashMap<String, String>,
    whim: Whim,
    /// What was read of it, and from where.
    asked: Vec<(String, u64)>,
}

/// Some nodes.
#[derive(Debug, Clone, Default)]
pub struct FakeNeighbours(Arc<Mutex<BTreeMap<NodeId, (Name, Shelf)>>>);

impl FakeNeighbours {
    fn nodes(&self) -> MutexGuard<'_, BTreeMap<NodeId, (Name, Shelf)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a node that has these blobs, by digest, and knows these names, by reference.
    pub fn add(
        &self,
        node: Neighbour,
        blobs: impl IntoIterator<Item = (String, Vec<u8>)>,
        names: impl IntoIterator<Item = (String, String)>,
    ) {
        let blobs = blobs.into_iter().map(|(digest, bytes)| (digest, Bytes::from(bytes))).collect();
        let shelf = Shelf { blobs, names: names.into_iter().collect(), ..Shelf::default() };
        self.nodes().insert(node.id, (node.name, shelf));
    }

    /// From now on a node does so.
    pub fn misbehave(&self, node: NodeId, whim: Whim) {
        if let Some((_, shelf)) = self.nodes().get_mut(&node) {
            shelf.whim = whim;
        }
    }

    /// What was read of a node so far: digests, and from which byte on.
    pub fn asked(&self, node: NodeId) -> Vec<(String, u64)> {
        self.nodes().get(&node).map(|(_, shelf)| shelf.asked.clone()).unwrap_or_default()
    }

    fn holding(&self, node: &Neighbour, wanted: &Wanted) -> Option<Result<Holding, String>> {
        let nodes = self.nodes();
        let Some((_, shelf)) = nodes.get(&node.id) else { return Some(Err("there is no such node".to_owned())) };
        if shelf.whim == Whim::Hangs {
            return None;
        }
        let named = wanted.image.as_ref().and_then(|image: &ImageRef| shelf.names.get(image.as_str()).cloned());
        let size = |digest: &String| Some((digest.clone(), shelf.blobs.get(digest)?.len() as u64));
        Some(Ok(Holding { named, sizes: wanted.digests.iter().filter_map(size).collect() }))
    }
}

#[async_trait]
impl Neighbours for FakeNeighbours {
    async fn nodes(&self) -> Vec<Neighbour> {
        self.nodes().iter().map(|(id, (name, _))| Neighbour { id: *id, name: name.clone() }).collect()
    }

    async fn find(&self, node: &Neighbour, wanted: Wanted) -> Result<Holding, String> {
        match self.holding(node, &wanted) {
            Some(answer) => answer,
            None => std::future::pending().await,
        }
    }

    async fn read(&self, node: &Neighbour, digest: &str, from: u64, waits: bool) -> Result<Pieces, String> {
        let (bytes, whim) = {
            let mut nodes = self.nodes();
            let (_, shelf) = nodes.get_mut(&node.id).ok_or("there is no such node")?;
            shelf.asked.push((digest.to_owned(), from));
            (shelf.blobs.get(digest).cloned().ok_or("it is not here")?, shelf.whim)
        };
        let from = usize::try_from(from).ok().filter(|from| *from < bytes.len());
        let mut bytes = bytes.slice(from.ok_or("it has not so many bytes")?..);
        let mut end = None;
        match whim {
            Whim::None | Whim::Hangs => {}
            Whim::Silent => return Ok(stream::pending().boxed()),
            Whim::Busy if waits => {}
            Whim::Busy => return Err("it serves enough others now".to_owned()),
            Whim::Lies => bytes = bytes.iter().map(|byte| byte ^ 1).collect(),
            Whim::BreaksAfter(most) if bytes.len() <= most => {}
            Whim::BreaksAfter(most) => {
                bytes.truncate(most);
                end = Some(Err("the line broke".to_owned()));
            }
        }
        let pieces = (0..bytes.len().div_ceil(PIECE))
            .map(|i| Ok(bytes.slice(i * PIECE..bytes.len().min((i + 1) * PIECE))))
            .collect::<Vec<_>>();
        Ok(stream::iter(pieces.into_iter().chain(end)).boxed())
    }
}
