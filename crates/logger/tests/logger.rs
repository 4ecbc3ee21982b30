//! The logger as the shim runs it: pipes on descriptors 3, 4 and 5, settings as argv pairs.

use std::ffi::{c_int, c_ulong};
use std::fs;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(20);
const F_DUPFD_CLOEXEC: c_int = 1030;
const SIGINT: c_int = 2;
const SIGTERM: c_int = 15;
const CLONE_NEWPID: c_int = 0x2000_0000;

unsafe extern "C" {
    fn dup2(from: c_int, to: c_int) -> c_int;
    fn fcntl(fd: c_int, command: c_int, argument: c_ulong) -> c_int;
    fn kill(pid: c_int, signal: c_int) -> c_int;
    fn unshare(flags: c_int) -> c_int;
}

/// A folder that goes away with the test.
struct TempDir(PathBuf);

impl TempDir {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("toft-logger-test-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).expect("the temporary folder can be made");
        Self(path)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A running logger and our ends of its pipes.
struct Logger {
    child: Child,
    stdout: Option<PipeWriter>,
    stderr: Option<PipeWriter>,
}

impl Logger {
    fn start(dir: &Path, max_bytes: u64, max_files: u32) -> Self {
        Self::spawn(Self::command(dir, max_bytes, max_files))
    }

    fn command(dir: &Path, max_bytes: u64, max_files: u32) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_toft-logger"));
        command.args(["max_files", &max_files.to_string(), "dir"]).arg(dir);
        command.args(["max_bytes", &max_bytes.to_string()]);
        command
    }

    /// Starts `command` with the three pipes and waits until it says that it is ready.
    fn spawn(mut command: Command) -> Self {
        let (stdout, stderr, ready) = (pipe(), pipe(), pipe());
        let inherited = [stdout.0.as_raw_fd(), stderr.0.as_raw_fd(), ready.1.as_raw_fd()];
        // SAFETY: between fork and exec only dup2 and fcntl are called, on our own descriptors.
        unsafe { command.pre_exec(move || place_descriptors(inherited)) };
        let child = command.spawn().expect("the logger starts");
        let (mut ready_end, writer) = ready;
        drop(writer);
        let mut nothing = Vec::new();
        ready_end.read_to_end(&mut nothing).expect("the ready pipe can be read");
        assert!(nothing.is_empty());
        Self { child, stdout: Some(stdout.1), stderr: Some(stderr.1) }
    }

    fn say(&mut self, text: &str) {
        self.stdout.as_mut().expect("stdout is open").write_all(text.as_bytes()).expect("the logger reads");
    }

    fn complain(&mut self, text: &str) {
        self.stderr.as_mut().expect("stderr is open").write_all(text.as_bytes()).expect("the logger reads");
    }

    fn signal(&self, number: c_int) {
        // SAFETY: the child has not been waited for, so its id is still its own.
        assert_eq!(unsafe { kill(self.child.id() as c_int, number) }, 0);
    }

    /// Ends both pipes and waits for the logger to leave.
    fn end(mut self) -> ExitStatus {
        drop((self.stdout.take(), self.stderr.take()));
        let mut status = None;
        wait_until("the logger to leave", || {
            status = self.child.try_wait().expect("the logger can be waited for");
            status.is_some()
        });
        status.expect("the wait ended with a status")
    }
}

impl Drop for Logger {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn pipe() -> (PipeReader, PipeWriter) {
    io::pipe().expect("a pipe can be made")
}

/// Puts the descriptors at 3, 4 and 5, by way of high numbers since they may be in each other's place.
fn place_descriptors(fds: [c_int; 3]) -> io::Result<()> {
    let mut high = [0; 3];
    for (place, fd) in high.iter_mut().zip(fds) {
        // SAFETY: plain system calls on numbers.
        *place = unsafe { fcntl(fd, F_DUPFD_CLOEXEC, 100) };
    }
    for (fd, target) in high.into_iter().zip(3..) {
        // SAFETY: as above.
        if unsafe { dup2(fd, target) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "timed out waiting for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn read(path: &Path) -> String {
    String::from_utf8(fs::read(path).unwrap_or_default()).expect("the log is text")
}

/// A record's stream, tag and text, once its time was found well-formed.
fn fields(record: &str) -> (&str, &str, &str) {
    let mut parts = record.splitn(4, ' ');
    let mut next = || parts.next().unwrap_or_else(|| panic!("incomplete record {record:?}"));
    let time = next();
    let shape: String = time.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    assert_eq!(shape, "0000-00-00T00:00:00.000000000Z", "in {record:?}");
    (next(), next(), next())
}

/// All log files, the oldest first.
fn files(dir: &Path) -> Vec<PathBuf> {
    let rotated = (1..).map(|number| dir.join(format!("current.log.{number}"))).take_while(|path| path.exists());
    let mut files: Vec<_> = rotated.collect();
    files.reverse();
    files.push(dir.join("current.log"));
    assert_eq!(fs::read_dir(dir).expect("the folder is there").count(), files.len());
    files
}

#[test]
fn both_streams_are_recorded_in_the_cri_format() {
    let temp = TempDir::new();
    let dir = temp.0.join("new/folder");
    let mut logger = Logger::start(&dir, 1 << 20, 3);
    let long = "y".repeat(20_000);
    logger.say(&format!("hello\n\n{long}\ntail without newline"));
    wait_until("stdout", || read(&dir.join("current.log")).lines().count() == 4);
    logger.complain("oh no\n");
    assert!(logger.end().success());

    let text = read(&dir.join("current.log"));
    let records: Vec<_> = text.lines().map(fields).collect();
    let (head, rest) = long.split_at(16 * 1024);
    let mut expected = vec![
        ("stdout", "F", "hello"),
        ("stdout", "F", ""),
        ("stdout", "P", head),
        ("stdout", "F", rest),
        ("stdout", "F", "tail without newline"),
        ("stderr", "F", "oh no"),
    ];
    let mut found = records;
    expected.sort_unstable();
    found.sort_unstable();
    assert_eq!(found, expected);
    assert!(text.ends_with('\n'));
    let mode = |path: &Path| fs::metadata(path).expect("it exists").permissions().mode() & 0o7777;
    assert_eq!(mode(&dir) & !0o750, 0);
    assert_eq!(mode(&dir.join("current.log")) & !0o640, 0);
}

#[test]
fn a_new_logger_appends_and_closes_a_torn_record() {
    let temp = TempDir::new();
    let log = temp.0.join("current.log");
    for text in ["first\n", "second\n"] {
        let mut logger = Logger::start(&temp.0, 1 << 20, 3);
        logger.say(text);
        assert!(logger.end().success());
    }
    let texts: Vec<_> = read(&log).lines().map(|record| fields(record).2.to_owned()).collect();
    assert_eq!(texts, ["first", "second"]);

    fs::write(&log, "torn").expect("the log can be written");
    let mut logger = Logger::start(&temp.0, 1 << 20, 3);
    logger.say("third\n");
    assert!(logger.end().success());
    let text = read(&log);
    let (torn, rest) = text.split_once('\n').expect("two lines");
    assert_eq!((torn, fields(rest.trim_end()).2), ("torn", "third"));
}

#[test]
fn rotation_keeps_files_small_few_and_whole() {
    let limit = 40_000;
    for max_files in [1, 3] {
        let temp = TempDir::new();
        // Left by a logger that was allowed more files.
        fs::write(temp.0.join(format!("current.log.{max_files}")), "old\n").expect("the file can be written");
        let mut logger = Logger::start(&temp.0, limit, max_files);
        for number in 0..5_000 {
            logger.say(&format!("{number} {}\n", "z".repeat(number % 300)));
        }
        assert!(logger.end().success());
        let files = files(&temp.0);
        assert_eq!(files.len(), max_files as usize);
        let mut numbers = Vec::new();
        for path in &files {
            let text = read(path);
            assert!(text.len() as u64 <= limit && text.ends_with('\n'), "{}", path.display());
            numbers.extend(text.lines().map(|record| {
                fields(record).2.split(' ').next().and_then(|n| n.parse::<u32>().ok()).expect("a whole record")
            }));
        }
        let first = numbers[0];
        assert!(numbers.iter().copied().eq(first..5_000), "the newest records are kept, in order");
    }
}

#[test]
fn no_line_of_a_flood_is_lost() {
    let temp = TempDir::new();
    let mut logger = Logger::start(&temp.0, 1 << 20, 100);
    let mut text = String::new();
    for number in 0..200_000 {
        text.push_str(&format!("line {number}\n"));
    }
    let errors = logger.stderr.take();
    let writer = std::thread::spawn(move || {
        let mut errors = errors.expect("stderr is open");
        (0..20_000).try_for_each(|number| errors.write_all(format!("error {number}\n").as_bytes()))
    });
    logger.say(&text);
    writer.join().expect("no panic").expect("the logger reads");
    assert!(logger.end().success());

    let (mut lines, mut errors, mut previous) = (0, 0, String::new());
    for path in files(&temp.0) {
        for record in read(&path).lines() {
            let next = match fields(record) {
                ("stdout", "F", text) => ("line", text, &mut lines),
                ("stderr", "F", text) => ("error", text, &mut errors),
                other => panic!("unexpected record {other:?}"),
            };
            assert_eq!(next.1, format!("{} {}", next.0, next.2));
            *next.2 += 1;
            let time = record[..30].to_owned();
            assert!(time > previous, "times of one logger go up");
            previous = time;
        }
    }
    assert_eq!((lines, errors), (200_000, 20_000));
}

#[test]
fn signals_to_leave_are_ignored_until_both_pipes_end() {
    let temp = TempDir::new();
    let log = temp.0.join("current.log");
    let mut logger = Logger::start(&temp.0, 1 << 20, 3);
    logger.signal(SIGTERM);
    logger.signal(SIGINT);
    logger.say("after the signals\n");
    drop(logger.stdout.take());
    wait_until("the record", || read(&log).contains("stdout F after the signals\n"));
    logger.signal(SIGTERM);
    logger.complain("last words");
    assert!(logger.end().success());
    assert!(read(&log).contains("stderr F last words\n"));
}

#[test]
fn a_logger_without_a_folder_refuses_to_start() {
    let output = Command::new(env!("CARGO_BIN_EXE_toft-logger")).args(["max_files", "3"]).output();
    let output = output.expect("the logger starts");
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("needs `dir`"));
}

#[test]
fn a_folder_that_cannot_be_made_does_not_block_the_container() {
    let temp = TempDir::new();
    let obstacle = temp.0.join("file");
    fs::write(&obstacle, "").expect("the file can be written");
    let dir = obstacle.join("logs");
    let mut logger = Logger::start(&dir, 1 << 20, 3);
    logger.say(&"dropped\n".repeat(50_000));
    fs::remove_file(&obstacle).expect("the obstacle can be removed");
    wait_until("the notice", || read(&dir.join("current.log")).contains("lines lost"));
    logger.say("kept\n");
    assert!(logger.end().success());
    let text = read(&dir.join("current.log"));
    assert!(text.contains("stderr F toft-logger: ") && text.contains("stdout F kept\n"), "{text:.400}");
}

/// On a 256 KiB tmpfs in a mount namespace of its own, which is seen through the logger's /proc/PID/root.
#[test]
fn a_full_disk_drops_lines_and_says_how_many() {
    let allowed = Command::new("unshare").args(["-m", "true"]).status().is_ok_and(|status| status.success());
    if !allowed {
        eprintln!("skipped: no permission to make a mount namespace");
        return;
    }
    let temp = TempDir::new();
    let mut command = Command::new("unshare");
    let script = r#"mount -t tmpfs -o size=256k tmpfs "$0" && head -c 131072 /dev/zero >"$0/ballast" && exec "$@""#;
    command.args(["-m", "sh", "-c", script]).arg(&temp.0);
    command.arg(env!("CARGO_BIN_EXE_toft-logger")).arg("dir").arg(temp.0.join("logs"));
    let mut logger = Logger::spawn(command);
    let inside = PathBuf::from(format!("/proc/{}/root{}", logger.child.id(), temp.0.display()));
    let log = inside.join("logs/current.log");

    let flood: u64 = 20_000;
    let text: String = (0..flood).map(|number| format!("flood {number}\n")).collect();
    logger.say(&text);
    let full = read(&log);
    assert!(full.len() < 131_072 && full.ends_with('\n'), "only whole records are kept: {}", full.len());
    fs::remove_file(inside.join("ballast")).expect("the ballast can be removed");
    wait_until("the notice", || read(&log).contains("lines lost: disk full\n"));
    logger.say("after\n");
    wait_until("the next line", || read(&log).contains("stdout F after\n"));

    let mut kept = 0;
    let mut lost = 0;
    for record in read(&log).lines() {
        match fields(record) {
            ("stdout", "F", "after") => {}
            ("stdout", "F", text) => kept += u64::from(text.starts_with("flood ")),
            (_, _, text) => {
                let count = text.strip_prefix("toft-logger: ").and_then(|rest| rest.split(' ').next());
                lost += count.and_then(|count| count.parse::<u64>().ok()).expect("a count");
            }
        }
    }
    assert_eq!(kept + lost, flood, "kept {kept}, lost {lost}");
    assert!(logger.end().success());
}

/// A process that is the first of a process namespace of its own, as a container's is, and a child of this one.
fn contained(script: &str) -> Child {
    let script = script.to_owned();
    let start = move || {
        // SAFETY: concerns what this thread starts, and it ends after one.
        assert_eq!(unsafe { unshare(CLONE_NEWPID) }, 0, "{}", io::Error::last_os_error());
        Command::new("sh").args(["-c", &script]).stdin(std::process::Stdio::null()).spawn().expect("sh starts")
    };
    std::thread::spawn(start).join().expect("the thread ends in order")
}

fn write_lease(path: &Path, until_ms: u64) {
    fs::write(path, format!("{until_ms:020} {until_ms:020}\n")).expect("the lease can be written");
}

/// Milliseconds since the machine's start.
fn up_ms() -> u64 {
    let uptime = fs::read_to_string("/proc/uptime").expect("the time since the start is known");
    let seconds: f64 = uptime.split(' ').next().and_then(|text| text.parse().ok()).expect("a number");
    (seconds * 1_000.0) as u64
}

fn ended(child: &mut Child) -> bool {
    child.try_wait().expect("it can be waited for").is_some()
}

#[test]
fn what_is_exclusive_ends_with_its_lease_and_what_is_not_stays() {
    let temp = TempDir::new();
    let lease = temp.0.join("lease");
    // The parent of both is taken for a shim by its name.
    let own = format!("/proc/self/task/{}/comm", std::process::id());
    let before = fs::read_to_string(&own).expect("this process has a name");
    write_lease(&lease, u64::MAX);
    let mut stubborn = contained("trap '' TERM; while :; do sleep 0.1; done");
    let mut obedient = contained("trap 'exit 7' TERM; while :; do sleep 0.1; done");
    let mut stranger = Command::new("sleep").arg("60").spawn().expect("sleep starts");
    let mut command = Logger::command(&temp.0.join("logs"), 1 << 20, 2);
    let mut logger = Logger::spawn({
        command.arg("lease").arg(&lease);
        command
    });
    std::thread::sleep(Duration::from_millis(1_500));
    assert!(!ended(&mut obedient), "it may run for ever");
    write_lease(&lease, up_ms());
    std::thread::sleep(Duration::from_millis(2_500));
    assert!(!ended(&mut obedient), "whose parent is no shim is left alone");
    fs::write(&own, "containerd-shim").expect("it can be called something else");
    wait_until("it is asked", || ended(&mut obedient));
    assert_eq!(obedient.wait().expect("it has ended").code(), Some(7), "it was asked, not killed");
    wait_until("it is killed", || ended(&mut stubborn));
    assert!(!ended(&mut stranger), "who is in no container is left alone");
    logger.say("still here\n");
    let log = temp.0.join("logs/current.log");
    wait_until("the logger goes on", || read(&log).contains("still here"));
    fs::write(&own, before.trim_end()).expect("it has its name back");
    stranger.kill().expect("it can be killed");
    stranger.wait().expect("it can be waited for");
    assert!(logger.end().success());
}
