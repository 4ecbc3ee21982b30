//! Identifiers. They are minted by whoever proposes a command (version 7 UUIDs) and only parsed here.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::invalid::Invalid;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = Invalid;

            fn from_str(text: &str) -> Result<Self, Invalid> {
                Uuid::parse_str(text)
                    .map(Self)
                    .map_err(|_| Invalid::value(format!("`{text}` is no id"), "an id is a UUID of 36 characters"))
            }
        }

        impl rusqlite::types::ToSql for $name {
            fn to_sql(&self) -> rusqlite::Result<rusqlite::types::ToSqlOutput<'_>> {
                Ok(self.0.to_string().into())
            }
        }

        impl rusqlite::types::FromSql for $name {
            fn column_result(value: rusqlite::types::ValueRef<'_>) -> rusqlite::types::FromSqlResult<Self> {
                value.as_str()?.parse().map_err(|e: Invalid| rusqlite::types::FromSqlError::Other(Box::new(e)))
            }
        }
    };
}

id!(
    /// One cluster: the nodes that share state.
    ClusterId
);
id!(
    /// One machine running toft.
    NodeId
);
id!(
    /// One workload. A workload removed and created again under the same name has another id.
    WorkloadId
);
id!(
    /// One running copy of a workload; also the id of its container in the runtime.
    InstanceId
);
id!(
    /// One request to change the state. Whoever repeats a request repeats its id.
    RequestId
);
