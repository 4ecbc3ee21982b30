//! The fake neighbours and the real ones, a node's service behind a connection, do the same.

use std::{net::SocketAddr, sync::Arc};

use async_trait::async_trait;
use futures_util::StreamExt;
use toft_model::{ids::NodeId, image::ImageRef};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    service::interceptor::InterceptedService,
    transport::{Channel, Endpoint, Server},
};
use uuid::Uuid;

use super::{Giver, Taker, taking::Ways};
use crate::{
    agent::{
        image::{Holding, MOST_DIGESTS, Neighbour, Neighbours, Wanted, fake::FakeNeighbours},
        runtime::{Runtime, fake::FakeRuntime},
    },
    consensus::network::{MemberChannel, Speaking},
    wire::blobs::{FindRequest, ReadRequest, blobs_client::BlobsClient},
};

fn image() -> ImageRef {
    "registry.lan/app:1".parse().unwrap()
}

fn node(number: u128) -> Neighbour {
    Neighbour { id: NodeId(Uuid::from_u128(number)), name: format!("node-{number}").parse().unwrap() }
}

/// A blob of several pieces.
fn large() -> Vec<u8> {
    (0..3_000_000_u32).map(|i| (i / 7) as u8).collect()
}

struct OneWay(Channel);

#[async_trait]
impl Ways for OneWay {
    async fn nodes(&self) -> Vec<Neighbour> {
        vec![node(1)]
    }

    fn channel(&self, node: &NodeId) -> Result<MemberChannel, String> {
        match node.0.as_u128() {
            1 => Ok(InterceptedService::new(self.0.clone(), Speaking)),
            _ => Err("it is no member of the cluster".to_owned()),
        }
    }
}

/// Serves what a runtime has.
async fn serve(runtime: &FakeRuntime) -> Channel {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    let giver = Giver::new(Arc::new(runtime.clone()) as Arc<dyn Runtime>).service();
    let serving = Server::builder().add_service(giver).serve_with_incoming(TcpListenerStream::new(listener));
    drop(tokio::spawn(serving));
    // Streams that nobody reads must not hold up the others.
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    endpoint.initial_connection_window_size(8 << 20).connect_lazy()
}

async fn read(around: &dyn Neighbours, node: &Neighbour, digest: &str, from: u64) -> Result<Vec<u8>, String> {
    let mut pieces = around.read(node, digest, from, false).await?;
    let mut bytes = Vec::new();
    while let Some(piece) = pieces.next().await {
        bytes.extend_from_slice(&piece?);
    }
    Ok(bytes)
}

/// What both do. `names` says what [`image`] stands for there.
async fn conforms(around: &dyn Neighbours, names: &str, digest: &str) {
    let (there, nowhere) = (node(1), node(2));
    assert_eq!(around.nodes().await, std::slice::from_ref(&there));
    let other = format!("sha256:{}", "0".repeat(64));
    let wanted = Wanted { image: Some(image()), digests: vec![digest.to_owned(), other.clone()] };
    let size = large().len() as u64;
    let sizes = [(digest.to_owned(), size)].into();
    assert_eq!(around.find(&there, wanted.clone()).await, Ok(Holding { named: Some(names.to_owned()), sizes }));
    let unknown = Wanted { image: Some("registry.lan/app:2".parse().unwrap()), digests: Vec::new() };
    assert_eq!(around.find(&there, unknown).await, Ok(Holding::default()));
    around.find(&nowhere, wanted).await.unwrap_err();

    assert!(read(around, &there, digest, 0).await.unwrap() == large());
    assert!(read(around, &there, digest, size - 5).await.unwrap() == large()[large().len() - 5..]);
    read(around, &there, digest, size).await.unwrap_err();
    read(around, &there, digest, u64::MAX).await.unwrap_err();
    read(around, &there, &other, 0).await.unwrap_err();
    read(around, &nowhere, digest, 0).await.unwrap_err();
}

#[tokio::test]
async fn the_fake_and_the_real_neighbours_conform() {
    let runtime = FakeRuntime::new();
    let digest = runtime.put_blob(&large());
    runtime.add_image(&image());
    let names = runtime.images().await.unwrap()[0].digest.clone();
    conforms(&Taker(OneWay(serve(&runtime).await)), &names, &digest).await;

    let fake = FakeNeighbours::default();
    fake.add(node(1), [(digest.clone(), large())], [(image().as_str().to_owned(), names.clone())]);
    conforms(&fake, &names, &digest).await;
}

#[tokio::test]
async fn few_are_served_at_a_time_and_who_waits_gets_a_turn() {
    let runtime = FakeRuntime::new();
    let digest = runtime.put_blob(&vec![7; 64 << 20]);
    let around = Taker(OneWay(serve(&runtime).await));
    let mut served = Vec::new();
    for _ in 0..4 {
        // Whoever reads nothing more keeps its place.
        let mut pieces = around.read(&node(1), &digest, 0, false).await.unwrap();
        assert!(!pieces.next().await.unwrap().unwrap().is_empty());
        served.push(pieces);
    }
    let refused = around.read(&node(1), &digest, 0, false).await.err().unwrap();
    assert!(refused.contains("serves enough others"), "{refused}");
    let mut waits = around.read(&node(1), &digest, 0, true).await.unwrap();
    assert!(waits.next().await.unwrap().unwrap().is_empty(), "a sign of life");
    served.pop();
    while waits.next().await.unwrap().unwrap().is_empty() {}
}

#[tokio::test]
async fn questions_of_strange_kinds_are_refused() {
    let channel = serve(&FakeRuntime::new()).await;
    let mut client = BlobsClient::new(channel);
    let digest = |text: &str| vec![text.to_owned()];
    let zeros = format!("sha256:{}", "0".repeat(64));
    let too_many = vec![zeros.clone(); MOST_DIGESTS + 1];
    for digests in [digest("sha256:../../etc/passwd"), digest(""), digest(&zeros.to_uppercase()), too_many] {
        let refused = client.find(FindRequest { image: String::new(), digests }).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused}");
    }
    let refused = client.find(FindRequest { image: "A B".to_owned(), digests: Vec::new() }).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    let huge = FindRequest { image: "x".repeat(1 << 20), digests: Vec::new() };
    client.find(huge).await.unwrap_err();
    let refused = client.read(ReadRequest { digest: "sha256:x/../y".to_owned(), from: 0, waits: true }).await;
    assert_eq!(refused.unwrap_err().code(), tonic::Code::InvalidArgument);
}
