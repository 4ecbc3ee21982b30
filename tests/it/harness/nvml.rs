//! A stand-in for NVIDIA's library, made of `nvml.c` by the machine's compiler and told what to answer by a file.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The library and its file.
pub struct NvmlStub {
    dir: tempfile::TempDir,
}

impl NvmlStub {
    /// Compiles the library; it answers as `told` says.
    pub fn new(told: &str) -> Self {
        let stub = Self { dir: tempfile::tempdir().unwrap() };
        stub.tell(told);
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/harness/nvml.c");
        let file = format!("-DSTUB_FILE=\"{}\"", stub.dir.path().join("told").display());
        let built = Command::new("cc")
            .args([
                "-shared",
                "-fPIC",
                "-O1",
                "-Wall",
                "-Wextra",
                "-Werror",
                "-Wl,-soname,libnvidia-ml.so.1",
                &file,
                "-o",
            ])
            .arg(stub.library())
            .arg(source)
            .args(["-lpthread"])
            .output()
            .expect("a C compiler is there");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        stub
    }

    /// The library.
    pub fn library(&self) -> PathBuf {
        self.dir.path().join("libnvidia-ml.so.1")
    }

    /// Answers like this from now on.
    pub fn tell(&self, told: &str) {
        // Whole or not at all: it is read at every call.
        let (new, file) = (self.dir.path().join("new"), self.dir.path().join("told"));
        fs::write(&new, told).unwrap();
        fs::rename(new, file).unwrap();
    }
}
