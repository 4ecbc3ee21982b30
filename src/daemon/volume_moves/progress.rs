//! How far volumes are that move to this node, and asking another how far those are that move there.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use toft_model::{ids::NodeId, name::Name};

use crate::{
    consensus::Handle,
    control::node_access::volumes::{MoveProgress, MoveStep},
    wire::volume_moves::{ProgressAnswer, ProgressRequest, volume_moves_client::VolumeMovesClient},
};

/// Longest wait for another node to say how far it is.
const ANSWER: Duration = Duration::from_secs(1);
/// Time over which the rate is counted.
const LATELY: Duration = Duration::from_secs(3);

struct One {
    progress: MoveProgress,
    /// When the rate began to be counted, and the bytes there were then.
    since: (Instant, u64),
}

/// What is under way on this node.
#[derive(Clone, Default)]
pub(in super::super) struct Progresses(Arc<Mutex<BTreeMap<Name, One>>>);

impl Progresses {
    fn all(&self) -> MutexGuard<'_, BTreeMap<Name, One>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How far a volume is; `None` when it does not move to this node.
    pub(in super::super) fn of(&self, name: &Name) -> Option<MoveProgress> {
        self.all().get(name).map(|one| one.progress.clone())
    }

    /// A step begins.
    pub(super) fn begin(&self, name: &Name, step: MoveStep, size_bytes: u64) {
        let progress = MoveProgress { step, done_bytes: 0, size_bytes, rate: 0, trouble: None };
        self.all().insert(name.clone(), One { progress, since: (Instant::now(), 0) });
    }

    /// It went on. `came` counts what the rate is made of.
    pub(super) fn went_on(&self, name: &Name, done_bytes: u64, came: u64) {
        if let Some(one) = self.all().get_mut(name) {
            one.progress.done_bytes = done_bytes;
            one.progress.size_bytes = one.progress.size_bytes.max(done_bytes);
            let (since, before) = one.since;
            let passed = since.elapsed();
            if passed >= LATELY {
                one.progress.rate = (came.saturating_sub(before) as f64 / passed.as_secs_f64()) as u64;
                one.since = (Instant::now(), came);
            }
        }
    }

    /// Something keeps it from going on.
    pub(super) fn stuck(&self, name: &Name, trouble: String) {
        if let Some(one) = self.all().get_mut(name) {
            (one.progress.trouble, one.progress.rate) = (Some(trouble), 0);
        }
    }

    pub(super) fn forget(&self, name: &Name) {
        self.all().remove(name);
    }
}

/// Asks the node that a volume moves to how far it is.
pub(in super::super) async fn asked(state: &Handle, to: NodeId, name: &Name) -> Option<MoveProgress> {
    let mut client = VolumeMovesClient::new(state.channel_to(&to).ok()?);
    let question = client.progress(ProgressRequest { name: name.to_string() });
    let answer = tokio::time::timeout(ANSWER, question).await.ok()?.ok()?.into_inner();
    of_wire(answer)
}

fn of_wire(answer: ProgressAnswer) -> Option<MoveProgress> {
    let ProgressAnswer { step, done_bytes, size_bytes, rate, trouble } = answer;
    let trouble: String = trouble.chars().filter(|c| !c.is_control()).take(300).collect();
    let trouble = Some(trouble).filter(|text| !text.is_empty());
    Some(MoveProgress { step: MoveStep::named(&step)?, done_bytes, size_bytes, rate, trouble })
}

pub(super) fn to_wire(progress: MoveProgress) -> ProgressAnswer {
    let MoveProgress { step, done_bytes, size_bytes, rate, trouble } = progress;
    let trouble = trouble.unwrap_or_default();
    ProgressAnswer { step: step.as_str().to_owned(), done_bytes, size_bytes, rate, trouble }
}
