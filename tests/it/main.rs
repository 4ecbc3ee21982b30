//! Integration tests, one binary.

mod network;
