//! Reads an archive, plain or gzip, on a thread of its own and hands its members over piece by piece. Memory stays
//! bounded whatever the archive says: names are short, pieces small, channels bounded. Nothing of an archive is ever
//! written under a name that it chose.

use std::io::{self, BufReader, Read};

use bytes::Bytes;
use flate2::bufread::MultiGzDecoder;
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};
use tokio::sync::mpsc;

/// Bytes of a member handed over at once.
const PIECE_BYTES: usize = 512 * 1024;
/// Longest name of a member, and longest target of a link.
const LONGEST_NAME: u64 = 4096;
/// Largest block of extended attributes of a member.
const LARGEST_PAX: u64 = 256 * 1024;
/// Most members of an archive.
const MOST_MEMBERS: usize = 50_000;
/// Padding read after the end of an archive.
const MOST_PADDING: u64 = 64 << 20;
const BLOCK: u64 = 512;

/// What comes out of an archive, in order.
#[derive(Debug)]
pub(super) enum Piece {
    /// A file begins; as many bytes follow.
    File { path: String, size: u64 },
    /// Some of its bytes.
    Data(Bytes),
    /// It ends; the digest of all its bytes.
    FileEnd { digest: String },
    /// A link to another member, as a path from the archive's root.
    Link { path: String, target: String },
}

/// Bytes as they arrive, for a thread that blocks.
pub(super) struct Incoming {
    chunks: mpsc::Receiver<io::Result<Bytes>>,
    current: Bytes,
}

impl Incoming {
    pub(super) fn new(chunks: mpsc::Receiver<io::Result<Bytes>>) -> Self {
        Self { chunks, current: Bytes::new() }
    }
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.chunks.blocking_recv() {
                Some(chunk) => self.current = chunk?,
                None => return Ok(0),
            }
        }
        let taken = self.current.split_to(buffer.len().min(self.current.len()));
        buffer[..taken.len()].copy_from_slice(&taken);
        Ok(taken.len())
    }
}

/// Reads the whole archive. `Err` says in words for people what is wrong with it; a receiver that has gone away ends
/// the reading without an error.
pub(super) fn read(incoming: impl Read, pieces: &mpsc::Sender<Piece>) -> Result<(), String> {
    let mut plain = BufReader::with_capacity(64 * 1024, incoming);
    let magic = io::BufRead::fill_buf(&mut plain).map_err(|e| broken(&e))?;
    match magic {
        [] => Err("it is empty".to_owned()),
        [0x1f, 0x8b, ..] => Members { source: MultiGzDecoder::new(plain), pieces }.run(),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Err("it is compressed with zstd; unpack it with `zstd -d` first".to_owned()),
        [0xfd, b'7', b'z', ..] => Err("it is compressed with xz; unpack it with `xz -d` first".to_owned()),
        [b'B', b'Z', b'h', ..] => Err("it is compressed with bzip2; unpack it with `bzip2 -d` first".to_owned()),
        _ => Members { source: plain, pieces }.run(),
    }
}

struct Members<'a, R> {
    source: R,
    pieces: &'a mpsc::Sender<Piece>,
}

/// What extended headers say about the member after them.
#[derive(Default)]
struct Extended {
    path: Option<String>,
    link: Option<String>,
    size: Option<u64>,
}

impl<R: Read> Members<'_, R> {
    fn run(mut self) -> Result<(), String> {
        let mut extended = Extended::default();
        let mut members = 0;
        while let Some(header) = self.header(members == 0)? {
            members += 1;
            if members > MOST_MEMBERS {
                return Err(format!("it has more than {MOST_MEMBERS} members"));
            }
            let stated = header.entry_size().map_err(|_| "a member's size cannot be read".to_owned())?;
            match header.entry_type() {
                EntryType::GNULongName => extended.path = Some(self.name(stated)?),
                EntryType::GNULongLink => extended.link = Some(self.name(stated)?),
                EntryType::XHeader => self.pax(stated, &mut extended)?,
                EntryType::XGlobalHeader => self.skip(stated)?,
                kind => {
                    let known = std::mem::take(&mut extended);
                    if !self.member(&header, kind, known, stated)? {
                        return Ok(());
                    }
                }
            }
        }
        let padding =
            io::copy(&mut (&mut self.source).take(MOST_PADDING + 1), &mut io::sink()).map_err(|e| broken(&e))?;
        if padding > MOST_PADDING { Err("it goes on after its end".to_owned()) } else { Ok(()) }
    }

    /// The next header; `None` at the end.
    fn header(&mut self, first: bool) -> Result<Option<Header>, String> {
        let mut header = Header::new_old();
        let block = header.as_mut_bytes();
        let mut filled = 0;
        while filled < block.len() {
            match self.source.read(&mut block[filled..]).map_err(|e| broken(&e))? {
                0 if filled == 0 && !first => return Ok(None),
                0 => return Err("it ends too early".to_owned()),
                more => filled += more,
            }
        }
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let sum: u32 = block[..148].iter().chain(&block[156..]).map(|b| u32::from(*b)).sum::<u32>() + 8 * 32;
        match header.cksum() {
            Ok(stated) if stated == sum => Ok(Some(header)),
            _ if first => Err("it is no tar archive".to_owned()),
            _ => Err("a member's header is damaged".to_owned()),
        }
    }

    /// One member; `false` when nobody listens any more.
    fn member(&mut self, header: &Header, kind: EntryType, known: Extended, stated: u64) -> Result<bool, String> {
        let raw = match known.path {
            Some(path) => path,
            None => text(&header.path_bytes())?,
        };
        let path = inside(&raw)?;
        let size = known.size.unwrap_or(stated);
        match kind {
            EntryType::Regular | EntryType::Continuous => self.file(path, size),
            EntryType::Symlink | EntryType::Link => {
                let target = match known.link {
                    Some(target) => target,
                    None => text(&header.link_name_bytes().unwrap_or_default())?,
                };
                let base =
                    if kind == EntryType::Symlink { path.rsplit_once('/').map_or("", |(dir, _)| dir) } else { "" };
                let target = inside(format!("{base}/{target}").trim_start_matches('/'))?;
                self.skip(size)?;
                Ok(self.pieces.blocking_send(Piece::Link { path, target }).is_ok())
            }
            EntryType::Directory => self.skip(size).map(|()| true),
            _ => Err(format!("`{path}` is neither a file, a directory nor a link")),
        }
    }

    fn file(&mut self, path: String, size: u64) -> Result<bool, String> {
        let shown = path.clone();
        if self.pieces.blocking_send(Piece::File { path, size }).is_err() {
            return Ok(false);
        }
        let mut hash = Sha256::new();
        let mut left = size;
        while left > 0 {
            let mut piece = vec![0; PIECE_BYTES.min(usize::try_from(left).unwrap_or(usize::MAX))];
            self.source.read_exact(&mut piece).map_err(|e| ended_in(&e, &shown))?;
            hash.update(&piece);
            left -= piece.len() as u64;
            if self.pieces.blocking_send(Piece::Data(piece.into())).is_err() {
                return Ok(false);
            }
        }
        self.skip_padding(size)?;
        let digest = format!("sha256:{}", hex::encode(hash.finalize()));
        Ok(self.pieces.blocking_send(Piece::FileEnd { digest }).is_ok())
    }

    fn name(&mut self, size: u64) -> Result<String, String> {
        if size > LONGEST_NAME {
            return Err("a member's name is too long".to_owned());
        }
        let mut bytes = self.small(size)?;
        bytes.truncate(bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len()));
        text(&bytes)
    }

    /// Extended attributes: `LENGTH KEY=VALUE\n`, again and again.
    fn pax(&mut self, size: u64, extended: &mut Extended) -> Result<(), String> {
        if size > LARGEST_PAX {
            return Err("a member's attributes are too large".to_owned());
        }
        let bytes = self.small(size)?;
        for extension in tar::PaxExtensions::new(&bytes) {
            let extension = extension.map_err(|_| "a member's attributes are damaged".to_owned())?;
            match extension.key_bytes() {
                b"path" => extended.path = Some(text(extension.value_bytes())?),
                b"linkpath" => extended.link = Some(text(extension.value_bytes())?),
                b"size" => {
                    let size = extension.value().ok().and_then(|value| value.parse().ok());
                    extended.size = Some(size.ok_or_else(|| "a member's size cannot be read".to_owned())?);
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn small(&mut self, size: u64) -> Result<Vec<u8>, String> {
        let mut bytes = vec![0; usize::try_from(size).unwrap_or_default()];
        self.source.read_exact(&mut bytes).map_err(|e| broken(&e))?;
        self.skip_padding(size)?;
        Ok(bytes)
    }

    fn skip(&mut self, size: u64) -> Result<(), String> {
        let skipped = io::copy(&mut (&mut self.source).take(size), &mut io::sink()).map_err(|e| broken(&e))?;
        if skipped < size {
            return Err("it ends too early".to_owned());
        }
        self.skip_padding(size)
    }

    fn skip_padding(&mut self, size: u64) -> Result<(), String> {
        let over = size % BLOCK;
        if over == 0 {
            return Ok(());
        }
        let mut padding = [0; BLOCK as usize];
        self.source.read_exact(&mut padding[..(BLOCK - over) as usize]).map_err(|e| broken(&e))
    }
}

fn text(bytes: &[u8]) -> Result<String, String> {
    if bytes.len() as u64 > LONGEST_NAME {
        return Err("a member's name is too long".to_owned());
    }
    String::from_utf8(bytes.to_vec()).map_err(|_| "a member's name is not valid UTF-8".to_owned())
}

/// A path from the archive's root in its plainest form. One that leads out of the archive is refused.
fn inside(raw: &str) -> Result<String, String> {
    let refuse = || format!("`{}` leads out of the archive", raw.chars().take(120).collect::<String>());
    if raw.starts_with('/') {
        return Err(refuse());
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in raw.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop().ok_or_else(refuse)?),
            part => parts.push(part),
        }
    }
    Ok(parts.join("/"))
}

fn ended_in(error: &io::Error, path: &str) -> String {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        format!("it ends in the middle of `{path}`")
    } else {
        broken(error)
    }
}

fn broken(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "it ends too early".to_owned(),
        _ => format!("it cannot be read: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tar(build: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        build(&mut builder);
        builder.into_inner().unwrap()
    }

    fn add(builder: &mut tar::Builder<Vec<u8>>, path: &str, content: &[u8]) {
        let mut header = Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, path, content).unwrap();
    }

    fn members(bytes: &[u8]) -> Result<Vec<String>, String> {
        let (sender, mut receiver) = mpsc::channel(10_000);
        let result = read(bytes, &sender);
        drop(sender);
        let mut seen = Vec::new();
        while let Some(piece) = receiver.blocking_recv() {
            match piece {
                Piece::File { path, size } => seen.push(format!("{path} {size}")),
                Piece::Link { path, target } => seen.push(format!("{path} -> {target}")),
                Piece::Data(_) | Piece::FileEnd { .. } => {}
            }
        }
        result.map(|()| seen)
    }

    #[test]
    fn members_come_out_in_order_whatever_the_compression() {
        let long = format!("{}/layer.tar", "d".repeat(150));
        let plain = tar(|builder| {
            add(builder, "./index.json", b"{}");
            add(builder, &long, &[7; 1000]);
            let mut link = Header::new_gnu();
            link.set_entry_type(EntryType::Symlink);
            link.set_size(0);
            builder.append_link(&mut link, "a/layer.tar", "../b/layer.tar").unwrap();
        });
        let want = vec!["index.json 2".to_owned(), format!("{long} 1000"), "a/layer.tar -> b/layer.tar".to_owned()];
        assert_eq!(members(&plain).unwrap(), want);
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        io::Write::write_all(&mut encoder, &plain).unwrap();
        let gzip = encoder.finish().unwrap();
        assert_eq!(members(&gzip).unwrap(), want);
        assert!(members(&gzip[..gzip.len() / 2]).is_err());
    }

    #[test]
    fn hostile_archives_are_refused() {
        let check = |bytes: &[u8], words: &str| {
            let reason = members(bytes).unwrap_err();
            assert!(reason.contains(words), "{reason}");
        };
        check(b"", "empty");
        check(b"hello", "too early");
        check(&[b'x'; 2048], "no tar archive");
        check(&[0x28, 0xb5, 0x2f, 0xfd, 0], "zstd");
        let whole = tar(|builder| add(builder, "a", &[1; 5000]));
        check(&whole[..2000], "middle of `a`");
        for path in ["../x", "a/../../x", "/etc/passwd"] {
            let mut bytes = tar(|builder| add(builder, "a", b""));
            bytes[..100].fill(0);
            bytes[..path.len()].copy_from_slice(path.as_bytes());
            let mut header = Header::from_byte_slice(&bytes[..512]).clone();
            header.set_cksum();
            bytes[..512].copy_from_slice(header.as_bytes());
            check(&bytes, "leads out");
        }
        let mut fifo = Header::new_gnu();
        fifo.set_entry_type(EntryType::Fifo);
        fifo.set_path("f").unwrap();
        fifo.set_size(0);
        fifo.set_cksum();
        check(&tar(|builder| builder.append(&fifo, io::empty()).unwrap()), "neither");
    }
}
