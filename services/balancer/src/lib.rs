//! The local way to the cluster's API servers: one address of this machine, whichever of them serve.
//!
//! | task | in | out |
//! |---|---|---|
//! | [`daemon`] | configuration file, connections, signals | one [`relay`] for each connection |
//! | [`relay`] | a connection | the first API server that answers it, then bytes both ways |
//! | [`servers`] | configuration, what became of connections | in which order servers are asked |
//!
//! TLS passes through: nothing here has a key, and clients and API servers know each other as they would without it. A client
//! that comes before any API server serves is held instead of refused, so that it is served at that moment and not when its own
//! next try is due. Nothing is asked while nobody connects.

pub mod config;
pub mod daemon;
pub mod relay;
pub mod servers;
