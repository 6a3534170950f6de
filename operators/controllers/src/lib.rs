//! The reconcilers.

pub mod addons;
pub mod csr;
pub mod hostname;
pub mod images;
pub mod machine_api;
pub mod network;
pub mod pki;
pub mod probes;
pub mod resolver;
pub mod sysctl;
