//! The `toft` program: parse, run, exit code.

fn main() {
    // Before anything speaks TLS: there is one provider, whatever a library would choose.
    let _ = rustls::crypto::ring::default_provider().install_default();
    std::process::exit(toft::cli::main());
}
