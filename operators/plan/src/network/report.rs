//! What the network has reached, for the cluster and for people.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{Address, Config, Kind, Link, LinkConfig, MAIN_TABLE, Observed, Route, Selected, Selector};

/// Addresses of the selected links that other machines can use: those of the link with the default route first, IPv4
/// before IPv6, and then in the kernel's order. Those from advertisements of routers are the last of a link, and count only where it is
/// declared that they do: what the cluster knows of a machine is not to come and go with the routers.
pub fn node_addresses(observed: &Observed, selected: &[Selected]) -> Vec<IpAddr> {
    let default = default_link(observed).map(|link| link.index);
    let mut found: Vec<(bool, bool, usize, IpAddr)> = Vec::new();
    let accepts = |address: &&Address| {
        selected.iter().any(|selected| selected.index == address.index && selected.config.accept_ra == Some(true))
    };
    let lasting = observed.addresses.iter().map(|(address, _)| address);
    for address in lasting.chain(observed.advertised.iter().filter(accepts)) {
        let position = selected.iter().position(|selected| selected.index == address.index);
        if let Some(position) = position.filter(|_| is_global(address.address.addr())) {
            let ip = address.address.addr();
            found.push((Some(address.index) != default, ip.is_ipv6(), position, ip));
        }
    }
    found.sort_by_key(|(other_link, v6, position, _)| (*other_link, *v6, *position));
    distinct(found.into_iter().map(|(.., ip)| ip))
}

/// The link of the best default route; IPv4's before IPv6's.
pub fn default_link(observed: &Observed) -> Option<&Link> {
    let default = |(route, _): &&(Route, bool)| route.destination.prefix_len() == 0 && route.table == MAIN_TABLE;
    let (best, _) = observed.routes.iter().filter(default).min_by_key(|(route, _)| {
        let v6 = matches!(route.destination, IpNet::V6(_));
        (v6, route.metric)
    })?;
    observed.links.iter().find(|link| link.index == best.index)
}

/// What the network waits for, in words. `phases` says what the DHCP clients do, by link index.
pub fn waiting(
    config: &Config,
    observed: &Observed,
    selected: &[Selected],
    phases: &BTreeMap<u32, &'static str>,
) -> Vec<String> {
    let mut waiting = Vec::new();
    if config.links.is_empty() && selected.is_empty() {
        let names: Vec<&str> = observed.links.iter().filter(|link| link.is_free()).map(|link| &*link.name).collect();
        waiting.push(match &*names {
            [] => "an Ethernet link: the machine shows none".to_owned(),
            names => format!("a carrier on one of the links {}", names.join(", ")),
        });
    }
    for declared in &config.links {
        if !selected.iter().any(|selected| selected.config.selector == declared.selector) {
            waiting.push(match &declared.selector {
                Selector::Name(name) => format!("the link {name}: the machine has no such link"),
                Selector::Mac(mac) => format!("the link with hardware address {}: there is none", mac_text(*mac)),
                Selector::Driver(driver) => format!("a link of the driver {driver}: there is no other"),
                Selector::Made(name, kind) => unmade(name, kind, &observed.links),
            });
        }
    }
    for Selected { index, config } in selected {
        let Some(link) = observed.links.iter().find(|link| link.index == *index) else { continue };
        let has_address = observed.addresses.iter().any(|(address, _)| {
            address.index == *index && address.address.addr().is_ipv4() && is_global(address.address.addr())
        });
        // A bond works without some of its members, and a bridge without ports has no carrier.
        let needs_carrier = match config {
            LinkConfig { port: true, .. } => false,
            LinkConfig { selector: Selector::Made(_, Kind::Bridge(bridge)), .. } => !bridge.ports.is_empty(),
            LinkConfig { .. } => true,
        };
        if !link.carrier && needs_carrier {
            waiting.push(format!("a carrier on {}", link.name));
        } else if config.dhcp4 && !has_address {
            let phase = phases.get(index).copied().unwrap_or("starting");
            waiting.push(format!("an address by DHCP on {} ({phase})", link.name));
        }
    }
    waiting
}

/// Why a link is not made.
fn unmade(name: &str, kind: &Kind, links: &[Link]) -> String {
    if links.iter().any(|link| link.name == name && !link.ours) {
        return format!("the link {name}: another link, which is not Garboard's, has its name");
    }
    match kind {
        Kind::Vlan(vlan) => format!("the link {name}: it is made once {} is there", vlan.parent),
        Kind::Bond(_) | Kind::Bridge(_) | Kind::Wireguard(_) => format!("the link {name}: it could not be made"),
    }
}

/// The items in order, each once.
pub fn distinct<T: PartialEq>(items: impl IntoIterator<Item = T>) -> Vec<T> {
    let mut result = Vec::new();
    for item in items {
        if !result.contains(&item) {
            result.push(item);
        }
    }
    result
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn is_global(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !(address.is_loopback() || address.is_link_local() || address.is_unspecified()),
        IpAddr::V6(address) => !(address.is_loopback() || address.is_unicast_link_local() || address.is_unspecified()),
    }
}
