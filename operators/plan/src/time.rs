//! What is made of the answers of time servers: whether the clock is led to them, set, or left as it is.
//!
//! A step of the clock is the exception. What etcd and Kubernetes do with leases, and Garboard with limits, counts by clocks that no step
//! changes, so a step breaks none of them; but certificates, tokens and schedules go by the date, and one wrong server must not be able
//! to end them. So a machine that has its time already, or runs a part of a cluster, takes a large offset for true only when it is seen in
//! several rounds, and none ever leads to a time before the image was made.

use std::time::{Duration, SystemTime};

use garboard_api::condition::{self, Observation};
use garboard_api::machine::TimeStatus;

/// Largest offset that the clock makes up for by running at another speed, microseconds. The kernel takes at most half a second.
const SLEW_LIMIT_US: u64 = 400_000;
/// Rounds in which a running machine must see a large offset before its clock is set.
const STEP_ROUNDS: u32 = 3;
/// Rounds in a row without a time after which the machine follows nobody.
const LOST_ROUNDS: u32 = 3;
/// Time to the next round when something is to be seen soon: a large offset again, or a server at all.
const SOON: Duration = Duration::from_secs(16);
/// Shortest time between rounds of a machine that follows a server. Public servers want no shorter one (RFC 4330 section 10).
pub const MIN_POLL: Duration = Duration::from_secs(64);
/// Longest time between rounds.
pub const MAX_POLL: Duration = Duration::from_secs(1024);
/// Rounds follow at longer intervals while the offset is smaller than this, microseconds, and at shorter ones while it is larger than
/// four times this.
const CALM_US: u64 = 5_000;

/// A server's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The server, as declared.
    pub server: String,
    /// Its distance from a reference clock, 1..=15.
    pub stratum: u8,
    /// By how much the machine's clock is behind it, microseconds.
    pub offset_us: i64,
    /// By how much that can be wrong, microseconds: the way to the server and from there to its reference clock (RFC 5905: root distance).
    pub distance_us: u64,
}

impl Sample {
    fn interval(&self) -> (i64, i64) {
        let distance = i64::try_from(self.distance_us).unwrap_or(i64::MAX);
        (self.offset_us.saturating_sub(distance), self.offset_us.saturating_add(distance))
    }
}

/// Whom a machine follows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// No round is over yet.
    #[default]
    Unasked,
    /// The clock is led to this server's time.
    Following(TimeStatus),
    /// There is no time that could be relied on.
    Lost(Loss),
}

/// Why there is no time that could be relied on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Loss {
    /// No server has answered usably: what each did, in words.
    NoAnswer(String),
    /// No more than half of the servers agree.
    Contradiction,
    /// They say that it is before the image was made.
    BeforeImage,
    /// They are far from the clock: seen in so few rounds that it is not believed yet.
    FarOff(i64),
    /// The kernel did not let the clock be led: why, in words.
    Clock(String),
}

/// What came of the rounds so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Whom the machine follows.
    pub state: State,
    /// Time to the next round.
    pub wait: Duration,
    /// Time between rounds when nothing is special.
    poll: Duration,
    /// Rounds in a row that saw a large offset.
    far: u32,
    /// Rounds in a row that gave no time.
    without: u32,
}

impl Default for Progress {
    fn default() -> Self {
        Self { state: State::Unasked, wait: Duration::ZERO, poll: MIN_POLL, far: 0, without: 0 }
    }
}

/// What is to be done with the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    Keep,
    /// It is to make up for an offset in time, microseconds.
    Slew(i64),
    /// It is to be set forward by so much, microseconds; negative: back.
    Step(i64),
}

/// What is known of the machine.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// Its time of day.
    pub now: SystemTime,
    /// When the image was made: it cannot be earlier.
    pub made: SystemTime,
    /// Whether its clock was led before in this run of the machine, or parts of a cluster run that go by it.
    pub settled: bool,
}

/// What comes of a round: `samples` are the usable answers, `silence` says in words what the other servers did.
pub fn decide(before: &Progress, samples: &[Sample], silence: &str, facts: Facts) -> (Progress, Action) {
    let followed = match &before.state {
        State::Following(status) => Some(status.server.as_str()),
        State::Unasked | State::Lost(_) => None,
    };
    if samples.is_empty() {
        return (lost(before, Loss::NoAnswer(silence.to_owned())), Action::Keep);
    }
    let Some(sample) = agreed(samples, followed) else {
        return (lost(before, Loss::Contradiction), Action::Keep);
    };
    let offset_us = sample.offset_us;
    if moved(facts.now, offset_us).is_none_or(|then| then < facts.made) {
        return (lost(before, Loss::BeforeImage), Action::Keep);
    }
    let following = |left_us: i64| {
        let offset_milliseconds = left_us / 1000;
        State::Following(TimeStatus { server: sample.server.clone(), stratum: sample.stratum, offset_milliseconds })
    };
    let calm = Progress { state: following(offset_us), wait: MIN_POLL, poll: MIN_POLL, far: 0, without: 0 };
    if offset_us.unsigned_abs() <= SLEW_LIMIT_US {
        let poll = next_poll(before.poll, offset_us.unsigned_abs());
        return (Progress { wait: poll, poll, ..calm }, Action::Slew(offset_us));
    }
    let far = before.far + 1;
    if facts.settled && far < STEP_ROUNDS {
        // What was followed before is still what the clock shows.
        let state = match &before.state {
            State::Following(status) => State::Following(status.clone()),
            State::Unasked | State::Lost(_) => State::Lost(Loss::FarOff(offset_us)),
        };
        return (Progress { state, wait: SOON, poll: MIN_POLL, far, without: 0 }, Action::Keep);
    }
    (Progress { state: following(0), ..calm }, Action::Step(offset_us))
}

/// A round gave no time. One that did before counts for some rounds more.
fn lost(before: &Progress, loss: Loss) -> Progress {
    let without = before.without + 1;
    let state = match &before.state {
        State::Following(status) if without < LOST_ROUNDS => State::Following(status.clone()),
        State::Following(_) | State::Unasked | State::Lost(_) => State::Lost(loss),
    };
    // A server that is away for long is not asked all the time.
    let wait = if without < 2 * LOST_ROUNDS { SOON } else { MIN_POLL };
    Progress { state, wait, poll: MIN_POLL, far: 0, without }
}

fn next_poll(before: Duration, offset_us: u64) -> Duration {
    let next = match offset_us {
        0..=CALM_US => before * 2,
        _ if offset_us > 4 * CALM_US => before / 2,
        _ => before,
    };
    next.clamp(MIN_POLL, MAX_POLL)
}

/// The sample on which more than half of all agree (RFC 5905 section 11.2.1): of those whose intervals have a time in common the one that
/// can be least wrong, or the one that is `followed` if it can hardly be more wrong. None when there is no such time.
fn agreed<'a>(samples: &'a [Sample], followed: Option<&str>) -> Option<&'a Sample> {
    let holds = |sample: &Sample, time: i64| {
        let (low, high) = sample.interval();
        (low..=high).contains(&time)
    };
    let supporters = |time: i64| samples.iter().filter(|sample| holds(sample, time)).count();
    // Most intervals overlap where one of them begins.
    let time = samples.iter().map(|sample| sample.interval().0).max_by_key(|time| supporters(*time))?;
    if 2 * supporters(time) <= samples.len() {
        return None;
    }
    let agreeing = || samples.iter().filter(|sample| holds(sample, time));
    let best = agreeing().min_by_key(|sample| sample.distance_us)?;
    let near = |sample: &&Sample| sample.distance_us <= best.distance_us.saturating_mul(2);
    // A machine that goes from one server to the other at each round would have news to tell each time.
    agreeing().filter(|sample| followed == Some(sample.server.as_str())).find(near).or(Some(best))
}

/// A time and an offset; none if there is no such time.
pub fn moved(time: SystemTime, offset_us: i64) -> Option<SystemTime> {
    let offset = Duration::from_micros(offset_us.unsigned_abs());
    if offset_us < 0 { time.checked_sub(offset) } else { time.checked_add(offset) }
}

/// Whether the machine's clock follows a time server, given those that it knows.
pub fn condition(servers: &[String], state: &State) -> Observation {
    let observation =
        |holds: Option<bool>, reason, message| Observation::new(condition::TIME_SYNCHRONIZED, holds, reason, message);
    match state {
        _ if servers.is_empty() => {
            observation(None, "NoServers", "no time servers are declared, and DHCP names none".to_owned())
        }
        State::Unasked => observation(None, "NotAsked", format!("asks {}", servers.join(", "))),
        State::Following(TimeStatus { server, stratum, offset_milliseconds: _ }) => {
            observation(Some(true), "Following", format!("the clock follows {server}, stratum {stratum}"))
        }
        State::Lost(loss) => observation(Some(false), reason(loss), words(loss)),
    }
}

/// The same in a word for programs.
pub fn reason(loss: &Loss) -> &'static str {
    match loss {
        Loss::NoAnswer(_) => "NoAnswer",
        Loss::Contradiction => "Contradiction",
        Loss::BeforeImage => "BeforeImage",
        Loss::FarOff(_) => "FarOff",
        Loss::Clock(_) => "ClockRefused",
    }
}

/// Why there is no time that could be relied on.
pub fn words(loss: &Loss) -> String {
    match loss {
        Loss::NoAnswer(silence) => format!("no time server has answered: {silence}"),
        Loss::Contradiction => "no more than half of the time servers agree on a time".to_owned(),
        Loss::BeforeImage => "the time servers say that it is before the image was made".to_owned(),
        Loss::FarOff(offset_us) => format!(
            "the clock is {} seconds off; it is set when {STEP_ROUNDS} rounds of questions in a row say so",
            offset_us / 1_000_000
        ),
        Loss::Clock(problem) => problem.clone(),
    }
}

#[cfg(test)]
#[path = "time_tests.rs"]
mod tests;
