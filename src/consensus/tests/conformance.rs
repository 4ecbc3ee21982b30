//! openraft's own suite on our log and state machine.

use openraft::{
    StorageError,
    testing::{StoreBuilder, Suite},
};
use tempfile::TempDir;

use super::super::{
    log_store::{LogFile, LogStore},
    open::prepare,
    state_machine::{Readers, StateMachine},
    types::{MemberId, Types},
};

struct Builder;

impl StoreBuilder<Types, LogStore, StateMachine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError<MemberId>> {
        let folder = tempfile::tempdir().unwrap();
        let waits = tokio::sync::watch::Sender::new(false);
        let path = folder.path().join("raft.redb");
        std::fs::File::create(&path).unwrap();
        let log = LogFile::empty(path).unwrap();
        let (log, _) = LogStore::start(log, waits.clone()).unwrap();
        let path = folder.path().join("state.sqlite");
        let connection = prepare(&path).unwrap();
        let snapshots = folder.path().join("snapshots");
        let (state, _) = StateMachine::start(connection, Readers::new(path), snapshots, waits).unwrap();
        Ok((folder, log, state))
    }
}

#[test]
fn the_stores_do_what_openraft_expects() {
    Suite::test_all(Builder).unwrap();
}
