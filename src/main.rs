//! The `toft` program: parse, run, exit code.

fn main() {
    std::process::exit(toft::cli::main());
}
