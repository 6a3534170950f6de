//! Links, addresses, routes and rules over rtnetlink, and what WireGuard links know over generic netlink.
//!
//! [`Netlink`] asks and changes, one request after the other; [`Monitor`] says that something changed, [`Watch`] what. They need a
//! tokio runtime with I/O and time. They read and write their sockets while they are waited for, and have no task that does so
//! besides: a socket is closed with its owner, not later, and a network namespace lives no longer than it should. What nobody
//! waits for stays in the kernel's bounded buffer instead of a channel that grows.
//!
//! Each has a socket of its own, because a notification bears the number of the request that caused it, in whatever process:
//! on one socket it could be taken for the answer to a request of ours with that number, and end a list early.
//!
//! The kernel carries a request out while it is sent, on the calling thread: within microseconds once it has the lock of its
//! network configuration.

mod address;
mod driver;
mod kind;
mod link;
mod mac;
mod marked_route;
mod monitor;
mod neighbour;
mod route;
mod rule;
mod solicit;
mod vxlan;
mod watch;
mod wireguard;

use std::io;
use std::os::fd::BorrowedFd;
use std::thread;
use std::time::Duration;

use futures::{Stream, TryStreamExt};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use rtnetlink::packet_core::{ErrorMessage, NlasIterator};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::sys::AsyncSocket;
use tokio::runtime;

pub use address::{Address, KERNEL_RA};
pub use driver::driver;
pub use kind::{Bond, BondLacpRate, BondMode, BondXmitHashPolicy, Bridge, LinkKind, Vlan, VlanProtocol};
pub use link::{BridgePort, Link, VethPair};
pub use mac::{InvalidMacAddress, MacAddress};
pub use marked_route::{MarkedRoute, NextHop};
pub use monitor::Monitor;
pub use neighbour::{Forward, Neighbour};
pub use route::{MAIN_TABLE, Route};
pub use rule::Rule;
pub use solicit::solicit_routers;
pub use vxlan::Vxlan;
pub use watch::{Change, Watch};
pub use wireguard::{PrivateKey, PublicKey, Wireguard, WireguardChange, WireguardLinks, WireguardPeer};

/// Mark of addresses, routes and rules that Garboard made: their `IFA_PROTO`, `rtm_protocol` and `FRA_PROTOCOL`.
///
/// A number that neither `rtnetlink.h` nor a known routing daemon uses.
pub const PROTOCOL: u8 = 103;
/// Mark of the address that control-plane machines keep among themselves: its `IFA_PROTO`. What keeps the machine's own addresses leaves
/// it alone.
pub const SHARED: u8 = PROTOCOL + 1;
/// Mark of links that Garboard made as they are declared: their group, which they have from their first moment on.
pub const GROUP: u32 = PROTOCOL as u32;

/// An answer comes once the kernel has the lock of its network configuration, which a driver can hold for seconds; a longer
/// silence means that it was dropped.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// `NLMSGERR_ATTR_MSG`: why the kernel refuses, in words.
const REASON: u16 = 1;
/// `struct nlmsghdr`, bytes.
const HEADER_BYTES: usize = 16;

type Connection = rtnetlink::proto::Connection<RouteNetlinkMessage>;

/// A request over rtnetlink that failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The socket could not be made.
    #[error("cannot open a netlink socket")]
    Open(#[source] io::Error),
    /// A network namespace could not be entered.
    #[error("cannot enter a network namespace")]
    Enter(#[source] io::Error),
    /// The kernel did not answer.
    #[error("the kernel does not answer the request to {operation}")]
    Unanswered {
        /// What was asked.
        operation: String,
    },
    /// The kernel answered with something else.
    #[error("the kernel answers the request to {operation} by a message of type {kind}")]
    Unexpected {
        /// What was asked.
        operation: String,
        /// `nlmsg_type` of the answer.
        kind: u16,
    },
    /// The kernel refused.
    #[error("the kernel refuses to {operation}{}", .reason.as_deref().map(|reason| format!(" ({reason})")).unwrap_or_default())]
    Refused {
        /// What was asked.
        operation: String,
        /// The kernel's explanation, when it gave one.
        reason: Option<String>,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// The socket of a [`Monitor`] failed.
    #[error("cannot read the kernel's notifications")]
    Notifications,
}

impl NetlinkError {
    fn new(operation: String, error: rtnetlink::Error) -> Self {
        match error {
            rtnetlink::Error::NetlinkError(refusal) => {
                Self::Refused { operation, reason: reason(&refusal), source: refusal.to_io() }
            }
            rtnetlink::Error::UnexpectedMessage(answer) => {
                Self::Unexpected { operation, kind: answer.header.message_type }
            }
            // The socket failed; the rest is about arguments that nothing here has.
            _ => Self::Unanswered { operation },
        }
    }

    /// Whether the object (or its link) does not exist.
    pub fn is_missing(&self) -> bool {
        self.is(&[Errno::ENODEV, Errno::ESRCH, Errno::EADDRNOTAVAIL, Errno::ENOENT])
    }

    /// Whether there is an object in the place already.
    pub fn is_taken(&self) -> bool {
        self.is(&[Errno::EEXIST])
    }

    /// Whether no route leads there.
    fn is_unreachable(&self) -> bool {
        self.is(&[Errno::ENETUNREACH, Errno::EHOSTUNREACH, Errno::EACCES, Errno::EINVAL, Errno::ESRCH])
    }

    fn is(&self, errors: &[Errno]) -> bool {
        let Self::Refused { source, .. } = self else { return false };
        errors.iter().any(|errno| source.raw_os_error() == Some(*errno as i32))
    }
}

/// The kernel's explanation of a refusal: an attribute behind the header of the request.
fn reason(refusal: &ErrorMessage) -> Option<String> {
    let attributes = refusal.header.get(HEADER_BYTES..)?;
    let reason = NlasIterator::new(attributes).flatten().find(|attribute| attribute.kind() == REASON)?;
    Some(String::from_utf8_lossy(reason.value()).trim_end_matches('\0').to_owned())
}

/// A connection to rtnetlink in the network namespace of the thread that opened it.
///
/// A call that is given up in the middle may or may not have taken effect; the connection stays usable.
pub struct Netlink {
    connection: Connection,
    handle: rtnetlink::Handle,
}

impl Netlink {
    /// Opens a connection in the calling thread's network namespace.
    ///
    /// # Errors
    /// When the socket cannot be made.
    ///
    /// # Panics
    /// Outside of a tokio runtime with I/O.
    pub fn open() -> Result<Self, NetlinkError> {
        let (mut connection, handle, _) = rtnetlink::new_connection().map_err(NetlinkError::Open)?;
        let socket = connection.socket_mut().socket_mut();
        // Without these a refusal repeats the whole request and gives no reason.
        socket.set_ext_ack(true).and_then(|()| socket.set_cap_ack(true)).map_err(NetlinkError::Open)?;
        Ok(Self { connection, handle })
    }

    /// Opens a connection in another network namespace. The thread that enters it ends there, so that no thread is ever left
    /// in a namespace that is not its own.
    ///
    /// # Errors
    /// When it is no network namespace, or the socket cannot be made.
    ///
    /// # Panics
    /// Outside of a tokio runtime with I/O.
    pub fn open_in(namespace: BorrowedFd<'_>) -> Result<Self, NetlinkError> {
        let runtime = runtime::Handle::current();
        let enter = || {
            setns(namespace, CloneFlags::CLONE_NEWNET).map_err(|errno| NetlinkError::Enter(errno.into()))?;
            let _entered = runtime.enter();
            Self::open()
        };
        let opened = thread::scope(|scope| scope.spawn(enter).join());
        opened.unwrap_or_else(|_| Err(NetlinkError::Enter(io::Error::other("the thread that enters it panicked"))))
    }

    /// Asks the kernel and waits for its answer.
    async fn ask<T>(
        &mut self,
        operation: impl Into<String>,
        request: impl Future<Output = Result<T, rtnetlink::Error>>,
    ) -> Result<T, NetlinkError> {
        let answer = async {
            tokio::select! {
                answer = request => answer,
                () = &mut self.connection => Err(rtnetlink::Error::RequestFailed),
            }
        };
        match tokio::time::timeout(ANSWER_LIMIT, answer).await {
            Ok(answer) => answer.map_err(|error| NetlinkError::new(operation.into(), error)),
            Err(_) => Err(NetlinkError::Unanswered { operation: operation.into() }),
        }
    }

    /// Asks the kernel for objects.
    async fn list<M, T>(
        &mut self,
        operation: impl Into<String>,
        messages: impl Stream<Item = Result<M, rtnetlink::Error>>,
        read: impl Fn(M) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        self.list_as(false, operation, messages, read).await
    }

    /// Asks the kernel for the objects that the request describes. Without the strict check it would ignore the description and
    /// list everything.
    async fn list_filtered<M, T>(
        &mut self,
        operation: impl Into<String>,
        messages: impl Stream<Item = Result<M, rtnetlink::Error>>,
        read: impl Fn(M) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        self.list_as(true, operation, messages, read).await
    }

    /// The check is set each time: a call before this one may have been given up in the middle.
    async fn list_as<M, T>(
        &mut self,
        strict: bool,
        operation: impl Into<String>,
        messages: impl Stream<Item = Result<M, rtnetlink::Error>>,
        read: impl Fn(M) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        // The request is sent while it is waited for.
        self.connection.socket_mut().socket_mut().set_netlink_get_strict_chk(strict).map_err(NetlinkError::Open)?;
        let objects = messages.try_filter_map(async |message| Ok(read(message))).try_collect();
        self.ask(operation, objects).await
    }
}
