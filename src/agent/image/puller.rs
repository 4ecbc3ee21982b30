//! Pulls what it is asked to, each image once at a time however many ask, and tells how far it is.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use toft_model::{
    image::ImageRef,
    pull::{LayerProgress, LayerState, PullProgress},
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::{PullError, PullErrorKind, Registries, Trouble};
use crate::agent::runtime::{Image, Runtime};
use crate::observe::chain;

/// Images pulled at once.
const AT_ONCE: usize = 3;
/// Images that wait for their turn.
const MOST_WAITING: usize = 256;

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
        let waiting =
            |(digest, size_bytes)| LayerProgress { digest, size_bytes, done_bytes: 0, state: LayerState::Waiting };
        let layers = layers.map(waiting).collect();
        self.0.send_modify(|status| status.progress.layers = layers);
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

type UnderWay = Arc<Mutex<BTreeMap<ImageRef, watch::Receiver<PullStatus>>>>;

/// Asks for pulls.
#[derive(Clone)]
pub struct Pulls {
    queue: mpsc::Sender<(ImageRef, PullReporter)>,
    under_way: UnderWay,
}

/// Performs them.
pub struct Puller {
    queue: mpsc::Receiver<(ImageRef, PullReporter)>,
    under_way: UnderWay,
    runtime: Arc<dyn Runtime>,
    registries: Arc<Registries>,
}

impl Pulls {
    /// Both ends: who asks, and who does.
    pub fn new(runtime: Arc<dyn Runtime>, registries: Registries) -> (Self, Puller) {
        let (sender, queue) = mpsc::channel(MOST_WAITING);
        let under_way = UnderWay::default();
        let pulls = Self { queue: sender, under_way: Arc::clone(&under_way) };
        (pulls, Puller { queue, under_way, runtime, registries: Arc::new(registries) })
    }

    /// Begins to pull an image, or joins who does already.
    pub fn begin(&self, image: &ImageRef) -> Result<watch::Receiver<PullStatus>, PullError> {
        let mut under_way = lock(&self.under_way);
        if let Some(status) = under_way.get(image) {
            return Ok(status.clone());
        }
        let progress = PullProgress { image: image.as_str().to_owned(), layers: Vec::new() };
        let (sender, status) = watch::channel(PullStatus { progress, end: None });
        self.queue.try_send((image.clone(), PullReporter(sender))).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => {
                let reason = format!("{MOST_WAITING} other images are waited for");
                Trouble::new(PullErrorKind::Busy, reason).of(image)
            }
            mpsc::error::TrySendError::Closed(_) => cancelled(image),
        })?;
        under_way.insert(image.clone(), status.clone());
        Ok(status)
    }

    /// Pulls an image and waits for its end.
    pub async fn pull(&self, image: &ImageRef) -> Result<Image, PullError> {
        let mut status = self.begin(image)?;
        let ended = status.wait_for(|status| status.end.is_some()).await;
        ended.ok().and_then(|status| status.end.clone()).unwrap_or_else(|| Err(cancelled(image)))
    }

    /// How far the pull of an image is, if there is one.
    pub fn progress(&self, image: &ImageRef) -> Option<PullProgress> {
        lock(&self.under_way).get(image).map(|status| status.borrow().progress.clone())
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
                    let Some((image, reporter)) = asked else { break };
                    let (runtime, registries) = (Arc::clone(&self.runtime), Arc::clone(&self.registries));
                    let done = EndOfPull { image: image.clone(), under_way: Arc::clone(&self.under_way) };
                    pulls.spawn(async move {
                        let result = pull(&*runtime, &registries, &image, &reporter).await;
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
    image: ImageRef,
    under_way: UnderWay,
}

impl Drop for EndOfPull {
    fn drop(&mut self) {
        lock(&self.under_way).remove(&self.image);
    }
}

async fn pull(
    runtime: &dyn Runtime,
    registries: &Registries,
    image: &ImageRef,
    reporter: &PullReporter,
) -> Result<Image, PullError> {
    let began = tokio::time::Instant::now();
    let result = match registries.repository(image).await {
        Ok(repository) => runtime.pull_image(&repository, reporter).await,
        Err(error) => Err(error),
    };
    match &result {
        Ok(pulled) => {
            let seconds = began.elapsed().as_secs_f32();
            tracing::info!(image = %image, digest = pulled.digest, bytes = pulled.size_bytes, seconds, "an image was pulled");
        }
        Err(error) => tracing::warn!(image = %image, error = chain(error), "an image could not be pulled"),
    }
    result
}

fn cancelled(image: &ImageRef) -> PullError {
    Trouble::new(PullErrorKind::Cancelled, "toft is being stopped").of(image)
}

fn lock(under_way: &UnderWay) -> MutexGuard<'_, BTreeMap<ImageRef, watch::Receiver<PullStatus>>> {
    under_way.lock().unwrap_or_else(PoisonError::into_inner)
}
