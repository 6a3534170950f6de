use std::os::fd::{AsRawFd, BorrowedFd};

use rtnetlink::packet_route::link::{
    BridgeStpState, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute, LinkFlags,
    LinkInfo, LinkLayerType, LinkMessage,
};
use rtnetlink::{LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVeth};

use super::{LinkKind, MacAddress, Netlink, NetlinkError};

/// A network link as the kernel shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Interface index, unique in its network namespace, never reused while the namespace lives.
    pub index: u32,
    /// Interface name.
    pub name: String,
    /// Text that somebody attached to it.
    pub alias: Option<String>,
    /// Hardware address, if the link is an Ethernet.
    pub mac: Option<MacAddress>,
    /// The hardware address that it was made with, if its driver tells: that of a bond's port is the bond's meanwhile.
    pub permanent_mac: Option<MacAddress>,
    /// The number of the group that it belongs to; 0 when nobody says otherwise.
    pub group: u32,
    /// Whether it is the loopback link.
    pub loopback: bool,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether it is up and sees its medium (`IFF_LOWER_UP`).
    pub carrier: bool,
    /// Kind of a virtual link (`veth`, `bridge`, ...); none for hardware.
    pub kind: Option<String>,
    /// What it is in detail; none for other kinds than those of [`LinkKind`].
    pub settings: Option<LinkKind>,
    /// Index of the bridge or bond that the link is a port of.
    pub controller: Option<u32>,
    /// How it behaves as the port of a bridge; none when it is not one.
    pub port: Option<BridgePort>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Largest MTU that the driver takes, in bytes; none when it sets no limit.
    pub max_mtu: Option<u32>,
}

/// How a link behaves as the port of a bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BridgePort {
    /// Whether it gets back what it sent, if that is for itself.
    pub hairpin: bool,
    /// Whether it is kept from other isolated ports.
    pub isolated: bool,
}

/// A veth pair to make: one end a port of a bridge here, the other in another network namespace.
#[derive(Clone, Copy, Debug)]
pub struct VethPair<'a> {
    /// Name of this end.
    pub name: &'a str,
    /// Alias of this end.
    pub alias: &'a str,
    /// Index of the bridge.
    pub bridge: u32,
    /// How this end behaves as the bridge's port.
    pub port: BridgePort,
    /// Name of the other end.
    pub peer: &'a str,
    /// Hardware address of the other end.
    pub peer_mac: MacAddress,
    /// Network namespace of the other end.
    pub peer_namespace: BorrowedFd<'a>,
    /// MTU of both ends, in bytes.
    pub mtu: u32,
}

impl Netlink {
    /// All links of the namespace.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn links(&mut self) -> Result<Vec<Link>, NetlinkError> {
        let links = self.handle.link().get().execute();
        self.list("list links", links, |message| Some(Link::from(message))).await
    }

    /// The link with that name; none when there is none.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn link(&mut self, name: &str) -> Result<Option<Link>, NetlinkError> {
        let link = self.handle.link().get().match_name(name).execute();
        match self.list(format!("read link {name}"), link, |message| Some(Link::from(message))).await {
            Ok(mut links) => Ok(links.pop()),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The link with that index; none when there is none.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn link_at(&mut self, index: u32) -> Result<Option<Link>, NetlinkError> {
        let link = self.handle.link().get().match_index(index).execute();
        match self.list(format!("read link {index}"), link, |message| Some(Link::from(message))).await {
            Ok(mut links) => Ok(links.pop()),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sets a link administratively up; nothing happens if it is so already.
    ///
    /// # Errors
    /// When the link is gone or its driver refuses.
    pub async fn set_up(&mut self, index: u32) -> Result<(), NetlinkError> {
        self.change_link(format!("set link {index} up"), LinkUnspec::new_with_index(index).up()).await
    }

    /// Sets the MTU of a link, in bytes.
    ///
    /// # Errors
    /// When the link is gone or its driver takes no such MTU.
    pub async fn set_mtu(&mut self, index: u32, mtu: u32) -> Result<(), NetlinkError> {
        let operation = format!("set the MTU of link {index} to {mtu}");
        self.change_link(operation, LinkUnspec::new_with_index(index).mtu(mtu)).await
    }

    /// Sets the alias, hardware address and MTU (in bytes) of a link, and sets it up.
    ///
    /// # Errors
    /// When the link is gone or its driver refuses.
    pub async fn configure(&mut self, index: u32, alias: &str, mac: MacAddress, mtu: u32) -> Result<(), NetlinkError> {
        let link = LinkUnspec::new_with_index(index).alias(alias).address(mac.0.to_vec()).mtu(mtu).up();
        self.change_link(format!("configure link {index}"), link).await
    }

    /// Makes a bridge without spanning tree and without multicast snooping, which is down.
    ///
    /// # Errors
    /// When the name is taken or the kernel refuses.
    pub async fn add_bridge(&mut self, name: &str, mac: MacAddress, mtu: u32) -> Result<(), NetlinkError> {
        let bridge = LinkMessageBuilder::<LinkBridge>::new(name)
            .address(mac.0.to_vec())
            .mtu(mtu)
            .stp_state(BridgeStpState::Disabled)
            .mcast_snooping(false);
        let request = self.handle.link().add(bridge.build());
        self.ask(format!("add bridge {name}"), request.execute()).await
    }

    /// Makes a veth pair. This end is set up once it behaves as the port that it is to be, so that no frame passes before; the
    /// other end is down, because the kernel sets no end up whose other end is not there yet.
    ///
    /// # Errors
    /// When a name is taken, the bridge or the namespace is none, or the kernel refuses.
    pub async fn add_veth(&mut self, pair: &VethPair<'_>) -> Result<(), NetlinkError> {
        let VethPair { name, alias, bridge, port, peer, peer_mac, peer_namespace, mtu } = *pair;
        let other_end = LinkUnspec::new_with_name(peer)
            .address(peer_mac.0.to_vec())
            .mtu(mtu)
            .setns_by_fd(peer_namespace.as_raw_fd());
        let this_end = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
            .name(name)
            .mtu(mtu)
            .controller(bridge)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(other_end.build())));
        let request = self.handle.link().add(this_end.build());
        self.ask(format!("add veth {name} with peer {peer}"), request.execute()).await?;
        let port = LinkMessageBuilder::<LinkBridgePort>::default()
            .name(name)
            .alias(alias)
            .set_port_kind(InfoPortKind::Bridge)
            .hairpin(port.hairpin)
            .isolated(port.isolated)
            .up();
        self.change_link(format!("configure bridge port {name}"), port).await
    }

    /// Removes a virtual link, the other end of a veth pair with it.
    ///
    /// # Errors
    /// When there is no such link ([`NetlinkError::is_missing`]), or it is hardware.
    pub async fn remove_link(&mut self, index: u32) -> Result<(), NetlinkError> {
        let request = self.handle.link().del(index);
        self.ask(format!("remove link {index}"), request.execute()).await
    }

    pub(super) async fn change_link<T>(
        &mut self,
        operation: String,
        link: LinkMessageBuilder<T>,
    ) -> Result<(), NetlinkError> {
        let request = self.handle.link().change(link.build());
        self.ask(operation, request.execute()).await
    }
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let flags = message.header.flags;
        let ethernet = message.header.link_layer_type == LinkLayerType::Ether;
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            alias: None,
            mac: None,
            permanent_mac: None,
            group: 0,
            loopback: flags.contains(LinkFlags::Loopback),
            up: flags.contains(LinkFlags::Up),
            carrier: flags.contains(LinkFlags::LowerUp),
            kind: None,
            settings: LinkKind::read(&message),
            controller: None,
            port: None,
            mtu: 0,
            max_mtu: None,
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::MaxMtu(mtu) => link.max_mtu = (mtu > 0).then_some(mtu),
                LinkAttribute::PermAddress(bytes) if ethernet => {
                    link.permanent_mac = bytes.try_into().ok().map(MacAddress);
                }
                LinkAttribute::Group(group) => link.group = group,
                LinkAttribute::Controller(index) => link.controller = Some(index),
                LinkAttribute::Address(bytes) if ethernet => link.mac = bytes.try_into().ok().map(MacAddress),
                LinkAttribute::LinkInfo(infos) => infos.into_iter().for_each(|info| link.read_info(&info)),
                _ => {}
            }
        }
        link
    }
}

impl Link {
    fn read_info(&mut self, info: &LinkInfo) {
        match info {
            LinkInfo::Kind(kind) => self.kind = Some(kind.to_string()),
            LinkInfo::PortData(InfoPortData::BridgePort(port)) => {
                self.port = Some(BridgePort {
                    hairpin: port.contains(&InfoBridgePort::HairpinMode(true)),
                    isolated: port.contains(&InfoBridgePort::Isolated(true)),
                });
            }
            _ => {}
        }
    }
}
