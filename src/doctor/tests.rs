//! The whole examination.

use super::*;
use crate::config::Flags;

#[tokio::test]
async fn every_failure_has_a_remedy_and_every_check_a_name_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let flags = Flags { data_dir: Some(dir.path().to_owned()), ..Flags::default() };
    let checks = examine(&Config::resolve(flags, "box")).await;
    let mut names: Vec<_> = checks.iter().map(|check| (check.area, check.name)).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), checks.len());
    assert!(checks.len() > 20, "{checks:?}");
    for check in &checks {
        assert!(check.verdict != Verdict::Failure || check.fix.is_some(), "{check:?}");
        assert!(!check.message.is_empty() && !check.message.contains('\n'), "{check:?}");
    }
}

#[tokio::test]
async fn a_configuration_with_faults_is_a_failure_and_the_rest_is_looked_at() {
    let checks = examine(&Err(ConfigError(vec!["toft.toml: unknown key".into()]))).await;
    let configuration = checks.iter().find(|check| check.name == "configuration").unwrap();
    assert!(configuration.verdict == Verdict::Failure && configuration.message.contains("unknown key"));
    assert!(checks.iter().any(|check| check.name == "overlay"));
}
