//! The kernel's links, addresses, routes and rules as the plan's values, and back.

use garboard_plan::network as plan;
use garboard_sys::netlink::{
    Address, GROUP, KERNEL_RA, Link, MAIN_TABLE, Netlink, NetlinkError, PROTOCOL, Route, Rule, SHARED, driver,
};
use tracing::debug;

use super::made;

/// Everything that a plan compares. Virtual links of the kind `hardware` count as physical. Drivers, and what routers advertise, are
/// asked for only where the configuration depends on them.
///
/// # Errors
/// When the kernel cannot be asked.
pub async fn observe(
    netlink: &mut Netlink,
    hardware: Option<&str>,
    config: &plan::Config,
) -> Result<plan::Observed, NetlinkError> {
    let with_drivers = config.links.iter().any(|link| matches!(link.selector, plan::Selector::Driver(_)));
    let found = netlink.links().await?;
    let links = found.iter().map(|each| link(each, hardware, with_drivers, &found)).collect();
    // The virtual address of the API is not the machine's: it comes and goes.
    let addresses = netlink.addresses().await?.into_iter();
    let addresses = addresses.filter(|address| ![KERNEL_RA, SHARED].contains(&address.protocol));
    let addresses = addresses.map(|address| {
        let Address { index, address, protocol, unique: _ } = address;
        (plan::Address { index, address }, protocol == PROTOCOL)
    });
    let addresses = addresses.collect();
    let advertised = match config.links.iter().any(|link| link.accept_ra == Some(true)) {
        true => netlink.advertised_addresses().await?,
        false => Vec::new(),
    };
    let advertised = advertised.into_iter().map(|(index, address)| plan::Address { index, address }).collect();
    let routes = netlink.routes_of_all_tables().await?.into_iter().map(|route| {
        let Route { destination, gateway, index, metric, table, protocol } = route;
        (plan::Route { destination, gateway, index, metric, table }, protocol == PROTOCOL)
    });
    let routes = routes.filter(|(route, ours)| *ours || route.table == MAIN_TABLE).collect();
    let rules = netlink.rules().await?.into_iter().map(|rule| {
        let Rule { ipv6, from, to, mark, table, priority, protocol } = rule;
        (plan::Rule { ipv6, from, to, mark, table, priority }, protocol == PROTOCOL)
    });
    Ok(plan::Observed { links, addresses, advertised, routes, rules: rules.collect() })
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
        plan::Step::RemoveRule(rule) => gone(netlink.remove_rule(&marked_rule(rule)).await),
        plan::Step::RemoveRoute(route) => gone(netlink.remove_route(&marked_route(route)).await),
        plan::Step::RemoveAddress(address) => gone(netlink.remove_address(address.index, address.address).await),
        plan::Step::AddAddress(address) => {
            let plan::Address { index, address } = *address;
            netlink.add_address(&Address { index, address, protocol: PROTOCOL, unique: false }).await
        }
        plan::Step::AddRoute(route) => netlink.add_route(&marked_route(route)).await,
        plan::Step::AddRule(rule) => netlink.add_rule(&marked_rule(rule)).await,
    }
}

fn link(link: &Link, hardware: Option<&str>, with_driver: bool, links: &[Link]) -> plan::Link {
    let Link {
        index,
        name,
        alias: _,
        mac,
        permanent_mac,
        group,
        loopback,
        up,
        carrier,
        kind,
        settings,
        controller,
        port: _,
        mtu,
        max_mtu,
    } = link;
    let real = kind.is_none() || kind.as_deref() == hardware;
    let physical = mac.is_some() && !loopback && real;
    let driver = (physical && with_driver)
        .then(|| driver(name))
        .and_then(|driver| driver.inspect_err(|error| debug!(link = name, %error, "its driver is not known")).ok());
    plan::Link {
        index: *index,
        name: name.clone(),
        mac: mac.map(|mac| mac.0),
        permanent_mac: permanent_mac.map(|mac| mac.0),
        driver,
        loopback: *loopback,
        physical,
        ours: *group == GROUP && settings.is_some(),
        settings: settings.as_ref().and_then(|settings| made::settings(settings, links)),
        controller: *controller,
        up: *up,
        carrier: *carrier,
        mtu: *mtu,
        max_mtu: *max_mtu,
    }
}

fn marked_route(route: &plan::Route) -> Route {
    let plan::Route { destination, gateway, index, metric, table } = *route;
    Route { destination, gateway, index, metric, table, protocol: PROTOCOL }
}

fn marked_rule(rule: &plan::Rule) -> Rule {
    let plan::Rule { ipv6, from, to, mark, table, priority } = *rule;
    Rule { ipv6, from, to, mark, table, priority, protocol: PROTOCOL }
}
