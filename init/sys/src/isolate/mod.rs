//! Isolation of the calling process before it becomes a service.

mod account;
mod capability;
mod seccomp;
mod view;

use std::fs;
use std::io;
use std::path::PathBuf;

use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

pub use account::{Account, AccountError, Accounts};
pub use capability::{Capabilities, UnknownCapability};
pub use view::MountView;

use crate::mount::MountError;

/// Isolation failed; the process must not go on to run the service.
#[derive(Debug, thiserror::Error)]
pub enum IsolateError {
    /// The tendency to be killed when memory runs out could not be set.
    #[error("cannot set oom_score_adj to {value}")]
    OomScore {
        /// What was to be set.
        value: i32,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The limit of open files could not be set.
    #[error("cannot limit open files to {limit}")]
    OpenFiles {
        /// What was to be set.
        limit: u64,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A path that the service may write is not there.
    #[error("{path}, which the service may write, does not exist")]
    Missing {
        /// The path.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The view of the mounts could not be made.
    #[error("cannot make the service's own view of the file systems")]
    Mounts(#[from] MountError),
    /// A file or link of the view could not be made.
    #[error("cannot make {path} in the service's own view of the file systems")]
    ViewEntry {
        /// The path.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// User or groups could not be taken.
    #[error("cannot become user {uid} with group {gid}")]
    User {
        /// The user.
        uid: u32,
        /// Its primary group.
        gid: u32,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The capability sets could not be changed.
    #[error("cannot set capabilities: {operation}")]
    Capabilities {
        /// Which step.
        operation: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Setuid programs could not be made powerless.
    #[error("cannot set no_new_privs")]
    NoNewPrivileges(#[source] io::Error),
    /// The filter of system calls could not be made or installed.
    #[error("cannot filter system calls: {0}")]
    Seccomp(String),
}

/// What the calling process is to be reduced to.
#[derive(Clone, Debug)]
pub struct Sandbox {
    /// User, primary group and further groups.
    pub account: Account,
    /// Its own view of the file systems; none: the machine's.
    pub view: Option<MountView>,
    /// Capabilities to keep; all others leave the bounding set for good. None: the bounding set stays whole, so that root keeps all and
    /// another user has none.
    pub capabilities: Option<Capabilities>,
    /// Whether setuid programs and file capabilities give nothing. The filter of system calls implies it.
    pub no_new_privileges: bool,
    /// Whether system calls that no network service needs fail with `EPERM`.
    pub seccomp: bool,
    /// Limit of open files, soft and hard.
    pub open_files: u64,
    /// Tendency to be killed when memory runs out, -1000..=1000.
    pub oom_score_adj: i32,
}

impl Sandbox {
    /// Applies everything, in the order in which each step still may do what it does. The process must have one thread; it becomes the
    /// leader of a session of its own. After an error it is half isolated and must exit.
    ///
    /// # Errors
    /// One for each step, with its object.
    pub fn enter(&self) -> Result<(), IsolateError> {
        let Self { account, view, capabilities, no_new_privileges, seccomp, open_files, oom_score_adj } = self;
        // Fails only for a process that leads a group already, which is what is wanted.
        let _ = nix::unistd::setsid();
        fs::write("/proc/self/oom_score_adj", oom_score_adj.to_string())
            .map_err(|source| IsolateError::OomScore { value: *oom_score_adj, source })?;
        setrlimit(Resource::RLIMIT_NOFILE, *open_files, *open_files)
            .map_err(|source| IsolateError::OpenFiles { limit: *open_files, source: source.into() })?;
        if let Some(view) = view {
            view.enter()?;
        }
        if let Some(keep) = capabilities {
            keep.bound()?;
        }
        become_user(account, capabilities.as_ref())?;
        if let Some(keep) = capabilities {
            keep.take(account.uid != 0)?;
        }
        if *no_new_privileges || *seccomp {
            rustix::thread::set_no_new_privs(true).map_err(|source| IsolateError::NoNewPrivileges(source.into()))?;
        }
        if *seccomp {
            seccomp::install()?;
        }
        Ok(())
    }
}

fn become_user(account: &Account, capabilities: Option<&Capabilities>) -> Result<(), IsolateError> {
    let failed =
        |source: nix::errno::Errno| IsolateError::User { uid: account.uid, gid: account.gid, source: source.into() };
    if capabilities.is_some() {
        rustix::thread::set_keep_capabilities(true)
            .map_err(|source| IsolateError::Capabilities { operation: "keep them", source: source.into() })?;
    }
    let groups: Vec<Gid> = account.groups.iter().copied().map(Gid::from_raw).collect();
    setgroups(&groups).map_err(failed)?;
    let gid = Gid::from_raw(account.gid);
    setresgid(gid, gid, gid).map_err(failed)?;
    let uid = Uid::from_raw(account.uid);
    setresuid(uid, uid, uid).map_err(failed)
}
