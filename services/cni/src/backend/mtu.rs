//! The largest packet of a pod's interface, from what the machine's links carry.

use garboard_sys::netlink::{Netlink, NetlinkError};

use super::BackendError;
use super::vxlan::underlay;
use crate::config::{Backend, Config};

/// What a pod gets when no default route tells the machine's own, bytes.
const MTU_ETHERNET: u32 = 1500;

/// The MTU that the configuration names, or else that fits: that of the link with the default route, or what a tunnel leaves of
/// that of the link which holds the machine's address. Bytes.
///
/// # Errors
/// When the kernel cannot be asked, or no link holds the address.
pub async fn pods_mtu(config: &Config) -> Result<u32, BackendError> {
    if let Some(mtu_bytes) = config.mtu_bytes {
        return Ok(mtu_bytes);
    }
    let mut netlink = Netlink::open()?;
    match &config.backend {
        Backend::Bridge => Ok(default_route_mtu(&mut netlink).await?.unwrap_or(MTU_ETHERNET)),
        Backend::Vxlan(own) => {
            let holder = underlay::holder(&mut netlink, own.address).await?;
            let holder = holder.ok_or(BackendError::NoUnderlay(own.address))?;
            Ok(underlay::tunnel_mtu(&holder, own.address))
        }
    }
}

async fn default_route_mtu(netlink: &mut Netlink) -> Result<Option<u32>, NetlinkError> {
    let default = netlink.routes().await?.into_iter().find(|route| route.destination.prefix_len() == 0);
    let Some(default) = default else { return Ok(None) };
    Ok(netlink.link_at(default.index).await?.map(|link| link.mtu))
}
