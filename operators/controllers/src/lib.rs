//! The reconcilers of the node agent and of the cluster operators, and the tasks that they look at.

pub mod addons;
pub mod cluster;
pub mod connect;
pub mod console;
pub mod context;
pub mod csr;
pub mod declare;
pub mod events;
pub mod firmware;
pub mod hostname;
pub mod images;
pub mod leader;
pub mod machine;
pub mod machine_api;
pub mod media;
pub mod network;
pub mod node;
pub mod pki;
pub mod pool;
pub mod pools;
pub mod preload;
pub mod probes;
pub mod problems;
pub mod release;
pub mod resolver;
pub mod services;
