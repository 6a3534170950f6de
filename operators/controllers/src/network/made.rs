//! Links that are made as they are declared, in the kernel.

use garboard_api::machine::{BondMode, LacpRate, TransmitHashPolicy, VlanProtocol};
use garboard_plan::network::{LinkStep, Settings};
use garboard_sys::netlink::{self as sys, GROUP, LinkKind, Netlink, NetlinkError};

/// Carries out a step. What is gone already counts as removed. Says whether the links that the step needs are there.
///
/// # Errors
/// When the kernel refuses.
pub async fn apply(netlink: &mut Netlink, step: &LinkStep) -> Result<bool, NetlinkError> {
    match step {
        LinkStep::Remove(name) => {
            if let Some(link) = netlink.link(name).await?.filter(|link| link.group == GROUP) {
                match netlink.remove_link(link.index).await {
                    Err(error) if error.is_missing() => {}
                    result => result?,
                }
            }
        }
        LinkStep::Add(name, settings) => {
            let Some(kind) = kind(netlink, settings).await? else { return Ok(false) };
            netlink.add_kind(name, GROUP, &kind).await?;
        }
        LinkStep::Change(name, settings) => {
            let Some(kind) = kind(netlink, settings).await? else { return Ok(false) };
            let Some(link) = netlink.link(name).await? else { return Ok(false) };
            netlink.change_kind(link.index, &kind).await?;
        }
        LinkStep::Attach { port, controller, down } => {
            let Some(port) = netlink.link(port).await? else { return Ok(false) };
            let Some(controller) = netlink.link(controller).await? else { return Ok(false) };
            if *down {
                netlink.set_down(port.index).await?;
            }
            netlink.set_controller(port.index, Some(controller.index)).await?;
        }
        LinkStep::Detach(port) => {
            let Some(port) = netlink.link(port).await? else { return Ok(false) };
            netlink.set_controller(port.index, None).await?;
        }
    }
    Ok(true)
}

/// What the kernel is told; none when a link that is part of it is not there.
async fn kind(netlink: &mut Netlink, settings: &Settings) -> Result<Option<LinkKind>, NetlinkError> {
    Ok(Some(match settings {
        Settings::Vlan { parent, id, protocol } => {
            let Some(parent) = netlink.link(parent).await? else { return Ok(None) };
            let protocol = match protocol {
                VlanProtocol::Ieee8021Q => sys::VlanProtocol::Ieee8021Q,
                VlanProtocol::Ieee8021Ad => sys::VlanProtocol::Ieee8021Ad,
            };
            LinkKind::Vlan(sys::Vlan { lower: parent.index, id: *id, protocol })
        }
        Settings::Bond { mode, miimon_ms, hash, lacp_rate, primary } => {
            let primary = match primary {
                Some(primary) => netlink.link(primary).await?.map(|link| link.index),
                None => None,
            };
            LinkKind::Bond(sys::Bond {
                mode: bond_mode(*mode),
                miimon_ms: *miimon_ms,
                hash: hash_policy(*hash),
                lacp_rate: lacp_rate.map(|rate| match rate {
                    LacpRate::Slow => sys::BondLacpRate::Slow,
                    LacpRate::Fast => sys::BondLacpRate::Fast,
                }),
                primary,
            })
        }
        Settings::Bridge { stp } => LinkKind::Bridge(sys::Bridge { stp: *stp }),
        Settings::Wireguard => LinkKind::Wireguard,
    }))
}

/// What a link is; none for one that no declaration could describe.
pub fn settings(kind: &LinkKind, links: &[sys::Link]) -> Option<Settings> {
    let name = |index: u32| links.iter().find(|link| link.index == index).map(|link| link.name.clone());
    Some(match kind {
        LinkKind::Vlan(sys::Vlan { lower, id, protocol }) => {
            let protocol = match protocol {
                sys::VlanProtocol::Ieee8021Q => VlanProtocol::Ieee8021Q,
                sys::VlanProtocol::Ieee8021Ad => VlanProtocol::Ieee8021Ad,
                _ => return None,
            };
            Settings::Vlan { parent: name(*lower)?, id: *id, protocol }
        }
        LinkKind::Bond(sys::Bond { mode, miimon_ms, hash, lacp_rate, primary }) => Settings::Bond {
            mode: *MODES.iter().find(|known| bond_mode(**known) == *mode)?,
            miimon_ms: *miimon_ms,
            hash: *POLICIES.iter().find(|known| hash_policy(**known) == *hash)?,
            lacp_rate: match lacp_rate {
                None => None,
                Some(sys::BondLacpRate::Slow) => Some(LacpRate::Slow),
                Some(sys::BondLacpRate::Fast) => Some(LacpRate::Fast),
                Some(sys::BondLacpRate::Other(_)) => return None,
            },
            primary: primary.and_then(name),
        },
        LinkKind::Bridge(sys::Bridge { stp }) => Settings::Bridge { stp: *stp },
        LinkKind::Wireguard => Settings::Wireguard,
    })
}

const MODES: [BondMode; 7] = [
    BondMode::BalanceRr,
    BondMode::ActiveBackup,
    BondMode::BalanceXor,
    BondMode::Broadcast,
    BondMode::Ieee8023Ad,
    BondMode::BalanceTlb,
    BondMode::BalanceAlb,
];

fn bond_mode(mode: BondMode) -> sys::BondMode {
    match mode {
        BondMode::BalanceRr => sys::BondMode::BalanceRr,
        BondMode::ActiveBackup => sys::BondMode::ActiveBackup,
        BondMode::BalanceXor => sys::BondMode::BalanceXor,
        BondMode::Broadcast => sys::BondMode::Broadcast,
        BondMode::Ieee8023Ad => sys::BondMode::Ieee8023Ad,
        BondMode::BalanceTlb => sys::BondMode::BalanceTlb,
        BondMode::BalanceAlb => sys::BondMode::BalanceAlb,
    }
}

const POLICIES: [TransmitHashPolicy; 6] = [
    TransmitHashPolicy::Layer2,
    TransmitHashPolicy::Layer23,
    TransmitHashPolicy::Layer34,
    TransmitHashPolicy::Encap23,
    TransmitHashPolicy::Encap34,
    TransmitHashPolicy::VlanSrcMac,
];

fn hash_policy(policy: TransmitHashPolicy) -> sys::BondXmitHashPolicy {
    match policy {
        TransmitHashPolicy::Layer2 => sys::BondXmitHashPolicy::Layer2,
        TransmitHashPolicy::Layer23 => sys::BondXmitHashPolicy::Layer23,
        TransmitHashPolicy::Layer34 => sys::BondXmitHashPolicy::Layer34,
        TransmitHashPolicy::Encap23 => sys::BondXmitHashPolicy::Encap23,
        TransmitHashPolicy::Encap34 => sys::BondXmitHashPolicy::Encap34,
        TransmitHashPolicy::VlanSrcMac => sys::BondXmitHashPolicy::VlanSrcMac,
    }
}
