//! The way to the other members: gRPC over TLS, with certificates of the cluster on both sides.

mod back;
mod caller;
mod calls;
mod connections;
mod door;
mod gate;
mod known;
mod limit;
mod peers;
mod server;
mod services;
mod telling;
mod tls;
mod turns;
mod ways;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use openraft::{
    AnyError, OptionalSend, RaftNetwork, RaftNetworkFactory,
    error::{NetworkError, RPCError, RaftError, RemoteError, ReplicationClosed, StreamingError, Unreachable},
    network::{Backoff, RPCOption},
    raft::{AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse},
};

pub use caller::Contact;
pub(super) use caller::call_others;
pub use door::{Admission, Admitted, Asked, Offer, Standing};
pub(super) use peers::Peers;
pub use peers::{CallError, SERVER_NAME, Transport};
pub(super) use server::{Doorway, members_now, serve};
pub(super) use services::Services;
pub use services::{Caller, MemberChannel, Offered, Speaking};

use known::Known;
use telling::{Committed, Share, Telling};
use tokio_util::task::AbortOnDropHandle;
use turns::Turns;

use super::{
    log_store::{Ahead, Stalled, Texts},
    types::{Fatal, LogId, Member, MemberId, Snapshot, Types, Vote},
};

/// What the members say is numbered; a member refuses to speak another number.
pub const PROTOCOL: u32 = 1;

/// Makes the ways.
pub(super) struct Network {
    peers: Arc<Peers>,
    /// This member's own log.
    log: Arc<Ahead>,
    /// And what its entries read as.
    texts: Texts,
    committed: Committed,
    turns: Turns,
}

impl Network {
    pub(super) fn new(peers: Arc<Peers>, log: Arc<Ahead>, texts: Texts) -> Self {
        Self { peers, log, texts, committed: Committed::default(), turns: Turns::from_now() }
    }
}

/// How long the news of what is committed waits for entries to travel with. Who asked a follower for a change is answered
/// later by this much when nothing else happens; without it every entry would cost each member two calls.
const NEWS: Duration = Duration::from_millis(1);
/// How long an answer stands for the member being there: so much shorter than a heartbeat that no heartbeat is left out.
const FRESH: Duration = Duration::from_millis(50);

/// How long a member that does not vote and has nothing to learn can do without hearing of the leader, who then tells it with the
/// next heartbeat. There is no lease to keep; only its silence has to be known in time.
const REMINDER: Duration = Duration::from_millis(600);
/// The same of one among many: once a second in all.
const REMINDER_OF_MANY: Duration = Duration::from_millis(850);
/// The same of one that is known to be there by its beats.
const REMINDER_OF_BEATING: Duration = Duration::from_millis(1_000);

/// How far the log is committed, for one member.
#[derive(Default)]
struct News {
    /// What waits to be told.
    waiting: Option<AppendEntriesRequest<Types>>,
    /// Whether some did not arrive.
    lost: bool,
}

/// What a member answers to entries.
type Answer = Result<AppendEntriesResponse<MemberId>, RaftError<MemberId>>;

/// The way to one member.
pub(super) struct Way {
    peers: Arc<Peers>,
    log: Arc<Ahead>,
    texts: Texts,
    committed: Committed,
    turns: Turns,
    id: MemberId,
    member: Member,
    known: Known,
    /// How much it is told at a time.
    share: Share,
    /// The call that tells it of entries.
    telling: Option<Telling>,
    /// The call that says that the leader is there while it is told.
    reminder: Option<AbortOnDropHandle<()>>,
    /// When it was told of entries last, and how long that took.
    told_at: Option<Instant>,
    took: Duration,
    news: Arc<Mutex<News>>,
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Way;

    async fn new_client(&mut self, id: MemberId, member: &Member) -> Way {
        let (peers, log) = (Arc::clone(&self.peers), Arc::clone(&self.log));
        Way {
            peers,
            log,
            texts: self.texts.clone(),
            committed: self.committed.clone(),
            turns: self.turns,
            id,
            member: member.clone(),
            known: Known::default(),
            share: Share::first(),
            telling: None,
            reminder: None,
            told_at: None,
            took: Duration::ZERO,
            news: Arc::default(),
        }
    }
}

impl Way {
    /// Whether a request holds nothing but how far the log is committed, and the member has just said that it has the
    /// entries it speaks of: then its answer is known.
    fn is_only_news(&self, request: &AppendEntriesRequest<Types>) -> bool {
        request.entries.is_empty()
            && self.known.of(request).is_some_and(|known| {
                known.at.elapsed() < if self.log.among_many(self.id).is_some() { REMINDER_OF_MANY } else { FRESH }
            })
    }

    /// Whether a request says nothing that the member does not know, and it can do without being reminded.
    fn is_no_news(&self, request: &AppendEntriesRequest<Types>) -> bool {
        if std::mem::take(&mut self.news().lost) {
            return false;
        }
        let reminder = match self.log.among_many(self.id) {
            _ if self.peers.beats(self.id, REMINDER_OF_BEATING) => REMINDER_OF_BEATING,
            Some(_) => REMINDER_OF_MANY,
            None => REMINDER,
        };
        let knows = self
            .known
            .of(request)
            .is_some_and(|known| known.committed >= request.leader_commit && known.at.elapsed() < reminder);
        request.entries.is_empty() && knows && !self.log.votes(self.id)
    }

    fn news(&self) -> MutexGuard<'_, News> {
        held(&self.news)
    }

    /// Tells news a little later, unless entries go before.
    fn tell_later(&mut self, request: AppendEntriesRequest<Types>) {
        self.known.told(request.leader_commit);
        if self.news().waiting.replace(request).is_some() {
            return;
        }
        let (news, peers) = (Arc::clone(&self.news), Arc::clone(&self.peers));
        let (id, member) = (self.id, self.member.clone());
        let since = self.told_at.map(|at| at.elapsed());
        let pause = self.log.among_many(id).map_or(NEWS, |members| self.turns.until(id, members, self.took, since));
        tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            let request = held(&news).waiting.take();
            let Some(request) = request else { return };
            let told = async { peers.append(id, &member, telling::empty(&request)?).await };
            if let Err(error) = told.await {
                // The next heartbeat tells it.
                held(&news).lost = true;
                tracing::debug!(%error, "a member was not told what is committed");
            }
        });
    }
}

fn held(news: &Mutex<News>) -> MutexGuard<'_, News> {
    news.lock().unwrap_or_else(PoisonError::into_inner)
}

/// This member does not lead on.
#[derive(Debug, thiserror::Error)]
enum Silent {
    #[error(transparent)]
    Stalled(#[from] Stalled),
    #[error("the disk of this member has no room, so it leads no longer")]
    NoRoom,
}

type Failure = RPCError<MemberId, Member, RaftError<MemberId>>;

impl Way {
    /// Refuses while this member is to fall silent, so that the others elect another.
    fn check(&self) -> Result<(), Silent> {
        self.log.check()?;
        if self.peers.is_short() && self.log.needs_others() { Err(Silent::NoRoom) } else { Ok(()) }
    }

    /// An answer may count as one member's consent to all that was told, and this member consents with it: both must have it
    /// on their disks.
    async fn until_flushed(&self, last: Option<LogId>) -> Result<(), Failure> {
        let flushed = self.log.until_flushed(last.map_or(0, |last| last.index)).await;
        flushed.map_err(|error| self.silent(error.into()))
    }

    fn remote(&self, error: RaftError<MemberId>) -> Failure {
        RPCError::RemoteError(RemoteError::new_with_node(self.id, self.member.clone(), error))
    }

    fn silent(&self, error: Silent) -> Failure {
        RPCError::Unreachable(Unreachable::new(&error))
    }

    fn failure(&self, error: CallError) -> Failure {
        match error {
            // Asked again only after a pause.
            CallError::NoAddress | CallError::NotConnected(_) | CallError::Unreachable(_) | CallError::Refused(_) => {
                RPCError::Unreachable(Unreachable::new(&error))
            }
            CallError::Failed(_) => RPCError::Network(NetworkError::new(&error)),
        }
    }
}

/// The answer of a member that has the entries up to `last` of those asked for.
fn whole_or_part(last: LogId, asked: LogId) -> AppendEntriesResponse<MemberId> {
    if last < asked { AppendEntriesResponse::PartialSuccess(Some(last)) } else { AppendEntriesResponse::Success }
}

impl RaftNetwork<Types> for Way {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        _: RPCOption,
    ) -> Result<AppendEntriesResponse<MemberId>, Failure> {
        self.check().map_err(|error| self.silent(error))?;
        self.committed.note(request.vote, request.leader_commit);
        if self.is_no_news(&request) {
            return Ok(AppendEntriesResponse::Success);
        }
        if self.is_only_news(&request) {
            self.tell_later(request);
            return Ok(AppendEntriesResponse::Success);
        }
        if let Some(asked) = request.entries.last().map(|entry| entry.log_id) {
            if let Some(known) = self.known.before(&request) {
                return Ok(whole_or_part(known, asked));
            }
            // They carry the news.
            self.news().waiting = None;
            let told = self.tell(request).await.map_err(|e| self.failure(e))?;
            self.until_flushed(Some(told.last)).await?;
            let last = told.last.min(asked);
            self.known = Known::by(&told.answer, told.vote, Some(told.last), told.commit, Some(asked));
            return match told.answer.map_err(|error| self.remote(error))? {
                AppendEntriesResponse::Success => Ok(whole_or_part(last, asked)),
                answer => Ok(answer),
            };
        }
        let message = telling::empty(&request).map_err(|e| self.failure(e))?;
        let answer = self.peers.append(self.id, &self.member, message).await.map_err(|e| self.failure(e))?;
        self.until_flushed(request.prev_log_id).await?;
        let end = request.prev_log_id;
        self.known = Known::by(&answer, request.vote, end, request.leader_commit, end);
        answer.map_err(|error| self.remote(error))
    }

    async fn vote(&mut self, request: VoteRequest<MemberId>, _: RPCOption) -> Result<VoteResponse<MemberId>, Failure> {
        let answer = self.peers.vote(self.id, &self.member, &request).await.map_err(|e| self.failure(e))?;
        answer.map_err(|error| self.remote(error))
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<MemberId>, StreamingError<Types, Fatal>> {
        self.check().map_err(|error| StreamingError::Unreachable(Unreachable::new(&error)))?;
        let send = self.peers.snapshot(self.id, &self.member, vote, &snapshot);
        let answer = tokio::select! {
            answer = tokio::time::timeout(option.hard_ttl(), send) => answer,
            closed = cancel => return Err(StreamingError::Closed(closed)),
        };
        match answer {
            Ok(Ok(Ok(response))) => Ok(response),
            Ok(Ok(Err(fatal))) => {
                Err(StreamingError::RemoteError(RemoteError::new_with_node(self.id, self.member.clone(), fatal)))
            }
            Ok(Err(error)) => Err(StreamingError::Unreachable(Unreachable::new(&error))),
            Err(_) => {
                let late = std::io::Error::new(std::io::ErrorKind::TimedOut, "the snapshot took too long");
                Err(StreamingError::Network(NetworkError::from(AnyError::new(&late))))
            }
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new([50, 100, 200].into_iter().chain(std::iter::repeat(400)).map(Duration::from_millis))
    }
}
