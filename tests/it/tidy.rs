//! Rules of the house that the compiler does not know: who may use whom, how long a file may be, and documents that
//! must follow the code.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn sources(dir: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut open = vec![root().join(dir)];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                found.push((path.clone(), fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found.sort();
    assert!(!found.is_empty());
    found
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().display().to_string()
}

/// Which rooms a room may use, besides the `toft_model` package, which all may.
fn allowed() -> BTreeMap<&'static str, &'static [&'static str]> {
    BTreeMap::from([
        ("observe", &[][..]),
        ("embedded", &[]),
        ("config", &[]),
        ("wire", &[]),
        ("seal", &[]),
        ("identity", &[]),
        ("series", &["observe"]),
        ("consensus", &["observe", "wire"]),
        ("enroll", &["consensus", "files", "observe", "seal", "wire"]),
        ("backup", &["consensus", "files", "observe"]),
        ("oidc", &["identity"]),
        ("control", &["backup", "consensus", "identity", "observe", "oidc", "seal"]),
        ("remote", &["consensus", "control", "wire"]),
        ("agent", &["observe", "seal"]),
        ("access", &["api", "control", "identity"]),
        ("api", &["backup", "control", "observe", "seal"]),
        ("dashboard", &["access", "control", "identity", "seal"]),
        ("cli", &["api", "agent", "backup", "config", "daemon", "doctor", "observe"]),
        ("doctor", &["agent", "config"]),
        (
            "daemon",
            &[
                "access",
                "agent",
                "api",
                "backup",
                "config",
                "consensus",
                "control",
                "dashboard",
                "embedded",
                "enroll",
                "files",
                "identity",
                "observe",
                "oidc",
                "remote",
                "seal",
                "series",
                "wire",
            ],
        ),
    ])
}

#[test]
fn rooms_use_only_the_rooms_they_may() {
    let allowed = allowed();
    let mut breaches = Vec::new();
    for (path, text) in sources("src") {
        let relative = relative(&path);
        let room = relative.trim_start_matches("src/").split(['/', '.']).next().unwrap().to_owned();
        if matches!(room.as_str(), "lib" | "main") {
            continue;
        }
        // What a room's tests stand on is their own affair.
        if relative.contains("/tests") {
            continue;
        }
        let text = text.split("#[cfg(test)]").next().unwrap();
        let may =
            allowed.get(room.as_str()).unwrap_or_else(|| panic!("the room `{room}` has no rule in tests/it/tidy.rs"));
        for used in crate_paths(text) {
            if used != room && !may.contains(&used.as_str()) {
                breaches.push(format!("{relative} uses `{used}`"));
            }
        }
    }
    assert!(breaches.is_empty(), "{breaches:#?}");
}

/// The rooms named in `crate::room` and `use crate::{a::..., b}`.
fn crate_paths(text: &str) -> Vec<String> {
    let mut rooms = Vec::new();
    for (at, _) in text.match_indices("crate::") {
        if at > 0 && text[..at].ends_with("pub(in ") {
            continue;
        }
        let rest = &text[at + "crate::".len()..];
        let name = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
        let Some(inside) = rest.strip_prefix('{') else {
            rooms.push(name(rest));
            continue;
        };
        let mut depth = 0;
        let mut begins = true;
        for (i, c) in inside.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => begins = true,
                c if begins && depth == 0 && c.is_alphabetic() => {
                    rooms.push(name(&inside[i..]));
                    begins = false;
                }
                _ => {}
            }
        }
    }
    rooms
}

#[test]
fn the_reader_of_rooms_reads_groups() {
    let text = "use crate::{a::{b, c}, d};\nfn x() { crate::e::f() }";
    assert_eq!(crate_paths(text), ["a", "d", "e"]);
}

#[test]
fn files_are_short_enough_to_read() {
    let mut long = Vec::new();
    for dir in ["src", "crates", "tests", "build"] {
        for (path, text) in sources(dir) {
            let lines = text.lines().count();
            let relative = relative(&path);
            if lines > 600 && !relative.contains("/tests") && !relative.starts_with("tests/") {
                long.push(format!("{relative}: {lines} lines"));
            }
        }
    }
    assert!(long.is_empty(), "{long:#?}");
}

#[test]
fn no_room_is_a_drawer() {
    for (path, _) in ["src", "crates"].into_iter().flat_map(sources) {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let parent = path.parent().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
        for drawer in ["util", "utils", "helper", "helpers", "common", "misc"] {
            assert!(name != drawer && parent != drawer, "{}", relative(&path));
        }
    }
}

/// `TOFT_UPDATE_SNAPSHOTS=1` writes what the code says now.
fn assert_document(path: &str, now: &str) {
    let path = root().join(path);
    if std::env::var_os("TOFT_UPDATE_SNAPSHOTS").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, now).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == now,
        "{} does not follow the code; run the tests with TOFT_UPDATE_SNAPSHOTS=1 and look at the difference",
        path.display()
    );
}

#[test]
fn the_openapi_document_follows_the_code() {
    let mut document = toft::api::http::openapi();
    document.info.version = "0".into();
    assert_document("docs/openapi.json", &(document.to_pretty_json().unwrap() + "\n"));
}

#[test]
fn the_command_line_reference_follows_the_code() {
    let mut text = String::from("# The command line\n\nMade from the program; see `toft --help`.\n");
    let mut command = toft::cli::command().disable_version_flag(true);
    command.build();
    describe(&mut command, "toft", &mut text);
    assert_document("docs/cli.md", &text);
}

fn describe(command: &mut clap::Command, path: &str, text: &mut String) {
    let help = command.clone().term_width(110).render_long_help().to_string();
    let help: Vec<&str> = help.lines().map(str::trim_end).collect();
    text.push_str(&format!("\n## {path}\n\n```text\n{}\n```\n", help.join("\n").trim_end()));
    for inner in command.get_subcommands_mut().filter(|inner| inner.get_name() != "help") {
        let path = format!("{path} {}", inner.get_name());
        describe(inner, &path, text);
    }
}

#[test]
fn every_local_link_of_the_documents_leads_somewhere() {
    let mut open = vec![root().join("docs"), root().join("bench")];
    let mut documents = vec![root().join("README.md")];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|ending| ending == "md") {
                documents.push(path);
            }
        }
    }
    for document in documents {
        let text = fs::read_to_string(&document).unwrap();
        for (at, _) in text.match_indices("](") {
            let target = text[at + 2..].split(')').next().unwrap().split('#').next().unwrap();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            assert!(document.parent().unwrap().join(target).exists(), "{} links to {target}", relative(&document));
        }
    }
}
