//! The kernel's links, addresses and routes as the plan's values, and back.

use garboard_plan::network as plan;
use garboard_sys::netlink::{Address, KERNEL_RA, Link, MAIN_TABLE, Netlink, NetlinkError, PROTOCOL, Route};

/// Everything that a plan compares. Virtual links of the kind `hardware` count as physical.
///
/// Addresses that the kernel makes of router advertisements are left out: they come, change and go with the routers, and
/// what the cluster knows of a machine must not.
///
/// # Errors
/// When the kernel cannot be asked.
pub async fn observe(netlink: &mut Netlink, hardware: Option<&str>) -> Result<plan::Observed, NetlinkError> {
    let links = netlink.links().await?.into_iter().map(|found| link(found, hardware)).collect();
    let addresses = netlink.addresses().await?.into_iter().filter(|address| address.protocol != KERNEL_RA);
    let addresses = addresses.map(|address| {
        let Address { index, address, protocol, unique: _ } = address;
        (plan::Address { index, address }, protocol == PROTOCOL)
    });
    let addresses = addresses.collect();
    let routes = netlink.routes().await?.into_iter().map(|route| {
        let Route { destination, gateway, index, metric, table: _, protocol } = route;
        (plan::Route { destination, gateway, index, metric }, protocol == PROTOCOL)
    });
    Ok(plan::Observed { links, addresses, routes: routes.collect() })
}

/// Carries out a step. What is gone already counts as removed.
///
/// # Errors
/// When the kernel refuses.
pub async fn apply(netlink: &mut Netlink, step: &plan::Step) -> Result<(), NetlinkError> {
    let gone = |result: Result<(), NetlinkError>| match result {
        Err(error) if error.is_missing() => Ok(()),
        other => other,
    };
    match step {
        plan::Step::SetUp(index) => netlink.set_up(*index).await,
        plan::Step::SetMtu(index, mtu_bytes) => netlink.set_mtu(*index, *mtu_bytes).await,
        plan::Step::RemoveRoute(route) => gone(netlink.remove_route(&marked_route(route)).await),
        plan::Step::RemoveAddress(address) => gone(netlink.remove_address(address.index, address.address).await),
        plan::Step::AddAddress(address) => {
            let plan::Address { index, address } = *address;
            netlink.add_address(&Address { index, address, protocol: PROTOCOL, unique: false }).await
        }
        plan::Step::AddRoute(route) => netlink.add_route(&marked_route(route)).await,
    }
}

fn link(link: Link, hardware: Option<&str>) -> plan::Link {
    let Link { index, name, mac, loopback, up, carrier, kind, controller, mtu, max_mtu, .. } = link;
    let real = kind.is_none() || kind.as_deref() == hardware;
    let physical = mac.is_some() && !loopback && real && controller.is_none();
    plan::Link { index, name, mac: mac.map(|mac| mac.0), loopback, physical, up, carrier, mtu, max_mtu }
}

fn marked_route(route: &plan::Route) -> Route {
    let plan::Route { destination, gateway, index, metric } = *route;
    Route { destination, gateway, index, metric, table: MAIN_TABLE, protocol: PROTOCOL }
}
