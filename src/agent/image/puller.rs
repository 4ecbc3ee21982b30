//! Pulls what it is asked to, each image once at a time however many ask, and tells how far it is.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use toft_model::{
    image::ImageRef,
    name::Name,
    pull::{LayerProgress, LayerState, PullProgress},
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::{PullError, PullErrorKind, Registries, TagWord, Trouble};
use crate::agent::runtime::{Image, Runtime};
use crate::observe::chain;

/// Images pulled at once.
const AT_ONCE: usize = 3;
/// Images that wait for their turn.
const MOST_WAITING: usize = 256;
/// Pulls that failed and are told of still.
const MOST_FAILED: usize = 8;
/// For how long they are.
const FAILED_FOR: Duration = Duration::from_secs(15 * 60);

/// Where a pull stands, and how it ended when it did.
#[derive(Debug, Clone, Default)]
pub struct PullStatus {
    /// How far it is.
    pub progress: PullProgress,
    /// How it ended.
    pub end: Option<Result<Image, PullError>>,
}

/// Takes note of how far a pull is.
pub struct PullReporter(watch::Sender<PullStatus>);

impl PullReporter {
    /// The layers became known.
    pub fn layers(&self, layers: impl Iterator<Item = (String, u64)>) {
        let waiting = |(digest, size_bytes)| LayerProgress {
            digest,
            size_bytes,
            done_bytes: 0,
            state: LayerState::Waiting,
            from: None,
        };
        let layers = layers.map(waiting).collect();
        self.0.send_modify(|status| status.progress.layers = layers);
    }

    /// Another node said what the image's tag stands for.
    pub fn by_word_of(&self, node: &Name) {
        self.0.send_modify(|status| status.progress.by_word_of = Some(node.to_string()));
    }

    /// A layer comes from a node, or from a registry.
    pub fn from(&self, number: usize, node: Option<&Name>) {
        self.0.send_if_modified(|status| {
            let Some(layer) = status.progress.layers.get_mut(number) else { return false };
            let changed = layer.from.as_deref() != node.map(Name::as_str);
            layer.from = node.map(Name::to_string);
            changed
        });
    }

    /// A layer went on.
    pub fn layer(&self, number: usize, state: LayerState, done_bytes: u64) {
        self.0.send_modify(|status| {
            if let Some(layer) = status.progress.layers.get_mut(number) {
                (layer.state, layer.done_bytes) = (state, done_bytes.min(layer.size_bytes));
            }
        });
    }
}

/// A pull that failed a short while ago.
#[derive(Debug, Clone)]
pub struct FailedPull {
    /// What was pulled.
    pub image: ImageRef,
    /// Why it failed.
    pub error: PullError,
    /// When, in milliseconds since 1970.
    pub at_ms: i64,
}

/// What is pulled, and what was in vain.
#[derive(Default)]
struct Board {
    under_way: BTreeMap<(ImageRef, TagWord), watch::Receiver<PullStatus>>,
    /// The newest last, with when it is forgotten.
    failed: VecDeque<(FailedPull, Instant)>,
    /// Counts what begins and ends.
    changes: watch::Sender<u64>,
}

impl Board {
    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }
}

/// What is to be pulled, and who is told.
type Asked = ((ImageRef, TagWord), PullReporter);
type SharedBoard = Arc<Mutex<Board>>;

/// Asks for pulls.
#[derive(Clone)]
pub struct Pulls {
    queue: mpsc::Sender<Asked>,
    board: SharedBoard,
}

/// Performs them.
pub struct Puller {
    queue: mpsc::Receiver<Asked>,
    board: SharedBoard,
    runtime: Arc<dyn Runtime>,
    registries: Arc<Registries>,
}

impl Pulls {
    /// Both ends: who asks, and who does.
    pub fn new(runtime: Arc<dyn Runtime>, registries: Registries) -> (Self, Puller) {
        let (sender, queue) = mpsc::channel(MOST_WAITING);
        let board = SharedBoard::default();
        let pulls = Self { queue: sender, board: Arc::clone(&board) };
        (pulls, Puller { queue, board, runtime, registries: Arc::new(registries) })
    }

    /// Begins to pull an image, or joins who does already.
    pub fn begin(&self, image: &ImageRef, word: TagWord) -> Result<watch::Receiver<PullStatus>, PullError> {
        let mut board = lock(&self.board);
        let wanted = (image.clone(), word);
        if let Some(status) = board.under_way.get(&wanted) {
            return Ok(status.clone());
        }
        let progress = PullProgress { image: image.as_str().to_owned(), ..PullProgress::default() };
        let (sender, status) = watch::channel(PullStatus { progress, end: None });
        self.queue.try_send((wanted.clone(), PullReporter(sender))).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => {
                let reason = format!("{MOST_WAITING} other images are waited for");
                Trouble::new(PullErrorKind::Busy, reason).of(image)
            }
            mpsc::error::TrySendError::Closed(_) => cancelled(image),
        })?;
        board.under_way.insert(wanted, status.clone());
        board.failed.retain(|(failed, _)| failed.image != *image);
        board.changed();
        Ok(status)
    }

    /// Pulls an image and waits for its end.
    pub async fn pull(&self, image: &ImageRef, word: TagWord) -> Result<Image, PullError> {
        let mut status = self.begin(image, word)?;
        let ended = status.wait_for(|status| status.end.is_some()).await;
        ended.ok().and_then(|status| status.end.clone()).unwrap_or_else(|| Err(cancelled(image)))
    }

    /// How far the pull of an image is, if there is one.
    pub fn progress(&self, image: &ImageRef) -> Option<PullProgress> {
        let board = lock(&self.board);
        let found = board.under_way.iter().find(|((pulled, _), _)| pulled == image);
        found.map(|(_, status)| status.borrow().progress.clone())
    }

    /// How far every pull is, by image.
    pub fn under_way(&self) -> Vec<PullProgress> {
        lock(&self.board).under_way.values().map(|status| status.borrow().progress.clone()).collect()
    }

    /// The pulls that failed a short while ago and were not tried again, the newest first.
    pub fn failed(&self) -> Vec<FailedPull> {
        let mut board = lock(&self.board);
        board.failed.retain(|(_, until)| Instant::now() < *until);
        board.failed.iter().rev().map(|(failed, _)| failed.clone()).collect()
    }

    /// Moves when a pull begins or ends.
    pub fn watch(&self) -> watch::Receiver<u64> {
        lock(&self.board).changes.subscribe()
    }
}

impl Puller {
    /// Works until `cancel`. A pull that is under way then is given up; what it has is collected by the runtime.
    pub async fn run(mut self, cancel: CancellationToken) {
        let mut pulls = JoinSet::new();
        loop {
            tokio::select! {
                () = cancel.cancelled() => break,
                asked = self.queue.recv(), if pulls.len() < AT_ONCE => {
                    let Some((wanted, reporter)) = asked else { break };
                    let (runtime, registries) = (Arc::clone(&self.runtime), Arc::clone(&self.registries));
                    let mut done = EndOfPull { wanted: wanted.clone(), board: Arc::clone(&self.board), error: None };
                    pulls.spawn(async move {
                        let result = pull(&*runtime, &registries, &wanted, &reporter).await;
                        done.error = result.as_ref().err().cloned();
                        drop(done);
                        reporter.0.send_modify(|status| status.end = Some(result));
                    });
                }
                Some(ended) = pulls.join_next() => if let Err(error) = ended {
                    tracing::error!(%error, "the pull of an image panicked");
                },
            }
        }
        pulls.shutdown().await;
    }
}

/// Takes an image from the list, also when its pull panics.
struct EndOfPull {
    wanted: (ImageRef, TagWord),
    board: SharedBoard,
    error: Option<PullError>,
}

impl Drop for EndOfPull {
    fn drop(&mut self) {
        let mut board = lock(&self.board);
        board.under_way.remove(&self.wanted);
        if let Some(error) = self.error.take() {
            let failed =
                FailedPull { image: self.wanted.0.clone(), error, at_ms: jiff::Timestamp::now().as_millisecond() };
            board.failed.push_back((failed, Instant::now() + FAILED_FOR));
            if board.failed.len() > MOST_FAILED {
                board.failed.pop_front();
            }
        }
        board.changed();
    }
}

async fn pull(
    runtime: &dyn Runtime,
    registries: &Registries,
    (image, word): &(ImageRef, TagWord),
    reporter: &PullReporter,
) -> Result<Image, PullError> {
    let began = tokio::time::Instant::now();
    let mut came = (0, 0);
    let result = match registries.repository(image, *word).await {
        Ok(repository) => {
            let result = runtime.pull_image(&repository, reporter).await;
            came = repository.tally.sums();
            result
        }
        Err(error) => Err(error),
    };
    match &result {
        Ok(pulled) => {
            let seconds = began.elapsed().as_secs_f32();
            let (from_nodes, from_registries) = came;
            tracing::info!(image = %image, digest = pulled.digest, bytes = pulled.size_bytes, from_nodes, from_registries, seconds, "an image was pulled");
        }
        Err(error) => tracing::warn!(image = %image, error = chain(error), "an image could not be pulled"),
    }
    result
}

fn cancelled(image: &ImageRef) -> PullError {
    Trouble::new(PullErrorKind::Cancelled, "toft is being stopped").of(image)
}

fn lock(board: &SharedBoard) -> MutexGuard<'_, Board> {
    board.lock().unwrap_or_else(PoisonError::into_inner)
}
