//! One bridge with a veth pair for each pod.
//!
//! A pod has its address alone (/32 or /128) and reaches everything, its neighbours on the machine too, by way of the
//! bridge's address: so each packet between pods is routed, and seen once by this machine's nftables rules and connection
//! tracking. The ports are isolated from each other, so that no pod gets around that by a neighbour's hardware address, and
//! have hairpin mode for what a pod sends to itself.
//!
//! Bridge netfilter (`br_netfilter`), which bridges without routing need for Services, is switched off where it is loaded:
//! it would carry what was translated to a neighbour's address straight to the neighbour's port, which is isolated.

use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::thread;

use ipnet::IpNet;
use nix::sched::{CloneFlags, setns};

use super::{BackendError, MARK};
use crate::attachment::{Attachment, mac_of};
use crate::config::{Config, gateway};
use crate::netlink::link::{InterfaceName, Link, Mac, VethPair};
use crate::netlink::route::Route;
use crate::netlink::{Batch, Connection, Family, NetlinkError, addr, link, route};

/// What a pod gets when no default route tells the machine's own, bytes.
const MTU_ETHERNET: u32 = 1500;

/// The bridge of this machine's pods.
#[derive(Debug)]
pub struct Bridge {
    name: InterfaceName,
    index: u32,
    mtu_bytes: u32,
    networks: Vec<IpNet>,
}

impl Bridge {
    /// Makes the bridge and its addresses, and sets the kernel to forward. Gateways that neither the configuration nor an
    /// attachment needs are removed.
    ///
    /// # Errors
    /// When the kernel refuses, or the name is taken by a link that is not ours.
    pub fn prepare(config: &Config, attachments: &[Attachment]) -> Result<Self, BackendError> {
        let connection = Connection::open(Family::Route)?;
        let mtu_bytes = match config.mtu_bytes {
            Some(mtu_bytes) => mtu_bytes,
            None => default_route_mtu(&connection)?.unwrap_or(MTU_ETHERNET),
        };
        let mac = config.pod_cidrs.first().map_or(Mac([0x0a, 0x58, 0, 0, 0, 1]), |network| mac_of(gateway(network)));
        let bridge = create_bridge(&connection, &config.bridge, mac, mtu_bytes)?;
        for (path, value) in settings(config) {
            ensure_setting(&path, value)?;
        }
        switch_bridge_netfilter_off()?;
        configure_bridge(&connection, &bridge, mac, mtu_bytes)?;
        ensure_addresses(&connection, &bridge, config, attachments)?;
        Ok(Self { name: config.bridge.clone(), index: bridge.index, mtu_bytes, networks: config.pod_cidrs.clone() })
    }

    /// The largest packet of a pod's interface, bytes.
    pub fn mtu_bytes(&self) -> u32 {
        self.mtu_bytes
    }

    /// Makes the veth pair and what is inside of the pod.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach(&self, attachment: &Attachment, netns: BorrowedFd<'_>) -> Result<(), BackendError> {
        // The module may have been loaded since.
        switch_bridge_netfilter_off()?;
        let alias = alias(attachment);
        let pair = VethPair {
            host: &attachment.host_link,
            alias: &alias,
            bridge: self.index,
            pod: &attachment.id.interface,
            pod_mac: attachment.mac,
            pod_netns: netns,
            mtu_bytes: self.mtu_bytes,
        };
        let mut batch = Batch::new();
        link::add_veth(&mut batch, &pair);
        Connection::open(Family::Route)?.run(&batch)?;
        let connection = enter(netns)?;
        let interface = find(&connection, attachment.id.interface.as_str())?;
        let mut batch = Batch::new();
        link::set_up(&mut batch, interface.index, &interface.name);
        for &address in &attachment.addresses {
            addr::add(&mut batch, interface.index, alone(address));
        }
        for route in self.routes(attachment, interface.index) {
            route::add(&mut batch, &route);
        }
        Ok(connection.run(&batch)?)
    }

    /// Compares both ends of the pair, the pod's addresses and routes.
    ///
    /// # Errors
    /// When something differs, or the kernel refuses to say.
    pub fn check(&self, attachment: &Attachment, netns: BorrowedFd<'_>) -> Result<(), BackendError> {
        let changed = |what: String| Err(BackendError::Changed(what));
        let connection = Connection::open(Family::Route)?;
        let host = find(&connection, attachment.host_link.as_str())?;
        if host.master != Some(self.index) {
            return changed(format!("{} is not a port of {}", host.name, self.name));
        }
        if !host.up {
            return changed(format!("{} is off", host.name));
        }
        if link::port_mode(&connection, &host.name)? != Some((true, true)) {
            return changed(format!("{} is not an isolated port with hairpin mode", host.name));
        }
        let connection = enter(netns)?;
        let interface = find(&connection, attachment.id.interface.as_str())?;
        if interface.mac != Some(attachment.mac) || !interface.up {
            return changed(format!("{} has another hardware address or is off", interface.name));
        }
        let addresses = addr::list(&connection)?;
        for &address in &attachment.addresses {
            if !addresses.contains(&addr::Address { link: interface.index, address: alone(address) }) {
                return changed(format!("{} lacks address {address}", interface.name));
            }
        }
        let present = route::list(&connection)?;
        match self.routes(attachment, interface.index).find(|route| !present.contains(route)) {
            Some(missing) => changed(format!("the route to {} is missing", missing.destination)),
            None => Ok(()),
        }
    }

    /// The routes of a pod: its gateway on the link, and everything else behind it.
    fn routes<'a>(&'a self, attachment: &'a Attachment, link: u32) -> impl Iterator<Item = Route> + 'a {
        attachment.addresses.iter().filter_map(|address| gateway_of(&self.networks, *address)).flat_map(
            move |gateway| {
                let everywhere = if gateway.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
                [
                    Route { destination: alone(gateway), gateway: None, link },
                    Route { destination: IpNet::new_assert(everywhere, 0), gateway: Some(gateway), link },
                ]
            },
        )
    }
}

/// The gateway of a pod's address.
pub fn gateway_of(networks: &[IpNet], address: IpAddr) -> Option<IpAddr> {
    networks.iter().find(|network| network.contains(&address)).map(gateway)
}

/// Removes a pod's interface: both ends go. Nothing happens when it is gone already or was never made.
///
/// # Errors
/// When the kernel refuses.
pub fn detach(host_link: &str) -> Result<(), BackendError> {
    let connection = Connection::open(Family::Route)?;
    let Some(link) = link::find(&connection, host_link)? else { return Ok(()) };
    // A crash between the making of a pair and its marking leaves it without alias.
    if link.alias.as_deref().is_some_and(|alias| !alias.starts_with(MARK)) {
        return Err(BackendError::Foreign(link.name));
    }
    let mut batch = Batch::new();
    link::delete(&mut batch, host_link);
    match connection.run(&batch) {
        Err(error) if !error.is_missing() => Err(error.into()),
        _ => Ok(()),
    }
}

/// The names of this machine's ends of all pods' interfaces.
///
/// # Errors
/// When the kernel refuses to list them.
pub fn host_links() -> Result<Vec<String>, BackendError> {
    let marked = |link: &Link| link.alias.as_deref().is_some_and(|alias| alias.starts_with(&format!("{MARK}:")));
    let links = link::list(&Connection::open(Family::Route)?)?;
    Ok(links.into_iter().filter(marked).map(|link| link.name).collect())
}

fn alias(attachment: &Attachment) -> String {
    link::alias(&format!("{MARK}:{} {}", attachment.id, attachment.pod.as_deref().unwrap_or_default()))
}

/// The address without a network: /32 or /128.
fn alone(address: IpAddr) -> IpNet {
    IpNet::from(address)
}

fn find(connection: &Connection, name: &str) -> Result<Link, BackendError> {
    link::find(connection, name)?.ok_or_else(|| BackendError::Changed(format!("link {name} is missing")))
}

/// A connection to another namespace's kernel. The thread that enters it ends there, so no thread is ever left in a pod.
fn enter(netns: BorrowedFd<'_>) -> Result<Connection, BackendError> {
    let entered = thread::scope(|scope| {
        let open = || {
            setns(netns, CloneFlags::CLONE_NEWNET).map_err(BackendError::Enter)?;
            Ok(Connection::open(Family::Route)?)
        };
        scope.spawn(open).join()
    });
    entered.unwrap_or(Err(BackendError::Enter(nix::errno::Errno::ECANCELED)))
}

/// The bridge, made when it is missing and then still off: its settings come first.
fn create_bridge(
    connection: &Connection,
    name: &InterfaceName,
    mac: Mac,
    mtu_bytes: u32,
) -> Result<Link, BackendError> {
    match link::find(connection, name.as_str())? {
        // A crash between making and marking leaves a bridge with our hardware address only.
        Some(found) if found.alias.as_deref() == Some(MARK) || found.mac == Some(mac) => return Ok(found),
        Some(_) => return Err(BackendError::Foreign(name.to_string())),
        None => {}
    }
    let mut batch = Batch::new();
    link::add_bridge(&mut batch, name, mac, mtu_bytes);
    connection.run(&batch)?;
    find(connection, name.as_str())
}

/// Marks the bridge, corrects what differs and switches it on.
fn configure_bridge(connection: &Connection, bridge: &Link, mac: Mac, mtu_bytes: u32) -> Result<(), BackendError> {
    let right = bridge.alias.as_deref() == Some(MARK) && bridge.mac == Some(mac) && bridge.up;
    if right && bridge.mtu_bytes == mtu_bytes {
        return Ok(());
    }
    let mut batch = Batch::new();
    link::configure(&mut batch, bridge.index, &bridge.name, MARK, Some(mac), Some(mtu_bytes));
    Ok(connection.run(&batch)?)
}

fn ensure_addresses(
    connection: &Connection,
    bridge: &Link,
    config: &Config,
    attachments: &[Attachment],
) -> Result<(), NetlinkError> {
    let present: Vec<IpNet> = addr::list(connection)?
        .into_iter()
        .filter(|address| address.link == bridge.index && !is_link_local(address.address.addr()))
        .map(|address| address.address)
        .collect();
    let needed: Vec<IpNet> = config.gateways().collect();
    let in_use = |network: &IpNet| attachments.iter().flat_map(|a| &a.addresses).any(|pod| network.contains(pod));
    let mut batch = Batch::new();
    for gateway in needed.iter().filter(|gateway| !present.contains(gateway)) {
        addr::add(&mut batch, bridge.index, *gateway);
    }
    for gateway in present.iter().filter(|gateway| !needed.contains(gateway) && !in_use(gateway)) {
        addr::delete(&mut batch, bridge.index, *gateway);
    }
    if batch.is_empty() { Ok(()) } else { connection.run(&batch) }
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// The largest packet of the link with the default route.
fn default_route_mtu(connection: &Connection) -> Result<Option<u32>, NetlinkError> {
    let default = route::list(connection)?.into_iter().find(|route| route.destination.prefix_len() == 0);
    let Some(default) = default else { return Ok(None) };
    let links = link::list(connection)?;
    Ok(links.into_iter().find(|link| link.index == default.link).map(|link| link.mtu_bytes))
}

/// Kernel settings under /proc/sys/net, and why.
fn settings(config: &Config) -> Vec<(String, &'static str)> {
    let bridge = &config.bridge;
    let has = |v4: bool| config.pod_cidrs.iter().any(|network| network.addr().is_ipv4() == v4);
    let mut settings = Vec::new();
    if has(true) {
        settings.push(("ipv4/ip_forward".to_owned(), "1"));
        // What comes from a pod must have a pod's address.
        settings.push((format!("ipv4/conf/{bridge}/rp_filter"), "1"));
        // Host ports on 127.0.0.1; the firewall keeps pods from the machine's loopback.
        settings.push((format!("ipv4/conf/{bridge}/route_localnet"), "1"));
        settings.push((format!("ipv4/conf/{bridge}/send_redirects"), "0"));
    }
    if has(false) {
        settings.push(("ipv6/conf/all/forwarding".to_owned(), "1"));
        settings.push((format!("ipv6/conf/{bridge}/accept_ra"), "0"));
        // Nobody else can have these addresses, and the kernel asks for neighbours only after it has made sure.
        settings.push((format!("ipv6/conf/{bridge}/accept_dad"), "0"));
    }
    settings
}

/// See the head of this file. The settings are missing when the module is not loaded.
fn switch_bridge_netfilter_off() -> Result<(), BackendError> {
    for setting in ["bridge/bridge-nf-call-iptables", "bridge/bridge-nf-call-ip6tables"] {
        match ensure_setting(setting, "0") {
            Err(BackendError::Setting { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    Ok(())
}

/// Writes a setting that has another value.
fn ensure_setting(path: &str, value: &str) -> Result<(), BackendError> {
    let path = format!("/proc/sys/net/{path}");
    let failed = |source| BackendError::Setting { path: path.clone(), source };
    if std::fs::read_to_string(&path).map_err(failed)?.trim() == value {
        return Ok(());
    }
    std::fs::write(&path, value).map_err(failed)
}
