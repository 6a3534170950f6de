//! Messages of services about themselves: sd_notify(3) over one datagram socket, with the kernel's word for who sent it.

use std::fs;
use std::io::{self, IoSliceMut};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use garboard_supervisor::state::Notification;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, setsockopt, sockopt};
use tokio::io::unix::AsyncFd;

use crate::watched::{Watched, watch};

/// Longest message that is read, bytes; the rest is cut off.
const MAX_MESSAGE_LEN: usize = 4096;

/// Longest status text that is kept, bytes.
const MAX_STATUS_LEN: usize = 256;

/// The socket.
#[derive(Debug)]
pub struct NotifySocket {
    socket: AsyncFd<Watched<UnixDatagram>>,
}

/// A message with its sender.
#[derive(Debug, PartialEq, Eq)]
pub struct Message {
    /// The process that sent it.
    pub pid: i32,
    /// What it says.
    pub notifications: Vec<Notification>,
}

impl NotifySocket {
    /// Makes the socket at `path`, which every user may write to: who a message counts for is decided by its sender.
    ///
    /// # Errors
    /// When the path cannot be used.
    pub fn bind(path: &Path) -> io::Result<Self> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let socket = UnixDatagram::bind(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o666))?;
        setsockopt(&socket, sockopt::PassCred, &true)?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket: watch(socket)? })
    }

    /// The next message. Cancel-safe: a message is taken only when it is returned.
    ///
    /// # Errors
    /// When the socket is broken.
    pub async fn receive(&self) -> io::Result<Message> {
        loop {
            let mut ready = self.socket.readable().await?;
            match ready.try_io(|socket| receive(&socket.get_ref().0)) {
                Ok(Ok(Some(message))) => return Ok(message),
                Ok(Ok(None)) => {}
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
    }
}

/// Takes one message; none for one whose sender the kernel does not name.
fn receive(socket: &UnixDatagram) -> io::Result<Option<Message>> {
    let mut buffer = [0; MAX_MESSAGE_LEN];
    let mut parts = [IoSliceMut::new(&mut buffer)];
    // Room for the sender only: descriptors that come along find none and are closed by the kernel.
    let mut space = nix::cmsg_space!(nix::sys::socket::UnixCredentials);
    let received = recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let pid = received.cmsgs().ok().and_then(|mut messages| {
        messages.find_map(|message| match message {
            ControlMessageOwned::ScmCredentials(credentials) => Some(credentials.pid()),
            _ => None,
        })
    });
    let len = received.bytes;
    let text = buffer.get(..len).unwrap_or_default();
    Ok(pid.map(|pid| Message { pid, notifications: parse(&String::from_utf8_lossy(text)) }))
}

/// Reads the assignments of a message, one a line; unknown ones are passed over.
fn parse(text: &str) -> Vec<Notification> {
    text.lines()
        .filter_map(|line| {
            Some(match line.split_once('=')? {
                ("READY", "1") => Notification::Ready,
                ("WATCHDOG", "1") => Notification::Alive,
                ("WATCHDOG", "trigger") => Notification::Hung,
                ("STATUS", status) => {
                    let end = status.char_indices().map(|(at, _)| at).find(|at| *at >= MAX_STATUS_LEN);
                    Notification::Status(status.get(..end.unwrap_or(status.len())).unwrap_or_default().to_owned())
                }
                _ => return None,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn assignments_are_read() {
        let status = |text: &str| Notification::Status(text.to_owned());
        let cases = [
            ("READY=1", vec![Notification::Ready]),
            ("READY=0\nFOO\n", vec![]),
            ("STATUS=a=b\nWATCHDOG=1\nREADY=1\n", vec![status("a=b"), Notification::Alive, Notification::Ready]),
            ("WATCHDOG=trigger", vec![Notification::Hung]),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text), expected, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in any::<String>()) {
            for notification in parse(&text) {
                if let Notification::Status(status) = notification {
                    prop_assert!(status.len() < MAX_STATUS_LEN + 4);
                }
            }
        }
    }

    #[tokio::test]
    async fn the_kernel_names_the_sender() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify.sock");
        let socket = NotifySocket::bind(&path).unwrap();
        let sender = UnixDatagram::unbound().unwrap();
        sender.send_to(b"READY=1", &path).unwrap();
        let message = socket.receive().await.unwrap();
        let pid = i32::try_from(std::process::id()).unwrap();
        assert_eq!(message, Message { pid, notifications: vec![Notification::Ready] });
    }
}
