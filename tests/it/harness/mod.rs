//! What the tests run against.

pub mod appliance;
pub mod browser;
pub mod containerd;
pub mod http;
pub mod image;
pub mod machine;
pub mod prober;
pub mod terminal;
