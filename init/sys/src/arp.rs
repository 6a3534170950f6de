//! Tells a link where an address is from now on.

#![allow(unsafe_code, reason = "addresses of packet sockets have no safe interface in nix or rustix")]

use std::io;
use std::mem::size_of;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// An ARP packet for IPv4 on an Ethernet, bytes.
const PACKET_BYTES: usize = 28;
/// Kinds of ARP packets (RFC 826). Some hosts learn from the one, some from the other.
const REQUEST: u8 = 1;
const REPLY: u8 = 2;
const BROADCAST: [u8; 8] = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0];

/// Broadcasts on the link with that interface index that an address is at a hardware address: gratuitous ARP (RFC 5227, section 3), as a
/// request and as a reply.
///
/// # Errors
/// Without `CAP_NET_RAW`, when the link is down or gone, or its queue is full.
pub fn announce(index: u32, mac: [u8; 6], address: Ipv4Addr) -> io::Result<()> {
    // Protocol 0 receives nothing.
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::PACKET, SocketType::DGRAM, flags, None)?;
    let to = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (libc::ETH_P_ARP as u16).to_be(),
        sll_ifindex: i32::try_from(index).map_err(|_| io::Error::from(Errno::ENODEV))?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: BROADCAST,
    };
    for kind in [REQUEST, REPLY] {
        let packet = packet(kind, mac, address);
        // SAFETY: the packet's pointer and length describe an initialised buffer, the address's a whole sockaddr_ll; both outlive the
        // call. Neither nix nor rustix can build a sockaddr_ll.
        let sent = unsafe {
            libc::sendto(
                socket.as_raw_fd(),
                packet.as_ptr().cast(),
                packet.len(),
                0,
                (&raw const to).cast(),
                size_of::<libc::sockaddr_ll>() as u32,
            )
        };
        Errno::result(sent)?;
    }
    Ok(())
}

fn packet(kind: u8, mac: [u8; 6], address: Ipv4Addr) -> [u8; PACKET_BYTES] {
    let mut packet = [0; PACKET_BYTES];
    // Ethernet, IPv4, and the lengths of their addresses.
    let fixed = [0, 1, 8, 0, 6, 4, 0, kind];
    // The target's hardware address means nothing in a request; a reply names the address itself again.
    let target = if kind == REPLY { mac } else { [0; 6] };
    let parts = fixed.into_iter().chain(mac).chain(address.octets()).chain(target).chain(address.octets());
    packet.iter_mut().zip(parts).for_each(|(byte, part)| *byte = part);
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sender_and_target_are_the_same_address() {
        let mac = [2, 0, 0, 0, 0, 7];
        for kind in [REQUEST, REPLY] {
            let packet = packet(kind, mac, Ipv4Addr::new(192, 0, 2, 5));
            assert_eq!(packet[..8], [0, 1, 8, 0, 6, 4, 0, kind]);
            assert_eq!(
                (&packet[8..14], &packet[14..18], &packet[24..]),
                (&mac[..], &[192, 0, 2, 5][..], &[192, 0, 2, 5][..])
            );
        }
    }
}
