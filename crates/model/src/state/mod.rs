//! The replicated state: SQLite tables, the commands that change them, and the questions asked of them.
//!
//! [`apply`] is the only writer. It is deterministic: the same commands in the same order give the same rows.

mod apply;
mod audit;
mod changes;
mod command;
mod commit_plan;
mod follow;
mod format;
mod gpus;
mod members;
mod mesh;
mod migrate;
mod move_orders;
mod names;
mod node_health;
mod nodes;
mod passkeys;
mod query;
mod registries;
mod reply;
mod request;
mod rollouts;
mod second_factors;
mod secrets;
mod signing_keys;
mod subnets;
mod tables;
#[cfg(test)]
pub(crate) mod tests;
mod users;
mod views;
mod volume_moves;
mod volumes;

pub use apply::{Applied, apply};
pub use command::{
    Command, InstanceChange, InstanceMove, MoveTurn, Placement, PowerAction, Preemption, PutMode, Refusal, RefusalKind,
    Reply, RolloutChange, Unmoved,
};
pub use follow::{Followed, Follower};
pub use format::{FIRST_FORMAT, FORMAT};
pub use members::useless;
pub use mesh::{MeshSight, query_mesh};
pub use migrate::{MigrateError, SCHEMA_VERSION, SchemaVersion, migrate, schema_version};
pub use move_orders::MOST_MOVES;
pub use names::{NamedInstance, NamedWorkload, Names};
pub use query::{
    InstanceView, WorkloadView, assignments_generation, query_assignments, query_events, query_events_of,
    query_instances, query_snapshot, query_versions, query_workload, query_workload_page, query_workloads,
};
pub use request::{Request, apply_request, was_applied};
pub use second_factors::{UserStanding, query_standing};
pub use secrets::{SecretUser, SecretView, query_secret, secret_views};
pub use tables::{
    AdmissionRow, ApiTokenRow, AuditQuery, AuditRow, ClusterRow, EventLevel, EventRow, ExternalUserRow, GpuRow,
    Holding, InstanceRow, MeshRow, MoveOrder, MovePhase, NodeRow, PasskeyRow, RegistryRow, RemovedNodeRow,
    SecondFactorRow, SecretRow, SessionRow, SigningKeyRow, SubnetRow, TokenRow, TokenState, UserRow, VersionRow,
    VolumeMove, VolumeRow, WorkloadRow, access_settings, applied_index, placement_settings,
};
pub use views::Views;
pub use volume_moves::{cannot_go, volume_is_mounted};
pub use volumes::{NodeVolumes, VolumeView, query_node_volumes, query_volume, volume_views};
