use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};

use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, ipproto, sendto, socket_with, sockopt};

/// All routers of a link (RFC 4291, section 2.7.1).
const ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
/// A router solicitation without options (RFC 4861, section 4.1); the kernel adds the checksum.
const SOLICITATION: [u8; 8] = [133, 0, 0, 0, 0, 0, 0, 0];
/// A router ignores one that may have come from another link.
const HOPS: u32 = 255;

/// Asks the routers of a link for their advertisements. The kernel does so only when a link goes up, and takes the answers in any case.
///
/// # Errors
/// When the link is gone, or has no IPv6 address to ask from yet: then the kernel asks once it has.
pub fn solicit_routers(index: u32) -> io::Result<()> {
    let socket = socket_with(AddressFamily::INET6, SocketType::RAW, SocketFlags::CLOEXEC, Some(ipproto::ICMPV6))?;
    sockopt::set_ipv6_multicast_hops(&socket, HOPS)?;
    sendto(&socket, &SOLICITATION, SendFlags::empty(), &SocketAddrV6::new(ROUTERS, 0, 0, index))?;
    Ok(())
}
