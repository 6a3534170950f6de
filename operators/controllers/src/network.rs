//! Keeps the machine's links, addresses, routes, rules and name servers as declared.
//!
//! [`Network`] wakes when the declaration, a lease, or anything in the kernel's network changes, compares whole state and
//! repairs what differs. What it reached it publishes as [`NodeAddresses`] and in the files of `/etc`. DHCP clients
//! run as tasks of their own, one per link (`client`).

mod client;
mod etc;
mod kernel;
mod made;
pub mod wire;
mod wireguard;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use garboard_api::machine::WireguardStatus;
use garboard_plan::network as plan;
use garboard_plan::network::lease::Lease;
use garboard_sys::netlink::{Monitor, Netlink, NetlinkError, solicit_routers};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use self::client::{DhcpLink, LinkIdentity};
use self::wireguard::Keeper;
use crate::parameters::Kept;
use crate::{hostname, passing};

/// After a failure everything is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// Shortest time between two looks at the kernel: a starting pod makes a dozen notifications.
const PAUSE: Duration = Duration::from_millis(50);
/// Where the private keys of WireGuard links are.
pub const WIREGUARD_KEYS: &str = "/state/wireguard";
/// File of what was declared last.
const DECLARED: &str = "declared.json";
/// File of the kernel's parameters that were set, and what they were before.
const PARAMETERS: &str = "parameters.json";
/// The kernel tells nobody when a parameter or a peer of WireGuard changes: time between two looks at those that were set.
const LOOK: Duration = Duration::from_secs(3);
/// Observing and planning ends when nothing is left to do, which needs one round more than the kernel has surprises: links to make have
/// one or two, and addresses again.
const MAX_ROUNDS: usize = 8;

/// What is declared of the machine's network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct NetworkConfig {
    /// The machine's name.
    pub hostname: String,
    /// Its links and name servers.
    pub network: plan::Config,
}

/// Where the network's files are.
#[derive(Clone, Debug)]
pub struct NetworkPaths {
    /// Directory of `hostname`, `hosts` and `resolv.conf`.
    pub etc: PathBuf,
    /// Directory of what the next run of the agent must know: the leases and what was declared last.
    pub state: PathBuf,
    /// Directory of the private keys of WireGuard links, on the state partition.
    pub keys: PathBuf,
}

impl Default for NetworkPaths {
    fn default() -> Self {
        Self { etc: "/run/garboard/etc".into(), state: "/run/garboard/network".into(), keys: WIREGUARD_KEYS.into() }
    }
}

/// What the machine's network has reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeAddresses {
    /// Addresses that other machines can use, those of the link with the default route first, IPv4 before IPv6.
    pub addresses: Vec<IpAddr>,
    /// Name of the link with the default route.
    pub link: Option<String>,
    /// Name servers in order of preference.
    pub nameservers: Vec<IpAddr>,
    /// Domains in which short names are looked up.
    pub search: Vec<String>,
    /// NTP servers that DHCP names, in order of preference.
    pub time_servers: Vec<IpAddr>,
    /// The WireGuard links that have their key.
    pub wireguard: Vec<WireguardStatus>,
    /// What it waits for, in words; empty when all is reached.
    pub waiting: Vec<String>,
    /// What failed, in words.
    pub problems: Vec<String>,
}

impl NodeAddresses {
    /// The address by which the cluster knows the machine.
    pub fn primary(&self) -> Option<IpAddr> {
        self.addresses.first().copied()
    }
}

/// The network could not be looked after at all.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// No connection to the kernel.
    #[error("cannot reach the kernel's network")]
    Netlink(#[from] NetlinkError),
    /// Whoever declares the network is gone.
    #[error("nobody declares the network any more")]
    Undeclared,
}

/// The task that keeps the network as declared.
pub struct Network {
    config: watch::Receiver<NetworkConfig>,
    /// What counts: what was declared last, also if that was to an earlier run.
    declared: NetworkConfig,
    hostname: watch::Sender<String>,
    status: watch::Sender<NodeAddresses>,
    paths: NetworkPaths,
    /// Kind of virtual links that count as hardware.
    hardware: Option<&'static str>,
    monitor: Monitor,
    clients: BTreeMap<u32, DhcpLink>,
    current: Option<u32>,
    parameters: Kept,
    wireguard: Keeper,
    /// Changes of links that the kernel refused lately: to try them takes links down.
    refused: Vec<RefusedLink>,
    changed: Arc<Notify>,
    /// Problems of the time before, to report each once.
    reported: Vec<String>,
}

/// A change of links that the kernel refused.
struct RefusedLink {
    at: Instant,
    step: plan::LinkStep,
    problem: String,
}

impl Network {
    /// Prepares the task in the calling thread's network namespace and the channel on which it publishes.
    ///
    /// Until `config` changes, what was declared to an earlier run counts, so that a restarted agent takes away no address
    /// while it does not know yet what is declared; on a machine that has just started, that is the content of `config`.
    ///
    /// # Errors
    /// When the kernel cannot be reached.
    pub fn new(
        config: watch::Receiver<NetworkConfig>,
        paths: NetworkPaths,
    ) -> Result<(Self, watch::Receiver<NodeAddresses>), NetworkError> {
        let monitor = Monitor::open()?;
        let (status, receiver) = watch::channel(NodeAddresses::default());
        let declared = passing::load(&paths.state.join(DECLARED)).unwrap_or_else(|| config.borrow().clone());
        let hostname = watch::Sender::new(declared.hostname.clone());
        let parameters = Kept::new("/proc/sys".into(), paths.state.join(PARAMETERS));
        let wireguard = Keeper::new(&paths.keys);
        let network = Self {
            hostname,
            config,
            declared,
            status,
            paths,
            hardware: None,
            monitor,
            clients: BTreeMap::new(),
            current: None,
            parameters,
            wireguard,
            refused: Vec::new(),
            changed: Arc::new(Notify::new()),
            reported: Vec::new(),
        };
        Ok((network, receiver))
    }

    /// Counts virtual links of that kind as hardware, of which a network namespace has none.
    pub fn with_hardware(mut self, kind: &'static str) -> Self {
        self.hardware = Some(kind);
        self
    }

    /// Keeps the network until `stop`; then everything stays as it is.
    ///
    /// # Errors
    /// When the kernel can no longer be watched.
    #[tracing::instrument(name = "network", skip_all)]
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), NetworkError> {
        // Clients end with this task, not only with `stop`.
        let clients_stop = stop.child_token();
        let _ends_clients = clients_stop.clone().drop_guard();
        loop {
            let complete = self.reconcile(&clients_stop).await;
            let looked = Instant::now();
            let retry = async { if complete { std::future::pending().await } else { tokio::time::sleep(RETRY).await } };
            // All arms are cancel-safe: they wait, and what they wait for stays until it is taken.
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                changed = self.config.changed() => {
                    changed.map_err(|_| NetworkError::Undeclared)?;
                    // It is taken by the round that acts on it.
                    self.config.mark_changed();
                }
                () = self.changed.notified() => {}
                changed = self.monitor.changed() => {
                    changed?;
                    tokio::time::sleep_until(looked + PAUSE).await;
                }
                () = retry => {}
                () = drift(&self.parameters, &self.wireguard, &self.declared.network) => {}
            }
        }
    }

    /// Compares everything and repairs what differs. Says whether nothing failed.
    async fn reconcile(&mut self, clients_stop: &CancellationToken) -> bool {
        let mut problems = Vec::new();
        if self.config.has_changed().unwrap_or(false) {
            self.declared = self.config.borrow_and_update().clone();
            if let Err(error) = passing::store(&self.paths.state.join(DECLARED), &self.declared) {
                problems.push(format!("cannot keep the declaration for the next run: {error}"));
            }
        }
        let config = self.declared.clone();
        self.apply_hostname(&config.hostname, &mut problems);
        let outcome = self.converge(&config.network, clients_stop, &mut problems).await;
        match outcome {
            Ok(mut node) => {
                node.problems.clone_from(&problems);
                if let Err(error) = etc::write(&self.paths.etc, &config.hostname, &config.network.hosts, &node) {
                    let problem = format!("cannot write the files of /etc: {error}");
                    node.problems.push(problem.clone());
                    problems.push(problem);
                }
                self.status.send_if_modified(|current| {
                    let differs = *current != node;
                    if differs {
                        info!(addresses = ?node.addresses, link = node.link, waiting = ?node.waiting, "network");
                        *current = node;
                    }
                    differs
                });
            }
            Err(error) => {
                problems.push(describe(&error));
                self.status.send_modify(|current| current.problems.clone_from(&problems));
            }
        }
        for problem in problems.iter().filter(|problem| !self.reported.contains(problem)) {
            warn!(problem, "network");
        }
        self.reported = problems;
        self.reported.is_empty()
    }

    fn apply_hostname(&self, hostname: &str, problems: &mut Vec<String>) {
        if hostname.is_empty() {
            return;
        }
        match hostname::set(hostname) {
            Ok(true) => info!(hostname, "host name set"),
            Ok(false) => {}
            Err(error) => problems.push(format!("cannot set the host name {hostname}: {error}")),
        }
        self.hostname.send_if_modified(|current| {
            let differs = current != hostname;
            hostname.clone_into(current);
            differs
        });
    }

    async fn converge(
        &mut self,
        config: &plan::Config,
        clients_stop: &CancellationToken,
        problems: &mut Vec<String>,
    ) -> Result<NodeAddresses, NetlinkError> {
        // A new one each time, so that one that failed is not kept.
        let mut netlink = Netlink::open()?;
        let mut refused: Vec<plan::Step> = Vec::new();
        let mut impossible: Vec<plan::LinkStep> = Vec::new();
        self.refused.retain(|refused| refused.at.elapsed() < RETRY);
        problems.extend(self.refused.iter().map(|refused| refused.problem.clone()));
        let mut wireguard = None;
        let mut round = 0;
        loop {
            let observed = kernel::observe(&mut netlink, self.hardware, config).await?;
            // Links first: what is configured otherwise may be about to become a part of another.
            if round < MAX_ROUNDS && self.make_links(&mut netlink, config, &observed, &mut impossible, problems).await {
                round += 1;
                continue;
            }
            // Before they are up, so that none takes a port of the kernel's choice; once is enough.
            if wireguard.is_none() {
                let (status, failed) = self.wireguard.keep(config, &observed.links);
                problems.extend(failed);
                wireguard = Some(status);
            }
            let selected = self.select(config, &observed, clients_stop);
            self.keep_parameters(&selected, &observed, problems);
            let desired = plan::desire(config, &observed.links, &selected, &self.leases());
            let mut steps = plan::plan(&desired, &observed);
            steps.retain(|step| !refused.contains(step));
            round += 1;
            if steps.is_empty() || round > MAX_ROUNDS {
                let wireguard = wireguard.unwrap_or_default();
                return Ok(NodeAddresses { wireguard, ..self.describe(config, &observed, &selected) });
            }
            for step in steps {
                match kernel::apply(&mut netlink, &step).await {
                    Ok(()) => info!(step = %step, "changed"),
                    Err(error) => {
                        problems.push(describe(&error));
                        refused.push(step);
                    }
                }
            }
        }
    }

    /// Makes, changes and removes links as declared. Says whether there was anything to do. What is `impossible`, because a link is
    /// missing, is not tried again.
    async fn make_links(
        &mut self,
        netlink: &mut Netlink,
        config: &plan::Config,
        observed: &plan::Observed,
        impossible: &mut Vec<plan::LinkStep>,
        problems: &mut Vec<String>,
    ) -> bool {
        let selected = plan::select(config, &observed.links, &self.leases(), self.current);
        let mut steps = plan::plan_made(&plan::made(config, &observed.links, &selected), &observed.links);
        steps.retain(|step| !impossible.contains(step) && !self.refused.iter().any(|refused| refused.step == *step));
        let any = !steps.is_empty();
        for step in steps {
            match made::apply(netlink, &step).await {
                Ok(true) => info!(step = %step, "changed"),
                Ok(false) => impossible.push(step),
                Err(error) => {
                    let problem = describe(&error);
                    problems.push(problem.clone());
                    self.refused.push(RefusedLink { at: Instant::now(), step, problem });
                }
            }
        }
        any
    }

    /// Keeps the kernel's parameters of links as declared.
    fn keep_parameters(&mut self, selected: &[plan::Selected], observed: &plan::Observed, problems: &mut Vec<String>) {
        let (done, failed) = self.parameters.keep(&plan::parameters(selected, &observed.links));
        problems.extend(failed);
        if done.is_empty() {
            return;
        }
        for plan::Selected { index, config } in selected {
            if config.accept_ra == Some(true)
                && let Err(error) = solicit_routers(*index)
            {
                debug!(link = index, %error, "routers are not asked");
            }
        }
    }

    /// Selects links and keeps their DHCP clients. What an earlier run of the agent was granted is known once its client
    /// is there, and decides in turn.
    fn select(
        &mut self,
        config: &plan::Config,
        observed: &plan::Observed,
        clients_stop: &CancellationToken,
    ) -> Vec<plan::Selected> {
        loop {
            let leases = self.leases();
            let selected = plan::select(config, &observed.links, &leases, self.current);
            let granted = selected.iter().find(|selected| leases.contains_key(&selected.index));
            self.current = granted.map(|selected| selected.index).or(self.current);
            self.keep_clients(&selected, observed, clients_stop);
            if self.leases() == leases {
                return selected;
            }
        }
    }

    /// Starts and ends DHCP clients so that each selected link that asks for one has one, and tells them the carrier.
    fn keep_clients(&mut self, selected: &[plan::Selected], observed: &plan::Observed, stop: &CancellationToken) {
        let mut wanted = BTreeMap::new();
        for plan::Selected { index, config } in selected {
            let link = observed.links.iter().find(|link| link.index == *index);
            if let Some(plan::Link { index, name, mac: Some(mac), carrier, .. }) = link.filter(|_| config.dhcp4) {
                wanted.insert(*index, (LinkIdentity { index: *index, name: name.clone(), mac: *mac }, *carrier));
            }
        }
        let unwanted = |(index, client): (&u32, &DhcpLink)| {
            let same = wanted.get(index).is_some_and(|(identity, _)| *identity == client.identity);
            (!same).then_some(*index)
        };
        let unwanted: Vec<u32> = self.clients.iter().filter_map(unwanted).collect();
        for client in unwanted.iter().filter_map(|index| self.clients.remove(index)) {
            debug!(link = client.identity.name, "DHCP client ends");
            client.discard();
        }
        for (index, (identity, carrier)) in wanted {
            let client = self.clients.entry(index).or_insert_with(|| {
                let hostname = self.hostname.subscribe();
                DhcpLink::start(identity, &self.paths.state, hostname, Arc::clone(&self.changed), stop.clone())
            });
            client.set_carrier(carrier);
        }
    }

    fn leases(&self) -> BTreeMap<u32, Lease> {
        self.clients.iter().filter_map(|(index, client)| Some((*index, client.progress().lease?))).collect()
    }

    fn describe(&self, config: &plan::Config, observed: &plan::Observed, selected: &[plan::Selected]) -> NodeAddresses {
        let clients: BTreeMap<u32, _> =
            self.clients.iter().map(|(index, client)| (*index, client.progress())).collect();
        let phases = clients.iter().map(|(index, progress)| (*index, progress.phase)).collect();
        let leases = clients.values().filter_map(|progress| progress.lease.as_ref());
        let mut nameservers = config.nameservers.clone();
        let mut search = config.search.clone();
        let mut time_servers = Vec::new();
        for lease in leases {
            nameservers.extend(lease.nameservers.iter().copied().map(IpAddr::V4));
            time_servers.extend(lease.time_servers.iter().copied().map(IpAddr::V4));
            search.extend(lease.domain.clone());
        }
        NodeAddresses {
            addresses: plan::node_addresses(observed, selected),
            link: plan::default_link(observed).map(|link| link.name.clone()),
            nameservers: plan::distinct(nameservers),
            search: plan::distinct(search),
            time_servers: plan::distinct(time_servers),
            wireguard: Vec::new(),
            waiting: plan::waiting(config, observed, selected, &phases),
            problems: Vec::new(),
        }
    }
}

/// Waits until somebody changes a parameter that was set, or what a WireGuard link knows.
async fn drift(parameters: &Kept, wireguard: &Keeper, config: &plan::Config) {
    if !parameters.is_in_use() && !wireguard.is_in_use() {
        return std::future::pending().await;
    }
    loop {
        tokio::time::sleep(LOOK).await;
        if parameters.has_drifted() || wireguard.has_drifted(config) {
            return;
        }
    }
}

/// An error with its causes in one line.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
