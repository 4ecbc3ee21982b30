//! The two ways to a member: at the address it told, and through the mesh. TLS is the same on both.
//!
//! The mesh goes first while the member answers there. Whichever goes first, the other is tried as well when it fails or
//! takes longer than usual, and the first answer counts: the members' calls may arrive twice. Raft's own may by nature, and
//! requests have ids.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use toft_model::ids::NodeId;
use tokio::time::Instant;

use super::{
    super::types::{Member, MemberId},
    peers::CallError,
};

/// How long one way is waited for alone.
const ALONE: Duration = Duration::from_millis(250);
/// How long the mesh does not go first after it was the slower way.
const DOUBT: Duration = Duration::from_secs(10);

/// What is known of the ways.
#[derive(Default)]
pub(super) struct Ways {
    /// Nodes that answer in the mesh, with their address there.
    mesh: Mutex<BTreeMap<NodeId, IpAddr>>,
    /// Members whose way through the mesh was the slower one, and when.
    doubted: Mutex<HashMap<MemberId, Instant>>,
}

impl Ways {
    /// Says who answers in the mesh.
    pub(super) fn set(&self, mesh: BTreeMap<NodeId, IpAddr>) {
        *self.mesh.lock().unwrap_or_else(PoisonError::into_inner) = mesh;
    }

    /// The member's address in the mesh, if it answers there, and whether that goes first.
    pub(super) fn through_mesh(&self, id: MemberId, member: &Member, now: Instant) -> Option<(String, bool)> {
        let address = *self.mesh.lock().unwrap_or_else(PoisonError::into_inner).get(&member.node_id)?;
        // It listens at the same port there.
        let port = member.address.rsplit_once(':')?.1.parse().ok()?;
        let mut doubted = self.doubted.lock().unwrap_or_else(PoisonError::into_inner);
        let doubt = doubted.get(&id).is_some_and(|at| now.duration_since(*at) < DOUBT);
        if !doubt {
            doubted.remove(&id);
        }
        Some((SocketAddr::new(address, port).to_string(), !doubt))
    }

    /// The mesh was the slower way.
    pub(super) fn doubt(&self, id: MemberId) {
        self.doubted.lock().unwrap_or_else(PoisonError::into_inner).insert(id, Instant::now());
    }
}

/// Which way gave the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Went {
    First,
    Second,
}

/// The answer of whichever of two ways gives one first. The second is taken when the first has failed or is late.
pub(super) async fn either<T>(
    first: impl Future<Output = Result<T, CallError>>,
    second: impl Future<Output = Result<T, CallError>>,
) -> (Result<T, CallError>, Went) {
    let mut first = std::pin::pin!(first);
    let mut second = std::pin::pin!(second);
    match tokio::time::timeout(ALONE, &mut first).await {
        Ok(Err(error)) if of_way(&error) => return (graver(error, second.await), Went::Second),
        Ok(answer) => return (answer, Went::First),
        Err(_) => {}
    }
    tokio::select! {
        answer = &mut first => match answer {
            Err(error) if of_way(&error) => (graver(error, second.await), Went::Second),
            answer => (answer, Went::First),
        },
        answer = &mut second => match answer {
            Err(error) if of_way(&error) => (graver(error, first.await), Went::First),
            answer => (answer, Went::Second),
        },
    }
}

/// Whether the way failed, and not the member at its end.
fn of_way(error: &CallError) -> bool {
    match error {
        CallError::NoAddress | CallError::NotConnected(_) | CallError::Unreachable(_) => true,
        CallError::Refused(_) | CallError::Failed(_) => false,
    }
}

/// What is told when one way failed: the other's answer, unless that failed too and only the one may have arrived.
fn graver<T>(one: CallError, other: Result<T, CallError>) -> Result<T, CallError> {
    match (one, other) {
        (one @ CallError::Unreachable(_), Err(CallError::NoAddress | CallError::NotConnected(_))) => Err(one),
        (_, other) => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn after(ms: u64, answer: Result<u8, CallError>) -> Result<u8, CallError> {
        tokio::time::sleep(Duration::from_millis(ms)).await;
        answer
    }

    fn unreachable() -> CallError {
        CallError::Unreachable("silence".into())
    }

    fn not_connected() -> CallError {
        CallError::NotConnected("refused".into())
    }

    #[tokio::test]
    async fn no_way_that_dies_is_waited_for() {
        let never = async { std::future::pending().await };
        let (answer, went) = either(after(0, Ok(1)), async { panic!("the second is not even tried") }).await;
        assert_eq!((answer.unwrap(), went), (1, Went::First));
        let begun = Instant::now();
        let (answer, went) = either(never, after(0, Ok(2))).await;
        assert_eq!((answer.unwrap(), went), (2, Went::Second));
        assert!(begun.elapsed() >= ALONE);
        let (answer, went) = either(after(0, Err(not_connected())), after(0, Ok(2))).await;
        assert_eq!((answer.unwrap(), went), (2, Went::Second));
        let (answer, went) = either(after(400, Ok(1)), after(0, Err(not_connected()))).await;
        assert_eq!((answer.unwrap(), went), (1, Went::First));
    }

    #[tokio::test]
    async fn who_refuses_is_asked_once_and_what_may_have_arrived_is_told() {
        let refused = CallError::Refused("no".into());
        let (answer, went) = either(after(5, Err(refused)), after(5, Ok(2))).await;
        assert!(matches!(answer, Err(CallError::Refused(_))) && went == Went::First);
        let (answer, _) = either(after(5, Err(unreachable())), after(5, Err::<u8, _>(not_connected()))).await;
        assert!(matches!(answer, Err(CallError::Unreachable(_))), "{answer:?}");
        let (answer, _) = either(after(5, Err(not_connected())), after(5, Err::<u8, _>(unreachable()))).await;
        assert!(matches!(answer, Err(CallError::Unreachable(_))), "{answer:?}");
        let (answer, _) = either(after(400, Err(unreachable())), after(5, Err::<u8, _>(not_connected()))).await;
        assert!(matches!(answer, Err(CallError::Unreachable(_))), "{answer:?}");
    }

    #[test]
    fn the_mesh_goes_first_unless_it_was_slower() {
        let node_id = NodeId(uuid::Uuid::from_u128(1));
        let member = |address: &str| Member {
            node_id,
            name: "a".parse().unwrap(),
            address: address.into(),
            ..Member::default()
        };
        let (ways, now) = (Ways::default(), Instant::now());
        assert_eq!(ways.through_mesh(3, &member("192.0.2.1:7444"), now), None);
        ways.set(BTreeMap::from([(node_id, "10.210.1.1".parse().unwrap())]));
        let there = |first| Some(("10.210.1.1:7444".to_owned(), first));
        assert_eq!(ways.through_mesh(3, &member("[2001:db8::1]:7444"), now), there(true));
        assert_eq!(ways.through_mesh(3, &member(""), now), None, "it listens for nobody");
        ways.doubt(3);
        assert_eq!(ways.through_mesh(3, &member("box.lan:7444"), now), there(false));
        let later = Instant::now() + DOUBT;
        assert_eq!(ways.through_mesh(3, &member("box.lan:7444"), later), there(true));
    }
}
