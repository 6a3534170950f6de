//! One connection: to the first server that answers it.
//!
//! A server answers when its first byte comes, not when it takes a connection: one that hangs, and one that has opened its port
//! and does not serve yet, take connections too. What the client has said until then (a TLS ClientHello) is said again to the next server.

use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::net::sockopt;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional_with_sizes};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::servers::Servers;

/// What is heard of a client before it is answered, bytes. A ClientHello with post-quantum keys and a session ticket has 4 KiB.
const FIRST_WORDS: usize = 16 * 1024;
/// Bytes under way in each direction.
const BUFFER: usize = 8 * 1024;
/// A server that says nothing for this long is asked whether it is there (keep-alive), so often, with this pause.
const PROBES: (Duration, u32, Duration) = (Duration::from_secs(15), 3, Duration::from_secs(5));

/// How long what may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// A client may wait for an answer. Go's clients give up after ten seconds themselves.
    pub hold: Duration,
    /// A server may take to make a connection.
    pub connect: Duration,
    /// A server may take to answer if there is another one.
    pub answer: Duration,
    /// First and longest pause after all servers have failed.
    pub pause: (Duration, Duration),
    /// A server may be none for this long before the connections to it end: one that is only slow to say that it is there comes back,
    /// and all its clients at once would be too much for the others.
    pub withdrawn: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            hold: Duration::from_secs(15),
            connect: Duration::from_secs(1),
            answer: Duration::from_secs(3),
            pause: (Duration::from_millis(10), Duration::from_millis(160)),
            withdrawn: Duration::from_secs(15),
        }
    }
}

/// The servers as all connections know them.
#[derive(Debug, Default)]
pub struct Shared {
    servers: Mutex<Servers>,
    changed: Notify,
}

impl Shared {
    /// Has these servers from now on. Says whether that is news.
    pub fn set(&self, addresses: &[SocketAddr]) -> bool {
        let news = self.with(|servers| servers.set(addresses));
        self.changed.notify_waiters();
        news
    }

    fn order(&self) -> Vec<SocketAddr> {
        self.with(|servers| servers.order(Instant::now()))
    }

    fn note(&self, server: SocketAddr, answer: &Result<(), NoAnswer>) {
        if self.with(|servers| servers.note(server, answer.is_ok(), Instant::now())) {
            match answer {
                Ok(()) => info!(%server, "API server answers"),
                Err(problem) => warn!(%server, %problem, "API server does not answer"),
            }
        }
    }

    fn with<T>(&self, act: impl FnOnce(&mut Servers) -> T) -> T {
        act(&mut self.servers.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Why a server did not answer.
#[derive(Debug, thiserror::Error)]
enum NoAnswer {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("it closed the connection")]
    Closed,
    #[error("nothing within {} ms", .0.as_millis())]
    Timeout(Duration),
}

/// The client has gone.
struct Gone;

/// Relays a connection until either side ends it, or its server is none any more.
pub async fn relay(mut client: TcpStream, shared: &Shared, limits: &Limits) {
    // Neither matters to a connection that is broken already: the next read tells.
    let _ = client.set_nodelay(true);
    let mut said = Vec::new();
    let found = timeout(limits.hold, find(&mut client, &mut said, shared, limits)).await;
    if let Ok(Ok((server, mut stream))) = found {
        drop(said);
        // How a connection ends is the business of its two ends.
        tokio::select! {
            _ = copy_bidirectional_with_sizes(&mut client, &mut stream, BUFFER, BUFFER) => {}
            () = withdrawn(shared, server, limits.withdrawn) => {}
        }
    }
}

/// Waits until a server has been none for this long: whoever goes on with it would wait for answers that do not come.
async fn withdrawn(shared: &Shared, server: SocketAddr, limit: Duration) {
    loop {
        is_there(shared, server, false).await;
        if timeout(limit, is_there(shared, server, true)).await.is_err() {
            return;
        }
    }
}

/// Waits until a server is one, or none.
async fn is_there(shared: &Shared, server: SocketAddr, wanted: bool) {
    loop {
        // In this order: no change is missed.
        let changed = shared.changed.notified();
        if shared.with(|servers| servers.has(server)) == wanted {
            return;
        }
        changed.await;
    }
}

/// The first server that answers; the client has its first words already.
async fn find(
    client: &mut TcpStream,
    said: &mut Vec<u8>,
    shared: &Shared,
    limits: &Limits,
) -> Result<(SocketAddr, TcpStream), Gone> {
    hear(client, said).await?;
    let mut pause = limits.pause.0;
    loop {
        let changed = shared.changed.notified();
        let order = shared.order();
        for &server in &order {
            let patience = (order.len() > 1).then_some(limits.answer);
            match ask(server, client, said, limits.connect, patience).await? {
                Ok((stream, answer)) => {
                    shared.note(server, &Ok(()));
                    client.write_all(&answer).await.map_err(|_| Gone)?;
                    return Ok((server, stream));
                }
                Err(problem) => shared.note(server, &Err(problem)),
            }
        }
        // Cancel-safe: nothing is lost of what only waits, and what was heard is in `said`.
        tokio::select! {
            () = sleep(pause) => {}
            () = changed => {}
            gone = listen(client, said) => return Err(gone),
        }
        pause = (pause * 2).min(limits.pause.1);
    }
}

/// Asks one server: its connection and first words, or why there are none.
async fn ask(
    server: SocketAddr,
    client: &mut TcpStream,
    said: &mut Vec<u8>,
    connect: Duration,
    patience: Option<Duration>,
) -> Result<Result<(TcpStream, Vec<u8>), NoAnswer>, Gone> {
    let attempt = async {
        let connected = timeout(connect, TcpStream::connect(server)).await;
        let stream = connected.map_err(|_| NoAnswer::Timeout(connect))??;
        keep_alive(&stream)?;
        Ok(stream)
    };
    let mut stream = match attempt.await {
        Ok(stream) => stream,
        Err(problem) => return Ok(Err(problem)),
    };
    let mut told = 0;
    let mut answer = Vec::with_capacity(BUFFER);
    let too_long = async {
        match patience {
            Some(patience) => {
                sleep(patience).await;
                NoAnswer::Timeout(patience)
            }
            None => pending().await,
        }
    };
    tokio::pin!(too_long);
    loop {
        if let Err(error) = stream.write_all(&said[told..]).await {
            return Ok(Err(error.into()));
        }
        told = said.len();
        // Cancel-safe: reads into buffers take nothing when they are dropped.
        tokio::select! {
            read = stream.read_buf(&mut answer) => return Ok(match read {
                Ok(0) => Err(NoAnswer::Closed),
                Ok(_) => Ok((stream, answer)),
                Err(error) => Err(error.into()),
            }),
            heard = hear(client, said) => heard?,
            problem = &mut too_long => return Ok(Err(problem)),
        }
    }
}

/// Hears more of the client's first words. What goes beyond them waits until there is an answer.
async fn hear(client: &mut TcpStream, said: &mut Vec<u8>) -> Result<(), Gone> {
    if said.len() >= FIRST_WORDS {
        return pending().await;
    }
    match client.read_buf(said).await {
        Ok(0) | Err(_) => Err(Gone),
        Ok(_) => Ok(()),
    }
}

/// Hears the client until it goes.
async fn listen(client: &mut TcpStream, said: &mut Vec<u8>) -> Gone {
    loop {
        if let Err(gone) = hear(client, said).await {
            return gone;
        }
    }
}

/// A machine that lost its power says nothing: its connections end when it has not answered for a while.
fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    let (idle, count, interval) = PROBES;
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, idle)?;
    sockopt::set_tcp_keepintvl(stream, interval)?;
    sockopt::set_tcp_keepcnt(stream, count)?;
    let silence = idle + interval * count;
    sockopt::set_tcp_user_timeout(stream, u32::try_from(silence.as_millis()).unwrap_or(u32::MAX))?;
    Ok(())
}

#[cfg(test)]
#[path = "relay_tests.rs"]
mod tests;
