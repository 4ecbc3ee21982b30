//! Images from other nodes that misbehave, into a real containerd.

use std::{sync::Arc, time::Duration};

use axum::{http::StatusCode, response::IntoResponse};
use serde_json::Value;
use toft::agent::image::{
    Neighbour, PullErrorKind, Registries, Settings, TagWord,
    fake::{FakeNeighbours, Whim},
};
use toft::agent::runtime::Runtime;
use toft_model::{ids::NodeId, image::ImageRef, pull::LayerState};

use crate::{
    harness::{
        containerd::{Connected, Lab},
        image::{Layout, digest, here},
        registry::OwnRegistry,
    },
    image_pull::{Node, bottom, layered, nobody, node_with, noise, quick, runs},
};

/// Bytes of the large layer.
const LARGE: usize = 3 << 20;

fn neighbour(name: &str) -> Neighbour {
    Neighbour { id: NodeId(uuid::Uuid::now_v7()), name: name.parse().unwrap() }
}

/// A registry with the image `app:1`, two other nodes that have it too, and a node that has not.
struct Scene {
    lab: Lab,
    runtime: Connected,
    registry: OwnRegistry,
    around: FakeNeighbours,
    beta: Neighbour,
    gamma: Neighbour,
    name: String,
    target: Value,
    layer: String,
    node: Node,
}

async fn scene(settings: Settings) -> Scene {
    let lab = Lab::start().await;
    let runtime = lab.connect().await;
    let registry = OwnRegistry::start().await;
    let name = format!("{}/app:1", registry.address);
    let mut layout = Layout::new();
    let large = noise("large", LARGE);
    let target = layered(&mut layout, here(), &[bottom(), large.clone()]);
    registry.put(&layout, &target, "1");
    let (around, beta, gamma) = (FakeNeighbours::default(), neighbour("beta"), neighbour("gamma"));
    for node in [&beta, &gamma] {
        let blobs = layout
            .blobs
            .iter()
            .map(|(path, bytes)| (path.trim_start_matches("blobs/").replace('/', ":"), bytes.clone()));
        let names = [(name.clone(), target["digest"].as_str().unwrap().to_owned())];
        around.add(node.clone(), blobs, names);
    }
    let registries = Registries::new(settings, nobody()).with_neighbours(Arc::new(around.clone()));
    let node = node_with(&runtime, registries);
    Scene { runtime, lab, registry, around, beta, gamma, name, target, layer: digest(&large.1), node }
}

impl Scene {
    fn image(&self) -> ImageRef {
        self.name.parse().unwrap()
    }

    /// Blobs asked of the registry since this was called last, with ranges.
    fn of_registry(&self) -> Vec<String> {
        self.registry.asked().into_iter().filter(|asked| asked.contains("/blobs/")).collect()
    }

    fn of(&self, node: &Neighbour) -> Vec<u64> {
        let asked = self.around.asked(node.id).into_iter();
        asked.filter(|(digest, _)| *digest == self.layer).map(|(_, from)| from).collect()
    }

    async fn pulls_and_runs(&self) {
        let image = self.node.pulls.pull(&self.image(), TagWord::RegistryOrNode).await.unwrap();
        assert_eq!(image.digest, self.target["digest"].as_str().unwrap());
        runs(&self.lab, &self.runtime.runtime, &self.name).await;
    }

    async fn forgets(&self) {
        assert!(self.runtime.runtime.remove_image(&self.image()).await.unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_has_comes_from_it_and_the_registry_is_asked_for_the_tag_alone() {
    let s = scene(quick()).await;
    let mut status = s.node.pulls.begin(&s.image(), TagWord::RegistryOrNode).unwrap();
    let of_node = status.wait_for(|status| {
        status.end.is_some() || status.progress.layers.get(1).is_some_and(|layer| layer.from.is_some())
    });
    let of_node = of_node.await.unwrap().progress.layers[1].from.clone();
    assert!(of_node.as_deref().is_some_and(|name| ["beta", "gamma"].contains(&name)), "{of_node:?}");
    s.pulls_and_runs().await;
    let asked = s.registry.asked();
    assert!(asked.iter().all(|path| path.ends_with("/v2/") || path.ends_with("/manifests/1")), "{asked:?}");

    // A tag that has moved is what the registry says, and what is new comes from there.
    let mut layout = Layout::new();
    let target = layered(&mut layout, here(), &[bottom(), noise("new", 1000)]);
    s.registry.put(&layout, &target, "1");
    assert_eq!(s.node.pull(&s.name).await.unwrap().digest, target["digest"].as_str().unwrap());
    assert_eq!(s.of_registry().len(), 2, "a config and a layer");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_lies_is_found_out_and_asked_no_more() {
    let s = scene(quick()).await;
    for node in [&s.beta, &s.gamma] {
        s.around.misbehave(node.id, Whim::Lies);
    }
    s.pulls_and_runs().await;
    assert!(s.of_registry().iter().any(|asked| asked.ends_with(&s.layer)));
    s.forgets().await;

    // Without a registry the other node goes on, and of the liar nothing stays.
    s.around.misbehave(s.gamma.id, Whim::None);
    s.registry.misbehave(|_, _| Some(StatusCode::BAD_GATEWAY.into_response()));
    s.pulls_and_runs().await;
    s.forgets().await;
    s.around.misbehave(s.gamma.id, Whim::Lies);
    s.node.refuses(&s.name, PullErrorKind::Busy, "502").await;
    assert!(s.runtime.runtime.images().await.unwrap().is_empty());
    s.registry.behave();
    s.pulls_and_runs().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_breaks_off_stalls_or_hangs_is_passed_over_and_nothing_comes_twice() {
    let mut settings = quick();
    settings.patience.silence = Duration::from_secs(1);
    let s = scene(settings).await;
    for node in [&s.beta, &s.gamma] {
        s.around.misbehave(node.id, Whim::BreaksAfter(1 << 20));
    }
    s.pulls_and_runs().await;
    assert_eq!([s.of(&s.beta), s.of(&s.gamma)].concat().into_iter().max(), Some(1 << 20));
    let asked = s.of_registry();
    let ranges: Vec<_> = asked.iter().filter(|asked| asked.contains(&s.layer)).collect();
    assert!(ranges.len() == 1 && ranges[0].ends_with("bytes=2097152-"), "{ranges:?}");
    s.forgets().await;

    // With the registry gone they are asked again from where they broke off.
    s.registry.misbehave(|_, _| Some(StatusCode::BAD_GATEWAY.into_response()));
    s.pulls_and_runs().await;
    s.forgets().await;
    s.around.misbehave(s.beta.id, Whim::Silent);
    s.around.misbehave(s.gamma.id, Whim::None);
    s.pulls_and_runs().await;
    s.forgets().await;
    s.around.misbehave(s.beta.id, Whim::Hangs);
    s.around.misbehave(s.gamma.id, Whim::Busy);
    s.pulls_and_runs().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_says_what_a_tag_stands_for_when_the_registry_does_not() {
    let s = scene(quick()).await;
    for status in [StatusCode::UNAUTHORIZED, StatusCode::NOT_FOUND, StatusCode::BAD_GATEWAY] {
        // As after a changed password, for an image that was never pushed, and when it is out of order.
        s.registry.misbehave(move |path, _| (path != "/v2/").then(|| status.into_response()));
        let refused = s.node.pulls.pull(&s.image(), TagWord::Registry).await.unwrap_err();
        assert_ne!(refused.kind, PullErrorKind::BadContent, "{refused}");
        let mut pull = s.node.pulls.begin(&s.image(), TagWord::RegistryOrNode).unwrap();
        let ended = pull.wait_for(|status| status.end.is_some()).await.unwrap().clone();
        ended.end.unwrap().unwrap();
        assert!(ended.progress.by_word_of.is_some(), "{:?}", ended.progress);
        assert!(ended.progress.layers.iter().all(|layer| layer.state == LayerState::Done));
        runs(&s.lab, &s.runtime.runtime, &s.name).await;
        // What it stands for here already is not replaced by what others have.
        s.node.pull(&s.name).await.unwrap_err();
        s.forgets().await;
    }
    // By digest nobody need say anything.
    let (repository, _) = s.name.rsplit_once(':').unwrap();
    s.node.pull(&format!("{repository}@{}", s.target["digest"].as_str().unwrap())).await.unwrap();
}
