//! From what the kernel holds to what it should hold: a pure function.
//!
//! What is ours: the link of our name with our mark and all that hangs on it, and routes of the main table that bear
//! [`super::PROTOCOL`], over whatever link. Everything else is not looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use garboard_sys::netlink::{MacAddress, Vxlan};
use ipnet::IpNet;

use super::LINK;

/// What tells one route from another; the kernel holds one for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteKey {
    /// Where it leads.
    pub destination: IpNet,
    /// Its priority.
    pub metric: u32,
}

/// How a route leads on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hop {
    /// Through the tunnel to the machine with this address in the pod network.
    Tunnel(IpAddr),
    /// To a machine on the same link.
    Direct {
        /// Index of the link.
        index: u32,
        /// The machine's address there.
        gateway: IpAddr,
    },
    /// In another way, which is never desired.
    Other {
        /// Whether it is over the tunnel's link, and so goes with it.
        tunnel: bool,
    },
}

/// This machine's end of the tunnels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// What makes it the tunnel that it is; another one is another link.
    pub vxlan: Vxlan,
    /// Its hardware address.
    pub mac: MacAddress,
    /// Its largest packet, bytes.
    pub mtu_bytes: u32,
}

/// What the kernel should hold; the default is nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// The link.
    pub tunnel: Option<Tunnel>,
    /// Its addresses.
    pub addresses: BTreeSet<IpNet>,
    /// Its neighbours.
    pub neighbours: BTreeMap<IpAddr, MacAddress>,
    /// Its forwarding database: which machine has a hardware address.
    pub forwards: BTreeMap<MacAddress, IpAddr>,
    /// The routes.
    pub routes: BTreeMap<RouteKey, Hop>,
}

/// The link of our name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ObservedTunnel {
    /// There is none.
    #[default]
    Absent,
    /// It is somebody else's.
    Foreign,
    /// It is ours.
    Present {
        /// Its index.
        index: u32,
        /// What makes it a tunnel; `None` when it is none.
        vxlan: Option<Vxlan>,
        /// Whether it bears the mark: a crash right after the making leaves it without.
        marked: bool,
        /// Its hardware address.
        mac: Option<MacAddress>,
        /// Its largest packet, bytes.
        mtu_bytes: u32,
        /// Whether it is up.
        up: bool,
    },
}

/// What the kernel holds of ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// The link.
    pub tunnel: ObservedTunnel,
    /// Its addresses, without those that the kernel gives each link.
    pub addresses: BTreeSet<IpNet>,
    /// Its permanent neighbours.
    pub neighbours: BTreeMap<IpAddr, MacAddress>,
    /// Its forwarding database; `None` for an entry that is not plainly to one machine. A hardware address may have several.
    pub forwards: Vec<(MacAddress, Option<IpAddr>)>,
    /// Routes with our mark; there may be several with one key.
    pub routes: Vec<(RouteKey, Hop)>,
}

/// One change of what the kernel holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Remove the link with that index, and all that hangs on it.
    RemoveTunnel(u32),
    /// Make the link.
    AddTunnel(Tunnel),
    /// Mark the link, set its hardware address and MTU, and switch it on.
    ConfigureTunnel {
        /// Its hardware address.
        mac: MacAddress,
        /// Its largest packet, bytes.
        mtu_bytes: u32,
    },
    /// Take an address from the link.
    RemoveAddress(IpNet),
    /// Give the link an address.
    AddAddress(IpNet),
    /// Remove a neighbour of the link.
    RemoveNeighbour(IpAddr),
    /// Make a neighbour of the link, in the place of another with that address.
    SetNeighbour(IpAddr, MacAddress),
    /// Remove what the link knows of a hardware address.
    RemoveForward(MacAddress),
    /// Tell the link which machine has a hardware address.
    AddForward(MacAddress, IpAddr),
    /// Remove one of our routes with that key.
    RemoveRoute(RouteKey),
    /// Make a route.
    AddRoute(RouteKey, Hop),
    /// Lead our only route with that key in another way.
    ReplaceRoute(RouteKey, Hop),
}

impl Step {
    /// Whether no peer can be reached without it.
    pub fn is_for_all(&self) -> bool {
        match self {
            Self::RemoveTunnel(_) | Self::AddTunnel(_) | Self::ConfigureTunnel { .. } => true,
            Self::RemoveAddress(_) | Self::AddAddress(_) => true,
            Self::RemoveNeighbour(_) | Self::SetNeighbour(..) | Self::RemoveForward(_) | Self::AddForward(..) => false,
            Self::RemoveRoute(_) | Self::AddRoute(..) | Self::ReplaceRoute(..) => false,
        }
    }
}

/// The name of our link is somebody else's link's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NameTaken;

/// The steps from the observed to the desired, in an order in which nothing is used before it is there or after it is gone.
///
/// # Errors
/// When a link is desired and somebody else's has its name.
pub fn plan(desired: &Desired, observed: &Observed) -> Result<Vec<Step>, NameTaken> {
    let Desired { tunnel, addresses, neighbours, forwards, routes } = desired;
    let mut steps = Vec::new();
    let kept = plan_tunnel(tunnel.as_ref(), &observed.tunnel, &mut steps)?;
    // What hangs on a link that is not kept is gone with it.
    let nothing = Observed::default();
    let hanging = if kept { observed } else { &nothing };
    let stays = |hop: &Hop| kept || !matches!(hop, Hop::Tunnel(_) | Hop::Other { tunnel: true });

    steps.extend(hanging.addresses.difference(addresses).map(|address| Step::RemoveAddress(*address)));
    steps.extend(addresses.difference(&hanging.addresses).map(|address| Step::AddAddress(*address)));

    let mut known = BTreeMap::<MacAddress, Vec<Option<IpAddr>>>::new();
    for (mac, remote) in &hanging.forwards {
        known.entry(*mac).or_default().push(*remote);
    }
    for (mac, remote) in forwards {
        match known.remove(mac).as_deref() {
            Some([Some(found)]) if found == remote => continue,
            Some(_) => steps.push(Step::RemoveForward(*mac)),
            None => {}
        }
        steps.push(Step::AddForward(*mac, *remote));
    }
    for (address, mac) in neighbours.iter().filter(|(address, mac)| hanging.neighbours.get(address) != Some(mac)) {
        steps.push(Step::SetNeighbour(*address, *mac));
    }

    plan_routes(routes, observed.routes.iter().filter(|(_, hop)| stays(hop)), &mut steps);

    let gone = hanging.neighbours.keys().filter(|address| !neighbours.contains_key(address));
    steps.extend(gone.map(|address| Step::RemoveNeighbour(*address)));
    steps.extend(known.into_keys().map(Step::RemoveForward));
    Ok(steps)
}

/// Says whether the link that is there stays.
fn plan_tunnel(desired: Option<&Tunnel>, observed: &ObservedTunnel, steps: &mut Vec<Step>) -> Result<bool, NameTaken> {
    let Some(tunnel) = desired else {
        if let ObservedTunnel::Present { index, .. } = observed {
            steps.push(Step::RemoveTunnel(*index));
        }
        return Ok(false);
    };
    let configure = Step::ConfigureTunnel { mac: tunnel.mac, mtu_bytes: tunnel.mtu_bytes };
    match observed {
        ObservedTunnel::Foreign => return Err(NameTaken),
        ObservedTunnel::Present { index: _, vxlan, marked, mac, mtu_bytes, up }
            if vxlan.as_ref() == Some(&tunnel.vxlan) =>
        {
            let right = *marked && *up && *mac == Some(tunnel.mac) && *mtu_bytes == tunnel.mtu_bytes;
            steps.extend((!right).then_some(configure));
            return Ok(true);
        }
        ObservedTunnel::Present { index, .. } => steps.push(Step::RemoveTunnel(*index)),
        ObservedTunnel::Absent => {}
    }
    steps.extend([Step::AddTunnel(tunnel.clone()), configure]);
    Ok(false)
}

fn plan_routes<'a>(
    desired: &BTreeMap<RouteKey, Hop>,
    observed: impl Iterator<Item = &'a (RouteKey, Hop)>,
    steps: &mut Vec<Step>,
) {
    let mut present = BTreeMap::<RouteKey, Vec<Hop>>::new();
    for (key, hop) in observed {
        present.entry(*key).or_default().push(*hop);
    }
    for (key, hops) in &present {
        if !desired.contains_key(key) {
            steps.extend(hops.iter().map(|_| Step::RemoveRoute(*key)));
        }
    }
    for (key, hop) in desired {
        match present.get(key).map_or(&[][..], Vec::as_slice) {
            [] => steps.push(Step::AddRoute(*key, *hop)),
            [found] if found == hop => {}
            [_] => steps.push(Step::ReplaceRoute(*key, *hop)),
            several => {
                steps.extend(several.iter().map(|_| Step::RemoveRoute(*key)));
                steps.push(Step::AddRoute(*key, *hop));
            }
        }
    }
}

impl fmt::Display for Hop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tunnel(gateway) => write!(f, "through the tunnel to {gateway}"),
            Self::Direct { index, gateway } => write!(f, "to {gateway} on link {index}"),
            Self::Other { .. } => f.write_str("in another way"),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RemoveTunnel(index) => write!(f, "remove link {LINK} ({index})"),
            Self::AddTunnel(Tunnel { vxlan, .. }) => write!(f, "add link {LINK} (network {})", vxlan.vni),
            Self::ConfigureTunnel { mac, mtu_bytes } => write!(f, "configure link {LINK} ({mac}, MTU {mtu_bytes})"),
            Self::RemoveAddress(address) => write!(f, "remove address {address}"),
            Self::AddAddress(address) => write!(f, "add address {address}"),
            Self::RemoveNeighbour(address) => write!(f, "remove neighbour {address}"),
            Self::SetNeighbour(address, mac) => write!(f, "set neighbour {address} ({mac})"),
            Self::RemoveForward(mac) => write!(f, "remove forward of {mac}"),
            Self::AddForward(mac, remote) => write!(f, "add forward of {mac} to {remote}"),
            Self::RemoveRoute(key) => write!(f, "remove route to {}", key.destination),
            Self::AddRoute(key, hop) => write!(f, "add route to {} {hop}", key.destination),
            Self::ReplaceRoute(key, hop) => write!(f, "lead route to {} {hop}", key.destination),
        }
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
