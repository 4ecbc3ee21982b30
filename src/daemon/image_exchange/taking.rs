//! Takes from other nodes what this one lacks.

use std::collections::BTreeMap;

use async_trait::async_trait;
use futures_util::StreamExt;
use toft_model::{ids::NodeId, node::NodeHealth, state::NodeRow};

use super::is_digest;
use crate::{
    agent::image::{Holding, Neighbour, Neighbours, Pieces, Wanted},
    consensus::{Handle, network::MemberChannel, types::Role},
    observe::chain,
    wire::blobs::{FindRequest, ReadRequest, blobs_client::BlobsClient},
};

/// The ways to other nodes.
#[async_trait]
pub(in super::super) trait Ways: Send + Sync + 'static {
    /// Those that run containers and are heard of.
    async fn nodes(&self) -> Vec<Neighbour>;

    /// A channel to one.
    fn channel(&self, node: &NodeId) -> Result<MemberChannel, String>;
}

/// The ways to the members of the cluster.
pub(in super::super) struct ClusterWays {
    pub(in super::super) state: Handle,
    pub(in super::super) node_id: NodeId,
}

#[async_trait]
impl Ways for ClusterWays {
    async fn nodes(&self) -> Vec<Neighbour> {
        let healths = match self.state.read(NodeRow::healths).await {
            Ok(healths) => healths,
            Err(error) => {
                tracing::warn!(error = chain(&error), "the other nodes could not be looked up");
                return Vec::new();
            }
        };
        let heard = |id: &NodeId| {
            matches!(healths.get(id), Some(NodeHealth::Ready | NodeHealth::Away | NodeHealth::Unreachable))
        };
        let members = self.state.status().members.into_iter().map(|status| status.member);
        members
            .filter(|member| member.role == Role::Server && member.node_id != self.node_id && heard(&member.node_id))
            .map(|member| Neighbour { id: member.node_id, name: member.name })
            .collect()
    }

    fn channel(&self, node: &NodeId) -> Result<MemberChannel, String> {
        self.state.channel_to(node).map_err(|error| error.to_string())
    }
}

/// Asks other nodes.
pub(in super::super) struct Taker<W>(pub(in super::super) W);

impl<W: Ways> Taker<W> {
    fn client(&self, node: &Neighbour) -> Result<BlobsClient<MemberChannel>, String> {
        Ok(BlobsClient::new(self.0.channel(&node.id)?))
    }
}

#[async_trait]
impl<W: Ways> Neighbours for Taker<W> {
    async fn nodes(&self) -> Vec<Neighbour> {
        self.0.nodes().await
    }

    async fn find(&self, node: &Neighbour, wanted: Wanted) -> Result<Holding, String> {
        let image = wanted.image.map(|image| image.as_str().to_owned()).unwrap_or_default();
        let request = FindRequest { image, digests: wanted.digests.clone() };
        let answer = self.client(node)?.find(request).await.map_err(|status| status.message().to_owned())?;
        let answer = answer.into_inner();
        let asked = |digest: &String| wanted.digests.contains(digest);
        let sizes: BTreeMap<_, _> = answer
            .held
            .into_iter()
            .filter(|held| asked(&held.digest))
            .map(|held| (held.digest, held.size_bytes))
            .collect();
        Ok(Holding { named: answer.named.filter(|digest| is_digest(digest)), sizes })
    }

    async fn read(&self, node: &Neighbour, digest: &str, from: u64, waits: bool) -> Result<Pieces, String> {
        let request = ReadRequest { digest: digest.to_owned(), from, waits };
        let answer = self.client(node)?.read(request).await.map_err(|status| status.message().to_owned())?;
        let pieces = answer.into_inner().map(|piece| match piece {
            Ok(piece) => Ok(piece.data.into()),
            Err(status) => Err(status.message().to_owned()),
        });
        Ok(pieces.boxed())
    }
}
