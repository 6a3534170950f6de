pub use rtnetlink::packet_route::link::{BondLacpRate, BondMode, BondXmitHashPolicy, VlanProtocol};
use rtnetlink::packet_route::link::{
    BridgeStpState, InfoBond, InfoBridge, InfoData, InfoKind, InfoVlan, LinkAttribute, LinkInfo, LinkMessage,
};
use rtnetlink::{LinkBond, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVlan, LinkWireguard};

use super::{Netlink, NetlinkError};

/// What a link is, of the kinds that are made as they are declared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// The frames of another link that bear a tag (IEEE 802.1Q).
    Vlan(Vlan),
    /// Several links as one.
    Bond(Bond),
    /// A switch.
    Bridge(Bridge),
    /// Encrypted ways to peers: [`super::WireguardLinks`] has its settings.
    Wireguard,
}

/// What makes a VLAN link the one that it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vlan {
    /// Index of the link whose frames it has.
    pub lower: u32,
    /// The tag, 12 bits.
    pub id: u16,
    /// The protocol of the tag.
    pub protocol: VlanProtocol,
}

/// How a bond uses its ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bond {
    /// Which port carries a frame.
    pub mode: BondMode,
    /// Time between two looks at the carrier of each port, milliseconds.
    pub miimon_ms: u32,
    /// What of a frame decides about its port.
    pub hash: BondXmitHashPolicy,
    /// How often the other side is asked for signs of life; none unless the mode is 802.3ad.
    pub lacp_rate: Option<BondLacpRate>,
    /// Index of the port that is preferred; none where no port is, or the mode has no such.
    pub primary: Option<u32>,
}

/// How a bridge behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bridge {
    /// Whether it takes part in the spanning tree protocol (IEEE 802.1D).
    pub stp: bool,
}

impl Netlink {
    /// Makes a link that is down, in a group, by which its maker knows it.
    ///
    /// # Errors
    /// When the name is taken, the kernel has no such kind, or it refuses.
    pub async fn add_kind(&mut self, name: &str, group: u32, kind: &LinkKind) -> Result<(), NetlinkError> {
        let message = match kind {
            LinkKind::Vlan(Vlan { lower, id, protocol }) => {
                LinkVlan::new(name, *lower, *id).protocol(*protocol).link_group(group).build()
            }
            LinkKind::Bond(bond) => {
                let fixed = [InfoBond::Mode(bond.mode)].into_iter().chain(bond.lacp_rate.map(InfoBond::AdLacpRate));
                bond.settings(LinkBond::new(name).link_group(group), fixed).build()
            }
            LinkKind::Bridge(bridge) => {
                LinkMessageBuilder::<LinkBridge>::new(name).stp_state(bridge.stp_state()).link_group(group).build()
            }
            LinkKind::Wireguard => LinkWireguard::new(name).link_group(group).build(),
        };
        let request = self.handle.link().add(message);
        self.ask(format!("add {} {name}", kind.name()), request.execute()).await
    }

    /// Gives a link the settings of its kind that can be changed while it is in use: a bond's all but its mode and rate, a bridge's all,
    /// a VLAN's and a WireGuard link's none.
    ///
    /// # Errors
    /// When the link is gone or of another kind, or the kernel refuses.
    pub async fn change_kind(&mut self, index: u32, kind: &LinkKind) -> Result<(), NetlinkError> {
        let operation = format!("change the settings of {} {index}", kind.name());
        match kind {
            LinkKind::Vlan(_) | LinkKind::Wireguard => Ok(()),
            LinkKind::Bond(bond) => {
                let link = LinkMessageBuilder::<LinkBond>::new_with_info_kind(InfoKind::Bond).index(index);
                self.change_link(operation, bond.settings(link, [])).await
            }
            LinkKind::Bridge(bridge) => {
                let link = LinkMessageBuilder::<LinkBridge>::new_with_info_kind(InfoKind::Bridge).index(index);
                self.change_link(operation, link.stp_state(bridge.stp_state())).await
            }
        }
    }

    /// Sets a link administratively down; its IPv6 addresses and its routes go.
    ///
    /// # Errors
    /// When the link is gone or its driver refuses.
    pub async fn set_down(&mut self, index: u32) -> Result<(), NetlinkError> {
        self.change_link(format!("set link {index} down"), LinkUnspec::new_with_index(index).down()).await
    }

    /// Makes a link a port of that bridge or bond, and of no other, or of none. A bond takes only a link that is down, and sets it up.
    ///
    /// # Errors
    /// When a link is gone, or the bridge or bond refuses the link.
    pub async fn set_controller(&mut self, index: u32, controller: Option<u32>) -> Result<(), NetlinkError> {
        let (operation, link) = match controller {
            Some(controller) => (
                format!("make link {index} a port of link {controller}"),
                LinkUnspec::new_with_index(index).controller(controller),
            ),
            None => (format!("make link {index} a port no more"), LinkUnspec::new_with_index(index).nocontroller()),
        };
        self.change_link(operation, link).await
    }
}

impl LinkKind {
    fn name(&self) -> &'static str {
        match self {
            Self::Vlan(_) => "vlan",
            Self::Bond(_) => "bond",
            Self::Bridge(_) => "bridge",
            Self::Wireguard => "wireguard",
        }
    }

    /// What a link is, if it is of one of these kinds.
    pub(super) fn read(message: &LinkMessage) -> Option<Self> {
        let find = |attribute: &LinkAttribute| match attribute {
            LinkAttribute::Link(index) => Some(*index),
            _ => None,
        };
        let lower = message.attributes.iter().find_map(find);
        let infos = message.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::LinkInfo(infos) => Some(infos),
            _ => None,
        })?;
        infos.iter().find_map(|info| match info {
            LinkInfo::Data(InfoData::Vlan(settings)) => Vlan::read(lower?, settings).map(Self::Vlan),
            LinkInfo::Data(InfoData::Bond(settings)) => Some(Self::Bond(Bond::read(settings))),
            LinkInfo::Data(InfoData::Bridge(settings)) => Some(Self::Bridge(Bridge::read(settings))),
            LinkInfo::Kind(InfoKind::Wireguard) => Some(Self::Wireguard),
            _ => None,
        })
    }
}

impl Vlan {
    fn read(lower: u32, settings: &[InfoVlan]) -> Option<Self> {
        let mut protocol = VlanProtocol::Ieee8021Q;
        let mut tag = None;
        for setting in settings {
            match setting {
                InfoVlan::Id(id) => tag = Some(*id),
                InfoVlan::Protocol(told) => protocol = *told,
                _ => {}
            }
        }
        Some(Self { lower, id: tag?, protocol })
    }
}

impl Bond {
    /// Adds the settings that are `fixed` once it is made, and those that can be changed.
    fn settings(
        &self,
        link: LinkMessageBuilder<LinkBond>,
        fixed: impl IntoIterator<Item = InfoBond>,
    ) -> LinkMessageBuilder<LinkBond> {
        let Self { mode, miimon_ms, hash, lacp_rate: _, primary } = self;
        let link = fixed.into_iter().fold(link, |link, setting| link.append_info_data(setting));
        let link = link.miimon(*miimon_ms).xmit_hash_policy(*hash);
        // The other modes know no preferred port, and refuse even to be told of none.
        match mode {
            BondMode::ActiveBackup | BondMode::BalanceTlb | BondMode::BalanceAlb => link.primary(primary.unwrap_or(0)),
            _ => link,
        }
    }

    fn read(settings: &[InfoBond]) -> Self {
        let mut bond = Self {
            mode: BondMode::BalanceRr,
            miimon_ms: 0,
            hash: BondXmitHashPolicy::Layer2,
            lacp_rate: None,
            primary: None,
        };
        for setting in settings {
            match setting {
                InfoBond::Mode(mode) => bond.mode = *mode,
                InfoBond::MiiMon(miimon_ms) => bond.miimon_ms = *miimon_ms,
                InfoBond::XmitHashPolicy(hash) => bond.hash = *hash,
                InfoBond::AdLacpRate(rate) => bond.lacp_rate = Some(*rate),
                InfoBond::Primary(primary) => bond.primary = Some(*primary),
                _ => {}
            }
        }
        bond.lacp_rate = bond.lacp_rate.filter(|_| bond.mode == BondMode::Ieee8023Ad);
        bond
    }
}

impl Bridge {
    fn stp_state(&self) -> BridgeStpState {
        if self.stp { BridgeStpState::KernelStp } else { BridgeStpState::Disabled }
    }

    fn read(settings: &[InfoBridge]) -> Self {
        let on =
            |setting: &InfoBridge| matches!(setting, InfoBridge::StpState(state) if *state != BridgeStpState::Disabled);
        Self { stp: settings.iter().any(on) }
    }
}
