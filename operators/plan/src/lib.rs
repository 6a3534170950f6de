//! Decisions as pure functions.

pub mod addons;
pub mod cluster;
pub mod console;
pub mod csr;
pub mod dispute;
pub mod disruption;
pub mod etcd;
pub mod events;
pub mod handover;
pub mod join;
pub mod kernel;
pub mod layers;
pub mod leader;
pub mod machine;
pub mod network;
pub mod node;
pub mod pki;
pub mod pool;
pub mod registries;
pub mod removal;
pub mod revocation;
pub mod rollout;
pub mod time;
pub mod trial;
pub mod twin;
pub mod virtual_address;
