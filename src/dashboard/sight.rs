//! What whoever looks may do, so that no page shows a button that is refused. The table of rules that decides is the one that says it.

use axum::http::Method;
use toft_model::name::Name;

use crate::{
    access::rules,
    control::actor::{self, Actor},
};

/// Whether whoever looks would be let through at a route, as the table of rules names it. What asks for a workload is not: see
/// [`may_on`].
pub(super) fn may(method: impl AsRef<str>, path: impl AsRef<str>) -> bool {
    asks(method.as_ref(), path.as_ref(), None)
}

/// The same for a route that is about a workload of that deployment.
pub(super) fn may_on(method: impl AsRef<str>, path: impl AsRef<str>, deployment: &Name) -> bool {
    asks(method.as_ref(), path.as_ref(), Some(deployment))
}

fn asks(method: &str, path: &str, deployment: Option<&Name>) -> bool {
    // Nobody asks when a page is rendered for its own sake.
    let Some(actor) = actor::current() else { return true };
    let Ok(method) = method.parse::<Method>() else { return false };
    let need = rules::need_of(&method, path);
    debug_assert!(need.is_some(), "`{method} {path}` is no route");
    need.is_some_and(|need| rules::admits(need, &actor.rights, deployment))
}

/// What the same page differs by from one who looks to another: whoever may the same sees the same.
pub(super) fn of_whom_looks() -> (String, Actor) {
    let rights = actor::current().map_or_else(toft_model::identity::Rights::all, |actor| actor.rights.clone());
    let grants: Vec<&str> = rights.grants.iter().map(Name::as_str).collect();
    let key = format!("{} {}", rights.role, grants.join(","));
    (key, Actor { rights, ..Actor::root() })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use toft_model::identity::{Rights, Role};

    use super::*;

    #[tokio::test]
    async fn who_looks_sees_what_they_may() {
        let shop: Name = "shop".parse().unwrap();
        let blog: Name = "blog".parse().unwrap();
        let with = |role, grants: &[&Name]| {
            let rights = Rights { role, grants: grants.iter().map(|name| (*name).clone()).collect() };
            Arc::new(Actor { rights, ..Actor::root() })
        };
        let sees = || {
            let stop = "/workloads/{name}/stop";
            [
                may("GET", "/settings"),
                may("GET", "/secrets/new"),
                may("POST", "/run"),
                may_on("POST", stop, &shop),
                may_on("POST", stop, &blog),
            ]
        };
        assert_eq!(actor::act(with(Role::Viewer, &[]), async { sees() }).await, [false; 5]);
        assert_eq!(actor::act(with(Role::Viewer, &[&shop]), async { sees() }).await, [false, false, true, true, false]);
        assert_eq!(actor::act(with(Role::Operator, &[]), async { sees() }).await, [false, true, true, true, true]);
        assert_eq!(actor::act(with(Role::Admin, &[]), async { sees() }).await, [true; 5]);
        let keys = [with(Role::Viewer, &[]), with(Role::Viewer, &[&shop]), with(Role::Operator, &[])];
        let mut known = std::collections::BTreeSet::new();
        for actor in keys {
            let (key, alike) = actor::act(Arc::clone(&actor), async { of_whom_looks() }).await;
            assert!(known.insert(key) && alike.rights == actor.rights);
        }
    }
}
