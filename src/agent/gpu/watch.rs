//! Lets every driver look from a thread of its own, every [`PACE`], and tells what was seen through a `watch`. A driver that
//! has not answered for [`PATIENCE`] is taken for one that is away; its thread stays with it, and nobody else waits.

use std::{
    sync::{Arc, mpsc as threads},
    thread,
    time::Duration,
};

use toft_model::{
    gpu::GpuVendor,
    instance::{AssignmentSet, Desired},
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use super::{
    Card, Driver, DriverError, Offence, Sight,
    assess::{Assessor, Shares},
    kernel_log::KernelLog,
    owners::Owners,
};

/// Time between two looks.
pub const PACE: Duration = Duration::from_secs(3);
/// Longest wait for a driver that answered before.
pub const PATIENCE: Duration = Duration::from_secs(4);
/// Longest wait for its first answer: it may have to start the cards first, which takes seconds for each.
const FIRST_PATIENCE: Duration = Duration::from_secs(60);
/// Offences that wait to be heard.
const OFFENCES_WAITING: usize = 256;

type Shown = Result<Vec<Card>, DriverError>;

/// What was seen last; `None` before the first look.
pub type GpuWatch = watch::Receiver<Option<Arc<Sight>>>;

/// A driver and its thread.
struct Eye {
    vendor: GpuVendor,
    ask: threads::Sender<()>,
    answers: mpsc::Receiver<Shown>,
    /// Since when it is asked, when it has not answered.
    asked: Option<Instant>,
    /// What it showed last.
    last: Option<Shown>,
}

impl Eye {
    fn open(mut driver: Box<dyn Driver>) -> std::io::Result<Self> {
        let (ask, asked) = threads::channel();
        let (answer, answers) = mpsc::channel(1);
        let vendor = driver.vendor();
        thread::Builder::new().name(format!("gpu-{vendor}")).spawn(move || {
            while asked.recv().is_ok() {
                if answer.blocking_send(driver.look()).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { vendor, ask, answers, asked: None, last: None })
    }

    /// Asks, unless it is asked already, and waits for the answer until `patience` is at its end.
    async fn look(&mut self, (patience, first): (Duration, Duration)) -> Shown {
        let patience = if self.last.is_some() { patience } else { first };
        let asked = match self.asked {
            Some(asked) => asked,
            None => {
                let now = Instant::now();
                if self.ask.send(()).is_err() {
                    return Err(DriverError::Away("what asks it has ended".into()));
                }
                *self.asked.insert(now)
            }
        };
        match tokio::time::timeout_at(asked + patience, self.answers.recv()).await {
            Ok(Some(shown)) => {
                (self.asked, self.last) = (None, Some(shown.clone()));
                shown
            }
            Ok(None) => Err(DriverError::Away("what asks it has ended".into())),
            Err(_) => Err(DriverError::Away("it does not answer".into())),
        }
    }
}

/// Looks at all cards until it is told to end.
pub struct Watcher {
    eyes: Vec<Eye>,
    assessor: Assessor,
    sight: watch::Sender<Option<Arc<Sight>>>,
    offences: mpsc::Sender<Offence>,
    pace: Duration,
    patience: (Duration, Duration),
}

impl Watcher {
    /// One that has not looked yet, what it sees, and who holds more than its share. `parent` is the control group in
    /// which every container has its own.
    pub fn new(
        drivers: Vec<Box<dyn Driver>>,
        proc: &std::path::Path,
        parent: &str,
    ) -> std::io::Result<(Self, GpuWatch, mpsc::Receiver<Offence>)> {
        let eyes = drivers.into_iter().map(Eye::open).collect::<std::io::Result<_>>()?;
        let (sight, watch) = watch::channel(None);
        let (offences, heard) = mpsc::channel(OFFENCES_WAITING);
        let assessor = Assessor::new(Owners::new(proc, parent));
        let patience = (PATIENCE, FIRST_PATIENCE);
        Ok((Self { eyes, assessor, sight, offences, pace: PACE, patience }, watch, heard))
    }

    /// The same that hears of faults by the kernel's log too.
    pub fn with_kernel_log(mut self, log: KernelLog) -> Self {
        self.assessor = self.assessor.with_kernel_log(log);
        self
    }

    /// Looks more often and waits less: for tests.
    pub fn with_pace(mut self, pace: Duration, patience: Duration) -> Self {
        (self.pace, self.patience) = (pace, (patience, patience));
        self
    }

    /// Looks until `cancel`. `orders` say what each instance may hold.
    pub async fn run(mut self, orders: watch::Receiver<Option<AssignmentSet>>, cancel: CancellationToken) {
        let mut ticks = interval(self.pace);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let shares = orders.borrow().as_ref().map(shares).unwrap_or_default();
            let patience = self.patience;
            let looks = self.eyes.iter_mut().map(async |eye| (eye.vendor, eye.look(patience).await));
            let Some(shown) = cancel.run_until_cancelled(futures_util::future::join_all(looks)).await else { return };
            // Whose processes they are is read from files that the kernel makes up: quick, but not for a task.
            let now_ms = jiff::Timestamp::now().as_millisecond();
            let mut assessor = self.assessor;
            let assessed = tokio::task::spawn_blocking(move || {
                let (sight, offences) = assessor.look(shown, &shares, now_ms);
                (assessor, sight, offences)
            });
            let (assessor, sight, offences) = match assessed.await {
                Ok(assessed) => assessed,
                Err(panic) => std::panic::resume_unwind(panic.into_panic()),
            };
            self.assessor = assessor;
            self.tell(sight);
            for offence in offences {
                // Who does not listen is told again with the next look.
                let _ = self.offences.try_send(offence);
            }
        }
    }

    fn tell(&self, sight: Sight) {
        let before = self.sight.borrow().clone();
        let away = |sight: Option<&Sight>| sight.map(|sight| sight.away.clone()).unwrap_or_default();
        for (vendor, why) in &sight.away {
            if !away(before.as_deref()).contains(&(*vendor, why.clone())) {
                tracing::warn!(%vendor, reason = why, "the GPUs of a vendor cannot be seen");
            }
        }
        for seen in &sight.gpus {
            let gpu = &seen.facts.gpu;
            let known = before.as_ref().and_then(|before| before.of(&gpu.id)).map(|seen| &seen.facts.gpu.sick);
            match (known, &gpu.sick) {
                (None, None) => tracing::info!(gpu = %gpu.id, model = gpu.model, "a GPU is there"),
                (None | Some(None), Some(reason)) => tracing::warn!(gpu = %gpu.id, reason, "a GPU takes no work"),
                (Some(Some(_)), None) => tracing::info!(gpu = %gpu.id, "a GPU takes work again"),
                (Some(_), _) => {}
            }
        }
        for seen in before.iter().flat_map(|before| &before.gpus) {
            if sight.of(&seen.facts.gpu.id).is_none() {
                tracing::warn!(gpu = %seen.facts.gpu.id, "a GPU is there no more");
            }
        }
        self.sight.send_replace(Some(Arc::new(sight)));
    }
}

/// What the instances of a set may hold, those on their way out included.
fn shares(set: &AssignmentSet) -> Shares {
    let holding = set.assignments.iter().filter(|order| !order.container.gpus.is_empty());
    holding
        .filter(|order| order.desired != Desired::Stopped)
        .map(|order| (order.instance_id, order.container.gpus.clone()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::gpu::fake::{FakeDriver, card};

    #[tokio::test]
    async fn a_driver_that_hangs_holds_up_nobody_and_its_cards_are_sick() {
        let id = |text: &str| text.parse().unwrap();
        let hangs = FakeDriver::new(GpuVendor::Nvidia, vec![card(&id("GPU-0"), 1_024)]);
        let works = FakeDriver::new(GpuVendor::Amd, Vec::new());
        let drivers: Vec<Box<dyn Driver>> = vec![Box::new(hangs.clone()), Box::new(works.clone())];
        let (watcher, mut watch, _offences) = Watcher::new(drivers, "/proc".as_ref(), "toft").unwrap();
        let watcher = watcher.with_pace(Duration::from_millis(20), Duration::from_millis(200));
        let cancel = CancellationToken::new();
        let (_orders, orders) = watch::channel(None);
        let running = tokio::spawn(watcher.run(orders, cancel.clone()));
        let wait = async |watch: &mut GpuWatch, what: &dyn Fn(&Sight) -> bool| {
            let seen = watch.wait_for(|sight| sight.as_ref().is_some_and(|sight| what(sight)));
            tokio::time::timeout(Duration::from_secs(20), seen).await.expect("it is seen").unwrap().clone().unwrap()
        };
        wait(&mut watch, &|sight| sight.gpus.len() == 1).await;
        {
            let hung = hangs.clone();
            let (hold, held) = threads::channel::<()>();
            let (begun, begin) = threads::channel();
            let keeper = thread::spawn(move || {
                let _shown = hung.shown();
                begun.send(()).unwrap();
                let _ = held.recv();
            });
            begin.recv().unwrap();
            works.show(Ok(vec![card(&id("pci-0000:03:00.0"), 2_048)]));
            let sight = wait(&mut watch, &|sight| sight.gpus.len() == 2 && !sight.away.is_empty()).await;
            let sick = |name: &str| sight.of(&id(name)).unwrap().facts.gpu.sick.clone();
            assert_eq!(sick("GPU-0").as_deref(), Some("the driver is away: it does not answer"));
            assert_eq!(sick("pci-0000:03:00.0"), None);
            drop(hold);
            keeper.join().unwrap();
        }
        wait(&mut watch, &|sight| sight.away.is_empty() && sight.gpus.len() == 2).await;
        works.show(Ok(Vec::new()));
        wait(&mut watch, &|sight| sight.gpus.len() == 1).await;
        cancel.cancel();
        running.await.unwrap();
    }
}
