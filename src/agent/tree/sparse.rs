//! Files with holes, in the ways in which tar programs write them: GNU's own, and the three of PAX.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::AsFd,
};

use rustix::{fs::SeekFrom, io::Errno};
use tar::{GnuExtSparseHeader, GnuSparseHeader};

use super::Fault;

/// Most stretches of data in one file that are packed one by one; the last of them goes on to the end.
const MOST_STRETCHES: usize = 65_536;
/// Most bytes of a map, as of anything that is said about a file.
const MOST_MAP: usize = 4 << 20;
/// Bytes of a block of a tar archive.
const BLOCK: usize = 512;

/// Which parts of a file are in an archive; the rest are holes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sparse {
    /// Bytes of the whole file.
    pub(super) size: u64,
    /// Offset and length of what follows in the archive, in this order.
    pub(super) stretches: Vec<(u64, u64)>,
}

/// What PAX headers say about holes.
#[derive(Debug, Default)]
pub(super) struct Said {
    major: Option<u64>,
    pub(super) name: Option<Vec<u8>>,
    size: Option<u64>,
    stretches: Vec<(u64, u64)>,
    offset: Option<u64>,
    any: bool,
}

impl Said {
    /// Takes `GNU.sparse.KEY`.
    pub(super) fn take(&mut self, key: &str, value: &[u8]) -> Result<(), Fault> {
        let number = || -> Result<u64, Fault> {
            std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).ok_or_else(damaged)
        };
        self.any = true;
        match key {
            "major" => self.major = Some(number()?),
            "name" => self.name = Some(value.to_vec()),
            "size" | "realsize" => self.size = Some(number()?),
            "offset" => self.offset = Some(number()?),
            "numbytes" => self.stretches.push((self.offset.take().ok_or_else(damaged)?, number()?)),
            "map" => {
                let text = std::str::from_utf8(value).map_err(|_| damaged())?;
                let numbers = text.split(',').map(|number| number.parse().map_err(|_| damaged()));
                self.stretches = pairs(numbers.collect::<Result<_, Fault>>()?)?;
            }
            // How many there are shows itself.
            _ => {}
        }
        Ok(())
    }

    /// The map, once the content can be read, of which `left` bytes follow; nothing for a file without holes.
    pub(super) fn map(self, content: &mut impl Read, left: u64) -> Result<Option<Sparse>, Fault> {
        if !self.any {
            return Ok(None);
        }
        let size = self.size.ok_or_else(damaged)?;
        let stretches = match self.major {
            None | Some(0) => self.stretches,
            Some(1) => leading(content, left)?,
            Some(_) => return Err(damaged()),
        };
        Ok(Some(Sparse { size, stretches }))
    }
}

impl Sparse {
    /// Of GNU's own kind, whose map goes on in blocks behind the header.
    pub(super) fn of_gnu(header: &tar::Header, rest: &mut impl Read) -> Result<Self, Fault> {
        let header = header.as_gnu().ok_or_else(damaged)?;
        let mut sparse = Self { size: header.real_size().map_err(|_| damaged())?, stretches: Vec::new() };
        sparse.extend(&header.sparse)?;
        let mut further = header.is_extended();
        while further {
            let mut block = GnuExtSparseHeader::new();
            rest.read_exact(block.as_mut_bytes()).map_err(Fault::read)?;
            sparse.extend(block.sparse())?;
            further = block.is_extended();
        }
        Ok(sparse)
    }

    fn extend(&mut self, blocks: &[GnuSparseHeader]) -> Result<(), Fault> {
        for block in blocks.iter().filter(|block| !block.is_empty()) {
            let stretch = (block.offset().map_err(|_| damaged())?, block.length().map_err(|_| damaged())?);
            self.stretches.push(stretch);
        }
        if self.stretches.len() * 24 > MOST_MAP { Err(Fault::TooMuch) } else { Ok(()) }
    }

    /// Refuses a map that goes backwards, out of the file, or does not fit what follows.
    pub(super) fn check(&self, stored: u64) -> Result<(), Fault> {
        let (mut reached, mut all) = (0, 0u64);
        for (offset, length) in &self.stretches {
            let end = offset.checked_add(*length).ok_or_else(damaged)?;
            if *offset < reached || end > self.size {
                return Err(damaged());
            }
            reached = end;
            all += length;
        }
        if all == stored { Ok(()) } else { Err(damaged()) }
    }

    /// Which parts of an open file hold data; nothing for one without holes.
    pub(super) fn of_file(file: &File, size: u64) -> Result<Option<Self>, Errno> {
        let (mut stretches, mut at) = (Vec::new(), 0);
        while at < size {
            let data = match rustix::fs::seek(file.as_fd(), SeekFrom::Data(at)) {
                Ok(data) => data,
                // Only a hole is left.
                Err(Errno::NXIO) => break,
                // The file system does not say.
                Err(Errno::INVAL) => return Ok(None),
                Err(error) => return Err(error),
            };
            if data >= size {
                break;
            }
            if stretches.len() == MOST_STRETCHES {
                stretches.push((data, size - data));
                break;
            }
            let end = rustix::fs::seek(file.as_fd(), SeekFrom::Hole(data))?.clamp(data, size);
            stretches.push((data, end - data));
            at = end;
        }
        // Other programs take the end of the last stretch for the end of the file.
        if stretches.last().is_none_or(|(offset, length)| offset + length < size) {
            stretches.push((size, 0));
        }
        Ok(Some(Self { size, stretches }).filter(|sparse| sparse.stored() < size))
    }

    /// Bytes of data.
    pub(super) fn stored(&self) -> u64 {
        self.stretches.iter().map(|(_, length)| length).sum()
    }

    /// The map as it leads the content of a file, in PAX's way 1.0.
    pub(super) fn leading(&self) -> Vec<u8> {
        let mut map = format!("{}\n", self.stretches.len());
        for (offset, length) in &self.stretches {
            map += &format!("{offset}\n{length}\n");
        }
        let mut map = map.into_bytes();
        map.resize(map.len().next_multiple_of(BLOCK), 0);
        map
    }
}

/// Reads the map that leads a content: numbers, each on a line, in whole blocks.
fn leading(content: &mut impl Read, left: u64) -> Result<Vec<(u64, u64)>, Fault> {
    let (mut map, mut ends, mut count) = (Vec::new(), 0, None);
    loop {
        let from = map.len();
        if from + BLOCK > MOST_MAP {
            return Err(Fault::TooMuch);
        }
        if (from + BLOCK) as u64 > left {
            return Err(damaged());
        }
        map.resize(from + BLOCK, 0);
        content.read_exact(&mut map[from..]).map_err(Fault::read)?;
        ends += map[from..].iter().filter(|byte| **byte == b'\n').count();
        let count = match count {
            Some(count) => count,
            // The first line says how many pairs follow.
            None => {
                let first = lines(&map).next().ok_or_else(damaged)??;
                *count.insert(usize::try_from(first).ok().and_then(|pairs| pairs.checked_mul(2)).ok_or_else(damaged)?)
            }
        };
        if ends > count {
            return pairs(lines(&map).skip(1).take(count).collect::<Result<_, _>>()?);
        }
    }
}

/// The numbers on the lines that are whole.
fn lines(map: &[u8]) -> impl Iterator<Item = Result<u64, Fault>> {
    let whole = map.iter().rposition(|byte| *byte == b'\n').map_or(&[][..], |last| &map[..last]);
    let lines = whole.split(|byte| *byte == b'\n').filter(|_| !whole.is_empty());
    lines.map(|line| std::str::from_utf8(line).ok().and_then(|text| text.parse().ok()).ok_or_else(damaged))
}

fn pairs(numbers: Vec<u64>) -> Result<Vec<(u64, u64)>, Fault> {
    let (pairs, rest) = numbers.as_chunks::<2>();
    if rest.is_empty() { Ok(pairs.iter().map(|pair| (pair[0], pair[1])).collect()) } else { Err(damaged()) }
}

fn damaged() -> Fault {
    Fault::Damaged("map of holes")
}

/// One stretch after the other of a file, whatever becomes of it meanwhile: what it has no more reads as zeros.
pub(super) struct Stretches<'a> {
    pub(super) file: &'a File,
    pub(super) left: std::collections::VecDeque<(u64, u64)>,
}

impl Read for Stretches<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some((offset, length)) = self.left.front_mut() {
            if *length == 0 {
                self.left.pop_front();
                continue;
            }
            let most = buffer.len().min(usize::try_from(*length).unwrap_or(usize::MAX));
            let mut read = std::os::unix::fs::FileExt::read_at(self.file, &mut buffer[..most], *offset)?;
            if read == 0 {
                buffer[..most].fill(0);
                read = most;
            }
            *offset += read as u64;
            *length -= read as u64;
            return Ok(read);
        }
        Ok(0)
    }
}
