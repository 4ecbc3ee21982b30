//! How pages load, by what Lighthouse looks at: when the largest thing is there, how much moves afterwards, how long the script keeps
//! the page from answering, and how much came on the way. And what it holds for good practice that needs no measuring.

use serde_json::Value;

use crate::{
    browser_pages::{browser, furnished, pages},
    harness::slowness,
};

/// What a page tells of its loading, once it is quiet.
const TOLD: &str = "
    const done = arguments[arguments.length - 1];
    const seen = { largest: 0, moved: 0, blocked: 0 };
    const watch = (type, take) => new PerformanceObserver((list) => list.getEntries().forEach(take)).observe({ type, buffered: true });
    watch('largest-contentful-paint', (entry) => { seen.largest = entry.startTime; });
    watch('layout-shift', (entry) => { if (!entry.hadRecentInput) seen.moved += entry.value; });
    watch('longtask', (entry) => { seen.blocked += Math.max(0, entry.duration - 50); });
    setTimeout(() => {
        const all = [...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')];
        const bytes = all.filter((entry) => !entry.name.includes('/live/')).reduce((sum, entry) => sum + entry.transferSize, 0);
        const small = [...document.querySelectorAll('img')].filter((image) => !image.alt).length;
        const named = (selector) => document.querySelector(selector)?.content ?? '';
        done({ ...seen, bytes, small, title: document.title, language: document.documentElement.lang, mode: document.compatMode,
               viewport: named('meta[name=viewport]'), description: named('meta[name=description]'),
               elements: document.querySelectorAll('*').length });
    }, 900);";

/// Looks at one page: another test may take the processor meanwhile, which is not the page's fault.
const LOOKS: usize = 3;

#[test]
fn pages_are_there_at_once_and_keep_still() {
    let dev = furnished();
    let (plain, password) = dev.address();
    let (browser, _profile) = browser(true);
    browser.sign_in(&plain, &password);
    browser.complaints();
    let mut wrong = Vec::new();
    for (name, path) in pages() {
        // A page of a phone, and one of a desk.
        for size in [(375, 800), (1440, 900)] {
            browser.look_like(size, false);
            let look = || {
                browser.forget();
                browser.open(&format!("{plain}{path}"));
                faults(&browser.run_later(TOLD), name)
            };
            let mut found = look();
            for _ in 1..LOOKS {
                if !found.is_empty() {
                    found = look();
                }
            }
            wrong.extend(found.into_iter().map(|fault| format!("{path} at {}: {fault}", size.0)));
        }
        let complaints = browser.complaints();
        wrong.extend(complaints.into_iter().filter(|one| path != "/nothing" || !one.contains("404")));
    }
    assert!(wrong.is_empty(), "{} faults:\n{}", wrong.len(), wrong.join("\n"));
}

/// What is wrong with a page that told this.
fn faults(told: &Value, name: &str) -> Vec<String> {
    let times = f64::from(slowness());
    // The terminal is large, and its page has little room left.
    let room = if name == "shell" { 100_000.0 } else { 90_000.0 };
    // Where Lighthouse gives 95 points and more.
    let limits = [
        ("largest", "the largest thing, in ms,", 1_500.0 * times),
        ("moved", "what moved", 0.05),
        ("blocked", "time without an answer, in ms,", 150.0 * times),
        ("bytes", "bytes on the way", room),
        ("elements", "elements", 3_000.0),
    ];
    let value = |key: &str| told[key].as_f64().unwrap();
    let above = limits.into_iter().filter(|(key, _, most)| value(key) > *most);
    let mut found: Vec<_> =
        above.map(|(key, what, most)| format!("{what} is {:.3}, at most {most}", value(key))).collect();
    let text = |key: &str| told[key].as_str().unwrap_or_default().to_owned();
    let practice = text("title").ends_with("toft")
        && text("language") == "en"
        && text("mode") == "CSS1Compat"
        && text("viewport").contains("width=device-width")
        && !text("description").is_empty()
        && told["small"] == 0;
    if !practice {
        found.push(told.to_string());
    }
    found
}
