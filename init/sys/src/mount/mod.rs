//! Mounts as values, and what is mounted (`/proc/thread-self/mountinfo`).

mod table;

use std::ffi::CString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
pub use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::mount::{UnmountFlags, mount, mount_bind, mount_bind_recursive, mount_change, mount_move, mount_remount};

pub use table::{MountInfo, MountTableError, mounts, parse as parse_mountinfo};

/// What failed with a mount.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The directory to mount on could not be made.
    #[error("cannot make the mount point {target}")]
    Target {
        /// The mount point.
        target: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The options hold a NUL byte.
    #[error("options for {0} hold a NUL byte")]
    Data(PathBuf),
    /// The mount was refused.
    #[error("cannot mount {fs_type} {device} on {target}")]
    Mount {
        /// The file system type.
        fs_type: String,
        /// The device, or a name for file systems without one.
        device: PathBuf,
        /// The mount point.
        target: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A bind mount, move, remount or change of propagation was refused.
    #[error("cannot {operation} {target}")]
    Change {
        /// What was tried.
        operation: &'static str,
        /// The mount point.
        target: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The mount could not be taken away.
    #[error("cannot unmount {target}")]
    Unmount {
        /// The mount point.
        target: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The table of mounts could not be read.
    #[error(transparent)]
    Table(#[from] MountTableError),
}

impl MountError {
    /// Whether the object was busy, so that a retry after its users are gone can help.
    pub fn is_busy(&self) -> bool {
        match self {
            Self::Mount { source, .. } | Self::Change { source, .. } | Self::Unmount { source, .. } => {
                source.raw_os_error() == Some(libc::EBUSY)
            }
            Self::Target { .. } | Self::Data(_) | Self::Table(_) => false,
        }
    }
}

/// One mount to be made. Tables of these can be constants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mount<'a> {
    /// The device, or a name that shows in the table for file systems without one.
    pub source: &'a str,
    /// The mount point, made (with mode 0755) if it is missing and its file system is writable.
    pub target: &'a str,
    /// The file system type.
    pub fs_type: &'a str,
    /// Flags such as `NOSUID`.
    pub flags: MountFlags,
    /// The file system's own options, comma separated; empty for none.
    pub data: &'a str,
}

impl Mount<'_> {
    /// Makes the mount. One that is there already with the same type is left as it is, so that a list can be applied again.
    ///
    /// # Errors
    /// [`MountError::Target`], [`MountError::Data`] and [`MountError::Mount`].
    pub fn apply(&self) -> Result<(), MountError> {
        let target = Path::new(self.target);
        make_target(target)?;
        // Before /proc is mounted there is no table to ask: then nothing of ours can be mounted either.
        if let Ok(table) = mounts()
            && table.iter().rev().find(|m| m.mount_point == target).is_some_and(|m| m.fs_type == self.fs_type)
        {
            return Ok(());
        }
        self.apply_over()
    }

    /// Makes the mount over whatever is mounted there.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub fn apply_over(&self) -> Result<(), MountError> {
        let target = Path::new(self.target);
        make_target(target)?;
        let data = CString::new(self.data).map_err(|_| MountError::Data(target.to_owned()))?;
        let data = (!self.data.is_empty()).then_some(data.as_c_str());
        mount(self.source, target, self.fs_type, self.flags, data).map_err(|source| MountError::Mount {
            fs_type: self.fs_type.to_owned(),
            device: self.source.into(),
            target: target.to_owned(),
            source: source.into(),
        })
    }
}

fn make_target(target: &Path) -> Result<(), MountError> {
    if target.exists() {
        return Ok(());
    }
    fs::create_dir_all(target).map_err(|source| MountError::Target { target: target.to_owned(), source })
}

fn changed(operation: &'static str, target: &Path, result: Result<(), Errno>) -> Result<(), MountError> {
    result.map_err(|source| MountError::Change { operation, target: target.to_owned(), source: source.into() })
}

/// Makes `source` (a file or directory) visible at `target`, which exists; `recursive` brings the mounts below along.
///
/// # Errors
/// [`MountError::Change`].
pub fn bind(source: &Path, target: &Path, recursive: bool) -> Result<(), MountError> {
    let result = if recursive { mount_bind_recursive(source, target) } else { mount_bind(source, target) };
    changed("bind a mount to", target, result)
}

/// Makes one mount point read only for those who reach it through this mount; other mounts of the same file system stay as they are.
///
/// # Errors
/// [`MountError::Change`].
pub fn remount_bind_read_only(target: &Path) -> Result<(), MountError> {
    // A bind remount replaces all per-mount flags and, in a user namespace, may not drop locked ones: the present ones are kept.
    let present =
        mounts()?.into_iter().rev().find(|m| m.mount_point == target).map_or(MountFlags::empty(), |m| m.flags());
    changed("make read only", target, mount_remount(target, MountFlags::BIND | MountFlags::RDONLY | present, ""))
}

/// Makes a whole file system read only: what is dirty is written, and later writes are refused.
///
/// # Errors
/// [`MountError::Change`]; busy ([`MountError::is_busy`]) while a file is open for writing.
pub fn remount_read_only(target: &Path) -> Result<(), MountError> {
    changed("remount read only", target, mount_remount(target, MountFlags::RDONLY, ""))
}

/// Moves a mount to another mount point, which exists.
///
/// # Errors
/// [`MountError::Change`].
pub fn move_to(source: &Path, target: &Path) -> Result<(), MountError> {
    changed("move a mount to", target, mount_move(source, target))
}

/// Sets how mount events spread from and to this mount, and with [`MountPropagationFlags::REC`] those below.
///
/// # Errors
/// [`MountError::Change`].
pub fn set_propagation(target: &Path, propagation: MountPropagationFlags) -> Result<(), MountError> {
    changed("change the propagation of", target, mount_change(target, propagation))
}

/// How hard to try to unmount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmount {
    /// Only if nobody uses it.
    Clean,
    /// Pending requests to network file systems are aborted first.
    Force,
    /// Out of sight at once, away when its last user is gone.
    Detach,
}

/// Takes a mount away; one that is not mounted is no error.
///
/// # Errors
/// [`MountError::Unmount`]; busy ([`MountError::is_busy`]) while it is used.
pub fn unmount(target: &Path, how: Unmount) -> Result<(), MountError> {
    let flags = UnmountFlags::NOFOLLOW
        | match how {
            Unmount::Clean => UnmountFlags::empty(),
            Unmount::Force => UnmountFlags::FORCE,
            Unmount::Detach => UnmountFlags::DETACH,
        };
    match rustix::mount::unmount(target, flags) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(source) => Err(MountError::Unmount { target: target.to_owned(), source: source.into() }),
    }
}

/// Whether something is mounted exactly there.
///
/// # Errors
/// [`MountError::Table`].
pub fn is_mounted(target: &Path) -> Result<bool, MountError> {
    Ok(mounts()?.iter().any(|m| m.mount_point == target))
}

/// Gives the calling thread its own table of mounts, from and to which no mount spreads.
///
/// # Errors
/// [`MountError::Change`].
pub fn private_namespace() -> Result<(), MountError> {
    let root = Path::new("/");
    let failed = |source: nix::errno::Errno| MountError::Change {
        operation: "make a mount namespace for",
        target: root.to_owned(),
        source: source.into(),
    };
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).map_err(failed)?;
    set_propagation(root, MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
}
