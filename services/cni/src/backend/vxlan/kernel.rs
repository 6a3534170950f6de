//! The kernel's links, addresses, neighbours and routes as the plan's values, and back.

use std::net::IpAddr;

use garboard_sys::netlink::{Address, MacAddress, MarkedRoute, Neighbour, Netlink, NetlinkError, NextHop};

use super::plan::{Hop, Observed, ObservedTunnel, RouteKey, Step, Tunnel};
use super::{LINK, PROTOCOL};
use crate::backend::{BackendError, MARK, is_link_local};

/// Everything of ours. A link without mark is taken for ours when it has the hardware address `mac`: a crash between making and
/// marking leaves it so.
///
/// # Errors
/// When the kernel cannot be asked.
pub async fn observe(netlink: &mut Netlink, mac: Option<MacAddress>) -> Result<Observed, NetlinkError> {
    let mut observed = Observed::default();
    let mut tunnel_index = None;
    if let Some((link, vxlan)) = netlink.vxlan(LINK).await? {
        let marked = link.alias.as_deref() == Some(MARK);
        let unfinished = link.alias.is_none() && link.mac.is_some() && link.mac == mac;
        observed.tunnel = ObservedTunnel::Foreign;
        if marked || unfinished {
            let index = link.index;
            tunnel_index = Some(index);
            observed.tunnel =
                ObservedTunnel::Present { index, vxlan, marked, mac: link.mac, mtu_bytes: link.mtu, up: link.up };
            let addresses = netlink.addresses().await?.into_iter().filter(|address| address.index == index);
            let addresses = addresses.map(|address| address.address);
            observed.addresses = addresses.filter(|address| !is_link_local(address.addr())).collect();
            let neighbours = netlink.neighbours(index).await?;
            observed.neighbours = neighbours.into_iter().map(|found| (found.address, found.mac)).collect();
            let forwards = netlink.forwards(index).await?;
            observed.forwards = forwards.into_iter().map(|found| (found.mac, found.remote)).collect();
        }
    }
    let routes = netlink.marked_routes(PROTOCOL).await?.into_iter();
    observed.routes = routes.map(|route| read_route(&route, tunnel_index)).collect();
    Ok(observed)
}

fn read_route(route: &MarkedRoute, tunnel: Option<u32>) -> (RouteKey, Hop) {
    let MarkedRoute { destination, metric, protocol: _, hop } = *route;
    let over_tunnel = hop.is_some_and(|hop| Some(hop.index) == tunnel);
    let hop = match hop {
        Some(NextHop { index: _, gateway: Some(gateway), onlink: true }) if over_tunnel => Hop::Tunnel(gateway),
        Some(NextHop { index, gateway: Some(gateway), onlink: false }) if !over_tunnel => {
            Hop::Direct { index, gateway }
        }
        _ => Hop::Other { tunnel: over_tunnel },
    };
    (RouteKey { destination, metric }, hop)
}

/// Carries out steps; knows the link's index, which is another one after it was made again.
pub struct Applier<'a> {
    netlink: &'a mut Netlink,
    tunnel: Option<u32>,
}

impl<'a> Applier<'a> {
    /// One for what was observed.
    pub fn new(netlink: &'a mut Netlink, observed: &ObservedTunnel) -> Self {
        let tunnel = match observed {
            ObservedTunnel::Present { index, .. } => Some(*index),
            ObservedTunnel::Absent | ObservedTunnel::Foreign => None,
        };
        Self { netlink, tunnel }
    }

    /// The link's index; none when it is not there.
    pub fn tunnel(&self) -> Option<u32> {
        self.tunnel
    }

    /// Carries out a step. What is gone already counts as removed.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn apply(&mut self, step: &Step) -> Result<(), BackendError> {
        match step {
            Step::RemoveTunnel(index) => {
                self.tunnel = None;
                removed(self.netlink.remove_link(*index).await)
            }
            Step::AddTunnel(Tunnel { vxlan, mac, mtu_bytes }) => {
                self.netlink.add_vxlan(LINK, *mac, *mtu_bytes, vxlan).await?;
                self.tunnel = self.netlink.link(LINK).await?.map(|link| link.index);
                Ok(())
            }
            Step::ConfigureTunnel { mac, mtu_bytes } => {
                Ok(self.netlink.configure(self.index()?, MARK, *mac, *mtu_bytes).await?)
            }
            Step::RemoveAddress(address) => {
                let index = self.index()?;
                removed(self.netlink.remove_address(index, *address).await)
            }
            Step::AddAddress(address) => {
                // Nobody else has it: it follows from the network that was given to this machine.
                let address = Address { index: self.index()?, address: *address, protocol: 0, unique: true };
                Ok(self.netlink.add_address(&address).await?)
            }
            Step::RemoveNeighbour(address) => {
                let index = self.index()?;
                removed(self.netlink.remove_neighbour(index, *address).await)
            }
            Step::SetNeighbour(address, mac) => {
                let neighbour = Neighbour { index: self.index()?, address: *address, mac: *mac };
                Ok(self.netlink.set_neighbour(&neighbour).await?)
            }
            Step::RemoveForward(mac) => {
                let index = self.index()?;
                removed(self.netlink.remove_forward(index, *mac).await)
            }
            Step::AddForward(mac, remote) => Ok(self.netlink.add_forward(self.index()?, *mac, *remote).await?),
            Step::RemoveRoute(RouteKey { destination, metric }) => {
                removed(self.netlink.remove_marked_route(*destination, *metric, PROTOCOL).await)
            }
            Step::AddRoute(RouteKey { destination, metric }, hop) => {
                let hop = self.next_hop(*hop)?;
                match self.netlink.add_marked_route(*destination, *metric, PROTOCOL, hop).await {
                    Err(error) if error.is_taken() => Err(BackendError::ForeignRoute(*destination)),
                    other => Ok(other?),
                }
            }
            Step::ReplaceRoute(RouteKey { destination, metric }, hop) => {
                let hop = self.next_hop(*hop)?;
                Ok(self.netlink.replace_marked_route(*destination, *metric, PROTOCOL, hop).await?)
            }
        }
    }

    fn index(&self) -> Result<u32, BackendError> {
        self.tunnel.ok_or_else(|| BackendError::Changed(format!("link {LINK} is missing")))
    }

    fn next_hop(&self, hop: Hop) -> Result<NextHop, BackendError> {
        let over = |index, gateway: IpAddr, onlink| NextHop { index, gateway: Some(gateway), onlink };
        match hop {
            Hop::Tunnel(gateway) => Ok(over(self.index()?, gateway, true)),
            Hop::Direct { index, gateway } => Ok(over(index, gateway, false)),
            Hop::Other { .. } => Err(BackendError::Changed("a route in another way is never planned".to_owned())),
        }
    }
}

fn removed(result: Result<(), NetlinkError>) -> Result<(), BackendError> {
    match result {
        Err(error) if !error.is_missing() => Err(error.into()),
        _ => Ok(()),
    }
}
