//! The task that keeps the DHCPv4 lease of one link.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use garboard_plan::network::dhcp::{Client, Destination, Event, Message};
use garboard_plan::network::lease::{Lease, Reply};
use garboard_sys::packet::DhcpSocket;
use garboard_sys::{clock, rng};
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::wire;
use crate::passing;

const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;

/// Which link a client works on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LinkIdentity {
    pub index: u32,
    pub name: String,
    pub mac: [u8; 6],
}

/// What a client has reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Progress {
    pub lease: Option<Lease>,
    /// What it does, in a word.
    pub phase: &'static str,
}

/// A running client; ends when dropped.
#[derive(Debug)]
pub(super) struct DhcpLink {
    pub identity: LinkIdentity,
    carrier: watch::Sender<bool>,
    progress: watch::Receiver<Progress>,
    task: JoinHandle<()>,
    file: PathBuf,
}

impl DhcpLink {
    /// Starts a client that continues with the lease left in `directory`, if there is one. It calls `changed` when its
    /// progress changes.
    pub fn start(
        identity: LinkIdentity,
        directory: &Path,
        hostname: watch::Receiver<String>,
        changed: Arc<Notify>,
        stop: CancellationToken,
    ) -> Self {
        let file = directory.join(format!("{}.lease", identity.name));
        let lease = passing::load(&file).filter(|lease: &Lease| !lease.is_expired(clock::boot_time()));
        let client = Client::new(lease, seed(identity.mac));
        let (progress_sender, progress) =
            watch::channel(Progress { lease: client.lease().cloned(), phase: client.phase() });
        let (carrier, carrier_receiver) = watch::channel(false);
        let task = Task {
            client,
            identity: identity.clone(),
            file: file.clone(),
            hostname,
            carrier: carrier_receiver,
            progress: progress_sender,
            changed,
            sockets: Sockets::default(),
        };
        Self { identity, carrier, progress, task: tokio::spawn(task.run(stop)), file }
    }

    pub fn set_carrier(&self, carrier: bool) {
        self.carrier.send_if_modified(|current| std::mem::replace(current, carrier) != carrier);
    }

    pub fn progress(&self) -> Progress {
        self.progress.borrow().clone()
    }

    /// Ends the client and forgets its lease.
    pub fn discard(self) {
        self.task.abort();
        forget(&self.file);
    }
}

impl Drop for DhcpLink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The sockets of a transaction; closed while nothing is asked.
#[derive(Debug, Default)]
struct Sockets {
    /// Receives everything, and sends while no address may be used.
    link: Option<AsyncFd<DhcpSocket>>,
    /// Sends from the leased address. It also keeps the kernel from telling the server that nobody listens.
    address: Option<UdpSocket>,
}

impl Sockets {
    fn send(&mut self, identity: &LinkIdentity, message: &Message, from: Ipv4Addr, bytes: &[u8]) -> io::Result<()> {
        if self.link.is_none() {
            self.link = Some(DhcpSocket::open(identity.index)?.into_async()?);
        }
        let server = match message.destination {
            Destination::Link => {
                return self.link.as_ref().map_or(Ok(()), |socket| socket.get_ref().broadcast(bytes));
            }
            Destination::Server(server) => server,
            Destination::AnyServer => Ipv4Addr::BROADCAST,
        };
        let socket = match &self.address {
            Some(socket) => socket,
            None => {
                let socket = UdpSocket::bind(SocketAddrV4::new(from, CLIENT_PORT))?;
                socket.set_broadcast(true)?;
                socket.set_nonblocking(true)?;
                self.address.insert(socket)
            }
        };
        socket.send_to(bytes, SocketAddrV4::new(server, SERVER_PORT))?;
        Ok(())
    }

    /// Waits for the next message to that hardware address. Dropping the future loses nothing.
    async fn receive(&mut self, mac: [u8; 6]) -> Reply {
        loop {
            let Some(socket) = &self.link else { return std::future::pending().await };
            let received = match socket.readable().await {
                Ok(mut ready) => match ready.try_io(|socket| socket.get_ref().receive()) {
                    Ok(received) => received,
                    Err(_would_block) => continue,
                },
                Err(error) => Err(error),
            };
            match received {
                Ok((sender, bytes)) => match wire::decode(&bytes, mac) {
                    Some(reply) => return reply,
                    None => debug!(%sender, "message for another client, or no DHCP message"),
                },
                // The link went down or away: the carrier says so too, and the next message opens a new socket.
                Err(error) => {
                    debug!(%error, "DHCP socket failed");
                    self.link = None;
                }
            }
        }
    }
}

struct Task {
    client: Client,
    identity: LinkIdentity,
    file: PathBuf,
    hostname: watch::Receiver<String>,
    carrier: watch::Receiver<bool>,
    progress: watch::Sender<Progress>,
    changed: Arc<Notify>,
    sockets: Sockets,
}

impl Task {
    #[tracing::instrument(name = "dhcp", skip_all, fields(link = self.identity.name))]
    async fn run(mut self, stop: CancellationToken) {
        self.carrier.mark_changed();
        loop {
            let deadline = self.client.deadline();
            // All arms are cancel-safe: they wait, and what was received stays in the socket until it is taken.
            let event = tokio::select! {
                () = stop.cancelled() => return,
                changed = self.carrier.changed() => match changed {
                    Ok(()) if *self.carrier.borrow_and_update() => Event::CarrierUp,
                    Ok(()) => Event::CarrierDown,
                    Err(_) => return,
                },
                reply = self.sockets.receive(self.identity.mac) => Event::Received(reply),
                () = wait_until(deadline) => Event::Timer,
            };
            debug!(?event, "event");
            let message = self.client.handle(event, clock::boot_time());
            self.publish();
            if let Some(message) = message {
                self.send(&message);
            }
            if matches!(self.client.phase(), "bound" | "no carrier") {
                self.sockets = Sockets::default();
            }
        }
    }

    /// A message that cannot be sent is not repeated before its time: the link may be going down.
    fn send(&mut self, message: &Message) {
        let from = self.client.lease().map_or(Ipv4Addr::UNSPECIFIED, |lease| lease.address.addr());
        let hostname = self.hostname.borrow().clone();
        let bytes = wire::encode(message, self.identity.mac, &hostname);
        match self.sockets.send(&self.identity, message, from, &bytes) {
            Ok(()) => debug!(kind = ?message.kind, "sent"),
            Err(error) => warn!(%error, kind = ?message.kind, "cannot send a DHCP message"),
        }
    }

    fn publish(&mut self) {
        let progress = Progress { lease: self.client.lease().cloned(), phase: self.client.phase() };
        let before = self.progress.send_replace(progress.clone());
        if before == progress {
            return;
        }
        match (&before.lease, &progress.lease) {
            (old, new) if old == new => {}
            (Some(old), Some(new)) if old.address == new.address => debug!(address = %new.address, "lease extended"),
            (_, Some(lease)) => {
                let seconds = lease.term.map(|term| term.expire.saturating_sub(clock::boot_time()).as_secs());
                info!(address = %lease.address, server = %lease.server, seconds, "lease granted");
            }
            (Some(old), None) => warn!(address = %old.address, "lease lost"),
            (None, None) => {}
        }
        if before.lease != progress.lease {
            match &progress.lease {
                Some(lease) => store(&self.file, lease),
                None => forget(&self.file),
            }
        }
        self.changed.notify_one();
    }
}

async fn wait_until(deadline: Option<Duration>) {
    match deadline {
        Some(deadline) => tokio::time::sleep(deadline.saturating_sub(clock::boot_time())).await,
        None => std::future::pending().await,
    }
}

fn seed(mac: [u8; 6]) -> u64 {
    let mut bytes = [0; 8];
    if !rng::is_ready() || rng::fill(&mut bytes).is_err() {
        // So early after power-on the hardware address and the time must do; nothing secret depends on it.
        let [a, b, c, d, e, f] = mac;
        return u64::from_be_bytes([0, 0, a, b, c, d, e, f]) ^ clock::boot_time().as_nanos() as u64;
    }
    u64::from_ne_bytes(bytes)
}

fn store(file: &Path, lease: &Lease) {
    if let Err(error) = passing::store(file, lease) {
        warn!(file = %file.display(), %error, "cannot store the lease");
    }
}

fn forget(file: &Path) {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            warn!(file = %file.display(), %error, "cannot remove the stored lease");
        }
        _ => {}
    }
}
