//! What hostile texts and other sites cannot do.

use axum::{
    body::Body,
    http::{Request, StatusCode, header},
};
use toft_model::{instance::InstanceState, log::LogStream};

use super::{house::House, links};
use crate::control::ops::now_ms;

const EVIL: &str = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>";

#[tokio::test]
async fn hostile_texts_are_shown_and_never_obeyed() {
    let house = House::new().await;
    let web = house
        .run_up("web", |spec| {
            spec.command = vec![EVIL.into(), "a\r\nb".into()];
            spec.env.insert("KEY<b>".into(), EVIL.into());
            spec.labels.insert("label<b>".into(), EVIL.into());
        })
        .await;
    house.node.write(web.instances[0].row.id, LogStream::Stdout, &format!("\u{1b}[31m{EVIL}\u{1b}]0;x\u{7}"));
    house.node.add_image(&format!("evil/{EVIL}"), 1);
    house.node.add_image("docker.io/library/fine:1", 1);
    *house.node.trouble.lock().unwrap() = Some(format!("`{EVIL}` {EVIL}"));
    house.run("bad", |_| {}).await;
    let reason = format!("{EVIL} `{EVIL}`");
    house.report("bad", 0, InstanceState::BackOff { until_ms: now_ms(), reason }, 0).await;
    let query =
        "image=%22%3E%3Cscript%3Ealert(1)%3C%2Fscript%3E&env=%3C%2Ftextarea%3E%3Cscript%3E&restart=%22%3E%3Cb%3E";
    let paths = [
        "/".to_owned(),
        "/workloads".into(),
        "/workloads/web".into(),
        "/workloads/bad".into(),
        "/workloads/web/logs".into(),
        "/images".into(),
        format!("/run?{query}"),
        "/workloads/%22%3E%3Cscript%3Ealert(1)%3C%2Fscript%3E".into(),
    ];
    for path in paths {
        let page = house.get(&path).await;
        page.hides("<script>").hides("<img").hides("<b>").hides("\u{1b}");
        assert_no_inline(&page.text, &path);
    }
    let page = house.post("/run", query).await;
    page.hides("<script>").hides("<b>").hides("<textarea></textarea><").shows("script");
}

#[tokio::test]
async fn a_hostile_host_makes_no_links() {
    let house = House::new().await;
    house.run_up("web", |spec| spec.ports = vec!["18080:80".parse().unwrap()]).await;
    let request = Request::get("/workloads").header(header::HOST, "x\"onclick=\"y").body(Body::empty()).unwrap();
    house.ask(request).await.hides("onclick").shows("18080");
}

/// No script or style in the page itself, as the policy demands.
#[track_caller]
fn assert_no_inline(html: &str, path: &str) {
    for tag in links::tags(html) {
        let lower = tag.to_ascii_lowercase();
        assert!(!lower.starts_with("<style") && !lower.starts_with("<base"), "{path}: {tag}");
        assert!(!lower.starts_with("<script") || lower.contains(" src="), "{path}: {tag}");
        for (name, value) in links::attributes(tag) {
            assert!(name != "style" && !name.starts_with("on") && !name.starts_with("hx-on"), "{path}: {tag}");
            assert!(!value.trim_start().to_ascii_lowercase().starts_with("javascript:"), "{path}: {tag}");
        }
    }
}

#[tokio::test]
async fn every_answer_carries_the_policy() {
    let house = House::new().await;
    for path in ["/", "/nothing", "/static/toft.css", "/workloads"] {
        let answer = house.get(path).await;
        assert!(
            answer.header("content-security-policy").starts_with("default-src 'none'; script-src 'self'"),
            "{path}"
        );
        assert!(!answer.header("content-security-policy").contains("unsafe"));
        assert_eq!(answer.header("x-content-type-options"), "nosniff");
        assert_eq!(answer.header("referrer-policy"), "same-origin");
    }
    assert_eq!(house.get("/").await.header("cache-control"), "no-store");
}

#[tokio::test]
async fn other_sites_change_nothing() {
    let house = House::new().await;
    house.run("web", |_| {}).await;
    let request = |name: &str, value: &str| {
        Request::post("/workloads/web/remove")
            .header(header::HOST, "attic.lan:7443")
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(name, value)
            .body(Body::empty())
            .unwrap()
    };
    for (name, value) in [("sec-fetch-site", "cross-site"), ("origin", "http://evil.example"), ("origin", "null")] {
        let answer = house.ask(request(name, value)).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN);
        answer.shows("came from another site").shows("nothing was changed");
    }
    house.get("/workloads/web").await.hides("removing");
    let answer = house.ask(request("origin", "http://attic.lan:7443")).await;
    assert_eq!(answer.status, StatusCode::SEE_OTHER);
}

#[tokio::test]
async fn scripts_get_errors_as_a_notice() {
    let house = House::new().await;
    let request = Request::post("/workloads/gone/stop")
        .header("hx-request", "true")
        .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
        .body(Body::empty());
    let answer = house.ask(request.unwrap()).await;
    assert_eq!((answer.status, answer.header("hx-retarget")), (StatusCode::NOT_FOUND, "#notices"));
    answer.shows("There is no workload <code>gone</code>").hides("<html");
}

#[tokio::test]
async fn assets_are_kept_for_ever_under_their_hash_only() {
    let house = House::new().await;
    let page = house.get("/").await;
    let links = links::links(&page.text);
    let style = links.iter().find(|link| link.target.contains("toft.css")).expect("the page has a style sheet");
    let kept = house.get(&style.target).await;
    assert_eq!(kept.header("cache-control"), "public, max-age=31536000, immutable");
    assert_eq!(kept.header("content-type"), "text/css; charset=utf-8");
    let tag = kept.header("etag").to_owned();
    let other = house.get("/static/toft.css?v=old").await;
    assert_eq!((other.status, other.header("cache-control")), (StatusCode::OK, "no-cache"));
    let again = Request::get("/static/toft.css").header("if-none-match", tag).body(Body::empty()).unwrap();
    assert_eq!(house.ask(again).await.status, StatusCode::NOT_MODIFIED);
    assert_eq!(house.get("/favicon.ico").await.header("content-type"), "image/svg+xml");
    assert_eq!(house.get("/static/../Cargo.toml").await.status, StatusCode::NOT_FOUND);
    assert!(kept.text.len() < 30 * 1024, "the style sheet stays small");
}
