//! Who holds the address: the protocol's state machine (RFC 9568, section 6), from one machine's view.

use std::net::Ipv4Addr;
use std::time::Duration;

use super::Advertisement;

/// Time between two advertisements of the machine that holds the address: when it dies, others miss it in less than a second.
pub const INTERVAL: Duration = Duration::from_millis(250);
/// Shortest time between two advertisements, however many are asked for.
const GAP: Duration = Duration::from_millis(50);
/// The priority of one that gives up.
const GIVEN_UP: u8 = 0;
/// The lowest priority of a machine whose API server serves.
const SERVING: u8 = 128;
/// Priorities of one kind, by address: machines that miss the holder together do not all take the address together.
const SPREAD: u32 = 100;
/// Sends neighbouring addresses to priorities that are far apart. It has no factor in common with [`SPREAD`].
const SCATTER: u32 = 37;

/// How the machine's own API server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// It does not serve, or is about to end.
    Away,
    /// It should serve, but has not answered in time. It may be that every API server is slow, and then nothing is won by a move: the
    /// machine may hold the address, and leaves it to any whose API server answers.
    Silent,
    /// It serves.
    Serving,
}

/// What happens to a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// It hears another.
    Heard(Advertisement),
    /// Its own API server is otherwise than before.
    Standing(Standing),
    /// Time has passed.
    Tick,
}

/// What a machine does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Advertise itself with that priority.
    Send(u8),
    /// Have the address, which may be there already, and tell the link.
    Take,
    /// Tell the link again where the address is: another thought that it had it.
    Announce,
    /// No longer have the address, if it is there.
    Release,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It takes no part.
    Idle,
    /// It takes the address if nobody is heard until then. It `keeps` the address when it has it from before and does not know whether
    /// another has taken it meanwhile.
    Backup { until: Duration, keeps: bool },
    /// It holds the address, and advertises itself `next`; the last time that it did was `sent`.
    Holder { next: Duration, sent: Duration },
}

/// Another machine that holds the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Other {
    address: Ipv4Addr,
    /// When it counts as gone if it is not heard.
    until: Duration,
}

/// One machine's part in the election. Times are counted from any moment that stays the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Election {
    own: Ipv4Addr,
    standing: Standing,
    state: State,
    other: Option<Other>,
}

impl Election {
    /// Begins for the machine with the address `own`, which has the virtual address from before if it `keeps` it.
    pub fn new(own: Ipv4Addr, standing: Standing, keeps: bool, now: Duration) -> (Self, Vec<Action>) {
        let mut election = Self { own, standing, state: State::Idle, other: None };
        if standing == Standing::Away {
            return (election, if keeps { vec![Action::Release] } else { Vec::new() });
        }
        election.state = election.backup(INTERVAL, keeps, now);
        (election, Vec::new())
    }

    /// Takes in what happened; says what to do, in this order.
    pub fn step(&mut self, event: Event, now: Duration) -> Vec<Action> {
        match event {
            Event::Heard(advertisement) if advertisement.sender == self.own => Vec::new(),
            Event::Heard(advertisement) => self.hear(advertisement, now),
            Event::Standing(standing) => self.stand(standing, now),
            Event::Tick => self.tick(now),
        }
    }

    /// When time is to be looked at next; none while nothing is waited for.
    pub fn deadline(&self) -> Option<Duration> {
        let own = match self.state {
            State::Idle => None,
            State::Backup { until, keeps: _ } => Some(until),
            State::Holder { next, sent: _ } => Some(next),
        };
        own.into_iter().chain(self.other.map(|other| other.until)).min()
    }

    /// Whether the machine holds the address.
    pub fn holds(&self) -> bool {
        matches!(self.state, State::Holder { .. })
    }

    /// The own address of the machine that holds the virtual one, as far as is known.
    pub fn holder(&self) -> Option<Ipv4Addr> {
        if self.holds() { Some(self.own) } else { self.other.map(|other| other.address) }
    }

    fn hear(&mut self, advertisement: Advertisement, now: Duration) -> Vec<Action> {
        let Advertisement { sender, priority, interval } = advertisement;
        if priority != GIVEN_UP {
            // One that is only late is not gone: one more than the protocol lets pass.
            self.other = Some(Other { address: sender, until: now + interval * 4 });
        } else if self.other.is_some_and(|other| other.address == sender) {
            self.other = None;
        }
        let own = self.priority();
        let (soon, gap) = (now + skew(own, INTERVAL), GAP);
        match &mut self.state {
            State::Idle => Vec::new(),
            State::Backup { until, keeps } => {
                if priority == GIVEN_UP || (serves(own) && !serves(priority)) {
                    *until = soon.min(*until);
                    return Vec::new();
                }
                *until = now + down_time(own, interval);
                if std::mem::take(keeps) { vec![Action::Release] } else { Vec::new() }
            }
            State::Holder { next, sent } => {
                if (priority, sender) > (own, self.own) {
                    self.state = self.backup(interval, false, now);
                    return vec![Action::Release];
                }
                // Whoever gave up or thought that it had the address learns at once that it is held.
                *next = (*sent + gap).max(now).min(*next);
                if priority == GIVEN_UP { Vec::new() } else { vec![Action::Announce] }
            }
        }
    }

    fn stand(&mut self, standing: Standing, now: Duration) -> Vec<Action> {
        let before = std::mem::replace(&mut self.standing, standing);
        match (&mut self.state, standing) {
            (State::Idle, Standing::Away) => Vec::new(),
            (State::Idle, _) => {
                self.state = self.backup(INTERVAL, false, now);
                Vec::new()
            }
            (State::Holder { .. }, Standing::Away) => {
                self.state = State::Idle;
                vec![Action::Send(GIVEN_UP), Action::Release]
            }
            (State::Backup { keeps, .. }, Standing::Away) => {
                let kept = *keeps;
                self.state = State::Idle;
                if kept { vec![Action::Release] } else { Vec::new() }
            }
            (State::Backup { .. }, _) => Vec::new(),
            (State::Holder { next, sent }, _) => {
                if before != standing {
                    *next = (*sent + GAP).max(now).min(*next);
                }
                Vec::new()
            }
        }
    }

    fn tick(&mut self, now: Duration) -> Vec<Action> {
        self.other = self.other.filter(|other| other.until > now);
        let own = self.priority();
        match self.state {
            State::Backup { until, keeps: _ } if until <= now => {
                self.state = State::Holder { next: now + INTERVAL, sent: now };
                self.other = None;
                vec![Action::Take, Action::Send(own)]
            }
            // It has been asleep for so long that another may have the address.
            State::Holder { next, sent: _ } if next + down_time(own, INTERVAL) <= now => {
                self.state = self.backup(INTERVAL, true, now);
                Vec::new()
            }
            State::Holder { next, sent: _ } if next <= now => {
                self.state = State::Holder { next: now + INTERVAL, sent: now };
                vec![Action::Send(own)]
            }
            State::Idle | State::Backup { .. } | State::Holder { .. } => Vec::new(),
        }
    }

    fn backup(&self, interval: Duration, keeps: bool, now: Duration) -> State {
        State::Backup { until: now + down_time(self.priority(), interval), keeps }
    }

    fn priority(&self) -> u8 {
        // Less than 100, so that neither sum is more than a priority.
        let scattered = (u32::from(self.own).wrapping_mul(SCATTER) % SPREAD) as u8;
        match self.standing {
            Standing::Away => GIVEN_UP,
            Standing::Silent => 1 + scattered,
            Standing::Serving => SERVING + scattered,
        }
    }
}

fn serves(priority: u8) -> bool {
    priority >= SERVING
}

/// How long a machine of a priority listens in vain before it takes the address, when the holder advertises itself at an interval.
pub fn down_time(priority: u8, interval: Duration) -> Duration {
    interval * 3 + skew(priority, interval)
}

fn skew(priority: u8, interval: Duration) -> Duration {
    interval * (256 - u32::from(priority)) / 256
}

#[cfg(test)]
#[path = "election_tests.rs"]
mod tests;
