//! The demo: a web page that says which node, workload and instance served it.
//!
//! It runs as the only program of its container, so as process 1: there the default action of a
//! signal is to do nothing, hence the handlers. It has no dependencies, keeps no state, and
//! bounds everything a visitor can ask for: threads, bytes and time.

mod connection;
mod page;
mod request;

use std::ffi::c_int;
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use page::Facts;

const DEFAULT_PORT: u16 = 8080;
const MAX_CONNECTIONS: usize = 64;
const STACK_BYTES: usize = 128 * 1024;
const SIGINT: c_int = 2;
const SIGTERM: c_int = 15;

unsafe extern "C" {
    fn signal(number: c_int, handler: extern "C" fn(c_int)) -> usize;
    fn _exit(status: c_int) -> !;
}

/// A place among the connections served at once, given back when dropped.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(taken: &Arc<AtomicUsize>) -> Option<Self> {
        let free = |count: usize| (count < MAX_CONNECTIONS).then_some(count + 1);
        taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, free).ok()?;
        Some(Self(Arc::clone(taken)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn main() -> ExitCode {
    leave_on_signals();
    let port = match std::env::var("PORT").map(|text| text.parse::<u16>()) {
        Err(_) => DEFAULT_PORT,
        Ok(Ok(port)) => port,
        Ok(Err(_)) => {
            eprintln!("PORT is not a number from 0 to 65535");
            return ExitCode::from(2);
        }
    };
    match TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)) {
        Ok(listener) => serve(&listener),
        Err(error) => {
            eprintln!("cannot listen on port {port}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Accepts for ever: a signal is the only way out.
fn serve(listener: &TcpListener) -> ! {
    if let Ok(address) = listener.local_addr() {
        print_line(&format!("listening on {address}"));
    }
    let facts = Arc::new(Facts::gather());
    let taken = Arc::new(AtomicUsize::new(0));
    loop {
        match listener.accept() {
            Ok((stream, _)) => welcome(stream, &facts, &taken),
            // Out of descriptors, or the visitor has gone: a pause lets the former pass.
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Gives the connection a thread of its own, or turns it away when too many are open.
fn welcome(stream: TcpStream, facts: &Arc<Facts>, taken: &Arc<AtomicUsize>) {
    let Some(place) = Place::take(taken) else {
        connection::turn_away(stream);
        return;
    };
    let facts = Arc::clone(facts);
    // Without a thread the connection closes: the closure and the stream in it are dropped.
    let _ = thread::Builder::new().stack_size(STACK_BYTES).spawn(move || {
        connection::serve(stream, &facts);
        drop(place);
    });
}

/// One line to stdout; a stdout that has gone is no reason to stop serving.
fn print_line(line: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

fn leave_on_signals() {
    extern "C" fn leave(_number: c_int) {
        // SAFETY: `_exit` may be called from a signal handler.
        unsafe { _exit(0) }
    }
    for number in [SIGINT, SIGTERM] {
        // SAFETY: the handler only calls `_exit`.
        unsafe { signal(number, leave) };
    }
}
