//! Which node is asked, and what is known of the others for a moment.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future::join_all;
use toft_model::{
    gpu::GpuFacts,
    ids::NodeId,
    image::ImageRef,
    instance::InstanceState,
    name::Name,
    node::NodeHealth,
    pull::PullProgress,
    state::{InstanceView, NodeRow},
};
use tokio::time::Instant;

use super::Ops;
use crate::control::{
    ControlError, ErrorKind,
    node_access::{ImagePull, NodeAccess},
};

/// How long what another node said of its pulls is good for.
const GOOD: Duration = Duration::from_millis(500);
/// How long what another node said of its cards is good for; it is asked again long before while somebody looks at them.
const CARDS_GOOD: Duration = Duration::from_secs(15);
/// Time after which a node looked at its cards again.
const CARDS_LOOKED_AT: Duration = Duration::from_secs(3);
/// How long somebody who asked for a node's cards is taken to look on: pages come back for them every 15 seconds.
const CARDS_WANTED: Duration = Duration::from_secs(20);
/// How long somebody who asked for a node's pulls is taken to look on.
const WANTED: Duration = Duration::from_secs(5);
/// Longest wait for what others say of their pulls: the answer of a node that takes longer is there for the next who looks.
const PATIENCE: Duration = Duration::from_millis(50);
/// The same for who has waited already, and will not look again so soon.
pub(super) const LONG_PATIENCE: Duration = Duration::from_millis(300);
/// Most nodes that are asked at a time.
const ASKED: usize = 16;

/// What a node does not tell, and why.
#[derive(Debug, Clone)]
pub struct Away {
    /// Which node.
    pub node: Name,
    /// Why.
    pub error: ControlError,
}

/// The pulls of other nodes, as they told a moment ago. Clones share it.
#[derive(Clone, Default)]
pub(super) struct FarPulls(Arc<Mutex<BTreeMap<NodeId, Told>>>);

#[derive(Default)]
struct Told {
    name: Option<Name>,
    wanted: Option<Instant>,
    at: Option<Instant>,
    pulls: Vec<PullProgress>,
}

impl FarPulls {
    /// How far a pull is, as its node told lately.
    pub(super) fn of(&self, node: NodeId, image: &ImageRef) -> Option<PullProgress> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let told = known.get(&node).filter(|told| told.at.is_some_and(|at| at.elapsed() < WANTED))?;
        told.pulls.iter().find(|pull| pull.image == image.as_str()).cloned()
    }

    /// Notes that somebody wants to know.
    fn want(&self, node: NodeId, name: &Name) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let told = known.entry(node).or_default();
        (told.wanted, told.name) = (Some(Instant::now()), Some(name.clone()));
    }

    /// The nodes that are to be asked now.
    fn due(&self) -> Vec<(NodeId, Name)> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, told| told.wanted.is_some_and(|at| at.elapsed() < WANTED));
        let due = known.iter_mut().filter(|(_, told)| told.at.is_none_or(|at| at.elapsed() >= GOOD));
        // Whoever asks at the same time does not ask the same.
        due.take(ASKED)
            .filter_map(|(node, told)| {
                told.at = Some(Instant::now());
                Some((*node, told.name.clone()?))
            })
            .collect()
    }

    /// Notes what nodes answer, of which those are waited for that answer soon.
    async fn ask<F>(&self, asked: impl Iterator<Item = (NodeId, F)>, patience: Duration)
    where
        F: Future<Output = Result<Vec<ImagePull>, ControlError>> + Send + 'static,
    {
        let answers = asked.map(|(node, answer)| {
            let known = self.clone();
            tokio::spawn(async move {
                // After that time it is asked again.
                if let Ok(Ok(pulls)) = tokio::time::timeout(GOOD, answer).await {
                    let pulls = pulls.into_iter().filter(|pull| pull.failure.is_none()).map(|pull| pull.progress);
                    known.note(node, pulls.collect());
                }
            })
        });
        drop(tokio::time::timeout(patience, join_all(answers)).await);
    }

    fn note(&self, node: NodeId, pulls: Vec<PullProgress>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(told) = known.get_mut(&node) {
            (told.at, told.pulls) = (Some(Instant::now()), pulls);
        }
    }
}

/// The cards of other nodes, as they told a moment ago. Clones share it.
#[derive(Clone, Default)]
pub(super) struct FarCards(Arc<Mutex<BTreeMap<NodeId, ToldCards>>>);

/// What a node told of its cards.
struct ToldCards {
    name: Name,
    at: Instant,
    /// When somebody asked for it last.
    wanted: Instant,
    cards: Vec<GpuFacts>,
}

impl FarCards {
    fn known(&self) -> MutexGuard<'_, BTreeMap<NodeId, ToldCards>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a node said of its cards, if that is good still. What nobody looked at lately was not asked for again either.
    pub(super) fn of(&self, node: NodeId, name: &Name) -> Option<Vec<GpuFacts>> {
        let mut known = self.known();
        let told = known.get_mut(&node).filter(|told| told.at.elapsed() < CARDS_GOOD && told.name == *name)?;
        let fresh = told.wanted.elapsed() < CARDS_WANTED || told.at.elapsed() < CARDS_LOOKED_AT;
        told.wanted = Instant::now();
        fresh.then(|| told.cards.clone())
    }

    /// The nodes that are to be asked again, which somebody looks at.
    pub(super) fn due(&self) -> Vec<(NodeId, Name)> {
        let mut known = self.known();
        known.retain(|_, told| told.at.elapsed() < CARDS_GOOD);
        let due = known
            .iter()
            .filter(|(_, told)| told.at.elapsed() >= CARDS_LOOKED_AT && told.wanted.elapsed() < CARDS_WANTED);
        due.map(|(node, told)| (*node, told.name.clone())).collect()
    }

    /// Notes what a node said.
    pub(super) fn note(&self, node: NodeId, name: &Name, cards: &[GpuFacts]) {
        let now = Instant::now();
        let mut known = self.known();
        let wanted = known.get(&node).map_or(now, |told| told.wanted);
        known.insert(node, ToldCards { name: name.clone(), at: now, wanted, cards: cards.to_vec() });
    }
}

impl Ops {
    /// The node of that id, called `name`: this one or another.
    pub(super) fn access(&self, node: NodeId, name: &Name) -> Result<Arc<dyn NodeAccess>, ControlError> {
        if self.node.node_id() == Some(node) {
            return Ok(Arc::clone(&self.node) as _);
        }
        match &self.others {
            Some(others) => others.node(node, name),
            None => Err(ControlError::new(ErrorKind::Unavailable, format!("there is no way to node `{name}`"))),
        }
    }

    /// What every node that is there says, and who does not say anything. Nodes that are known to be lost are not waited for.
    pub(super) async fn of_all<T, F>(
        &self,
        ask: impl Fn(NodeRow, Arc<dyn NodeAccess>) -> F,
    ) -> Result<(Vec<T>, Vec<Away>), ControlError>
    where
        F: Future<Output = Result<T, ControlError>>,
    {
        let asked = self.nodes().await?.into_iter().map(|row| {
            let (name, ask) = (row.name.clone(), &ask);
            async move {
                if matches!(row.health, NodeHealth::Down | NodeHealth::Fenced) && self.node.node_id() != Some(row.id) {
                    let error = ControlError::new(ErrorKind::Unavailable, format!("node `{name}` is down"));
                    return Err(Away { node: name, error: error.hint("`toft node ls` shows how it is") });
                }
                let answer = async { ask(row.clone(), self.access(row.id, &row.name)?).await };
                answer.await.map_err(|error| Away { node: name, error })
            }
        });
        let (mut told, mut away) = (Vec::new(), Vec::new());
        for answer in join_all(asked).await {
            match answer {
                Ok(answer) => told.push(answer),
                Err(error) => away.push(error),
            }
        }
        Ok((told, away))
    }

    /// Adds to instances that are being started how far the pull of their image is, wherever that is.
    pub(super) async fn noted_all(&self, instances: Vec<&mut InstanceView>) {
        self.noted_all_within(instances, PATIENCE).await;
    }

    /// The same, for whoever waits that long.
    pub(super) async fn noted_all_within(&self, instances: Vec<&mut InstanceView>, patience: Duration) {
        let starts = |instance: &&mut InstanceView| {
            matches!(instance.state(), InstanceState::Assigned | InstanceState::Starting)
        };
        let starting: Vec<&mut InstanceView> = instances.into_iter().filter(starts).collect();
        let mut seen = BTreeSet::new();
        for instance in &starting {
            if self.node.node_id() != Some(instance.row.node_id) && seen.insert(instance.row.node_id) {
                self.far_pulls.want(instance.row.node_id, &instance.node);
            }
        }
        if !seen.is_empty() {
            self.look(patience).await;
        }
        self.noted(starting);
    }

    /// Asks the nodes for their pulls whose pulls somebody looks at.
    pub(super) async fn look_at_pulls(&self) {
        self.look(PATIENCE).await;
    }

    async fn look(&self, patience: Duration) {
        let asked = self.far_pulls.due().into_iter().filter_map(|(id, name)| {
            let node = self.access(id, &name).ok()?;
            Some((id, async move { node.image_pulls().await }))
        });
        self.far_pulls.ask(asked, patience).await;
    }

    /// Notes that somebody looks at the pulls of an instance's node, if that is another.
    pub(super) fn looked_at(&self, instance: &InstanceView) {
        if self.others.is_some() && self.node.node_id() != Some(instance.row.node_id) {
            self.far_pulls.want(instance.row.node_id, &instance.node);
        }
    }
}

#[cfg(test)]
mod tests {
    use toft_model::name::Name;
    use uuid::Uuid;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_node_that_takes_its_time_holds_nobody_up_and_its_answer_is_there_for_the_next() {
        let known = FarPulls::default();
        let image = "docker.io/library/nginx:1".parse::<ImageRef>().unwrap();
        let node = |number| NodeId(Uuid::from_u128(number));
        for number in 0..4 {
            known.want(node(number), &Name::try_from(format!("box-{number}")).unwrap());
        }
        let told = |image: &ImageRef| ImagePull {
            progress: PullProgress { image: image.as_str().to_owned(), ..PullProgress::default() },
            failure: None,
        };
        let begun = Instant::now();
        let takes_ms = [0, 49, 200, 30_000];
        let asked = known.due().into_iter().zip(takes_ms).map(|((node, _), ms)| {
            let answer = told(&image);
            (node, async move {
                tokio::time::sleep(Duration::from_millis(ms)).await;
                Ok(vec![answer])
            })
        });
        known.ask(asked, PATIENCE).await;
        assert_eq!(begun.elapsed(), PATIENCE);
        let are_known = || (0..4).map(|number| known.of(node(number), &image).is_some()).collect::<Vec<_>>();
        assert_eq!(are_known(), [true, true, false, false]);
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(are_known(), [true, true, true, false]);
        assert_eq!(known.due().len(), 0, "all were asked a moment ago");
        tokio::time::sleep(GOOD).await;
        assert_eq!(known.due().len(), 4);
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert_eq!(are_known(), [false; 4], "who was to answer after half a minute is not waited for");
    }
}
