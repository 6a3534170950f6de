use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteScope, RouteType, RouteVia,
};

use super::route::ip;
use super::{Netlink, NetlinkError};

/// A route of the main table as its owner, whose mark it bears, looks after it: every kind, so that none is overlooked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MarkedRoute {
    /// Where it leads.
    pub destination: IpNet,
    /// Priority: the lowest wins. The kernel makes 1024 of an IPv6 route's 0.
    pub metric: u32,
    /// Who made it (`rtm_protocol`).
    pub protocol: u8,
    /// The way; none for what is not a unicast route over one link.
    pub hop: Option<NextHop>,
}

/// The next hop of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NextHop {
    /// Index of the link.
    pub index: u32,
    /// The router; none when the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// Whether the router counts as being on the link although no address of this machine says so.
    pub onlink: bool,
}

impl Netlink {
    /// All routes of the main table that bear a mark. The kernel picks them out, so that the other routes of a machine cost
    /// nothing.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn marked_routes(&mut self, protocol: u8) -> Result<Vec<MarkedRoute>, NetlinkError> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            message.header.table = RouteHeader::RT_TABLE_MAIN;
            message.header.protocol = protocol.into();
            let listed = self.handle.route().get(message).execute();
            // A kernel without IPv6 answers for another family, and an old one with everything.
            let read = |message: RouteMessage| {
                MarkedRoute::read(message).filter(|(found, route)| *found == family && route.protocol == protocol)
            };
            let listed = self.list_filtered(format!("list routes of protocol {protocol}"), listed, read).await;
            match listed {
                // A kernel that has no such table yet.
                Err(error) if error.is_missing() => {}
                listed => routes.extend(listed?.into_iter().map(|(_, route)| route)),
            }
        }
        Ok(routes)
    }

    /// Adds a route over one link.
    ///
    /// # Errors
    /// When the link is gone or down, the gateway cannot be reached over it, or there is a route with that destination and
    /// metric, whoever made it ([`NetlinkError::is_taken`]).
    pub async fn add_marked_route(
        &mut self,
        destination: IpNet,
        metric: u32,
        protocol: u8,
        hop: NextHop,
    ) -> Result<(), NetlinkError> {
        let request = self.handle.route().add(message(destination, metric, protocol, Some(hop)));
        self.ask(format!("add route {destination} over link {}", hop.index), request.execute()).await
    }

    /// Gives the route with that destination and metric another way, in one moment. The caller knows that it is its own: the
    /// kernel does not look at the mark.
    ///
    /// # Errors
    /// When the link is gone or down, or the gateway cannot be reached over it.
    pub async fn replace_marked_route(
        &mut self,
        destination: IpNet,
        metric: u32,
        protocol: u8,
        hop: NextHop,
    ) -> Result<(), NetlinkError> {
        let request = self.handle.route().add(message(destination, metric, protocol, Some(hop))).replace();
        self.ask(format!("lead route {destination} over link {}", hop.index), request.execute()).await
    }

    /// Removes one route with that destination, metric and mark, whatever its way.
    ///
    /// # Errors
    /// When there is none ([`NetlinkError::is_missing`]).
    pub async fn remove_marked_route(
        &mut self,
        destination: IpNet,
        metric: u32,
        protocol: u8,
    ) -> Result<(), NetlinkError> {
        let request = self.handle.route().del(message(destination, metric, protocol, None));
        self.ask(format!("remove route {destination} of protocol {protocol}"), request.execute()).await
    }
}

fn message(destination: IpNet, metric: u32, protocol: u8, hop: Option<NextHop>) -> RouteMessage {
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = match destination {
        IpNet::V4(_) => AddressFamily::Inet,
        IpNet::V6(_) => AddressFamily::Inet6,
    };
    header.destination_prefix_length = destination.prefix_len();
    header.table = RouteHeader::RT_TABLE_MAIN;
    header.protocol = protocol.into();
    // Every kind and every scope, when none is told.
    header.scope = RouteScope::NoWhere;
    message.attributes.push(RouteAttribute::Destination(destination.network().into()));
    message.attributes.push(RouteAttribute::Priority(metric));
    if let Some(NextHop { index, gateway, onlink }) = hop {
        header.kind = RouteType::Unicast;
        header.scope = if gateway.is_some() { RouteScope::Universe } else { RouteScope::Link };
        header.flags.set(RouteFlags::Onlink, onlink);
        message.attributes.push(RouteAttribute::Oif(index));
        message.attributes.extend(gateway.map(|gateway| RouteAttribute::Gateway(gateway.into())));
    }
    message
}

impl MarkedRoute {
    fn read(message: RouteMessage) -> Option<(AddressFamily, Self)> {
        let header = message.header;
        let mut destination = match header.address_family {
            AddressFamily::Inet => IpNet::V4(Ipv4Net::default()),
            AddressFamily::Inet6 => IpNet::V6(Ipv6Net::default()),
            _ => return None,
        };
        let (mut index, mut gateway, mut metric) = (None, None, 0);
        let mut table = u32::from(header.table);
        for attribute in message.attributes {
            match attribute {
                RouteAttribute::Destination(address) => {
                    destination = IpNet::new(ip(&address)?, header.destination_prefix_length).ok()?;
                }
                RouteAttribute::Gateway(address) => gateway = ip(&address),
                RouteAttribute::Via(RouteVia::Inet(address)) => gateway = Some(address.into()),
                RouteAttribute::Via(RouteVia::Inet6(address)) => gateway = Some(address.into()),
                RouteAttribute::Oif(oif) => index = Some(oif),
                RouteAttribute::Priority(priority) => metric = priority,
                RouteAttribute::Table(id) => table = id,
                _ => {}
            }
        }
        if table != u32::from(RouteHeader::RT_TABLE_MAIN) {
            return None;
        }
        let onlink = header.flags.contains(RouteFlags::Onlink);
        let index = index.filter(|_| header.kind == RouteType::Unicast);
        let hop = index.map(|index| NextHop { index, gateway, onlink });
        Some((header.address_family, Self { destination, metric, protocol: header.protocol.into(), hop }))
    }
}

impl Netlink {
    /// The way that a packet of this machine to an address takes; none when there is none or the address is its own.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn way_to(&mut self, address: IpAddr) -> Result<Option<NextHop>, NetlinkError> {
        let destination = IpNet::from(address);
        let mut message = RouteMessage::default();
        message.header.address_family = match destination {
            IpNet::V4(_) => AddressFamily::Inet,
            IpNet::V6(_) => AddressFamily::Inet6,
        };
        message.header.destination_prefix_length = destination.prefix_len();
        message.attributes.push(RouteAttribute::Destination(RouteAddress::from(address)));
        let found = self.handle.route().get(message).execute();
        let read = |message| MarkedRoute::read(message).and_then(|(_, route)| route.hop);
        match self.list(format!("look up the route to {address}"), found, read).await {
            Ok(mut hops) => Ok(hops.pop()),
            Err(error) if error.is_unreachable() => Ok(None),
            Err(error) => Err(error),
        }
    }
}
