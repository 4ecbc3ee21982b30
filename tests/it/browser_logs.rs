//! Logs that are long, of long lines, and hostile: pages and streams of them stay small, come in time, and do nothing.

use std::{
    fmt::Write as _,
    fs,
    io::{BufWriter, Write as _},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::harness::{appliance::Appliance, browser::Browser, full, http::exchange, machine::wait_until, slowness};

/// Memory of a process that is not shared with a file, in megabytes.
fn memory_mb(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1_000
}

#[test]
fn logs_of_a_gigabyte_and_lines_of_a_megabyte_are_read_in_little_memory() {
    // As much as a node keeps when it is told to; a tenth of it unless the proofs run at their full length.
    let megabytes: u64 = if full() { 1_000 } else { 100 };
    let appliance = Appliance::start();
    appliance.import_busybox();
    appliance.toft(&["run", "-d", "-n", "talker", "busybox", "--", "sh", "-c", "echo begun; exec sleep 1000"]).good();
    let instance = appliance.instance_until("talker", "runs", |instance| instance["state"] == "running");
    let file = appliance.log_file(&instance);
    wait_until("its first line", || fs::read_to_string(&file).ok().filter(|text| text.contains("begun")));
    // What an earlier life of the file holds: many lines, then some of a megabyte, in the pieces that the logger makes.
    let mut old = BufWriter::new(fs::File::create(file.with_extension("log.1")).unwrap());
    let line = format!("2026-01-01T00:00:00Z stdout F {}\n", "some words of no importance ".repeat(6));
    for number in 0..megabytes * 1_000_000 / line.len() as u64 {
        if number % 1_000_000 == 77 {
            old.write_all(b"2026-01-01T00:00:00Z stdout F a needle\n").unwrap();
        }
        old.write_all(line.as_bytes()).unwrap();
    }
    for _ in 0..8 {
        for piece in 0..64 {
            let kind = if piece == 63 { 'F' } else { 'P' };
            writeln!(old, "2026-01-01T00:00:01Z stdout {kind} {}", "<b>x</b>\u{1b}[31m".repeat(1_170)).unwrap();
        }
    }
    let mut evil = String::new();
    for text in [
        "<script>window.hurt=1</script>",
        "<img src=x onerror='window.hurt=1'>",
        "\u{1b}]8;;javascript:window.hurt=1\u{7}click\u{1b}]8;;\u{7}",
        "\u{1b}[2J\u{1b}[1;1Hgone",
        "${window.hurt=1}{{7*7}}",
        "\u{202e}backwards",
        "</div></main><h1>other</h1>",
    ] {
        writeln!(evil, "2026-01-01T00:00:02Z stderr F {text}").unwrap();
    }
    old.write_all(evil.as_bytes()).unwrap();
    old.into_inner().unwrap().sync_all().unwrap();

    let before = memory_mb(appliance.pid());
    let page = |query: &str| {
        let begun = Instant::now();
        let answer = appliance.get(&format!("/workloads/talker/logs{query}"));
        (answer, begun.elapsed())
    };
    for query in ["", "?lines=500", "?lines=5000"] {
        let (answer, took) = page(query);
        assert_eq!(answer.status, 200);
        assert!(answer.body.len() < 8 << 20, "{query}: {} bytes", answer.body.len());
        assert!(took < Duration::from_secs(4) * slowness(), "{query} took {took:?}");
        assert!(answer.text().contains("begun"), "the newest line is there");
    }
    assert!(page("?lines=5000").0.text().contains("lines are long"), "it is told that not all is shown");
    let (found, took) = page("?text=needle");
    // What cannot be found in time is told so.
    let told = found.text().contains("a needle") || found.text().contains("o answer came within");
    assert!(told && took < Duration::from_secs(8) * slowness(), "{took:?}");
    let (_, took) = page("?text=nothing+is+like+that");
    assert!(took < Duration::from_secs(8) * slowness(), "{took:?}");
    let lines = appliance.records("talker", "?tail=3");
    assert_eq!(lines.last().unwrap()["text"], "begun");
    // Somebody who follows from the beginning, and reads nothing.
    let stalled = std::os::unix::net::UnixStream::connect(appliance.data.join("toft.sock")).unwrap();
    std::io::Write::write_all(
        &mut &stalled,
        b"GET /live/workloads/talker/logs?since=0 HTTP/1.1\r\nhost: localhost\r\n\r\n",
    )
    .unwrap();
    std::thread::sleep(Duration::from_secs(2));
    let grown = memory_mb(appliance.pid()).saturating_sub(before);
    assert!(grown < 120, "{grown} MB more than before");
    drop(stalled);

    let profile = appliance.machine.dir.join("browser");
    fs::create_dir_all(&profile).unwrap();
    let password = fs::read_to_string(appliance.data.join("admin-password")).unwrap();
    let url = fs::read_to_string(appliance.data.join("toft.url")).unwrap().trim().trim_end_matches('/').to_owned();
    let seen = appliance.machine.spawn(move || {
        let browser = Browser::start(&profile, true);
        browser.sign_in(&url, password.trim());
        browser.complaints();
        browser.open(&format!("{url}/workloads/talker/logs?lines=5000"));
        browser.wait_for_text("//*[@data-live]", "Live");
        let shown = browser.run(
            "const log = document.querySelector('#log');
             return { letters: log.textContent.length, lines: log.childElementCount, hurt: window.hurt ?? null,
                      links: log.querySelectorAll('a, img, script, b').length, title: document.querySelector('h1').textContent,
                      wide: document.documentElement.scrollWidth > document.documentElement.clientWidth };",
        );
        assert!(shown["letters"].as_u64().unwrap() < 8_000_000 && shown["lines"].as_u64().unwrap() > 20, "{shown}");
        assert_eq!((&shown["hurt"], &shown["links"], &shown["wide"]), (&Value::Null, &json!(0), &json!(false)), "{shown}");
        assert_eq!(shown["title"], "Logs of talker");
        let heap = browser.run("return performance.memory.usedJSHeapSize");
        assert!(heap.as_u64().unwrap() < 200 << 20, "{heap} bytes");
        let broken = browser.complaints();
        assert!(broken.is_empty(), "{broken:?}");
    });
    if let Err(panic) = seen.join() {
        std::panic::resume_unwind(panic);
    }
    let stream = std::os::unix::net::UnixStream::connect(appliance.data.join("toft.sock")).unwrap();
    assert_eq!(exchange(stream, "GET", "/health", &[], b"").unwrap().status, 200);
}
