//! Small files that are there whole or not at all.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
};

/// Writes a file with these permissions: who reads it, also after a power cut, sees the old or the new content. What is
/// not finished is called `NAME.new`.
pub fn write_whole(path: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
    // Neither the umask nor what was left there before decides.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    match path.parent() {
        Some(folder) if folder != Path::new("") => File::open(folder)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_with_the_permissions_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.json");
        fs::write(folder.path().join("node.json.new"), "left by a crash, and longer than what comes").unwrap();
        for (mode, content) in [(0o600, "first"), (0o644, "second, longer"), (0o600, "")] {
            write_whole(&path, mode, content.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode);
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_cannot_be_written_leaves_the_old_content() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.json");
        write_whole(&path, 0o600, b"old").unwrap();
        fs::create_dir(folder.path().join("node.json.new")).unwrap();
        assert!(write_whole(&path, 0o600, b"new").is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        assert!(write_whole(&folder.path().join("nowhere/node.json"), 0o600, b"new").is_err());
    }
}
