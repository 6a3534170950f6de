//! The DHCPv4 client of one link (RFC 2131 section 4.4) as a state machine without sockets and clock.
//!
//! Each [`Event`] may yield one [`Message`] to send; [`Client::deadline`] says when [`Event::Timer`] is due. Times are
//! times since boot, suspended time included, so that a lease also ends while the machine sleeps.
//!
//! Two choices where the RFC leaves them: the first offer that can be used is taken, and an unexpired lease stays in use
//! while the client looks for a server after the carrier came back.

use std::net::Ipv4Addr;
use std::time::Duration;

use super::lease::{Lease, Reply, ReplyKind};

const FIRST_RETRY: Duration = Duration::from_secs(1);
const MAX_RETRY: Duration = Duration::from_secs(64);
/// Requests for an offer before it is given up; at the doubling intervals these are 15 seconds.
const OFFER_ATTEMPTS: u32 = 4;
/// Requests for the address of before, when the carrier came back; 7 seconds.
const REBOOT_ATTEMPTS: u32 = 3;
/// Shortest time between two requests for more of a lease (RFC 2131 section 4.4.5).
const MIN_RENEW_RETRY: Duration = Duration::from_secs(60);

/// What happens to the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The link sees its medium.
    CarrierUp,
    /// The link lost its medium.
    CarrierDown,
    /// A message of a server arrived; whether it is for this client is judged here.
    Received(Reply),
    /// The time of [`Client::deadline`] has come.
    Timer,
}

/// How a message travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// Broadcast from 0.0.0.0, because there is no address that may be used.
    Link,
    /// To the server that granted the lease, from the leased address.
    Server(Ipv4Addr),
    /// Broadcast from the leased address.
    AnyServer,
}

/// A message to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// What is asked.
    pub kind: MessageKind,
    /// Transaction.
    pub xid: u32,
    /// Seconds since the client began to ask.
    pub secs: u16,
    /// How it travels.
    pub destination: Destination,
}

/// What a message asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageKind {
    /// DHCPDISCOVER
    Discover,
    /// DHCPREQUEST for what a server offered (options 50 and 54).
    Select {
        /// The offered address.
        address: Ipv4Addr,
        /// The server that offered it.
        server: Ipv4Addr,
    },
    /// DHCPREQUEST for the address of before (option 50).
    Reboot {
        /// The address of before.
        address: Ipv4Addr,
    },
    /// DHCPREQUEST for more time (`ciaddr`).
    Extend {
        /// The leased address.
        address: Ipv4Addr,
    },
}

/// Where the client is; the names are those of RFC 2131 figure 5.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    /// No carrier.
    Down,
    /// Waits before it asks again, after refusals.
    Init,
    Selecting,
    Requesting {
        offer: Lease,
    },
    Rebooting,
    Bound,
    Renewing,
    Rebinding,
}

/// The client of one link.
#[derive(Clone, Debug)]
pub struct Client {
    phase: Phase,
    lease: Option<Lease>,
    xid: u32,
    /// When the first message of the transaction was sent.
    began: Duration,
    /// When the last message was sent: what a granted lease counts from.
    requested: Duration,
    /// Messages sent in this phase.
    attempts: u32,
    /// When to act next, apart from the end of the lease.
    next: Option<Duration>,
    refusals: u32,
    random: u64,
}

impl Client {
    /// A client on a link without carrier. `lease` is what an earlier client left; `seed` keeps the machines of one rack
    /// from asking in step and makes transactions hard to guess.
    pub fn new(lease: Option<Lease>, seed: u64) -> Self {
        Self {
            phase: Phase::Down,
            lease,
            xid: 0,
            began: Duration::ZERO,
            requested: Duration::ZERO,
            attempts: 0,
            next: None,
            refusals: 0,
            random: seed,
        }
    }

    /// The lease in use.
    pub fn lease(&self) -> Option<&Lease> {
        self.lease.as_ref()
    }

    /// Whether a server has confirmed the lease since the carrier came.
    pub fn is_bound(&self) -> bool {
        match self.phase {
            Phase::Bound | Phase::Renewing | Phase::Rebinding => true,
            Phase::Down | Phase::Init | Phase::Selecting | Phase::Requesting { .. } | Phase::Rebooting => false,
        }
    }

    /// What the client does, in a word.
    pub fn phase(&self) -> &'static str {
        match self.phase {
            Phase::Down => "no carrier",
            Phase::Init => "refused",
            Phase::Selecting => "discovering",
            Phase::Requesting { .. } => "requesting",
            Phase::Rebooting => "confirming",
            Phase::Bound => "bound",
            Phase::Renewing => "renewing",
            Phase::Rebinding => "rebinding",
        }
    }

    /// When [`Event::Timer`] is due.
    pub fn deadline(&self) -> Option<Duration> {
        let expire = self.lease.as_ref().and_then(|lease| lease.term).map(|term| term.expire);
        [self.next, expire].into_iter().flatten().min()
    }

    /// Takes an event and says what to send.
    pub fn handle(&mut self, event: Event, now: Duration) -> Option<Message> {
        let expired = self.lease.as_ref().is_some_and(|lease| lease.is_expired(now));
        if expired {
            self.lease = None;
        }
        match event {
            Event::CarrierDown => {
                self.phase = Phase::Down;
                self.next = None;
                None
            }
            Event::CarrierUp if self.phase != Phase::Down => None,
            Event::CarrierUp => {
                self.refusals = 0;
                let phase = if self.lease.is_some() { Phase::Rebooting } else { Phase::Selecting };
                self.begin(phase, now)
            }
            Event::Timer | Event::Received(_) if self.phase == Phase::Down => None,
            Event::Timer | Event::Received(_) if expired && self.uses_lease() => self.begin(Phase::Selecting, now),
            Event::Timer if self.next.is_none_or(|next| now < next) => None,
            Event::Timer => self.elapsed(now),
            Event::Received(reply) if reply.xid != self.xid => None,
            Event::Received(reply) => self.received(&reply, now),
        }
    }

    fn uses_lease(&self) -> bool {
        self.is_bound() || self.phase == Phase::Rebooting
    }

    fn elapsed(&mut self, now: Duration) -> Option<Message> {
        match &self.phase {
            Phase::Down => None,
            Phase::Init => self.begin(Phase::Selecting, now),
            Phase::Requesting { .. } if self.attempts >= OFFER_ATTEMPTS => self.begin(Phase::Selecting, now),
            Phase::Rebooting if self.attempts >= REBOOT_ATTEMPTS => self.begin(Phase::Selecting, now),
            Phase::Selecting | Phase::Requesting { .. } | Phase::Rebooting => Some(self.send(now)),
            Phase::Bound => self.begin(Phase::Renewing, now),
            Phase::Renewing if self.term_is_past(now, |term| term.rebind) => self.begin(Phase::Rebinding, now),
            Phase::Renewing | Phase::Rebinding => Some(self.send(now)),
        }
    }

    fn received(&mut self, reply: &Reply, now: Duration) -> Option<Message> {
        match (&self.phase, reply.kind) {
            (Phase::Selecting, ReplyKind::Offer) => {
                let offer = Lease::from_reply(reply, self.requested).ok()?;
                self.phase = Phase::Requesting { offer };
                self.attempts = 0;
                Some(self.send(now))
            }
            (Phase::Requesting { offer }, ReplyKind::Ack | ReplyKind::Nak) if reply.server != Some(offer.server) => {
                None
            }
            (
                Phase::Requesting { .. } | Phase::Rebooting | Phase::Renewing | Phase::Rebinding,
                ReplyKind::Ack | ReplyKind::Nak,
            ) => {
                if reply.kind == ReplyKind::Nak {
                    return self.refused(now);
                }
                let lease = Lease::from_reply(reply, self.requested).ok()?;
                self.refusals = 0;
                self.phase = Phase::Bound;
                self.next = lease.term.map(|term| {
                    let early = term.renew.saturating_sub(self.requested) / 16;
                    term.renew - early.mul_f64(self.fraction())
                });
                self.lease = Some(lease);
                None
            }
            _ => None,
        }
    }

    /// The server says that the address is not ours: it may not be used from now on. The first refusal is usual after a
    /// move to another network; a server that keeps refusing is not asked ever faster.
    fn refused(&mut self, now: Duration) -> Option<Message> {
        self.lease = None;
        self.refusals += 1;
        if self.refusals == 1 {
            return self.begin(Phase::Selecting, now);
        }
        self.phase = Phase::Init;
        self.next = Some(now + self.backoff(self.refusals));
        None
    }

    /// Starts a transaction in a phase that sends.
    fn begin(&mut self, phase: Phase, now: Duration) -> Option<Message> {
        self.phase = phase;
        self.xid = (self.next_random() >> 32) as u32;
        self.began = now;
        self.attempts = 0;
        Some(self.send(now))
    }

    fn send(&mut self, now: Duration) -> Message {
        self.requested = now;
        self.attempts += 1;
        let leased = self.lease.as_ref().map_or(Ipv4Addr::UNSPECIFIED, |lease| lease.address.addr());
        let server = self.lease.as_ref().map_or(Ipv4Addr::BROADCAST, |lease| lease.server);
        let (kind, destination) = match &self.phase {
            Phase::Requesting { offer } => {
                (MessageKind::Select { address: offer.address.addr(), server: offer.server }, Destination::Link)
            }
            Phase::Rebooting => (MessageKind::Reboot { address: leased }, Destination::Link),
            Phase::Renewing => (MessageKind::Extend { address: leased }, Destination::Server(server)),
            Phase::Rebinding => (MessageKind::Extend { address: leased }, Destination::AnyServer),
            Phase::Down | Phase::Init | Phase::Selecting | Phase::Bound => (MessageKind::Discover, Destination::Link),
        };
        let term = self.lease.as_ref().and_then(|lease| lease.term);
        self.next = match (&self.phase, term) {
            (Phase::Renewing, Some(term)) => Some(retry_before(term.rebind, now)),
            (Phase::Rebinding, Some(term)) => Some(retry_before(term.expire, now)),
            _ => Some(now + self.backoff(self.attempts)),
        };
        let secs = now.saturating_sub(self.began).as_secs();
        Message { kind, xid: self.xid, secs: u16::try_from(secs).unwrap_or(u16::MAX), destination }
    }

    fn term_is_past(&self, now: Duration, time: impl Fn(super::lease::Term) -> Duration) -> bool {
        self.lease.as_ref().and_then(|lease| lease.term).is_some_and(|term| time(term) <= now)
    }

    /// 1, 2, 4 .. 64 seconds, each a tenth more or less.
    fn backoff(&mut self, attempts: u32) -> Duration {
        let doublings = attempts.saturating_sub(1).min(6);
        (FIRST_RETRY * 2_u32.pow(doublings)).min(MAX_RETRY).mul_f64(0.9 + 0.2 * self.fraction())
    }

    /// A number from 0 up to 1.
    fn fraction(&mut self) -> f64 {
        (self.next_random() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// SplitMix64.
    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// Half of the time that remains, but not more often than each minute, and never later than the limit.
fn retry_before(limit: Duration, now: Duration) -> Duration {
    let remaining = limit.saturating_sub(now);
    limit.min(now + (remaining / 2).max(MIN_RENEW_RETRY))
}

#[cfg(test)]
#[path = "dhcp_tests.rs"]
mod tests;
