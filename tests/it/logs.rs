//! What workloads wrote.
