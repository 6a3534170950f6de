//! Descriptors that the event loop watches.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};

use tokio::io::unix::AsyncFd;

/// The owner of a descriptor, for [`AsyncFd`].
#[derive(Debug)]
pub struct Watched<T>(pub T);

impl<T: AsFd> AsRawFd for Watched<T> {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// Watches a non-blocking descriptor.
///
/// # Errors
/// When the kernel cannot watch it (epoll_ctl(2)).
pub fn watch<T: AsFd>(owner: T) -> io::Result<AsyncFd<Watched<T>>> {
    // The successor is unsafe for the sake of owners whose descriptor changes; `AsFd` owners that are moved in here keep theirs, and
    // unsafe code has its home elsewhere.
    #[allow(deprecated)]
    AsyncFd::new(Watched(owner))
}
