//! How pods are connected. A backend owns the links of this machine's pods; what is the same for every backend (addresses
//! given out, host ports, masquerading) is outside of it. A second backend is one more file and one more variant.

pub mod bridge;

use std::os::fd::BorrowedFd;

use garboard_sys::netlink::NetlinkError;

use crate::attachment::Attachment;
use crate::config::{BackendKind, Config};
use bridge::Bridge;

/// Links that this program made have an alias that begins with this.
pub const MARK: &str = "garboard-cni";

/// A backend that could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The kernel refused.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// Somebody else's link has the name.
    #[error("link {0} exists and is not marked as ours")]
    Foreign(String),
    /// A kernel setting could not be written.
    #[error("write {path}")]
    Setting {
        /// Its path under /proc/sys.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Something is not as it was left.
    #[error("{0}")]
    Changed(String),
}

/// The backend in use.
#[derive(Debug)]
pub enum Backend {
    /// One bridge.
    Bridge(Bridge),
}

impl Backend {
    /// Makes the machine's side: links, addresses, kernel settings. Repeating it changes nothing. `attachments` tells which
    /// gateways are still needed although the configuration no longer names them.
    ///
    /// # Errors
    /// When the kernel refuses, or a link of that name is somebody else's.
    pub async fn prepare(config: &Config, attachments: &[Attachment]) -> Result<Self, BackendError> {
        match config.backend {
            BackendKind::Bridge => Bridge::prepare(config, attachments).await.map(Self::Bridge),
        }
    }

    /// The largest packet of a pod's interface, bytes.
    pub fn mtu_bytes(&self) -> u32 {
        match self {
            Self::Bridge(bridge) => bridge.mtu_bytes(),
        }
    }

    /// Gives a pod its interface, addresses and routes.
    ///
    /// # Errors
    /// When the kernel refuses; what was made by then is left for [`detach`].
    pub async fn attach(&self, attachment: &Attachment, netns: BorrowedFd<'_>) -> Result<(), BackendError> {
        match self {
            Self::Bridge(bridge) => bridge.attach(attachment, netns).await,
        }
    }

    /// Compares a pod's interface with its reservation.
    ///
    /// # Errors
    /// When they differ, or the kernel refuses to say.
    pub async fn check(&self, attachment: &Attachment, netns: BorrowedFd<'_>) -> Result<(), BackendError> {
        match self {
            Self::Bridge(bridge) => bridge.check(attachment, netns).await,
        }
    }
}

pub use bridge::{detach, host_links};
