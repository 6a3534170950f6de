//! Leads the machine's clock to the time of its servers.
//!
//! All servers are asked in rounds; what comes of a round is decided in [`garboard_plan::time`], and a [`Clock`] carries it out. A name
//! is looked up again when none of its addresses has answered.

mod query;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::future::join_all;
use garboard_api::About;
use garboard_api::machine::MachineTime;
use garboard_catalog::{etcd, kubelet};
use garboard_plan::events::Notable;
use garboard_plan::time::{self as plan, Action, Facts, Loss, Progress, Sample, State};
use garboard_runtime::applier::chain;
use garboard_supervisor::status::ServiceStatus;
use garboard_sys::clock::{self, ClockError};
use tokio::net::lookup_host;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use self::query::{Answer, query};
use crate::events;
use crate::network::NodeAddresses;

/// Port of NTP.
const NTP: u16 = 123;
/// Time that a lookup of a name has.
const LOOKUP: Duration = Duration::from_secs(3);
/// Addresses of one name that are asked.
const ADDRESSES: usize = 4;

/// The machine's time of day.
pub trait Clock: Send + Sync + 'static {
    /// What it shows.
    fn now(&self) -> SystemTime;
    /// Whether it was led in this run of the machine.
    fn is_synchronized(&self) -> bool;
    /// Has it make up for an offset, microseconds, in a time that fits the time between rounds.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn slew(&self, offset_us: i64, poll: Duration) -> Result<(), ClockError>;
    /// Sets it forward by an offset, microseconds.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn step(&self, offset_us: i64) -> Result<(), ClockError>;
}

/// The kernel's clock.
#[derive(Clone, Copy, Debug)]
pub struct KernelClock;

impl Clock for KernelClock {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    fn is_synchronized(&self) -> bool {
        clock::is_synchronized().unwrap_or(false)
    }

    fn slew(&self, offset_us: i64, poll: Duration) -> Result<(), ClockError> {
        clock::slew(offset_us, poll)
    }

    fn step(&self, offset_us: i64) -> Result<(), ClockError> {
        clock::step_to(plan::moved(SystemTime::now(), offset_us).ok_or(ClockError::Range)?)?;
        // A clock that was set counts as not synchronised until it is led again.
        clock::slew(0, plan::MIN_POLL)
    }
}

/// What the machine has of its time servers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TimeView {
    /// The servers.
    pub servers: Vec<String>,
    /// Which of them it follows.
    pub state: State,
}

impl TimeView {
    /// Whether the servers that a machine has by its declaration and its network have been asked once, or it has none.
    pub fn has_asked(&self, declared: &MachineTime, network: &NodeAddresses) -> bool {
        let servers = servers(declared, network);
        servers.is_empty() || (self.servers == servers && self.state != State::Unasked)
    }
}

/// The servers of a machine: those declared, or else those that DHCP names.
fn servers(declared: &MachineTime, network: &NodeAddresses) -> Vec<String> {
    match &*declared.servers {
        [] => network.time_servers.iter().map(IpAddr::to_string).collect(),
        declared => declared.to_owned(),
    }
}

/// What the task looks at.
#[derive(Clone, Debug)]
pub struct Watched {
    /// Where the time comes from, once a Machine is declared.
    pub config: watch::Receiver<Option<MachineTime>>,
    /// What the network has reached.
    pub network: watch::Receiver<NodeAddresses>,
    /// What the services are.
    pub services: watch::Receiver<Arc<Vec<ServiceStatus>>>,
}

/// The task that leads the clock.
#[derive(Debug)]
pub struct Timekeeper<C> {
    watched: Watched,
    clock: C,
    /// When the image was made.
    made: SystemTime,
    port: u16,
    view: watch::Sender<TimeView>,
    notables: mpsc::Sender<Notable>,
    progress: Progress,
    next: Instant,
    resolved: BTreeMap<String, Vec<IpAddr>>,
    /// Servers that do not want to be asked, and until when; for ever without an end.
    quiet: BTreeMap<IpAddr, Option<Instant>>,
}

impl<C: Clock> Timekeeper<C> {
    /// Prepares the task, and the channel on which it publishes. `made`: when the image was made.
    pub fn new(
        watched: Watched,
        clock: C,
        made: SystemTime,
        notables: mpsc::Sender<Notable>,
    ) -> (Self, watch::Receiver<TimeView>) {
        let (view, receiver) = watch::channel(TimeView::default());
        let keeper = Self {
            watched,
            clock,
            made,
            port: NTP,
            view,
            notables,
            progress: Progress::default(),
            next: Instant::now(),
            resolved: BTreeMap::new(),
            quiet: BTreeMap::new(),
        };
        (keeper, receiver)
    }

    /// Leads the clock until `stop`; then it goes on as it was led last.
    #[tracing::instrument(name = "time", skip_all)]
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            let network = self.watched.network.borrow_and_update().clone();
            let declared = self.watched.config.borrow_and_update().clone();
            let servers = declared.map(|declared| servers(&declared, &network)).unwrap_or_default();
            self.know(&servers);
            let can_ask = !servers.is_empty() && !network.addresses.is_empty();
            let next = self.next;
            // All arms are cancel-safe: they wait, and what is asked in a round that is broken off is asked again.
            tokio::select! {
                () = stop.cancelled() => return,
                Ok(()) = self.watched.config.changed() => {}
                Ok(()) = self.watched.network.changed() => {
                    if !matches!(self.progress.state, State::Following(_)) {
                        self.next = Instant::now();
                    }
                }
                () = sleep_until(next), if can_ask => {
                    tokio::select! {
                        () = stop.cancelled() => return,
                        (samples, silence) = self.ask(&servers) => self.follow(&samples, &silence),
                    }
                }
            }
        }
    }

    /// Other servers than before are asked at once, and nothing counts of what the others said.
    fn know(&mut self, servers: &[String]) {
        if self.view.borrow().servers == servers {
            return;
        }
        info!(?servers, "time servers");
        self.progress = Progress::default();
        self.next = Instant::now();
        self.resolved.clear();
        self.quiet.clear();
        self.view.send_replace(TimeView { servers: servers.to_owned(), state: State::Unasked });
    }

    /// Asks all servers at once. Returns the usable answers, and what the others did in words.
    async fn ask(&mut self, servers: &[String]) -> (Vec<Sample>, String) {
        let now = Instant::now();
        self.quiet.retain(|_, until| until.is_none_or(|until| now < until));
        let port = self.port;
        let unknown = servers.iter().filter(|server| !self.resolved.contains_key(*server));
        let found = join_all(unknown.map(|server| async move { (server.clone(), resolve(server, port).await) })).await;
        let mut silence = Vec::new();
        for (server, found) in found {
            match found {
                Ok(addresses) => drop(self.resolved.insert(server, addresses)),
                Err(problem) => silence.push(format!("{server}: {problem}")),
            }
        }
        let asked = self.resolved.iter().flat_map(|(server, addresses)| {
            let willing = addresses.iter().filter(|address| !self.quiet.contains_key(*address));
            willing.map(|address| (server.clone(), *address))
        });
        let clock = &self.clock;
        let answers = join_all(asked.map(|(server, address)| async move {
            let answer = query(clock, SocketAddr::new(address, port)).await;
            (server, address, answer)
        }));
        let mut samples = Vec::new();
        for (server, address, answer) in answers.await {
            match answer {
                Answer::Time { stratum, offset_us, distance_us } => {
                    debug!(server, %address, stratum, offset_us, distance_us, "answer");
                    samples.push(Sample { server, stratum, offset_us, distance_us });
                    continue;
                }
                Answer::TooOften => drop(self.quiet.insert(address, Some(now + plan::MAX_POLL))),
                Answer::Unwelcome => drop(self.quiet.insert(address, None)),
                Answer::Unusable(_) | Answer::Unreachable(_) | Answer::Silence => {}
            }
            debug!(server, %address, ?answer, "no time");
            silence.push(format!("{address}: {answer}"));
        }
        // A name may lead elsewhere by now. One that leads to unwilling servers only is of no use either.
        self.resolved.retain(|server, _| samples.iter().any(|sample| sample.server == *server));
        if samples.is_empty() && silence.is_empty() {
            silence.push("the servers do not want to be asked".to_owned());
        }
        (samples, silence.join("; "))
    }

    fn follow(&mut self, samples: &[Sample], silence: &str) {
        let runs = |status: &ServiceStatus| [etcd::NAME, kubelet::NAME].contains(&status.name.as_str());
        let settled = self.clock.is_synchronized() || self.watched.services.borrow().iter().any(runs);
        let facts = Facts { now: self.clock.now(), made: self.made, settled };
        let (mut progress, action) = plan::decide(&self.progress, samples, silence, facts);
        let done = match action {
            Action::Keep => Ok(()),
            Action::Slew(offset_us) => self.clock.slew(offset_us, progress.wait),
            Action::Step(offset_us) => self.clock.step(offset_us).map(|()| self.tell_step(offset_us, settled)),
        };
        if let Err(error) = done {
            progress.state = State::Lost(Loss::Clock(chain(&error)));
        }
        self.report(&progress.state);
        self.next = Instant::now() + spread(progress.wait);
        self.progress = progress;
        let state = self.progress.state.clone();
        self.view.send_if_modified(|view| {
            let differs = view.state != state;
            view.state = state;
            differs
        });
    }

    fn tell_step(&self, offset_us: i64, settled: bool) {
        let direction = if offset_us < 0 { "back" } else { "forward" };
        let seconds = Duration::from_micros(offset_us.unsigned_abs()).as_secs_f64();
        info!(seconds, direction, "clock set");
        if settled {
            let note = format!("the clock was set {direction} by {seconds:.1} seconds, as the time servers say");
            events::hand_over(
                &self.notables,
                Notable { about: About::Machine, warning: true, reason: "ClockSet", note },
            );
        }
    }

    fn report(&self, state: &State) {
        match (&self.progress.state, state) {
            (State::Following(before), State::Following(now)) if before.server == now.server => {}
            (_, State::Following(now)) => info!(server = now.server, stratum = now.stratum, "the clock follows"),
            (State::Lost(before), State::Lost(now)) if plan::reason(before) == plan::reason(now) => {}
            (_, State::Lost(loss)) => warn!(problem = plan::words(loss), "the clock follows no server"),
            (_, State::Unasked) => {}
        }
    }
}

async fn resolve(server: &str, port: u16) -> Result<Vec<IpAddr>, String> {
    let found = match timeout(LOOKUP, lookup_host((server, port))).await {
        Ok(found) => found.map_err(|error| error.to_string())?,
        Err(_) => return Err("its name is not found in time".to_owned()),
    };
    let mut addresses = garboard_plan::network::distinct(found.map(|address| address.ip()));
    addresses.truncate(ADDRESSES);
    Ok(addresses)
}

/// A time a twentieth longer at most, so that machines which start together do not ask together for ever.
fn spread(wait: Duration) -> Duration {
    wait + wait.mul_f64(f64::from(clock::boot_time().subsec_micros() % 1000) / 20_000.0)
}

#[cfg(test)]
#[path = "time/tests.rs"]
mod tests;
