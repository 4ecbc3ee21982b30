//! A command with an id of its own, so that a request that is repeated is applied once.

use rusqlite::Connection;
use serde::{Deserialize, Serialize};

use super::{
    apply::{Applied, apply},
    audit::Draft,
    command::{Command, Refusal, RefusalKind, Reply},
    format,
    tables::{AdmissionRow, RegistryRow, RequestRow, SecretRow, TokenRow, VolumeRow, WorkloadRow},
};
use crate::{
    identity::Author,
    ids::{NodeId, RequestId, WorkloadId},
    name::Name,
    node::Subnet,
    registry::RegistryName,
    token::TokenId,
};

/// A command as it stands in the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by whoever asks; a second request with the same id changes nothing.
    pub id: RequestId,
    /// Digest of what was asked, if the id was chosen by a user: an id that comes back with something else is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    /// What a member has to understand to apply it.
    #[serde(default = "format::first", skip_serializing_if = "format::is_first")]
    pub format: u32,
    /// Who asks, if somebody does: what nobody asks for is not in the audit trail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<Author>,
    /// The command.
    #[serde(flatten)]
    pub command: Command,
}

impl Request {
    /// Wraps a command in a request.
    pub fn new(id: RequestId, command: Command) -> Self {
        Self { id, fingerprint: None, author: None, format: command.format(), command }
    }

    /// The same, asked by somebody.
    pub fn with_author(mut self, author: Option<Author>) -> Self {
        self.author = author;
        self
    }

    /// The same, asked by a user who chose its id.
    pub fn with_fingerprint(mut self, fingerprint: String) -> Self {
        self.fingerprint = Some(fingerprint);
        self
    }
}

/// A reply as it is remembered: what can be looked up again is not stored twice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answered {
    Done,
    Workload(WorkloadId),
    Secret(Name),
    Registry(RegistryName),
    Generation {
        generation: u64,
    },
    Plan {
        placed: usize,
        dropped: usize,
    },
    Subnet {
        subnet: Option<Subnet>,
    },
    /// What a request with a fingerprint was answered.
    Keyed {
        fingerprint: String,
        answer: Box<Self>,
    },
    Volume(Name),
    Token(TokenId),
    Admitted(NodeId),
}

/// Whether a request with that id and fingerprint was applied.
pub fn was_applied(connection: &Connection, id: RequestId, asked: &str) -> rusqlite::Result<bool> {
    let answered = RequestRow::answered(connection, id)?;
    Ok(matches!(answered, Some(Answered::Keyed { fingerprint, .. }) if fingerprint == asked))
}

impl Answered {
    fn of(request: &Request, reply: &Reply) -> Self {
        let answer = match reply {
            Reply::Done => Self::Done,
            Reply::Workload(row) => Self::Workload(row.id),
            Reply::Secret(row) => Self::Secret(row.name.clone()),
            Reply::Registry(row) => Self::Registry(row.registry.clone()),
            Reply::Generation { generation } => Self::Generation { generation: *generation },
            Reply::Plan { placed, dropped } => Self::Plan { placed: *placed, dropped: *dropped },
            Reply::Subnet { subnet } => Self::Subnet { subnet: *subnet },
            Reply::Volume(row) => Self::Volume(row.name.clone()),
            Reply::Token(row) => Self::Token(row.token.id.clone()),
            Reply::Admitted(row) => Self::Admitted(row.node_id),
        };
        match &request.fingerprint {
            Some(fingerprint) => Self::Keyed { fingerprint: fingerprint.clone(), answer: Box::new(answer) },
            None => answer,
        }
    }

    /// The same answer from the state as it is now.
    fn again(self, connection: &Connection, request: &Request) -> rusqlite::Result<Applied> {
        Ok(match self {
            Self::Keyed { fingerprint, answer } if request.fingerprint.as_ref() == Some(&fingerprint) => {
                return answer.again(connection, request);
            }
            Self::Keyed { .. } => Err(Refusal {
                kind: RefusalKind::KeyReused,
                message: "a request with this key was applied before, and asked for something else".into(),
                hint: "choose a new key for each change; repeat a change with the same key and the same content".into(),
            }),
            Self::Done => Ok(Reply::Done),
            Self::Generation { generation } => Ok(Reply::Generation { generation }),
            Self::Plan { placed, dropped } => Ok(Reply::Plan { placed, dropped }),
            Self::Subnet { subnet } => Ok(Reply::Subnet { subnet }),
            Self::Workload(id) => match WorkloadRow::by_id(connection, id)? {
                Some(row) => Ok(Reply::Workload(Box::new(row))),
                // That it is gone is what was asked for.
                None if matches!(request.command, Command::RemoveWorkload { .. }) => Ok(Reply::Done),
                None => Err(Refusal {
                    kind: RefusalKind::NotFound,
                    message: "this request was applied before, and its workload has been removed since".into(),
                    hint: "`toft ls` shows the workloads there are".into(),
                }),
            },
            Self::Secret(name) => match SecretRow::named(connection, &name)? {
                Some(row) => Ok(Reply::Secret(Box::new(row))),
                None => Err(Refusal {
                    kind: RefusalKind::NotFound,
                    message: "this request was applied before, and its secret has been removed since".into(),
                    hint: "`toft secret ls` shows the secrets there are".into(),
                }),
            },
            Self::Registry(registry) => match RegistryRow::of(connection, &registry)? {
                Some(row) => Ok(Reply::Registry(Box::new(row))),
                None => Err(Refusal {
                    kind: RefusalKind::NotFound,
                    message: "this request was applied before, and its login has been removed since".into(),
                    hint: "`toft registry ls` shows the logins there are".into(),
                }),
            },
            Self::Volume(name) => match VolumeRow::named(connection, &name)? {
                Some(row) => Ok(Reply::Volume(Box::new(row))),
                None => Err(Refusal {
                    kind: RefusalKind::NotFound,
                    message: "this request was applied before, and its volume has been removed since".into(),
                    hint: "`toft volume ls` shows the volumes there are".into(),
                }),
            },
            Self::Token(id) => match TokenRow::by_id(connection, &id)? {
                Some(row) => Ok(Reply::Token(Box::new(row))),
                None => Err(Refusal {
                    kind: RefusalKind::NotFound,
                    message: "this request was applied before, and its token has been forgotten since".into(),
                    hint: "`toft token list` shows the tokens there are".into(),
                }),
            },
            Self::Admitted(node_id) => match AdmissionRow::of(connection, node_id)? {
                Some(row) => Ok(Reply::Admitted(Box::new(row))),
                None => Err(Refusal {
                    kind: RefusalKind::NotFound,
                    message: "this request was applied before, and its node has been removed since".into(),
                    hint: "join again with a new token".into(),
                }),
            },
        })
    }
}

/// Applies a request unless it was applied before; then it is answered again. Refusals are not remembered: they changed
/// nothing. The caller holds a transaction (or savepoint) and rolls it back on `Err` and on a refusal.
pub fn apply_request(connection: &Connection, index: u64, request: &Request) -> rusqlite::Result<Applied> {
    if let Some(answered) = RequestRow::answered(connection, request.id)? {
        return answered.again(connection, request);
    }
    let draft = match &request.author {
        Some(author) => Draft::of(connection, &request.command)?.map(|draft| (draft, author)),
        None => None,
    };
    let applied = apply(connection, index, &request.command)?;
    if let Ok(reply) = &applied {
        RequestRow::add(connection, request.id, &Answered::of(request, reply))?;
        if let Some((draft, author)) = draft {
            draft.finish(connection, &request.command, author)?;
        }
    }
    Ok(applied)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::{
        state::{PutMode, migrate, query_workloads},
        workload::WorkloadSpec,
    };

    fn put(name: &str, request: u128) -> Request {
        let spec = Box::new(WorkloadSpec::new(name.parse().unwrap(), "demo".parse().unwrap()));
        let workload_id = WorkloadId(Uuid::from_u128(request));
        let command = Command::PutWorkload { workload_id, spec, mode: PutMode::Create, at_ms: 1 };
        Request::new(RequestId(Uuid::from_u128(request)), command)
    }

    #[test]
    fn a_repeated_request_is_applied_once_and_answered_alike() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection).unwrap();
        let first = apply_request(&connection, 1, &put("web", 1)).unwrap().unwrap();
        assert_eq!(apply_request(&connection, 2, &put("web", 1)).unwrap().unwrap(), first);
        assert_eq!(query_workloads(&connection).unwrap().len(), 1);
        let other = apply_request(&connection, 3, &put("web", 2)).unwrap().unwrap_err();
        assert_eq!(other.kind, RefusalKind::Exists);
    }

    #[test]
    fn a_key_that_comes_back_with_something_else_is_refused() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection).unwrap();
        let asked = |what: &str| put("web", 1).with_fingerprint(what.into());
        let first = apply_request(&connection, 1, &asked("a")).unwrap().unwrap();
        assert_eq!(apply_request(&connection, 2, &asked("a")).unwrap().unwrap(), first);
        for other in [asked("b"), put("web", 1)] {
            assert_eq!(apply_request(&connection, 3, &other).unwrap().unwrap_err().kind, RefusalKind::KeyReused);
        }
        let text = serde_json::to_string(&asked("a")).unwrap();
        assert_eq!(serde_json::from_str::<Request>(&text).unwrap(), asked("a"));
    }

    #[test]
    fn a_removal_that_is_repeated_is_no_failure() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection).unwrap();
        apply_request(&connection, 1, &put("web", 1)).unwrap().unwrap();
        let command = Command::RemoveWorkload { name: "web".parse().unwrap(), at_ms: 2 };
        let remove = Request::new(RequestId(Uuid::from_u128(2)), command.clone());
        apply_request(&connection, 2, &remove).unwrap().unwrap();
        assert_eq!(apply_request(&connection, 3, &remove).unwrap(), Ok(Reply::Done));
        let another = Request::new(RequestId(Uuid::from_u128(3)), command);
        assert_eq!(apply_request(&connection, 4, &another).unwrap().unwrap_err().kind, RefusalKind::NotFound);
    }

    #[test]
    fn a_request_in_the_log_is_flat() {
        let text = serde_json::to_value(put("web", 7)).unwrap();
        assert_eq!(text["command"], "put_workload");
        assert!(text.get("format").is_none(), "what all understand says nothing of it");
        assert_eq!(serde_json::from_value::<Request>(text).unwrap(), put("web", 7));
        let newer = Request { format: 9, ..put("web", 7) };
        let text = serde_json::to_value(&newer).unwrap();
        assert_eq!((&text["format"], serde_json::from_value::<Request>(text.clone()).unwrap()), (&9.into(), newer));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection).unwrap();
        connection.execute("INSERT INTO requests (seq, id, reply) VALUES (1, x'01', '\"done\"')", []).unwrap();
        connection.execute("INSERT INTO requests (seq, id, reply) VALUES (76799, x'02', '\"done\"')", []).unwrap();
        apply_request(&connection, 1, &put("web", 1)).unwrap().unwrap();
        let left: i64 = connection.query_row("SELECT COUNT(*) FROM requests", [], |row| row.get(0)).unwrap();
        assert_eq!(left, 2);
    }
}
