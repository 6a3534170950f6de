//! The pod network of this machine: reservations, and what the kernel is made to hold for them.
//!
//! Inputs are the configuration and the runtime's requests; outputs are links, addresses, routes, the firewall's table and
//! a reservation on disk for each attachment. A reservation is written before the kernel is asked for anything and removed
//! after the kernel has given everything back, so that a crash at any point leaves nothing that is not found again.
//!
//! What is asynchronous waits for other requests and for rtnetlink only. Files and the firewall's table are written on the
//! way, which blocks the thread for a moment, so each request is meant to have a thread of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, RwLock, RwLockReadGuard};
use tracing::{info, warn};

use crate::allocator::Allocator;
use crate::attachment::{Attachment, AttachmentId, PortMapping, mac_of};
use crate::backend::bridge::{Bridge, gateway_of};
use crate::backend::{self, BackendError};
use crate::config::{Backend, Config};
use crate::interface::InterfaceName;
use crate::netfilter::NetfilterError;
use crate::spec::{CniError, Code, chain};
use crate::store::{Store, StoreError};
use crate::wire::Attached;
use crate::{firewall, host_ports};

/// The network could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// Links, addresses or settings.
    #[error("set up the links")]
    Backend(#[from] BackendError),
    /// Connections to other machines.
    #[error("connect to the other machines")]
    Connect(#[source] BackendError),
    /// The firewall.
    #[error("set up the firewall")]
    Firewall(#[source] NetfilterError),
    /// Reservations.
    #[error("read the reservations")]
    Store(#[from] StoreError),
    /// A change that a running daemon cannot make.
    #[error("bridge: cannot change from {from} to {to} while the machine runs")]
    BridgeRenamed {
        /// The name in use.
        from: InterfaceName,
        /// The name asked for.
        to: InterfaceName,
    },
}

/// What is set up.
#[derive(Debug)]
struct Live {
    config: Arc<Config>,
    bridge: Bridge,
}

#[derive(Debug)]
struct Reservations {
    attachments: BTreeMap<AttachmentId, Attachment>,
    allocators: Vec<Allocator>,
    /// Attachments that a request is working on: the next request for the same one waits.
    busy: BTreeSet<AttachmentId>,
}

/// The pod network.
#[derive(Debug)]
pub struct Network {
    store: Store,
    /// Requests hold it for reading, a change of the configuration for writing; the error tells why it is not set up.
    live: RwLock<Result<Live, String>>,
    reservations: Mutex<Reservations>,
    freed: Notify,
}

/// Poisoning means that another request panicked; what the lock guards is still consistent, because every change of it is
/// a single insertion or removal.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Network {
    /// Reads the reservations, forgets those whose link is gone, and removes links that have no reservation.
    ///
    /// # Errors
    /// When reservations or links cannot be read.
    pub async fn open(directory: &Path) -> Result<Self, NetworkError> {
        let store = Store::open(directory)?;
        let (attachments, damaged) = store.load()?;
        for path in damaged {
            warn!(path = %path.display(), "removing a file that is no reservation");
            let _ = std::fs::remove_file(path);
        }
        let links: BTreeSet<String> = backend::host_links().await?.into_iter().collect();
        let (kept, gone): (Vec<_>, Vec<_>) =
            attachments.into_iter().partition(|attachment| links.contains(attachment.host_link.as_str()));
        for attachment in gone {
            warn!(attachment = %attachment.id, "forgetting a reservation whose link is gone");
            // A crash between the making of a link and its marking leaves one that is not in the list.
            backend::detach(attachment.host_link.as_str()).await?;
            store.remove(&attachment.id)?;
        }
        for link in links.iter().filter(|link| kept.iter().all(|kept| kept.host_link.as_str() != *link)) {
            warn!(%link, "removing a link that has no reservation");
            backend::detach(link).await?;
        }
        info!(attachments = kept.len(), "reservations read");
        let attachments = kept.into_iter().map(|attachment| (attachment.id.clone(), attachment)).collect();
        let reservations = Reservations { attachments, allocators: Vec::new(), busy: BTreeSet::new() };
        Ok(Self {
            store,
            live: RwLock::new(Err("it has no configuration yet".to_owned())),
            reservations: Mutex::new(reservations),
            freed: Notify::new(),
        })
    }

    /// Tells whether the machine can be made so while it runs.
    ///
    /// # Errors
    /// When a change would take the pods' links away.
    pub async fn accepts(&self, config: &Config) -> Result<(), NetworkError> {
        match &*self.live.read().await {
            Ok(Live { config: old, .. }) if old.bridge != config.bridge => {
                Err(NetworkError::BridgeRenamed { from: old.bridge.clone(), to: config.bridge.clone() })
            }
            _ => Ok(()),
        }
    }

    /// Makes the machine as the configuration says, after the requests that are under way. An empty list of pod networks
    /// means that the machine is not ready for pods. `mtu_bytes` is the largest packet of a pod's interface; `connect` makes
    /// the connections to other machines what the configuration says, while the firewall keeps everybody else out of them.
    ///
    /// # Errors
    /// When the kernel refuses; what was set up before stays in use, or, when nothing was, the reason is told to runtimes.
    pub async fn configure(
        &self,
        config: Arc<Config>,
        mtu_bytes: u32,
        connect: impl AsyncFnOnce() -> Result<(), BackendError>,
    ) -> Result<(), NetworkError> {
        let mut live = self.live.write().await;
        match self.prepare(config, mtu_bytes, connect).await {
            Ok(prepared) => {
                *live = prepared;
                Ok(())
            }
            Err(error) => {
                refuse(&mut live, &error);
                Err(error)
            }
        }
    }

    /// Tells runtimes why no pod can be attached, unless what was set up before is still in use.
    pub async fn refuse(&self, error: &NetworkError) {
        refuse(&mut *self.live.write().await, error);
    }

    async fn prepare(
        &self,
        config: Arc<Config>,
        mtu_bytes: u32,
        connect: impl AsyncFnOnce() -> Result<(), BackendError>,
    ) -> Result<Result<Live, String>, NetworkError> {
        // They stay what they are while no request holds `live`.
        let attachments: Vec<Attachment> = lock(&self.reservations).attachments.values().cloned().collect();
        let bridge = Bridge::prepare(&config, mtu_bytes, &attachments).await?;
        let table = firewall::table(&config, attachments.iter());
        match config.backend {
            Backend::Bridge => {
                connect().await.map_err(NetworkError::Connect)?;
                firewall::replace(&table).map_err(NetworkError::Firewall)?;
            }
            Backend::Vxlan(_) => {
                firewall::replace(&table).map_err(NetworkError::Firewall)?;
                connect().await.map_err(NetworkError::Connect)?;
            }
        }
        let taken = || attachments.iter().flat_map(|attachment| attachment.addresses.iter().copied());
        let allocators = config.pod_cidrs.iter().map(|&network| Allocator::new(network, taken())).collect();
        lock(&self.reservations).allocators = allocators;
        if config.pod_cidrs.is_empty() {
            return Ok(Err("the machine has no addresses for pods yet (podCIDRs is empty)".to_owned()));
        }
        info!(networks = ?config.pod_cidrs, mtu_bytes, "pod network set up");
        Ok(Ok(Live { config, bridge }))
    }

    /// Gives interfaces of pods to come another MTU.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn set_mtu(&self, mtu_bytes: u32) -> Result<(), NetworkError> {
        if let Ok(live) = &mut *self.live.write().await {
            live.bridge.set_mtu(mtu_bytes).await?;
            info!(mtu_bytes, "pod network follows the MTU of the underlay");
        }
        Ok(())
    }

    /// Tells whether pods can be attached.
    ///
    /// # Errors
    /// The reason why not.
    pub async fn status(&self) -> Result<(), CniError> {
        self.live(Code::NotAvailable).await.map(|_| ())
    }

    async fn live(&self, code: Code) -> Result<RwLockReadGuard<'_, Result<Live, String>>, CniError> {
        let live = self.live.read().await;
        if let Err(reason) = &*live {
            return Err(CniError {
                code,
                msg: "the pod network is not ready".to_owned(),
                details: Some(reason.clone()),
            });
        }
        Ok(live)
    }

    /// Attaches a pod.
    ///
    /// # Errors
    /// When it is attached already, no address or host port is free, or the kernel refuses; nothing is left then.
    pub async fn add(
        &self,
        id: &AttachmentId,
        network: String,
        pod: Option<String>,
        ports: Vec<PortMapping>,
        netns: &OwnedFd,
    ) -> Result<Attached, CniError> {
        let guard = self.live(Code::TryAgainLater).await?;
        let Ok(live) = &*guard else {
            return Err(CniError::new(Code::TryAgainLater, "the pod network is not ready"));
        };
        let _turn = self.turn(id).await;
        let attachment = self.reserve(id, network, pod, ports)?;
        if let Err(error) = self.give(&live.bridge, &attachment, netns).await {
            if let Err(undo) = self.give_back(&attachment).await {
                warn!(attachment = %id, error = %undo, "cannot undo a failed attachment");
            }
            return Err(error);
        }
        info!(attachment = %id, pod = attachment.pod, addresses = ?attachment.addresses, "attached");
        let networks = &live.config.pod_cidrs;
        let addresses =
            attachment.addresses.iter().filter_map(|&pod| Some((pod, gateway_of(networks, pod)?))).collect();
        let Attachment { host_link, mac, .. } = attachment;
        Ok(Attached { host_link: host_link.into(), mac, mtu_bytes: live.bridge.mtu_bytes(), addresses })
    }

    /// Detaches a pod; nothing happens when it is not attached.
    ///
    /// # Errors
    /// When the kernel refuses; the reservation stays then.
    pub async fn del(&self, id: &AttachmentId) -> Result<(), CniError> {
        let _unchanged = self.live.read().await;
        let _turn = self.turn(id).await;
        let attachment = lock(&self.reservations).attachments.get(id).cloned();
        match attachment {
            Some(attachment) => {
                self.give_back(&attachment).await?;
                info!(attachment = %id, "detached");
                Ok(())
            }
            None => backend::detach(&id.host_link()).await.map_err(|error| kernel("detach", &error)),
        }
    }

    /// Replaces the host ports of an attachment.
    ///
    /// # Errors
    /// When it is not attached, another pod has a port, or the kernel refuses.
    pub async fn set_ports(&self, id: &AttachmentId, ports: Vec<PortMapping>) -> Result<(), CniError> {
        let _unchanged = self.live(Code::TryAgainLater).await?;
        let _turn = self.turn(id).await;
        let (before, after) = {
            let mut reservations = lock(&self.reservations);
            reservations.refuse_clashes(id, &ports)?;
            let attachment = reservations.attachments.get_mut(id).ok_or_else(|| unknown(id))?;
            let before = attachment.clone();
            attachment.ports = ports;
            (before, attachment.clone())
        };
        self.store.save(&after).map_err(|error| CniError::caused(Code::Io, "write the reservation", &error))?;
        host_ports::close(&before).map_err(|error| kernel("close the host ports", &error))?;
        host_ports::open(&after).map_err(|error| kernel("open the host ports", &error))
    }

    /// Compares a pod's attachment with its reservation.
    ///
    /// # Errors
    /// When they differ, or the kernel refuses to say.
    pub async fn check(&self, id: &AttachmentId, netns: &OwnedFd) -> Result<(), CniError> {
        let guard = self.live(Code::TryAgainLater).await?;
        let Ok(live) = &*guard else { return Err(unknown(id)) };
        let _turn = self.turn(id).await;
        let attachment = lock(&self.reservations).attachments.get(id).cloned().ok_or_else(|| unknown(id))?;
        live.bridge.check(&attachment, netns.as_fd()).await.map_err(|error| kernel("check", &error))?;
        match host_ports::are_open(&attachment) {
            Ok(true) => Ok(()),
            Ok(false) => Err(CniError::new(Code::Changed, "a host port is not open")),
            Err(error) => Err(kernel("read the host ports", &error)),
        }
    }

    /// Detaches all pods of a network but these.
    ///
    /// # Errors
    /// The first that could not be detached; the others are tried all the same.
    pub async fn gc(&self, network: &str, valid: &[AttachmentId]) -> Result<(), CniError> {
        let stale: Vec<AttachmentId> = lock(&self.reservations)
            .attachments
            .values()
            .filter(|attachment| attachment.network == network && !valid.contains(&attachment.id))
            .map(|attachment| attachment.id.clone())
            .collect();
        let mut result = Ok(());
        for id in stale {
            warn!(attachment = %id, "detaching what the runtime no longer knows");
            result = result.and(self.del(&id).await);
        }
        result
    }

    fn reserve(
        &self,
        id: &AttachmentId,
        network: String,
        pod: Option<String>,
        ports: Vec<PortMapping>,
    ) -> Result<Attachment, CniError> {
        let mut reservations = lock(&self.reservations);
        if reservations.attachments.contains_key(id) {
            return Err(CniError::new(Code::AlreadyAttached, format!("{id} is attached already")));
        }
        reservations.refuse_clashes(id, &ports)?;
        let addresses = reservations.take_addresses()?;
        let host_link = InterfaceName::try_from(id.host_link())
            .map_err(|error| CniError::caused(Code::InvalidEnvironment, "name the link", &error))?;
        let mac = mac_of(addresses.first().copied().unwrap_or(IpAddr::from([0; 4])));
        let attachment = Attachment { id: id.clone(), network, pod, host_link, mac, addresses, ports };
        reservations.attachments.insert(id.clone(), attachment.clone());
        Ok(attachment)
    }

    /// Has the kernel make what was reserved for an attachment.
    async fn give(&self, bridge: &Bridge, attachment: &Attachment, netns: &OwnedFd) -> Result<(), CniError> {
        self.store.save(attachment).map_err(|error| CniError::caused(Code::Io, "write the reservation", &error))?;
        bridge.attach(attachment, netns.as_fd()).await.map_err(|error| kernel("attach", &error))?;
        host_ports::open(attachment).map_err(|error| kernel("open the host ports", &error))
    }

    /// Takes back what an attachment was given. The addresses are free only when nothing of it is left.
    async fn give_back(&self, attachment: &Attachment) -> Result<(), CniError> {
        let ports = host_ports::close(attachment).map_err(|error| kernel("close the host ports", &error));
        let link = backend::detach(attachment.host_link.as_str()).await.map_err(|error| kernel("detach", &error));
        ports.and(link)?;
        self.store
            .remove(&attachment.id)
            .map_err(|error| CniError::caused(Code::Io, "remove the reservation", &error))?;
        let mut reservations = lock(&self.reservations);
        reservations.attachments.remove(&attachment.id);
        for &address in &attachment.addresses {
            reservations.allocators.iter_mut().for_each(|allocator| allocator.release(address));
        }
        Ok(())
    }

    /// Waits until no other request works on the same attachment.
    async fn turn(&self, id: &AttachmentId) -> Turn<'_> {
        loop {
            // It sees every turn that ends from here on.
            let freed = self.freed.notified();
            if lock(&self.reservations).busy.insert(id.clone()) {
                return Turn { network: self, id: id.clone() };
            }
            freed.await;
        }
    }
}

/// The exclusive right to work on an attachment.
struct Turn<'a> {
    network: &'a Network,
    id: AttachmentId,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        lock(&self.network.reservations).busy.remove(&self.id);
        self.network.freed.notify_waiters();
    }
}

impl Reservations {
    /// One address of each network, or none.
    fn take_addresses(&mut self) -> Result<Vec<IpAddr>, CniError> {
        let mut addresses = Vec::new();
        for index in 0..self.allocators.len() {
            match self.allocators[index].take() {
                Ok(address) => addresses.push(address),
                Err(exhausted) => {
                    for (allocator, address) in self.allocators.iter_mut().zip(addresses) {
                        allocator.release(address);
                    }
                    return Err(CniError::new(Code::AddressesExhausted, exhausted.to_string()));
                }
            }
        }
        Ok(addresses)
    }

    fn refuse_clashes(&self, id: &AttachmentId, ports: &[PortMapping]) -> Result<(), CniError> {
        for other in self.attachments.values().filter(|other| other.id != *id) {
            if let Some(port) = ports.iter().find(|port| other.ports.iter().any(|taken| taken.clashes(port))) {
                let holder = other.pod.clone().unwrap_or_else(|| other.id.to_string());
                let msg = format!("host port {} ({:?}) is taken by {holder}", port.host_port, port.protocol);
                return Err(CniError::new(Code::HostPortTaken, msg));
            }
        }
        Ok(())
    }
}

fn refuse(live: &mut Result<Live, String>, error: &NetworkError) {
    if live.is_err() {
        *live = Err(chain(error));
    }
}

fn unknown(id: &AttachmentId) -> CniError {
    CniError::new(Code::UnknownContainer, format!("{id} is not attached"))
}

fn kernel(msg: &str, error: &dyn std::error::Error) -> CniError {
    CniError::caused(Code::Kernel, msg, error)
}
