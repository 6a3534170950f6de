use std::net::IpAddr;

use rtnetlink::LinkVxlan;
use rtnetlink::packet_route::link::{InfoData, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage};

use super::{Link, MacAddress, Netlink, NetlinkError};

/// What makes a VXLAN link (RFC 7348) the tunnel that it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vxlan {
    /// The number of its network, 24 bits.
    pub vni: u32,
    /// This end of the tunnel; none when the kernel takes that of the route.
    pub local: Option<IpAddr>,
    /// UDP port of both ends.
    pub port: u16,
    /// Where frames go whose hardware address it does not know; none when they are dropped.
    pub remote: Option<IpAddr>,
    /// Index of the link that it is bound to; none when the routes decide.
    pub lower: Option<u32>,
    /// Whether it learns from what it receives where a hardware address is.
    pub learning: bool,
    /// Whether IPv4 packets that it sends bear a UDP checksum.
    pub checksum: bool,
    /// Whether its ends are decided for each packet by somebody outside of it.
    pub external: bool,
}

impl Vxlan {
    /// A tunnel that knows only what it is told: it learns nothing and floods nothing.
    pub fn told(vni: u32, local: IpAddr, port: u16) -> Self {
        let local = Some(local);
        Self { vni, local, port, remote: None, lower: None, learning: false, checksum: true, external: false }
    }
}

impl Netlink {
    /// The link with that name and, if it is a tunnel, what makes it one; none when there is none.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn vxlan(&mut self, name: &str) -> Result<Option<(Link, Option<Vxlan>)>, NetlinkError> {
        let link = self.handle.link().get().match_name(name).execute();
        let read = |message: LinkMessage| Some((Link::from(message.clone()), Vxlan::read(&message)));
        match self.list(format!("read link {name}"), link, read).await {
            Ok(mut links) => Ok(links.pop()),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes a VXLAN link, which is down.
    ///
    /// # Errors
    /// When the name is taken, another link has the port and the number, or the kernel refuses.
    pub async fn add_vxlan(
        &mut self,
        name: &str,
        mac: MacAddress,
        mtu: u32,
        vxlan: &Vxlan,
    ) -> Result<(), NetlinkError> {
        let Vxlan { vni, local, port, remote, lower, learning, checksum, external } = *vxlan;
        let mut link = LinkVxlan::new(name, vni)
            .address(mac.0.to_vec())
            .mtu(mtu)
            .port(port)
            .learning(learning)
            .udp_csum(checksum)
            .collect_metadata(external);
        link = match local {
            Some(IpAddr::V4(address)) => link.local(address),
            Some(IpAddr::V6(address)) => link.local6(address),
            None => link,
        };
        link = match remote {
            Some(IpAddr::V4(address)) => link.remote(address),
            Some(IpAddr::V6(address)) => link.remote6(address),
            None => link,
        };
        link = if let Some(lower) = lower { link.dev(lower) } else { link };
        let request = self.handle.link().add(link.build());
        self.ask(format!("add vxlan {name}"), request.execute()).await
    }
}

impl Vxlan {
    fn read(message: &LinkMessage) -> Option<Self> {
        let infos = message.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::LinkInfo(infos) => Some(infos),
            _ => None,
        })?;
        let settings = infos.iter().find_map(|info| match info {
            LinkInfo::Data(InfoData::Vxlan(settings)) => Some(settings),
            _ => None,
        })?;
        let mut vxlan = Self {
            vni: 0,
            local: None,
            port: 0,
            remote: None,
            lower: None,
            learning: false,
            checksum: false,
            external: false,
        };
        for setting in settings {
            match *setting {
                InfoVxlan::Id(vni) => vxlan.vni = vni,
                InfoVxlan::Local(address) => vxlan.local = Some(address.into()),
                InfoVxlan::Local6(address) => vxlan.local = Some(address.into()),
                InfoVxlan::Port(port) => vxlan.port = port,
                InfoVxlan::Group(address) => vxlan.remote = Some(address.into()),
                InfoVxlan::Group6(address) => vxlan.remote = Some(address.into()),
                InfoVxlan::Link(index) => vxlan.lower = (index != 0).then_some(index),
                InfoVxlan::Learning(learning) => vxlan.learning = learning,
                InfoVxlan::UDPCsum(checksum) => vxlan.checksum = checksum,
                InfoVxlan::CollectMetadata(external) => vxlan.external = external,
                _ => {}
            }
        }
        Some(vxlan)
    }
}
