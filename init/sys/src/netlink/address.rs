use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::IpNet;
use rtnetlink::AddressMessageBuilder;
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage, CacheInfo};

use super::{Netlink, NetlinkError};

/// `IFAPROT_KERNEL_RA`: the kernel made the address of a router's advertisement.
pub const KERNEL_RA: u8 = 2;

/// An address of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Index of the link.
    pub index: u32,
    /// The address and the length of its subnet's prefix.
    pub address: IpNet,
    /// Who made it (`IFA_PROTO`, 0 when unknown); [`super::PROTOCOL`] for ours. Kernels before 5.18 show 0.
    pub protocol: u8,
    /// Known to be nobody else's: an IPv6 address that is used without asking the neighbours first (`IFA_F_NODAD`).
    pub unique: bool,
}

impl Netlink {
    /// All addresses of the namespace.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn addresses(&mut self) -> Result<Vec<Address>, NetlinkError> {
        let addresses = self.handle.address().get().execute();
        self.list("list addresses", addresses, Address::read).await
    }

    /// Addresses that the kernel made of the advertisements of routers, each with the index of its link: those that are settled and to
    /// stay. Kernels before 5.18 do not tell who made an address, and the list is empty.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn advertised_addresses(&mut self) -> Result<Vec<(u32, IpNet)>, NetlinkError> {
        let passing = AddressHeaderFlags::Tentative
            | AddressHeaderFlags::Dadfailed
            | AddressHeaderFlags::Deprecated
            // `IFA_F_TEMPORARY`, which is the same bit.
            | AddressHeaderFlags::Secondary;
        let read = |message: AddressMessage| {
            let settled = !message.header.flags.intersects(passing);
            let address = Address::read(message).filter(|address| settled && address.protocol == KERNEL_RA)?;
            Some((address.index, address.address))
        };
        let addresses = self.handle.address().get().execute();
        self.list("list addresses", addresses, read).await
    }

    /// Adds an address to a link. The kernel adds the route of its subnet.
    ///
    /// # Errors
    /// When the link is gone or has the address, or the kernel refuses it.
    pub async fn add_address(&mut self, address: &Address) -> Result<(), NetlinkError> {
        let Address { index, address, protocol, unique } = *address;
        let mut request = self.handle.address().add(index, address.addr(), address.prefix_len());
        let message = request.message_mut();
        message.attributes.push(AddressAttribute::Protocol(protocol.into()));
        message.header.flags.set(AddressHeaderFlags::Nodad, unique);
        self.ask(format!("add address {address} to link {index}"), request.execute()).await
    }

    /// Adds an address to a link for a time, whole seconds, or renews the time of one that is there already. Afterwards the kernel
    /// removes it by itself, whatever has become of who added it.
    ///
    /// # Errors
    /// When the link is gone, or the kernel refuses the address.
    pub async fn lend_address(&mut self, address: &Address, time: Duration) -> Result<(), NetlinkError> {
        let Address { index, address, protocol, unique } = *address;
        let mut request = self.handle.address().add(index, address.addr(), address.prefix_len()).replace();
        let seconds = u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
        let mut times = CacheInfo::default();
        times.ifa_preferred = seconds;
        times.ifa_valid = seconds;
        let message = request.message_mut();
        message.attributes.push(AddressAttribute::Protocol(protocol.into()));
        message.attributes.push(AddressAttribute::CacheInfo(times));
        message.header.flags.set(AddressHeaderFlags::Nodad, unique);
        self.ask(format!("lend address {address} to link {index}"), request.execute()).await
    }

    /// Removes an address from a link.
    ///
    /// # Errors
    /// When there is no such address ([`NetlinkError::is_missing`]).
    pub async fn remove_address(&mut self, index: u32, address: IpNet) -> Result<(), NetlinkError> {
        let message = match address {
            IpNet::V4(net) => {
                AddressMessageBuilder::<Ipv4Addr>::new().index(index).address(net.addr(), net.prefix_len()).build()
            }
            IpNet::V6(net) => {
                AddressMessageBuilder::<Ipv6Addr>::new().index(index).address(net.addr(), net.prefix_len()).build()
            }
        };
        let request = self.handle.address().del(message);
        self.ask(format!("remove address {address} from link {index}"), request.execute()).await
    }
}

impl Address {
    fn read(message: AddressMessage) -> Option<Self> {
        let mut local = None;
        let mut peer = None;
        let mut protocol = 0;
        for attribute in message.attributes {
            match attribute {
                AddressAttribute::Local(address) => local = Some(address),
                AddressAttribute::Address(address) => peer = Some(address),
                AddressAttribute::Protocol(value) => protocol = value.into(),
                _ => {}
            }
        }
        // IPv6 has no IFA_LOCAL unless the link is point to point.
        let address = local.or(peer)?;
        Some(Self {
            index: message.header.index,
            address: IpNet::new(address, message.header.prefix_len).ok()?,
            protocol,
            unique: message.header.flags.contains(AddressHeaderFlags::Nodad),
        })
    }
}
