//! The name that a library calls itself in its ELF file.

use std::{fs::File, os::unix::fs::FileExt};

/// Most program headers and most entries of the dynamic section.
const MOST_HEADERS: u16 = 256;
const MOST_ENTRIES: u64 = 4_096;
/// Longest name, in bytes.
const LONGEST: usize = 256;

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const DT_NULL: u64 = 0;
const DT_STRTAB: u64 = 5;
const DT_SONAME: u64 = 14;
/// x86-64 and 64-bit ARM.
const MACHINE: u16 = if cfg!(target_arch = "aarch64") { 183 } else { 62 };

/// A part of the file and where it lies in memory.
#[derive(Clone, Copy)]
struct Segment {
    kind: u32,
    offset: u64,
    address: u64,
    size: u64,
}

/// What the library calls itself; nothing when it is none of this machine's kind or has no name.
pub(super) fn soname(file: &File) -> Option<String> {
    let header: [u8; 64] = read(file, 0)?;
    let machine = u16::from_le_bytes([header[18], header[19]]);
    if header[..6] != [0x7f, b'E', b'L', b'F', 2, 1] || machine != MACHINE {
        return None;
    }
    let (begin, size) = (long(&header, 32), u16::from_le_bytes([header[54], header[55]]));
    let count = u16::from_le_bytes([header[56], header[57]]).min(MOST_HEADERS);
    let segment = |number: u16| {
        let header: [u8; 56] = read(file, begin.checked_add(u64::from(number) * u64::from(size))?)?;
        let kind = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        Some(Segment { kind, offset: long(&header, 8), address: long(&header, 16), size: long(&header, 32) })
    };
    let segments: Vec<Segment> = (0..count).map(segment).collect::<Option<_>>()?;
    let dynamic = segments.iter().find(|segment| segment.kind == PT_DYNAMIC)?;
    let (mut names, mut name) = (None, None);
    for number in 0..(dynamic.size / 16).min(MOST_ENTRIES) {
        let entry: [u8; 16] = read(file, dynamic.offset.checked_add(number * 16)?)?;
        match long(&entry, 0) {
            DT_NULL => break,
            DT_STRTAB => names = Some(long(&entry, 8)),
            DT_SONAME => name = Some(long(&entry, 8)),
            _ => {}
        }
    }
    let address = names?.checked_add(name?)?;
    let holds = |segment: &&Segment| {
        segment.kind == PT_LOAD && address.checked_sub(segment.address).is_some_and(|within| within < segment.size)
    };
    let segment = segments.iter().find(holds)?;
    let mut bytes = [0; LONGEST];
    let there = file.read_at(&mut bytes, segment.offset.checked_add(address - segment.address)?).ok()?;
    let end = bytes[..there].iter().position(|byte| *byte == 0)?;
    let plain = |c: &u8| c.is_ascii_alphanumeric() || b"._-+".contains(c);
    let text = &bytes[..end];
    (text.starts_with(b"lib") && text.iter().all(plain)).then(|| String::from_utf8_lossy(text).into_owned())
}

fn read<const N: usize>(file: &File, at: u64) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    file.read_exact_at(&mut bytes, at).ok()?;
    Some(bytes)
}

fn long(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use std::{fs, process::Command};

    use super::*;

    #[test]
    fn a_library_tells_its_name_and_broken_ones_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("libcuda.so.570.86");
        let source = dir.path().join("x.c");
        fs::write(&source, "int cuInit(void) { return 0; }").unwrap();
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o"]).arg(&path).arg(source);
        assert!(compiler.status().unwrap().success());
        let name = |path| soname(&File::open(path).unwrap());
        assert_eq!(name(&path).as_deref(), Some("libcuda.so.1"));
        let good = fs::read(&path).unwrap();
        let bad = dir.path().join("bad");
        for end in [0, 3, 63, 64, 100, 500, 1_000] {
            fs::write(&bad, &good[..end]).unwrap();
            assert_eq!(name(&bad), None, "{end}");
        }
        // Whatever a byte of the headers says, nothing is read that is not there.
        for at in 0..600 {
            let mut bytes = good.clone();
            bytes[at] = 0xff;
            fs::write(&bad, bytes).unwrap();
            name(&bad);
        }
        fs::write(&bad, "cuda 570.86.10\n").unwrap();
        assert_eq!(name(&bad), None);
    }
}
