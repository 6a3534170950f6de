//! The control socket of PID 1: gRPC over a unix socket.
//!
//! - [`client::Client`] is what the node agent and the bus service hold.
//! - [`server`] turns calls into [`server::Request`]s for PID 1's event loop, which alone owns all state.
//! - [`types`] are the values that cross it; specifications and statuses are those of garboard-supervisor, as JSON.

pub mod client;
pub mod server;
pub mod types;

/// The generated protocol.
#[allow(missing_docs, clippy::all)]
pub mod proto {
    tonic::include_proto!("garboard.control.v1");
}

pub use client::{Client, ControlError, Inhibitor};
pub use types::{
    CONTROL_SOCKET, INHIBIT_SOCKET, LogLine, LogSource, MachineInfo, MachinePhase, ProbeKind, ShutdownKind, Upkeep,
};
