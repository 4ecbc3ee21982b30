//! Events on their way: written once, packed once, and sent to everybody who reads them.
//!
//! A stream that is packed (`Content-Encoding: gzip`) is made of pieces. Each is deflated for itself and ends on a whole
//! byte, refers to nothing before it, and so can follow any other: readers who came at different times are sent the same
//! bytes, and none of them costs a compressor.

use std::{
    convert::Infallible,
    fmt::Write,
    io,
    pin::Pin,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use axum::{
    body::Body,
    http::{
        HeaderMap, HeaderValue,
        header::{ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE},
    },
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use flate2::{Compress, Compression, Crc, FlushCompress, Status};
use futures_util::stream::{self, Stream, StreamExt};
use tokio::{sync::OwnedSemaphorePermit, time::timeout};

/// Time between two comments on a quiet stream, which keep proxies from closing it.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// How a packed stream begins: deflated, no name, no time, made on a Unix.
const BEGIN: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];
/// The last block of a packed stream, which is empty.
const LAST: [u8; 5] = [1, 0, 0, 0xff, 0xff];
/// What is shorter does not gain by being packed.
const SHORT: usize = 100;
/// Room for the last bytes of what is packed.
const ROOM: usize = 256;

/// One event, or a comment.
pub(in crate::dashboard) struct Event {
    plain: Bytes,
    packed: OnceLock<(Bytes, Crc)>,
}

impl Event {
    /// An event of that name.
    pub(in crate::dashboard) fn new(name: &str, data: &str) -> Self {
        Self::written(name, None, data)
    }

    /// An event after which a reader that lost its way asks to go on from `id`.
    pub(in crate::dashboard) fn with_id(name: &str, id: i64, data: &str) -> Self {
        Self::written(name, Some(id), data)
    }

    fn written(name: &str, id: Option<i64>, data: &str) -> Self {
        let mut text = format!("event: {name}\n");
        if let Some(id) = id {
            let _ = writeln!(text, "id: {id}");
        }
        // A reader takes each of the three for the end of a line.
        for line in data.replace("\r\n", "\n").split(['\n', '\r']) {
            let _ = writeln!(text, "data: {line}");
        }
        text.push('\n');
        Self::of(text)
    }

    /// Tells a browser how long it waits before it connects again.
    pub(super) fn retry(after: Duration) -> Self {
        Self::of(format!("retry: {}\n\n", after.as_millis()))
    }

    fn heartbeat() -> Self {
        Self::of(":\n\n".to_owned())
    }

    fn of(text: String) -> Self {
        Self { plain: text.into(), packed: OnceLock::new() }
    }

    /// Bytes on the way, packed.
    #[cfg(test)]
    pub(in crate::dashboard) fn packed_len(&self) -> usize {
        self.packed().0.len()
    }

    fn packed(&self) -> &(Bytes, Crc) {
        self.packed.get_or_init(|| {
            let mut crc = Crc::new();
            crc.update(&self.plain);
            (packed(&self.plain).into(), crc)
        })
    }
}

/// A piece of a packed stream.
fn packed(plain: &[u8]) -> Vec<u8> {
    if plain.len() >= SHORT
        && let Ok(packed) = deflated(plain)
    {
        return packed;
    }
    let mut out = Vec::with_capacity(plain.len() + 5);
    for part in plain.chunks(usize::from(u16::MAX)) {
        let len = part.len() as u16;
        out.push(0);
        out.extend(len.to_le_bytes());
        out.extend((!len).to_le_bytes());
        out.extend(part);
    }
    out
}

fn deflated(plain: &[u8]) -> io::Result<Vec<u8>> {
    let mut compress = Compress::new(Compression::new(4), false);
    let mut out = Vec::with_capacity(plain.len() / 4 + ROOM);
    loop {
        let rest = &plain[compress.total_in() as usize..];
        match compress.compress_vec(rest, &mut out, FlushCompress::Sync)? {
            // Room was left, so that everything is out.
            Status::Ok | Status::BufError if out.len() < out.capacity() => return Ok(out),
            Status::Ok | Status::BufError => out.reserve(out.len() + ROOM),
            Status::StreamEnd => return Err(io::ErrorKind::Other.into()),
        }
    }
}

/// Events that are to be sent, as an extension of an answer: only whoever sees the request knows how they are sent.
#[derive(Clone)]
pub(in crate::dashboard) struct Events(Arc<Mutex<Option<Stored>>>);

struct Stored {
    events: Pin<Box<dyn Stream<Item = Arc<Event>> + Send>>,
    /// Held for as long as somebody reads.
    _permit: OwnedSemaphorePermit,
}

impl Events {
    /// An answer that is to be [`sent`](Self::sent).
    pub(super) fn answer(
        events: impl Stream<Item = Arc<Event>> + Send + 'static,
        permit: OwnedSemaphorePermit,
    ) -> Response {
        let stored = Stored { events: Box::pin(events), _permit: permit };
        let mut response = ().into_response();
        response.extensions_mut().insert(Self(Arc::new(Mutex::new(Some(stored)))));
        response
    }

    /// The answer with its body; `packs`: whether the reader can unpack.
    pub(in crate::dashboard) fn sent(self, packs: bool) -> Response {
        let stored = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let body = match stored {
            Some(stored) => Body::from_stream(Sent::new(stored, packs).bytes()),
            None => Body::empty(),
        };
        let mut response = body.into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        if packs {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        response
    }
}

/// Whether whoever asks can unpack.
pub(in crate::dashboard) fn unpacks(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|value| value.split(',')).any(|coding| {
        let (coding, weight) = coding.split_once(';').unwrap_or((coding, ""));
        let refused = weight.trim().strip_prefix("q=").is_some_and(|weight| weight.parse() == Ok(0.0));
        coding.trim().eq_ignore_ascii_case("gzip") && !refused
    })
}

/// A stream on its way to one reader.
struct Sent {
    stored: Stored,
    /// Of all that was sent; absent when it is not packed.
    crc: Option<Crc>,
    begun: bool,
    ended: bool,
}

impl Sent {
    fn new(stored: Stored, packs: bool) -> Self {
        Self { stored, crc: packs.then(Crc::new), begun: false, ended: false }
    }

    fn bytes(self) -> impl Stream<Item = Result<Bytes, Infallible>> + Send {
        stream::unfold(self, |mut sent| async move { Some((Ok(sent.next().await?), sent)) })
    }

    async fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        if self.crc.is_some() && !std::mem::replace(&mut self.begun, true) {
            return Some(Bytes::from_static(&BEGIN));
        }
        let event = match timeout(HEARTBEAT, self.stored.events.next()).await {
            Ok(event) => event,
            Err(_) => Some(Arc::new(Event::heartbeat())),
        };
        match (event, &mut self.crc) {
            (Some(event), None) => Some(event.plain.clone()),
            (Some(event), Some(crc)) => {
                let (packed, of_it) = event.packed();
                crc.combine(of_it);
                Some(packed.clone())
            }
            (None, None) => None,
            (None, Some(crc)) => {
                self.ended = true;
                Some([&LAST[..], &crc.sum().to_le_bytes(), &crc.amount().to_le_bytes()].concat().into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use tokio::sync::Semaphore;

    use super::*;

    async fn sent(events: Vec<Arc<Event>>, packs: bool) -> Vec<u8> {
        let permit = Arc::new(Semaphore::new(1)).acquire_owned().await.unwrap();
        let stored = Stored { events: Box::pin(stream::iter(events)), _permit: permit };
        let pieces: Vec<_> = Sent::new(stored, packs).bytes().collect().await;
        pieces.into_iter().flat_map(|piece| piece.unwrap().to_vec()).collect()
    }

    #[tokio::test]
    async fn what_was_packed_for_one_is_read_by_all() {
        let long: String = (0..4_000).map(|number| format!("<td>{number}</td>\n")).collect();
        let mut noise = vec![0u8; 200_000];
        let mut state = 1u32;
        for byte in &mut noise {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *byte = b'0' + (state >> 24) as u8 % 64;
        }
        let noise = String::from_utf8(noise).unwrap();
        let data = ["", "short", long.as_str(), noise.as_str(), "two\nlines", "ends\r\nlike\rthat"];
        let events: Vec<Arc<Event>> = data.iter().map(|data| Arc::new(Event::with_id("e", 7, data))).collect();
        for skipped in [0, 1, 3, 6] {
            let some = events[skipped..].to_vec();
            let plain = sent(some.clone(), false).await;
            let packed = sent(some, true).await;
            let mut unpacked = Vec::new();
            flate2::read::GzDecoder::new(packed.as_slice()).read_to_end(&mut unpacked).unwrap();
            assert!(unpacked == plain, "without the first {skipped}");
        }
        assert!(events[2].packed_len() * 4 < long.len(), "{} bytes", events[2].packed_len());
        assert_eq!(sent(vec![Arc::new(Event::new("a", "b\nc"))], false).await, b"event: a\ndata: b\ndata: c\n\n");
    }

    #[test]
    fn only_who_says_so_can_unpack() {
        let check = |value: Option<&'static str>, want: bool| {
            let headers = value.map(|value| (ACCEPT_ENCODING, HeaderValue::from_static(value)));
            assert_eq!(unpacks(&headers.into_iter().collect()), want, "{value:?}");
        };
        check(None, false);
        check(Some("gzip, deflate, br, zstd"), true);
        check(Some("br, GZIP;q=0.5"), true);
        check(Some("br;q=1, gzip;q=0"), false);
        check(Some("identity"), false);
        check(Some("xgzip"), false);
    }
}
