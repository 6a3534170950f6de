//! The plugin's conversation with the daemon: one packet each way over a unix socket of packets.
//!
//! The plugin opens the pod's network namespace and hands it over, so that the daemon need not see the runtime's mounts.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use garboard_sys::netlink::MacAddress;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, recvmsg, sendmsg,
    socket_with,
};
use serde::{Deserialize, Serialize};

use crate::attachment::{AttachmentId, PortMapping};
use crate::spec::CniError;

/// Where the daemon listens.
pub const SOCKET: &str = "/run/garboard/cni.sock";
/// The longest packet, bytes: a GC that lists every pod that a machine can have.
pub const MAX_BYTES: usize = 128 * 1024;
/// Plugins that wait while others are served; a runtime starts no more at once.
const BACKLOG: i32 = 256;

/// What the plugin asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "camelCase", deny_unknown_fields)]
pub enum Request {
    /// Attach; the packet carries the network namespace.
    Add {
        /// Who.
        id: AttachmentId,
        /// The network's name.
        network: String,
        /// `namespace/name` of the pod.
        pod: Option<String>,
        /// Host ports.
        ports: Vec<PortMapping>,
    },
    /// Detach.
    Del {
        /// Who.
        id: AttachmentId,
    },
    /// Replace the host ports of an attachment.
    Ports {
        /// Who.
        id: AttachmentId,
        /// All its host ports.
        ports: Vec<PortMapping>,
    },
    /// Compare with what ADD left; the packet carries the network namespace.
    Check {
        /// Who.
        id: AttachmentId,
    },
    /// Tell whether the daemon is ready.
    Status,
    /// Detach all but these.
    Gc {
        /// The network's name.
        network: String,
        /// What stays.
        valid: Vec<AttachmentId>,
    },
}

/// What the daemon answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Response {
    /// Done.
    Done,
    /// Attached.
    Attached(Attached),
    /// Not done.
    Failed(CniError),
}

/// What a pod was given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// This machine's end of the veth pair.
    pub host_link: String,
    /// The pod's hardware address.
    pub mac: MacAddress,
    /// The largest packet, bytes.
    pub mtu_bytes: u32,
    /// The pod's addresses, each with its gateway.
    pub addresses: Vec<(IpAddr, IpAddr)>,
}

/// Connects to the daemon.
///
/// # Errors
/// When there is no socket, or nobody listens.
pub fn dial(path: &Path) -> io::Result<OwnedFd> {
    let socket = packets()?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// Listens for plugins. The caller's file creation mask decides who may connect.
///
/// # Errors
/// When the path cannot be bound.
pub fn serve(path: &Path) -> io::Result<OwnedFd> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = packets()?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    listen(&socket, BACKLOG)?;
    Ok(socket)
}

fn packets() -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Limits how long each packet is waited for.
///
/// # Errors
/// When the kernel refuses.
pub fn set_deadline(socket: impl AsFd, limit: Duration) -> io::Result<()> {
    set_socket_timeout(&socket, Timeout::Recv, Some(limit))?;
    set_socket_timeout(&socket, Timeout::Send, Some(limit))?;
    Ok(())
}

/// Sends one packet, with a descriptor when there is one.
///
/// # Errors
/// When the packet is too long or the peer is gone.
pub fn send(socket: impl AsFd, message: &impl Serialize, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > MAX_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("packet of {} bytes", bytes.len())));
    }
    let descriptors: Vec<BorrowedFd<'_>> = descriptor.into_iter().collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    }
    sendmsg(&socket, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives one packet, and the descriptor that came with it.
///
/// # Errors
/// When the peer is gone or silent for too long, or the packet is too long or not understood.
pub fn receive<T: for<'de> Deserialize<'de>>(socket: impl AsFd) -> io::Result<(T, Option<OwnedFd>)> {
    let mut bytes = vec![0; MAX_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let received = recvmsg(&socket, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let descriptor = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    if received.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if received.flags.contains(ReturnFlags::TRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("packet longer than {MAX_BYTES} bytes")));
    }
    let message = serde_json::from_slice(&bytes[..received.bytes])?;
    Ok((message, descriptor))
}
