//! A socket for the advertisements of the Virtual Router Redundancy Protocol over IPv4 (RFC 9568), which says what is in them.

#![allow(unsafe_code, reason = "AsyncFd has no safe constructor")]

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::num::NonZero;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::BindToDevice;
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with, sockopt,
};

/// The protocol's number (RFC 9568, section 5.1.1.4).
const PROTOCOL: u32 = 112;
/// The group that it speaks to (section 5.1.1.2).
const GROUP: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 18);
/// No router forwards the group, so that a packet with all its hops left is from this link (section 5.1.1.3).
const HOPS: u32 = 255;
/// Longest packet that is looked at whole, bytes: a header with all its options, and an advertisement of a dozen addresses. Of a longer one
/// the rest is left out, which shows.
const PACKET_BYTES: usize = 128;

/// A non-blocking raw socket on one link that sends to the protocol's group and receives what others send there.
#[derive(Debug)]
pub struct VrrpSocket {
    socket: OwnedFd,
}

impl VrrpSocket {
    /// Opens the socket on a link, in the calling thread's network namespace; what it sends is from `source`, an address of the link.
    ///
    /// # Errors
    /// Without `CAP_NET_RAW`, or when the link is gone.
    pub fn open(index: u32, name: &str, source: Ipv4Addr) -> io::Result<Self> {
        let protocol = NonZero::new(PROTOCOL).map(Protocol::from_raw);
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::INET, SocketType::RAW, flags, protocol)?;
        // rustix has no such option.
        setsockopt(&socket, BindToDevice, &name.into())?;
        sockopt::set_ip_multicast_if_with_ifindex(&socket, &Ipv4Addr::UNSPECIFIED, &source, index)?;
        sockopt::set_ip_multicast_ttl(&socket, HOPS)?;
        sockopt::set_ip_multicast_loop(&socket, false)?;
        sockopt::set_ip_add_membership_with_ifindex(&socket, &GROUP, &Ipv4Addr::UNSPECIFIED, index)?;
        Ok(Self { socket })
    }

    /// Hands the socket to the tokio runtime that the caller runs in, which then waits for it.
    ///
    /// # Errors
    /// When the runtime cannot wait for it.
    #[cfg(feature = "tokio")]
    pub fn into_async(self) -> io::Result<tokio::io::unix::AsyncFd<Self>> {
        // SAFETY: as_raw_fd returns the descriptor that the socket owns from its making to its drop, so it is open and the
        // same as long as AsyncFd holds the socket; AsyncFd has no safe constructor.
        Ok(unsafe { tokio::io::unix::AsyncFd::register(self) }?)
    }

    /// Sends a message to the group.
    ///
    /// # Errors
    /// When the link is down or gone, or its queue is full.
    pub fn send(&self, message: &[u8]) -> io::Result<()> {
        sendto(&self.socket, message, SendFlags::empty(), &SocketAddrV4::new(GROUP, 0))?;
        Ok(())
    }

    /// Takes the next packet that waits: who sent it, and the message in it; none when it is not from this link or not for the group.
    ///
    /// # Errors
    /// `WouldBlock` when nothing waits; else when the link is down or gone.
    pub fn receive(&self) -> io::Result<Option<(Ipv4Addr, Vec<u8>)>> {
        let mut buffer = [0; PACKET_BYTES];
        let length = recv(&self.socket, &mut buffer, RecvFlags::empty())?.1;
        let packet = buffer.get(..length).ok_or_else(|| io::Error::from(Errno::EMSGSIZE))?;
        Ok(message(packet))
    }
}

impl AsFd for VrrpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for VrrpSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// The sender and the message of an IPv4 packet to the group with all its hops left.
fn message(packet: &[u8]) -> Option<(Ipv4Addr, Vec<u8>)> {
    let header = usize::from(packet.first()? & 0xf) * 4;
    let address = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?));
    let hops = u32::from(*packet.get(8)?);
    let (source, destination) = (address(12)?, address(16)?);
    (hops == HOPS && destination == GROUP).then_some((source, packet.get(header..)?.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(words: u8, hops: u8, destination: Ipv4Addr) -> Vec<u8> {
        let mut packet = vec![0; usize::from(words) * 4];
        packet[0] = 0x40 | words;
        packet[8] = hops;
        packet[12..16].copy_from_slice(&[192, 0, 2, 7]);
        packet[16..20].copy_from_slice(&destination.octets());
        packet.extend(b"message");
        packet
    }

    #[test]
    fn only_packets_of_this_link_for_the_group_count() {
        let from = Ipv4Addr::new(192, 0, 2, 7);
        for words in [5, 6, 15] {
            assert_eq!(message(&packet(words, 255, GROUP)), Some((from, b"message".to_vec())), "{words}");
        }
        assert_eq!(message(&packet(5, 254, GROUP)), None, "a router has forwarded it");
        assert_eq!(message(&packet(5, 255, Ipv4Addr::new(192, 0, 2, 9))), None, "it is for one machine");
    }

    #[test]
    fn nothing_is_read_beyond_a_truncated_packet() {
        let whole = packet(15, 255, GROUP);
        for length in 0..60 {
            assert_eq!(message(&whole[..length]), None, "{length}");
        }
    }
}
