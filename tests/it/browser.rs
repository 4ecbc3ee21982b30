//! The dashboard of a real appliance in a real browser.

use std::fs;

use crate::harness::{appliance::Appliance, browser::Browser, machine::wait_until};

/// Does `work` with a browser beside the appliance; somebody is signed in; the argument is the dashboard's address.
fn browse(appliance: &Appliance, scripts: bool, work: impl FnOnce(&Browser, &str) + Send + 'static) {
    let profile = appliance.machine.dir.join("browser");
    fs::create_dir_all(&profile).unwrap();
    let password = fs::read_to_string(appliance.data.join("admin-password")).unwrap();
    let url = fs::read_to_string(appliance.data.join("toft.url")).unwrap();
    let plain = url.trim().trim_end_matches('/').to_owned();
    let seen = appliance.machine.spawn(move || {
        let browser = Browser::start(&profile, scripts);
        browser.sign_in(&plain, password.trim());
        work(&browser, &plain);
    });
    if let Err(panic) = seen.join() {
        std::panic::resume_unwind(panic);
    }
}

fn row(name: &str) -> String {
    format!("//tr[@id='workload-{name}']")
}

#[test]
fn the_dashboard_runs_stops_and_removes_a_workload_live() {
    let appliance = Appliance::start();
    browse(&appliance, true, |browser, url| {
        browser.open(url);
        assert_eq!(browser.title(), "Overview · toft");
        browser.open(&format!("{url}/workloads"));
        browser.click("//a[normalize-space()='Run the demo']");
        browser.fill("//input[@id='name']", "shown");
        browser.click("//button[normalize-space()='Run it']");
        wait_until("the workload's page", || browser.url().ends_with("/workloads/shown").then_some(()));
        browser.wait_for_text("//main", "running");

        browser.open(&format!("{url}/workloads"));
        browser.wait_for_text(&row("shown"), "1/1");
        browser.click(&format!("{}//button[normalize-space()='Stop']", row("shown")));
        browser.wait_for_text(&row("shown"), "stopped");
        browser.click(&format!("{}//button[normalize-space()='Start']", row("shown")));
        browser.wait_for_text(&row("shown"), "running");

        browser.open(&format!("{url}/workloads/shown/logs"));
        browser.wait_for_text("//*[@id='log']", "listening on");

        browser.open(&format!("{url}/workloads"));
        browser.click(&format!("{}//a[normalize-space()='Remove']", row("shown")));
        browser.click("//dialog//button[contains(., 'Remove shown')]");
        browser.wait_for_absence(&row("shown"));

        // What it wrote is kept, and found.
        browser.click("//a[normalize-space()='Kept logs']");
        browser.wait_for_text("//table", "shown");
        browser.click("//a[normalize-space()='shown']");
        browser.wait_for_text("//*[@id='log']", "listening on");
        assert!(browser.url().ends_with("/logs/shown"), "{}", browser.url());
        assert_eq!(browser.complaints(), Vec::<String>::new());
    });
    assert_eq!(appliance.json("ls --json"), serde_json::json!([]));
}

#[test]
fn what_others_do_appears_without_a_reload() {
    let appliance = Appliance::start();
    let socket = appliance.data.join("toft.sock");
    browse(&appliance, true, move |browser, url| {
        browser.open(&format!("{url}/workloads"));
        browser.wait_for_text("//main", "No workloads yet");
        let stream = std::os::unix::net::UnixStream::connect(&socket).unwrap();
        let body = br#"{"name":"elsewhere","image":"toft/demo"}"#;
        crate::harness::http::exchange(stream, "POST", "/api/v1/workloads", &[], body).unwrap().good();
        browser.wait_for_text(&row("elsewhere"), "running");
    });
}

#[test]
fn the_dashboard_works_without_scripts() {
    let appliance = Appliance::start();
    browse(&appliance, false, |browser, url| {
        browser.open(&format!("{url}/run?demo"));
        browser.fill("//input[@id='name']", "Not A Name");
        browser.follow("//button[normalize-space()='Run it']");
        browser.wait_for_text("//*[@role='alert']", "Nothing was run");
        browser.fill("//input[@id='name']", "plain");
        browser.follow("//button[normalize-space()='Run it']");
        let pressed = |word: &str| format!("//main//button[normalize-space()='{word}']");
        let reads = |state: &str| {
            wait_until(state, || {
                browser.reload();
                browser.text("//main").filter(|text| text.contains(state))
            })
        };
        reads("running");
        browser.follow(&pressed("Stop"));
        reads("stopped");
        browser.follow(&pressed("Start"));
        reads("running");
        browser.follow("//main//a[normalize-space()='Remove']");
        browser.wait_for_text("//main", "cannot be undone");
        browser.follow("//main//button[contains(., 'Remove plain')]");
        wait_until("it is gone", || {
            browser.open(&format!("{url}/workloads"));
            browser.text("//main").filter(|text| text.contains("No workloads yet"))
        });

        browser.open(&format!("{url}/secrets/new"));
        browser.fill("//input[@id='name']", "typed");
        browser.fill("//textarea[@id='value']", "two\nlines");
        browser.follow("//button[normalize-space()='Create it']");
        browser.wait_for_text("//main", "9 B");
        browser.follow("//a[@aria-label='Change typed']");
        browser.fill("//input[@id='file']", "/etc/hostname");
        browser.follow("//button[normalize-space()='Change it']");
        browser.wait_for_text("//tr[contains(., 'typed')]", "2");
        browser.follow("//a[@aria-label='Remove typed']");
        browser.follow("//button[normalize-space()='Remove the secret']");
        browser.wait_for_text("//main", "No secrets yet");
    });
}
