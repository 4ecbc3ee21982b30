//! Why instances are where they are, why not elsewhere, and what would make one more fit. Made from the present state;
//! nothing of it is kept.

use serde::{Deserialize, Serialize};

use super::{
    board::{Ask, Board, Resident},
    expression,
    feasible::serves,
    filter::{Place, obstacles},
    obstacle::Obstacle,
    policy::Policy,
    preempt::victims,
    score::{self, Field, Points},
    snapshot::Snapshot,
};
use crate::{
    ids::InstanceId,
    instance::Desired,
    name::Name,
    state::{InstanceRow, WorkloadRow},
    workload::Rollout,
};

/// Most verdicts that one explanation asks for; each takes microseconds.
const MOST_VERDICTS: usize = 50_000;

/// Why a node does not take an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Refused {
    /// The filter that says no: `node`, `availability`, `taints`, `constraints`, `volumes`, `memory`, `isolation`, `apart`,
    /// `cpu`, `gpus`, `network`, `ports`.
    pub filter: String,
    /// Why, with its numbers.
    pub message: String,
    /// What would change that.
    pub remedy: String,
}

/// A node as a place for one instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct NodeVerdict {
    /// The node.
    pub node: String,
    /// Its points, when it can take the instance; the node with the most is taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
    /// What the points are made of.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub points: Vec<Points>,
    /// Everything that keeps the instance off.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<Refused>,
}

/// An instance, and how its node compares with the others, were it placed now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct InstanceVerdict {
    /// The instance.
    pub instance: String,
    /// Its node.
    pub node: String,
    /// Whether it shall go.
    pub leaving: bool,
    /// Whether it was given up because its node is lost.
    #[serde(default, skip_serializing_if = "crate::workload::is_default")]
    pub given_up: bool,
    /// Whether it was made from an earlier specification, and waits for its successor.
    #[serde(default, skip_serializing_if = "crate::workload::is_default")]
    pub outdated: bool,
    /// Its node's verdict, as if it was not there.
    pub verdict: NodeVerdict,
    /// The node to which it is to be moved by order of a user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moves_to: Option<String>,
    /// The node that would be taken now, when it is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub better: Option<String>,
}

/// Why a workload's instances are where they are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Explanation {
    /// The workload.
    pub workload: String,
    /// Its priority.
    pub priority: u32,
    /// Copies that are wanted.
    pub wanted: u32,
    /// Its generation, which counts its specifications.
    pub generation: u64,
    /// How far that specification has reached its instances.
    pub rollout: Rollout,
    /// The cluster's policy.
    pub policy: Policy,
    /// Why copies wait for a place, as the scheduler said last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<String>,
    /// Its instances; of very many in a very large cluster the first.
    pub instances: Vec<InstanceVerdict>,
    /// Instances that are not told of.
    #[serde(default, skip_serializing_if = "crate::workload::is_default")]
    pub more_instances: usize,
    /// Every node as a place for one more copy, the best first, then those that refuse by name.
    pub nodes: Vec<NodeVerdict>,
    /// Who would make room for one more copy when no node takes it: instances of a lower priority.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub would_make_room: Vec<String>,
    /// What is wrong with the cluster's expression for some node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expression_fails: Option<String>,
}

/// Explains the workload of that name; `None` when there is none.
pub fn explain(snapshot: &Snapshot, name: &Name) -> Option<Explanation> {
    let workload = snapshot.workloads.iter().find(|workload| workload.spec.name == *name)?;
    let environment = expression::environment();
    let expression = snapshot.placement.expression.as_deref();
    let expression = expression.and_then(|text| environment.compile_expression(text).ok());
    let board = Board::of(snapshot);
    let own: Vec<&InstanceRow> = snapshot.instances.iter().filter(|one| one.workload_id == workload.id).collect();
    let free = (0..workload.spec.replicas).find(|ordinal| own.iter().all(|one| one.ordinal != *ordinal));
    let mut eye = Eye { board: &board, workload, expression: expression.as_ref(), failure: None };
    let (nodes, ordinal) = (eye.nodes(free.unwrap_or(workload.spec.replicas), None), own.iter());
    let most = (MOST_VERDICTS / board.nodes.len().max(1)).max(1);
    let instances = ordinal.take(most).map(|instance| eye.instance(instance)).collect();
    let fits = nodes.iter().any(|node| node.score.is_some());
    let room = if fits { None } else { victims(Ask::of(workload), &board) };
    let would_make_room = room.map_or_else(Vec::new, |room| {
        let residents = &board.seats[room.at].residents;
        room.residents
            .iter()
            .map(|who| format!("{} on {}", board.name_of(&residents[*who]), board.nodes[room.at].name))
            .collect()
    });
    Some(Explanation {
        workload: name.to_string(),
        priority: workload.spec.placement.priority,
        wanted: workload.spec.replicas,
        generation: workload.generation,
        rollout: workload.rollout.clone(),
        policy: snapshot.placement.policy,
        pending: workload.pending.clone(),
        instances,
        more_instances: own.len().saturating_sub(most),
        nodes,
        would_make_room,
        expression_fails: eye.failure,
    })
}

struct Eye<'b, 'a, 'e> {
    board: &'b Board,
    workload: &'a WorkloadRow,
    expression: Option<&'e minijinja::Expression<'e, 'e>>,
    failure: Option<String>,
}

impl Eye<'_, '_, '_> {
    /// Every node as a place for a copy, as if `without` was not there.
    fn nodes(&mut self, ordinal: u32, without: Option<InstanceId>) -> Vec<NodeVerdict> {
        let (ask, board) = (Ask::of(self.workload), self.board);
        let is_without = |resident: &Resident| without.is_some() && resident.instance == without;
        let claims: Vec<_> = (0..board.nodes.len())
            .map(|at| match board.seats[at].residents.iter().any(is_without) {
                true => Some(board.claims_of(at, |resident| !is_without(resident))),
                false => None,
            })
            .collect();
        let places: Vec<Place<'_>> = (0..board.nodes.len())
            .map(|at| {
                let now = Place::now(board, at);
                claims[at].as_ref().map_or(now, |claims| now.beside(claims))
            })
            .collect();
        let refused: Vec<Vec<Obstacle>> = places.iter().map(|place| obstacles(ask, *place, true)).collect();
        let feasible = places.iter().zip(&refused).filter(|(_, refused)| refused.is_empty()).map(|(place, _)| *place);
        let field = Field::of(ask, board, feasible);
        let mut verdicts: Vec<(i64, usize, NodeVerdict)> = Vec::with_capacity(places.len());
        for (place, refused) in places.iter().zip(&refused) {
            let (node, name) = (place.node.name.to_string(), &self.workload.spec.name);
            if refused.is_empty() {
                let (points, failure) = score::points(ask, ordinal, *place, &field, self.expression);
                self.failure = self.failure.take().or(failure);
                let total = score::total(&points);
                let verdict = NodeVerdict { node, score: Some(total as f64 / 1e6), points, refused: Vec::new() };
                verdicts.push((total, place.claims.instances(), verdict));
            } else {
                let refused = refused.iter().map(|why| Refused {
                    filter: why.filter().to_owned(),
                    message: why.to_string(),
                    remedy: why.remedy(name, &place.node.name),
                });
                let verdict = NodeVerdict { node, score: None, points: Vec::new(), refused: refused.collect() };
                verdicts.push((i64::MIN, 0, verdict));
            }
        }
        // The same order in which one is chosen; those that refuse are by name.
        let id = |verdict: &NodeVerdict| {
            let name = verdict.node.parse().ok()?;
            board.named(&name).map(|at| board.nodes[at].id)
        };
        verdicts.sort_by_cached_key(|(total, instances, verdict)| {
            let refuses = verdict.score.is_none().then(|| verdict.node.clone());
            (std::cmp::Reverse(*total), *instances, verdict.score.and_then(|_| id(verdict)), refuses)
        });
        verdicts.into_iter().map(|(.., verdict)| verdict).collect()
    }

    fn is_outdated(&self, instance: &InstanceRow) -> bool {
        let node = self.board.position(instance.node_id).map(|at| &self.board.nodes[at]);
        instance.desired != Desired::Removed
            && node.is_some_and(|node| !serves(&instance.container, &self.workload.spec, node))
    }

    fn instance(&mut self, instance: &InstanceRow) -> InstanceVerdict {
        let nodes = self.nodes(instance.ordinal, Some(instance.id));
        let here = self.board.position(instance.node_id).map(|at| self.board.nodes[at].name.to_string());
        let here = here.unwrap_or_default();
        let best = nodes.first().filter(|best| best.score.is_some() && best.node != here).map(|best| best.node.clone());
        let verdict = nodes.into_iter().find(|node| node.node == here);
        InstanceVerdict {
            instance: format!("{}-{}", self.workload.spec.name, instance.ordinal),
            leaving: instance.desired == Desired::Removed,
            given_up: instance.desired == Desired::Removed
                && self.board.position(instance.node_id).is_some_and(|at| self.board.nodes[at].health.is_down()),
            outdated: self.is_outdated(instance),
            moves_to: instance.moves_to.map(|order| {
                let to = self.board.position(order.node_id).map(|at| self.board.nodes[at].name.to_string());
                to.unwrap_or_else(|| "a node that is not known".to_owned())
            }),
            verdict: verdict.unwrap_or(NodeVerdict {
                node: here.clone(),
                score: None,
                points: Vec::new(),
                refused: Vec::new(),
            }),
            node: here,
            better: best,
        }
    }
}
