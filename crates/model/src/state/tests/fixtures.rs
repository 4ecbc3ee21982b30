//! One file for each command, as some version of toft wrote it. They must parse for ever: old logs hold them.

use std::{collections::BTreeSet, fs, path::PathBuf};

use super::cluster::{Cluster, dump};
use crate::{
    ids::RequestId,
    state::{Command, Request},
};

/// The order in which the fixtures tell one story, from the node's first word to the last container's end.
const STORY: [&str; 45] = [
    "create_user",
    "open_session",
    "create_api_token",
    "note_uses",
    "change_user",
    "put_second_factor",
    "put_passkey",
    "configure_access",
    "put_signing_key",
    "accept_user",
    "create_token",
    "admit_node",
    "claim_subnet",
    "register_node",
    "announce_mesh",
    "configure_gpu",
    "put_secret",
    "put_registry",
    "create_volume",
    "bind_volume",
    "move_volume",
    "turn_volume",
    "put_workload",
    "commit_plan",
    "report_instances",
    "configure_node",
    "configure_placement",
    "note_nodes",
    "move_instances",
    "label_workload",
    "power_workload",
    "roll_back_workload",
    "remove_workload",
    "remove_secret",
    "remove_registry",
    "remove_volume",
    "forget_volumes",
    "revoke_token",
    "remove_node",
    "revoke_api_token",
    "end_session",
    "remove_second_factor",
    "remove_passkey",
    "remove_user",
    "note_action",
];

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/state/fixtures")
}

pub(super) fn fixture(variant: &str) -> Command {
    let path = folder().join(format!("{variant}.json"));
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("`{}` cannot be read: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("`{}` does not parse any more: {e}", path.display()))
}

pub(super) fn story() -> impl Iterator<Item = Command> {
    STORY.into_iter().map(fixture)
}

/// The variants by their names in a log, as serde lists them when it meets one it does not know.
fn variants() -> BTreeSet<String> {
    let error = serde_json::from_str::<Command>(r#"{"command":"?"}"#).unwrap_err().to_string();
    let names = error.split('`').skip(3).step_by(2).map(str::to_owned).collect::<BTreeSet<_>>();
    assert!(names.contains("register_node"), "no variants in `{error}`");
    names
}

#[test]
fn every_command_has_a_fixture_and_a_place_in_the_story() {
    let files: BTreeSet<String> = fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    assert_eq!(variants(), files, "left: commands, right: files in src/state/fixtures");
    assert_eq!(variants(), STORY.map(str::to_owned).into(), "left: commands, right: the story");
}

#[test]
fn fixtures_survive_a_round_trip() {
    for command in story() {
        let text = serde_json::to_string(&command).unwrap();
        assert_eq!(serde_json::from_str::<Command>(&text).unwrap(), command);
    }
}

/// A command stands in the log beside what names the request: their fields must not be called the same.
#[test]
fn fixtures_survive_a_round_trip_as_requests() {
    for command in story() {
        let request = Request::new(RequestId(uuid::Uuid::from_u128(7)), command);
        let text = serde_json::to_string(&request).unwrap();
        assert_eq!(serde_json::from_str::<Request>(&text).unwrap(), request);
    }
}

/// Whoever changes what a command writes sees it here, and asks what becomes of the nodes that still run the old way.
#[test]
fn what_the_fixtures_write_is_known() {
    let mut cluster = Cluster::new();
    for command in story() {
        let before = dump(&cluster.connection);
        cluster.apply(command);
        assert_ne!(dump(&cluster.connection), before);
    }
    insta::assert_snapshot!(dump(&cluster.connection));
}

#[test]
fn the_words_inside_commands_parse_for_ever() {
    use crate::{
        instance::{Desired, InstanceState, NetworkOrder},
        passkey::PasskeyUse,
        state::{InstanceMove, PowerAction, PutMode, Unmoved},
    };
    fn parses<T: serde::de::DeserializeOwned>(texts: &[&str]) {
        for text in texts {
            assert!(serde_json::from_str::<T>(text).is_ok(), "`{text}` does not parse any more");
        }
    }
    parses::<PutMode>(&[r#"{"mode":"create"}"#, r#"{"mode":"replace","if_generation":7}"#]);
    parses::<PowerAction>(&[r#""start""#, r#""stop""#, r#""restart""#]);
    // No instance of the story can be moved.
    parses::<InstanceMove>(&[
        r#"{"instance_id":"0199c0de-0000-7000-8000-000000000003","generation":2,"from":"0199c0de-0000-7000-8000-000000000001",
            "to":"0199c0de-0000-7000-8000-000000000009"}"#,
    ]);
    parses::<Unmoved>(&[
        r#"{"instance_id":"0199c0de-0000-7000-8000-000000000003","to":"0199c0de-0000-7000-8000-000000000009",
            "reason":"it is cordoned"}"#,
    ]);
    parses::<PasskeyUse>(&[
        r#"{"passkey_id":"p4sskeyaaa","counter":0,"backup":"never"}"#,
        r#"{"passkey_id":"p4sskeyaaa","counter":7,"backup":"possible"}"#,
        r#"{"passkey_id":"p4sskeyaaa","counter":7,"backup":"done"}"#,
    ]);
    parses::<Desired>(&[r#""running""#, r#""stopped""#, r#""removed""#]);
    parses::<NetworkOrder>(&[
        r#"{"mode":"host"}"#,
        r#"{"mode":"none"}"#,
        r#"{"mode":"bridge","address":"10.0.0.2","ports":[]}"#,
    ]);
    parses::<InstanceState>(&[
        r#"{"state":"assigned"}"#,
        r#"{"state":"starting"}"#,
        r#"{"state":"running","pid":1,"since_ms":2}"#,
        r#"{"state":"stopping"}"#,
        r#"{"state":"stopped","exit":null}"#,
        r#"{"state":"back_off","until_ms":1,"reason":"exited with code 1"}"#,
        r#"{"state":"finished","exit":{"code":null,"at_ms":1}}"#,
    ]);
}
