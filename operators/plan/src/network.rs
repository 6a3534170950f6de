//! Links, addresses and routes of the machine: which links are configured, and what to change.
//!
//! [`select`] picks the links, [`desire`] says what they should have, given their leases, and [`plan`] compares that with
//! what is. Addresses and routes without Garboard's mark are never changed.

mod config;
pub mod dhcp;
pub mod lease;
mod report;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

pub use self::config::{Config, LinkConfig, RouteConfig, Selected, Selector, select};
use self::lease::Lease;
pub use self::report::{default_link, distinct, node_addresses, waiting};

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
    /// Whether it is the loopback link.
    pub loopback: bool,
    /// Whether it is an Ethernet of hardware (or of a hypervisor), neither a virtual link nor a port of one.
    pub physical: bool,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether it sees its medium.
    pub carrier: bool,
    /// MTU in bytes.
    pub mtu: u32,
    /// Largest MTU that it takes, in bytes.
    pub max_mtu: Option<u32>,
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
}

/// What the kernel has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// All links.
    pub links: Vec<Link>,
    /// Addresses, each with whether it bears Garboard's mark.
    pub addresses: Vec<(Address, bool)>,
    /// Routes, each with whether it bears Garboard's mark.
    pub routes: Vec<(Route, bool)>,
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
}

/// A change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Set the link with that index up.
    SetUp(u32),
    /// Set the MTU of the link with that index, in bytes.
    SetMtu(u32, u32),
    /// Remove a route of ours.
    RemoveRoute(Route),
    /// Remove an address of ours.
    RemoveAddress(Address),
    /// Add an address.
    AddAddress(Address),
    /// Add a route.
    AddRoute(Route),
}

/// What the kernel should have, given the leases by link index.
///
/// Without declared links, all physical links are up: otherwise none would show a carrier.
pub fn desire(config: &Config, links: &[Link], selected: &[Selected], leases: &BTreeMap<u32, Lease>) -> Desired {
    let mut desired = Desired::default();
    let needed = |link: &&Link| link.loopback || (config.links.is_empty() && link.physical);
    desired.links.extend(links.iter().filter(needed).map(|link| (link.index, None)));
    for (position, Selected { index, config }) in selected.iter().enumerate() {
        let LinkConfig { selector: _, dhcp4, addresses, gateways, routes, mtu } = config;
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
        let mut add_route = |destination: IpNet, gateway: Option<IpAddr>, metric: u32| {
            // A gateway outside of the subnet (a host address of /32, as some clouds give) needs a route of its own.
            let hidden = gateway.filter(|gateway| !own.iter().any(|net| net.contains(gateway)));
            let on_link = hidden.map(|gateway| Route { destination: gateway.into(), gateway: None, index, metric });
            let route = Route { destination, gateway, index, metric };
            for route in on_link.into_iter().chain([route]) {
                let same = |other: &Route| (other.destination, other.metric) == (route.destination, route.metric);
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
            add_route(everywhere, Some(*gateway), DECLARED_METRIC + position);
        }
        for RouteConfig { destination, gateway, metric } in routes {
            add_route(*destination, *gateway, metric.unwrap_or(DECLARED_METRIC + position));
        }
        for route in lease.iter().flat_map(|lease| &lease.routes) {
            let gateway = route.gateway.map(IpAddr::V4);
            add_route(IpNet::V4(route.destination), gateway, LEASED_METRIC + position);
        }
        desired.addresses.extend(own.into_iter().map(|address| Address { index, address }));
    }
    desired
}

/// The changes that turn `observed` into `desired`, in the order in which they are possible.
///
/// What is removed goes first: a second address of a subnet would be removed by the kernel together with the first.
/// The kernel may do more than a step says (routes go with their address), so whoever applies the steps observes and
/// plans again until nothing is left.
pub fn plan(desired: &Desired, observed: &Observed) -> Vec<Step> {
    let Desired { links, addresses, routes } = desired;
    let mut steps = Vec::new();
    for (index, mtu) in links {
        let Some(link) = observed.links.iter().find(|link| link.index == *index) else { continue };
        // The MTU first: some drivers restart the link for it.
        let mtu = mtu.map(|mtu| link.max_mtu.map_or(mtu, |max| mtu.min(max)));
        if let Some(mtu) = mtu.filter(|mtu| *mtu != link.mtu) {
            steps.push(Step::SetMtu(*index, mtu));
        }
        if !link.up {
            steps.push(Step::SetUp(*index));
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
    steps
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SetUp(index) => write!(f, "link {index} up"),
            Self::SetMtu(index, mtu) => write!(f, "link {index} MTU {mtu}"),
            Self::RemoveRoute(route) => write!(f, "remove route {route}"),
            Self::RemoveAddress(Address { index, address }) => write!(f, "remove address {address} from link {index}"),
            Self::AddAddress(Address { index, address }) => write!(f, "add address {address} to link {index}"),
            Self::AddRoute(route) => write!(f, "add route {route}"),
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { destination, gateway, index, metric } = self;
        match gateway {
            Some(gateway) => write!(f, "{destination} by {gateway} on link {index}, metric {metric}"),
            None => write!(f, "{destination} on link {index}, metric {metric}"),
        }
    }
}

#[cfg(test)]
#[path = "network/plan_tests.rs"]
mod tests;
