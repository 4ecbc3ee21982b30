//! Shells that run inside instances, and outlive the page that shows them: a page that is loaded again finds its shell by
//! the number that only it knows, and is shown what was written meanwhile. One that nobody looks at ends after a while.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use toft_model::{
    exec::{ExecInput, ExecOutput},
    identity::UserName,
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use uuid::Uuid;

use crate::control::{ControlError, ErrorKind, node_access::exec::ExecSession};

/// Most shells at a time.
const MOST: usize = 32;
/// Bytes of output that a page which comes again can be shown.
const KEPT_BYTES: usize = 256 << 10;
/// How long a shell lives that nobody looks at.
const ALONE: Duration = Duration::from_secs(600);
/// Time between two looks at whether somebody is there.
const LOOK: Duration = Duration::from_secs(15);

/// The shells of this node's dashboard. Clones share them.
#[derive(Clone, Default)]
pub(super) struct Shells(Arc<Mutex<HashMap<Uuid, Arc<Shell>>>>);

/// One shell.
pub(super) struct Shell {
    /// The instance it runs in.
    pub(super) instance: String,
    /// Whoever began it; nobody else finds it.
    owner: Option<UserName>,
    input: mpsc::Sender<ExecInput>,
    screen: Mutex<Screen>,
    moved: watch::Sender<u64>,
    readers: AtomicUsize,
    task: OnceLock<AbortOnDropHandle<()>>,
}

/// What was written last.
#[derive(Default)]
struct Screen {
    bytes: Vec<u8>,
    /// Bytes written since the beginning.
    total: u64,
    ended: Option<End>,
}

/// How a shell ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// By itself, with that code.
    Exited(i32),
    /// It was lost; why.
    Lost(String),
}

/// What a reader has not seen yet.
pub(super) struct News {
    pub(super) bytes: Vec<u8>,
    /// Bytes written up to their end.
    pub(super) total: u64,
    pub(super) ended: Option<End>,
}

impl Shells {
    fn known(&self) -> MutexGuard<'_, HashMap<Uuid, Arc<Shell>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The shell of that number in that instance, if it is that user's; `None` is root.
    pub(super) fn find(&self, id: Uuid, instance: &str, who: Option<&UserName>) -> Option<Arc<Shell>> {
        let is = |shell: &&Arc<Shell>| shell.instance == instance && shell.owner.as_ref() == who;
        self.known().get(&id).filter(is).cloned()
    }

    /// Keeps a process that was just started, until it ends, nobody looks at it for a while, or `cancel`.
    pub(super) fn keep(
        &self,
        instance: String,
        owner: Option<UserName>,
        session: ExecSession,
        cancel: CancellationToken,
    ) -> Result<(Uuid, Arc<Shell>), ControlError> {
        let ExecSession { input, output } = session;
        let id = Uuid::new_v4();
        let shell = Arc::new(Shell {
            instance,
            owner,
            input,
            screen: Mutex::default(),
            moved: watch::Sender::new(0),
            readers: AtomicUsize::new(0),
            task: OnceLock::new(),
        });
        {
            let mut known = self.known();
            known.retain(|_, shell| shell.screen().ended.is_none() || shell.readers.load(Ordering::Relaxed) > 0);
            if known.len() >= MOST {
                return Err(ControlError::new(ErrorKind::Unavailable, format!("{MOST} shells run already"))
                    .hint("end some: type `exit` in them"));
            }
            known.insert(id, Arc::clone(&shell));
        }
        let (kept, running) = (self.clone(), Arc::clone(&shell));
        let task = tokio::spawn(async move {
            let alone = cancel.run_until_cancelled(running.carry(output)).await.unwrap_or(true);
            if alone {
                kept.known().remove(&id);
            }
        });
        drop(shell.task.set(AbortOnDropHandle::new(task)));
        Ok((id, shell))
    }
}

impl Shell {
    fn screen(&self) -> MutexGuard<'_, Screen> {
        self.screen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what the process writes. Whether it ended because nobody was there.
    async fn carry(&self, mut output: mpsc::Receiver<ExecOutput>) -> bool {
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut seen = Instant::now();
        loop {
            let next = tokio::select! {
                next = output.recv() => next,
                _ = looks.tick() => {
                    if self.readers.load(Ordering::Relaxed) > 0 {
                        seen = Instant::now();
                    } else if seen.elapsed() > ALONE {
                        return true;
                    }
                    continue;
                }
            };
            let end = match next {
                Some(ExecOutput::Stdout(bytes) | ExecOutput::Stderr(bytes)) => {
                    self.write(&bytes);
                    continue;
                }
                Some(ExecOutput::Taken(_)) => continue,
                Some(ExecOutput::Exited(code)) => End::Exited(code),
                Some(ExecOutput::Lost(why)) => End::Lost(why),
                None => End::Lost("its node went away".to_owned()),
            };
            self.screen().ended = Some(end);
            self.moved.send_modify(|moves| *moves += 1);
            return false;
        }
    }

    fn write(&self, bytes: &[u8]) {
        let mut screen = self.screen();
        screen.bytes.extend_from_slice(bytes);
        screen.total += bytes.len() as u64;
        // Not for every byte.
        if screen.bytes.len() > 2 * KEPT_BYTES {
            let gone = screen.bytes.len() - KEPT_BYTES;
            screen.bytes.drain(..gone);
        }
        drop(screen);
        self.moved.send_modify(|moves| *moves += 1);
    }

    /// Sends something to the process; `false` when it has ended.
    pub(super) async fn send(&self, input: ExecInput) -> bool {
        self.input.send(input).await.is_ok()
    }

    /// What was written after the first `seen` bytes, as far as it is kept; waits until there is something.
    pub(super) async fn news(&self, seen: u64) -> News {
        let mut moved = self.moved.subscribe();
        loop {
            {
                let screen = self.screen();
                if screen.total > seen || screen.ended.is_some() {
                    let kept_from = screen.total - screen.bytes.len() as u64;
                    let from = usize::try_from(seen.max(kept_from).min(screen.total) - kept_from).unwrap_or(0);
                    let ended = screen.ended.clone();
                    return News { bytes: screen.bytes[from..].to_vec(), total: screen.total, ended };
                }
            }
            // The sender is `self`, which is there.
            let _ = moved.changed().await;
        }
    }

    /// Counts a page that looks, until what is given is dropped.
    pub(super) fn looked_at(self: &Arc<Self>) -> Looking {
        self.readers.fetch_add(1, Ordering::Relaxed);
        Looking(Arc::clone(self))
    }
}

/// A page that looks at a shell.
pub(super) struct Looking(Arc<Shell>);

impl Drop for Looking {
    fn drop(&mut self) {
        self.0.readers.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session() -> (ExecSession, mpsc::Receiver<ExecInput>, mpsc::Sender<ExecOutput>) {
        let (input, typed) = mpsc::channel(4);
        let (screen, output) = mpsc::channel(4);
        (ExecSession { input, output }, typed, screen)
    }

    #[tokio::test]
    async fn who_comes_again_sees_what_was_written_meanwhile() {
        let (shells, ann) = (Shells::default(), "ann".parse::<UserName>().ok());
        let (process, mut typed, screen) = session();
        let (id, shell) = shells.keep("web-0".into(), ann.clone(), process, CancellationToken::new()).unwrap();
        screen.send(ExecOutput::Stdout(b"one".to_vec())).await.unwrap();
        let first = shell.news(0).await;
        assert_eq!((first.bytes.as_slice(), first.total), (&b"one"[..], 3));
        drop(shell);
        screen.send(ExecOutput::Stderr(b"two".to_vec())).await.unwrap();
        assert!(shells.find(id, "web-1", ann.as_ref()).is_none(), "a shell is of its instance");
        assert!(shells.find(id, "web-0", None).is_none(), "and of whoever began it");
        let shell = shells.find(id, "web-0", ann.as_ref()).unwrap();
        assert_eq!(shell.news(3).await.bytes, b"two");
        assert!(shell.send(ExecInput::Bytes(b"x".to_vec())).await);
        assert_eq!(typed.recv().await, Some(ExecInput::Bytes(b"x".to_vec())));
        screen.send(ExecOutput::Exited(3)).await.unwrap();
        assert_eq!(shell.news(6).await.ended, Some(End::Exited(3)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_kept_is_bounded_and_nobody_looking_ends_it() {
        let (shells, ann) = (Shells::default(), "ann".parse::<UserName>().ok());
        let (process, _typed, screen) = session();
        let (id, shell) = shells.keep("web-0".into(), ann.clone(), process, CancellationToken::new()).unwrap();
        let looking = shell.looked_at();
        for _ in 0..200 {
            screen.send(ExecOutput::Stdout(vec![b'x'; 8 << 10])).await.unwrap();
        }
        tokio::time::sleep(2 * ALONE).await;
        assert!(shells.find(id, "web-0", ann.as_ref()).is_some(), "somebody looks");
        let news = shell.news(0).await;
        assert!(news.bytes.len() <= 2 * KEPT_BYTES && news.total == 200 * (8 << 10), "{}", news.bytes.len());
        drop(looking);
        tokio::time::sleep(2 * ALONE).await;
        assert!(shells.find(id, "web-0", ann.as_ref()).is_none());
        for _ in 0..MOST {
            let (process, ..) = session();
            shells.keep("web-0".into(), ann.clone(), process, CancellationToken::new()).unwrap();
        }
        // Those have ended, for nobody holds their other side, and make room.
        tokio::time::sleep(LOOK).await;
        let (process, ..) = session();
        assert!(shells.keep("web-0".into(), ann.clone(), process, CancellationToken::new()).is_ok());
    }
}
