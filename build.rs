//! Makes code of the `.proto` files and builds the two programs that toft carries inside itself: the per-container logger and the
//! demo, both static, the demo packed as an OCI image. `src/embedded.rs` includes the results.

#[path = "build/demo_image.rs"]
mod demo_image;
#[path = "build/static_program.rs"]
mod static_program;

use std::fs;
use std::path::PathBuf;

use static_program::{Code, StaticProgram};

fn main() {
    for proto in ["peer", "node", "relay", "blobs", "volume_moves"] {
        tonic_prost_build::configure()
            // One text goes to many.
            .bytes(".toft.peer.v1.Message")
            .compile_protos(&[format!("src/wire/{proto}.proto")], &["src/wire".to_owned()])
            .expect("protoc compiles what members say to each other");
    }
    for source in ["build.rs", "build", "crates/demo/src", "crates/logger/src", "src/wire"] {
        println!("cargo::rerun-if-changed={source}");
    }
    let out_dir = PathBuf::from(static_program::cargo_variable("OUT_DIR"));
    // A fixed address spares the logger its relocations: it is started for every container. The
    // demo faces visitors and keeps address randomisation.
    let logger = StaticProgram::start("toft-logger", "crates/logger/src/main.rs", Code::FixedAddress, &out_dir);
    let demo = StaticProgram::start("toft-demo", "crates/demo/src/main.rs", Code::Relocatable, &out_dir);
    logger.finish();
    let program = fs::read(demo.finish()).expect("the compiled demo is readable");

    let archive = demo_image::archive(&program, &static_program::cargo_variable("CARGO_CFG_TARGET_ARCH"));
    fs::write(out_dir.join("demo-image.tar"), archive).expect("the build folder is writable");
}
