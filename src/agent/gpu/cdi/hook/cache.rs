//! The cache in which glibc's loader looks for libraries, `/etc/ld.so.cache`: read, added to and written without a program of the
//! image or the machine. Pure.

use std::cmp::Ordering;

/// Most libraries, and most names of kinds of processors.
const MOST_ENTRIES: usize = 65_536;
const MOST_KINDS: usize = 256;
/// Longest text, in bytes.
const LONGEST: usize = 4_096;

/// How a cache begins that was made by a glibc before 2.32: with an older form, behind which the newer one lies.
const OLD_MAGIC: &[u8] = b"ld.so-1.7.0\0";
const OLD_HEADER: usize = 16;
const OLD_ENTRY: usize = 12;
const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
const HEADER: usize = 48;
const ENTRY: usize = 24;
/// Its numbers have their lowest byte first.
const LITTLE_ENDIAN: u8 = 2;
const EXTENSION_MAGIC: u32 = 0xeaa4_2174;
/// The section of the extension that names kinds of processors.
const KINDS_TAG: u32 = 1;

/// What a library of this machine's kind is marked with: ELF for glibc, and the processor.
pub(super) const OWN_FLAGS: i32 = if cfg!(target_arch = "aarch64") { 0x0a03 } else { 0x0303 };

/// A library.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// What kind of file it is.
    pub(super) flags: i32,
    /// The name that programs ask for.
    pub(super) name: Vec<u8>,
    /// Where it lies.
    pub(super) path: Vec<u8>,
    version: u32,
    /// For which processors alone it is.
    kind: u64,
}

impl Entry {
    /// One of this machine's kind.
    pub(super) fn own(name: &str, path: &str) -> Self {
        Self { flags: OWN_FLAGS, name: name.into(), path: path.into(), version: 0, kind: 0 }
    }
}

/// All of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Cache {
    pub(super) entries: Vec<Entry>,
    kinds: Vec<Vec<u8>>,
}

impl Cache {
    /// Reads one; nothing when it is none, or of a form that is not known.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes = if bytes.starts_with(OLD_MAGIC) {
            let count = number(bytes, 12)? as usize;
            let end = OLD_HEADER.checked_add(count.checked_mul(OLD_ENTRY)?)?.next_multiple_of(8);
            bytes.get(end..)?
        } else {
            bytes
        };
        if !bytes.starts_with(MAGIC) || !matches!(bytes.get(28)?, 0 | &LITTLE_ENDIAN) {
            return None;
        }
        let count = number(bytes, 20)? as usize;
        if count > MOST_ENTRIES {
            return None;
        }
        let entry = |at: usize| {
            let at = HEADER + at * ENTRY;
            Some(Entry {
                flags: number(bytes, at)?.cast_signed(),
                name: text(bytes, number(bytes, at + 4)?)?,
                path: text(bytes, number(bytes, at + 8)?)?,
                version: number(bytes, at + 12)?,
                kind: u64::from(number(bytes, at + 16)?) | u64::from(number(bytes, at + 20)?) << 32,
            })
        };
        let entries = (0..count).map(entry).collect::<Option<Vec<_>>>()?;
        let kinds = match number(bytes, 32)? as usize {
            0 => Vec::new(),
            at => kinds(bytes, at)?,
        };
        Some(Self { entries, kinds })
    }

    /// Puts `own` before what has the same name, and takes away what is `gone`.
    pub(super) fn with(mut self, own: Vec<Entry>, gone: impl Fn(&Entry) -> bool) -> Self {
        self.entries.retain(|entry| !gone(entry) && !own.iter().any(|own| own.path == entry.path));
        let mut entries = own;
        entries.append(&mut self.entries);
        entries.truncate(MOST_ENTRIES);
        // The loader halves the list until it finds the name, and takes the first of that name.
        entries.sort_by(|one, other| compare(&other.name, &one.name));
        Self { entries, ..self }
    }

    /// Its bytes.
    pub(super) fn write(&self) -> Vec<u8> {
        let mut texts = Vec::new();
        let begin = HEADER + self.entries.len() * ENTRY;
        let mut put = |text: &[u8]| {
            let at = begin + texts.len();
            texts.extend_from_slice(text);
            texts.push(0);
            bytes_of(at)
        };
        let mut entries = Vec::with_capacity(self.entries.len() * ENTRY);
        for entry in &self.entries {
            entries.extend(entry.flags.to_le_bytes());
            entries.extend(put(&entry.name));
            entries.extend(put(&entry.path));
            entries.extend(entry.version.to_le_bytes());
            entries.extend(entry.kind.to_le_bytes());
        }
        let kinds: Vec<[u8; 4]> = self.kinds.iter().map(|kind| put(kind)).collect();
        let extension = if kinds.is_empty() { 0 } else { (begin + texts.len()).next_multiple_of(4) };
        let mut bytes = MAGIC.to_vec();
        bytes.extend(bytes_of(self.entries.len()));
        bytes.extend(bytes_of(texts.len()));
        bytes.extend([LITTLE_ENDIAN, 0, 0, 0]);
        bytes.extend(bytes_of(extension));
        bytes.resize(HEADER, 0);
        bytes.append(&mut entries);
        bytes.append(&mut texts);
        if extension > 0 {
            bytes.resize(extension, 0);
            let numbers = [EXTENSION_MAGIC, 1, KINDS_TAG, 0];
            bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
            bytes.extend(bytes_of(extension + 24));
            bytes.extend(bytes_of(kinds.len() * 4));
            bytes.extend(kinds.concat());
        }
        bytes
    }
}

fn bytes_of(number: usize) -> [u8; 4] {
    u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes()
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// What stands there up to the next zero.
fn text(bytes: &[u8], at: u32) -> Option<Vec<u8>> {
    let rest = bytes.get(at as usize..)?;
    let end = rest.iter().take(LONGEST).position(|byte| *byte == 0)?;
    Some(rest[..end].to_vec())
}

/// The names of kinds of processors in the extension.
fn kinds(bytes: &[u8], at: usize) -> Option<Vec<Vec<u8>>> {
    if number(bytes, at)? != EXTENSION_MAGIC {
        return None;
    }
    let sections = number(bytes, at + 4)?.min(16) as usize;
    for section in (0..sections).map(|section| at + 8 + section * 16) {
        if number(bytes, section)? == KINDS_TAG {
            let (begin, count) = (number(bytes, section + 8)? as usize, number(bytes, section + 12)? as usize / 4);
            let kind = |kind: usize| text(bytes, number(bytes, begin.checked_add(kind * 4)?)?);
            return (count <= MOST_KINDS).then(|| (0..count).map(kind).collect::<Option<_>>())?;
        }
    }
    Some(Vec::new())
}

/// The order of the loader: as texts, but numbers in them by their value, and before other characters.
fn compare(mut one: &[u8], mut other: &[u8]) -> Ordering {
    let digit = |text: &[u8]| text.first().is_some_and(u8::is_ascii_digit);
    loop {
        match (digit(one), digit(other)) {
            (true, true) => match take_number(&mut one).cmp(&take_number(&mut other)) {
                Ordering::Equal => {}
                unequal => return unequal,
            },
            (true, false) => return Ordering::Greater,
            (false, true) => return Ordering::Less,
            (false, false) => match (one.split_first(), other.split_first()) {
                (Some((a, rest)), Some((b, others))) if a == b => (one, other) = (rest, others),
                _ => return one.first().cmp(&other.first()),
            },
        }
    }
}

fn take_number(text: &mut &[u8]) -> u64 {
    let end = text.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    *text = rest;
    digits.iter().fold(0, |number: u64, digit| number.wrapping_mul(10).wrapping_add(u64::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use std::{fs, process::Command};

    use super::*;

    /// What the machine's own tool reads in it.
    fn told(bytes: &[u8]) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cache");
        fs::write(&path, bytes).unwrap();
        let run = Command::new("/sbin/ldconfig").arg("-p").arg("-C").arg(&path).output().unwrap();
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        let text = String::from_utf8(run.stdout).unwrap();
        text.lines().filter(|line| line.contains("=>")).map(|line| line.trim().to_owned()).collect()
    }

    #[test]
    fn the_machines_own_cache_is_written_as_it_was_read() {
        let bytes = fs::read("/etc/ld.so.cache").unwrap();
        let cache = Cache::parse(&bytes).unwrap();
        assert!(!cache.entries.is_empty());
        let again = cache.clone().with(Vec::new(), |_| false);
        assert_eq!(again, cache, "the order is the loader's");
        let written = cache.write();
        assert_eq!(Cache::parse(&written).unwrap(), cache);
        assert_eq!(told(&written), told(&bytes));
    }

    #[test]
    fn libraries_are_added_before_those_of_the_same_name_and_what_is_gone_goes() {
        let bytes = fs::read("/etc/ld.so.cache").unwrap();
        let cache = Cache::parse(&bytes).unwrap();
        let libc = cache.entries.iter().find(|entry| entry.name == b"libc.so.6").unwrap().clone();
        let own = || vec![Entry::own("libcuda.so.1", "/x/libcuda.so.1"), Entry::own("libc.so.6", "/x/libc.so.6")];
        let added = cache.with(own(), |_| false);
        let lines = told(&added.write());
        let found: Vec<&String> = lines.iter().filter(|line| line.starts_with("libc.so.6 ")).collect();
        assert!(found[0].ends_with("/x/libc.so.6") && found.len() >= 2, "{found:?}");
        assert!(lines.iter().any(|line| line.starts_with("libcuda.so.1 (libc6,") && line.ends_with("/x/libcuda.so.1")));
        assert!(added.clone().with(own(), |_| false) == added, "twice is once");
        let gone = added.with(Vec::new(), |entry| entry.path.starts_with(b"/x/"));
        assert!(gone.entries.contains(&libc) && !told(&gone.write()).iter().any(|line| line.contains("/x/")));
    }

    #[test]
    fn kinds_of_processors_and_the_older_form_are_kept() {
        let fast = Entry { kind: 1 << 62, ..Entry::own("libx.so.1", "/v3/libx.so.1") };
        let entries = vec![Entry::own("libx.so.1", "/libx.so.1"), fast];
        let cache = Cache { entries, kinds: vec![b"x86-64-v3".to_vec()] };
        let bytes = cache.write();
        assert_eq!(Cache::parse(&bytes).as_ref(), Some(&cache));
        assert!(told(&bytes).iter().any(|line| line.contains("x86-64-v3")), "{:?}", told(&bytes));
        let mut old = OLD_MAGIC.to_vec();
        old.extend(1_u32.to_le_bytes());
        old.extend([0; 12 + 4]);
        old.extend(&bytes);
        assert_eq!(Cache::parse(&old), Some(cache));
    }

    #[test]
    fn names_are_ordered_as_the_loader_does() {
        let ascending = ["a", "lib.so", "lib.so.2", "lib.so.10", "liba.so", "libab", "lib2", "lib10", "lib10a"];
        for (i, one) in ascending.iter().enumerate() {
            for (j, other) in ascending.iter().enumerate() {
                assert_eq!(compare(one.as_bytes(), other.as_bytes()), i.cmp(&j), "{one} {other}");
            }
        }
    }

    #[test]
    fn hostile_bytes_are_no_cache_and_no_harm() {
        let good = Cache { entries: vec![Entry::own("liba.so.1", "/a")], kinds: vec![b"v3".to_vec()] }.write();
        for end in 0..good.len() {
            assert_eq!(Cache::parse(&good[..end]), None, "{end}");
        }
        for at in 0..good.len() {
            for byte in [0, 1, 0x7f, 0xff] {
                let mut bad = good.clone();
                bad[at] = byte;
                if let Some(cache) = Cache::parse(&bad) {
                    Cache::parse(&cache.with(Vec::new(), |_| false).write());
                }
            }
        }
        let mut many = good;
        many[20..24].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(Cache::parse(&many), None);
        assert_eq!(Cache::parse(&[OLD_MAGIC, &u32::MAX.to_le_bytes()].concat()), None);
    }
}
