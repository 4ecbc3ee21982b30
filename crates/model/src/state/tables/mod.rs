//! Rows and the SQL that reads and writes them, one file a table.

mod audit;
mod cluster;
mod events;
mod external_users;
mod gpus;
mod instances;
mod mesh;
mod nodes;
mod passkeys;
mod placement;
mod registries;
mod requests;
mod second_factors;
mod secrets;
mod signing_keys;
mod subnets;
mod tokens;
mod users;
mod versions;
mod volumes;
mod workloads;

pub use audit::{AuditQuery, AuditRow};
pub use cluster::{ClusterRow, applied_index};
pub use events::{EventLevel, EventRow};
pub use external_users::ExternalUserRow;
pub use gpus::GpuRow;
pub use instances::{Holding, InstanceRow, MoveOrder, PortsAndGpus};
pub use mesh::MeshRow;
pub use nodes::NodeRow;
pub use passkeys::PasskeyRow;
pub use placement::{placement_settings, save_placement_settings};
pub use registries::RegistryRow;
pub use requests::RequestRow;
pub use second_factors::{SecondFactorRow, access_settings, save_access_settings};
pub use secrets::SecretRow;
pub use signing_keys::SigningKeyRow;
pub use subnets::SubnetRow;
pub use tokens::{AdmissionRow, RemovedNodeRow, TokenRow, TokenState};
pub use users::{ApiTokenRow, SessionRow, UserRow};
pub use versions::VersionRow;
pub use volumes::{MovePhase, VolumeMove, VolumeRow};
pub use workloads::WorkloadRow;

use std::str::FromStr;

use rusqlite::{Row, types::FromSqlError};
use serde::{Serialize, de::DeserializeOwned};

use crate::{instance::Desired, invalid::Invalid, name::Name, node::NodeHealth};

fn to_json<T: Serialize>(value: &T) -> rusqlite::Result<String> {
    serde_json::to_string(value).map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))
}

fn from_json<T: DeserializeOwned>(text: &str) -> rusqlite::Result<T> {
    serde_json::from_str(text)
        .map_err(|e| rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(e)))
}

pub(super) fn name(row: &Row<'_>, column: usize) -> rusqlite::Result<Name> {
    text(row, column)
}

/// A column whose text is parsed.
fn text<T: FromStr<Err = Invalid>>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    let text = row.get_ref(column)?.as_str()?;
    text.parse().map_err(|e| {
        let cause = Box::<Invalid>::new(e);
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, cause)
    })
}

impl rusqlite::types::ToSql for Desired {
    fn to_sql(&self) -> rusqlite::Result<rusqlite::types::ToSqlOutput<'_>> {
        Ok(self.as_str().into())
    }
}

impl rusqlite::types::ToSql for NodeHealth {
    fn to_sql(&self) -> rusqlite::Result<rusqlite::types::ToSqlOutput<'_>> {
        Ok(self.as_str().into())
    }
}

impl rusqlite::types::FromSql for NodeHealth {
    fn column_result(value: rusqlite::types::ValueRef<'_>) -> rusqlite::types::FromSqlResult<Self> {
        let all = [Self::Ready, Self::Away, Self::Unreachable, Self::Down, Self::Fenced];
        let text = value.as_str()?;
        all.into_iter().find(|health| health.as_str() == text).ok_or(FromSqlError::InvalidType)
    }
}

impl rusqlite::types::FromSql for Desired {
    fn column_result(value: rusqlite::types::ValueRef<'_>) -> rusqlite::types::FromSqlResult<Self> {
        match value.as_str()? {
            "running" => Ok(Self::Running),
            "stopped" => Ok(Self::Stopped),
            "removed" => Ok(Self::Removed),
            _ => Err(FromSqlError::InvalidType),
        }
    }
}
