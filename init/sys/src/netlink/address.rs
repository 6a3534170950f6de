use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};

use super::{CREATE, Netlink, NetlinkError};

/// An address of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Index of the link.
    pub index: u32,
    /// The address and the length of its subnet's prefix.
    pub address: IpNet,
    /// Who made it (`IFA_PROTO`, 0 when unknown); [`super::PROTOCOL`] for ours. Kernels before 5.18 show 0.
    pub protocol: u8,
    /// Whether it is usable beyond the link (not link-local, not loopback).
    pub global: bool,
}

impl Netlink {
    /// All addresses of the namespace.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn addresses(&mut self) -> Result<Vec<Address>, NetlinkError> {
        let mut addresses = Vec::new();
        self.dump("list addresses", RouteNetlinkMessage::GetAddress(AddressMessage::default()), |message| {
            if let RouteNetlinkMessage::NewAddress(message) = message {
                addresses.extend(Address::read(&message));
            }
        })?;
        Ok(addresses)
    }

    /// Adds an address to a link. The kernel adds the route of its subnet.
    ///
    /// # Errors
    /// When the link is gone or has the address ([`NetlinkError::is_existing`]), or the kernel refuses it.
    pub fn add_address(&mut self, address: &Address) -> Result<(), NetlinkError> {
        let mut message = address.message();
        if let IpNet::V4(net) = address.address
            && net.prefix_len() < 31
        {
            message.attributes.push(AddressAttribute::Broadcast(net.broadcast()));
        }
        message.attributes.push(AddressAttribute::Protocol(address.protocol.into()));
        let operation = format!("add address {} to link {}", address.address, address.index);
        self.execute(&operation, RouteNetlinkMessage::NewAddress(message), CREATE)
    }

    /// Removes an address from a link.
    ///
    /// # Errors
    /// When there is no such address ([`NetlinkError::is_missing`]).
    pub fn remove_address(&mut self, address: &Address) -> Result<(), NetlinkError> {
        let operation = format!("remove address {} from link {}", address.address, address.index);
        self.execute(&operation, RouteNetlinkMessage::DelAddress(address.message()), 0)
    }
}

impl Address {
    fn message(&self) -> AddressMessage {
        let address = self.address.addr();
        let mut message = AddressMessage::default();
        message.header.index = self.index;
        message.header.prefix_len = self.address.prefix_len();
        message.header.family = match address {
            IpAddr::V4(_) => AddressFamily::Inet,
            IpAddr::V6(_) => AddressFamily::Inet6,
        };
        message.attributes.push(AddressAttribute::Local(address));
        message.attributes.push(AddressAttribute::Address(address));
        message
    }

    fn read(message: &AddressMessage) -> Option<Self> {
        let mut local = None;
        let mut peer = None;
        let mut protocol = 0;
        for attribute in &message.attributes {
            match attribute {
                AddressAttribute::Local(address) => local = Some(*address),
                AddressAttribute::Address(address) => peer = Some(*address),
                AddressAttribute::Protocol(value) => protocol = u8::from(*value),
                _ => {}
            }
        }
        // IPv6 has no IFA_LOCAL unless the link is point to point.
        let address = local.or(peer)?;
        Some(Self {
            index: message.header.index,
            address: IpNet::new(address, message.header.prefix_len).ok()?,
            protocol,
            global: message.header.scope == AddressScope::Universe,
        })
    }
}
