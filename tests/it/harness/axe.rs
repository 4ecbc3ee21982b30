//! axe-core, which finds what keeps people out of a page. It comes from npm once, and is kept beside what is built.

use std::{
    fs,
    path::PathBuf,
    process::Command,
    sync::{Mutex, PoisonError},
};

const VERSION: &str = "4.14.1";

/// The script.
pub fn script() -> String {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let tools = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("axe-core-{VERSION}"));
    let file = tools.join("package/axe.min.js");
    if !file.exists() {
        fs::create_dir_all(&tools).unwrap();
        let run = |command: &mut Command| {
            let done = command.current_dir(&tools).output().unwrap();
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        };
        run(Command::new("npm").args(["pack", "--silent", &format!("axe-core@{VERSION}")]));
        run(Command::new("tar").args(["xzf", &format!("axe-core-{VERSION}.tgz")]));
    }
    fs::read_to_string(file).unwrap()
}
