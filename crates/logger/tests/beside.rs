//! The logger of a container with input or a terminal: named pipes in a directory, and listeners at a socket.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(20);

/// The directory of a container's pipes, and its logs.
struct Beside {
    dir: PathBuf,
    stdout: Option<File>,
    stderr: Option<File>,
}

impl Beside {
    /// Starts the hook as the runtime does, and opens the pipes as the shim does.
    fn start(terminal: bool) -> Self {
        let mut beside = Self::prepared(terminal);
        let hook = Command::new(env!("CARGO_BIN_EXE_toft-logger")).arg("beside").arg(&beside.dir).output();
        let hook = hook.expect("the hook runs");
        assert!(hook.status.success(), "{}", String::from_utf8_lossy(&hook.stderr));
        let open = |name: &str| File::options().write(true).open(beside.dir.join(name)).expect("the logger opens it");
        let stdout = open("stdout");
        beside.stderr = (!terminal).then(|| open("stderr"));
        beside.stdout = Some(stdout);
        beside
    }

    fn prepared(terminal: bool) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // Longer than the address of a socket may be.
        let name = format!("toft-beside-{}-{number}-{}", std::process::id(), "x".repeat(100));
        let dir = std::env::temp_dir().join(name);
        fs::create_dir_all(&dir).expect("the folder can be made");
        for name in if terminal { &["stdout"][..] } else { &["stdout", "stderr"] } {
            assert!(Command::new("mkfifo").arg(dir.join(name)).status().expect("mkfifo runs").success());
        }
        let arguments = format!("dir\0{}\0max_bytes\0{}\0", dir.join("logs").display(), 64 << 20);
        fs::write(dir.join("arguments"), arguments).expect("they can be written");
        Self { dir, stdout: None, stderr: None }
    }

    fn say(&mut self, bytes: &[u8]) {
        self.stdout.as_mut().expect("it is open").write_all(bytes).expect("the logger reads");
    }

    fn listen(&self, wish: &[u8]) -> UnixStream {
        let here = File::open(&self.dir).expect("the folder is there");
        let path = format!("/proc/self/fd/{}/tap", std::os::fd::AsRawFd::as_raw_fd(&here));
        let mut stream = UnixStream::connect(path).expect("the logger listens");
        stream.set_read_timeout(Some(DEADLINE)).expect("a limit can be set");
        stream.write_all(wish).expect("the logger takes it");
        stream
    }

    /// One that surely listens: nothing is told to who comes later.
    fn listening(&mut self, wish: &[u8]) -> UnixStream {
        let mut stream = self.listen(wish);
        stream.set_nonblocking(true).expect("it can be set");
        let begun = Instant::now();
        let mut first = [0; 5];
        loop {
            self.say(b"?\n");
            assert!(begun.elapsed() < DEADLINE, "it never listens");
            match stream.read(&mut first) {
                Ok(5) => break,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                // So many were there that it was sent away.
                Ok(0) | Err(_) => {
                    stream = self.listen(wish);
                    stream.set_nonblocking(true).expect("it can be set");
                }
                Ok(other) => panic!("{other} bytes of a header"),
            }
            std::thread::yield_now();
        }
        stream.set_nonblocking(false).expect("it can be set");
        let length = u32::from_be_bytes([first[1], first[2], first[3], first[4]]);
        stream.read_exact(&mut vec![0; length as usize]).expect("a frame is whole");
        stream
    }

    fn close(&mut self) {
        self.stdout = None;
        self.stderr = None;
    }

    fn log(&self) -> Vec<String> {
        let text = fs::read_to_string(self.dir.join("logs/current.log")).unwrap_or_default();
        text.split_terminator('\n')
            .map(|line| line.split_once(' ').map_or(String::new(), |(_, rest)| rest.to_owned()))
            .collect()
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Frames to the end: what was written to each stream, and whether the end was told.
fn all(stream: &mut UnixStream) -> (Vec<u8>, Vec<u8>, bool) {
    let (mut out, mut err, mut end) = (Vec::new(), Vec::new(), false);
    let mut header = [0; 5];
    while stream.read_exact(&mut header).is_ok() {
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]);
        let mut bytes = vec![0; length as usize];
        stream.read_exact(&mut bytes).expect("a frame is whole");
        match header[0] {
            1 => out.extend(bytes),
            2 => err.extend(bytes),
            3 => end = true,
            other => panic!("a frame of kind {other}"),
        }
    }
    (out, err, end)
}

#[test]
fn listeners_get_the_bytes_as_they_come_and_the_log_gets_lines() {
    let mut beside = Beside::start(false);
    let mut first = beside.listening(b"o");
    let mut waiting = beside.listen(b"e");
    beside.say(b"prompt> ");
    let mut header = [0; 5];
    loop {
        first.read_exact(&mut header).expect("a frame");
        let mut text = vec![0; usize::from(header[4])];
        first.read_exact(&mut text).expect("a frame is whole");
        if text.ends_with(b"prompt> ") {
            break;
        }
    }
    beside.stderr.as_mut().expect("it is open").write_all(b"trouble\r\n").expect("the logger reads");
    beside.close();
    assert_eq!(all(&mut first), (Vec::new(), b"trouble\r\n".to_vec(), true));
    assert_eq!(all(&mut waiting), (Vec::new(), Vec::new(), true));
    let log = beside.log();
    for line in ["stdout F prompt> ", "stderr F trouble\r"] {
        assert!(log.iter().any(|logged| logged == line), "{log:?}");
    }
}

#[test]
fn lines_of_a_terminal_are_logged_without_their_carriage_returns() {
    let mut beside = Beside::start(true);
    let mut end = beside.listen(b"e");
    beside.say(b"a\r\nb\rc\r\n\r\nlast\r");
    beside.close();
    assert!(all(&mut end).2);
    assert_eq!(beside.log(), ["stdout F a", "stdout F b\rc", "stdout F ", "stdout F last"]);
}

#[test]
fn a_listener_that_takes_nothing_is_cut_off_and_the_others_miss_nothing() {
    let mut beside = Beside::start(false);
    let mut deaf = beside.listening(b"o");
    let mut attentive = beside.listening(b"o");
    let reading = std::thread::spawn(move || all(&mut attentive));
    let line = [b'x'; 1023].into_iter().chain([b'\n']).collect::<Vec<u8>>();
    let begun = Instant::now();
    for _ in 0..8_000 {
        beside.say(&line);
    }
    assert!(begun.elapsed() < DEADLINE, "it was held up for {:?}", begun.elapsed());
    beside.close();
    let (out, _, end) = reading.join().expect("it reads");
    assert_eq!((out.iter().filter(|byte| **byte == b'x').count(), end), (8_000 * 1023, true));
    let mut rest = Vec::new();
    deaf.read_to_end(&mut rest).expect("what was sent is there");
    assert!(rest.len() < 8_000 * 1024, "it was cut off");
    assert!(!rest.ends_with(&[3, 0, 0, 0, 0]), "the end is told only to who has all");
}

#[test]
fn who_wants_no_loss_holds_the_container_up() {
    let mut beside = Beside::start(false);
    let mut slow = beside.listening(b"O");
    let written = std::sync::Arc::new(AtomicU32::new(0));
    let (mut stdout, counted) = (beside.stdout.take().expect("it is open"), written.clone());
    let writing = std::thread::spawn(move || {
        for _ in 0..4_000 {
            stdout.write_all(&[b'y'; 1024]).expect("the logger reads");
            counted.fetch_add(1, Ordering::Relaxed);
        }
    });
    // Longer than another would be waited for.
    std::thread::sleep(Duration::from_secs(6));
    assert!(written.load(Ordering::Relaxed) < 4_000, "it waits");
    beside.stderr = None;
    let (out, _, end) = all(&mut slow);
    writing.join().expect("it is through");
    assert_eq!((out.iter().filter(|byte| **byte == b'y').count(), end), (4_000 * 1024, true));
}

#[test]
fn strangers_do_no_harm() {
    let mut beside = Beside::start(false);
    for wish in [&b"x"[..], b"\0", b"oooooooooooo", b""] {
        drop(beside.listen(wish));
    }
    let crowd: Vec<UnixStream> = (0..100).map(|_| beside.listen(b"")).collect();
    drop(crowd);
    let mut listener = beside.listening(b"o");
    beside.close();
    assert!(all(&mut listener).2);
}

#[test]
fn a_hook_without_its_directory_says_why() {
    let mut beside = Beside::prepared(false);
    beside.close();
    fs::remove_file(beside.dir.join("arguments")).expect("it is there");
    let hook =
        |dir: &Path| Command::new(env!("CARGO_BIN_EXE_toft-logger")).arg("beside").arg(dir).output().expect("it runs");
    let refused = hook(&beside.dir);
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("arguments"), "{refused:?}");
    assert!(!hook(Path::new("/nowhere")).status.success());
}
