//! Every page of the dashboard in a real browser, on a made-up cluster: at the widths of a phone, tablets and a desk, in
//! both themes, and with hostile texts in the state.
//!
//! `cargo test --workspace --test it screenshots_of_every_page -- --ignored` makes the pictures of the documents; with
//! `TOFT_SCREENSHOTS_IN=FOLDER` as PNG in that folder, to be looked at.

use std::{fs, path::PathBuf};

use serde_json::{Value, json};

use crate::harness::{axe, browser::Browser, dev::Dev, machine::wait_until};

pub const WIDTHS: [(u32, u32); 4] = [(375, 800), (768, 1024), (1024, 768), (1440, 900)];

/// Every page, with a name for its picture.
pub fn pages() -> Vec<(&'static str, &'static str)> {
    vec![
        ("overview", "/"),
        ("workloads", "/workloads"),
        ("workload", "/workloads/llm"),
        ("workload-waits", "/workloads/too-large"),
        ("logs", "/workloads/web/logs"),
        ("history", "/workloads/web/history"),
        ("change", "/workloads/web/edit"),
        ("shell", "/workloads/web/shell"),
        ("remove", "/workloads/web/remove"),
        ("kept-logs", "/logs"),
        ("run", "/run"),
        ("events", "/events"),
        ("nodes", "/nodes"),
        ("node", "/nodes/node-1"),
        ("drain", "/nodes/node-2/drain"),
        ("gpus", "/gpus"),
        ("gpu", "/gpus/node-1/0"),
        ("mesh", "/mesh"),
        ("images", "/images"),
        ("volumes", "/volumes"),
        ("volume-move", "/volumes/data/move"),
        ("volume-new", "/volumes/new"),
        ("secrets", "/secrets"),
        ("secret-new", "/secrets/new"),
        ("settings", "/settings"),
        ("account", "/account"),
        ("second-factor", "/account/second-factor"),
        ("passkeys", "/account/passkeys"),
        ("users", "/users"),
        ("user", "/users/admin"),
        ("audit", "/audit"),
        ("authority", "/ca"),
        ("setup", "/setup"),
        ("login", "/login"),
        ("find", "/find?q=w"),
        ("lost", "/nothing"),
        ("styleguide", "/styleguide"),
    ]
}

/// Pages whose pictures are made in the dark theme and at the width of a phone too.
const IN_EVERY_LOOK: [&str; 8] = ["overview", "workloads", "workload", "nodes", "node", "gpus", "mesh", "events"];

/// A made-up cluster of three nodes in which something goes on.
pub fn furnished() -> Dev {
    let dev = Dev::start(&["--nodes", "3"]);
    wait_until("three nodes are ready", || {
        (dev.json(&["node", "ls"]).iter().filter(|node| node["state"] == "ready").count() == 3).then_some(())
    });
    let put = |spec: Value| dev.send("POST", "/api/v1/workloads", &spec).good();
    put(
        json!({ "name": "web", "image": "nginx:1.29", "replicas": 3, "ports": [{ "container": 80 }], "labels": { "team": "site" } }),
    );
    put(json!({ "name": "llm", "image": "ghcr.io/ggml-org/llama.cpp:server-cuda", "gpus": "24GB..:1", "replicas": 2 }));
    put(json!({ "name": "image-maker", "image": "ghcr.io/ai-dock/comfyui:v2", "gpus": "vram=16GiB" }));
    put(
        json!({ "name": "postgres", "image": "postgres:17.2", "mounts": [{ "type": "volume", "name": "data", "target": "/var/lib/postgresql/data" }],
        "resources": { "memory_bytes": 2_147_483_648u64 } }),
    );
    put(json!({ "name": "once", "image": "busybox", "kind": "job", "command": ["sh", "-c", "exit 3"] }));
    put(json!({ "name": "too-large", "image": "busybox", "resources": { "memory_bytes": 1_099_511_627_776u64 } }));
    dev.send("POST", "/api/v1/secrets?name=db-password", &json!("hush"));
    wait_until("the workloads run", || {
        let running = dev.json(&["ps"]).iter().filter(|row| row["state"] == "running").count();
        (running >= 7).then_some(())
    });
    dev
}

/// Waits until what runs was measured: the made-up past comes with the first sample.
fn measured(dev: &Dev) {
    let known = |path: &str, measure: &str| {
        let series = dev.send("GET", path, &Value::Null).good();
        let mut lines = series["lines"].as_array().unwrap().iter();
        let line = lines.find(|line| line["measure"] == measure).unwrap()["mean"].as_array().unwrap().clone();
        line.iter().filter(|value| !value.is_null()).count() > 100
    };
    for instance in dev.json(&["ps"]).iter().filter(|row| row["state"] == "running") {
        let path = format!("/api/v1/instances/{}/series", instance["name"].as_str().unwrap());
        wait_until("an instance was measured", || known(&path, "memory_bytes").then_some(()));
    }
    wait_until("its cards are busy", || {
        let cards = dev.send("GET", "/api/v1/gpus", &Value::Null).good();
        let held = cards["items"].as_array().unwrap().iter().filter(|card| card["holders"] != json!([])).cloned();
        held.collect::<Vec<_>>()
            .iter()
            .all(|card| card["facts"]["measured"]["busy_percent"].as_u64() > Some(0))
            .then_some(())
    });
}

pub fn browser(scripts: bool) -> (Browser, tempfile::TempDir) {
    let profile = tempfile::tempdir().unwrap();
    (Browser::start(profile.path(), scripts), profile)
}

/// What is wrong with the page that is shown: it is wider than the window, or axe finds something.
pub fn faults(browser: &Browser, axe: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let wide = "const d = document.documentElement; const w = d.clientWidth;
        return d.scrollWidth <= w ? [] : [...document.querySelectorAll('body *')]
            .filter((e) => e.getBoundingClientRect().right > w + 1).slice(0, 4)
            .map((e) => `${e.tagName}.${e.className} ends at ${Math.round(e.getBoundingClientRect().right)} of ${w}`);";
    for one in browser.run(wide).as_array().unwrap() {
        faults.push(format!("wider than the window: {}", one.as_str().unwrap()));
    }
    let cut = "return [...document.querySelectorAll('.card, main, header')]
        .filter((e) => e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflowX !== 'auto')
        .slice(0, 4).map((e) => `${e.tagName}.${e.className} shows ${e.clientWidth} of ${e.scrollWidth}`)";
    for one in browser.run(cut).as_array().unwrap() {
        faults.push(format!("cut off: {}", one.as_str().unwrap()));
    }
    let look = format!(
        "{axe}\n;const done = arguments[arguments.length - 1];
        axe.run(document, {{ resultTypes: ['violations'] }}).then(
            (r) => done(r.violations.map((v) => `${{v.id}}: ${{v.nodes.map((n) => n.target + ' ' + (n.any[0]?.message ?? '')).slice(0, 3).join(' | ')}}`)),
            (e) => done([String(e)]));"
    );
    for one in browser.run_later(&look).as_array().unwrap() {
        faults.push(one.as_str().unwrap().to_owned());
    }
    faults
}

#[test]
fn every_page_fits_every_width_in_both_themes_and_keeps_nobody_out() {
    let dev = furnished();
    let (plain, password) = dev.address();
    let (browser, _profile) = browser(true);
    let axe = axe::script();
    browser.sign_in(&plain, &password);
    browser.complaints();
    let mut faults_found = Vec::new();
    for (_, path) in pages() {
        for size in WIDTHS {
            for dark in [false, true] {
                browser.look_like(size, dark);
                browser.open(&format!("{plain}{path}"));
                let theme = if dark { "dark" } else { "light" };
                faults_found.extend(
                    faults(&browser, &axe).into_iter().map(|fault| format!("{path} at {} {theme}: {fault}", size.0)),
                );
                let complaints =
                    browser.complaints().into_iter().filter(|one| path != "/nothing" || !one.contains("404"));
                faults_found.extend(complaints.map(|one| format!("{path} at {} {theme}: console: {one}", size.0)));
            }
        }
    }
    assert!(faults_found.is_empty(), "{} faults:\n{}", faults_found.len(), faults_found.join("\n"));
}

/// Pictures for the documents; only that of `TOFT_SCREENSHOTS_OF`, if it is set.
#[test]
#[ignore = "writes docs/screenshots"]
fn screenshots_of_every_page() {
    let dev = furnished();
    measured(&dev);
    let (plain, password) = dev.address();
    let (browser, _profile) = browser(true);
    browser.sign_in(&plain, &password);
    browser.hide_scrollbars();
    let elsewhere = std::env::var_os("TOFT_SCREENSHOTS_IN").map(PathBuf::from);
    let format = if elsewhere.is_some() { "png" } else { "webp" };
    let folder = elsewhere.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/screenshots"));
    fs::create_dir_all(&folder).unwrap();
    let only = std::env::var("TOFT_SCREENSHOTS_OF").ok();
    for (name, path) in pages().into_iter().filter(|(name, _)| only.as_deref().is_none_or(|only| only == *name)) {
        for (kind, size, dark) in
            [("", (1440, 900), false), ("-dark", (1440, 900), true), ("-phone", (375, 800), false)]
        {
            if !kind.is_empty() && !IN_EVERY_LOOK.contains(&name) {
                continue;
            }
            browser.look_like(size, dark);
            browser.open(&format!("{plain}{path}"));
            // What is drawn after the page is there.
            std::thread::sleep(std::time::Duration::from_millis(700));
            let picture = folder.join(format!("{name}{kind}.{format}"));
            fs::write(picture, browser.picture(format)).unwrap();
        }
    }
}

#[test]
fn hostile_texts_do_nothing_on_any_page() {
    let dev = furnished();
    let evil = "\"'><script>window.hurt=1</script><img src=x onerror='window.hurt=1'>`${window.hurt=1}`{{7*7}}";
    let spec = json!({ "name": "evil", "image": "busybox", "command": ["sh", "-c", evil], "env": { "KEY<b>": evil },
        "labels": { "key<b>": evil }, "replicas": 1, "placement": { "constraints": [] } });
    dev.send("POST", "/api/v1/workloads", &spec).good();
    let labels = json!({ "labels": { "rack": evil } });
    dev.send("PATCH", "/api/v1/nodes/node-1", &labels);
    let (plain, password) = dev.address();
    let (browser, _profile) = browser(true);
    browser.sign_in(&plain, &password);
    browser.complaints();
    let all = pages().into_iter().map(|(_, path)| path.to_owned());
    let more = ["/workloads/evil", "/workloads/evil/edit", "/workloads/evil/history", "/workloads/evil/logs"];
    let typed =
        "%22%27%3E%3Cscript%3Ewindow.hurt%3D1%3C%2Fscript%3E%3Cimg%20src%3Dx%20onerror%3D%27window.hurt%3D1%27%3E";
    let asked = [
        "/find?q=",
        "/events?text=",
        "/workloads?q=",
        "/run?image=",
        "/images?node=",
        "/workloads/web/shell?instance=",
    ];
    let asked = asked.map(|path| format!("{path}{typed}"));
    for path in all.chain(more.map(str::to_owned)).chain(asked) {
        browser.open(&format!("{plain}{path}"));
        std::thread::sleep(std::time::Duration::from_millis(60));
        assert_eq!(browser.run("return window.hurt ?? null"), Value::Null, "{path}");
        let broken = browser.complaints().into_iter().filter(|one| !one.contains("404")).collect::<Vec<_>>();
        assert!(broken.is_empty(), "{path}: {broken:?}");
    }
}

#[test]
fn tables_of_charts_fit_a_phone_whatever_is_in_them() {
    let dev = furnished();
    measured(&dev);
    let (plain, password) = dev.address();
    let (browser, _profile) = browser(true);
    browser.sign_in(&plain, &password);
    browser.look_like(WIDTHS[0], false);
    for path in ["/nodes/node-1", "/workloads/llm", "/gpus/node-1/0"] {
        browser.open(&format!("{plain}{path}"));
        // As it is before the charts are drawn over them, or without a script.
        let told = browser.run(
            "document.querySelectorAll('.plot').forEach((plot) => plot.replaceChildren());
            const tables = [...document.querySelectorAll('.chart table')];
            const long = (line) => line.textContent = `${'a'.repeat(63)}-11 received`;
            tables.forEach((table) => table.querySelectorAll('tbody th').forEach(long));
            tables.forEach((table) => table.querySelectorAll('td').forEach((cell) => cell.textContent = '1023 MiB/s'));
            const cards = tables.map((table) => table.closest('.card'));
            return { shown: tables.filter((table) => table.clientHeight > 0).length,
                     cut: cards.filter((card) => card.scrollWidth > card.clientWidth).map((card) => card.id) }",
        );
        assert!(told["shown"].as_u64() > Some(2), "{path}: {told}");
        assert_eq!(told["cut"], json!([]), "{path}");
    }
}

#[test]
fn a_page_follows_the_state_and_keeps_focus_and_place() {
    let dev = furnished();
    let (plain, password) = dev.address();
    let (browser, _profile) = browser(true);
    browser.sign_in(&plain, &password);
    browser.look_like((1440, 420), false);
    browser.open(&format!("{plain}/workloads"));
    browser.wait_for_text("//*[@data-live]", "Live");
    browser.run(
        "const link = document.querySelector('#workload-web a'); link.focus(); window.kept = link; scrollTo(0, 90);",
    );
    let before = browser.run("return scrollY");
    dev.toft(&["scale", "web=5"]).or_else(|| dev.toft(&["run", "-d", "-n", "aaa", "busybox"])).unwrap();
    dev.send("POST", "/api/v1/workloads", &json!({ "name": "brand-new", "image": "busybox" })).good();
    browser.wait_for_text("//tr[@id='workload-brand-new']", "running");
    assert_eq!(browser.run("return document.activeElement === window.kept"), json!(true), "the focus stays");
    assert_eq!(browser.run("return scrollY"), before, "the place stays");
    dev.send("DELETE", "/api/v1/workloads/brand-new", &Value::Null);
    browser.wait_for_absence("//tr[@id='workload-brand-new']");

    // The palette, with the keyboard alone.
    browser.press("/");
    browser.wait_for_text("//dialog[@id='palette']", "Overview");
    browser.press("node-3");
    browser.wait_for_text("//dialog[@id='palette']//a", "node-3");
    browser.press("\u{e007}");
    wait_until("the node's page", || browser.url().ends_with("/nodes/node-3").then_some(()));
    browser.wait_for_text("//main", "NVIDIA RTX A6000");
    wait_until("the charts are drawn", || {
        (browser.run("return document.querySelectorAll('canvas').length").as_u64() > Some(3)).then_some(())
    });
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

#[test]
fn a_shell_survives_a_reload() {
    let dev = furnished();
    let (plain, password) = dev.address();
    let (browser, _profile) = browser(true);
    browser.sign_in(&plain, &password);
    browser.open(&format!("{plain}/workloads/web/shell"));
    browser.wait_for_text("//*[@data-live]", "Live");
    browser.wait_for_text("//*[@id='shell']", "made-up");
    browser.press("remember\u{e007}");
    wait_until("it is repeated", || {
        browser.text("//*[@id='shell']").filter(|text| text.matches("remember").count() >= 2)
    });
    browser.reload();
    browser.wait_for_text("//*[@data-live]", "Live");
    wait_until("what was written is there again", || {
        browser.text("//*[@id='shell']").filter(|text| text.matches("remember").count() >= 2)
    });
    browser.press("exit\u{e007}");
    browser.wait_for_text("//*[@data-live]", "code 0");
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

#[test]
fn without_a_script_pages_say_the_same() {
    let dev = furnished();
    let (plain, password) = dev.address();
    let (browser, _profile) = browser(false);
    browser.sign_in(&plain, &password);
    for (path, words) in [
        ("/nodes/node-1", "Highest"),
        ("/workloads/llm?span=1w", "Highest"),
        ("/gpus/node-1/0", "python3"),
        ("/workloads/web/shell", "toft exec -it web-"),
        ("/find?q=post", "postgres"),
        ("/workloads?state=attention", "too-large"),
        ("/events?kind=node", "node-3"),
        ("/mesh", "node-2"),
    ] {
        // Nothing is added to a page later; a busy node may not have told in time.
        wait_until(path, || {
            browser.open(&format!("{plain}{path}"));
            browser.text("//main").filter(|text| text.contains(words))
        });
    }
    browser.open(&format!("{plain}/nodes/node-3"));
    browser.follow("//main//a[normalize-space()='Drain']");
    browser.wait_for_text("//main", "Drain node-3?");
    browser.follow("//main//button[contains(., 'Drain node-3')]");
    browser.wait_for_text("//main", "draining");
    browser.follow("//main//button[normalize-space()='Let it take work']");
    browser.wait_for_text("//main", "takes work");
    browser.open(&format!("{plain}/volumes"));
    browser.follow("//a[@aria-label='Move data']");
    browser.wait_for_text("//main", "Move data?");
    browser.open(&format!("{plain}/workloads/web/edit"));
    browser.follow("//button[normalize-space()='Show the difference']");
    browser.wait_for_text("//main", "Nothing would change");
    browser.open(&format!("{plain}/settings"));
    browser.follow("//button[normalize-space()='Make a line to paste']");
    browser.wait_for_text("//*[@id='join-line']", "sudo toft join");
}
