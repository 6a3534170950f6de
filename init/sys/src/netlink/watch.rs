use std::net::IpAddr;

use futures::StreamExt;
use futures::channel::mpsc::UnboundedReceiver;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::route::{RouteAttribute, RouteHeader, RouteMessage};
use rtnetlink::sys::SocketAddr;

use super::{Connection, NetlinkError};

/// What changed, came or went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A link.
    Link {
        /// Its index.
        index: u32,
        /// Its name, where the kernel tells it.
        name: Option<String>,
    },
    /// An address of a link.
    Address {
        /// Index of the link.
        index: u32,
        /// The address.
        address: Option<IpAddr>,
    },
    /// A route of the main table.
    Route {
        /// Who made it (`rtm_protocol`).
        protocol: u8,
    },
    /// A neighbour of a link, or an entry of its forwarding database.
    Neighbour {
        /// Index of the link.
        index: u32,
    },
    /// Anything: the kernel had more to tell than the socket holds.
    Unknown,
}

/// Tells what changes in its network namespace among links, addresses, routes, neighbours and forwarding databases, for who
/// looks after a few of them and need not look at every change. [`super::Monitor`] is for who looks after all.
pub struct Watch {
    connection: Connection,
    notifications: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
}

impl Watch {
    /// Starts to watch the calling thread's network namespace.
    ///
    /// # Errors
    /// When the socket cannot be made.
    ///
    /// # Panics
    /// Outside of a tokio runtime with I/O.
    pub fn open() -> Result<Self, NetlinkError> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Neigh,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ];
        let (connection, _, notifications) =
            rtnetlink::new_multicast_connection(&groups).map_err(NetlinkError::Open)?;
        Ok(Self { connection, notifications })
    }

    /// Waits for a change since the last time, or the opening. A call that is given up loses nothing.
    ///
    /// # Errors
    /// When the socket cannot be read.
    pub async fn next(&mut self) -> Result<Change, NetlinkError> {
        loop {
            let message = tokio::select! {
                biased;
                message = self.notifications.next() => message,
                () = &mut self.connection => None,
            };
            let (message, _) = message.ok_or(NetlinkError::Notifications)?;
            if let Some(change) = read(message.payload) {
                return Ok(change);
            }
        }
    }

    /// The next change that has been read already.
    pub fn try_next(&mut self) -> Option<Change> {
        loop {
            let (message, _) = self.notifications.try_recv().ok()?;
            if let Some(change) = read(message.payload) {
                return Some(change);
            }
        }
    }
}

fn read(payload: NetlinkPayload<RouteNetlinkMessage>) -> Option<Change> {
    let message = match payload {
        NetlinkPayload::InnerMessage(message) => message,
        NetlinkPayload::Overrun(_) | NetlinkPayload::Error(_) => return Some(Change::Unknown),
        _ => return None,
    };
    match message {
        RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link) => {
            let name = link.attributes.into_iter().find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name),
                _ => None,
            });
            Some(Change::Link { index: link.header.index, name })
        }
        RouteNetlinkMessage::NewAddress(address) | RouteNetlinkMessage::DelAddress(address) => {
            let index = address.header.index;
            let address = address.attributes.into_iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(address) | AddressAttribute::Address(address) => Some(address),
                _ => None,
            });
            Some(Change::Address { index, address })
        }
        RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
            let protocol = route.header.protocol.into();
            (table(&route) == u32::from(RouteHeader::RT_TABLE_MAIN)).then_some(Change::Route { protocol })
        }
        RouteNetlinkMessage::NewNeighbour(neighbour) | RouteNetlinkMessage::DelNeighbour(neighbour) => {
            Some(Change::Neighbour { index: neighbour.header.ifindex })
        }
        _ => None,
    }
}

fn table(route: &RouteMessage) -> u32 {
    let told = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(id) => Some(*id),
        _ => None,
    });
    told.unwrap_or_else(|| route.header.table.into())
}
