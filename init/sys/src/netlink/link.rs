use std::fmt;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage};

use super::{Netlink, NetlinkError};

/// The hardware address of an Ethernet link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddress(pub [u8; 6]);

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// A network link as the kernel shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Interface index, unique in its network namespace, never reused while the namespace lives.
    pub index: u32,
    /// Interface name.
    pub name: String,
    /// Hardware address, if the link is an Ethernet.
    pub mac: Option<MacAddress>,
    /// Whether it is the loopback link.
    pub loopback: bool,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether it is up and sees its medium (`IFF_LOWER_UP`).
    pub carrier: bool,
    /// Kind of a virtual link (`veth`, `bridge`, ...); none for hardware.
    pub kind: Option<String>,
    /// Index of the bridge or bond that the link is a port of.
    pub controller: Option<u32>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Largest MTU that the driver takes, in bytes; none when it sets no limit.
    pub max_mtu: Option<u32>,
}

impl Netlink {
    /// All links of the namespace.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn links(&mut self) -> Result<Vec<Link>, NetlinkError> {
        let mut links = Vec::new();
        self.dump("list links", RouteNetlinkMessage::GetLink(LinkMessage::default()), |message| {
            if let RouteNetlinkMessage::NewLink(message) = message {
                links.push(Link::from(message));
            }
        })?;
        Ok(links)
    }

    /// Sets a link administratively up or down; nothing happens if it is so already.
    ///
    /// # Errors
    /// When the link is gone or its driver refuses.
    pub fn set_up(&mut self, index: u32, up: bool) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.change_mask = LinkFlags::Up;
        message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
        let operation = format!("set link {index} {}", if up { "up" } else { "down" });
        self.execute(&operation, RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Sets the MTU of a link, in bytes.
    ///
    /// # Errors
    /// When the link is gone or its driver takes no such MTU.
    pub fn set_mtu(&mut self, index: u32, mtu_bytes: u32) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes.push(LinkAttribute::Mtu(mtu_bytes));
        let operation = format!("set the MTU of link {index} to {mtu_bytes}");
        self.execute(&operation, RouteNetlinkMessage::SetLink(message), 0)
    }
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let flags = message.header.flags;
        let ethernet = message.header.link_layer_type == LinkLayerType::Ether;
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            mac: None,
            loopback: flags.contains(LinkFlags::Loopback),
            up: flags.contains(LinkFlags::Up),
            carrier: flags.contains(LinkFlags::LowerUp),
            kind: None,
            controller: None,
            mtu: 0,
            max_mtu: None,
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::MaxMtu(mtu) => link.max_mtu = (mtu > 0).then_some(mtu),
                LinkAttribute::Controller(index) => link.controller = Some(index),
                LinkAttribute::Address(bytes) if ethernet => link.mac = bytes.try_into().ok().map(MacAddress),
                LinkAttribute::LinkInfo(infos) => {
                    link.kind = infos.iter().find_map(|info| match info {
                        LinkInfo::Kind(kind) => Some(kind.to_string()),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        link
    }
}
