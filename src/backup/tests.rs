//! Tests of the format, on backups made from a real state.
