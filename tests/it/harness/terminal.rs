//! A terminal that somebody sits at.

use std::{
    fs::File,
    io::{Read, Write},
    process::Command,
    sync::mpsc,
};

use nix::pty::openpty;

use super::machine::wait_until;

/// Runs a command on a terminal. Each answer is typed when the words before it were shown. Gives the exit code and all that
/// was shown.
pub fn on_terminal(mut command: Command, answers: &[(&str, &str)]) -> (i32, String) {
    let terminal = openpty(None, None).unwrap();
    let end = |name: &str| File::from(terminal.slave.try_clone().unwrap_or_else(|e| panic!("{name}: {e}")));
    let mut child = command.stdin(end("stdin")).stdout(end("stdout")).stderr(end("stderr")).spawn().unwrap();
    // The command's ends, which it has copies of, must close with it.
    drop(command);
    drop(terminal.slave);
    let mut keyboard = File::from(terminal.master.try_clone().unwrap());
    let mut screen = File::from(terminal.master);
    let (sender, bytes) = mpsc::channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(read @ 1..) = screen.read(&mut buffer) {
            if sender.send(buffer[..read].to_vec()).is_err() {
                return;
            }
        }
    });
    let mut shown = String::new();
    let mut from = 0;
    for (words, answer) in answers {
        wait_until(&format!("`{words}` is shown"), || {
            bytes.try_iter().for_each(|more| shown.push_str(&String::from_utf8_lossy(&more)));
            shown[from..].contains(words).then_some(())
        });
        from = shown.len();
        // Only once the terminal is silent; until then it would show what is typed, and then throw it away.
        wait_until("the question waits", || waits_for_input(child.id()).then_some(()));
        keyboard.write_all(answer.as_bytes()).unwrap();
    }
    let status = wait_until("the command ends", || child.try_wait().unwrap());
    while let Ok(more) = bytes.recv() {
        shown.push_str(&String::from_utf8_lossy(&more));
    }
    (status.code().unwrap_or(-1), shown)
}

/// Whether the process's main thread sleeps in a read of the terminal.
fn waits_for_input(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/wchan"))
        .is_ok_and(|place| place.contains("n_tty") || place.contains("wait_woken"))
}
