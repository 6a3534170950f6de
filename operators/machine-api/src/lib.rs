//! The machine API: how a person's tool and a machine talk before there is an API server, and while there is none.
//!
//! gRPC over TLS 1.3. Both sides authenticate with bare keys: each presents a self-signed certificate, and the other
//! compares the SHA-256 of its `SubjectPublicKeyInfo` (a [`Pin`]) with what it was told beforehand. There is no authority
//! and nothing that expires; a key is withdrawn by deleting its pin from the [`AccessList`].
//!
//! | module | input | output |
//! |---|---|---|
//! | [`pin`] | a certificate or key | its pin, `sha256:HEX` |
//! | [`identity`] | a key file | the key, its pin, its self-signed certificate |
//! | [`role`] | an RPC's name | the least role that may call it: the one table |
//! | [`access`] | pins with names and roles | who a proven key is |
//! | [`server`] | a listener, an identity, an access list, an implementation | the served API |
//! | [`client`] | an endpoint, the machine's pin, an identity | typed calls and typed errors |
//! | [`snapshot`] | pieces of a snapshot of etcd | whether it is whole |
//! | [`waiting`] | links | machines that wait to be claimed, found by multicast DNS |
//! | [`proto`] | | messages and the [`proto::machine_server::Machine`] trait to implement |

pub mod access;
pub mod client;
pub mod endpoint;
pub mod identity;
pub mod pin;
pub mod role;
pub mod server;
pub mod snapshot;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod tls;
pub mod waiting;

pub use access::{Access, AccessList};
pub use endpoint::{DEFAULT_PORT, Endpoint};
pub use identity::Identity;
pub use pin::Pin;
pub use role::Role;

/// The generated protocol; `proto/machine.proto` documents it.
#[allow(missing_docs, clippy::all, reason = "generated")]
pub mod proto {
    tonic::include_proto!("garboard.machine.v1alpha1");
}
