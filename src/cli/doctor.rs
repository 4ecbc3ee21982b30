//! `doctor`: what is wrong with this machine, and what to do about it.

use std::io::IsTerminal;

use super::{
    Failure,
    args::{DoctorArea, DoctorArgs},
    doctor_cluster::{agreement, membership},
    doctor_gpu::try_out,
    output,
};
use crate::{
    agent::host::host_name,
    config::Config,
    doctor::{Check, Verdict, examine, examine_gpus},
};

/// The order in which areas are shown.
const AREAS: [(&str, &str); 6] = [
    ("system", "System"),
    ("kernel", "Kernel"),
    ("storage", "Storage"),
    ("runtime", "Runtime"),
    ("network", "Network"),
    ("gpu", "GPUs"),
];

pub(super) fn doctor(args: DoctorArgs) -> Result<i32, Failure> {
    let config = Config::resolve(args.appliance.flags(), &host_name());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::of(1, format!("no runtime could be made: {e}")))?;
    let checks = runtime.block_on(async {
        match (args.area, &config) {
            (Some(DoctorArea::Gpu), Ok(config)) => {
                let mut checks = examine_gpus(config).await;
                checks.push(try_out(config).await);
                checks
            }
            _ => {
                let mut checks = examine(&config).await;
                if let Ok(config) = &config {
                    checks.extend(membership(config).await);
                    checks.extend(agreement(config).await);
                }
                checks
            }
        }
    });
    if args.json {
        output::json(&checks)?;
    } else {
        let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        print!("{}", report(&checks, colour));
    }
    Ok(i32::from(checks.iter().any(|check| check.verdict == Verdict::Failure)))
}

fn report(checks: &[Check], colour: bool) -> String {
    let paint = |code: &str, text: &str| if colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() };
    let width = checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for (area, title) in AREAS {
        if !checks.is_empty() && !checks.iter().any(|check| check.area == area) {
            continue;
        }
        text.push_str(&format!("{}\n", paint("1", title)));
        for check in checks.iter().filter(|check| check.area == area) {
            let (mark, code) = match check.verdict {
                Verdict::Ok => ("ok     ", "32"),
                Verdict::Warning => ("warning", "33"),
                Verdict::Failure => ("FAILURE", "31;1"),
                Verdict::NotApplicable => ("-      ", "2"),
            };
            let message = output::harmless(&check.message);
            text.push_str(&format!("  {}  {:width$}  {message}\n", paint(code, mark), check.name));
            if let Some(fix) = &check.fix {
                let arrow = format!("           {:width$}  {}", "", paint("1", "do:"));
                text.push_str(&format!("{arrow} {}\n", output::harmless(fix)));
            }
        }
    }
    let count = |verdict: Verdict| checks.iter().filter(|check| check.verdict == verdict).count();
    let several = |count: usize, word: &str| format!("{count} {word}{}", if count == 1 { "" } else { "s" });
    let (failures, warnings) = (count(Verdict::Failure), count(Verdict::Warning));
    let summary = match (failures, warnings) {
        (0, 0) => paint("32;1", "All is well."),
        (0, _) => paint("33;1", &format!("{}; everything needed works.", several(warnings, "warning"))),
        _ => paint("31;1", &format!("{} and {}.", several(failures, "failure"), several(warnings, "warning"))),
    };
    text + "\n" + &summary + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_names_what_to_do_and_sums_up() {
        let check = |area, verdict, fix: Option<&str>| Check {
            area,
            name: "thing",
            verdict,
            message: "is \x1b[2J so".into(),
            fix: fix.map(str::to_owned),
        };
        let well = report(&[check("kernel", Verdict::Ok, None)], false);
        assert!(
            well.contains("Kernel\n  ok       thing  is \u{fffd}[2J so\n") && well.ends_with("\nAll is well.\n"),
            "{well}"
        );
        let ill = report(
            &[check("kernel", Verdict::Failure, Some("sudo do")), check("network", Verdict::Warning, None)],
            false,
        );
        assert!(ill.contains("do: sudo do\n") && ill.ends_with("1 failure and 1 warning.\n"), "{ill}");
        assert!(!ill.contains('\x1b') && report(&[], true).contains("\x1b[1mKernel"));
    }
}
