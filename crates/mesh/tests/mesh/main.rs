//! Devices of the mesh in network namespaces, and a fake one beside them. The kernel's device needs a kernel that has
//! WireGuard: its tests are run in a machine of their own (`tests/lab/vm.sh`).

#![allow(missing_docs, clippy::unwrap_used, reason = "a test that cannot go on shall stop")]

mod capture;
mod conformance;
mod hostile;
mod interop;
mod lab;
mod links;
mod rotation;
