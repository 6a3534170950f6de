//! Links, addresses and routes over rtnetlink.
//!
//! [`Netlink`] asks and changes; [`Monitor`] says that something changed. Requests are answered by the kernel in
//! microseconds and never wait for hardware, so the calls are plain blocking calls.

mod address;
mod link;
mod monitor;
mod route;

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendmsg, socket,
};

pub use address::Address;
pub use link::{Link, MacAddress};
pub use monitor::{Change, Monitor};
pub use route::Route;

/// Mark of addresses and routes that Garboard made: their `IFA_PROTO` and `rtm_protocol`.
///
/// A number that neither `rtnetlink.h` nor a known routing daemon uses.
pub const PROTOCOL: u8 = 103;

/// The kernel fills at most this much of a dump into one datagram (`NLMSG_GOODSIZE` is smaller, `min_dump_alloc`
/// may be larger on machines with many virtual functions).
const BUFFER_BYTES: usize = 32 * 1024;

/// A request over rtnetlink that failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The socket could not be made.
    #[error("cannot open a netlink socket")]
    Open(#[source] io::Error),
    /// The request could not be sent or its answer not be read.
    #[error("cannot exchange netlink messages to {operation}")]
    Exchange {
        /// What was asked.
        operation: String,
        /// What the socket said.
        #[source]
        source: io::Error,
    },
    /// The answer was not understood.
    #[error("cannot decode the kernel's answer to {operation}: {message}")]
    Decode {
        /// What was asked.
        operation: String,
        /// What is wrong with it.
        message: String,
    },
    /// The kernel refused.
    #[error("the kernel refuses to {operation}")]
    Refused {
        /// What was asked.
        operation: String,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
}

impl NetlinkError {
    /// The kernel's error number if the kernel refused.
    pub fn refused(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } => source.raw_os_error(),
            Self::Open(_) | Self::Exchange { .. } | Self::Decode { .. } => None,
        }
    }

    /// Whether the object already exists.
    pub fn is_existing(&self) -> bool {
        self.refused() == Some(Errno::EEXIST as i32)
    }

    /// Whether the object (or its link) does not exist.
    pub fn is_missing(&self) -> bool {
        [Errno::ENODEV, Errno::ESRCH, Errno::EADDRNOTAVAIL, Errno::ENOENT]
            .iter()
            .any(|errno| self.refused() == Some(*errno as i32))
    }
}

/// A connection to rtnetlink in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

/// Make the object; never change one that is there, for it may be somebody else's.
const CREATE: u16 = NLM_F_CREATE | NLM_F_EXCL;

impl Netlink {
    /// Opens a connection in the calling thread's network namespace.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn open() -> Result<Self, NetlinkError> {
        let socket = open(0, SockFlag::SOCK_CLOEXEC).map_err(NetlinkError::Open)?;
        Ok(Self { socket, sequence: 0, buffer: vec![0; BUFFER_BYTES] })
    }

    /// Sends a request that is answered by an acknowledgement.
    fn execute(&mut self, operation: &str, message: RouteNetlinkMessage, flags: u16) -> Result<(), NetlinkError> {
        self.exchange(operation, message, NLM_F_ACK | flags, |_| ())
    }

    /// Sends a dump request and hands every message of the answer to `each`.
    fn dump(
        &mut self,
        operation: &str,
        message: RouteNetlinkMessage,
        each: impl FnMut(RouteNetlinkMessage),
    ) -> Result<(), NetlinkError> {
        self.exchange(operation, message, NLM_F_DUMP, each)
    }

    fn exchange(
        &mut self,
        operation: &str,
        message: RouteNetlinkMessage,
        flags: u16,
        mut each: impl FnMut(RouteNetlinkMessage),
    ) -> Result<(), NetlinkError> {
        let exchange = |source: io::Error| NetlinkError::Exchange { operation: operation.to_owned(), source };
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | flags;
        request.header.sequence_number = self.sequence;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        let kernel = NetlinkAddr::new(0, 0);
        sendmsg(self.socket.as_raw_fd(), &[IoSlice::new(&bytes)], &[], MsgFlags::empty(), Some(&kernel))
            .map_err(|errno| exchange(errno.into()))?;

        loop {
            let received = match recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_TRUNC) {
                Err(Errno::EINTR) => continue,
                other => other.map_err(|errno| exchange(errno.into()))?,
            };
            if received > self.buffer.len() {
                return Err(exchange(io::Error::other("an answer is larger than the buffer")));
            }
            let mut rest = self.buffer.get(..received).unwrap_or_default();
            while !rest.is_empty() {
                let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(|error| {
                    NetlinkError::Decode { operation: operation.to_owned(), message: error.to_string() }
                })?;
                // A length of 0 would loop for ever; lengths are padded to 4 bytes in the stream.
                let length = (message.header.length.max(16) as usize).next_multiple_of(4);
                rest = rest.get(length..).unwrap_or_default();
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                match message.payload {
                    NetlinkPayload::Done(_) => return Ok(()),
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok(()),
                    NetlinkPayload::Error(error) => {
                        let source = error.to_io();
                        return Err(NetlinkError::Refused { operation: operation.to_owned(), source });
                    }
                    NetlinkPayload::InnerMessage(inner) => each(inner),
                    _ => {}
                }
            }
        }
    }
}

fn open(groups: u32, flags: SockFlag) -> io::Result<OwnedFd> {
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(socket)
}
