//! Which links are configured, and how.

use std::collections::BTreeMap;
use std::net::IpAddr;

use garboard_api::machine::{self, HostEntry, LinkMatch, LinkRoute, MachineNetwork};
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
}

/// What the user declares of a link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct LinkConfig {
    /// Which link.
    pub selector: Selector,
    /// Whether a DHCPv4 server configures it.
    pub dhcp4: bool,
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
}

impl From<&MachineNetwork> for Config {
    fn from(network: &MachineNetwork) -> Self {
        let MachineNetwork { links, nameservers, search_domains, hosts } = network;
        Self {
            links: links.iter().map(LinkConfig::from).collect(),
            nameservers: nameservers.clone(),
            search: search_domains.clone(),
            hosts: hosts.clone(),
        }
    }
}

impl From<&machine::Link> for LinkConfig {
    fn from(link: &machine::Link) -> Self {
        let machine::Link { matches: LinkMatch { name, mac }, dhcp4: _, addresses, gateway, routes, mtu } = link;
        // Validation lets through only links that are matched by one of the two.
        let selector = match mac {
            Some(mac) => Selector::Mac(mac.octets()),
            None => Selector::Name(name.clone().unwrap_or_default()),
        };
        Self {
            selector,
            dhcp4: link.dhcp4(),
            addresses: addresses.iter().map(|address| address.net()).collect(),
            gateways: gateway.iter().copied().collect(),
            routes: routes
                .iter()
                .map(|LinkRoute { to, via, metric }| RouteConfig {
                    destination: to.net(),
                    gateway: *via,
                    metric: *metric,
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
    let mut selected: Vec<Selected> = Vec::new();
    for config in &config.links {
        let fits = |link: &&Link| match &config.selector {
            Selector::Name(name) => link.name == *name,
            // Virtual links on top of a link (VLANs, bridges) inherit its hardware address.
            Selector::Mac(mac) => link.physical && link.mac == Some(*mac),
        };
        if let Some(link) = links.iter().find(fits)
            && !selected.iter().any(|other| other.index == link.index)
        {
            selected.push(Selected { index: link.index, config: config.clone() });
        }
    }
    selected
}

fn by_default<'a>(links: &'a [Link], leases: &BTreeMap<u32, Lease>, current: Option<u32>) -> Vec<&'a Link> {
    let mut candidates: Vec<&Link> = links.iter().filter(|link| link.physical).collect();
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
        dhcp4: true,
        addresses: Vec::new(),
        gateways: Vec::new(),
        routes: Vec::new(),
        mtu: None,
    }
}
