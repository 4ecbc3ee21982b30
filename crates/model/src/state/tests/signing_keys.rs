//! Keys that sign short-lived tokens.

use super::cluster::Cluster;
use crate::{
    signing::{MAX_SIGNED_TTL_MS, NewSigningKey, SIGNS_MS},
    state::{Command, RefusalKind, SigningKeyRow},
    token::TokenId,
};

fn put(number: u8, alone: bool, at_ms: i64) -> Command {
    let key =
        NewSigningKey { id: TokenId::of([number; 10]), public: vec![number; 32], sealed: vec![number; 81].into() };
    Command::PutSigningKey { key: Box::new(key), alone, at_ms }
}

fn known(cluster: &Cluster) -> Vec<u8> {
    SigningKeyRow::all(&cluster.connection).unwrap().iter().map(|row| row.key.public[0]).collect()
}

#[test]
fn keys_follow_each_other_and_what_they_signed_outlives_them() {
    let mut cluster = Cluster::new();
    cluster.apply(put(1, false, 0));
    assert_eq!(cluster.refused(put(2, false, SIGNS_MS / 2 - 1)), RefusalKind::Stale, "two leaders make one");
    assert_eq!(cluster.refused(put(1, true, SIGNS_MS)), RefusalKind::Exists);
    cluster.apply(put(2, false, SIGNS_MS));
    assert_eq!(known(&cluster), [2, 1], "what the old one signed last is still valid");
    cluster.apply(put(3, false, 2 * SIGNS_MS));
    assert_eq!(known(&cluster), [3, 2]);
    let row = SigningKeyRow::by_id(&cluster.connection, &TokenId::of([3; 10])).unwrap().unwrap();
    assert_eq!(row.created_at_ms, 2 * SIGNS_MS);
    cluster.apply(put(4, true, 2 * SIGNS_MS + MAX_SIGNED_TTL_MS));
    assert_eq!(known(&cluster), [4], "alone, it ends what the others signed");
    let wrong = NewSigningKey { id: TokenId::of([9; 10]), public: vec![1; 31], sealed: vec![1].into() };
    assert_eq!(
        cluster.refused(Command::PutSigningKey { key: Box::new(wrong), alone: true, at_ms: 1 }),
        RefusalKind::Invalid
    );
}
