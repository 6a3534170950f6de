#![allow(unsafe_code, reason = "the request has no safe interface in nix or rustix")]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

mod request {
    nix::ioctl_readwrite_bad!(ethtool, libc::SIOCETHTOOL, libc::ifreq);
}

/// `ETHTOOL_GDRVINFO`.
const GET_DRIVER: u32 = 3;

/// `struct ethtool_drvinfo`.
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    /// Versions, addresses, counts.
    rest: [u8; 160],
}

/// Name of the driver of a link in the calling thread's network namespace, such as `virtio_net`.
///
/// # Errors
/// When there is no such link, or it has no driver.
pub fn driver(link: &str) -> io::Result<String> {
    // SAFETY: an `ifreq` is plain integers and a pointer, for which zeros are values.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero: the kernel looks for the end of the name.
    if link.is_empty() || link.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(link.bytes()) {
        *to = from.cast_signed() as libc::c_char;
    }
    let mut info = DriverInfo { command: GET_DRIVER, driver: [0; 32], rest: [0; 160] };
    request.ifr_ifru.ifru_data = (&raw mut info).cast();
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: the socket is open for the call; the kernel reads the request, whose pointer leads to `info`, which lives until the call
    // returns and has the size of what this command writes. No crate in use wraps this ioctl.
    unsafe { request::ethtool(socket.as_fd().as_raw_fd(), &raw mut request) }?;
    let name = CStr::from_bytes_until_nul(&info.driver).map_err(|_| io::ErrorKind::InvalidData)?;
    match name.to_str() {
        Ok("") => Err(io::ErrorKind::NotFound.into()),
        Ok(name) => Ok(name.to_owned()),
        Err(_) => Err(io::ErrorKind::InvalidData.into()),
    }
}
