//! Integration tests, one binary. Those that need root, containerd or the kernel's network say so by failing.

#![allow(missing_docs, clippy::unwrap_used, reason = "a test that cannot go on shall stop")]

mod addresses;
mod backup;
mod bad_input;
mod browser;
mod cluster;
mod containerd_loss;
mod cp;
mod crash_loop;
mod crash_loop_of_three;
mod damage;
mod doctor;
mod endurance;
mod exec;
mod failing_disk;
mod failover;
mod full_disk;
mod harness;
mod health;
mod hostile_api;
mod image_commands;
mod image_layers;
mod image_pull;
mod lifecycle;
mod linearizability;
mod logs;
mod many_writes;
mod names;
mod network;
mod process;
mod reboot;
mod registries;
mod rest_api;
mod restarts;
mod run_command;
mod runtime_conformance;
mod runtime_containerd;
mod runtime_exec;
mod secrets;
mod security;
mod side_by_side;
mod stats;
mod tidy;
mod volumes;
mod volumes_served;
