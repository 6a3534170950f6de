//! Links that are made because they are declared: VLANs, bonds, bridges and WireGuard links.
//!
//! Steps name links by their interface names, because a link that is to be made has no index yet. So one plan reaches from nothing to a
//! bridge on a VLAN on a bond.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use garboard_api::machine::{Bond, BondMode, Bridge, LacpRate, TransmitHashPolicy, Vlan, VlanProtocol};

use super::{Config, Kind, Link, Selected, Selector};

/// Time between two looks at the carrier of a bond's members when none is declared, milliseconds.
const MIIMON_MS: u32 = 100;

/// What makes a link the one that it is; others are meant by their interface names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settings {
    /// The frames of another link that bear a tag.
    Vlan {
        /// The other link.
        parent: String,
        /// The tag.
        id: u16,
        /// The tag's protocol.
        protocol: VlanProtocol,
    },
    /// Several links as one.
    Bond {
        /// Which member carries a frame.
        mode: BondMode,
        /// Time between two looks at the carrier of each member, milliseconds.
        miimon_ms: u32,
        /// What of a frame decides about the member.
        hash: TransmitHashPolicy,
        /// How often the switch is asked for signs of life; none unless the mode is 802.3ad.
        lacp_rate: Option<LacpRate>,
        /// The member that is preferred.
        primary: Option<String>,
    },
    /// A switch.
    Bridge {
        /// Whether it takes part in the spanning tree protocol.
        stp: bool,
    },
    /// Encrypted ways to peers: what it knows of them is changed while it is used.
    Wireguard,
}

/// A link that is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// Its interface name.
    pub name: String,
    /// What it is.
    pub settings: Settings,
    /// Interface names of its members or ports.
    pub ports: Vec<String>,
}

/// A change of the links that are made, or of their ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkStep {
    /// Remove a link of ours.
    Remove(String),
    /// Make a link.
    Add(String, Settings),
    /// Change the settings of a link of ours that can be changed while it is used.
    Change(String, Settings),
    /// Make a link a port of another, and of no other.
    Attach {
        /// The port.
        port: String,
        /// The bond or bridge.
        controller: String,
        /// Whether the port has to be set down before, as a bond demands.
        down: bool,
    },
    /// Make a link a port no more.
    Detach(String),
}

/// The links to make, each after those that it is made of. Left out are VLANs without their parent, ports that are not there, and links
/// whose name somebody else's link has.
pub fn made(config: &Config, links: &[Link], selected: &[Selected]) -> Vec<Made> {
    let declared = config.links.iter().filter_map(|link| match &link.selector {
        Selector::Made(name, kind) => Some((name.as_str(), kind)),
        Selector::Name(_) | Selector::Mac(_) | Selector::Driver(_) => None,
    });
    let mut scene = Scene { declared: declared.collect(), links, selected, visited: BTreeSet::new(), made: Vec::new() };
    for (name, kind) in scene.declared.clone() {
        scene.place(name, kind);
    }
    scene.made
}

struct Scene<'a> {
    declared: BTreeMap<&'a str, &'a Kind>,
    links: &'a [Link],
    selected: &'a [Selected],
    visited: BTreeSet<&'a str>,
    made: Vec<Made>,
}

impl<'a> Scene<'a> {
    fn place(&mut self, name: &'a str, kind: &'a Kind) {
        if !self.visited.insert(name) {
            return;
        }
        let parts = match kind {
            Kind::Vlan(vlan) => std::slice::from_ref(&vlan.parent),
            Kind::Bond(bond) => &bond.members,
            Kind::Bridge(bridge) => &bridge.ports,
            Kind::Wireguard(_) => [].as_slice(),
        };
        for part in parts {
            if let Some(kind) = self.declared.get(part.as_str()) {
                self.place(part, kind);
            }
        }
        let (settings, ports) = match kind {
            Kind::Vlan(Vlan { parent, id, protocol }) => {
                let Some(parent) = self.find(parent) else { return };
                (Settings::Vlan { parent, id: *id, protocol: protocol.unwrap_or_default() }, [].as_slice())
            }
            Kind::Bond(Bond { mode, members, miimon, primary, lacp_rate, transmit_hash_policy }) => {
                let settings = Settings::Bond {
                    mode: *mode,
                    miimon_ms: miimon.unwrap_or(MIIMON_MS),
                    hash: transmit_hash_policy.unwrap_or_default(),
                    lacp_rate: (*mode == BondMode::Ieee8023Ad).then(|| lacp_rate.unwrap_or_default()),
                    primary: primary.as_ref().and_then(|primary| self.find(primary)),
                };
                (settings, members.as_slice())
            }
            Kind::Bridge(Bridge { ports, stp }) => (Settings::Bridge { stp: *stp }, ports.as_slice()),
            Kind::Wireguard(_) => (Settings::Wireguard, [].as_slice()),
        };
        let ports = ports.iter().filter_map(|port| self.find(port)).collect();
        if !self.links.iter().any(|link| link.name == name && !link.ours) {
            self.made.push(Made { name: name.to_owned(), settings, ports });
        }
    }

    /// The interface name of a link that is there, or will be when its turn comes.
    fn find(&self, label: &str) -> Option<String> {
        if self.declared.contains_key(label) {
            return self.made.iter().find(|made| made.name == label).map(|made| made.name.clone());
        }
        let selected = self.selected.iter().find(|selected| selected.config.label.as_deref() == Some(label))?;
        self.links.iter().find(|link| link.index == selected.index).map(|link| link.name.clone())
    }
}

/// The changes that make links what they are to be, in the order in which they are possible. Who carries them out observes and plans
/// again until nothing is left.
///
/// A link that cannot be changed into what it is to be is removed and made anew. Of the ports of our links, only those are taken away that
/// are hardware or ours: others may have connected theirs.
pub fn plan_made(made: &[Made], links: &[Link]) -> Vec<LinkStep> {
    let mut ours: Vec<&Link> = links.iter().filter(|link| link.ours).collect();
    ours.sort_by_key(|link| (height(link, links), link.index));
    let mut gone: BTreeSet<&str> = BTreeSet::new();
    for link in &ours {
        let wanted = made.iter().find(|made| made.name == link.name);
        let stays = wanted.zip(link.settings.as_ref()).is_some_and(|(made, now)| now.can_become(&made.settings));
        // The kernel removes a VLAN with its parent.
        let falls = matches!(&link.settings, Some(Settings::Vlan { parent, .. }) if gone.contains(parent.as_str()));
        if !stays || falls {
            gone.insert(&link.name);
        }
    }
    let removed = ours.iter().rev().filter(|link| gone.contains(link.name.as_str()));
    let mut steps: Vec<LinkStep> = removed.map(|link| LinkStep::Remove(link.name.clone())).collect();
    let find = |name: &str| links.iter().find(|link| link.name == name && !gone.contains(name));
    for Made { name, settings, ports } in made {
        let present = find(name);
        if present.is_none() {
            steps.push(LinkStep::Add(name.clone(), settings.clone()));
        }
        let is_attached = |link: &Link| present.is_some_and(|present| link.controller == Some(present.index));
        let is_stray = |link: &&Link| is_attached(link) && (link.physical || link.ours) && !ports.contains(&link.name);
        let strays = links.iter().filter(is_stray).filter(|link| !gone.contains(link.name.as_str()));
        steps.extend(strays.map(|link| LinkStep::Detach(link.name.clone())));
        for port in ports {
            let link = find(port);
            if !link.is_some_and(is_attached) {
                let down = matches!(settings, Settings::Bond { .. }) && link.is_some_and(|link| link.up);
                steps.push(LinkStep::Attach { port: port.clone(), controller: name.clone(), down });
            }
        }
        if let Some(now) = present.and_then(|present| present.settings.as_ref()) {
            let settings = settings.possible(now, |port| find(port).is_some_and(is_attached));
            if settings != *now {
                steps.push(LinkStep::Change(name.clone(), settings));
            }
        }
    }
    steps
}

/// How many links are below a link at most.
pub fn height(link: &Link, links: &[Link]) -> usize {
    // Nobody stacks links higher, and what the kernel shows of them during a change may go in a circle.
    height_up_to(link, links, 8)
}

fn height_up_to(link: &Link, links: &[Link], limit: usize) -> usize {
    let is_below = |other: &&Link| match &link.settings {
        Some(Settings::Vlan { parent, .. }) => other.name == *parent,
        Some(Settings::Bond { .. } | Settings::Bridge { .. }) => other.controller == Some(link.index),
        Some(Settings::Wireguard) | None => false,
    };
    let Some(limit) = limit.checked_sub(1) else { return 0 };
    links.iter().filter(is_below).map(|below| 1 + height_up_to(below, links, limit)).max().unwrap_or(0)
}

impl Settings {
    /// Whether a link that is this becomes that without being made anew.
    fn can_become(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Vlan { .. }, Self::Vlan { .. }) => self == other,
            (Self::Bond { mode, lacp_rate, .. }, Self::Bond { mode: other_mode, lacp_rate: other_rate, .. }) => {
                mode == other_mode && lacp_rate == other_rate
            }
            (Self::Bridge { .. }, Self::Bridge { .. }) | (Self::Wireguard, Self::Wireguard) => true,
            (Self::Vlan { .. } | Self::Bond { .. } | Self::Bridge { .. } | Self::Wireguard, _) => false,
        }
    }

    /// These settings as far as they are possible `now`: the kernel prefers only a member that is attached.
    fn possible(&self, now: &Self, is_attached: impl Fn(&str) -> bool) -> Self {
        let mut settings = self.clone();
        if let (Self::Bond { primary, .. }, Self::Bond { primary: current, .. }) = (&mut settings, now)
            && primary.as_deref().is_some_and(|primary| !is_attached(primary))
        {
            primary.clone_from(current);
        }
        settings
    }
}

impl fmt::Display for LinkStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Remove(name) => write!(f, "remove link {name}"),
            Self::Add(name, settings) => write!(f, "make link {name}: {settings}"),
            Self::Change(name, settings) => write!(f, "change link {name}: {settings}"),
            Self::Attach { port, controller, down: _ } => write!(f, "make link {port} a port of {controller}"),
            Self::Detach(port) => write!(f, "make link {port} a port no more"),
        }
    }
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vlan { parent, id, protocol: VlanProtocol::Ieee8021Q } => write!(f, "VLAN {id} on {parent}"),
            Self::Vlan { parent, id, protocol: VlanProtocol::Ieee8021Ad } => {
                write!(f, "VLAN {id} (802.1ad) on {parent}")
            }
            Self::Bond { mode, miimon_ms, hash, lacp_rate, primary } => {
                write!(f, "bond, mode {mode:?}, miimon {miimon_ms} ms, hash {hash:?}")?;
                lacp_rate.iter().try_for_each(|rate| write!(f, ", LACP {rate:?}"))?;
                primary.iter().try_for_each(|primary| write!(f, ", primary {primary}"))
            }
            Self::Bridge { stp } => write!(f, "bridge {} STP", if *stp { "with" } else { "without" }),
            Self::Wireguard => f.write_str("WireGuard"),
        }
    }
}

#[cfg(test)]
#[path = "made_tests.rs"]
mod tests;
