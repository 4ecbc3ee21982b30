//! One thing at a time for each volume. Whoever waits does so for a while only: a server that hangs holds a lock for
//! ever.

use std::{
    collections::BTreeSet,
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::Duration,
};

use toft_model::name::Name;

#[derive(Clone, Default)]
pub(super) struct Locks(Arc<(Mutex<BTreeSet<Name>>, Condvar)>);

/// A volume that is nobody else's until this is dropped.
pub(super) struct Held {
    locks: Locks,
    name: Name,
}

impl Locks {
    /// Waits for the volume for at most `limit`.
    pub(super) fn hold(&self, name: &Name, limit: Duration) -> Option<Held> {
        let (held, freed) = &*self.0;
        let held = held.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = freed.wait_timeout_while(held, limit, |held| held.contains(name));
        let (mut held, _) = waited.unwrap_or_else(PoisonError::into_inner);
        held.insert(name.clone()).then(|| Held { locks: self.clone(), name: name.clone() })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let (held, freed) = &*self.locks.0;
        held.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.name);
        freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_held_once_and_others_go_on() {
        let locks = Locks::default();
        let [data, other]: [Name; 2] = ["data", "other"].map(|name| name.parse().unwrap());
        let first = locks.hold(&data, Duration::ZERO).unwrap();
        assert!(locks.hold(&data, Duration::from_millis(1)).is_none());
        assert!(locks.hold(&other, Duration::ZERO).is_some());
        let waits = std::thread::spawn({
            let (locks, data) = (locks.clone(), data.clone());
            move || locks.hold(&data, Duration::from_secs(60)).is_some()
        });
        drop(first);
        assert!(waits.join().unwrap());
        assert!(locks.hold(&data, Duration::ZERO).is_some(), "the end of a holder frees it");
    }
}
