//! Links, addresses, routes and rules of the machine: which links are made and configured, and what to change.
//!
//! [`made()`] says which links are to be made, and [`plan_made`] what that takes; [`plan_wireguard`] says it of what WireGuard links know. Once they are there, [`select`] picks the links to
//! configure, [`desire`] says what they should have, given their leases, and [`plan`] compares that with what is. Links, addresses, routes
//! and rules without Garboard's mark are never changed.

mod advertisement;
mod config;
pub mod dhcp;
pub mod lease;
mod made;
mod report;
mod rule;
mod wireguard;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

pub use self::advertisement::parameters;
pub use self::config::{Config, Kind, LinkConfig, RouteConfig, Selected, Selector, select};
use self::lease::Lease;
pub use self::made::{LinkStep, Made, Settings, made, plan_made};
pub use self::report::{default_link, distinct, node_addresses, waiting};
pub use self::rule::{Rule, rules};
pub use self::wireguard::{
    ObservedPeer, Peer, WireguardLink, WireguardStep, plan_wireguard, wireguard_links, wireguard_status,
};

/// The table of routes that is looked up for everything that no rule sends elsewhere (`RT_TABLE_MAIN`).
const MAIN_TABLE: u32 = 254;

/// Metric of routes that the user declared.
const DECLARED_METRIC: u32 = 100;
/// Metric of routes from the first link's lease; each further link's is one higher, so that two links with a default
/// route do not fight for it.
const LEASED_METRIC: u32 = 1024;

/// A link as observed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// Interface name.
    pub name: String,
    /// Hardware address, if it is an Ethernet.
    pub mac: Option<[u8; 6]>,
    /// The hardware address that it was made with, if that is known: that of a bond's member is the bond's meanwhile.
    pub permanent_mac: Option<[u8; 6]>,
    /// Name of its driver, if it was asked for.
    pub driver: Option<String>,
    /// Whether it is the loopback link.
    pub loopback: bool,
    /// Whether it is an Ethernet of hardware (or of a hypervisor), no virtual link.
    pub physical: bool,
    /// Whether it bears Garboard's mark of links that are made as declared.
    pub ours: bool,
    /// What it is, of the kinds that are made; none for others.
    pub settings: Option<Settings>,
    /// Index of the bond or bridge that it is a port of.
    pub controller: Option<u32>,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether it sees its medium.
    pub carrier: bool,
    /// MTU in bytes.
    pub mtu: u32,
    /// Largest MTU that it takes, in bytes.
    pub max_mtu: Option<u32>,
}

impl Link {
    /// Whether it is hardware that is no port of anything.
    fn is_free(&self) -> bool {
        self.physical && self.controller.is_none()
    }
}

/// An address of a link.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// Index of the link.
    pub index: u32,
    /// The address and the length of its subnet's prefix.
    pub address: IpNet,
}

/// A route over a link.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Where it leads.
    pub destination: IpNet,
    /// The next hop; none when the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// Index of the link.
    pub index: u32,
    /// Priority: the lowest wins.
    pub metric: u32,
    /// The table that it is in.
    pub table: u32,
}

/// What the kernel has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// All links.
    pub links: Vec<Link>,
    /// Addresses, each with whether it bears Garboard's mark.
    pub addresses: Vec<(Address, bool)>,
    /// Addresses that the kernel made of advertisements of routers. They come, change and go with the routers.
    pub advertised: Vec<Address>,
    /// Routes, each with whether it bears Garboard's mark.
    pub routes: Vec<(Route, bool)>,
    /// Rules, each with whether it bears Garboard's mark.
    pub rules: Vec<(Rule, bool)>,
}

/// What the kernel should have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// Links that must be up, by index, each with its MTU if that matters.
    pub links: BTreeMap<u32, Option<u32>>,
    /// Addresses.
    pub addresses: Vec<Address>,
    /// Routes, in an order in which each one's gateway is reachable.
    pub routes: Vec<Route>,
    /// Rules.
    pub rules: Vec<Rule>,
}

/// A change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Set the link with that index up.
    SetUp(u32),
    /// Set the MTU of the link with that index, in bytes.
    SetMtu(u32, u32),
    /// Remove a rule of ours.
    RemoveRule(Rule),
    /// Remove a route of ours.
    RemoveRoute(Route),
    /// Remove an address of ours.
    RemoveAddress(Address),
    /// Add an address.
    AddAddress(Address),
    /// Add a route.
    AddRoute(Route),
    /// Add a rule.
    AddRule(Rule),
}

/// What the kernel should have, given the leases by link index.
///
/// Without declared links, all physical links are up: otherwise none would show a carrier.
pub fn desire(config: &Config, links: &[Link], selected: &[Selected], leases: &BTreeMap<u32, Lease>) -> Desired {
    let mut desired = Desired { rules: rules(&config.rules), ..Desired::default() };
    let needed = |link: &&Link| link.loopback || (config.links.is_empty() && link.is_free());
    desired.links.extend(links.iter().filter(needed).map(|link| (link.index, None)));
    for (position, Selected { index, config }) in selected.iter().enumerate() {
        let LinkConfig { selector: _, label: _, port: _, dhcp4, accept_ra: _, addresses, gateways, routes, mtu } =
            config;
        let index = *index;
        let lease = leases.get(&index).filter(|_| *dhcp4);
        let leased_mtu = lease.and_then(|lease| lease.mtu).map(u32::from);
        desired.links.insert(index, mtu.or(leased_mtu));
        let leased = lease.map(|lease| IpNet::V4(lease.address));
        let mut own: Vec<IpNet> = Vec::new();
        for address in addresses.iter().copied().chain(leased) {
            if !own.contains(&address) {
                own.push(address);
            }
        }
        let mut add_route = |destination: IpNet, gateway: Option<IpAddr>, metric: u32, table: u32| {
            // A gateway outside of the subnet (a host address of /32, as some clouds give) needs a route of its own.
            let hidden = gateway.filter(|gateway| !own.iter().any(|net| net.contains(gateway)));
            let on_link =
                hidden.map(|gateway| Route { destination: gateway.into(), gateway: None, index, metric, table });
            let route = Route { destination, gateway, index, metric, table };
            for route in on_link.into_iter().chain([route]) {
                let key = |route: &Route| (route.destination, route.metric, route.table);
                let same = |other: &Route| key(other) == key(&route);
                if !desired.routes.iter().any(same) {
                    desired.routes.push(route);
                }
            }
        };
        let position = u32::try_from(position).unwrap_or(u32::MAX / 2);
        for gateway in gateways {
            let everywhere = match gateway {
                IpAddr::V4(_) => IpNet::V4(Ipv4Net::default()),
                IpAddr::V6(_) => IpNet::V6(Ipv6Net::default()),
            };
            add_route(everywhere, Some(*gateway), DECLARED_METRIC + position, MAIN_TABLE);
        }
        for RouteConfig { destination, gateway, metric, table } in routes {
            let metric = metric.unwrap_or(DECLARED_METRIC + position);
            add_route(*destination, *gateway, metric, table.unwrap_or(MAIN_TABLE));
        }
        for route in lease.iter().flat_map(|lease| &lease.routes) {
            let gateway = route.gateway.map(IpAddr::V4);
            add_route(IpNet::V4(route.destination), gateway, LEASED_METRIC + position, MAIN_TABLE);
        }
        desired.addresses.extend(own.into_iter().map(|address| Address { index, address }));
    }
    desired
}

/// The changes that turn `observed` into `desired`, in the order in which they are possible.
///
/// What is removed goes first, rules before the routes that they lead to: a second address of a subnet would be removed by the kernel together with the first.
/// The kernel may do more than a step says (routes go with their address), so whoever applies the steps observes and
/// plans again until nothing is left.
pub fn plan(desired: &Desired, observed: &Observed) -> Vec<Step> {
    let Desired { links, addresses, routes, rules } = desired;
    let mut steps = Vec::new();
    // A VLAN takes no larger MTU than its parent has, and goes up only after it.
    let mut wanted: Vec<(&Link, Option<u32>)> = Vec::new();
    wanted.extend(observed.links.iter().filter_map(|link| Some((link, *links.get(&link.index)?))));
    wanted.sort_by_key(|(link, _)| (made::height(link, &observed.links), link.index));
    for (link, mtu) in wanted {
        let index = &link.index;
        // The MTU first: some drivers restart the link for it.
        let mtu = mtu.map(|mtu| link.max_mtu.map_or(mtu, |max| mtu.min(max)));
        if let Some(mtu) = mtu.filter(|mtu| *mtu != link.mtu) {
            steps.push(Step::SetMtu(*index, mtu));
        }
        if !link.up {
            steps.push(Step::SetUp(*index));
        }
    }
    for (rule, ours) in &observed.rules {
        if *ours && !rules.contains(rule) {
            steps.push(Step::RemoveRule(rule.clone()));
        }
    }
    for (route, ours) in &observed.routes {
        if *ours && !routes.contains(route) {
            steps.push(Step::RemoveRoute(route.clone()));
        }
    }
    for (address, ours) in &observed.addresses {
        if *ours && !addresses.contains(address) {
            steps.push(Step::RemoveAddress(address.clone()));
        }
    }
    let exists = |index: u32| observed.links.iter().any(|link| link.index == index);
    for address in addresses.iter().filter(|address| exists(address.index)) {
        if !observed.addresses.iter().any(|(observed, _)| observed == address) {
            steps.push(Step::AddAddress(address.clone()));
        }
    }
    for route in routes.iter().filter(|route| exists(route.index)) {
        if !observed.routes.iter().any(|(observed, _)| observed == route) {
            steps.push(Step::AddRoute(route.clone()));
        }
    }
    for rule in rules {
        if !observed.rules.iter().any(|(observed, _)| observed == rule) {
            steps.push(Step::AddRule(rule.clone()));
        }
    }
    steps
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SetUp(index) => write!(f, "link {index} up"),
            Self::SetMtu(index, mtu) => write!(f, "link {index} MTU {mtu}"),
            Self::RemoveRule(rule) => write!(f, "remove rule {rule}"),
            Self::RemoveRoute(route) => write!(f, "remove route {route}"),
            Self::RemoveAddress(Address { index, address }) => write!(f, "remove address {address} from link {index}"),
            Self::AddAddress(Address { index, address }) => write!(f, "add address {address} to link {index}"),
            Self::AddRoute(route) => write!(f, "add route {route}"),
            Self::AddRule(rule) => write!(f, "add rule {rule}"),
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { destination, gateway, index, metric, table } = self;
        match gateway {
            Some(gateway) => write!(f, "{destination} by {gateway} on link {index}, metric {metric}")?,
            None => write!(f, "{destination} on link {index}, metric {metric}")?,
        }
        if *table == MAIN_TABLE { Ok(()) } else { write!(f, ", table {table}") }
    }
}

#[cfg(test)]
#[path = "network/plan_tests.rs"]
mod tests;
