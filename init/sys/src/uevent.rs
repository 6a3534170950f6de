//! Devices as they come and go: the kernel's messages about them, and those that were there before anybody listened.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Longest message, bytes (`UEVENT_BUFFER_SIZE` and the header).
const MAX_MESSAGE_LEN: usize = 8192;

/// What failed.
#[derive(Debug, thiserror::Error)]
pub enum UeventError {
    /// The socket could not be opened.
    #[error("cannot listen for device events")]
    Open(#[source] io::Error),
    /// A message could not be received.
    #[error("cannot receive device events")]
    Receive(#[source] io::Error),
}

/// One message about a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uevent {
    /// What happened: `add`, `remove`, `change`, `bind` and so on.
    pub action: String,
    /// The device's directory below `/sys`.
    pub device_path: String,
    /// All variables, such as `SUBSYSTEM`, `DEVNAME`, `MODALIAS`.
    pub variables: BTreeMap<String, String>,
}

impl Uevent {
    /// Understands a message of the kernel: `add@/devices/...`, then variables, each ended by a NUL byte.
    pub fn parse(message: &[u8]) -> Option<Self> {
        let mut parts = message.split(|&b| b == 0).filter(|part| !part.is_empty());
        let (action, device_path) = std::str::from_utf8(parts.next()?).ok()?.split_once('@')?;
        let variables = parts
            .filter_map(|part| {
                let (key, value) = std::str::from_utf8(part).ok()?.split_once('=')?;
                Some((key.to_owned(), value.to_owned()))
            })
            .collect();
        Some(Self { action: action.to_owned(), device_path: device_path.to_owned(), variables })
    }

    /// The name of the device in terms of modules, if a module may be for it.
    pub fn modalias(&self) -> Option<&str> {
        self.variables.get("MODALIAS").map(String::as_str)
    }

    /// The device's subsystem, such as `block` or `net`.
    pub fn subsystem(&self) -> Option<&str> {
        self.variables.get("SUBSYSTEM").map(String::as_str)
    }
}

/// Receives the kernel's messages about devices; the descriptor is readable when there are some.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
}

impl Listener {
    /// Starts to listen. Open it before looking at what is there already, so that nothing is missed between.
    ///
    /// # Errors
    /// [`UeventError::Open`].
    pub fn open() -> Result<Self, UeventError> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: socket(2) takes no pointers. nix and rustix do not name the group of kernel messages when binding.
        let raw = unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_KOBJECT_UEVENT) };
        if raw < 0 {
            return Err(UeventError::Open(io::Error::last_os_error()));
        }
        // SAFETY: the descriptor was just made and nobody else has it.
        let socket = unsafe { OwnedFd::from_raw_fd(raw) };
        // SAFETY: `sockaddr_nl` is plain numbers, for which all bits zero is a value.
        let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
        // Group 1 is the kernel itself; what udev sends again goes to group 2.
        address.nl_groups = 1;
        // SAFETY: the address is a valid `sockaddr_nl` of the length given, and only read during the call.
        let bound = unsafe {
            libc::bind(
                socket.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_nl>() as libc::socklen_t,
            )
        };
        if bound < 0 {
            return Err(UeventError::Open(io::Error::last_os_error()));
        }
        // A burst of devices must not overflow it; without the right to force it the default stays.
        let _ = nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBufForce, &(4 << 20));
        Ok(Self { socket })
    }

    /// The next message; none when there is none now. What overflowed is lost: look at everything that is there again
    /// ([`UeventError::Receive`] with `ENOBUFS`).
    ///
    /// # Errors
    /// [`UeventError::Receive`].
    pub fn next_event(&self) -> Result<Option<Uevent>, UeventError> {
        let mut buffer = [0; MAX_MESSAGE_LEN];
        loop {
            match nix::sys::socket::recvfrom::<nix::sys::socket::NetlinkAddr>(self.socket.as_raw_fd(), &mut buffer) {
                // Only the kernel has port 0: another sender is a process that pretends.
                Ok((len, Some(sender))) if sender.pid() == 0 => {
                    if let Some(event) = buffer.get(..len).and_then(Uevent::parse) {
                        return Ok(Some(event));
                    }
                }
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(nix::errno::Errno::EAGAIN) => return Ok(None),
                Err(source) => return Err(UeventError::Receive(source.into())),
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Module aliases of all devices that are there now, each once. Reads them from `/sys` directly, which is quicker than asking the kernel to
/// send its messages again, and by bus and class, which is quicker than walking the whole tree.
pub fn present_modaliases() -> Vec<String> {
    let mut found = Vec::new();
    // The processors as one: their features name ciphers and virtualization.
    collect(Path::new("/sys/devices/system/cpu"), &mut found);
    for bus in children(Path::new("/sys/bus")) {
        children(&bus.join("devices")).iter().for_each(|device| collect(device, &mut found));
    }
    // Input devices and the board itself are on no bus.
    for class in children(Path::new("/sys/class")) {
        children(&class).iter().for_each(|device| collect(device, &mut found));
    }
    found.sort();
    found.dedup();
    found
}

fn children(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).map(|entries| entries.flatten().map(|entry| entry.path()).collect()).unwrap_or_default()
}

fn collect(device: &Path, found: &mut Vec<String>) {
    let alias = fs::read_to_string(device.join("modalias")).unwrap_or_default();
    if !alias.trim().is_empty() {
        found.push(alias.trim().to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn messages_of_the_kernel_are_understood() {
        let event = Uevent::parse(
            b"add@/devices/pci0000:00/0000:00:02.0/virtio0\0ACTION=add\0SUBSYSTEM=virtio\0MODALIAS=virtio:d00000002v00001AF4\0SEQNUM=1\0",
        )
        .unwrap();
        assert_eq!(event.action, "add");
        assert_eq!(event.device_path, "/devices/pci0000:00/0000:00:02.0/virtio0");
        assert_eq!(event.subsystem(), Some("virtio"));
        assert_eq!(event.modalias(), Some("virtio:d00000002v00001AF4"));
    }

    #[test]
    fn other_messages_are_not() {
        for message in [&b""[..], b"libudev\0\xfe\xed", b"\0\0\0", b"add"] {
            assert_eq!(Uevent::parse(message), None, "{message:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(message in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Uevent::parse(&message);
        }
    }
}
