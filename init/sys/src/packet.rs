//! A socket that speaks DHCPv4 on a link that has no address yet.

#![allow(unsafe_code, reason = "packet sockets and their filters have no safe interface in nix or rustix")]

use std::io;
use std::mem::{self, size_of};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
const IP_HEADER_BYTES: usize = 20;
const HEADERS_BYTES: usize = IP_HEADER_BYTES + 8;
const UDP: u8 = 17;

/// Lets through what is IPv4 without options, not a fragment, UDP, and for the client's port.
///
/// Offsets count from the IP header, because the socket is `SOCK_DGRAM`. The two last numbers of a jump are how many
/// instructions to skip when true and when false; skipping to the last but one drops the packet.
const FILTER: [libc::sock_filter; 10] = [
    instruction(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, 0),
    instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0x45, 0, 6),
    instruction(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 9, 0, 0),
    instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, UDP as u32, 0, 4),
    instruction(libc::BPF_LD | libc::BPF_H | libc::BPF_ABS, 6, 0, 0),
    instruction(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, 0x3fff, 2, 0),
    instruction(libc::BPF_LD | libc::BPF_H | libc::BPF_ABS, 22, 0, 0),
    instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, CLIENT_PORT as u32, 1, 0),
    instruction(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
    instruction(libc::BPF_RET | libc::BPF_K, u32::MAX, 0, 0),
];

const fn instruction(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt, jf, k }
}

/// A non-blocking packet socket on one link that sends broadcasts from `0.0.0.0:68` to port 67 and receives what is
/// sent to port 68, whatever address it is for.
///
/// Checksums of received packets are not verified: a DHCP server on the same host leaves them to hardware that is not
/// there, the link has its own, and the reader matches transaction and hardware address anyway.
#[derive(Debug)]
pub struct DhcpSocket {
    socket: OwnedFd,
    index: i32,
}

impl DhcpSocket {
    /// Opens the socket on the link with that interface index, in the calling thread's network namespace.
    ///
    /// # Errors
    /// Without `CAP_NET_RAW`, or when the link is gone.
    pub fn open(index: u32) -> io::Result<Self> {
        let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: socket takes no pointers. Protocol 0 receives nothing until bind, so no packet arrives unfiltered.
        // Neither nix nor rustix can build the sockaddr_ll that the socket needs later.
        let raw = Errno::result(unsafe { libc::socket(libc::AF_PACKET, kind, 0) })?;
        // SAFETY: the descriptor was just returned by a successful call and nobody else owns it.
        let socket = unsafe { OwnedFd::from_raw_fd(raw) };
        let index = i32::try_from(index).map_err(|_| io::Error::from(Errno::ENODEV))?;
        let socket = Self { socket, index };
        socket.attach_filter()?;

        let address = socket.address();
        // SAFETY: the pointer and length describe a whole sockaddr_ll that outlives the call.
        let bound = unsafe {
            libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size_of::<libc::sockaddr_ll>() as u32)
        };
        Errno::result(bound)?;
        Ok(socket)
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

    /// Broadcasts a DHCP message.
    ///
    /// # Errors
    /// When the link is down or gone, or its queue is full.
    pub fn broadcast(&self, message: &[u8]) -> io::Result<()> {
        let packet = packet(message).ok_or_else(|| io::Error::from(Errno::EMSGSIZE))?;
        let address = self.address();
        // SAFETY: the packet's pointer and length describe an initialised buffer, the address's a whole sockaddr_ll;
        // both outlive the call.
        let sent = unsafe {
            libc::sendto(
                self.as_raw_fd(),
                packet.as_ptr().cast(),
                packet.len(),
                0,
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as u32,
            )
        };
        Errno::result(sent)?;
        Ok(())
    }

    /// Takes the next DHCP message that waits and the address of who sent it; `WouldBlock` when there is none.
    ///
    /// # Errors
    /// When the link is down or gone, or nothing waits.
    pub fn receive(&self) -> io::Result<(Ipv4Addr, Vec<u8>)> {
        let mut buffer = vec![0; 2048];
        loop {
            let length = rustix::net::recv(&self.socket, &mut buffer, rustix::net::RecvFlags::empty())?.1;
            if let Some(message) = buffer.get(..length).and_then(payload) {
                return Ok(message);
            }
        }
    }

    fn attach_filter(&self) -> io::Result<()> {
        let mut filter = FILTER;
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        // SAFETY: the program points to `filter`, which outlives the call; the kernel copies and verifies it.
        let attached = unsafe {
            libc::setsockopt(
                self.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ATTACH_FILTER,
                (&raw const program).cast(),
                size_of::<libc::sock_fprog>() as u32,
            )
        };
        Errno::result(attached)?;
        Ok(())
    }

    fn address(&self) -> libc::sockaddr_ll {
        // SAFETY: sockaddr_ll is plain data for which all zeroes is a value.
        let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_IP as u16).to_be();
        address.sll_ifindex = self.index;
        address.sll_halen = 6;
        address.sll_addr = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0];
        address
    }
}

impl AsFd for DhcpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for DhcpSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// The IPv4 packet around a message, or none if it is too long for one.
fn packet(message: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(HEADERS_BYTES + message.len()).ok()?;
    let udp_length = length - IP_HEADER_BYTES as u16;
    let mut header = Vec::with_capacity(usize::from(length));
    header.extend([0x45, 0x10]);
    header.extend(length.to_be_bytes());
    header.extend([0, 0, 0, 0, 64, UDP, 0, 0]);
    header.extend(Ipv4Addr::UNSPECIFIED.octets());
    header.extend(Ipv4Addr::BROADCAST.octets());
    let sum = checksum(0, &header).to_be_bytes();
    let mut packet = header;
    packet.splice(10..12, sum);

    let mut datagram = Vec::with_capacity(usize::from(udp_length));
    datagram.extend(CLIENT_PORT.to_be_bytes());
    datagram.extend(SERVER_PORT.to_be_bytes());
    datagram.extend(udp_length.to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(message);
    // The pseudo header: both addresses (0.0.0.0 adds nothing), the protocol and the length.
    let pseudo = 2 * 0xffff + u32::from(UDP) + u32::from(udp_length);
    // A sum of 0 would mean that there is none (RFC 768).
    let sum = match checksum(pseudo, &datagram) {
        0 => 0xffff,
        sum => sum,
    };
    datagram.splice(6..8, sum.to_be_bytes());
    packet.extend(datagram);
    Some(packet)
}

/// The sender and the payload of an IPv4 packet that passed [`FILTER`].
fn payload(packet: &[u8]) -> Option<(Ipv4Addr, Vec<u8>)> {
    let length = usize::from(u16::from_be_bytes(packet.get(2..4)?.try_into().ok()?));
    let packet = packet.get(..length)?;
    let source: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
    Some((source.into(), packet.get(HEADERS_BYTES..)?.to_vec()))
}

/// The internet checksum (RFC 1071) of the bytes, added to `start`.
fn checksum(start: u32, bytes: &[u8]) -> u16 {
    let mut sum = start;
    for pair in bytes.chunks(2) {
        let high = pair.first().copied().unwrap_or_default();
        let low = pair.get(1).copied().unwrap_or_default();
        sum += u32::from(u16::from_be_bytes([high, low]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_verify() {
        for message in [&b""[..], b"x", b"odd", b"even", &[0xff; 576]] {
            let packet = packet(message).unwrap();
            assert_eq!(checksum(0, &packet[..IP_HEADER_BYTES]), 0);
            let datagram = &packet[IP_HEADER_BYTES..];
            assert_eq!(checksum(2 * 0xffff + u32::from(UDP) + datagram.len() as u32, datagram), 0);
        }
    }

    #[test]
    fn padding_of_the_frame_is_not_part_of_the_message() {
        let mut frame = packet(b"message").unwrap();
        frame.extend([0; 18]);
        assert_eq!(payload(&frame), Some((Ipv4Addr::UNSPECIFIED, b"message".to_vec())));
    }

    #[test]
    fn nothing_is_read_beyond_a_truncated_packet() {
        let frame = packet(b"message").unwrap();
        for length in 0..frame.len() {
            assert_eq!(payload(&frame[..length]), None);
        }
    }

    #[test]
    fn too_long_a_message_is_refused() {
        assert!(packet(&[0; 65536]).is_none());
    }
}
