//! The reconcilers.

pub mod addons;
pub mod hostname;
pub mod machine_api;
pub mod network;
pub mod pki;
pub mod resolver;
pub mod sysctl;
