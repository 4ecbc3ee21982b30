//! Which program does the hooks of specifications: the one that they name where it is there, else toft itself, for those of NVIDIA's
//! program that it knows.

use std::path::{Path, PathBuf};

use super::{EditHook, Edits, nvidia};

/// NVIDIA's programs.
const PROGRAMS: [&str; 2] = ["nvidia-cdi-hook", "nvidia-ctk"];
/// What toft does in their place.
const DONE: [&str; 2] = ["update-ldcache", "create-symlinks"];
/// What containers do without: modes of folders, libraries of older drivers, and that programs make no devices, which the
/// rules of the control group see to.
const SPARED: [&str; 4] = ["chmod", "enable-cuda-compat", "disable-device-node-modification", "update-nvidia-params"];
/// Seconds that toft may take for one.
const PATIENCE: i64 = 30;
const WHEN: &str = "createContainer";
/// toft's own command.
const COMMAND: &str = "cdi-hook";

/// The hook that makes toft's program tell the loader of libraries that are mounted.
pub(super) fn of_libraries(program: &Path) -> EditHook {
    let folders = nvidia::inside().into_iter().flat_map(|folder| ["--folder".to_owned(), folder.to_owned()]);
    own(program, "update-ldcache", folders)
}

fn own(program: &Path, what: &str, args: impl IntoIterator<Item = String>) -> EditHook {
    let begin = ["toft", COMMAND, what].map(str::to_owned);
    EditHook {
        hook_name: WHEN.to_owned(),
        path: program.to_owned(),
        args: begin.into_iter().chain(args).collect(),
        env: Vec::new(),
        timeout: Some(PATIENCE),
    }
}

/// Puts toft's program in place of NVIDIA's where that is not there. `Err` says which program is missing.
pub(super) fn complete(mut edits: Edits, program: &Path) -> Result<Edits, String> {
    let hooks = std::mem::take(&mut edits.hooks);
    let complete = |hook: EditHook| if hook.path.exists() { Some(Ok(hook)) } else { replace(hook, program) };
    edits.hooks = hooks.into_iter().filter_map(complete).collect::<Result<_, _>>()?;
    Ok(edits)
}

/// Nothing when it can be done without.
fn replace(hook: EditHook, program: &Path) -> Option<Result<EditHook, String>> {
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let missing = |hook: &EditHook| format!("the program `{}` of a hook is not there", hook.path.display());
    if !PROGRAMS.contains(&name(&hook.path).as_str()) || hook.hook_name != WHEN {
        return Some(Err(missing(&hook)));
    }
    let words: Vec<&String> = hook.args.iter().skip(1).skip_while(|word| *word == "hook").collect();
    match words.split_first() {
        Some((what, rest)) if DONE.contains(&what.as_str()) => {
            Some(options(rest).map(|args| own(program, what, args)).ok_or_else(|| missing(&hook)))
        }
        Some((what, _)) if SPARED.contains(&what.as_str()) => None,
        _ => Some(Err(missing(&hook))),
    }
}

/// Those that toft knows, and without what concerns NVIDIA's program alone.
fn options(words: &[&String]) -> Option<Vec<String>> {
    let mut known = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let (key, value) = match word.split_once('=') {
            Some((key, value)) => (key, value.to_owned()),
            None => (word.as_str(), words.next()?.to_string()),
        };
        match key {
            "--folder" | "--link" => known.extend([key.to_owned(), value]),
            "--ldconfig-path" | "--container-spec" | "--host-driver-version" => {}
            _ => return None,
        }
    }
    Some(known)
}

/// The program that this process is, also after its file was replaced.
pub(super) fn own_program() -> PathBuf {
    let path = std::env::current_exe().unwrap_or_else(|_| "/usr/bin/toft".into());
    let text = path.to_string_lossy();
    text.strip_suffix(" (deleted)").map(PathBuf::from).unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completed(path: &str, when: &str, args: &[&str]) -> Result<Vec<Vec<String>>, String> {
        let hook = EditHook {
            hook_name: when.into(),
            path: path.into(),
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            ..EditHook::default()
        };
        let edits = complete(Edits { hooks: vec![hook], ..Edits::default() }, "/opt/toft".as_ref())?;
        Ok(edits.hooks.into_iter().map(|hook| hook.args).collect())
    }

    #[test]
    fn hooks_whose_program_is_missing_are_done_by_toft() {
        let gone = "/no/such/nvidia-cdi-hook";
        let check = |path: &str, args: &[&str], want: &[&str]| {
            let hooks = completed(path, "createContainer", args).unwrap();
            assert_eq!(hooks.concat(), want, "{args:?}");
        };
        check(
            gone,
            &["nvidia-cdi-hook", "update-ldcache", "--ldconfig-path", "@/sbin/ldconfig", "--folder", "/usr/lib64"],
            &["toft", "cdi-hook", "update-ldcache", "--folder", "/usr/lib64"],
        );
        check(
            "/no/such/nvidia-ctk",
            &["nvidia-ctk", "hook", "create-symlinks", "--link=a::/b"],
            &["toft", "cdi-hook", "create-symlinks", "--link", "a::/b"],
        );
        check(gone, &["nvidia-cdi-hook", "chmod", "--mode", "755", "--path", "/dev/dri"], &[]);
        check("/bin/sh", &["sh", "-c", "true"], &["sh", "-c", "true"]);
    }

    #[test]
    fn what_toft_does_not_know_is_told() {
        for (path, when, args) in [
            ("/no/such/program", "createContainer", &["program", "update-ldcache"][..]),
            ("/no/such/nvidia-cdi-hook", "prestart", &["nvidia-cdi-hook", "update-ldcache"]),
            ("/no/such/nvidia-cdi-hook", "createContainer", &["nvidia-cdi-hook", "format-disk"]),
            ("/no/such/nvidia-cdi-hook", "createContainer", &["nvidia-cdi-hook"]),
            ("/no/such/nvidia-cdi-hook", "createContainer", &["x", "update-ldcache", "--folder"]),
            ("/no/such/nvidia-cdi-hook", "createContainer", &["x", "update-ldcache", "--evil", "x"]),
        ] {
            let why = completed(path, when, args).unwrap_err();
            assert!(why.contains("is not there"), "{why}");
        }
    }
}
