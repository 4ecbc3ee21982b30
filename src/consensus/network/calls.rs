//! What both ends of a snapshot's transfer compute.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

/// Length and CRC-32 of a file.
pub(super) fn checksum(path: &Path) -> io::Result<(u64, u32)> {
    let mut file = File::open(path)?;
    let mut hasher = crc32fast::Hasher::new();
    let mut buffer = vec![0; 64 << 10];
    let mut length = 0;
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok((length, hasher.finalize()));
        }
        hasher.update(&buffer[..count]);
        length += count as u64;
    }
}
