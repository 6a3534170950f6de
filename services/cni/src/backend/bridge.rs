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

use garboard_sys::netlink::{
    Address, BridgePort, Link, MAIN_TABLE, MacAddress, Netlink, NetlinkError, Route, VethPair,
};
use ipnet::IpNet;

use super::settings::{ensure_setting, ensure_setting_if_there};
use super::{BackendError, MARK, is_link_local};
use crate::attachment::{Attachment, mac_of};
use crate::config::{Config, gateway};
use crate::interface::InterfaceName;

/// How this machine's ends behave as ports of the bridge; see the head of this file.
const PORT: BridgePort = BridgePort { hairpin: true, isolated: true };
/// `RTPROT_STATIC`: nothing here bears the node agent's own mark, for it removes what bears that and is not declared.
const STATIC: u8 = 4;
/// The longest alias of a link (`IFALIASZ` without its NUL), bytes.
const ALIAS_MAX: usize = 255;

/// The bridge of this machine's pods.
#[derive(Debug)]
pub struct Bridge {
    name: InterfaceName,
    index: u32,
    mtu_bytes: u32,
    networks: Vec<IpNet>,
}

impl Bridge {
    /// Makes the bridge and its addresses, and sets the kernel to forward. `mtu_bytes` is the largest packet of a pod's
    /// interface. Gateways that neither the configuration nor an attachment needs are removed.
    ///
    /// # Errors
    /// When the kernel refuses, or the name is taken by a link that is not ours.
    pub async fn prepare(config: &Config, mtu_bytes: u32, attachments: &[Attachment]) -> Result<Self, BackendError> {
        let mut netlink = Netlink::open()?;
        let first = config.pod_cidrs.first();
        let mac = first.map_or(MacAddress([0x0a, 0x58, 0, 0, 0, 1]), |network| mac_of(gateway(network)));
        let bridge = create_bridge(&mut netlink, &config.bridge, mac, mtu_bytes).await?;
        for (path, value) in settings(config) {
            ensure_setting(&path, value)?;
        }
        switch_bridge_netfilter_off()?;
        let carried = carried_by_all(&mut netlink, mtu_bytes).await?;
        configure_bridge(&mut netlink, &bridge, mac, carried).await?;
        ensure_addresses(&mut netlink, &bridge, config, attachments).await?;
        Ok(Self { name: config.bridge.clone(), index: bridge.index, mtu_bytes, networks: config.pod_cidrs.clone() })
    }

    /// Gives interfaces of pods to come another MTU. The others keep theirs: the kernel tells a pod of a smaller one of its
    /// machine when it sends too much.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn set_mtu(&mut self, mtu_bytes: u32) -> Result<(), BackendError> {
        let mut netlink = Netlink::open()?;
        let carried = carried_by_all(&mut netlink, mtu_bytes).await?;
        netlink.set_mtu(self.index, carried).await?;
        self.mtu_bytes = mtu_bytes;
        Ok(())
    }

    /// The largest packet of a pod's interface, bytes.
    pub fn mtu_bytes(&self) -> u32 {
        self.mtu_bytes
    }

    /// Makes the veth pair and what is inside of the pod.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn attach(&self, attachment: &Attachment, netns: BorrowedFd<'_>) -> Result<(), BackendError> {
        // The module may have been loaded since.
        switch_bridge_netfilter_off()?;
        let pair = VethPair {
            name: attachment.host_link.as_str(),
            alias: &alias(attachment),
            bridge: self.index,
            port: PORT,
            peer: attachment.id.interface.as_str(),
            peer_mac: attachment.mac,
            peer_namespace: netns,
            mtu: self.mtu_bytes,
        };
        Netlink::open()?.add_veth(&pair).await?;
        let mut netlink = Netlink::open_in(netns)?;
        let interface = find(&mut netlink, attachment.id.interface.as_str()).await?;
        netlink.set_up(interface.index).await?;
        for &pod in &attachment.addresses {
            netlink.add_address(&address(interface.index, alone(pod))).await?;
        }
        for route in self.routes(attachment, interface.index) {
            netlink.add_route(&route).await?;
        }
        Ok(())
    }

    /// Compares both ends of the pair, the pod's addresses and routes.
    ///
    /// # Errors
    /// When something differs, or the kernel refuses to say.
    pub async fn check(&self, attachment: &Attachment, netns: BorrowedFd<'_>) -> Result<(), BackendError> {
        let changed = |what: String| Err(BackendError::Changed(what));
        let mut netlink = Netlink::open()?;
        let host = find(&mut netlink, attachment.host_link.as_str()).await?;
        if host.controller != Some(self.index) {
            return changed(format!("{} is not a port of {}", host.name, self.name));
        }
        if !host.up {
            return changed(format!("{} is off", host.name));
        }
        if host.port != Some(PORT) {
            return changed(format!("{} is not an isolated port with hairpin mode", host.name));
        }
        let mut netlink = Netlink::open_in(netns)?;
        let interface = find(&mut netlink, attachment.id.interface.as_str()).await?;
        if interface.mac != Some(attachment.mac) || !interface.up {
            return changed(format!("{} has another hardware address or is off", interface.name));
        }
        let addresses = netlink.addresses().await?;
        let lacks = |pod: &IpAddr| {
            !addresses.iter().any(|present| present.index == interface.index && present.address == alone(*pod))
        };
        if let Some(address) = attachment.addresses.iter().copied().find(lacks) {
            return changed(format!("{} lacks address {address}", interface.name));
        }
        let routes = netlink.routes().await?;
        // The kernel gives an IPv6 route another metric.
        let way = |route: &Route| (route.destination, route.gateway, route.index);
        let is_missing = |route: &Route| !routes.iter().any(|present| way(present) == way(route));
        match self.routes(attachment, interface.index).find(is_missing) {
            Some(missing) => changed(format!("the route to {} is missing", missing.destination)),
            None => Ok(()),
        }
    }

    /// The routes of a pod: its gateway on the link, and everything else behind it.
    fn routes<'a>(&'a self, attachment: &'a Attachment, index: u32) -> impl Iterator<Item = Route> + 'a {
        let route = move |destination, gateway| Route {
            destination,
            gateway,
            index,
            metric: 0,
            table: MAIN_TABLE,
            protocol: STATIC,
        };
        attachment.addresses.iter().filter_map(|address| gateway_of(&self.networks, *address)).flat_map(
            move |gateway| {
                let everywhere = if gateway.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
                [route(alone(gateway), None), route(IpNet::new_assert(everywhere, 0), Some(gateway))]
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
pub async fn detach(host_link: &str) -> Result<(), BackendError> {
    let mut netlink = Netlink::open()?;
    let Some(link) = netlink.link(host_link).await? else { return Ok(()) };
    // A crash between the making of a pair and its marking leaves it without alias.
    if link.alias.as_deref().is_some_and(|alias| !alias.starts_with(MARK)) {
        return Err(BackendError::Foreign(link.name));
    }
    match netlink.remove_link(link.index).await {
        Err(error) if !error.is_missing() => Err(error.into()),
        _ => Ok(()),
    }
}

/// The names of this machine's ends of all pods' interfaces.
///
/// # Errors
/// When the kernel refuses to list them.
pub async fn host_links() -> Result<Vec<String>, BackendError> {
    let links = Netlink::open()?.links().await?;
    Ok(links.into_iter().filter(is_pods).map(|link| link.name).collect())
}

/// Whether it is this machine's end of a pod's interface.
fn is_pods(link: &Link) -> bool {
    link.alias.as_deref().and_then(|alias| alias.strip_prefix(MARK)).is_some_and(|rest| rest.starts_with(':'))
}

/// The mark of a pod's interface, as the kernel keeps it.
fn alias(attachment: &Attachment) -> String {
    let text = format!("{MARK}:{} {}", attachment.id, attachment.pod.as_deref().unwrap_or_default());
    text.chars().filter(|c| c.is_ascii_graphic() || *c == ' ').take(ALIAS_MAX).collect()
}

/// The address without a network: /32 or /128.
fn alone(address: IpAddr) -> IpNet {
    IpNet::from(address)
}

/// An address that nobody else has, for it was given out here.
fn address(index: u32, address: IpNet) -> Address {
    Address { index, address, protocol: 0, unique: true }
}

async fn find(netlink: &mut Netlink, name: &str) -> Result<Link, BackendError> {
    netlink.link(name).await?.ok_or_else(|| BackendError::Changed(format!("link {name} is missing")))
}

/// The bridge, made when it is missing and then still off: its settings come first.
async fn create_bridge(
    netlink: &mut Netlink,
    name: &InterfaceName,
    mac: MacAddress,
    mtu_bytes: u32,
) -> Result<Link, BackendError> {
    match netlink.link(name.as_str()).await? {
        // A crash between making and marking leaves a bridge with our hardware address only.
        Some(found) if found.alias.as_deref() == Some(MARK) || found.mac == Some(mac) => return Ok(found),
        Some(_) => return Err(BackendError::Foreign(name.to_string())),
        None => {}
    }
    netlink.add_bridge(name.as_str(), mac, mtu_bytes).await?;
    find(netlink, name.as_str()).await
}

/// What the bridge may send to any pod, bytes: pods that were attached before the MTU grew keep the smaller one, and a bridge drops
/// what its port does not carry without telling anybody.
async fn carried_by_all(netlink: &mut Netlink, mtu_bytes: u32) -> Result<u32, NetlinkError> {
    let links = netlink.links().await?;
    Ok(links.iter().filter(|link| is_pods(link)).map(|link| link.mtu).fold(mtu_bytes, u32::min))
}

/// Marks the bridge, corrects what differs and switches it on.
async fn configure_bridge(
    netlink: &mut Netlink,
    bridge: &Link,
    mac: MacAddress,
    mtu_bytes: u32,
) -> Result<(), NetlinkError> {
    let right = bridge.alias.as_deref() == Some(MARK) && bridge.mac == Some(mac) && bridge.up;
    if right && bridge.mtu == mtu_bytes {
        return Ok(());
    }
    netlink.configure(bridge.index, MARK, mac, mtu_bytes).await
}

async fn ensure_addresses(
    netlink: &mut Netlink,
    bridge: &Link,
    config: &Config,
    attachments: &[Attachment],
) -> Result<(), NetlinkError> {
    let addresses = netlink.addresses().await?.into_iter();
    let present: Vec<IpNet> = addresses
        .filter(|address| address.index == bridge.index && !is_link_local(address.address.addr()))
        .map(|address| address.address)
        .collect();
    let needed: Vec<IpNet> = config.gateways().collect();
    let in_use = |network: &IpNet| attachments.iter().flat_map(|a| &a.addresses).any(|pod| network.contains(pod));
    for gateway in needed.iter().filter(|gateway| !present.contains(gateway)) {
        netlink.add_address(&address(bridge.index, *gateway)).await?;
    }
    for gateway in present.iter().filter(|gateway| !needed.contains(gateway) && !in_use(gateway)) {
        netlink.remove_address(bridge.index, *gateway).await?;
    }
    Ok(())
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
        ensure_setting_if_there(setting, "0")?;
    }
    Ok(())
}
