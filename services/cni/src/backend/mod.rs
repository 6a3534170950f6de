//! How pods are connected: [`bridge`] attaches this machine's pods, whatever the backend; [`vxlan`] connects the machines. What is
//! the same for every backend (addresses given out, host ports, masquerading) is outside.

pub mod bridge;
pub mod mtu;
mod settings;
pub mod vxlan;

use std::net::IpAddr;

use garboard_sys::netlink::NetlinkError;
use ipnet::IpNet;

pub use bridge::{detach, host_links};

/// Links that this program made have an alias that begins with this.
pub const MARK: &str = "garboard-cni";

/// A backend that could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The kernel refused.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// Somebody else's link has the name.
    #[error("link {0} exists and is not marked as ours")]
    Foreign(String),
    /// Somebody else's route has the place.
    #[error("a route to {0} exists and is not marked as ours")]
    ForeignRoute(IpNet),
    /// No link has the address that tunnels begin at.
    #[error("vxlan.address: no link of this machine has {0}")]
    NoUnderlay(IpAddr),
    /// A kernel setting could not be written.
    #[error("write {path}")]
    Setting {
        /// Its path under /proc/sys.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Something is not as it was left.
    #[error("{0}")]
    Changed(String),
}

/// Whether the kernel may have given the address to a link by itself.
fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}
