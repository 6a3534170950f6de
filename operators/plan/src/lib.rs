//! Decisions as pure functions.

pub mod addons;
pub mod network;
pub mod pki;
