//! One question to one time server (SNTP, RFC 4330).

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, UNIX_EPOCH};

use sntpc::{
    Error, KissOfDeathCode, NtpContext, NtpResult, NtpTimestampGenerator, NtpUdpSocket, sntp_process_response,
    sntp_send_request,
};
use tokio::net::UdpSocket;
use tokio::time::timeout;

use super::Clock;

/// Time that a server has to answer.
const LIMIT: Duration = Duration::from_secs(3);
/// Packets that are looked at for the answer: others may come from anybody who guesses the port.
const PACKETS: usize = 16;
/// What an answer can be wrong by in any case, microseconds: clocks have their grain, and so have those who read them.
const GRAIN_US: u64 = 1_000;

/// What a server has answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Its time.
    Time {
        /// Its distance from a reference clock.
        stratum: u8,
        /// By how much this machine's clock is behind, microseconds.
        offset_us: i64,
        /// By how much that can be wrong, microseconds.
        distance_us: u64,
    },
    /// That it is asked too often.
    TooOften,
    /// That it does not want to be asked.
    Unwelcome,
    /// Something of no use.
    Unusable(&'static str),
    /// Nothing: there is no way to it.
    Unreachable(String),
    /// Nothing in time.
    Silence,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Time { .. } => f.write_str("has answered"),
            Self::TooOften => f.write_str("wants to be asked less often"),
            Self::Unwelcome => f.write_str("does not want to be asked"),
            Self::Unusable(why) => f.write_str(why),
            Self::Unreachable(why) => f.write_str(why),
            Self::Silence => write!(f, "no answer within {} seconds", LIMIT.as_secs()),
        }
    }
}

/// Asks a server for its time.
pub(super) async fn query<C: Clock>(clock: &C, server: SocketAddr) -> Answer {
    let socket = match connect(server).await {
        Ok(socket) => Connected { socket, server },
        Err(error) => return Answer::Unreachable(error.to_string()),
    };
    match timeout(LIMIT, exchange(clock, &socket)).await {
        Ok(Ok(result)) => time(&result),
        Ok(Err(error)) => refusal(error),
        Err(_) => Answer::Silence,
    }
}

/// A socket that takes packets of the server only.
async fn connect(server: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    Ok(socket)
}

async fn exchange<C: Clock>(clock: &C, socket: &Connected) -> Result<NtpResult, Error> {
    let context = NtpContext::new(Stamp { clock, since: Duration::ZERO });
    let sent = sntp_send_request(socket.server, socket, context).await?;
    let mut looked_at = 0;
    loop {
        looked_at += 1;
        match sntp_process_response(socket.server, socket, context, sent).await {
            // Not the answer to this question: the answer may be behind it.
            Err(Error::IncorrectOriginTimestamp | Error::IncorrectPayload) if looked_at < PACKETS => {}
            result => return result,
        }
    }
}

fn time(result: &NtpResult) -> Answer {
    // Seconds of 16 bits and a fraction of 16 bits (RFC 5905 section 6).
    let micros = |short: u32| (u64::from(short) * 1_000_000) >> 16;
    let way = result.roundtrip() / 2;
    let distance_us = way + micros(result.root_delay()) / 2 + micros(result.root_dispersion()) + GRAIN_US;
    Answer::Time { stratum: result.stratum(), offset_us: result.offset(), distance_us }
}

fn refusal(error: Error) -> Answer {
    match error {
        Error::KissOfDeath(KissOfDeathCode::Rate) => Answer::TooOften,
        Error::KissOfDeath(KissOfDeathCode::Deny | KissOfDeathCode::Rstr) => Answer::Unwelcome,
        Error::KissOfDeath(_) => Answer::Unusable("it gives no time"),
        Error::UnsynchronizedClock | Error::IncorrectStratumHeaders => {
            Answer::Unusable("it does not know the time itself")
        }
        Error::ExcessiveRootDistance | Error::BackwardReferenceTimestamp => {
            Answer::Unusable("it does not know the time well enough")
        }
        Error::Network => Answer::Unreachable("nothing listens there, or there is no way to it".to_owned()),
        _ => Answer::Unusable("its answer is no NTP"),
    }
}

/// The socket in the form that the protocol wants.
struct Connected {
    socket: UdpSocket,
    server: SocketAddr,
}

impl NtpUdpSocket for Connected {
    async fn send_to(&self, bytes: &[u8], _: SocketAddr) -> sntpc::Result<usize> {
        self.socket.send(bytes).await.map_err(|_| Error::Network)
    }

    async fn recv_from(&self, bytes: &mut [u8]) -> sntpc::Result<(usize, SocketAddr)> {
        let length = self.socket.recv(bytes).await.map_err(|_| Error::Network)?;
        Ok((length, self.server))
    }
}

/// The clock in the form that the protocol wants: it is read once for each packet.
struct Stamp<'a, C> {
    clock: &'a C,
    since: Duration,
}

impl<C> Clone for Stamp<'_, C> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<C> Copy for Stamp<'_, C> {}

impl<C: Clock> NtpTimestampGenerator for Stamp<'_, C> {
    fn init(&mut self) {
        self.since = self.clock.now().duration_since(UNIX_EPOCH).unwrap_or_default();
    }

    fn timestamp_sec(&self) -> u64 {
        self.since.as_secs()
    }

    fn timestamp_subsec_micros(&self) -> u32 {
        self.since.subsec_micros()
    }
}
