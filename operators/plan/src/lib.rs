//! Decisions as pure functions.

pub mod network;
pub mod pki;
