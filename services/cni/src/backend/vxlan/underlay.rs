//! The network that carries the tunnels, as the kernel's addresses and routes show it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use garboard_sys::netlink::{Link, Netlink, NetlinkError};

use crate::config::{Peer, Vxlan};

/// What a tunnel puts in front of a packet, bytes: the inner Ethernet header (14), VXLAN (8), UDP (8) and IP (20 or 40).
const OVERHEAD_V4: u32 = 14 + 8 + 8 + 20;
const OVERHEAD_V6: u32 = 14 + 8 + 8 + 40;

/// The link that holds an address; `None` when none does.
///
/// # Errors
/// When the kernel cannot be asked.
pub async fn holder(netlink: &mut Netlink, address: IpAddr) -> Result<Option<Link>, NetlinkError> {
    let addresses = netlink.addresses().await?;
    let Some(held) = addresses.iter().find(|held| held.address.addr() == address) else { return Ok(None) };
    netlink.link_at(held.index).await
}

/// The largest packet that goes through a tunnel over a link unfragmented, bytes.
pub fn tunnel_mtu(underlay: &Link, address: IpAddr) -> u32 {
    underlay.mtu.saturating_sub(if address.is_ipv4() { OVERHEAD_V4 } else { OVERHEAD_V6 })
}

/// The peers that are reached without a tunnel, and the index of the link that each is on: those whose route has no gateway.
///
/// # Errors
/// When the kernel cannot be asked.
pub async fn direct(
    netlink: &mut Netlink,
    own: &Vxlan,
    peers: &[Peer],
    tunnel: Option<u32>,
) -> Result<BTreeMap<IpAddr, u32>, NetlinkError> {
    let mut direct = BTreeMap::new();
    for peer in peers.iter().filter(|_| own.direct_routes) {
        let way = netlink.way_to(peer.address).await?;
        let link = way.filter(|way| way.gateway.is_none() && Some(way.index) != tunnel);
        direct.extend(link.map(|way| (peer.address, way.index)));
    }
    Ok(direct)
}
