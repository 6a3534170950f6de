//! The sockets of the server.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};

use rustix::net::sockopt::{set_ip_freebind, set_ipv6_freebind, set_ipv6_v6only, set_socket_reuseaddr};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// Binds an address for UDP and TCP, also one that no link has yet: the pod bridge may come later.
///
/// # Errors
/// When the port is taken or may not be bound.
pub fn open(address: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    let udp = bound(address, SocketType::DGRAM)?;
    let tcp = bound(address, SocketType::STREAM)?;
    listen(&tcp, BACKLOG)?;
    Ok((UdpSocket::from(udp), TcpListener::from(tcp)))
}

fn bound(address: SocketAddr, kind: SocketType) -> io::Result<std::os::fd::OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    if address.is_ipv4() {
        set_ip_freebind(&socket, true)?;
    } else {
        set_ipv6_freebind(&socket, true)?;
        set_ipv6_v6only(&socket, true)?;
    }
    if kind == SocketType::STREAM {
        // Connections of the process before this one must not keep the port.
        set_socket_reuseaddr(&socket, true)?;
    }
    bind(&socket, &address)?;
    Ok(socket)
}
