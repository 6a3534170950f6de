use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, SockFlag, recv};

use super::{BUFFER_BYTES, NetlinkError, open};

/// A socket that becomes readable when a link, an address or an IPv4 route changes in its network namespace.
///
/// It carries no state: after a change the reader observes everything anew, so lost notifications (`ENOBUFS`) are
/// just one more change.
#[derive(Debug)]
pub struct Monitor {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

/// What changed since the last look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// A link came, went or changed.
    pub links: bool,
    /// An address came, went or changed.
    pub addresses: bool,
    /// A route came, went or changed.
    pub routes: bool,
}

impl Change {
    const ALL: Self = Self { links: true, addresses: true, routes: true };

    /// Whether anything changed.
    pub fn any(self) -> bool {
        self.links || self.addresses || self.routes
    }
}

impl Monitor {
    /// Starts to monitor the calling thread's network namespace.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn open() -> Result<Self, NetlinkError> {
        let groups = libc::RTMGRP_LINK | libc::RTMGRP_IPV4_IFADDR | libc::RTMGRP_IPV6_IFADDR | libc::RTMGRP_IPV4_ROUTE;
        let groups = u32::try_from(groups).unwrap_or_default();
        let socket = open(groups, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK).map_err(NetlinkError::Open)?;
        Ok(Self { socket, buffer: vec![0; BUFFER_BYTES] })
    }

    /// Hands the monitor to the tokio runtime that the caller runs in, which then waits for it.
    ///
    /// # Errors
    /// When the runtime cannot wait for it.
    #[cfg(feature = "tokio")]
    #[allow(unsafe_code, reason = "AsyncFd has no safe constructor")]
    pub fn into_async(self) -> io::Result<tokio::io::unix::AsyncFd<Self>> {
        // SAFETY: as_raw_fd returns the descriptor that the monitor owns from its making to its drop, so it is open and the
        // same as long as AsyncFd holds the monitor.
        Ok(unsafe { tokio::io::unix::AsyncFd::register(self) }?)
    }

    /// Reads all notifications that wait; never blocks.
    ///
    /// # Errors
    /// When the socket cannot be read.
    pub fn drain(&mut self) -> io::Result<Change> {
        let mut change = Change::default();
        loop {
            let received = match recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
                Ok(received) => received,
                Err(Errno::EAGAIN) => return Ok(change),
                Err(Errno::EINTR) => continue,
                Err(Errno::ENOBUFS) => {
                    change = Change::ALL;
                    continue;
                }
                Err(errno) => return Err(errno.into()),
            };
            let mut rest = self.buffer.get(..received).unwrap_or_default();
            while !rest.is_empty() {
                let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest) else {
                    change = Change::ALL;
                    break;
                };
                let length = (message.header.length.max(16) as usize).next_multiple_of(4);
                rest = rest.get(length..).unwrap_or_default();
                if let NetlinkPayload::InnerMessage(inner) = message.payload {
                    match inner {
                        RouteNetlinkMessage::NewLink(_) | RouteNetlinkMessage::DelLink(_) => change.links = true,
                        RouteNetlinkMessage::NewAddress(_) | RouteNetlinkMessage::DelAddress(_) => {
                            change.addresses = true;
                        }
                        RouteNetlinkMessage::NewRoute(_) | RouteNetlinkMessage::DelRoute(_) => change.routes = true,
                        _ => {}
                    }
                }
            }
        }
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Monitor {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}
