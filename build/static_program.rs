//! Compiles one std-only program into a static binary for cargo's target, by calling rustc:
//! cargo cannot give the packages of one build different flags.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// How the program's code is addressed.
pub enum Code {
    /// Linked for one address.
    FixedAddress,
    /// Loaded anywhere.
    Relocatable,
}

/// A compiler at work.
pub struct StaticProgram {
    name: &'static str,
    path: PathBuf,
    compiler: Child,
}

impl StaticProgram {
    /// Starts compiling `source`, a path inside the package, to `out_dir/name`.
    pub fn start(name: &'static str, source: &str, code: Code, out_dir: &Path) -> Self {
        let package = PathBuf::from(cargo_variable("CARGO_MANIFEST_DIR"));
        let path = out_dir.join(name);
        let mut remap = OsString::from("--remap-path-prefix=");
        remap.push(&package);
        remap.push("=.");
        let mut command = Command::new(cargo_variable("RUSTC"));
        // Relative sources and a remapped root: the binary does not depend on where it was built.
        command.current_dir(&package).arg(source).arg(remap).arg("-o").arg(&path);
        command.args(["--edition=2024", "--crate-type=bin", "--crate-name", &name.replace('-', "_")]);
        command.args(["--target", &cargo_variable("TARGET"), "-Ctarget-feature=+crt-static"]);
        command.args(["-Copt-level=s", "-Cpanic=abort", "-Clto=fat", "-Ccodegen-units=1", "-Cstrip=symbols"]);
        if let Code::FixedAddress = code {
            command.arg("-Crelocation-model=static");
        }
        if let Some(linker) = env::var_os("RUSTC_LINKER") {
            let mut option = OsString::from("-Clinker=");
            option.push(linker);
            command.arg(option);
        }
        // What cargo says to the build script is not meant for this compiler.
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let compiler = command.spawn().unwrap_or_else(|error| panic!("cannot start rustc for {name}: {error}"));
        Self { name, path, compiler }
    }

    /// Waits for the compiler and gives the program's path.
    pub fn finish(self) -> PathBuf {
        let output = self.compiler.wait_with_output().expect("the compiler can be waited for");
        let messages = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            panic!("cannot build {} as a static program.\n{}\n{messages}", self.name, hint(&messages));
        }
        for warning in messages.lines() {
            println!("cargo::warning={}: {warning}", self.name);
        }
        self.path
    }
}

/// A variable that cargo promises to build scripts.
pub fn cargo_variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
}

fn hint(messages: &str) -> &'static str {
    if messages.contains("linker `") && messages.contains("not found") {
        "hint: the linker is missing: install gcc, or the cross compiler that `linker` in cargo's config names."
    } else if messages.contains("linking with") {
        "hint: static linking needs the C library's archive (libc.a): install libc6-dev for the target \
         (for another architecture libc6-dev-arm64-cross or libc6-dev-amd64-cross)."
    } else if messages.contains("can't find crate for `std`") {
        "hint: the target's standard library is missing: rustup target add."
    } else {
        "hint: the compiler's messages follow."
    }
}
