//! Decisions as pure functions.

pub mod addons;
pub mod csr;
pub mod network;
pub mod pki;
