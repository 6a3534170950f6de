//! The fields `vxlan` and `peers`: this machine's end of the tunnels, and the machines at the others.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;

use garboard_sys::config::ConfigError;
use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

use super::{networks, pod_networks};
use crate::backend::vxlan::address::hardware_address;

/// A number of 24 bits; 0 belongs to nobody.
const VNI: RangeInclusive<u64> = 1..=0xff_ffff;
const VNI_DEFAULT: u32 = 1;
const PORT: RangeInclusive<u64> = 1..=65_535;
/// The port that is assigned to VXLAN (RFC 7348).
const PORT_DEFAULT: u16 = 4789;
/// What the daemon is made for; Kubernetes itself stops at as many nodes.
const PEERS_MAX: usize = 5_000;

/// This machine's end of the tunnels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vxlan {
    /// This machine's address in the network that carries the tunnels (the underlay).
    pub address: IpAddr,
    /// The number of the network, the same on all machines.
    pub vni: u32,
    /// The UDP port, the same on all machines.
    pub port: u16,
    /// Whether pods of a machine on the same link are reached without a tunnel.
    pub direct_routes: bool,
}

/// Another machine of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its name, for people.
    pub name: String,
    /// Its address in the underlay.
    pub address: IpAddr,
    /// The networks of its pods.
    pub pod_cidrs: Vec<IpNet>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct VxlanDocument {
    address: Option<String>,
    vni: Option<Value>,
    port: Option<Value>,
    direct_routes: Option<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct PeerDocument {
    name: String,
    address: String,
    #[serde(rename = "podCIDRs", default)]
    pod_cidrs: Vec<String>,
}

impl Vxlan {
    pub(super) fn check(document: Option<VxlanDocument>) -> Result<Self, ConfigError> {
        let missing = || ConfigError::field("vxlan.address", "is missing; backend vxlan needs this machine's address");
        let VxlanDocument { address, vni, port, direct_routes } = document.ok_or_else(missing)?;
        let address = machine_address("vxlan.address".to_owned(), &address.ok_or_else(missing)?)?;
        let vni = whole("vxlan.vni", vni.as_ref(), VNI)?.unwrap_or(VNI_DEFAULT);
        let port = whole("vxlan.port", port.as_ref(), PORT)?.unwrap_or(PORT_DEFAULT);
        let direct_routes = match direct_routes {
            None => false,
            Some(Value::Bool(value)) => value,
            Some(other) => {
                return Err(ConfigError::field("vxlan.directRoutes", format!("{other} is not true or false")));
            }
        };
        Ok(Self { address, vni, port, direct_routes })
    }
}

/// A whole number of a range.
fn whole<T: TryFrom<u64>>(
    field: &str,
    value: Option<&Value>,
    range: RangeInclusive<u64>,
) -> Result<Option<T>, ConfigError> {
    let Some(value) = value else { return Ok(None) };
    let number = value.as_u64().filter(|number| range.contains(number)).and_then(|number| T::try_from(number).ok());
    let (first, last) = (range.start(), range.end());
    let wrong = || ConfigError::field(field, format!("{value} is not a whole number from {first} to {last}"));
    number.map(Some).ok_or_else(wrong)
}

/// The address of one machine.
fn machine_address(field: String, text: &str) -> Result<IpAddr, ConfigError> {
    let address = text.parse::<IpAddr>().ok();
    let broadcast = |address: &IpAddr| matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    let one = address.filter(|a| !a.is_unspecified() && !a.is_multicast() && !a.is_loopback() && !broadcast(a));
    one.ok_or_else(|| ConfigError::field(field, format!("{text:?} is not the address of a machine such as 192.0.2.10")))
}

/// Checks peers against each other and against this machine.
pub(super) fn check_peers(
    documents: Vec<PeerDocument>,
    own: &Vxlan,
    pod_cidrs: &[IpNet],
    cluster_cidrs: &[IpNet],
) -> Result<Vec<Peer>, ConfigError> {
    if documents.len() > PEERS_MAX {
        let reason = format!("{} machines are more than {PEERS_MAX}", documents.len());
        return Err(ConfigError::field("peers", reason));
    }
    let mut hardware = BTreeSet::from([hardware_address(own.address)]);
    let mut taken = Taken::default();
    for network in pod_cidrs {
        // Those of one machine are of different IP versions.
        let _ = taken.insert(*network, None);
    }
    let mut peers: Vec<Peer> = Vec::with_capacity(documents.len());
    for (index, PeerDocument { name, address: text, pod_cidrs }) in documents.into_iter().enumerate() {
        let field = format!("peers[{index}].address");
        let address = machine_address(field.clone(), &text)?;
        if address.is_ipv4() != own.address.is_ipv4() {
            let version = if own.address.is_ipv4() { "IPv4" } else { "IPv6" };
            let reason = format!("{address} is not an {version} address as vxlan.address {} is", own.address);
            return Err(ConfigError::field(field, reason));
        }
        if !hardware.insert(hardware_address(address)) {
            let holder = peers.iter().find(|peer| hardware_address(peer.address) == hardware_address(address));
            let holder = holder.map_or("this machine", |peer| peer.name.as_str());
            let reason =
                format!("{address} is that of {holder} or makes the same hardware address; each machine needs its own");
            return Err(ConfigError::field(field, reason));
        }
        let field = format!("peers[{index}].podCIDRs");
        let pod_cidrs = networks(&field, &pod_cidrs)?;
        pod_networks(&field, &pod_cidrs)?;
        for (position, network) in pod_cidrs.iter().enumerate() {
            let wrong = |reason: String| Err(ConfigError::field(format!("{field}[{position}]"), reason));
            if !cluster_cidrs.iter().any(|cluster| cluster.contains(network)) {
                return wrong(format!("{network} does not lie in one of clusterCIDRs"));
            }
            if let Err((other, holder)) = taken.insert(*network, Some(index)) {
                let holder = match holder {
                    None => "this machine".to_owned(),
                    Some(holder) => peers.get(holder).map_or_else(|| name.clone(), |peer| peer.name.clone()),
                };
                return wrong(format!("{network} overlaps {other} of {holder}; machines' networks must not overlap"));
            }
        }
        peers.push(Peer { name, address, pod_cidrs });
    }
    Ok(peers)
}

/// Networks that do not overlap, by their first address, and whose they are.
#[derive(Default)]
struct Taken(BTreeMap<IpAddr, (IpNet, Option<usize>)>);

impl Taken {
    /// Adds a network, or returns one that it overlaps.
    fn insert(&mut self, network: IpNet, holder: Option<usize>) -> Result<(), (IpNet, Option<usize>)> {
        // All others end before the next begins, so only the last that begins in or before it can reach into it.
        let last = self.0.range(..=network.broadcast()).next_back().map(|(_, last)| *last);
        match last {
            Some((other, other_holder)) if network.contains(&other) || other.contains(&network) => {
                Err((other, other_holder))
            }
            _ => {
                self.0.insert(network.network(), (network, holder));
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_overlap_is_found_whatever_the_order(wanted in prop::collection::vec((any::<u16>(), 16u8..=28), 1..20)) {
            let mut taken = Taken::default();
            let mut kept: Vec<IpNet> = Vec::new();
            for (address, prefix) in wanted {
                let address = IpAddr::from((0x0af4_0000 | u32::from(address)).to_be_bytes());
                let network = IpNet::new(address, prefix).unwrap().trunc();
                let overlaps = kept.iter().any(|other| other.contains(&network) || network.contains(other));
                prop_assert_eq!(taken.insert(network, None).is_err(), overlaps);
                if !overlaps {
                    kept.push(network);
                }
            }
        }
    }
}
