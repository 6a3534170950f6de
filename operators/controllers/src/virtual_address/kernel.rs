//! The kernel's links and addresses as the plan's values, and the virtual address on them.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use garboard_plan::virtual_address::{Address, Link, Observed, Place};
use garboard_sys::netlink::{self, Netlink, NetlinkError, SHARED};
use ipnet::{IpNet, Ipv4Net};

/// The kernel takes the address away when it is not renewed for so long: a machine whose agent does not come back must not answer for
/// it for ever.
const LIFETIME: Duration = Duration::from_secs(30);

/// What decides where the address is to be.
///
/// # Errors
/// When the kernel cannot be asked.
pub async fn observe(netlink: &mut Netlink) -> Result<Observed, NetlinkError> {
    let links = netlink.links().await?.into_iter().filter(|link| !link.loopback);
    let links = links.map(|link| Link {
        index: link.index,
        name: link.name,
        mac: link.mac.map(|mac| mac.0),
        works: link.up && link.carrier,
    });
    let links: Vec<_> = links.collect();
    let addresses = netlink.addresses().await?.into_iter().filter_map(|found| match found.address {
        IpNet::V4(address) => Some(Address { index: found.index, address, shared: found.protocol == SHARED }),
        IpNet::V6(_) => None,
    });
    let addresses = addresses.filter(|address| links.iter().any(|link| link.index == address.index)).collect();
    let mut routes = netlink.routes().await?;
    routes.retain(|route| matches!(route.destination, IpNet::V4(net) if net.prefix_len() == 0));
    let default = routes.into_iter().min_by_key(|route| route.metric).map(|route| route.index);
    Ok(Observed { links, addresses, default })
}

/// Has the address on its link for the next while.
///
/// # Errors
/// When the link is gone, or the kernel refuses the address.
pub async fn lend(netlink: &mut Netlink, place: &Place, address: Ipv4Addr) -> Result<(), NetlinkError> {
    // Of this one address: the subnet is that of the machine's own address.
    let address = IpNet::from(IpAddr::V4(address));
    let lent = netlink::Address { index: place.index, address, protocol: SHARED, unique: false };
    netlink.lend_address(&lent, LIFETIME).await
}

/// Takes an address off a link; one that is gone already is.
///
/// # Errors
/// When the kernel refuses.
pub async fn remove(netlink: &mut Netlink, index: u32, address: Ipv4Net) -> Result<(), NetlinkError> {
    match netlink.remove_address(index, address.into()).await {
        Err(error) if !error.is_missing() => Err(error),
        _ => Ok(()),
    }
}
