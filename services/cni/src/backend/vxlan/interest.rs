//! Which of the kernel's changes are worth a look: a pure function. A pod that starts makes a dozen that are not.

use std::collections::BTreeSet;
use std::net::IpAddr;

use garboard_sys::netlink::Change;

use super::{LINK, PROTOCOL};

/// What a change may have touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Concern {
    /// Nothing here.
    Nothing,
    /// What is ours.
    Tunnel,
    /// The network that carries the tunnels, and with it possibly what ours should be.
    Underlay,
}

/// What counts.
#[derive(Clone, Debug, Default)]
pub struct Interest {
    /// Index of our link.
    pub tunnel: Option<u32>,
    /// This machine's address in the underlay.
    pub address: Option<IpAddr>,
    /// Indices of the links that hold the address, and that peers are on.
    pub underlay: BTreeSet<u32>,
    /// Whether it matters how peers are routed.
    pub routes: bool,
    /// Whether something was refused, as a route is where somebody else has one.
    pub refused: bool,
}

impl Interest {
    /// What a change may have touched.
    pub fn concern(&self, change: &Change) -> Concern {
        let link = |index: u32| match index {
            index if Some(index) == self.tunnel => Concern::Tunnel,
            index if self.underlay.contains(&index) => Concern::Underlay,
            _ => Concern::Nothing,
        };
        match change {
            Change::Link { name: Some(name), .. } if name == LINK => Concern::Tunnel,
            Change::Address { address, .. } if address.is_some() && *address == self.address => Concern::Underlay,
            Change::Link { index, .. } | Change::Address { index, .. } => link(*index),
            Change::Neighbour { index } if Some(*index) == self.tunnel => Concern::Tunnel,
            Change::Route { protocol } if *protocol == PROTOCOL => Concern::Tunnel,
            Change::Route { .. } if self.routes => Concern::Underlay,
            Change::Route { .. } if self.refused => Concern::Tunnel,
            Change::Neighbour { .. } | Change::Route { .. } => Concern::Nothing,
            Change::Unknown => Concern::Underlay,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_counts_by_what_it_touches() {
        let address = Some([192, 0, 2, 10].into());
        let interest = Interest { tunnel: Some(5), address, underlay: BTreeSet::from([2]), ..Interest::default() };
        let named = |index, name: &str| Change::Link { index, name: Some(name.to_owned()) };
        let cases = [
            ("our link", named(5, "gb-vxlan"), Concern::Tunnel),
            ("a link of our name", named(9, "gb-vxlan"), Concern::Tunnel),
            ("the underlay's link", named(2, "eth0"), Concern::Underlay),
            ("a pod's link", named(7, "gb0123456789ab"), Concern::Nothing),
            ("our link's address", Change::Address { index: 5, address: None }, Concern::Tunnel),
            ("our address elsewhere", Change::Address { index: 7, address }, Concern::Underlay),
            ("another address elsewhere", Change::Address { index: 7, address: None }, Concern::Nothing),
            ("our neighbour", Change::Neighbour { index: 5 }, Concern::Tunnel),
            ("the underlay's neighbour", Change::Neighbour { index: 2 }, Concern::Nothing),
            ("our route", Change::Route { protocol: PROTOCOL }, Concern::Tunnel),
            ("another route", Change::Route { protocol: 3 }, Concern::Nothing),
            ("what was missed", Change::Unknown, Concern::Underlay),
        ];
        for (name, change, concern) in cases {
            assert_eq!(interest.concern(&change), concern, "{name}");
        }
        let refused = Interest { refused: true, ..interest.clone() };
        assert_eq!(refused.concern(&Change::Route { protocol: 3 }), Concern::Tunnel, "it may have made room");
        let direct = Interest { routes: true, ..interest };
        assert_eq!(direct.concern(&Change::Route { protocol: 3 }), Concern::Underlay, "it may lead to a peer");
    }
}
