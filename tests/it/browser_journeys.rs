//! What people do at the dashboard from one page to the next: the first run, there and back, in the middle of something, in two
//! tabs, and when their session ends while they type. Each with a script and, where pages say so, without.

use std::fs;

use serde_json::{Value, json};

use crate::harness::{appliance::Appliance, browser::Browser, dev::Dev, machine::wait_until};

const PASSWORD: &str = "correct horse battery";

fn browser(scripts: bool) -> (Browser, tempfile::TempDir) {
    let profile = tempfile::tempdir().unwrap();
    (Browser::start(profile.path(), scripts), profile)
}

fn button(word: &str) -> String {
    format!("//main//button[normalize-space()='{word}']")
}

fn link(word: &str) -> String {
    format!("//a[normalize-space()='{word}']")
}

/// A made-up cluster of one node with a workload that runs.
fn with_web() -> Dev {
    let dev = Dev::start(&["--nodes", "1"]);
    wait_until("the node is ready", || {
        dev.json(&["node", "ls"]).iter().any(|node| node["state"] == "ready").then_some(())
    });
    for name in ["web", "other"] {
        dev.send("POST", "/api/v1/workloads", &json!({ "name": name, "image": "nginx:1.29" })).good();
    }
    wait_until("they run", || {
        let running = dev.json(&["ps"]).iter().filter(|row| row["state"] == "running").count();
        (running == 2).then_some(())
    });
    dev
}

/// Somebody who has signed in there.
struct Visit {
    dev: Dev,
    url: String,
    password: String,
    browser: Browser,
    _profile: tempfile::TempDir,
}

fn visit(scripts: bool) -> Visit {
    let dev = with_web();
    let (url, password) = dev.address();
    let (browser, _profile) = browser(scripts);
    browser.sign_in(&url, &password);
    browser.complaints();
    Visit { dev, url, password, browser, _profile }
}

/// From a machine on which nobody ever signed in to a container that runs, with clicks and what has to be typed.
fn first_run(scripts: bool) {
    let appliance = Appliance::start();
    let profile = appliance.machine.dir.join("browser");
    fs::create_dir_all(&profile).unwrap();
    let first = fs::read_to_string(appliance.data.join("admin-password")).unwrap();
    let url = fs::read_to_string(appliance.data.join("toft.url")).unwrap();
    let seen = appliance.machine.spawn(move || {
        let browser = Browser::start(&profile, scripts);
        browser.open(url.trim());
        browser.fill("//input[@id='name']", "admin");
        browser.fill("//input[@id='password']", first.trim());
        browser.follow("//button[normalize-space()='Sign in']");
        browser.wait_for_text("//h1", "Choose a password");
        // Two that are not the same are told, and nothing is lost but they.
        browser.fill("//input[@id='new']", PASSWORD);
        browser.fill("//input[@id='again']", "something else");
        browser.follow(&button("Set the password"));
        browser.wait_for_text("//*[@role='alert']", "");
        browser.fill("//input[@id='new']", PASSWORD);
        browser.fill("//input[@id='again']", PASSWORD);
        browser.follow(&button("Set the password"));
        browser.wait_for_text("//main", "Nothing runs yet");
        browser.follow(&format!("//main{}", link("Run the demo")));
        browser.follow(&button("Run it"));
        browser.wait_for_text("//h1", "demo");
        wait_until("it runs", || {
            if !scripts {
                browser.reload();
            }
            browser.text("//main").filter(|text| text.contains("1 of 1 running"))
        });
        browser.follow(&format!("//main{}", link("Logs")));
        wait_until("what it says", || {
            if !scripts {
                browser.reload();
            }
            browser.text("//*[@id='log']").filter(|text| text.contains("listening on"))
        });
        browser.follow(&link("Overview"));
        browser.wait_for_text("//ul[contains(@class,'tiles')]/li[contains(@class,'ok')]/strong", "1");
        // The first password is of no use any more, and the new one is.
        browser.follow("//a[normalize-space()='admin']");
        let sign_out = "//form[@action='/logout']//button";
        browser.follow(sign_out);
        browser.fill("//input[@id='name']", "admin");
        browser.fill("//input[@id='password']", first.trim());
        browser.follow("//button[normalize-space()='Sign in']");
        browser.wait_for_text("//*[@role='alert']", "");
        browser.fill("//input[@id='password']", PASSWORD);
        browser.follow("//button[normalize-space()='Sign in']");
        browser.wait_for_text("//h1", "Overview");
    });
    if let Err(panic) = seen.join() {
        std::panic::resume_unwind(panic);
    }
    assert_eq!(appliance.json("ls --json")[0]["status"], "running");
}

#[test]
fn the_first_run_ends_with_a_container_that_runs() {
    first_run(true);
}

#[test]
fn the_first_run_needs_no_script() {
    first_run(false);
}

#[test]
fn back_and_forward_lead_where_people_were() {
    let Visit { dev, url, browser, .. } = &visit(true);
    browser.open(&format!("{url}/workloads"));
    browser.fill("//input[@id='q']", "we");
    browser.follow("//main//button[normalize-space()='Filter']");
    browser.wait_for_text("//tbody", "web");
    browser.follow(&format!("//tbody{}", link("web")));
    browser.wait_for_text("//h1", "web");
    browser.follow(&format!("//main{}", link("Versions")));
    browser.wait_for_text("//main", "Generation");
    browser.back();
    browser.wait_for_text("//h1", "web");
    // A page that was gone back to lives.
    browser.wait_for_text("//*[@data-live]", "Live");
    dev.send("POST", "/api/v1/workloads/web/stop", &Value::Null).good();
    browser.wait_for_text("//h1/..", "stopped");
    browser.back();
    assert_eq!(browser.value("//input[@id='q']"), "we", "what was looked for is there still");
    wait_until("the list is as it is now", || {
        browser.text("//tbody").filter(|text| text.contains("stopped") && !text.contains("other"))
    });
    browser.forward();
    browser.wait_for_text("//h1", "web");
    browser.forward();
    browser.wait_for_text("//main", "Generation");
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

#[test]
fn a_reload_in_the_middle_repeats_nothing_and_loses_nothing() {
    let Visit { dev, url, browser, .. } = &visit(true);
    // Asked whether, and loaded anew instead of an answer.
    browser.open(&format!("{url}/workloads"));
    browser.click("//a[@aria-label='Remove web']");
    browser.wait_for_text("//dialog[@id='dialog']", "Remove web");
    browser.reload();
    browser.wait_for_text("//tr[@id='workload-web']", "running");
    assert_eq!(browser.run("return document.querySelector('#dialog').open"), json!(false));
    // Pressed, and loaded anew again and again before it is done: it is done once.
    let restarts = || {
        let events = dev.send("GET", "/api/v1/events?limit=1000", &Value::Null).good();
        let events = events["items"].as_array().unwrap().iter();
        events.filter(|event| event["message"].as_str().unwrap().contains("restarted by request")).count()
    };
    let before = restarts();
    browser.click("//tr[@id='workload-web']//button[normalize-space()='Restart']");
    wait_until("toft has heard of it", || (restarts() > before).then_some(()));
    for _ in 0..3 {
        browser.reload();
    }
    browser.wait_for_text("//tr[@id='workload-web']", "running");
    assert_eq!(restarts(), before + 1);
    // Sent, answered with another page, which is loaded anew: there is one.
    browser.open(&format!("{url}/run?demo"));
    browser.fill("//input[@id='name']", "once");
    browser.follow(&button("Run it"));
    browser.reload();
    browser.wait_for_text("//h1", "once");
    browser.reload();
    browser.wait_for_text("//main", "running");
    assert_eq!(dev.json(&["ls"]).iter().filter(|row| row["name"].as_str().unwrap().starts_with("once")).count(), 1);
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

#[test]
fn two_tabs_see_the_same_and_do_not_overwrite_each_other() {
    let Visit { dev, url, browser, .. } = &visit(true);
    let one = browser.tab();
    browser.open(&format!("{url}/workloads"));
    browser.wait_for_text("//*[@data-live]", "Live");
    let two = browser.new_tab();
    browser.open(&format!("{url}/workloads"));
    browser.click("//tr[@id='workload-web']//button[normalize-space()='Stop']");
    browser.wait_for_text("//tr[@id='workload-web']", "stopped");
    browser.see_tab(&one);
    browser.wait_for_text("//tr[@id='workload-web']", "stopped");

    // Both change the same; who comes second is told, and nothing of what they typed is lost.
    let edit = |label: &str| {
        browser.open(&format!("{url}/workloads/other/edit"));
        let text = browser.value("//textarea[@id='text']");
        let mut spec: Value = serde_json::from_str(&text).unwrap();
        spec["labels"] = json!({ "said-by": label });
        browser.run(&format!("document.querySelector('#text').value = {}", json!(spec.to_string())));
        browser.follow(&button("Show the difference"));
        browser.wait_for_text("//main", "What would change");
    };
    edit("one");
    browser.see_tab(&two);
    edit("two");
    browser.follow(&button("Write the new version"));
    browser.wait_for_text("//h1", "other");
    browser.see_tab(&one);
    browser.follow(&button("Write the new version"));
    browser.wait_for_text("//*[@role='alert']", "Nothing was changed");
    assert!(browser.value("//textarea[@id='text']").contains("one"), "what was typed is there still");
    let labels = dev.send("GET", "/api/v1/workloads/other", &Value::Null).good()["spec"]["labels"].clone();
    assert_eq!(labels["said-by"], "two");
}

/// A session that ends while somebody fills in a form.
fn session_ends(scripts: bool) {
    let Visit { dev, url, password, browser, .. } = &visit(scripts);
    let end_sessions = || {
        let sessions = dev.send("GET", "/api/v1/sessions", &Value::Null).good();
        for session in sessions["items"].as_array().unwrap() {
            let id = session["id"].as_str().unwrap();
            assert_eq!(dev.send("DELETE", &format!("/api/v1/sessions/{id}"), &Value::Null).status, 204);
        }
    };
    let sign_in = || {
        browser.wait_for_text("//h1", "Sign in");
        browser.fill("//input[@id='name']", "admin");
        browser.fill("//input[@id='password']", password);
        browser.follow("//button[normalize-space()='Sign in']");
    };
    browser.open(&format!("{url}/run"));
    browser.fill("//input[@id='image']", "example.org/typed:1");
    browser.fill("//input[@id='name']", "typed");
    browser.fill("//textarea[@id='ports']", "8080\n9090/udp");
    end_sessions();
    browser.follow(&button("Run it"));
    sign_in();
    browser.wait_for_text("//h1", "Go on where you were");
    assert!(browser.value("//textarea[@name='ports']").contains("9090/udp"), "every line is there");
    browser.follow(&button("Send it"));
    browser.wait_for_text("//h1", "typed");
    let spec = dev.send("GET", "/api/v1/workloads/typed", &Value::Null).good()["spec"].clone();
    assert_eq!((&spec["image"], spec["ports"].as_array().unwrap().len()), (&json!("example.org/typed:1"), 2));

    // A page that only looks leads back to where it was.
    end_sessions();
    browser.open(&format!("{url}/workloads/web/history"));
    sign_in();
    // Who has only the first password is asked for one of their own first.
    if browser.text("//h1").is_some_and(|title| title.contains("Choose a password")) {
        browser.follow(&link("Later"));
        browser.open(&format!("{url}/workloads/web/history"));
    }
    wait_until("the page that was asked for", || browser.url().ends_with("/workloads/web/history").then_some(()));

    // A button in a list; with a script it is asked for without leaving the page.
    browser.open(&format!("{url}/workloads"));
    browser.wait_for_text("//tr[@id='workload-web']", "running");
    end_sessions();
    browser.click("//tr[@id='workload-web']//button[normalize-space()='Stop']");
    wait_until("the way to sign in", || {
        browser.text("//body").filter(|text| text.contains("Sign in") || text.to_lowercase().contains("sign"))
    });
    let state = dev.json(&["ls"]).iter().find(|row| row["name"] == "web").unwrap()["status"].clone();
    assert_eq!(state, "running", "nothing was done for somebody who is not signed in");
}

#[test]
fn nothing_typed_is_lost_when_a_session_ends() {
    session_ends(true);
}

#[test]
fn nothing_typed_is_lost_when_a_session_ends_and_there_is_no_script() {
    session_ends(false);
}

#[test]
fn what_is_typed_opened_and_chosen_stays_while_the_page_changes() {
    let Visit { dev, url, browser, .. } = &visit(true);
    dev.send(
        "POST",
        "/api/v1/workloads",
        &json!({ "name": "full", "image": "busybox", "env": { "A": "1" }, "labels": { "x": "y" } }),
    )
    .good();
    browser.look_like((1440, 500), false);
    browser.open(&format!("{url}/workloads/full"));
    browser.wait_for_text("//*[@data-live]", "Live");
    browser.click("//summary[contains(., 'Environment')]");
    browser.run(
        "document.querySelector('#live summary').focus(); window.kept = document.activeElement;
         scrollTo(0, document.documentElement.scrollHeight); window.place = scrollY;
         window.marked = document.querySelector('#live .facts dd'); getSelection().selectAllChildren(window.marked);
         window.chosen = getSelection().toString();",
    );
    for _ in 0..3 {
        dev.send("POST", "/api/v1/workloads/full/stop", &Value::Null).good();
        browser.wait_for_text("//h1/..", "stopped");
        dev.send("POST", "/api/v1/workloads/full/start", &Value::Null).good();
        browser.wait_for_text("//h1/..", "1 of 1 running");
    }
    let told = browser.run(
        "return { open: document.querySelector('#live details').open, focus: document.activeElement === window.kept,
                  place: Math.abs(scrollY - window.place) < 120, chosen: getSelection().toString() === window.chosen && window.chosen !== '',
                  same: document.querySelector('#live .facts dd') === window.marked };",
    );
    assert_eq!(told, json!({ "open": true, "focus": true, "place": true, "chosen": true, "same": true }));
    // Text that is typed while rows come and go.
    browser.open(&format!("{url}/workloads"));
    browser.wait_for_text("//*[@data-live]", "Live");
    browser.type_into("//input[@id='q']", "half a wo");
    dev.send("POST", "/api/v1/workloads", &json!({ "name": "fresh", "image": "busybox" })).good();
    browser.wait_for_text("//tr[@id='workload-fresh']", "running");
    browser.type_into("//input[@id='q']", "rd");
    assert_eq!(browser.value("//input[@id='q']"), "half a word");
    assert_eq!(browser.complaints(), Vec::<String>::new());
}
