//! What is mounted where, as the kernel tells this process.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

use rustix::mount::{MountFlags, UnmountFlags};

/// One mount: where, and with which flags.
pub(super) struct Mounted {
    pub(super) place: PathBuf,
    flags: MountFlags,
}

/// What is mounted on `place` or below it, in the order in which it was mounted.
pub(super) fn below(place: &Path) -> io::Result<Vec<Mounted>> {
    let text = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(text.lines().filter_map(parse).filter(|mounted| mounted.place.starts_with(place)).collect())
}

/// Whether something is mounted on `place` itself.
pub(super) fn is_mounted(place: &Path) -> io::Result<bool> {
    Ok(below(place)?.iter().any(|mounted| mounted.place == place))
}

/// Makes everything on `place` and below it read-only.
pub(super) fn make_read_only(place: &Path) -> io::Result<()> {
    for Mounted { place, flags } in below(place)? {
        rustix::mount::mount_remount(place, MountFlags::BIND | MountFlags::RDONLY | flags, c"")?;
    }
    Ok(())
}

/// Takes away what is mounted on `place` and below it, at once; who uses it still keeps it until then.
pub(super) fn detach(place: &Path) -> io::Result<()> {
    for mounted in below(place)?.iter().rev() {
        match rustix::mount::unmount(&mounted.place, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            // It went with one below which it lay.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
            unmounted => unmounted?,
        }
    }
    Ok(())
}

/// A line such as `36 35 98:0 /root /place rw,noatime shared:1 - ext4 /dev/sda rw`.
fn parse(line: &str) -> Option<Mounted> {
    let mut fields = line.split(' ');
    let place = PathBuf::from(unescaped(fields.nth(4)?));
    let words = fields.next()?.split(',');
    let flags = words.fold(MountFlags::empty(), |flags, word| {
        flags
            | match word {
                "nosuid" => MountFlags::NOSUID,
                "nodev" => MountFlags::NODEV,
                "noexec" => MountFlags::NOEXEC,
                "noatime" => MountFlags::NOATIME,
                "nodiratime" => MountFlags::NODIRATIME,
                "relatime" => MountFlags::RELATIME,
                _ => MountFlags::empty(),
            }
    });
    Some(Mounted { place, flags })
}

/// Blanks and the like are written as `\040`.
fn unescaped(text: &str) -> OsString {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let code = (*first == b'\\').then(|| after.get(..3)).flatten();
        let code = code.and_then(|code| u8::from_str_radix(std::str::from_utf8(code).ok()?, 8).ok());
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &after[3..] } else { after };
    }
    OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_kernel_are_understood() {
        let line = r"36 35 98:0 /a /srv/my\040disk\134x rw,nosuid,relatime shared:1 - ext4 /dev/sda rw";
        let mounted = parse(line).unwrap();
        assert_eq!(mounted.place, Path::new(r"/srv/my disk\x"));
        assert!(mounted.flags == MountFlags::NOSUID | MountFlags::RELATIME);
        assert!(is_mounted(Path::new("/proc")).unwrap() && !is_mounted(Path::new("/proc/self")).unwrap());
        assert!(parse("short line").is_none());
    }
}
