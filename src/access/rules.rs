//! What each route asks for: the one place that says it. A route that is not here is answered to nobody but root, and fails a test.

use axum::http::Method;
use toft_model::{
    identity::{Rights, Role},
    name::Name,
};

/// What a route asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Nothing: it tells nothing that is worth hiding, or is where people come in.
    Nothing,
    /// That somebody is known. What they see and change is their own.
    Known,
    /// This role in the whole cluster.
    Role(Role),
    /// An operator of the workload that the path names.
    Workload,
    /// An operator of the workload whose instance the path names.
    Instance,
    /// An operator of something; what the specification in the body asks for is looked at when it is read.
    Specification,
}

/// One route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// Method; `GET` stands for `HEAD` too.
    pub method: &'static str,
    /// Path as the router knows it; of the API what follows its version.
    pub path: &'static str,
    /// What it asks for.
    pub need: Need,
    /// What the audit trail calls it, when no command of the state tells of it.
    pub noted: Option<&'static str>,
}

const NOTHING: Need = Need::Nothing;
const KNOWN: Need = Need::Known;
const VIEWER: Need = Need::Role(Role::Viewer);
const OPERATOR: Need = Need::Role(Role::Operator);
const ADMIN: Need = Need::Role(Role::Admin);

const fn rule(method: &'static str, path: &'static str, need: Need) -> Rule {
    Rule { method, path, need, noted: None }
}

const fn noted(method: &'static str, path: &'static str, need: Need, noted: &'static str) -> Rule {
    Rule { method, path, need, noted: Some(noted) }
}

/// The routes of the API, below `/api/v1` and `/v1`.
pub const API: &[Rule] = &[
    rule("GET", "/openapi.json", VIEWER),
    // Workloads.
    rule("GET", "/workloads", VIEWER),
    rule("POST", "/workloads", Need::Specification),
    rule("GET", "/workloads/{name}", VIEWER),
    rule("PUT", "/workloads/{name}", Need::Specification),
    rule("DELETE", "/workloads/{name}", Need::Workload),
    rule("PATCH", "/workloads/{name}/labels", Need::Workload),
    rule("POST", "/workloads/{name}/start", Need::Workload),
    rule("POST", "/workloads/{name}/stop", Need::Workload),
    rule("POST", "/workloads/{name}/restart", Need::Workload),
    rule("GET", "/workloads/{name}/versions", VIEWER),
    rule("POST", "/workloads/{name}/rollback", Need::Workload),
    rule("GET", "/workloads/{name}/wait", VIEWER),
    rule("GET", "/workloads/{name}/logs", VIEWER),
    rule("GET", "/workloads/{name}/explain", VIEWER),
    rule("GET", "/instances", VIEWER),
    noted("GET", "/instances/{name}/exec", Need::Instance, "exec"),
    noted("GET", "/instances/{name}/attach", Need::Instance, "attach"),
    // Files hold what their container knows, secrets among it.
    noted("GET", "/instances/{name}/files", Need::Instance, "read_files"),
    noted("PUT", "/instances/{name}/files", Need::Instance, "write_files"),
    rule("GET", "/instances/{name}/files/stat", Need::Instance),
    rule("GET", "/instances/{name}/processes", VIEWER),
    rule("GET", "/instances/{name}/series", VIEWER),
    rule("GET", "/stats", VIEWER),
    rule("GET", "/stats/stream", VIEWER),
    rule("GET", "/events", VIEWER),
    // Nodes.
    rule("GET", "/nodes", VIEWER),
    rule("GET", "/nodes/{name}", VIEWER),
    rule("PATCH", "/nodes/{name}", OPERATOR),
    rule("DELETE", "/nodes/{name}", ADMIN),
    rule("GET", "/nodes/{name}/facts", VIEWER),
    rule("GET", "/nodes/{name}/remaining", VIEWER),
    rule("GET", "/nodes/{name}/series", VIEWER),
    rule("GET", "/nodes/{name}/gpus/{gpu}/series", VIEWER),
    rule("PATCH", "/nodes/{name}/gpus/{gpu}", OPERATOR),
    rule("GET", "/gpus", VIEWER),
    rule("GET", "/mesh", VIEWER),
    rule("GET", "/mesh/ping", OPERATOR),
    rule("GET", "/placement", VIEWER),
    rule("PATCH", "/placement", ADMIN),
    rule("GET", "/rebalance", VIEWER),
    rule("POST", "/rebalance", OPERATOR),
    rule("DELETE", "/rebalance", OPERATOR),
    rule("GET", "/rebalance/plan", VIEWER),
    // The cluster.
    rule("GET", "/cluster", VIEWER),
    rule("POST", "/cluster/join", ADMIN),
    rule("POST", "/cluster/leave", ADMIN),
    rule("GET", "/tokens", ADMIN),
    rule("POST", "/tokens", ADMIN),
    rule("DELETE", "/tokens/{id}", ADMIN),
    // Images and registries.
    rule("GET", "/images", VIEWER),
    noted("DELETE", "/images", OPERATOR, "remove_image"),
    noted("POST", "/images/import", OPERATOR, "import_image"),
    noted("POST", "/images/pull", OPERATOR, "pull_image"),
    rule("GET", "/images/pulls", VIEWER),
    noted("POST", "/images/prune", OPERATOR, "prune_images"),
    rule("GET", "/registries", VIEWER),
    rule("PUT", "/registries/{registry}", ADMIN),
    rule("DELETE", "/registries/{registry}", ADMIN),
    // What is kept.
    rule("GET", "/secrets", VIEWER),
    rule("POST", "/secrets", OPERATOR),
    rule("GET", "/secrets/{name}", VIEWER),
    rule("PUT", "/secrets/{name}", OPERATOR),
    rule("DELETE", "/secrets/{name}", OPERATOR),
    rule("GET", "/volumes", VIEWER),
    rule("POST", "/volumes", OPERATOR),
    rule("GET", "/volumes/{name}", VIEWER),
    rule("DELETE", "/volumes/{name}", OPERATOR),
    rule("POST", "/volumes/prune", OPERATOR),
    noted("GET", "/volumes/{name}/backup", OPERATOR, "back_up_volume"),
    noted("POST", "/volumes/{name}/restore", OPERATOR, "restore_volume"),
    rule("GET", "/volumes/{name}/move", VIEWER),
    rule("POST", "/volumes/{name}/move", OPERATOR),
    rule("DELETE", "/volumes/{name}/move", OPERATOR),
    rule("GET", "/backups", VIEWER),
    noted("POST", "/backups", OPERATOR, "create_backup"),
    rule("GET", "/backups/status", VIEWER),
    // They hold everything, the first password and keys among it.
    noted("POST", "/backups/stream", ADMIN, "stream_backup"),
    noted("GET", "/backups/{name}/content", ADMIN, "read_backup"),
    // People.
    rule("GET", "/ca", NOTHING),
    rule("GET", "/me", KNOWN),
    rule("POST", "/me/password", KNOWN),
    rule("GET", "/me/second-factor", KNOWN),
    rule("POST", "/me/second-factor/offer", KNOWN),
    rule("PUT", "/me/second-factor", KNOWN),
    rule("POST", "/me/second-factor/off", KNOWN),
    rule("GET", "/me/passkeys", KNOWN),
    rule("DELETE", "/me/passkeys/{id}", KNOWN),
    rule("GET", "/access", ADMIN),
    rule("PATCH", "/access", ADMIN),
    rule("DELETE", "/users/{name}/second-factor", ADMIN),
    rule("GET", "/users/{name}/passkeys", ADMIN),
    rule("DELETE", "/users/{name}/passkeys/{id}", ADMIN),
    rule("GET", "/users", ADMIN),
    rule("POST", "/users", ADMIN),
    rule("GET", "/users/{name}", ADMIN),
    rule("PATCH", "/users/{name}", ADMIN),
    rule("DELETE", "/users/{name}", ADMIN),
    rule("GET", "/sessions", KNOWN),
    rule("DELETE", "/sessions/{id}", KNOWN),
    rule("GET", "/api-tokens", KNOWN),
    rule("POST", "/api-tokens", KNOWN),
    rule("DELETE", "/api-tokens/{id}", KNOWN),
    // The trail tells of each, with what it is for.
    rule("POST", "/signed-tokens", KNOWN),
    rule("POST", "/signing-keys/rotate", ADMIN),
    rule("GET", "/audit", ADMIN),
    noted("GET", "/audit/export", ADMIN, "export_audit"),
];

/// The routes of the pages, and of what is neither page nor resource.
pub const PAGES: &[Rule] = &[
    rule("GET", "/health", NOTHING),
    rule("GET", "/ready", NOTHING),
    rule("GET", "/metrics", VIEWER),
    // Public halves of keys.
    rule("GET", "/.well-known/jwks.json", NOTHING),
    rule("GET", "/static/{*path}", NOTHING),
    rule("GET", "/favicon.ico", NOTHING),
    rule("GET", "/ca", NOTHING),
    rule("GET", "/ca.crt", NOTHING),
    rule("GET", "/ca.pem", NOTHING),
    // People.
    rule("GET", "/login", NOTHING),
    rule("POST", "/login", NOTHING),
    rule("POST", "/login/code", NOTHING),
    rule("POST", "/login/passkey", NOTHING),
    rule("POST", "/login/passkey/options", NOTHING),
    rule("GET", "/login/oidc", NOTHING),
    rule("GET", "/login/oidc/callback", NOTHING),
    rule("POST", "/logout", KNOWN),
    rule("GET", "/setup", KNOWN),
    rule("POST", "/setup", KNOWN),
    rule("GET", "/account", KNOWN),
    rule("POST", "/account/password", KNOWN),
    rule("GET", "/account/second-factor", KNOWN),
    rule("POST", "/account/second-factor", KNOWN),
    rule("POST", "/account/second-factor/off", KNOWN),
    rule("GET", "/account/passkeys", KNOWN),
    rule("POST", "/account/passkeys", KNOWN),
    rule("POST", "/account/passkeys/options", KNOWN),
    rule("GET", "/account/passkeys/{id}/remove", KNOWN),
    rule("POST", "/account/passkeys/{id}/remove", KNOWN),
    rule("POST", "/account/tokens", KNOWN),
    rule("POST", "/account/tokens/{id}/revoke", KNOWN),
    rule("POST", "/account/sessions/{id}/end", KNOWN),
    rule("GET", "/users", ADMIN),
    rule("POST", "/users", ADMIN),
    rule("GET", "/users/{name}", ADMIN),
    rule("POST", "/users/{name}", ADMIN),
    rule("POST", "/users/{name}/password", ADMIN),
    rule("POST", "/users/{name}/second-factor/reset", ADMIN),
    rule("GET", "/users/{name}/passkeys/{id}/remove", ADMIN),
    rule("POST", "/users/{name}/passkeys/{id}/remove", ADMIN),
    rule("POST", "/access", ADMIN),
    rule("POST", "/access/passkeys", ADMIN),
    rule("GET", "/users/{name}/remove", ADMIN),
    rule("POST", "/users/{name}/remove", ADMIN),
    rule("GET", "/audit", ADMIN),
    // What runs.
    rule("GET", "/", VIEWER),
    rule("GET", "/find", VIEWER),
    rule("GET", "/events", VIEWER),
    rule("GET", "/run", Need::Specification),
    rule("POST", "/run", Need::Specification),
    rule("GET", "/workloads", VIEWER),
    rule("GET", "/workloads/{name}", VIEWER),
    rule("POST", "/workloads/{name}/start", Need::Workload),
    rule("POST", "/workloads/{name}/stop", Need::Workload),
    rule("POST", "/workloads/{name}/restart", Need::Workload),
    rule("GET", "/workloads/{name}/edit", Need::Workload),
    rule("POST", "/workloads/{name}/edit", Need::Workload),
    rule("GET", "/workloads/{name}/shell", Need::Workload),
    noted("GET", "/workloads/{name}/shell/socket", Need::Workload, "exec"),
    rule("GET", "/workloads/{name}/remove", Need::Workload),
    rule("POST", "/workloads/{name}/remove", Need::Workload),
    rule("GET", "/workloads/{name}/history", VIEWER),
    rule("POST", "/workloads/{name}/rollback", Need::Workload),
    rule("GET", "/workloads/{name}/logs", VIEWER),
    rule("GET", "/logs", VIEWER),
    rule("GET", "/logs/{name}", VIEWER),
    rule("GET", "/nodes", VIEWER),
    rule("GET", "/nodes/{name}", VIEWER),
    rule("GET", "/nodes/{name}/cordon", OPERATOR),
    rule("GET", "/nodes/{name}/drain", OPERATOR),
    rule("POST", "/nodes/{name}/cordon", OPERATOR),
    rule("POST", "/nodes/{name}/uncordon", OPERATOR),
    rule("POST", "/nodes/{name}/drain", OPERATOR),
    rule("GET", "/gpus", VIEWER),
    rule("GET", "/gpus/{node}/{place}", VIEWER),
    rule("POST", "/gpus/{node}/{place}/cordon", OPERATOR),
    rule("POST", "/gpus/{node}/{place}/uncordon", OPERATOR),
    rule("GET", "/mesh", VIEWER),
    rule("GET", "/images", VIEWER),
    noted("POST", "/images", OPERATOR, "pull_image"),
    rule("GET", "/images/remove", OPERATOR),
    noted("POST", "/images/remove", OPERATOR, "remove_image"),
    rule("GET", "/secrets", VIEWER),
    rule("GET", "/secrets/new", OPERATOR),
    rule("POST", "/secrets/new", OPERATOR),
    rule("GET", "/secrets/{name}/update", OPERATOR),
    rule("POST", "/secrets/{name}/update", OPERATOR),
    rule("GET", "/secrets/{name}/remove", OPERATOR),
    rule("POST", "/secrets/{name}/remove", OPERATOR),
    rule("GET", "/volumes", VIEWER),
    rule("GET", "/volumes/new", OPERATOR),
    rule("POST", "/volumes/new", OPERATOR),
    rule("GET", "/volumes/{name}/move", OPERATOR),
    rule("POST", "/volumes/{name}/move", OPERATOR),
    rule("POST", "/volumes/{name}/move/cancel", OPERATOR),
    rule("GET", "/volumes/{name}/remove", OPERATOR),
    rule("POST", "/volumes/{name}/remove", OPERATOR),
    // The cluster.
    rule("GET", "/settings", ADMIN),
    rule("POST", "/settings/tokens", ADMIN),
    rule("POST", "/settings/tokens/{id}/revoke", ADMIN),
    noted("POST", "/settings/backups", ADMIN, "create_backup"),
    noted("POST", "/settings/log", ADMIN, "set_log_level"),
    rule("GET", "/charts/nodes/{name}", VIEWER),
    rule("GET", "/charts/gpus/{node}/{place}", VIEWER),
    rule("GET", "/charts/workloads/{name}", VIEWER),
    // On made-up clusters only.
    rule("GET", "/styleguide", VIEWER),
    rule("GET", "/live/overview", VIEWER),
    rule("GET", "/live/events", VIEWER),
    rule("GET", "/live/gpus", VIEWER),
    rule("GET", "/live/gpus/{node}/{place}", VIEWER),
    rule("GET", "/live/mesh", VIEWER),
    rule("GET", "/live/nodes", VIEWER),
    rule("GET", "/live/volumes", VIEWER),
    rule("GET", "/live/images", VIEWER),
    rule("GET", "/live/nodes/{name}", VIEWER),
    rule("GET", "/live/workloads", VIEWER),
    rule("GET", "/live/workloads/{name}", VIEWER),
    rule("GET", "/live/workloads/{name}/logs", VIEWER),
    rule("GET", "/live/workloads/{name}/usage", VIEWER),
];

/// What is known of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// It has a rule.
    Rule(&'static Rule),
    /// There are rules for its path, but not for this method.
    OtherMethod,
    /// There is no rule for its path.
    Nothing,
}

/// Whether a path is the API's, as programs ask for it; the others are pages.
pub(super) fn is_api(path: &str) -> bool {
    below_version(path).is_some()
        || matches!(path, "/health" | "/ready" | "/metrics" | "/.well-known/jwks.json" | "/api" | "/v1")
}

fn below_version(path: &str) -> Option<&str> {
    let rest = path.strip_prefix("/api/v1").or_else(|| path.strip_prefix("/v1"))?;
    (rest.starts_with('/')).then_some(rest)
}

/// The rule of a route, by the path that the router matched.
pub(super) fn find(method: &Method, matched: &str) -> Found {
    let (rules, path) = match below_version(matched) {
        Some(path) => (API, path),
        None => (PAGES, matched),
    };
    let method = if method == Method::HEAD { "GET" } else { method.as_str() };
    let mut of_path = rules.iter().filter(|rule| rule.path == path).peekable();
    if of_path.peek().is_none() {
        return Found::Nothing;
    }
    of_path.find(|rule| rule.method == method).map_or(Found::OtherMethod, Found::Rule)
}

/// What a route asks for, by its path as the table names it; nothing when there is none.
pub fn need_of(method: &Method, path: &str) -> Option<Need> {
    match find(method, path) {
        Found::Rule(rule) => Some(rule.need),
        Found::OtherMethod | Found::Nothing => None,
    }
}

/// Whether somebody with these rights is let through. `deployment`: that of the workload that is meant, where one is.
pub fn admits(need: Need, rights: &Rights, deployment: Option<&Name>) -> bool {
    match need {
        Need::Nothing | Need::Known => true,
        Need::Role(role) => rights.role >= role,
        Need::Specification => rights.role >= Role::Operator || !rights.grants.is_empty(),
        Need::Workload | Need::Instance => {
            rights.role >= Role::Operator || deployment.is_some_and(|deployment| rights.operates(deployment))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// `METHOD PATH` of each rule.
    fn named(rules: &[Rule]) -> BTreeSet<String> {
        let names: BTreeSet<String> = rules.iter().map(|rule| format!("{} {}", rule.method, rule.path)).collect();
        assert_eq!(names.len(), rules.len(), "a route has two rules");
        names
    }

    /// The routes that a program text adds to a router, as `METHOD PATH`.
    fn written(text: &str) -> Vec<String> {
        let mut routes = Vec::new();
        for (at, call) in text.match_indices(".route(") {
            // The path may stand on a line of its own.
            let Some(rest) = text[at + call.len()..].trim_start().strip_prefix('"') else { continue };
            let (path, rest) = rest.split_once('"').expect("a path ends");
            let mut depth = 1;
            let end = rest.find(|c| {
                depth += match c {
                    '(' => 1,
                    ')' => -1,
                    _ => 0,
                };
                depth == 0
            });
            let methods = &rest[..end.expect("a call ends")];
            let found = routes.len();
            for method in ["get", "post", "put", "patch", "delete"] {
                let call = format!("{method}(");
                let begins = |at: usize| !methods[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
                if methods.match_indices(&call).any(|(at, _)| begins(at)) {
                    routes.push(format!("{} {path}", method.to_uppercase()));
                }
            }
            assert!(routes.len() > found, "{path} has no method that this test knows");
        }
        assert!(routes.len() > 20);
        routes
    }

    #[test]
    fn every_resource_has_a_rule_and_every_rule_a_resource() {
        let document = serde_json::to_value(crate::api::http::openapi()).unwrap();
        let mut routes = BTreeSet::from(["GET /openapi.json".to_owned()]);
        for (path, item) in document["paths"].as_object().unwrap() {
            let Some(path) = path.strip_prefix("/api/v1") else { continue };
            for method in
                item.as_object().unwrap().keys().filter(|key| !matches!(key.as_str(), "parameters" | "summary"))
            {
                routes.insert(format!("{} {path}", method.to_uppercase()));
            }
        }
        assert_eq!(named(API), routes, "left: rules, right: routes of the API");
    }

    #[test]
    fn every_page_has_a_rule_and_every_rule_a_page() {
        let mut routes: BTreeSet<String> = ["/health", "/ready", "/metrics", "/.well-known/jwks.json", "/styleguide"]
            .iter()
            .map(|path| format!("GET {path}"))
            .collect();
        routes.extend(written(include_str!("../dashboard/mod.rs")));
        assert_eq!(named(PAGES), routes, "left: rules, right: routes of the dashboard");
    }

    #[test]
    fn a_route_is_found_by_the_path_that_was_matched() {
        let need = |method: &str, path: &str| match find(&method.parse().unwrap(), path) {
            Found::Rule(rule) => Some(rule.need),
            Found::OtherMethod | Found::Nothing => None,
        };
        assert_eq!(need("GET", "/api/v1/workloads"), Some(VIEWER));
        assert_eq!(need("HEAD", "/v1/workloads"), Some(VIEWER));
        assert_eq!(need("DELETE", "/v1/workloads/{name}"), Some(Need::Workload));
        assert_eq!(need("POST", "/workloads/{name}/stop"), Some(Need::Workload));
        assert_eq!(need("GET", "/login"), Some(NOTHING));
        assert_eq!(find(&Method::PUT, "/api/v1/workloads"), Found::OtherMethod);
        assert_eq!(find(&Method::GET, "/api/v1/nothing"), Found::Nothing);
        assert_eq!(find(&Method::GET, "/v1workloads"), Found::Nothing);
        for path in ["/api/v1/login", "/v1/static/x", "/api/v1/health"] {
            assert_eq!(find(&Method::GET, path), Found::Nothing, "{path}");
        }
    }
}
