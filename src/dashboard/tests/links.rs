//! Every address a page names leads somewhere.

use std::collections::BTreeSet;

use axum::{
    body::Body,
    http::{Method, Request, StatusCode, header},
};
use toft_model::instance::InstanceState;
use tower::ServiceExt;

use super::house::House;

/// An address in a page and the method it is asked with.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Link {
    pub(super) post: bool,
    pub(super) target: String,
}

/// The opening tags of a page.
pub(super) fn tags(html: &str) -> Vec<&str> {
    let mut tags = Vec::new();
    let mut rest = html;
    while let Some(start) = rest.find('<') {
        rest = &rest[start..];
        let mut quote = None;
        let end = rest.char_indices().find(|(_, c)| match (quote, c) {
            (None, '"' | '\'') => {
                quote = Some(*c);
                false
            }
            (None, '>') => true,
            (Some(open), c) if open == *c => {
                quote = None;
                false
            }
            _ => false,
        });
        // An apostrophe in a text before a tag must not swallow the page: text is skipped by `find`.
        let end = end.map_or(rest.len() - 1, |(at, _)| at);
        tags.push(&rest[..=end]);
        rest = &rest[end + 1..];
    }
    tags
}

/// Names and values of a tag's attributes.
pub(super) fn attributes(tag: &str) -> Vec<(String, String)> {
    let mut attributes = Vec::new();
    let mut rest = tag.trim_start_matches('<').trim_end_matches(['>', '/']);
    rest = rest.split_once(char::is_whitespace).map_or("", |(_, rest)| rest);
    while !rest.trim_start().is_empty() {
        rest = rest.trim_start();
        let end = rest.find(|c: char| c == '=' || c.is_whitespace()).unwrap_or(rest.len());
        let name = rest[..end].to_ascii_lowercase();
        rest = &rest[end..];
        let mut value = "";
        if let Some(after) = rest.strip_prefix('=') {
            let quote = after.chars().next().filter(|c| matches!(c, '"' | '\'')).expect("attributes are quoted");
            let inside = &after[1..];
            let close = inside.find(quote).expect("quotes are closed");
            value = &inside[..close];
            rest = &inside[close + 1..];
        }
        attributes.push((name, value.replace("&amp;", "&").replace("&#38;", "&")));
    }
    attributes
}

/// The addresses of a page that lead to the dashboard itself.
pub(super) fn links(html: &str) -> BTreeSet<Link> {
    let mut links = BTreeSet::new();
    for tag in tags(html) {
        let attributes = attributes(tag);
        let posts = attributes.iter().any(|(name, value)| name == "method" && value == "post");
        for (name, target) in &attributes {
            let post = match name.as_str() {
                "href" | "src" | "hx-get" | "data-live-from" | "data-charts" | "data-follow" | "data-usage-from" => {
                    false
                }
                "hx-post" => true,
                "action" => posts,
                other => {
                    assert!(!matches!(other, "hx-put" | "hx-delete" | "hx-patch" | "formaction"), "{tag}");
                    continue;
                }
            };
            if target.starts_with('/') {
                links.insert(Link { post, target: target.clone() });
            } else {
                assert!(target.starts_with('#') || target.starts_with("http://attic.lan:"), "{tag}");
            }
        }
    }
    links
}

#[tokio::test]
async fn every_address_in_every_page_is_answered() {
    let house = House::new().await;
    house.run_up("web", |spec| spec.ports = vec!["18080:80".parse().unwrap(), "53/udp".parse().unwrap()]).await;
    house.run("idle", |_| {}).await;
    house.report("idle", 0, InstanceState::Stopped { exit: None }, 0).await;
    house.post("/workloads/idle/stop", "").await;
    house.post_parts("/secrets/new", &[("name", b"unused"), ("text", b"x")]).await;
    house.post("/volumes/new", "name=unused").await;
    house.node.add_image("docker.io/library/nginx:1.29", 70 << 20);
    let mut to_see: Vec<String> = vec!["/".into(), "/workloads/none".into()];
    let mut seen = BTreeSet::new();
    let mut posts = BTreeSet::new();
    while let Some(path) = to_see.pop() {
        if !seen.insert(path.clone()) || path.starts_with("/static/") {
            continue;
        }
        if path.starts_with("/live/") {
            assert_stream(&house, &path).await;
            continue;
        }
        let page = house.get(&path).await;
        assert!(page.status.is_success() || path == "/workloads/none", "{path}: {}", page.status);
        for link in links(&page.text) {
            if link.post {
                posts.insert(link.target);
            } else {
                to_see.push(link.target);
            }
        }
    }
    for target in seen.iter().filter(|path| path.starts_with("/static/")) {
        assert_eq!(house.get(target).await.status, StatusCode::OK, "{target}");
    }
    for kind in [
        "/live/overview",
        "/live/images",
        "/live/workloads",
        "/live/workloads/web",
        "/live/workloads/web/usage",
        "/live/nodes/attic",
        "/live/nodes",
        "/live/gpus",
        "/live/mesh",
        "/live/events",
        "/live/volumes",
        "/charts/nodes/attic",
        "/charts/workloads/web",
        "/workloads/web/edit",
        "/workloads/web/shell",
        "/nodes/attic/drain",
        "/find",
        "/settings",
        "/workloads/web/logs",
        "/images/remove",
        "/secrets/new",
        "/secrets/unused/update",
        "/volumes/new",
    ] {
        assert!(seen.iter().any(|path| path.starts_with(kind)), "no page leads to {kind}: {seen:?}");
    }
    for kind in [
        "/run",
        "/workloads/web/stop",
        "/workloads/web/restart",
        "/workloads/idle/start",
        "/images",
        "/images/remove",
        "/secrets/new",
        "/secrets/unused/update",
        "/secrets/unused/remove",
        "/volumes/new",
        "/volumes/unused/remove",
    ] {
        assert!(posts.contains(kind), "no form posts to {kind}: {posts:?}");
    }
    // Removals last: the others speak of what they remove.
    let (removals, others): (Vec<_>, Vec<_>) = posts.iter().partition(|target| target.ends_with("/remove"));
    for target in others.into_iter().chain(removals) {
        let answer = house.post(target, "").await;
        let found = !matches!(answer.status, StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED);
        assert!(found, "{target}: {}", answer.status);
    }
}

async fn assert_stream(house: &House, path: &str) {
    let request = Request::builder().method(Method::GET).uri(path).body(Body::empty()).unwrap();
    let answer = house.app.clone().oneshot(request).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK, "{path}");
    assert_eq!(answer.headers()[header::CONTENT_TYPE], "text/event-stream", "{path}");
}
