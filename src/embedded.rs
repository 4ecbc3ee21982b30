//! The programs that toft carries inside itself: the demo as an image archive, and the
//! per-container logger. The build script makes both for the same target as toft.
//!
//! This room only holds them and puts the logger on disk, where containerd's shim finds it.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use sha2::{Digest, Sha256};

/// The demo as a tar of an OCI image layout, to be imported into containerd.
pub const DEMO_IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/demo-image.tar"));

/// The name that [`DEMO_IMAGE`] has once it is imported.
pub const DEMO_IMAGE_NAME: &str = "docker.io/toft/demo:latest";

/// The per-container logger, a static program.
pub const LOGGER: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/toft-logger"));

const LOGGER_MODE: u32 = 0o755;

/// Puts the logger into `dir`, which is made if absent, and gives its path. The name holds the
/// content's hash, so an upgrade leaves the loggers of running containers as they are.
///
/// Nothing is written when it is already there; the file appears whole or not at all.
pub fn install_logger(dir: &Path) -> io::Result<PathBuf> {
    let hash = hex::encode(Sha256::digest(LOGGER));
    let path = dir.join(format!("toft-logger-{}", &hash[..12]));
    if is_installed(&path) {
        return Ok(path);
    }
    fs::create_dir_all(dir)?;
    let temporary = temporary_path(dir);
    let outcome = write_program(&temporary).and_then(|()| fs::rename(&temporary, &path));
    if outcome.is_err() {
        // Best effort: the error to report is the one that brought us here.
        let _ = fs::remove_file(&temporary);
    }
    outcome.map(|()| path)
}

/// Whether `path` is the logger, whole and executable. Any doubt means no: it is then written anew.
fn is_installed(path: &Path) -> bool {
    let plain = fs::symlink_metadata(path).is_ok_and(|metadata| {
        metadata.is_file()
            && metadata.permissions().mode() & 0o7777 == LOGGER_MODE
            && metadata.len() == LOGGER.len() as u64
    });
    plain && fs::read(path).is_ok_and(|content| content == LOGGER)
}

/// A name of its own for every call, so that two at once do not meet.
fn temporary_path(dir: &Path) -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    dir.join(format!(".toft-logger.{}.{number}", std::process::id()))
}

fn write_program(path: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(LOGGER_MODE).open(path)?;
    file.write_all(LOGGER)?;
    // The creation mode was subject to the umask.
    file.set_permissions(fs::Permissions::from_mode(LOGGER_MODE))?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::io::Read;
    use std::os::unix::fs::MetadataExt;
    use std::process::Command;

    use flate2::read::GzDecoder;
    use serde_json::{Value, json};

    use super::*;

    fn temp_dir() -> tempfile::TempDir {
        tempfile::tempdir().expect("a temporary folder can be made")
    }

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).expect("the folder is readable");
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn the_installed_logger_is_named_by_its_content_and_runs() {
        let temp = temp_dir();
        let path = install_logger(&temp.path().join("a/b")).expect("it installs");
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        assert_eq!(name.len(), "toft-logger-".len() + 12);
        assert_eq!(fs::read(&path).expect("it is readable"), LOGGER);
        assert_eq!(fs::metadata(&path).expect("it is there").permissions().mode() & 0o7777, 0o755);
        assert_eq!(names(&temp.path().join("a/b")), [name]);
        // A fork in another test may still hold the file open for writing.
        let busy = |outcome: &io::Result<_>| {
            outcome.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::ExecutableFileBusy)
        };
        let mut runs = std::iter::repeat_with(|| Command::new(&path).output()).take(1_000);
        let output = runs.find(|outcome| !busy(outcome)).expect("it is not busy for ever").expect("it runs");
        assert_eq!(output.status.code(), Some(2), "without settings it refuses");
    }

    #[test]
    fn installing_again_writes_nothing() {
        let temp = temp_dir();
        let inode = |path: &Path| fs::metadata(path).expect("it is there").ino();
        let path = install_logger(temp.path()).expect("it installs");
        let before = inode(&path);
        assert_eq!(install_logger(temp.path()).expect("it is there"), path);
        assert_eq!(inode(&path), before);
    }

    #[test]
    fn a_damaged_logger_is_replaced_and_older_ones_stay() {
        let temp = temp_dir();
        let older = temp.path().join("toft-logger-000000000000");
        fs::write(&older, "older").expect("it can be written");
        let path = install_logger(temp.path()).expect("it installs");
        let damages: [fn(&Path); 3] = [
            |path| fs::write(path, "torn").expect("it can be written"),
            |path| fs::set_permissions(path, fs::Permissions::from_mode(0o644)).expect("the mode can be set"),
            |path| fs::remove_file(path).expect("it can be removed"),
        ];
        for damage in damages {
            damage(&path);
            assert_eq!(install_logger(temp.path()).expect("it installs"), path);
            assert!(is_installed(&path));
        }
        assert_eq!(fs::read(&older).expect("it is still there"), b"older");
        assert_eq!(names(temp.path()).len(), 2);
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_an_error() {
        let temp = temp_dir();
        let file = temp.path().join("file");
        fs::write(&file, "").expect("it can be written");
        assert!(install_logger(&file.join("bin")).is_err());
    }

    #[test]
    fn the_demo_image_is_a_sound_layout() {
        let mut files = HashMap::new();
        for entry in tar::Archive::new(DEMO_IMAGE).entries().expect("it is a tar") {
            let mut entry = entry.expect("a whole entry");
            assert_eq!(entry.header().mtime().expect("a time"), 0);
            let path = entry.path().expect("a path").display().to_string();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).expect("a whole file");
            files.insert(path, content);
        }
        let parse = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).expect("it is JSON");
        let blob = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().and_then(|digest| digest.strip_prefix("sha256:"));
            let digest = digest.expect("a sha256 digest");
            let content = &files[&format!("blobs/sha256/{digest}")];
            assert_eq!(hex::encode(Sha256::digest(content)), digest);
            assert_eq!(descriptor["size"], json!(content.len()));
            content
        };
        let index = parse(&files["index.json"]);
        let entry = &index["manifests"][0];
        for annotation in ["org.opencontainers.image.ref.name", "io.containerd.image.name"] {
            assert_eq!(entry["annotations"][annotation], json!(DEMO_IMAGE_NAME));
        }
        let manifest = parse(blob(entry));
        let config = parse(blob(&manifest["config"]));
        assert_eq!(config["config"]["Entrypoint"], json!(["/demo"]));

        let mut layer = Vec::new();
        GzDecoder::new(blob(&manifest["layers"][0]).as_slice()).read_to_end(&mut layer).expect("it is gzip");
        let digest = format!("sha256:{}", hex::encode(Sha256::digest(&layer)));
        assert_eq!(config["rootfs"]["diff_ids"], json!([digest]));
        assert_eq!(files.len(), 5);
        let mut entries = tar::Archive::new(layer.as_slice());
        let mut entries = entries.entries().expect("it is a tar");
        let demo = entries.next().expect("one file").expect("a whole entry");
        assert_eq!(demo.path().expect("a path"), Path::new("demo"));
        assert_eq!(demo.header().mode().expect("a mode"), 0o755);
        assert!(entries.next().is_none());
    }
}
