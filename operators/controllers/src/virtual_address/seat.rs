//! The machine's part in one election: its socket on the link, and the address there.

use std::io;
use std::time::Duration;

use garboard_api::About;
use garboard_plan::events::Notable;
use garboard_plan::virtual_address::{
    Action, Advertisement, Declared, Election, Event, INTERVAL, Place, Standing, read, write,
};
use garboard_sys::arp;
use garboard_sys::netlink::{Netlink, NetlinkError};
use garboard_sys::vrrp::VrrpSocket;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;
use tracing::{debug, info};

use super::kernel;

/// How often the address is renewed, and the link told where it is: what a switch or a neighbour has missed mends itself.
const RENEWAL: Duration = Duration::from_secs(10);
/// How long after a move the link is told of it again: a packet may be lost, and a switch may have been busy.
const ANNOUNCEMENTS: [Duration; 4] =
    [Duration::from_millis(100), Duration::from_millis(400), Duration::from_secs(1), Duration::from_secs(3)];
/// Most packets that are looked at before anything else is done: whoever floods the link delays no advertisement.
const PACKETS: usize = 32;

/// Why this machine takes no part for now.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The kernel refused something.
    #[error(transparent)]
    Kernel(#[from] NetlinkError),
    /// The link cannot be used.
    #[error("cannot speak to the other machines on the link {link}")]
    Socket {
        /// Its name.
        link: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The machine's part in the election for an address, at its place.
pub struct Seat {
    declared: Declared,
    place: Place,
    socket: AsyncFd<VrrpSocket>,
    election: Election,
    /// Whether the address is on the link.
    has: bool,
    /// When to renew it.
    renewal: Instant,
    /// Since when the link is told that it is here, and how often it was told again.
    announced: (Instant, usize),
    /// Whether the machine has taken the address since anybody asked.
    taken: bool,
}

impl Seat {
    /// Takes part at a place, which `has` the address from before or not. Times are counted as the election's.
    ///
    /// # Errors
    /// When the link cannot be used.
    pub async fn open(
        (declared, place): (Declared, Place),
        standing: Standing,
        has: bool,
        now: Duration,
    ) -> Result<Self, Problem> {
        let opened = VrrpSocket::open(place.index, &place.name, place.own).and_then(VrrpSocket::into_async);
        let socket = opened.map_err(|source| Problem::Socket { link: place.name.clone(), source })?;
        let (election, actions) = Election::new(place.own, standing, has, now);
        let (renewal, announced) = (Instant::now(), (Instant::now(), ANNOUNCEMENTS.len()));
        let mut seat = Self { declared, place, socket, election, has, renewal, announced, taken: false };
        seat.act(actions).await?;
        Ok(seat)
    }

    /// Whether it is for that address at that place.
    pub fn is_for(&self, declared: Declared, place: &Place) -> bool {
        self.declared == declared && self.place == *place
    }

    /// The machine's view of the election.
    pub fn election(&self) -> &Election {
        &self.election
    }

    /// Takes in what happened, and does what follows.
    ///
    /// # Errors
    /// When the kernel refuses the address.
    pub async fn step(&mut self, event: Event, now: Duration) -> Result<(), Problem> {
        let actions = self.election.step(event, now);
        self.act(actions).await
    }

    /// Does what is due.
    ///
    /// # Errors
    /// When the kernel refuses the address.
    pub async fn tick(&mut self, now: Duration) -> Result<(), Problem> {
        self.step(Event::Tick, now).await?;
        let now = Instant::now();
        if self.due().is_none_or(|due| due > now) {
            return Ok(());
        }
        if self.renewal <= now {
            return self.take().await;
        }
        self.announced.1 += 1;
        self.announce();
        Ok(())
    }

    /// When something is due beside the election.
    pub fn due(&self) -> Option<Instant> {
        let (since, told) = self.announced;
        let announcement = ANNOUNCEMENTS.get(told).map(|after| since + *after);
        let due = announcement.map_or(self.renewal, |announcement| announcement.min(self.renewal));
        self.election.holds().then_some(due)
    }

    /// Makes good what the kernel has, where that is not what it should be.
    ///
    /// # Errors
    /// When the kernel refuses the address.
    pub async fn mend(&mut self, has: bool) -> Result<(), Problem> {
        match (self.election.holds(), has) {
            (true, false) => {
                self.has = false;
                self.take().await
            }
            // It could not be removed when it was given up.
            (false, true) if !self.has => {
                self.has = true;
                self.release().await
            }
            _ => Ok(()),
        }
    }

    /// Gives up: others need not wait until they miss this machine.
    ///
    /// # Errors
    /// When the kernel does not take the address away.
    pub async fn leave(&mut self, now: Duration) -> Result<(), Problem> {
        self.step(Event::Standing(Standing::Away), now).await?;
        // It may have been there without being held.
        self.release().await
    }

    /// What is to be told of, if the machine has taken the address since the last time.
    pub fn notable(&mut self) -> Option<Notable> {
        let Place { name, own, .. } = &self.place;
        let note = format!("{} is on the link {name} of the machine with {own}", self.declared.address);
        let notable = Notable { about: About::Cluster, warning: false, reason: "VirtualAddressTaken", note };
        std::mem::take(&mut self.taken).then_some(notable)
    }

    /// Waits for advertisements of the declared address; it may be that all that came were others.
    pub async fn hear(&self) -> Vec<Advertisement> {
        let mut heard = Vec::new();
        let Ok(mut ready) = self.socket.readable().await else { return heard };
        for _ in 0..PACKETS {
            match ready.try_io(|socket| socket.get_ref().receive()) {
                Ok(Ok(Some((sender, message)))) => heard.extend(read(self.declared, sender, &message)),
                Ok(Ok(None)) => {}
                // Nothing waits any more; or the link is gone, which is seen in a moment.
                Ok(Err(_)) | Err(_) => break,
            }
        }
        heard
    }

    async fn act(&mut self, actions: Vec<Action>) -> Result<(), Problem> {
        for action in actions {
            match action {
                Action::Send(priority) => self.send(priority),
                Action::Take => self.take().await?,
                // As often as others are mistaken, but not as often as somebody may pretend to be.
                Action::Announce if self.announced.0.elapsed() < INTERVAL => {}
                Action::Announce => {
                    self.announced = (Instant::now(), 0);
                    self.announce();
                }
                Action::Release => self.release().await?,
            }
        }
        Ok(())
    }

    fn send(&self, priority: u8) {
        let message = write(self.declared, priority, INTERVAL);
        if let Err(error) = self.socket.get_ref().send(&message) {
            // A link that is down is seen in a moment.
            debug!(%error, priority, "advertisement not sent");
        }
    }

    /// Has the address on the link, and tells the link.
    async fn take(&mut self) -> Result<(), Problem> {
        // It counts as there from the first moment on, so that it is removed whatever comes between.
        let had = std::mem::replace(&mut self.has, true);
        kernel::lend(&mut Netlink::open()?, &self.place, self.declared.address).await?;
        self.renewal = Instant::now() + RENEWAL;
        self.announce();
        if !had {
            info!(address = %self.declared.address, link = self.place.name, "virtual address taken");
            self.announced = (Instant::now(), 0);
            self.taken = true;
        }
        Ok(())
    }

    async fn release(&mut self) -> Result<(), Problem> {
        if std::mem::take(&mut self.has) {
            kernel::remove(&mut Netlink::open()?, self.place.index, self.declared.address.into()).await?;
            info!(address = %self.declared.address, link = self.place.name, "virtual address released");
        }
        Ok(())
    }

    fn announce(&self) {
        if let Err(error) = arp::announce(self.place.index, self.place.mac, self.declared.address) {
            debug!(%error, "the link is not told");
        }
    }
}
