//! Logins at registries: one a registry, sealed, versioned.

use super::cluster::Cluster;
use crate::{
    registry::{MAX_LOGINS, MAX_PASSWORD_BYTES, RegistryName},
    secret::SealedSecret,
    state::{Command, RefusalKind, RegistryRow, Reply},
};

fn name(text: &str) -> RegistryName {
    text.parse().unwrap()
}

fn put(registry: &str, username: &str, version: u64, bytes: usize) -> Command {
    let value = SealedSecret { version, sealed: vec![7; bytes].into() };
    Command::PutRegistry {
        registry: name(registry),
        username: username.to_owned(),
        value,
        at_ms: 1_000 + version as i64,
    }
}

fn remove(registry: &str) -> Command {
    Command::RemoveRegistry { registry: name(registry), at_ms: 9_000 }
}

#[test]
fn a_registry_has_one_login_that_can_be_changed_and_removed() {
    let mut cluster = Cluster::new();
    let Reply::Registry(first) = cluster.apply(put("ghcr.io", "jo", 1, 20)) else { panic!("no login was answered") };
    assert_eq!((first.username.as_str(), first.version, first.created_at_ms), ("jo", 1, 1_001));
    for version in [0, 1, 3] {
        assert_eq!(cluster.refused(put("ghcr.io", "jo", version, 20)), RefusalKind::Stale, "{version}");
    }
    let Reply::Registry(second) = cluster.apply(put("ghcr.io", "al", 2, 30)) else { panic!("no login was answered") };
    assert_eq!((second.username.as_str(), second.created_at_ms, second.updated_at_ms), ("al", 1_001, 1_002));
    let (username, sealed) = RegistryRow::sealed(&cluster.connection, &name("ghcr.io")).unwrap().unwrap();
    assert_eq!((username.as_str(), sealed.version, sealed.sealed.as_bytes().len()), ("al", 2, 30));
    cluster.apply(put("docker.io", "jo", 1, 20));
    let all = RegistryRow::all(&cluster.connection).unwrap();
    assert_eq!(all.iter().map(|row| row.registry.as_str()).collect::<Vec<_>>(), ["docker.io", "ghcr.io"]);
    cluster.apply(remove("ghcr.io"));
    assert_eq!(cluster.refused(remove("ghcr.io")), RefusalKind::NotFound);
    assert_eq!(RegistryRow::sealed(&cluster.connection, &name("ghcr.io")).unwrap(), None);
    assert_eq!(
        cluster.story(),
        [
            "registry/ghcr.io: login as `jo`",
            "registry/ghcr.io: login as `al`",
            "registry/docker.io: login as `jo`",
            "registry/ghcr.io: login removed"
        ]
    );
}

#[test]
fn there_are_limits() {
    let mut cluster = Cluster::new();
    assert_eq!(cluster.refused(put("ghcr.io", "a:b", 1, 20)), RefusalKind::Invalid);
    assert_eq!(cluster.refused(put("ghcr.io", "", 1, 20)), RefusalKind::Invalid);
    assert_eq!(cluster.refused(put("ghcr.io", "jo", 1, MAX_PASSWORD_BYTES + 129)), RefusalKind::Full);
    for number in 0..MAX_LOGINS {
        cluster.apply(put(&format!("r{number}.example"), "jo", 1, 20));
    }
    assert_eq!(cluster.refused(put("one.more.example", "jo", 1, 20)), RefusalKind::Full);
    cluster.apply(put("r0.example", "al", 2, 20));
}
