//! From a listening socket to authenticated connections.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};

use super::Limits;
use super::connection::Connection;
use crate::AccessList;

/// How long and how much is read from a refused peer, so that closing does not overtake the alert that tells it why.
const FAREWELL: Duration = Duration::from_secs(2);
const FAREWELL_BYTES: u64 = 64 * 1024;

/// Pause after the kernel refused to accept, which it does when descriptors or memory are short.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

#[derive(Clone)]
struct Handshake {
    tls: TlsAcceptor,
    access: watch::Receiver<AccessList>,
    connections: Arc<Semaphore>,
    accepted: mpsc::Sender<Connection>,
    deadline: Duration,
}

pub(super) struct Acceptor {
    listener: TcpListener,
    /// Most handshakes at a time.
    limit: usize,
    handshake: Handshake,
}

impl Acceptor {
    /// The acceptor, and the connections that it makes.
    pub(super) fn new(
        listener: TcpListener,
        tls: ServerConfig,
        access: watch::Receiver<AccessList>,
        limits: Limits,
    ) -> (Self, mpsc::Receiver<Connection>) {
        // One is enough: the server takes a connection as soon as it is there.
        let (accepted, connections) = mpsc::channel(1);
        let handshake = Handshake {
            tls: TlsAcceptor::from(Arc::new(tls)),
            access,
            connections: Arc::new(Semaphore::new(limits.connections)),
            accepted,
            deadline: limits.handshake,
        };
        (Self { listener, limit: limits.handshakes, handshake }, connections)
    }

    /// Accepts until nobody receives connections any more.
    pub(super) async fn run(self) {
        let accepted = self.handshake.accepted.clone();
        tokio::select! {
            // Cancel-safe: a connection that is dropped between accept and handshake is closed, as all are then.
            () = self.accept() => {}
            () = accepted.closed() => {}
        }
    }

    /// When there are too many handshakes, the oldest gives way: a stranger who lets many of them hang would otherwise
    /// keep everybody out, while one that is meant takes no longer than a few round trips.
    async fn accept(self) {
        let mut handshakes = VecDeque::<AbortHandle>::new();
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    handshakes.retain(|handshake| !handshake.is_finished());
                    if handshakes.len() >= self.limit
                        && let Some(oldest) = handshakes.pop_front()
                    {
                        oldest.abort();
                    }
                    handshakes.push_back(tokio::spawn(self.handshake.clone().run(stream, peer)).abort_handle());
                }
                Err(error) => {
                    warn!(%error, "a connection to the machine API was not accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

impl Handshake {
    /// Carries out one handshake. Cancelled, it closes the connection.
    async fn run(self, stream: TcpStream, peer: SocketAddr) {
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%peer, %error, "TCP_NODELAY was not set");
        }
        match timeout(self.deadline, self.tls.accept(stream).into_fallible()).await {
            Ok(Ok(stream)) => {
                let Ok(place) = self.connections.clone().try_acquire_owned() else {
                    warn!(%peer, "a connection to the machine API was closed: there are too many");
                    return;
                };
                match Connection::new(stream, peer, self.access, place) {
                    // The server has stopped when this fails, and the connection is closed with it.
                    Some(connection) => drop(self.accepted.send(connection).await),
                    None => debug!(%peer, "the key lost its access during the handshake"),
                }
            }
            Ok(Err((error, stream))) => {
                debug!(%peer, %error, "a handshake with the machine API failed");
                // A peer that is gone needs no farewell.
                drop(timeout(FAREWELL, farewell(stream)).await);
            }
            Err(_) => debug!(%peer, "a handshake with the machine API took too long"),
        }
    }
}

/// Closes with the alert delivered: a socket that is closed with unread data resets the connection, and a reset discards
/// what the peer has not read yet.
async fn farewell(mut stream: TcpStream) -> io::Result<()> {
    stream.shutdown().await?;
    tokio::io::copy(&mut stream.take(FAREWELL_BYTES), &mut tokio::io::sink()).await?;
    Ok(())
}
