//! Who asks: known to every operation without being handed to each.
//!
//! A door finds out who somebody is and lets the request run as them ([`act`]). What runs as nobody is the daemon itself: it
//! may everything and is not in the audit trail. Whoever hands work to another task takes the actor along, or does what is to be
//! refused before.

use std::{net::IpAddr, sync::Arc};

use toft_model::{
    identity::{Author, ROOT, Rights, Role, UserName, asks_for_more, deployment_of},
    name::Name,
    token::TokenId,
    workload::WorkloadSpec,
};

use super::{ControlError, ErrorKind, ops::now_ms};

/// How somebody came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// Through the unix socket.
    Socket,
    /// With the cookie of a session.
    Session(TokenId),
    /// With an API token.
    Token(TokenId),
    /// With a token that the cluster has signed.
    Signed {
        /// What it is called.
        id: TokenId,
        /// The key that signed it.
        key: TokenId,
        /// Until when it is valid, in milliseconds since 1970.
        until_ms: i64,
    },
    /// By way of a provider, a moment before there is a session.
    Provider,
    /// With a passkey, a moment before there is a session.
    Passkey,
    /// With a password in the request itself.
    Password,
}

/// Somebody who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    /// The user; none is root, at the socket.
    pub user: Option<UserName>,
    /// What they may.
    pub rights: Rights,
    /// How they came in.
    pub way: Way,
    /// Where they are.
    pub from: Option<IpAddr>,
    /// Whether the first password let them in, which is to be changed.
    pub is_first: bool,
    /// Whether they may less than they would with a second factor, which is asked for.
    pub lacks_factor: bool,
}

tokio::task_local! {
    static ACTOR: Arc<Actor>;
}

/// Does `work` as `actor`.
pub async fn act<F: Future>(actor: Arc<Actor>, work: F) -> F::Output {
    ACTOR.scope(actor, work).await
}

/// Says something to `actor`, as pages do that show only what somebody may.
pub fn say<T>(actor: Arc<Actor>, words: impl FnOnce() -> T) -> T {
    ACTOR.sync_scope(actor, words)
}

/// Who asks now; nobody when it is the daemon itself.
pub fn current() -> Option<Arc<Actor>> {
    ACTOR.try_with(Arc::clone).ok()
}

impl Actor {
    /// Whoever uses the socket.
    pub fn root() -> Self {
        Self { user: None, rights: Rights::all(), way: Way::Socket, from: None, is_first: false, lacks_factor: false }
    }

    /// What the audit trail calls them.
    pub fn name(&self) -> &str {
        self.user.as_ref().map_or(ROOT, UserName::as_str)
    }

    /// Whether they are an admin.
    pub fn is_admin(&self) -> bool {
        self.rights.role == Role::Admin
    }

    /// Refuses who has less than that role.
    pub fn need(&self, role: Role) -> Result<(), ControlError> {
        if self.rights.role >= role {
            return Ok(());
        }
        Err(self.refused(format!("this needs the role `{role}`, and `{}` is {}", self.name(), a(self.rights.role))))
    }

    /// Refuses who is no operator of that deployment.
    pub fn need_on(&self, deployment: &Name) -> Result<(), ControlError> {
        if self.rights.operates(deployment) {
            return Ok(());
        }
        let what = format!("this needs the role `operator`, or a grant for `{deployment}`");
        Err(self.refused(format!("{what}, and `{}` is {} without one", self.name(), a(self.rights.role))))
    }

    /// Refuses a specification that a grant does not give.
    pub fn need_for(&self, wanted: &WorkloadSpec, is: Option<&WorkloadSpec>) -> Result<(), ControlError> {
        let same = |is: &WorkloadSpec| WorkloadSpec { replicas: wanted.replicas, ..is.clone() } == *wanted;
        if wanted.process.privileged && !self.is_admin() && !is.is_some_and(same) {
            let error =
                self.refused("a privileged container has every right on its machine, which only an admin gives");
            return Err(error
                .hint("ask an admin, or name what it needs: `cap_add`, `devices`")
                .field("process.privileged"));
        }
        if self.rights.role >= Role::Operator {
            return Ok(());
        }
        for spec in [Some(wanted), is].into_iter().flatten() {
            self.need_on(deployment_of(spec))?;
        }
        match asks_for_more(wanted, is) {
            None => Ok(()),
            Some(field) => {
                let error = self.refused("a grant does not give more of the machine than the workload has");
                Err(error.hint("leave the field as it is, or ask an operator").field(field))
            }
        }
    }

    fn refused(&self, message: impl Into<String>) -> ControlError {
        let hint = if self.lacks_factor {
            "admins may no more than look until they have a second factor: turn it on at /account/second-factor, or sign in with a \
             passkey"
        } else {
            "ask an admin for the role, or for a grant"
        };
        ControlError::new(ErrorKind::Forbidden, message).hint(hint)
    }

    /// As the audit trail tells it, now.
    pub fn author(&self) -> Author {
        let way = match &self.way {
            Way::Socket => "socket".to_owned(),
            Way::Session(id) => format!("session {id}"),
            Way::Token(id) => format!("token {id}"),
            Way::Signed { id, .. } => format!("signed token {id}"),
            Way::Provider => "provider".to_owned(),
            Way::Passkey => "passkey".to_owned(),
            Way::Password => "password".to_owned(),
        };
        let came_from = self.from.map(|from| from.to_canonical().to_string());
        Author { name: self.name().to_owned(), way, came_from, at_ms: now_ms() }
    }
}

fn a(role: Role) -> &'static str {
    match role {
        Role::Viewer => "a viewer",
        Role::Operator => "an operator",
        Role::Admin => "an admin",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn actor(role: Role, grants: &[&str]) -> Actor {
        let grants = grants.iter().map(|name| name.parse().unwrap()).collect();
        Actor { user: Some("ann".parse().unwrap()), rights: Rights { role, grants }, ..Actor::root() }
    }

    #[test]
    fn roles_and_grants_are_asked_for_in_words() {
        let (viewer, operator) = (actor(Role::Viewer, &["shop"]), actor(Role::Operator, &[]));
        assert!(viewer.need(Role::Viewer).is_ok() && operator.need(Role::Operator).is_ok());
        let error = viewer.need(Role::Operator).unwrap_err();
        assert_eq!((error.kind, error.hint.is_some()), (ErrorKind::Forbidden, true));
        assert_eq!(error.message, "this needs the role `operator`, and `ann` is a viewer");
        assert!(viewer.need_on(&"shop".parse().unwrap()).is_ok());
        assert!(viewer.need_on(&"blog".parse().unwrap()).unwrap_err().message.contains("`blog`"));
        assert!(operator.need_on(&"blog".parse().unwrap()).is_ok());
        assert!(Actor::root().need(Role::Admin).is_ok() && operator.need(Role::Admin).is_err());
    }

    #[test]
    fn a_grant_covers_a_workload_before_and_after_the_change() {
        let spec = |text: &str| serde_json::from_str::<WorkloadSpec>(text).unwrap();
        let viewer = actor(Role::Viewer, &["shop"]);
        let (inside, outside) = (
            spec(r#"{"name":"web","image":"demo","deployment":"shop"}"#),
            spec(r#"{"name":"web","image":"demo","deployment":"blog"}"#),
        );
        let named = spec(r#"{"name":"shop","image":"demo"}"#);
        let secret = spec(r#"{"name":"shop","image":"demo","secrets":[{"name":"key"}]}"#);
        assert!(viewer.need_for(&inside, Some(&inside)).is_ok() && viewer.need_for(&named, None).is_ok());
        assert!(viewer.need_for(&outside, None).is_err());
        assert!(viewer.need_for(&inside, Some(&outside)).is_err(), "nobody takes another's workload over");
        assert!(viewer.need_for(&outside, Some(&inside)).is_err(), "nor puts one into another's deployment");
        assert_eq!(viewer.need_for(&secret, None).unwrap_err().field.as_deref(), Some("secrets"));
        assert!(viewer.need_for(&secret, Some(&secret)).is_ok());
        assert!(actor(Role::Operator, &[]).need_for(&secret, Some(&outside)).is_ok());
    }

    #[test]
    fn only_an_admin_gives_every_right() {
        let spec = |text: &str| serde_json::from_str::<WorkloadSpec>(text).unwrap();
        let privileged = spec(r#"{"name":"web","image":"demo","process":{"privileged":true}}"#);
        let other = spec(r#"{"name":"web","image":"other","process":{"privileged":true}}"#);
        let more = spec(r#"{"name":"web","image":"demo","replicas":3,"process":{"privileged":true}}"#);
        let plain = spec(r#"{"name":"web","image":"demo"}"#);
        let operator = actor(Role::Operator, &[]);
        assert_eq!(operator.need_for(&privileged, None).unwrap_err().field.as_deref(), Some("process.privileged"));
        assert!(operator.need_for(&privileged, Some(&plain)).is_err());
        assert!(
            operator.need_for(&other, Some(&privileged)).is_err(),
            "nor puts another program into such a container"
        );
        assert!(
            operator.need_for(&more, Some(&privileged)).is_ok() && operator.need_for(&plain, Some(&privileged)).is_ok()
        );
        assert!(
            actor(Role::Admin, &[]).need_for(&privileged, None).is_ok() && Actor::root().need_for(&other, None).is_ok()
        );
    }

    #[tokio::test]
    async fn work_knows_who_asks_and_tasks_do_not() {
        assert_eq!(current(), None);
        let ann = Arc::new(actor(Role::Viewer, &[]));
        act(Arc::clone(&ann), async {
            assert_eq!(current().as_deref(), Some(&*ann));
            assert_eq!(tokio::spawn(async { current() }).await.unwrap(), None);
        })
        .await;
        let author = ann.author();
        assert_eq!((author.name.as_str(), author.way.as_str()), ("ann", "socket"));
    }
}
