//! Keeps the virtual address of the API on one of the control-plane machines whose API server serves.
//!
//! [`VirtualAddress`] takes part in the election while an address is declared: it sends and hears advertisements on the link, and has the
//! address there while this machine holds it. Neither the cluster's store nor an API server is asked for anything. What comes over the link
//! is not authenticated, as ARP is not: whoever is on the link can have the address moved, or take it, as they could without any of this;
//! clients know the API server by its certificate. Only packets of the link itself that are of the declared address count, and each
//! costs little.
//!
//! The address bears a mark of its own, by which it is known again after a restart, and the kernel takes it away when nobody renews it.

mod kernel;
mod question;
mod seat;
mod standing;
#[cfg(test)]
mod testing;

use std::time::Duration;

use garboard_plan::events::Notable;
use garboard_plan::virtual_address::{Advertisement, Declared, Election, Event, Holding, Standing, place, stale};
use garboard_runtime::applier::chain;
use garboard_sys::netlink::{Monitor, Netlink, NetlinkError};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use garboard_plan::virtual_address::declared;

use self::seat::{Problem, Seat};
pub use self::standing::Watch;
use crate::events;
use crate::problems::Problems;

/// After a failure everything is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Shortest time between two looks at the kernel: a starting pod makes a dozen notifications, and a link that goes down must be seen soon.
const PAUSE: Duration = Duration::from_millis(50);
/// What problems are about.
const PART: &str = "virtual address";

/// The task.
pub struct VirtualAddress {
    declared: watch::Receiver<Option<Declared>>,
    standing: watch::Receiver<Option<Standing>>,
    holding: watch::Sender<Holding>,
    notables: mpsc::Sender<Notable>,
    problems: Problems,
    /// What changes in the kernel, while there is something to do.
    monitor: Option<Monitor>,
    began: Instant,
    seat: Option<Seat>,
    /// When to look at the kernel again.
    look: Option<Instant>,
    looked: Instant,
}

impl std::fmt::Debug for VirtualAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VirtualAddress").finish_non_exhaustive()
    }
}

impl VirtualAddress {
    /// Prepares the task, and the channel on which it publishes. While the `standing` of the machine's API server is unknown, what is
    /// there from before stays as it is.
    pub fn new(
        declared: watch::Receiver<Option<Declared>>,
        standing: watch::Receiver<Option<Standing>>,
        notables: mpsc::Sender<Notable>,
        problems: Problems,
    ) -> (Self, watch::Receiver<Holding>) {
        let (holding, receiver) = watch::channel(Holding::default());
        let began = Instant::now();
        let look = Some(began);
        let task = Self {
            declared,
            standing,
            holding,
            notables,
            problems,
            monitor: None,
            began,
            seat: None,
            look,
            looked: began,
        };
        (task, receiver)
    }

    /// Takes part, in the network namespace of the thread, until `stop`, and then gives the address to another machine.
    #[tracing::instrument(name = "virtual address", skip_all)]
    pub async fn run(mut self, stop: CancellationToken) {
        stop.run_until_cancelled(self.take_part()).await;
        self.leave().await;
    }

    async fn take_part(&mut self) {
        loop {
            let outcome = self.catch_up().await;
            self.handle(outcome).await;
            self.publish();
            let wake = self.wake();
            let time =
                async { if let Some(wake) = wake { sleep_until(wake).await } else { std::future::pending().await } };
            // All arms are cancel-safe: they wait, and what they wait for stays until it is taken.
            tokio::select! {
                Ok(()) = self.declared.changed() => self.look = Some(Instant::now()),
                Ok(()) = self.standing.changed() => {
                    let outcome = self.stand().await;
                    self.handle(outcome).await;
                }
                outcome = changed(self.monitor.as_mut()) => {
                    if let Err(error) = outcome {
                        warn!(error = chain(&error), "virtual address");
                        self.monitor = None;
                    }
                    let soon = (self.looked + PAUSE).max(Instant::now());
                    self.look = Some(self.look.map_or(soon, |look| look.min(soon)));
                }
                heard = hear(self.seat.as_ref()) => {
                    let outcome = self.step(heard).await;
                    self.handle(outcome).await;
                }
                () = time => {}
            }
        }
    }

    /// Does what is due.
    async fn catch_up(&mut self) -> Result<(), Problem> {
        if self.look.is_some_and(|look| look <= Instant::now()) {
            self.looked = Instant::now();
            self.look = None;
            let problem = self.settle().await?;
            self.tell(problem);
        }
        let now = self.now();
        match &mut self.seat {
            Some(seat) => seat.tick(now).await,
            None => Ok(()),
        }
    }

    /// Takes part where the machine should, and nowhere else. Says what keeps it from that.
    async fn settle(&mut self) -> Result<Option<String>, Problem> {
        let declared = *self.declared.borrow_and_update();
        let standing = *self.standing.borrow_and_update();
        match (declared, &self.monitor) {
            (None, _) => self.monitor = None,
            // What changes while it is looked at is not missed.
            (Some(_), None) => self.monitor = Some(Monitor::open()?),
            (Some(_), Some(_)) => {}
        }
        let mut netlink = Netlink::open()?;
        let mut observed = kernel::observe(&mut netlink).await?;
        let placed = declared.map(|declared| place(declared.address, &observed).map(|place| (declared, place)));
        let (wanted, problem) = match placed.transpose() {
            Ok(wanted) => (wanted, None),
            Err(problem) => (None, Some(problem.to_string())),
        };
        let stays = |seat: &Seat| wanted.as_ref().is_some_and(|(declared, place)| seat.is_for(*declared, place));
        if !self.seat.as_ref().is_none_or(stays) {
            self.leave().await;
            observed = kernel::observe(&mut netlink).await?;
        }
        let kept = wanted.as_ref().map(|(declared, place)| (place.index, declared.address));
        for (index, address) in stale(&observed, kept) {
            kernel::remove(&mut netlink, index, address).await?;
            info!(%address, index, "virtual address removed");
        }
        let has = observed.addresses.iter().any(|each| each.shared && Some((each.index, each.address.addr())) == kept);
        match (&mut self.seat, wanted, standing) {
            (Some(seat), _, _) => seat.mend(has).await?,
            (None, Some(wanted), Some(standing)) => {
                self.seat = Some(Seat::open(wanted, standing, has, self.now()).await?);
            }
            (None, None, _) | (None, Some(_), None) => {}
        }
        Ok(problem)
    }

    /// The machine's API server is otherwise than before.
    async fn stand(&mut self) -> Result<(), Problem> {
        let standing = *self.standing.borrow_and_update();
        let now = self.now();
        match (standing, &mut self.seat) {
            (Some(standing), Some(seat)) => seat.step(Event::Standing(standing), now).await,
            _ => {
                self.look = Some(Instant::now());
                Ok(())
            }
        }
    }

    async fn step(&mut self, heard: Vec<Advertisement>) -> Result<(), Problem> {
        let now = self.now();
        if let Some(seat) = &mut self.seat {
            for advertisement in heard {
                seat.step(Event::Heard(advertisement), now).await?;
            }
        }
        Ok(())
    }

    /// A machine that cannot do its part leaves it to others, and tries again later.
    async fn handle(&mut self, outcome: Result<(), Problem>) {
        if let Err(problem) = outcome {
            self.tell(Some(chain(&problem)));
            self.leave().await;
            self.look = Some(Instant::now() + RETRY);
        }
    }

    async fn leave(&mut self) {
        let now = self.now();
        let Some(mut seat) = self.seat.take() else { return };
        if let Err(problem) = seat.leave(now).await {
            warn!(problem = chain(&problem), "virtual address");
        }
    }

    fn tell(&self, problem: Option<String>) {
        let differs = self.holding.send_if_modified(|holding| {
            let differs = holding.problem != problem;
            holding.problem.clone_from(&problem);
            differs
        });
        if let Some(problem) = problem.as_ref().filter(|_| differs) {
            warn!(problem, "virtual address");
        }
        self.problems.set(PART, problem);
    }

    fn publish(&mut self) {
        if let Some(notable) = self.seat.as_mut().and_then(Seat::notable) {
            events::hand_over(&self.notables, notable);
        }
        let election = self.seat.as_ref().map(Seat::election);
        let address = self.declared.borrow().map(|declared| declared.address);
        let holder = election.and_then(Election::holder);
        let own = election.is_some_and(Election::holds);
        self.holding.send_if_modified(|holding| {
            let now = Holding { address, holder, own, problem: holding.problem.clone() };
            let differs = *holding != now;
            *holding = now;
            differs
        });
    }

    fn wake(&self) -> Option<Instant> {
        let seat = self.seat.as_ref();
        let election = seat.and_then(|seat| seat.election().deadline()).map(|deadline| self.began + deadline);
        self.look.into_iter().chain(election).chain(seat.and_then(Seat::due)).min()
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }
}

/// Waits until something changes in the kernel that is watched.
async fn changed(monitor: Option<&mut Monitor>) -> Result<(), NetlinkError> {
    match monitor {
        Some(monitor) => monitor.changed().await,
        None => std::future::pending().await,
    }
}

/// Waits for advertisements, where the machine takes part.
async fn hear(seat: Option<&Seat>) -> Vec<Advertisement> {
    match seat {
        Some(seat) => seat.hear().await,
        None => std::future::pending().await,
    }
}
