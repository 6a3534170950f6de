//! Serves the machine API.
//!
//! What an unknown peer can use up is bounded: handshakes at a time, their duration, and nothing after them, because an
//! unknown key ends the handshake. What a known peer can use up is bounded by [`Limits`] as well.

mod accept;
mod authorize;
mod connection;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tokio_stream::wrappers::ReceiverStream;

use crate::proto::machine_server::{Machine, MachineServer};
use crate::{AccessList, Identity};

pub use connection::Caller;

/// What peers may use up.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections of known keys at a time; more are closed.
    pub connections: usize,
    /// Handshakes at a time; beyond that the oldest is given up.
    pub handshakes: usize,
    /// Longest time from the connection to the end of the handshake.
    pub handshake: Duration,
    /// Requests at a time on one connection.
    pub streams: u32,
    /// Largest request, bytes: room for the manifests of a machine.
    pub message: usize,
    /// Longest time until the first byte of an answer.
    pub answer: Duration,
    /// Time without a sign of life after which the peer is asked for one; it has as long again to give it.
    pub keepalive: Duration,
    /// Age at which a connection ends as soon as no request is open on it.
    pub age: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 32,
            handshakes: 32,
            handshake: Duration::from_secs(10),
            streams: 16,
            message: 1024 * 1024,
            answer: Duration::from_secs(60),
            keepalive: Duration::from_secs(30),
            age: Duration::from_secs(600),
        }
    }
}

/// Why the machine API is not served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The identity does not make a TLS configuration.
    #[error("configure TLS")]
    Tls(#[source] rustls::Error),
    /// The server ended.
    #[error("serve the machine API")]
    Serve(#[source] tonic::transport::Error),
    /// The port cannot be listened on.
    #[error("listen on port {port}")]
    Listen {
        /// The port.
        port: u16,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Listens on every address that the machine has now or gets later, of both families where IPv6 is there.
///
/// # Errors
/// When the port is taken.
pub fn listen(port: u16) -> Result<TcpListener, ServeError> {
    let bind = |socket: io::Result<TcpSocket>, address: SocketAddr| {
        let socket = socket?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(64)
    };
    bind(TcpSocket::new_v6(), (Ipv6Addr::UNSPECIFIED, port).into())
        .or_else(|error| match error.kind() {
            io::ErrorKind::AddrInUse => Err(error),
            _ => bind(TcpSocket::new_v4(), (Ipv4Addr::UNSPECIFIED, port).into()),
        })
        .map_err(|source| ServeError::Listen { port, source })
}

/// Serves `machine` until `stop` ends; then open requests are finished, and nothing new is accepted.
///
/// `access` is looked at in every handshake. When a key's entry in it changes or goes away, the connections of that key
/// are closed at once.
///
/// # Errors
/// When the identity is unusable or the server fails as a whole; what goes wrong with one peer ends that connection only.
pub async fn serve<M: Machine>(
    listener: TcpListener,
    identity: &Identity,
    access: watch::Receiver<AccessList>,
    limits: Limits,
    machine: M,
    stop: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let tls = crate::tls::server_config(identity, access.clone()).map_err(ServeError::Tls)?;
    let (acceptor, connections) = accept::Acceptor::new(listener, tls, access, limits);
    let service = MachineServer::new(machine).max_decoding_message_size(limits.message);
    let server = tonic::transport::Server::builder()
        .max_concurrent_streams(limits.streams)
        .concurrency_limit_per_connection(usize::try_from(limits.streams).unwrap_or(usize::MAX))
        .timeout(limits.answer)
        .http2_keepalive_interval(Some(limits.keepalive))
        .http2_keepalive_timeout(Some(limits.keepalive))
        .http2_max_header_list_size(8 * 1024)
        .http2_max_pending_accept_reset_streams(Some(16))
        .max_connection_age(limits.age)
        .serve_with_incoming_shutdown(
            authorize::Authorize::new(service),
            tokio_stream::StreamExt::map(ReceiverStream::new(connections), Ok::<_, io::Error>),
            stop,
        );
    // The acceptor ends when the server has dropped the receiving end of the channel.
    let ((), served) = tokio::join!(acceptor.run(), server);
    served.map_err(ServeError::Serve)
}
