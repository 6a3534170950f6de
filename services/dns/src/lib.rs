//! Cluster DNS: Kubernetes DNS-based service discovery 1.1.0 for the cluster's names, and forwarding for the rest.
//!
//! | task | in | out |
//! |---|---|---|
//! | [`watch`] | Namespaces, Services and EndpointSlices | the [`index`] |
//! | [`handler`] | requests by UDP and TCP | the [`zone`]'s answers, or those of upstream servers ([`forward`]) |
//! | [`daemon`] | configuration file, resolv.conf(5), signals | the two tasks above |
//!
//! Forwarding works at once. The cluster's names are answered with SERVFAIL until everything has been listed once, and
//! from what was known last while the API server is away.

pub mod config;
pub mod daemon;
pub mod forward;
pub mod handler;
pub mod index;
pub mod listen;
pub mod watch;
pub mod zone;
