//! A recorded workload as numbers.

use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;

use crate::schedule::place::{Ask, Card, Fleet, Gpus, Kind, Kinds, Mix, Node, Policy, Random};

/// How many pods a node takes, as in the published simulator.
const SLOTS: u32 = 1001;

/// The part of the pods that the mix covers, in hundredths.
const COVERED: u64 = 95;

/// A node of a trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceNode {
    /// Thousandths of a core.
    pub cpu_millis: u32,
    /// Memory.
    pub memory_bytes: u64,
    /// Its GPUs.
    pub gpus: u16,
    /// Their model.
    pub model: String,
}

/// A pod of a trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TracePod {
    /// Thousandths of a core.
    pub cpu_millis: u32,
    /// Memory.
    pub memory_bytes: u64,
    /// How many GPUs.
    pub gpus: u16,
    /// Thousandths of each; 1000 when there are several, 0 when there is none.
    pub gpu_millis: u32,
    /// Models that may serve, with `|` between them; any when empty.
    pub models: String,
}

/// Why something is no trace.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum TraceError {
    /// There is nothing to place on.
    #[error("no node has a GPU")]
    NoGpus,
    /// There is nothing to place.
    #[error("no pod asks for a GPU")]
    NoPods,
    /// More than the engine can tell apart.
    #[error("there are {0} GPU models; at most {limit} can be told apart", limit = Kind::LIMIT)]
    Models(usize),
    /// A pod's numbers contradict each other.
    #[error("pod {pod}: {gpus} GPUs with {gpu_millis} thousandths each: one GPU can be shared, several are whole")]
    Gpus {
        /// From 0.
        pod: usize,
        /// How many.
        gpus: u16,
        /// Of each.
        gpu_millis: u32,
    },
}

/// Nodes and pods, translated.
#[derive(Debug, Clone)]
pub struct Trace {
    nodes: Vec<Node>,
    asks: Vec<Ask>,
    mix: Mix,
    classes: (usize, usize),
    gpu_millis: u64,
}

impl Trace {
    /// From what was recorded.
    pub fn new(nodes: &[TraceNode], pods: &[TracePod]) -> Result<Self, TraceError> {
        let models: BTreeSet<&str> = nodes
            .iter()
            .map(|node| node.model.as_str())
            .chain(pods.iter().flat_map(|pod| pod.models.split('|')))
            .filter(|model| !model.is_empty())
            .collect();
        if models.len() >= Kind::LIMIT {
            return Err(TraceError::Models(models.len()));
        }
        // The first kind is that of nodes which name no model.
        let named = models.into_iter().enumerate().filter_map(|(i, model)| Some((model, Kind::new(i + 1)?)));
        let kinds: BTreeMap<&str, Kind> = named.chain(Kind::new(0).map(|kind| ("", kind))).collect();
        let nodes: Vec<Node> =
            nodes.iter().filter_map(|node| Some(idle(node, *kinds.get(node.model.as_str())?))).collect();
        let asks = pods.iter().enumerate().map(|(i, pod)| ask(i, pod, &kinds)).collect::<Result<Vec<_>, _>>()?;
        let gpu_millis = nodes.iter().map(|node| node.cards.len() as u64 * 1000).sum();
        if gpu_millis == 0 {
            return Err(TraceError::NoGpus);
        }
        if asks.iter().all(|ask| ask.gpus == Gpus::None) {
            return Err(TraceError::NoPods);
        }
        let (mix, classes) = mix(pods, &asks);
        Ok(Self { nodes, asks, mix, classes, gpu_millis })
    }

    /// The target workload: the most frequent classes of pods, which together are 95 in a hundred of them.
    pub fn mix(&self) -> &Mix {
        &self.mix
    }

    /// How many classes of pods there are, and how many are in the mix.
    pub fn classes(&self) -> (usize, usize) {
        self.classes
    }

    /// Thousandths of all GPUs.
    pub fn gpu_millis(&self) -> u64 {
        self.gpu_millis
    }

    /// The pods' requests, as recorded.
    pub fn asks(&self) -> &[Ask] {
        &self.asks
    }

    /// The requests of one run: all in a random order, then others drawn from them, until `percent` of all
    /// GPUs are asked for.
    pub(super) fn arrivals(&self, percent: u32, random: &mut Random) -> Vec<Ask> {
        let mut pods = self.asks.clone();
        random.shuffle(&mut pods);
        let until = self.gpu_millis * u64::from(percent);
        let (mut arrivals, mut asked) = (Vec::new(), 0);
        let mut left = pods.into_iter();
        while asked * 100 < until {
            let Some(ask) = left.next().or_else(|| self.asks.get(random.below(self.asks.len())).copied()) else {
                break;
            };
            asked += gpu_millis(&ask);
            arrivals.push(ask);
        }
        arrivals
    }

    /// The nodes without pods, in a random order of precedence.
    pub(super) fn fleet(&self, policy: Policy, random: &mut Random) -> Fleet {
        let mut nodes = self.nodes.clone();
        random.shuffle(&mut nodes);
        let mut fleet = Fleet::new(policy, &self.mix, random.bits());
        for node in nodes {
            fleet.add(node);
        }
        fleet
    }
}

/// Thousandths of GPUs that a request asks for.
pub(super) fn gpu_millis(ask: &Ask) -> u64 {
    match ask.gpus {
        Gpus::None => 0,
        Gpus::Share(millis) => millis.into(),
        Gpus::Whole(count) => u64::from(count) * 1000,
        // No trace has it.
        Gpus::All => 0,
    }
}

fn idle(node: &TraceNode, kind: Kind) -> Node {
    let cards = (0..node.gpus).map(|_| Card::idle(kind, 1000)).collect();
    Node::idle(node.cpu_millis, node.memory_bytes, SLOTS, cards)
}

fn ask(i: usize, pod: &TracePod, kinds: &BTreeMap<&str, Kind>) -> Result<Ask, TraceError> {
    let gpus = match (pod.gpus, pod.gpu_millis) {
        (0, 0) => Gpus::None,
        (1, millis @ 1..1000) => Gpus::Share(millis),
        (count @ 1.., 1000) => Gpus::Whole(count),
        (gpus, gpu_millis) => return Err(TraceError::Gpus { pod: i, gpus, gpu_millis }),
    };
    let named = pod.models.split('|').filter(|model| !model.is_empty());
    let allowed =
        if pod.models.is_empty() { Kinds::ANY } else { named.filter_map(|model| kinds.get(model).copied()).collect() };
    Ok(Ask { cpu_millis: pod.cpu_millis, memory_bytes: pod.memory_bytes, gpus, kinds: allowed })
}

/// The mix, and how many classes there are and are taken. A class is CPU, thousandths, GPUs and the models as written.
fn mix(pods: &[TracePod], asks: &[Ask]) -> (Mix, (usize, usize)) {
    let mut counts: BTreeMap<(u32, u32, u16, &str), (u32, Ask)> = BTreeMap::new();
    for (pod, ask) in pods.iter().zip(asks) {
        let class = (pod.cpu_millis, pod.gpu_millis, pod.gpus, pod.models.as_str());
        let typical = Ask { memory_bytes: 0, ..*ask };
        counts.entry(class).or_insert((0, typical)).0 += 1;
    }
    let mut classes: Vec<_> = counts.into_iter().collect();
    classes.sort_by(|(a, (many, _)), (b, (few, _))| few.cmp(many).then_with(|| b.cmp(a)));
    let enough = pods.len() as u64 * COVERED;
    let (mut covered, mut taken) = (0, Vec::new());
    for (_, (count, ask)) in &classes {
        if covered * 100 >= enough {
            break;
        }
        covered += u64::from(*count);
        taken.push((*ask, *count));
    }
    let numbers = (classes.len(), taken.len());
    (Mix::new(taken), numbers)
}
