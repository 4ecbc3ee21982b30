//! Devices by the Container Device Interface, on a real containerd: those that users name, and the hooks that make libraries found.

use std::{fs, io::Cursor, os::unix::fs::symlink, path::Path, process::Command};

use serde_json::{Value, json};
use toft::agent::runtime::{ContainerSpec, Runtime};
use toft_model::workload::ProcessSpec;

use crate::{
    gpus::{VERSION, device, hold, injector, install as driver, root, run, sight},
    harness::{containerd::Lab, image},
    runtime_conformance::spec,
};

fn process(devices: &[&str]) -> ProcessSpec {
    ProcessSpec { devices: devices.iter().map(|text| text.parse().unwrap()).collect(), ..ProcessSpec::default() }
}

/// A folder with one specification.
fn folder(kind: &str, devices: Value) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let text = json!({ "cdiVersion": "0.6.0", "kind": kind, "devices": devices });
    fs::write(dir.path().join("x.json"), text.to_string()).unwrap();
    dir
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_are_given_by_the_names_of_specifications_and_cards_never_uncounted() {
    let lab = Lab::start().await;
    let connected = lab.connect().await;
    let runtime = &*connected.runtime;
    let archive = image::busybox("busybox", json!({"Cmd": ["sh"]}));
    runtime.import_image(Box::new(Cursor::new(archive)), None).await.unwrap();
    let (root, (_seen, gpus)) = (root(), sight());
    let board = root.path().join("dev/board");
    device(&board, 1, 7);
    let node = |host: &Path| json!([{ "path": "/dev/board", "hostPath": host }]);
    let specifications = folder(
        "acme.com/fpga",
        json!([
            { "name": "a:1", "containerEdits": { "env": ["BOARD=one"], "deviceNodes": node(&board) } },
            { "name": "card", "containerEdits": { "deviceNodes": node(&root.path().join("dev/nvidia0")) } },
            { "name": "nothing" },
        ]),
    );
    let injector = injector(root.path(), &[specifications.path().to_owned()], gpus);

    let named = process(&["acme.com/fpga=a:1", "/dev/null:/dev/hole"]);
    let edits = injector.edits(&[], &named).await.unwrap();
    let order = ContainerSpec {
        edits,
        process: named,
        ..spec(&["sh", "-c", "echo $BOARD; ls -d /dev/board /dev/hole; dd if=/dev/board bs=4 count=1"])
    };
    runtime.create_container(&order).await.unwrap();
    let (code, out) = run(&lab, runtime, &order).await;
    assert_eq!((code, out.lines().next()), (Some(0), Some("one")), "{out}");
    assert!(out.contains("/dev/board") && out.contains("/dev/hole"), "{out}");
    runtime.delete_container(order.id).await.unwrap();

    let refused = async |holds: &[toft_model::gpu::GpuHold], name: &str| {
        injector.edits(holds, &process(&[name])).await.unwrap_err().to_string()
    };
    let why = refused(&[], "acme.com/fpga=b").await;
    assert!(why.contains("`acme.com/fpga=b` cannot be given") && why.contains("acme.com/fpga=a:1"), "{why}");
    assert!(refused(&[], "other.com/thing=0").await.contains("no specification on this node describes"));
    assert!(refused(&[], "acme.com/fpga=nothing").await.contains("says nothing of it"));
    // Under another name it is still the first card.
    let why = refused(&[], "acme.com/fpga=card").await;
    assert!(why.contains("gives the GPU `GPU-1`") && why.contains("`gpus: device=GPU-1`"), "{why}");
    assert!(refused(&hold("GPU-2"), "acme.com/fpga=card").await.contains("would not be counted"));
    injector.edits(&hold("GPU-1"), &process(&["acme.com/fpga=card"])).await.unwrap();
}

/// Compiles a library that calls itself `name`, or a program.
fn compile(dir: &Path, source: &str, args: &[&str]) {
    fs::write(dir.join("x.c"), source).unwrap();
    let run = Command::new("cc").current_dir(dir).arg("x.c").args(args).output().expect("a C compiler is there");
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
}

fn library(dir: &Path, name: &str, function: &str, version: &str) -> String {
    let file = format!("{}.so.{version}", name.strip_suffix(".so.1").unwrap());
    let source = format!("const char *{function}(void) {{ return \"{name} {version}\"; }}");
    compile(dir, &source, &["-shared", "-fPIC", &format!("-Wl,-soname,{name}"), "-o", &file]);
    file
}

/// An image of Debian's kind with a program that is linked with the driver's libraries.
fn linked_image(name: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    for (library_name, function) in [("libcuda.so.1", "cu"), ("libnvidia-ml.so.1", "ml")] {
        let file = library(dir.path(), library_name, function, "1");
        assert_eq!(file, library_name);
    }
    let source =
        "#include <stdio.h>\nconst char *cu(void), *ml(void);\nint main(void) { printf(\"%s, %s\\n\", cu(), ml()); }";
    compile(dir.path(), source, &["-o", "program", "./libcuda.so.1", "./libnvidia-ml.so.1"]);
    let arch = std::env::consts::ARCH;
    let loader = if arch == "aarch64" { "lib/ld-linux-aarch64.so.1" } else { "lib64/ld-linux-x86-64.so.2" };
    let libc = format!("lib/{arch}-linux-gnu/libc.so.6");
    let read = |path: &str| fs::read(Path::new("/").join(path)).unwrap();
    image::busybox_with(
        name,
        &[
            ("srv/program".into(), fs::read(dir.path().join("program")).unwrap()),
            ("sbin/ldconfig".into(), read("sbin/ldconfig")),
            ("etc/ld.so.cache".into(), read("etc/ld.so.cache")),
            (loader.into(), read(loader)),
            (libc.clone(), read(&libc)),
        ],
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_is_linked_with_the_drivers_libraries_finds_them() {
    let lab = Lab::start().await;
    let connected = lab.connect().await;
    let runtime = &*connected.runtime;
    runtime.import_image(Box::new(Cursor::new(linked_image("busybox"))), None).await.unwrap();
    let (root, (_seen, gpus)) = (root(), sight());
    let order = spec(&["sh", "-c", "/srv/program; /sbin/ldconfig -p; ls -a /etc"]);

    // What toft makes itself, and again after an upgrade of the driver.
    let libraries = root.path().join("usr/lib64");
    let install = |version: &str| {
        for (name, function) in [("libcuda.so.1", "cu"), ("libnvidia-ml.so.1", "ml")] {
            let file = library(&libraries, name, function, version);
            let _ = fs::remove_file(libraries.join(name));
            symlink(file, libraries.join(name)).unwrap();
        }
    };
    install(VERSION);
    let own = injector(root.path(), &[], gpus.clone());
    let edits = own.edits(&hold("GPU-1"), &ProcessSpec::default()).await.unwrap();
    let first = ContainerSpec { edits, ..order };
    runtime.create_container(&first).await.unwrap();
    let (code, out) = run(&lab, runtime, &first).await;
    assert!(out.starts_with(&format!("libcuda.so.1 {VERSION}, libnvidia-ml.so.1 {VERSION}\n")), "{code:?} {out}");
    let listed = |out: &str, name: &str| out.lines().any(|line| line.trim().starts_with(&format!("{name} (libc6,")));
    assert!(listed(&out, "libcuda.so.1") && listed(&out, "libnvidia-ml.so.1") && listed(&out, "libc.so.6"), "{out}");
    assert!(out.contains("ld.so.cache") && !out.contains(".toft"), "{out}");
    driver(root.path(), "575.51");
    install("575.51");
    let fresh = own.edits(&hold("GPU-1"), &ProcessSpec::default()).await.unwrap();
    runtime.edit_container(first.id, &fresh).await.unwrap();
    let (_, out) = run(&lab, runtime, &first).await;
    assert!(out.contains("libcuda.so.1 575.51, ") && listed(&out, "libcuda.so.1"), "{out}");
    runtime.delete_container(first.id).await.unwrap();

    // What NVIDIA's tool wrote, whose program is gone: its libraries lie where no loader looks, under their long names.
    let inside = "/opt/driver/lib";
    let mounts = ["libcuda.so.575.51", "libnvidia-ml.so.575.51"].map(|name| {
        json!({ "hostPath": libraries.join(name), "containerPath": format!("{inside}/{name}"), "options": ["ro", "bind"] })
    });
    let gone = "/no/such/nvidia-cdi-hook";
    let hook = |args: &[&str]| json!({ "hookName": "createContainer", "path": gone, "args": args });
    let link = format!("libcuda.so.1::{inside}/libcuda.so");
    let edits = json!({
        "deviceNodes": [{ "path": "/dev/nvidia0", "hostPath": root.path().join("dev/nvidia0") }],
        "mounts": mounts,
        "hooks": [
            hook(&["nvidia-cdi-hook", "create-symlinks", "--link", &link]),
            hook(&["nvidia-cdi-hook", "update-ldcache", "--folder", inside]),
            hook(&["nvidia-cdi-hook", "enable-cuda-compat", "--host-driver-version=575.51"]),
        ],
    });
    let specifications = folder("nvidia.com/gpu", json!([{ "name": "0", "containerEdits": edits }]));
    let by_file = injector(root.path(), &[specifications.path().to_owned()], gpus);
    let edits = by_file.edits(&hold("GPU-1"), &ProcessSpec::default()).await.unwrap();
    assert_eq!(edits.hooks.len(), 2);
    let second = ContainerSpec {
        edits,
        ..spec(&["sh", "-c", &format!("/srv/program; cat {inside}/libcuda.so >/dev/null && ls {inside}")])
    };
    runtime.create_container(&second).await.unwrap();
    let (_, out) = run(&lab, runtime, &second).await;
    assert!(out.starts_with("libcuda.so.1 575.51, libnvidia-ml.so.1 575.51\n"), "{out}");
    assert!(out.contains("libcuda.so\n") && out.contains("libcuda.so.1\n"), "{out}");
    runtime.delete_container(second.id).await.unwrap();
}
