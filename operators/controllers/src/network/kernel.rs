//! The kernel's links, addresses and routes as the plan's values, and back.

use garboard_plan::network as plan;
use garboard_sys::netlink::{Address, Link, Netlink, NetlinkError, PROTOCOL, Route};

/// `IFAPROT_KERNEL_RA`: the kernel made the address from a router's advertisement.
const KERNEL_RA: u8 = 2;

/// Everything that a plan compares. Virtual links of the kind `hardware` count as physical.
///
/// Addresses that the kernel makes of router advertisements are left out: they come, change and go with the routers, and
/// what the cluster knows of a machine must not.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn observe(netlink: &mut Netlink, hardware: Option<&str>) -> Result<plan::Observed, NetlinkError> {
    let links = netlink.links()?.into_iter().map(|found| link(found, hardware)).collect();
    let addresses = netlink.addresses()?.into_iter().filter(|address| address.protocol != KERNEL_RA).map(|address| {
        let Address { index, address, protocol, global: _ } = address;
        (plan::Address { index, address }, protocol == PROTOCOL)
    });
    let addresses = addresses.collect();
    let routes = netlink.routes()?.into_iter().map(|route| {
        let Route { destination, gateway, index, source: _, metric, protocol } = route;
        (plan::Route { destination, gateway, index, metric }, protocol == PROTOCOL)
    });
    Ok(plan::Observed { links, addresses, routes: routes.collect() })
}

/// Carries out a step. What is gone already counts as removed.
///
/// # Errors
/// When the kernel refuses.
pub fn apply(netlink: &mut Netlink, step: &plan::Step) -> Result<(), NetlinkError> {
    let gone = |result: Result<(), NetlinkError>| match result {
        Err(error) if error.is_missing() => Ok(()),
        other => other,
    };
    match step {
        plan::Step::SetUp(index) => netlink.set_up(*index, true),
        plan::Step::SetMtu(index, mtu_bytes) => netlink.set_mtu(*index, *mtu_bytes),
        plan::Step::RemoveRoute(route) => gone(netlink.remove_route(&marked_route(route))),
        plan::Step::RemoveAddress(address) => gone(netlink.remove_address(&marked_address(address))),
        plan::Step::AddAddress(address) => netlink.add_address(&marked_address(address)),
        plan::Step::AddRoute(route) => netlink.add_route(&marked_route(route)),
    }
}

fn link(link: Link, hardware: Option<&str>) -> plan::Link {
    let Link { index, name, mac, loopback, up, carrier, kind, controller, mtu, max_mtu } = link;
    let real = kind.is_none() || kind.as_deref() == hardware;
    let physical = mac.is_some() && !loopback && real && controller.is_none();
    plan::Link { index, name, mac: mac.map(|mac| mac.0), loopback, physical, up, carrier, mtu, max_mtu }
}

fn marked_address(address: &plan::Address) -> Address {
    let plan::Address { index, address } = address;
    Address { index: *index, address: *address, protocol: PROTOCOL, global: true }
}

fn marked_route(route: &plan::Route) -> Route {
    let plan::Route { destination, gateway, index, metric } = route;
    Route {
        destination: *destination,
        gateway: *gateway,
        index: *index,
        source: None,
        metric: *metric,
        protocol: PROTOCOL,
    }
}
