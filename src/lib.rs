//! toft: a self-contained appliance that runs containers on homelab boxes. See `docs/ARCHITECTURE.md`.

pub mod agent;
