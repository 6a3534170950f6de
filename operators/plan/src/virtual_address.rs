//! The virtual address of the API: which of the control-plane machines holds it, by whom else it may be taken, and on which link it is.
//!
//! Each machine runs an [`Election`]: the Virtual Router Redundancy Protocol, version 3 (RFC 9568), without preemption among machines
//! that serve. It needs nobody's consent, so that it works when etcd and the API servers do not. When the link is split, each part may have a
//! holder: whichever API server answers is as good as another, and the address has no state. What of the protocol is different here:
//!
//! - The owner's priority, 255, is nobody's: the address belongs to no machine.
//! - The priority tells whether the API server answers in time ([`Standing`]). One that serves takes the address from one that does not,
//!   and from no other.
//! - The address is at the hardware address of the machine that holds it, not at one of its own, so that a link needs no further one;
//!   gratuitous ARP tells of each move.
//! - Advertisements of other addresses than the own are ignored, so that two clusters whose virtual routers have the same number do not
//!   disturb each other.

mod advertisement;
mod election;
mod place;

use std::net::Ipv4Addr;

use garboard_api::ClusterSpec;
use garboard_api::machine::{MachineRole, MachineSpec};

pub use self::advertisement::{Advertisement, read, write};
pub use self::election::{Action, Election, Event, INTERVAL, Standing, down_time};
pub use self::place::{Address, Link, Observed, Place, Unplaced, place, stale};

/// What a control-plane machine is to do its part for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Declared {
    /// The address.
    pub address: Ipv4Addr,
    /// The virtual router's number.
    pub router_id: u8,
}

/// What is declared for a machine; none where there is nothing for it to do.
pub fn declared(machine: &MachineSpec, cluster: Option<&ClusterSpec>) -> Option<Declared> {
    let shared = cluster?.virtual_address.as_ref().filter(|_| machine.role() == MachineRole::ControlPlane)?;
    Some(Declared { address: shared.address, router_id: shared.router_id() })
}

/// What has become of the virtual address, as a machine knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holding {
    /// The address; none when none is declared.
    pub address: Option<Ipv4Addr>,
    /// The own address of the machine that holds it, as far as that is known.
    pub holder: Option<Ipv4Addr>,
    /// Whether that is this machine.
    pub own: bool,
    /// What keeps this machine from taking part, in words.
    pub problem: Option<String>,
}

impl Holding {
    /// The address, while this machine holds it.
    pub fn held(&self) -> Option<Ipv4Addr> {
        self.address.filter(|_| self.own)
    }
}

#[cfg(test)]
#[path = "virtual_address/group_tests.rs"]
mod group_tests;
