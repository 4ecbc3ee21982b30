//! Every operation of the served OpenAPI document, with values that are right, at the edge, and hostile, for each parameter and
//! each field of each body: nothing is a fault of ours, and every answer is one that the document names.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read, Write},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use serde_json::{Map, Value, json};

use crate::harness::{machine::wait_until, made_up::MadeUp, slowness};

/// How deep a body's fields are looked at.
const DEEP: usize = 4;
/// Longest time for one answer to begin.
const PATIENCE: Duration = Duration::from_secs(20);

/// Operations that end what the others are asked of when they are asked well.
const LAST: [&str; 2] = ["DELETE /api/v1/nodes/{name}", "POST /api/v1/cluster/join"];
/// Has nothing that could be wrong: it ends the node that is asked.
const LEAVES: &str = "POST /api/v1/cluster/leave";

struct Operation<'a> {
    name: String,
    method: String,
    path: &'a str,
    about: &'a Value,
}

impl Operation<'_> {
    fn parameters(&self) -> impl Iterator<Item = &Value> {
        self.about["parameters"].as_array().into_iter().flatten()
    }

    /// Whether the document names a status.
    fn names(&self, status: u16) -> bool {
        let responses = self.about["responses"].as_object().unwrap();
        responses.contains_key(&status.to_string()) || responses.contains_key(&format!("{}XX", status / 100))
    }
}

/// A request.
#[derive(Clone)]
struct Asked {
    path: BTreeMap<String, String>,
    query: Vec<(String, String)>,
    headers: Vec<(String, String)>,
    body: Option<(String, Vec<u8>)>,
}

struct Document(Value);

impl Document {
    fn operations(&self) -> Vec<Operation<'_>> {
        let mut operations = Vec::new();
        for (path, item) in self.0["paths"].as_object().unwrap() {
            for (method, about) in item.as_object().unwrap() {
                let method = method.to_uppercase();
                operations.push(Operation { name: format!("{method} {path}"), method, path, about });
            }
        }
        operations.retain(|one| one.name != LEAVES);
        // What removes comes after what needs it.
        operations.sort_by_key(|one| (LAST.contains(&one.name.as_str()), one.method == "DELETE", one.path.to_owned()));
        operations
    }

    fn resolved<'a>(&'a self, schema: &'a Value) -> &'a Value {
        match schema["$ref"].as_str() {
            Some(name) => self.resolved(&self.0["components"]["schemas"][name.rsplit('/').next().unwrap()]),
            None => schema,
        }
    }

    /// A value of a schema: only what it must have, or everything.
    fn value(&self, schema: &Value, whole: bool, depth: usize) -> Value {
        let schema = self.resolved(schema);
        if let Some(example) = schema.get("example") {
            return example.clone();
        }
        for key in ["oneOf", "anyOf"] {
            let choices = schema[key].as_array().into_iter().flatten();
            if let Some(first) = choices.clone().find(|choice| choice["type"] != "null") {
                return self.value(first, whole, depth);
            }
        }
        if let Some(parts) = schema["allOf"].as_array() {
            let mut all = Map::new();
            for part in parts {
                if let Value::Object(fields) = self.value(part, whole, depth) {
                    all.extend(fields);
                }
            }
            return Value::Object(all);
        }
        if let Some(first) = schema["enum"].as_array().and_then(|values| values.first()) {
            return first.clone();
        }
        let kind = match &schema["type"] {
            Value::Array(kinds) => kinds.iter().find(|kind| *kind != "null").cloned().unwrap_or(Value::Null),
            kind => kind.clone(),
        };
        match kind.as_str().unwrap_or_default() {
            "string" => json!("web"),
            "integer" | "number" => schema.get("minimum").cloned().unwrap_or(json!(1)),
            "boolean" => json!(true),
            "array" if whole && depth < DEEP => json!([self.value(&schema["items"], whole, depth + 1)]),
            "array" => json!([]),
            "object" => {
                let required: BTreeSet<&str> =
                    schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
                let fields = schema["properties"].as_object().into_iter().flatten();
                let wanted = fields.filter(|(name, _)| required.contains(name.as_str()) || (whole && depth < DEEP));
                wanted.map(|(name, of)| (name.clone(), self.value(of, whole, depth + 1))).collect::<Map<_, _>>().into()
            }
            _ => Value::Null,
        }
    }
}

/// Values that no field expects.
fn hostile() -> Vec<Value> {
    vec![
        json!(null),
        json!(-1),
        json!(0),
        json!(1.5),
        json!(1e300),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(true),
        json!(""),
        json!("\0"),
        json!("../../etc/passwd"),
        json!("a'; DROP TABLE workloads; --"),
        json!("\u{202e}<script>\u{1b}[31m%s%n$(reboot)`id`"),
        json!("\u{1f600}".repeat(300)),
        json!("9".repeat(5_000)),
        json!([]),
        json!([null, [[[[]]]], {}]),
        json!({}),
        json!({ "": { "\0": [] } }),
    ]
}

/// Texts that no parameter expects.
const HOSTILE: [&str; 16] = [
    "",
    "-1",
    "0",
    "1.5",
    "99999999999999999999999",
    "true",
    "null",
    "%00",
    "%ff%fe",
    "..",
    "..%2f..%2fetc%2fpasswd",
    "%27%3B%20DROP%20TABLE%20x%3B--",
    "(((((((((((a*)*)*)*)*)*)*)*)*)*)*",
    "[",
    "%F0%9F%98%80",
    "1970-01-01T00:00:00Z",
];

/// Every body that has one field of `good` replaced by something else, left out, or is joined by one that nobody knows.
fn worse(good: &Value, deep: usize, hostile: &[Value]) -> Vec<Value> {
    let mut worse = Vec::new();
    match good {
        Value::Object(fields) => {
            let mut more = fields.clone();
            more.insert("nobody_knows".into(), json!(1));
            worse.push(more.into());
            for (name, value) in fields {
                let mut without = fields.clone();
                without.remove(name);
                worse.push(without.into());
                let others = hostile.iter().cloned().chain(match deep {
                    0 => Vec::new(),
                    deep => self::worse(value, deep - 1, hostile),
                });
                worse.extend(others.map(|other| {
                    let mut with = fields.clone();
                    with.insert(name.clone(), other);
                    Value::Object(with)
                }));
            }
        }
        Value::Array(items) => {
            let others = items.first().map(|first| match deep {
                0 => Vec::new(),
                deep => self::worse(first, deep - 1, hostile),
            });
            worse.extend(others.into_iter().flatten().map(|other| json!([other])));
            worse.extend(hostile.iter().map(|other| json!([other])));
            worse.push(Value::Array(vec![items.first().cloned().unwrap_or(json!("x")); 3_000]));
        }
        _ => {}
    }
    worse
}

/// What a parameter is that names something which is there.
fn known(operation: &Operation<'_>, name: &str) -> String {
    let path = operation.path;
    let known = match name {
        "name" if path.starts_with("/api/v1/instances") => "web-0",
        "name" if path.starts_with("/api/v1/nodes") => "node-2",
        "name" if path.starts_with("/api/v1/volumes") => "data",
        "name" if path.starts_with("/api/v1/secrets") => "key",
        "name" if path.starts_with("/api/v1/users") => "viewer",
        "name" if path.starts_with("/api/v1/images") => "docker.io/library/busybox:latest",
        "name" => "web",
        "node" => "node-2",
        "gpu" => "GPU-0",
        "registry" => "nas.lan",
        "path" => "/etc",
        "username" | "user" => "viewer",
        "for" => "running",
        "timeout_ms" | "limit" | "tail" | "points" | "packets" | "max_moves" | "index" => "1",
        "since" | "until" => "1h",
        "grep" => "a",
        "consistency" => "local",
        "subject" => "workload/web",
        "workloads" => "web",
        "follow" | "gone" | "pss" | "force" | "keep_owner" | "replace" => "false",
        _ => "1",
    };
    known.to_owned()
}

/// What is asked of an operation; the first is right.
fn asked(document: &Document, operation: &Operation<'_>) -> Vec<Asked> {
    let mut right = Asked { path: BTreeMap::new(), query: Vec::new(), headers: Vec::new(), body: None };
    let mut all = Vec::new();
    for parameter in operation.parameters() {
        let name = parameter["name"].as_str().unwrap().to_owned();
        match parameter["in"].as_str().unwrap() {
            "path" => drop(right.path.insert(name.clone(), known(operation, &name))),
            // Nobody waits for long.
            "query" if parameter["required"] == true || name == "timeout_ms" => {
                right.query.push((name.clone(), known(operation, &name)));
            }
            _ => {}
        }
    }
    let body = operation.about["requestBody"]["content"].as_object().and_then(|content| content.iter().next());
    let (mut bodies, mut kind) = (Vec::new(), "application/json");
    if let Some((of, content)) = body {
        kind = of;
        if kind == "application/json" {
            let (least, whole) =
                (document.value(&content["schema"], false, 0), document.value(&content["schema"], true, 0));
            right.body = Some((kind.into(), least.to_string().into_bytes()));
            let hostile = hostile();
            // Fields deep inside are asked a few questions, those at the top all.
            bodies.extend(worse(&whole, 0, &hostile));
            bodies.extend(worse(&whole, DEEP, &hostile[..3]));
            bodies.extend(hostile);
            bodies.push(whole);
        } else {
            right.body = Some((kind.into(), b"text".to_vec()));
        }
    }
    all.push(right.clone());
    for parameter in operation.parameters() {
        let name = parameter["name"].as_str().unwrap().to_owned();
        let long = "x".repeat(9_000);
        let good = known(operation, &name);
        for value in HOSTILE.iter().copied().chain([long.as_str(), good.as_str()]) {
            let mut other = right.clone();
            match parameter["in"].as_str().unwrap() {
                "path" if value.is_empty() => continue,
                "path" => drop(other.path.insert(name.clone(), value.to_owned())),
                "query" => {
                    other.query.retain(|(known, _)| *known != name);
                    other.query.push((name.clone(), value.to_owned()));
                }
                _ => other.headers.push((name.clone(), value.to_owned())),
            }
            all.push(other);
        }
        let mut twice = right.clone();
        if parameter["in"] == "query" {
            twice.query.extend([(name.clone(), good.clone()), (name, good)]);
            all.push(twice);
        }
    }
    all.extend(
        bodies
            .into_iter()
            .map(|body| Asked { body: Some((kind.into(), body.to_string().into_bytes())), ..right.clone() }),
    );
    if right.body.is_some() {
        let odd: [&[u8]; 7] =
            [b"", b"{", b"\xff\xfe\0", b"{}{}", b"[[[[[[[[[[[[", b"{\"a\":1,\"a\":2}", b"\x1f\x8b\x08nonsense"];
        all.extend(odd.map(|body| Asked { body: Some((kind.into(), body.to_vec())), ..right.clone() }));
        all.push(Asked { body: Some(("text/plain".into(), b"{}".to_vec())), ..right.clone() });
        all.push(Asked { body: None, ..right.clone() });
    }
    for headers in [
        ("accept", "nothing/nowhere"),
        ("if-match", "\"x\""),
        ("if-match", "*"),
        ("range", "bytes=9-1"),
        ("content-encoding", "zstd"),
    ] {
        let headers = vec![(headers.0.to_owned(), headers.1.to_owned())];
        all.push(Asked { headers, ..right.clone() });
    }
    all
}

/// Sends it; gives the status, and the beginning of what was said.
fn send(toft: &MadeUp, operation: &Operation<'_>, asked: &Asked) -> Result<(u16, String), String> {
    let mut path = operation.path.to_owned();
    for (name, value) in &asked.path {
        path = path.replace(&format!("{{{name}}}"), &value.replace('/', "%2F").replace(' ', "%20"));
    }
    let query: Vec<String> = asked.query.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let mark = if query.is_empty() { "" } else { "?" };
    let mut head = format!(
        "{} {path}{mark}{} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n",
        operation.method,
        query.join("&")
    );
    for (name, value) in &asked.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let body = asked.body.as_ref();
    if let Some((kind, body)) = body {
        head.push_str(&format!("content-type: {kind}\r\ncontent-length: {}\r\n", body.len()));
    }
    head.push_str("\r\n");
    let mut stream = UnixStream::connect(toft.data.join("node-1/toft.sock")).map_err(|error| error.to_string())?;
    stream.set_read_timeout(Some(PATIENCE * slowness())).unwrap();
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.map_or(&[], |(_, body)| body)));
    let mut said = Vec::new();
    let mut part = [0; 4_096];
    // The head is enough: some answers never end.
    while !said.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut part) {
            Ok(0) => break,
            Ok(length) => said.extend_from_slice(&part[..length]),
            Err(error) => return Err(format!("{error} after {} bytes", said.len())),
        }
    }
    let said = String::from_utf8_lossy(&said).into_owned();
    let status = said.split(' ').nth(1).and_then(|status| status.parse().ok());
    status.map(|status| (status, said)).ok_or_else(|| "nothing was said".to_owned())
}

#[test]
fn whatever_is_asked_is_answered_as_the_document_says() {
    let toft = MadeUp::start(2);
    wait_until("both nodes are ready", || {
        let listed: Vec<Value> = serde_json::from_str(&toft.root(&["node", "ls", "--json"]).good()).ok()?;
        (listed.iter().filter(|node| node["state"] == "ready").count() == 2).then_some(())
    });
    toft.user("viewer", &[], "correct horse battery");
    toft.root(&["run", "-d", "-n", "web", "-v", "data:/data", "example.org/web:1"]).good();
    toft.root_reading(&["secret", "create", "key", "-"], "hush").good();
    wait_until("it runs", || toft.root(&["ps"]).good().contains("running").then_some(()));
    let socket = UnixStream::connect(toft.data.join("node-1/toft.sock")).unwrap();
    let served = crate::harness::http::exchange(socket, "GET", "/api/v1/openapi.json", &[], b"").unwrap().good();
    let document = Document(served);
    let operations = document.operations();
    assert!(operations.len() > 90, "{} operations", operations.len());
    let (mut faults, mut count, mut right) = (Vec::new(), 0, BTreeMap::new());
    let mut slowest = (Duration::ZERO, String::new());
    for operation in &operations {
        for (number, asked) in self::asked(&document, operation).iter().enumerate() {
            // Asked well, they would end what is asked of the others.
            if LAST.contains(&operation.name.as_str()) && number == 0 {
                continue;
            }
            let begun = Instant::now();
            let what = || {
                let body = asked
                    .body
                    .as_ref()
                    .map(|(_, body)| String::from_utf8_lossy(body).chars().take(200).collect::<String>());
                format!(
                    "{} {:?} {:?} {:?} {}",
                    operation.name,
                    asked.path,
                    asked.query,
                    asked.headers,
                    body.unwrap_or_default()
                )
            };
            count += 1;
            match send(&toft, operation, asked) {
                Err(error) => faults.push(format!("{}: {error}", what())),
                // What is not there, or cannot be now, is no fault; what we did wrong is.
                Ok((status, said)) if status >= 500 || !operation.names(status) => {
                    faults.push(format!("{}: {status}: {}", what(), said.split("\r\n\r\n").nth(1).unwrap_or_default()));
                }
                Ok((status, _)) => {
                    if number == 0 {
                        right.insert(operation.name.clone(), status);
                    }
                }
            }
            if begun.elapsed() > slowest.0 {
                slowest = (begun.elapsed(), what());
            }
            assert!(faults.len() < 60, "{} of {count}:\n{}", faults.len(), faults.join("\n"));
        }
    }
    assert!(faults.is_empty(), "{} of {count}:\n{}", faults.len(), faults.join("\n"));
    assert!(count > 3_000, "only {count} were asked");
    assert!(slowest.0 < Duration::from_secs(8) * slowness(), "{slowest:?}");
    // Most that is asked well succeeds; else this would prove little.
    let good = right.values().filter(|status| **status < 400).count();
    assert!(good * 10 > right.len() * 6, "{good} of {}: {right:?}", right.len());
    assert!(!toft.log().contains("panicked"), "{}", toft.log());
}
