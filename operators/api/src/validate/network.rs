//! Rules of a machine's network.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use serde_json::Value;

use super::Errors;
use crate::machine::{
    Bond, Bridge, Link, LinkMatch, LinkRoute, MachineNetwork, RoutingRule, Vlan, Wireguard, WireguardPeer,
};
use crate::types::{Cidr, SOCKET_ADDRESS_WORDS};

/// Names that a link to make cannot have: the kernel's own, and those by which its parameters mean all links.
const KEPT_NAMES: [&str; 5] = [".", "..", "all", "default", "lo"];
/// What the names of Garboard's own links begin with: `gb0`, `gb-vxlan`, those of pods.
const OWN_NAMES: &str = "gb";

pub(super) fn check(errors: &mut Errors, base: &str, network: &MachineNetwork) {
    // The others are of any form that their types and the schema let pass.
    let MachineNetwork { links, rules, nameservers: _, search_domains: _, hosts: _ } = network;
    let mut matched = BTreeSet::new();
    let mut labels = BTreeSet::new();
    let mut ports = BTreeSet::new();
    for (index, link) in links.iter().enumerate() {
        let field = format!("{base}.links[{index}]");
        check_link(errors, &field, link);
        if let Some(matches) = &link.matches {
            let LinkMatch { name, mac, driver } = matches;
            let key = (name.as_deref(), mac.map(|mac| mac.octets()));
            // Each link of a driver is meant once.
            let once = driver.is_some() || matched.insert(key);
            errors.require(once, format!("{field}.match"), shown(matches), "each link once");
        }
        if let Some(label) = link.label() {
            let named = if link.name.is_some() { "name" } else { "match.name" };
            errors.require(labels.insert(label), format!("{field}.{named}"), label, "each name once");
        }
    }
    for (index, link) in links.iter().enumerate() {
        if let Some(port) = link.wireguard.as_ref().and_then(|wireguard| wireguard.listen_port) {
            let field = format!("{base}.links[{index}].wireguard.listenPort");
            errors.require(ports.insert(port), field, port, "each port once");
        }
    }
    check_references(errors, base, links);
    let mut unique = BTreeSet::new();
    for (index, rule) in rules.iter().enumerate() {
        let field = format!("{base}.rules[{index}]");
        check_rule(errors, &field, rule);
        let RoutingRule { from, to, fwmark, fwmask, table, priority } = rule;
        let once = unique.insert((*from, *to, *fwmark, *fwmask, *table, *priority));
        errors.require(once, field, shown(rule), "each rule once");
    }
}

fn shown(value: &impl serde::Serialize) -> Value {
    serde_json::to_value(value).unwrap_or_default()
}

fn check_link(errors: &mut Errors, field: &str, link: &Link) {
    let Link {
        matches,
        name,
        vlan,
        bond,
        bridge,
        wireguard,
        // Whether a member has addresses is seen where its bond is known.
        dhcp4,
        accept_ra,
        addresses,
        gateway,
        routes,
        mtu: _,
    } = link;
    let kinds = [vlan.is_some(), bond.is_some(), bridge.is_some(), wireguard.is_some()];
    let kinds = kinds.into_iter().filter(|given| *given).count();
    let given = kinds + usize::from(matches.is_some());
    let words =
        "either match, for a link that the machine has, or one of vlan, bond, bridge and wireguard, for one to make";
    errors.require(given == 1, format!("{field}.match"), shown(matches), words);
    if let Some(matches) = matches {
        let LinkMatch { name, mac, driver } = matches;
        let given = [name.is_some(), mac.is_some(), driver.is_some()].into_iter().filter(|given| *given).count();
        errors.require(given == 1, format!("{field}.match"), shown(matches), "one of name, mac and driver");
    }
    if kinds > 0 {
        match name {
            Some(name) => {
                let free = !KEPT_NAMES.contains(&name.as_str()) && !name.starts_with(OWN_NAMES);
                let words =
                    "another name: lo, all and default are the kernel's, and what begins with gb is Garboard's own";
                errors.require(free, format!("{field}.name"), name.as_str(), words);
            }
            None => errors.require(false, format!("{field}.name"), Value::Null, "the name of the link to make"),
        }
    }
    if let Some(bond) = bond {
        check_bond(errors, &format!("{field}.bond"), bond);
    }
    if let Some(wireguard) = wireguard {
        check_wireguard(errors, &format!("{field}.wireguard"), wireguard);
        for (name, given) in [("dhcp4", dhcp4), ("acceptRA", accept_ra)] {
            let words = "nothing: a WireGuard link has the addresses of `addresses` alone";
            errors.require(!given.unwrap_or(false), format!("{field}.{name}"), true, words);
        }
    }
    for (index, address) in addresses.iter().enumerate() {
        let valid = is_host_address(address.net());
        errors.require(
            valid,
            format!("{field}.addresses[{index}]"),
            address.to_string(),
            "an address of one machine, such as 192.0.2.10/24; not the first or last of its range",
        );
    }
    for (index, route) in routes.iter().enumerate() {
        check_route(errors, &format!("{field}.routes[{index}]"), route);
    }
    if let Some(gateway) = gateway {
        let reached =
            addresses.iter().any(|address| address.net().contains(gateway) && address.net().addr() != *gateway);
        errors.require(
            reached,
            format!("{field}.gateway"),
            gateway.to_string(),
            "another address in the range of one of `addresses`",
        );
    }
}

fn check_bond(errors: &mut Errors, field: &str, bond: &Bond) {
    let Bond { mode, members, miimon: _, primary, lacp_rate, transmit_hash_policy } = bond;
    if let Some(primary) = primary {
        let field = format!("{field}.primary");
        let words = "a member, in one of the modes active-backup, balance-tlb and balance-alb";
        errors.require(mode.has_primary() && members.contains(primary), field, primary.as_str(), words);
    }
    if let Some(rate) = lacp_rate {
        let asks = *mode == crate::machine::BondMode::Ieee8023Ad;
        errors.require(asks, format!("{field}.lacpRate"), shown(rate), "nothing unless the mode is 802.3ad");
    }
    if let Some(policy) = transmit_hash_policy {
        let field = format!("{field}.transmitHashPolicy");
        let words = "nothing unless the mode is balance-xor, 802.3ad or balance-tlb";
        errors.require(mode.hashes(), field, shown(policy), words);
    }
}

fn check_wireguard(errors: &mut Errors, field: &str, Wireguard { listen_port: _, peers }: &Wireguard) {
    let (mut keys, mut ranges) = (BTreeSet::new(), BTreeSet::new());
    for (index, peer) in peers.iter().enumerate() {
        let field = format!("{field}.peers[{index}]");
        let WireguardPeer { public_key, endpoint, allowed_ips, persistent_keepalive_seconds: _ } = peer;
        errors.require(keys.insert(public_key), format!("{field}.publicKey"), public_key.as_str(), "each peer once");
        if let Some(endpoint) = endpoint {
            let special = endpoint.ip().is_unspecified() || endpoint.ip().is_multicast();
            let field = format!("{field}.endpoint");
            errors.require(endpoint.port() != 0 && !special, field, endpoint.to_string(), SOCKET_ADDRESS_WORDS);
        }
        for (index, range) in allowed_ips.iter().enumerate() {
            let field = format!("{field}.allowedIPs[{index}]");
            check_range(errors, &field, *range);
            errors.require(ranges.insert(*range), field, range.to_string(), "each range once: it belongs to one peer");
        }
    }
}

/// What links say of each other: that what they are made of is declared, is part of nothing else, and not of itself.
fn check_references(errors: &mut Errors, base: &str, links: &[Link]) {
    let declared: BTreeMap<&str, &Link> = links.iter().filter_map(|link| Some((link.label()?, link))).collect();
    let mut owners: BTreeMap<&str, &str> = BTreeMap::new();
    for (index, link) in links.iter().enumerate() {
        let field = format!("{base}.links[{index}]");
        let own = link.label().unwrap_or_default();
        for (part, name) in parts(link, &field) {
            errors.require(declared.contains_key(name), &part, name, "the name of one of `links`");
            let words = format!("a link that is not made of {own} in turn");
            errors.require(!is_made_of(&declared, name, own), &part, name, &words);
            let framed = declared.get(name).is_none_or(|other| other.wireguard.is_none());
            let words = "an Ethernet: a WireGuard link has no frames that another link could carry";
            errors.require(framed, &part, name, words);
        }
        for (port, name) in ports(link, &field) {
            let Some(other) = owners.insert(name, own) else { continue };
            errors.require(false, port, name, &format!("a link that is part of nothing else: it is a part of {other}"));
        }
    }
    for (index, link) in links.iter().enumerate() {
        let Some((name, owner)) = link.label().and_then(|name| owners.get_key_value(name)) else { continue };
        let bonded = declared.get(owner).is_some_and(|owner| owner.bond.is_some());
        check_port(errors, &format!("{base}.links[{index}]"), link, name, owner, bonded);
    }
}

/// A member of a bond, or a port of a bridge, only carries what passes by it.
fn check_port(errors: &mut Errors, field: &str, link: &Link, name: &str, owner: &str, bonded: bool) {
    let Link {
        matches: _,
        name: _,
        vlan: _,
        bond: _,
        bridge,
        // That it is no part of anything is said where it is named.
        wireguard: _,
        dhcp4,
        accept_ra,
        addresses,
        gateway,
        routes,
        mtu,
    } = link;
    let words = format!("nothing: {name} is a part of {owner}, which has the addresses");
    errors.require(!dhcp4.unwrap_or(false), format!("{field}.dhcp4"), true, &words);
    errors.require(!accept_ra.unwrap_or(false), format!("{field}.acceptRA"), true, &words);
    errors.require(addresses.is_empty(), format!("{field}.addresses"), shown(addresses), &words);
    errors.require(gateway.is_none(), format!("{field}.gateway"), shown(gateway), &words);
    errors.require(routes.is_empty(), format!("{field}.routes"), shown(routes), &words);
    let words = format!("nothing: {name} has the MTU of its bond {owner}");
    errors.require(!bonded || mtu.is_none(), format!("{field}.mtu"), shown(mtu), &words);
    let words = format!("nothing: a bridge cannot be a part of {owner}");
    errors.require(bridge.is_none(), format!("{field}.bridge"), shown(bridge), &words);
}

/// The fields by which a link names those that it is made of, with the names.
fn parts<'a>(link: &'a Link, field: &str) -> Vec<(String, &'a str)> {
    let parent =
        link.vlan.as_ref().map(|Vlan { parent, id: _, protocol: _ }| (format!("{field}.vlan.parent"), parent.as_str()));
    parent.into_iter().chain(ports(link, field)).collect()
}

fn ports<'a>(link: &'a Link, field: &str) -> Vec<(String, &'a str)> {
    let (list, names) = match (&link.bond, &link.bridge) {
        (Some(bond), _) => ("bond.members", &bond.members),
        (None, Some(Bridge { ports, stp: _ })) => ("bridge.ports", ports),
        (None, None) => return Vec::new(),
    };
    let named = |(index, name): (usize, &'a String)| (format!("{field}.{list}[{index}]"), name.as_str());
    names.iter().enumerate().map(named).collect()
}

/// Whether a link is another, or is made of it, directly or by others.
fn is_made_of(declared: &BTreeMap<&str, &Link>, name: &str, other: &str) -> bool {
    let mut seen = BTreeSet::from([name]);
    let mut next = vec![name];
    while let Some(link) = next.pop().and_then(|name| declared.get(name)) {
        next.extend(
            parts(link, "")
                .into_iter()
                .map(|(_, part)| part)
                .filter(|part| declared.contains_key(part) && seen.insert(part)),
        );
    }
    seen.contains(other)
}

fn check_route(errors: &mut Errors, field: &str, LinkRoute { to, via, metric: _, table }: &LinkRoute) {
    check_range(errors, &format!("{field}.to"), *to);
    if let Some(via) = via {
        let special = via.is_unspecified() || via.is_multicast() || via.is_loopback();
        let fits = via.is_ipv4() == to.net().addr().is_ipv4() && !special;
        errors.require(
            fits,
            format!("{field}.via"),
            via.to_string(),
            "the address of a router, of the same family as `to`",
        );
    }
    if let Some(table) = table {
        check_table(errors, &format!("{field}.table"), *table);
    }
}

fn check_rule(errors: &mut Errors, field: &str, rule: &RoutingRule) {
    let RoutingRule { from, to, fwmark, fwmask, table, priority: _ } = rule;
    for (name, range) in [("from", from), ("to", to)] {
        if let Some(range) = range {
            check_range(errors, &format!("{field}.{name}"), *range);
        }
    }
    if let (Some(from), Some(to)) = (from, to) {
        let fits = from.net().addr().is_ipv4() == to.net().addr().is_ipv4();
        errors.require(fits, format!("{field}.to"), to.to_string(), "a range of the same family as `from`");
    }
    let selective = from.is_some() || to.is_some() || fwmark.is_some();
    errors.require(selective, field, shown(rule), "at least one of from, to and fwmark");
    let masked = fwmask.is_none() || fwmark.is_some();
    errors.require(masked, format!("{field}.fwmask"), shown(fwmask), "nothing without a fwmark");
    check_table(errors, &format!("{field}.table"), *table);
}

fn check_range(errors: &mut Errors, field: &str, range: Cidr) {
    let words = format!("the start of the range, {}", range.net().trunc());
    errors.require(range.is_range(), field, range.to_string(), &words);
}

fn check_table(errors: &mut Errors, field: &str, table: u32) {
    errors.require(!matches!(table, 0 | 255), field, table, "1 to 4294967295, but not 255, which is the kernel's own");
}

fn is_host_address(net: IpNet) -> bool {
    let address = net.addr();
    let special = address.is_unspecified() || address.is_multicast() || address.is_loopback();
    // RFC 3021: both addresses of a range of two are usable. IPv6 has no broadcast address.
    let edge = match net {
        IpNet::V4(net) => net.prefix_len() < 31 && (net.addr() == net.network() || net.addr() == net.broadcast()),
        IpNet::V6(_) => false,
    };
    !special && !edge && net.prefix_len() > 0
}
