//! `toft sim`: a trace from files, replayed by the program itself.

use std::{
    fmt::Write,
    fs,
    path::PathBuf,
    process::{Command, Output},
};

use serde_json::Value;

/// Files of a generated trace: 24 nodes, and pods for nine tenths of their GPUs.
struct Files {
    dir: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut nodes = "sn,cpu_milli,memory_mib,gpu,model\n".to_owned();
        for i in 0..24 {
            let (cpu, gpus, model) = [(96_000, 8, "big"), (104_000, 2, "small")][i % 2];
            writeln!(nodes, "node-{i},{cpu},393216,{gpus},{model}").unwrap();
        }
        let mut pods = "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec\n".to_owned();
        for i in 0..150 {
            let (cpu, gpus, millis) = [
                (3_152, 1, 810),
                (11_400, 1, 1000),
                (8_000, 1, 470),
                (12_500, 0, 0),
                (9_810, 1, 1000),
                (4_000, 1, 320),
            ][i % 6];
            let models = if i % 12 == 1 { "small|other" } else { "" };
            writeln!(pods, "pod-{i},{cpu},16384,{gpus},{millis},{models}").unwrap();
        }
        fs::write(dir.path().join("nodes.csv"), nodes).unwrap();
        fs::write(dir.path().join("pods.csv"), pods).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn sim(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_toft"));
        command.arg("sim").arg("--nodes").arg(self.path("nodes.csv")).arg("--pods").arg(self.path("pods.csv"));
        command.args(args).output().unwrap()
    }

    fn json(&self, args: &[&str]) -> Value {
        let output = self.sim(&[args, &["--json"]].concat());
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

fn at(report: &Value, percent: usize) -> f64 {
    report["loads"][percent]["allocation_percent"]["mean"].as_f64().unwrap()
}

#[test]
fn a_trace_is_replayed_under_every_policy() {
    let files = Files::new();
    let all = "random,spread,binpack,best-fit,dot-prod,gpu-packing,fgd,fgd-balanced";
    let svg = files.path("plot.svg");
    let printed = files.json(&["--policy", all, "--seeds", "3", "--svg", svg.to_str().unwrap()]);
    assert_eq!((printed["nodes"].as_u64(), printed["gpus"].as_f64()), (Some(24), Some(120.0)));
    let reports = printed["policies"].as_array().unwrap();
    assert_eq!(reports.iter().map(|report| report["policy"].as_str().unwrap()).collect::<Vec<_>>().join(","), all);
    for report in reports {
        assert_eq!(report["loads"].as_array().unwrap().len(), 131);
        // Some models are asked for by name and run out before.
        assert!((at(report, 20) - 20.0).abs() < 2.0 && at(report, 130) > 80.0, "{}", report["policy"]);
        assert!(report["decisions_per_second"]["mean"].as_f64().unwrap() > 0.0 && report.get("migration").is_none());
    }
    assert!(at(&reports[6], 130) > at(&reports[0], 130) + 1.0, "FGD places more than chance");
    let svg = fs::read_to_string(svg).unwrap();
    assert_eq!(svg.matches("<polyline").count(), 16);
}

#[test]
fn runs_are_the_same_again_and_moves_are_told() {
    let files = Files::new();
    let loads = |args: &[&str]| files.json(args)["policies"][0]["loads"].clone();
    assert_eq!(loads(&["--seeds", "2"]), loads(&["--seeds", "2"]));
    assert_ne!(loads(&["--seeds", "2"]), loads(&["--seeds", "2", "--first-seed", "9"]));
    let printed = files.json(&["--policy", "random", "--seeds", "2", "--migrate", "2"]);
    let migration = &printed["policies"][0]["migration"];
    let gained = migration["gained_per_hundred_moves"].as_f64().unwrap();
    assert!(migration["moves"]["mean"].as_f64().unwrap() > 0.0 && gained > 0.0, "{migration}");
    let table =
        String::from_utf8(files.sim(&["--policy", "fgd,best-fit", "--seeds", "1", "--until", "90"]).stdout).unwrap();
    for word in ["24 nodes, 120 GPUs, 150 pods of 7 classes", "AT 80%", "AT 90%", "GPUS LEFT", "\nfgd ", "\nbest-fit "]
    {
        assert!(table.contains(word), "{word}: {table}");
    }
}

#[test]
fn what_cannot_be_read_is_told_with_its_place() {
    let files = Files::new();
    fs::write(files.path("pods.csv"), "cpu_milli,memory_mib,num_gpu,gpu_milli\n1,1,1,1000\n1,1,many,1\n").unwrap();
    let output = files.sim(&[]);
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.code() == Some(1) && told.contains("pods.csv, line 3, column `num_gpu`: `many` is not a"),
        "{told}"
    );
    fs::write(files.path("pods.csv"), "cpu_milli,memory_mib,num_gpu,gpu_milli\n1,1,0,0\n").unwrap();
    assert!(String::from_utf8(files.sim(&[]).stderr).unwrap().contains("no pod asks for a GPU"));
    let output = files.sim(&["--policy", "best"]);
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.code() == Some(2) && told.contains("`best` is no policy; there are random, spread"),
        "{told}"
    );
}
