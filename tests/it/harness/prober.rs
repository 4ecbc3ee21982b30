//! A visitor that never stops asking, and remembers every answer that did not come.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use super::machine::{Machine, http_here, wait_until};

/// Pause between two visits.
const PACE: Duration = Duration::from_millis(10);

/// The visitor.
pub struct Prober {
    stop: Arc<AtomicBool>,
    answers: Arc<AtomicU32>,
    thread: Option<JoinHandle<Vec<String>>>,
}

impl Prober {
    /// Visits a port of the machine, each time over a new connection.
    pub fn start(machine: &Machine, port: u16) -> Self {
        let (stop, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&answers));
        let thread = machine.spawn(move || {
            let begun = Instant::now();
            let mut misses = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                match http_here(port, "GET", "/healthz", &[]) {
                    Ok(answer) if answer.status == 200 => drop(count.fetch_add(1, Ordering::Relaxed)),
                    other => misses.push(format!("{:?}: {other:?}", begun.elapsed())),
                }
                std::thread::sleep(PACE);
            }
            misses
        });
        let prober = Self { stop, answers, thread: Some(thread) };
        prober.some_more();
        prober
    }

    /// Waits until more answers have come.
    pub fn some_more(&self) {
        let before = self.answers.load(Ordering::Relaxed);
        wait_until("answers come", || (self.answers.load(Ordering::Relaxed) > before + 3).then_some(()));
    }

    /// Waits for a last answer and gives the visits that were in vain.
    pub fn end(mut self) -> Vec<String> {
        self.some_more();
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}
