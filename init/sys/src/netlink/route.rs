use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};

use super::{CREATE, Netlink, NetlinkError};

/// A unicast route of the main table over one link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where it leads; a prefix of length 0 for the default route.
    pub destination: IpNet,
    /// The next hop; none when the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// Index of the link.
    pub index: u32,
    /// Preferred source address of packets that take it.
    pub source: Option<IpAddr>,
    /// Priority: the lowest wins.
    pub metric: u32,
    /// Who made it (`rtm_protocol`); [`super::PROTOCOL`] for ours.
    pub protocol: u8,
}

impl Netlink {
    /// All unicast routes of the main table of both address families; routes over several links are left out.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn routes(&mut self) -> Result<Vec<Route>, NetlinkError> {
        let mut routes = Vec::new();
        self.dump("list routes", RouteNetlinkMessage::GetRoute(RouteMessage::default()), |message| {
            if let RouteNetlinkMessage::NewRoute(message) = message {
                routes.extend(Route::read(&message));
            }
        })?;
        Ok(routes)
    }

    /// Adds a route.
    ///
    /// # Errors
    /// When the link is gone or down, the gateway cannot be reached over it, or there is a route with that destination and
    /// metric ([`NetlinkError::is_existing`]).
    pub fn add_route(&mut self, route: &Route) -> Result<(), NetlinkError> {
        let operation = format!("add route {} over link {}", route.destination, route.index);
        self.execute(&operation, RouteNetlinkMessage::NewRoute(route.message()), CREATE)
    }

    /// Removes a route.
    ///
    /// # Errors
    /// When there is no such route ([`NetlinkError::is_missing`]).
    pub fn remove_route(&mut self, route: &Route) -> Result<(), NetlinkError> {
        let operation = format!("remove route {} over link {}", route.destination, route.index);
        self.execute(&operation, RouteNetlinkMessage::DelRoute(route.message()), 0)
    }
}

impl Route {
    fn message(&self) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = match self.destination {
            IpNet::V4(_) => AddressFamily::Inet,
            IpNet::V6(_) => AddressFamily::Inet6,
        };
        message.header.destination_prefix_length = self.destination.prefix_len();
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::from(self.protocol);
        message.header.kind = RouteType::Unicast;
        message.header.scope = if self.gateway.is_some() { RouteScope::Universe } else { RouteScope::Link };
        if self.destination.prefix_len() > 0 {
            message.attributes.push(RouteAttribute::Destination(self.destination.network().into()));
        }
        if let Some(gateway) = self.gateway {
            message.attributes.push(RouteAttribute::Gateway(gateway.into()));
        }
        if let Some(source) = self.source {
            message.attributes.push(RouteAttribute::PrefSource(source.into()));
        }
        message.attributes.push(RouteAttribute::Oif(self.index));
        message.attributes.push(RouteAttribute::Priority(self.metric));
        message
    }

    fn read(message: &RouteMessage) -> Option<Self> {
        let header = &message.header;
        let everywhere = match header.address_family {
            AddressFamily::Inet => IpNet::V4(Ipv4Net::default()),
            AddressFamily::Inet6 => IpNet::V6(Ipv6Net::default()),
            _ => return None,
        };
        let mut index = None;
        let mut table = u32::from(header.table);
        let mut route = Self {
            destination: everywhere,
            gateway: None,
            index: 0,
            source: None,
            metric: 0,
            protocol: header.protocol.into(),
        };
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(address) => {
                    route.destination = IpNet::new(ip(address)?, header.destination_prefix_length).ok()?;
                }
                RouteAttribute::Gateway(address) => route.gateway = Some(ip(address)?),
                RouteAttribute::PrefSource(address) => route.source = Some(ip(address)?),
                RouteAttribute::Oif(oif) => index = Some(*oif),
                RouteAttribute::Priority(metric) => route.metric = *metric,
                RouteAttribute::Table(id) => table = *id,
                _ => {}
            }
        }
        route.index = index?;
        (header.kind == RouteType::Unicast && table == u32::from(RouteHeader::RT_TABLE_MAIN)).then_some(route)
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}
