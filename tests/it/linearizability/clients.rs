//! Clients that read, write and swap labels of a few workloads through all members, and note what they were told.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use uuid::Uuid;

use super::checker::{Action, Operation, Register};
use crate::harness::{dice::Dice, http::Answer, trio::ask};

/// Time after which a client gives up on an answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// Wait between two operations of a client: the checker's work grows with what is on the way at the same time.
const PAUSE: Duration = Duration::from_millis(4);

/// One client.
pub struct Client {
    pub number: usize,
    pub sockets: [PathBuf; 3],
    pub dice: Dice,
    pub keys: Vec<String>,
    pub began: Instant,
    /// Added to the path of every read.
    pub query: &'static str,
}

/// What a client did with one workload.
pub type Noted = (usize, Operation);

pub fn spec(name: &str, value: u64) -> Value {
    json!({"name": name, "image": "toft/demo", "replicas": 0, "labels": {"value": value.to_string()}})
}

/// The register in an answer.
pub fn register(answer: &Answer) -> Register {
    let workload = answer.good();
    let value = workload["spec"]["labels"]["value"].as_str().unwrap().parse().unwrap();
    Register { generation: workload["generation"].as_u64().unwrap(), value }
}

/// What became of a request.
enum Outcome {
    Answered(Answer),
    /// Nothing was changed, and nothing will be.
    Nothing,
    /// Nobody knows.
    Unknown,
}

impl Client {
    fn now(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }

    /// Works until told to stop.
    pub fn work(mut self, stop: &AtomicBool) -> Vec<Noted> {
        let mut noted = Vec::new();
        let mut seen = vec![1; self.keys.len()];
        let mut written = 0;
        while !stop.load(Ordering::Relaxed) {
            let key = self.dice.below(self.keys.len() as u64) as usize;
            // Mostly the same one, so that a member that is away holds up its own clients only.
            let node = if self.dice.below(8) == 0 { self.dice.below(3) as usize } else { self.number % 3 };
            // Of this client and no other.
            let value = written * 1_000 + self.number as u64 + 1;
            let operation = match self.dice.below(4) {
                0 | 1 => self.read(key, node),
                2 => self.write(key, node, value, None),
                _ => self.write(key, node, value, Some(seen[key])),
            };
            written += 1;
            if let Some(operation) = operation {
                if let Action::Read { saw } = operation.action {
                    seen[key] = saw.generation;
                }
                noted.push((key, operation));
            }
            std::thread::sleep(PAUSE);
        }
        noted
    }

    pub fn read(&mut self, key: usize, node: usize) -> Option<Operation> {
        let begin = self.now();
        let path = format!("/api/v1/workloads/{}{}", self.keys[key], self.query);
        let answer = ask(&self.sockets[node], PATIENCE, "GET", &path, &[], "").ok()?;
        if answer.status == 503 {
            return None;
        }
        let action = Action::Read { saw: register(&answer) };
        Some(Operation { client: self.number, node, begin, end: Some(self.now()), action })
    }

    /// Writes, or swaps if a generation is expected. What is not answered is asked again at another member in half the
    /// cases: the key makes it the same change.
    pub fn write(&mut self, key: usize, node: usize, value: u64, expected: Option<u64>) -> Option<Operation> {
        let begin = self.now();
        let id = Uuid::now_v7().to_string();
        let mut outcome = self.send(key, node, value, expected, &id);
        if matches!(outcome, Outcome::Unknown) && self.dice.below(2) == 0 {
            for further in 1..6 {
                match self.send(key, (node + further) % 3, value, expected, &id) {
                    Outcome::Answered(answer) => {
                        outcome = Outcome::Answered(answer);
                        break;
                    }
                    Outcome::Nothing | Outcome::Unknown => std::thread::sleep(PAUSE * 50),
                }
            }
        }
        let (end, made, done) = match outcome {
            Outcome::Nothing => return None,
            Outcome::Unknown => (None, None, None),
            Outcome::Answered(answer) if answer.status == 412 => (Some(self.now()), None, Some(false)),
            Outcome::Answered(answer) => {
                let now = register(&answer);
                // A change that was applied before is answered with what is there now.
                (Some(self.now()), (now.value == value).then_some(now.generation), Some(true))
            }
        };
        let action = match expected {
            None => Action::Write { value, made },
            Some(expected) => Action::Swap { expected, value, done },
        };
        Some(Operation { client: self.number, node, begin, end, action })
    }

    fn send(&self, key: usize, node: usize, value: u64, expected: Option<u64>, id: &str) -> Outcome {
        let tag = expected.map(|generation| format!("\"{generation}\""));
        let mut headers = vec![("idempotency-key", id)];
        headers.extend(tag.as_deref().map(|tag| ("if-match", tag)));
        let name = &self.keys[key];
        let (path, body) = (format!("/api/v1/workloads/{name}"), spec(name, value).to_string());
        match ask(&self.sockets[node], PATIENCE, "PUT", &path, &headers, &body) {
            Ok(answer) if answer.status == 503 && answer.json()["error"]["code"] == "no_leader" => Outcome::Nothing,
            Ok(answer) if answer.status >= 500 => Outcome::Unknown,
            Ok(answer) => {
                assert!(answer.status == 200 || answer.status == 412, "{}: {}", answer.status, answer.text());
                Outcome::Answered(answer)
            }
            // Nobody listened.
            Err(error) if matches!(error.raw_os_error(), Some(111) | Some(2)) => Outcome::Nothing,
            Err(_) => Outcome::Unknown,
        }
    }
}
