//! Which links are configured, and how.

use std::collections::BTreeMap;
use std::net::IpAddr;

use garboard_api::machine::{
    self, Bond, Bridge, HostEntry, LinkMatch, LinkRoute, MachineNetwork, RoutingRule, Vlan, Wireguard,
};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::Link;
use super::lease::Lease;

/// What the user declares, validated.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Config {
    /// The links to configure; when empty, the first link with a carrier that is granted a lease by DHCPv4.
    pub links: Vec<LinkConfig>,
    /// Rules that send packets to other tables of routes.
    #[serde(default)]
    pub rules: Vec<RoutingRule>,
    /// Name servers, before those of the leases.
    pub nameservers: Vec<IpAddr>,
    /// Domains in which short names are looked up, before those of the leases.
    pub search: Vec<String>,
    /// Names that are looked up nowhere else.
    #[serde(default)]
    pub hosts: Vec<HostEntry>,
}

/// Which link a [`LinkConfig`] is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub enum Selector {
    /// By interface name.
    Name(String),
    /// By hardware address.
    Mac([u8; 6]),
    /// By the name of its driver: the first that nothing else means.
    Driver(String),
    /// One that is made, with its interface name.
    Made(String, Kind),
}

/// What a link that is made is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Kind {
    /// The frames of another link that bear a tag.
    Vlan(Vlan),
    /// Several links as one.
    Bond(Bond),
    /// A switch.
    Bridge(Bridge),
    /// Encrypted ways to peers.
    Wireguard(Wireguard),
}

/// What the user declares of a link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct LinkConfig {
    /// Which link.
    pub selector: Selector,
    /// What links that are made call it.
    #[serde(default)]
    pub label: Option<String>,
    /// Whether it is a bond's member or a bridge's port, which has no addresses.
    #[serde(default)]
    pub port: bool,
    /// Whether a DHCPv4 server configures it.
    pub dhcp4: bool,
    /// Whether it takes addresses and routes from the advertisements of routers, if that is not the kernel's to decide.
    #[serde(default)]
    pub accept_ra: Option<bool>,
    /// Addresses that it has in any case.
    pub addresses: Vec<IpNet>,
    /// Next hops of default routes, at most one of each address family.
    pub gateways: Vec<IpAddr>,
    /// Further routes.
    #[serde(default)]
    pub routes: Vec<RouteConfig>,
    /// MTU in bytes, instead of the DHCP server's or the driver's.
    pub mtu: Option<u32>,
}

/// What the user declares of a route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RouteConfig {
    /// Where it leads.
    pub destination: IpNet,
    /// The next hop; none when the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// Its metric, if it is not that of the link's other routes.
    pub metric: Option<u32>,
    /// Its table, if that is not the main one.
    #[serde(default)]
    pub table: Option<u32>,
}

impl From<&MachineNetwork> for Config {
    fn from(network: &MachineNetwork) -> Self {
        let MachineNetwork { links, rules, nameservers, search_domains, hosts } = network;
        let is_port = |link: &machine::Link| {
            let mut ports = links.iter().flat_map(machine::Link::ports);
            link.label().is_some_and(|label| ports.any(|port| port == label))
        };
        Self {
            links: links.iter().map(|link| LinkConfig::new(link, is_port(link))).collect(),
            rules: rules.clone(),
            nameservers: nameservers.clone(),
            search: search_domains.clone(),
            hosts: hosts.clone(),
        }
    }
}

impl LinkConfig {
    /// Of a declared link, which may be a bond's member or a bridge's port.
    fn new(link: &machine::Link, port: bool) -> Self {
        let machine::Link {
            matches,
            name,
            vlan,
            bond,
            bridge,
            wireguard,
            dhcp4: _,
            accept_ra,
            addresses,
            gateway,
            routes,
            mtu,
        } = link;
        // Validation lets through only links that are either matched, by one of the three, or one kind, with a name.
        let kind = vlan.clone().map(Kind::Vlan).or(bond.clone().map(Kind::Bond));
        let kind = kind.or(bridge.clone().map(Kind::Bridge)).or(wireguard.clone().map(Kind::Wireguard));
        let LinkMatch { name: matched, mac, driver } = matches.clone().unwrap_or_default();
        let selector = match (kind, mac, driver) {
            (Some(kind), _, _) => Selector::Made(name.clone().unwrap_or_default(), kind),
            (None, Some(mac), _) => Selector::Mac(mac.octets()),
            (None, None, Some(driver)) => Selector::Driver(driver),
            (None, None, None) => Selector::Name(matched.unwrap_or_default()),
        };
        Self {
            selector,
            label: link.label().map(str::to_owned),
            port,
            dhcp4: link.dhcp4() && !port,
            accept_ra: *accept_ra,
            addresses: addresses.iter().map(|address| address.net()).collect(),
            gateways: gateway.iter().copied().collect(),
            routes: routes
                .iter()
                .map(|LinkRoute { to, via, metric, table }| RouteConfig {
                    destination: to.net(),
                    gateway: *via,
                    metric: *metric,
                    table: *table,
                })
                .collect(),
            mtu: *mtu,
        }
    }
}

/// A link that is configured, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selected {
    /// Interface index.
    pub index: u32,
    /// What the user declares of it, or the default: DHCPv4.
    pub config: LinkConfig,
}

/// The links that the configuration is for, given the leases by link index; one that does not exist (yet) is left out,
/// and no link is taken twice.
///
/// Without declared links it is the physical link with a carrier and a lease: the one that had it before (`current`), else
/// the first in the kernel's order. While there is none, all that have a carrier are asked at the same time, because a
/// link may lead to a network without a DHCP server; the one from before keeps its lease until another has one.
pub fn select(config: &Config, links: &[Link], leases: &BTreeMap<u32, Lease>, current: Option<u32>) -> Vec<Selected> {
    if config.links.is_empty() {
        return by_default(links, leases, current)
            .into_iter()
            .map(|link| Selected { index: link.index, config: by_dhcp(link) })
            .collect();
    }
    let mut taken: Vec<Option<u32>> = Vec::new();
    for LinkConfig { selector, .. } in &config.links {
        let found = links.iter().find(|link| fits(selector, link)).map(|link| link.index);
        taken.push(found.filter(|index| !taken.contains(&Some(*index))));
    }
    for (position, LinkConfig { selector, .. }) in config.links.iter().enumerate() {
        if let Selector::Driver(driver) = selector {
            let free = |link: &&Link| {
                link.physical && link.driver.as_ref() == Some(driver) && !taken.contains(&Some(link.index))
            };
            let found = links.iter().filter(free).map(|link| link.index).min();
            taken[position] = found;
        }
    }
    let selected = config.links.iter().zip(taken);
    selected.filter_map(|(config, index)| Some(Selected { index: index?, config: config.clone() })).collect()
}

/// Whether a link is the one that is meant, if it can be told from that alone.
fn fits(selector: &Selector, link: &Link) -> bool {
    match selector {
        Selector::Name(name) => link.name == *name,
        // Virtual links on top of a link (VLANs, bridges) inherit its hardware address.
        Selector::Mac(mac) => link.physical && link.permanent_mac.or(link.mac) == Some(*mac),
        Selector::Driver(_) => false,
        Selector::Made(name, _) => link.name == *name && link.ours,
    }
}

fn by_default<'a>(links: &'a [Link], leases: &BTreeMap<u32, Lease>, current: Option<u32>) -> Vec<&'a Link> {
    let mut candidates: Vec<&Link> = links.iter().filter(|link| link.is_free()).collect();
    candidates.sort_by_key(|link| (Some(link.index) != current, link.index));
    let leased = |link: &&Link| leases.contains_key(&link.index);
    if let Some(granted) = candidates.iter().copied().find(|link| link.carrier && leased(link)) {
        return vec![granted];
    }
    candidates.retain(|link| link.carrier || (Some(link.index) == current && leased(link)));
    candidates
}

fn by_dhcp(link: &Link) -> LinkConfig {
    LinkConfig {
        selector: Selector::Name(link.name.clone()),
        label: None,
        port: false,
        dhcp4: true,
        accept_ra: None,
        addresses: Vec::new(),
        gateways: Vec::new(),
        routes: Vec::new(),
        mtu: None,
    }
}
