//! A person at a terminal.

use std::{
    fs::File,
    io::{Read, Write},
    process::{Child, Command},
    sync::mpsc,
};

use nix::{
    libc,
    pty::{OpenptyResult, openpty},
    sys::{
        signal::{Signal, kill},
        termios::{Termios, tcgetattr},
    },
    unistd::Pid,
};

use super::machine::wait_until;

/// Somebody who types and looks; gone when this is dropped.
pub struct Person {
    pub child: Child,
    keys: File,
    shown: mpsc::Receiver<Vec<u8>>,
    pub screen: String,
    pub terminal: File,
}

impl Person {
    pub fn at(mut command: Command, rows: u16, columns: u16) -> (Self, Termios) {
        let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let OpenptyResult { master, slave } = openpty(Some(&size), None).unwrap();
        let before = tcgetattr(&slave).unwrap();
        let end = || File::from(slave.try_clone().unwrap());
        let child = command.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        let mut screen = File::from(master.try_clone().unwrap());
        let (sender, shown) = mpsc::channel();
        std::thread::spawn(move || {
            let mut part = [0; 4096];
            while let Ok(length @ 1..) = screen.read(&mut part) {
                if sender.send(part[..length].to_vec()).is_err() {
                    return;
                }
            }
        });
        let person = Self { child, keys: master.into(), shown, screen: String::new(), terminal: slave.into() };
        (person, before)
    }

    pub fn types(&mut self, text: &str) {
        self.keys.write_all(text.as_bytes()).unwrap();
    }

    /// Waits until the words are shown, and gives what was before them.
    pub fn sees(&mut self, words: &str) -> String {
        wait_until(&format!("`{words}` is shown"), || {
            self.shown.try_iter().for_each(|part| self.screen.push_str(&String::from_utf8_lossy(&part)));
            self.screen.contains(words).then_some(())
        });
        let begin = self.screen.find(words).unwrap();
        let before = self.screen.drain(..begin).collect();
        self.screen.drain(..words.len());
        before
    }

    pub fn resizes(&mut self, rows: u16, columns: u16) {
        use std::os::fd::AsRawFd;
        let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the call reads the structure it is given.
        assert_eq!(unsafe { libc::ioctl(self.keys.as_raw_fd(), libc::TIOCSWINSZ, &size) }, 0);
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGWINCH).unwrap();
    }

    pub fn ends(&mut self) -> i32 {
        let status = wait_until("the command ends", || self.child.try_wait().unwrap());
        status.code().unwrap_or(-1)
    }
}

impl Drop for Person {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
