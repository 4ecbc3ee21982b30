//! The doors for programs. [`types`] is what they speak; the command line uses the same types as a client.

pub mod http;
pub mod types;
