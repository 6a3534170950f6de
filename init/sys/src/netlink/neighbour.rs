use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};

use super::{MacAddress, Netlink, NetlinkError};

/// A neighbour of a link that stays until it is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Index of the link.
    pub index: u32,
    /// The neighbour's address.
    pub address: IpAddr,
    /// Its hardware address.
    pub mac: MacAddress,
}

/// An entry of a VXLAN link's forwarding database (FDB): where frames for a hardware address go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    /// Index of the link.
    pub index: u32,
    /// The hardware address.
    pub mac: MacAddress,
    /// The other end of the tunnel; none when the entry says more than that (another port, network or link) or something
    /// else, or may age.
    pub remote: Option<IpAddr>,
}

impl Netlink {
    /// The permanent neighbours of a link. What the kernel found out itself is left out.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn neighbours(&mut self, index: u32) -> Result<Vec<Neighbour>, NetlinkError> {
        let mut neighbours = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            neighbours.extend(self.messages(index, family).await?.iter().filter_map(Neighbour::read));
        }
        Ok(neighbours)
    }

    /// Whether the kernel looks for a neighbour of a link, or has looked, and nobody answers.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn is_missed(&mut self, index: u32, address: IpAddr) -> Result<bool, NetlinkError> {
        let unanswered = [NeighbourState::Incomplete, NeighbourState::Failed];
        let is_missed =
            |message: &NeighbourMessage| destination(message) == Some(address) && is_any(message, &unanswered);
        Ok(self.messages(index, family_of(address)).await?.iter().any(is_missed))
    }

    /// What the kernel says of the neighbours of a link.
    async fn messages(&mut self, index: u32, family: AddressFamily) -> Result<Vec<NeighbourMessage>, NetlinkError> {
        let mut request = self.handle.neighbours().get().set_address_family(family);
        request.message_mut().attributes.push(NeighbourAttribute::IfIndex(index));
        let read = |message: NeighbourMessage| {
            (message.header.family == family && message.header.ifindex == index).then_some(message)
        };
        self.list_filtered(format!("list neighbours of link {index}"), request.execute(), read).await
    }

    /// Makes a permanent neighbour, in the place of what the kernel knows of the address.
    ///
    /// # Errors
    /// When the link is gone.
    pub async fn set_neighbour(&mut self, neighbour: &Neighbour) -> Result<(), NetlinkError> {
        let Neighbour { index, address, mac } = *neighbour;
        let request = self.handle.neighbours().add(index, address).link_layer_address(&mac.0).replace();
        self.ask(format!("set neighbour {address} of link {index}"), request.execute()).await
    }

    /// Removes a neighbour.
    ///
    /// # Errors
    /// When there is none ([`NetlinkError::is_missing`]).
    pub async fn remove_neighbour(&mut self, index: u32, address: IpAddr) -> Result<(), NetlinkError> {
        let mut message = NeighbourMessage::default();
        message.header.family = family_of(address);
        message.header.ifindex = index;
        message.attributes.push(NeighbourAttribute::Destination(address.into()));
        let request = self.handle.neighbours().del(message);
        self.ask(format!("remove neighbour {address} of link {index}"), request.execute()).await
    }

    /// The forwarding database of a VXLAN link.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn forwards(&mut self, index: u32) -> Result<Vec<Forward>, NetlinkError> {
        let mut request = self.handle.neighbours().get().set_address_family(AddressFamily::Bridge);
        request.message_mut().header.ifindex = index;
        let listed = self.list_filtered(format!("list forwards of link {index}"), request.execute(), Forward::read);
        Ok(listed.await?.into_iter().filter(|forward| forward.index == index).collect())
    }

    /// Makes a forward of a VXLAN link.
    ///
    /// # Errors
    /// When the link is gone or is none, or has a forward for the hardware address.
    pub async fn add_forward(&mut self, index: u32, mac: MacAddress, remote: IpAddr) -> Result<(), NetlinkError> {
        let request = self.handle.neighbours().add_bridge(index, &mac.0).flags(NeighbourFlags::Own).destination(remote);
        self.ask(format!("forward {mac} on link {index} to {remote}"), request.execute()).await
    }

    /// Removes what a VXLAN link knows of a hardware address.
    ///
    /// # Errors
    /// When it knows nothing ([`NetlinkError::is_missing`]).
    pub async fn remove_forward(&mut self, index: u32, mac: MacAddress) -> Result<(), NetlinkError> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.header.ifindex = index;
        message.header.flags = NeighbourFlags::Own;
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
        let request = self.handle.neighbours().del(message);
        self.ask(format!("forward {mac} on link {index} no more"), request.execute()).await
    }
}

impl Neighbour {
    fn read(message: &NeighbourMessage) -> Option<Self> {
        let mac = message.attributes.iter().find_map(|attribute| match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => read_mac(bytes),
            _ => None,
        });
        let permanent = is_any(message, &[NeighbourState::Permanent]);
        permanent.then_some(Self { index: message.header.ifindex, address: destination(message)?, mac: mac? })
    }
}

fn family_of(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

/// Whether it is in any of these states, which are bits.
fn is_any(message: &NeighbourMessage, states: &[NeighbourState]) -> bool {
    states.iter().any(|state| u16::from(message.header.state) & u16::from(*state) != 0)
}

/// Which neighbour it is about.
fn destination(message: &NeighbourMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(found)) => Some(IpAddr::V4(*found)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(found)) => Some(IpAddr::V6(*found)),
        _ => None,
    })
}

impl Forward {
    fn read(message: NeighbourMessage) -> Option<Self> {
        let (mut mac, mut remote) = (None, None);
        let mut plain = is_any(&message, &[NeighbourState::Permanent]);
        for attribute in message.attributes {
            match attribute {
                NeighbourAttribute::LinkLayerAddress(bytes) => mac = read_mac(&bytes),
                NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => remote = read_ip(&bytes),
                NeighbourAttribute::Port(_) | NeighbourAttribute::Vni(_) | NeighbourAttribute::IfIndex(_) => {
                    plain = false;
                }
                _ => {}
            }
        }
        Some(Self { index: message.header.ifindex, mac: mac?, remote: remote.filter(|_| plain) })
    }
}

fn read_mac(bytes: &[u8]) -> Option<MacAddress> {
    bytes.try_into().ok().map(MacAddress)
}

fn read_ip(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(|octets| IpAddr::V4(Ipv4Addr::from(octets)));
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(|octets| IpAddr::V6(Ipv6Addr::from(octets)))).ok()
}
