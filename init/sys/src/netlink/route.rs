use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteScope, RouteType};

use super::{Netlink, NetlinkError};

/// The table of routes that is looked up for everything that no rule sends elsewhere.
pub const MAIN_TABLE: u32 = RouteHeader::RT_TABLE_MAIN as u32;

/// A unicast route over one link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where it leads; a prefix of length 0 for the default route.
    pub destination: IpNet,
    /// The next hop; none when the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// Index of the link.
    pub index: u32,
    /// Priority: the lowest wins. The kernel makes 1024 of an IPv6 route's 0.
    pub metric: u32,
    /// The table that it is in, [`MAIN_TABLE`] or one that rules lead to.
    pub table: u32,
    /// Who made it (`rtm_protocol`); [`super::PROTOCOL`] for ours.
    pub protocol: u8,
}

impl Netlink {
    /// All unicast routes of the main table of both address families; routes over several links are left out.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn routes(&mut self) -> Result<Vec<Route>, NetlinkError> {
        let mut routes = self.routes_of_all_tables().await?;
        routes.retain(|route| route.table == MAIN_TABLE);
        Ok(routes)
    }

    /// All unicast routes of all tables of both address families; routes over several links are left out.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn routes_of_all_tables(&mut self) -> Result<Vec<Route>, NetlinkError> {
        let routes = self.handle.route().get(RouteMessage::default()).execute();
        self.list("list routes", routes, Route::read).await
    }

    /// Adds a route.
    ///
    /// # Errors
    /// When the link is gone or down, the gateway cannot be reached over it, or there is a route with that destination and
    /// metric.
    pub async fn add_route(&mut self, route: &Route) -> Result<(), NetlinkError> {
        let request = self.handle.route().add(route.message());
        self.ask(format!("add route {} over link {}", route.destination, route.index), request.execute()).await
    }

    /// Removes a route.
    ///
    /// # Errors
    /// When there is no such route ([`NetlinkError::is_missing`]).
    pub async fn remove_route(&mut self, route: &Route) -> Result<(), NetlinkError> {
        let request = self.handle.route().del(route.message());
        self.ask(format!("remove route {} over link {}", route.destination, route.index), request.execute()).await
    }
}

impl Route {
    fn message(&self) -> RouteMessage {
        let Self { destination, gateway, index, metric, table, protocol } = self;
        let mut message = RouteMessageBuilder::<IpAddr>::new()
            .output_interface(*index)
            .priority(*metric)
            .table_id(*table)
            .protocol((*protocol).into())
            .scope(if gateway.is_some() { RouteScope::Universe } else { RouteScope::Link })
            .build();
        message.header.address_family = match destination {
            IpNet::V4(_) => AddressFamily::Inet,
            IpNet::V6(_) => AddressFamily::Inet6,
        };
        message.header.destination_prefix_length = destination.prefix_len();
        message.attributes.push(RouteAttribute::Destination(destination.network().into()));
        message.attributes.extend(gateway.map(|gateway| RouteAttribute::Gateway(gateway.into())));
        message
    }

    fn read(message: RouteMessage) -> Option<Self> {
        let header = message.header;
        let everywhere = match header.address_family {
            AddressFamily::Inet => IpNet::V4(Ipv4Net::default()),
            AddressFamily::Inet6 => IpNet::V6(Ipv6Net::default()),
            _ => return None,
        };
        let mut index = None;
        let mut route = Self {
            destination: everywhere,
            gateway: None,
            index: 0,
            metric: 0,
            table: header.table.into(),
            protocol: header.protocol.into(),
        };
        for attribute in message.attributes {
            match attribute {
                RouteAttribute::Destination(address) => {
                    route.destination = IpNet::new(ip(&address)?, header.destination_prefix_length).ok()?;
                }
                RouteAttribute::Gateway(address) => route.gateway = Some(ip(&address)?),
                RouteAttribute::Oif(oif) => index = Some(oif),
                RouteAttribute::Priority(metric) => route.metric = metric,
                RouteAttribute::Table(table) => route.table = table,
                _ => {}
            }
        }
        route.index = index?;
        (header.kind == RouteType::Unicast).then_some(route)
    }
}

pub(super) fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}
