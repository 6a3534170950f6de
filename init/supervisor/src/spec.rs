//! What a service is: the one definition that the catalog writes, the control socket carries and PID 1 runs.
//!
//! A specification is plain data. It travels as JSON (unknown fields are refused), durations are whole milliseconds in
//! fields that end in `_ms`, sizes are bytes, and every list is bounded by the control socket's message limit.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Longest name of a service, in bytes.
pub const MAX_NAME_LEN: usize = 32;

/// The name of a service: `[a-z][a-z0-9-]{0,31}`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServiceName(String);

/// A name that is no [`ServiceName`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("service name {0:?} must match [a-z][a-z0-9-]* and have at most 32 characters")]
pub struct InvalidServiceName(String);

impl ServiceName {
    /// The name as a string.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ServiceName {
    type Error = InvalidServiceName;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        let mut bytes = name.bytes();
        let valid = name.len() <= MAX_NAME_LEN
            && bytes.next().is_some_and(|first| first.is_ascii_lowercase())
            && bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if valid { Ok(Self(name)) } else { Err(InvalidServiceName(name)) }
    }
}

impl TryFrom<&str> for ServiceName {
    type Error = InvalidServiceName;

    fn try_from(name: &str) -> Result<Self, Self::Error> {
        Self::try_from(name.to_owned())
    }
}

impl From<ServiceName> for String {
    fn from(name: ServiceName) -> Self {
        name.0
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The usual umask: what a process makes is its own to write to and everybody's to read.
pub const UMASK: u32 = 0o022;

/// One supervised process and everything that surrounds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceSpec {
    /// The name, unique on the machine.
    pub name: ServiceName,
    /// The program (an absolute path) and its arguments; never empty.
    pub argv: Vec<String>,
    /// What the program sees as its own name instead of the path, for programs that behave by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub argv0: Option<String>,
    /// The whole environment; nothing is inherited.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// The user, by its name in `/etc/passwd`; its primary group comes with it.
    #[serde(default = "root")]
    pub user: String,
    /// Further groups, by name in `/etc/group`.
    #[serde(default)]
    pub supplementary_groups: Vec<String>,
    /// Permissions that what the process makes never has.
    #[serde(default = "default_umask")]
    pub umask: u32,
    /// The directory that the process starts in.
    #[serde(default = "root_directory")]
    pub working_directory: PathBuf,
    /// Directories made before each start, parents first.
    #[serde(default)]
    pub directories: Vec<Directory>,
    /// Files written before each start.
    #[serde(default)]
    pub files: Vec<RenderedFile>,
    /// What the process may see and do.
    #[serde(default)]
    pub isolation: Isolation,
    /// What the process may use, and what it is guaranteed.
    pub cgroup: Cgroup,
    /// Limit of open files.
    #[serde(default = "default_nofile")]
    pub rlimit_nofile: u64,
    /// What other services must have reached before this one starts.
    #[serde(default)]
    pub requires: Vec<Condition>,
    /// How the service tells that it serves; without one it is ready when its process runs (a one-shot: when it has succeeded).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub readiness: Option<Probe>,
    /// How a hung process is found out after it was ready; it is then restarted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub liveness: Option<Probe>,
    /// The longest time from start to ready, after which the process is restarted.
    #[serde(default = "default_start_timeout_ms")]
    pub start_timeout_ms: u64,
    /// The longest time between two `WATCHDOG=1` messages, after which the process is restarted; none: not watched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watchdog_ms: Option<u64>,
    /// When to start again after an exit, and how long to wait before.
    #[serde(default)]
    pub restart: Restart,
    /// How the process is asked to end.
    #[serde(default)]
    pub stop: Stop,
    /// The signal that makes the process read its files again; with it a change of `files` alone does not restart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reload_signal: Option<i32>,
    /// Whether the process notices changes of its files by itself, so that a change of `files` alone only rewrites them.
    #[serde(default)]
    pub watches_files: bool,
    /// Whether the process is meant to end; its success is then its readiness.
    #[serde(default)]
    pub oneshot: bool,
}

fn root() -> String {
    "root".to_owned()
}

fn root_directory() -> PathBuf {
    PathBuf::from("/")
}

fn default_umask() -> u32 {
    UMASK
}

fn default_nofile() -> u64 {
    1_048_576
}

fn default_start_timeout_ms() -> u64 {
    300_000
}

/// A directory made before a start; one that exists is given the owner and mode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Directory {
    /// Absolute path.
    pub path: PathBuf,
    /// Permission bits, such as `0o700`.
    pub mode: u32,
    /// Owner by name in `/etc/passwd`, with its primary group; none: the service's user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
}

/// A file written before a start: whole, atomically, and only if it differs.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RenderedFile {
    /// Absolute path below `/run/garboard`.
    pub path: PathBuf,
    /// Permission bits, such as `0o400`.
    pub mode: u32,
    /// Owner by name in `/etc/passwd`, with its primary group; none: the service's user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// The text of the file.
    pub content: String,
}

impl fmt::Debug for RenderedFile {
    /// Leaves the content out: it may be a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RenderedFile")
            .field("path", &self.path)
            .field("mode", &format_args!("{:#o}", self.mode))
            .field("owner", &self.owner)
            .field("bytes", &self.content.len())
            .finish()
    }
}

/// What a process may see and do. The default is the strictest: no capability, no new privileges, the whole tree read only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Isolation {
    /// Whether the process gets a mount namespace of its own in which the rest of these settings hold. Programs whose mounts must be
    /// seen by others (kubelet, containerd) have none.
    pub private_mounts: bool,
    /// Paths that the process may write; everything else is read only.
    pub read_write: Vec<PathBuf>,
    /// Paths that the process does not see.
    pub inaccessible: Vec<PathBuf>,
    /// Whether `/tmp` is its own and empty.
    pub private_tmp: bool,
    /// Whether `/dev` holds only null, zero, full, random, urandom and tty.
    pub private_devices: bool,
    /// Whether setuid programs and file capabilities give nothing.
    pub no_new_privileges: bool,
    /// Capabilities that it keeps, such as `CAP_NET_ADMIN` (for another user than root they are made ambient); all others leave the
    /// bounding set. None: every capability stays.
    pub capabilities: Option<Vec<String>>,
    /// Which system calls it may make.
    pub seccomp: Seccomp,
}

impl Default for Isolation {
    fn default() -> Self {
        Self {
            private_mounts: true,
            read_write: Vec::new(),
            inaccessible: Vec::new(),
            private_tmp: true,
            private_devices: true,
            no_new_privileges: true,
            capabilities: Some(Vec::new()),
            seccomp: Seccomp::Service,
        }
    }
}

/// A set of system calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Seccomp {
    /// Everything that a network service needs; calls that load code into the kernel, mount, trace or set clocks fail with `EPERM`.
    #[default]
    Service,
    /// No filter, for programs that make containers.
    Unconfined,
}

/// The part of the machine's cgroup tree that a service lives in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Slice {
    /// `/system`: Garboard's own daemons, containerd and kube-proxy.
    System,
    /// `/control-plane`: etcd, kube-apiserver, kube-controller-manager, kube-scheduler.
    ControlPlane,
    /// `/node`: kubelet.
    Node,
}

/// Limits and guarantees of a service's own cgroup. Bytes; absent means the kernel's default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cgroup {
    /// Where the cgroup lies.
    pub slice: Slice,
    /// `memory.min`, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_min: Option<u64>,
    /// `memory.low`, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_low: Option<u64>,
    /// `memory.max`, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_max: Option<u64>,
    /// `cpu.weight`, 1..=10000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_weight: Option<u32>,
    /// `io.weight`, 1..=10000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_weight: Option<u32>,
    /// `pids.max`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids_max: Option<u32>,
    /// `oom_score_adj` of the process, -1000..=1000.
    #[serde(default)]
    pub oom_score_adj: i32,
}

/// What another service must have reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Condition {
    /// The other service; one that is not declared is never met, and reported as what is waited on.
    pub service: ServiceName,
    /// What it must have reached.
    pub state: Reached,
}

/// A state that can be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reached {
    /// Its process runs.
    Started,
    /// It is ready (a one-shot: it has succeeded).
    Ready,
}

/// A repeated question to a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Probe {
    /// How it is asked.
    pub action: ProbeAction,
    /// Time from one question to the next, which waits for the answer.
    #[serde(default = "default_period_ms")]
    pub period_ms: u64,
    /// Time after which no answer is a failure.
    #[serde(default = "default_timeout_ms")]
    pub timeout_ms: u64,
    /// Failures in a row that count as not ready, or not alive.
    #[serde(default = "default_failure_threshold")]
    pub failure_threshold: u32,
}

fn default_period_ms() -> u64 {
    1_000
}

fn default_timeout_ms() -> u64 {
    5_000
}

fn default_failure_threshold() -> u32 {
    3
}

/// How a service is asked whether it serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum ProbeAction {
    /// The service says so itself: `READY=1` to `$NOTIFY_SOCKET` (sd_notify(3)).
    Notify {},
    /// `GET` answers 2xx.
    Http {
        /// Where it listens.
        address: SocketAddr,
        /// Path with a leading slash.
        path: String,
    },
    /// `GET` over TLS answers 2xx. PID 1 speaks no TLS: the node agent asks and reports the answer.
    Https {
        /// Where it listens.
        address: SocketAddr,
        /// Path with a leading slash.
        path: String,
        /// PEM file of the authority that signed its certificate; also the name to verify is the address.
        ca_file: PathBuf,
        /// PEM files of the certificate and key shown to it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        client: Option<ClientFiles>,
    },
    /// A connection is accepted.
    Tcp {
        /// Where it listens.
        address: SocketAddr,
    },
    /// A connection to a stream socket is accepted.
    Unix {
        /// Path of the socket.
        path: PathBuf,
    },
    /// A program, run as the service is, exits with 0.
    Exec {
        /// Program and arguments.
        argv: Vec<String>,
    },
}

/// A client certificate and its key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClientFiles {
    /// PEM file of the certificate.
    pub cert_file: PathBuf,
    /// PEM file of the key.
    pub key_file: PathBuf,
}

/// When a service is started again, and how long that waits: exponentially longer, with jitter, up to a limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Restart {
    /// After which exits.
    pub policy: RestartPolicy,
    /// First wait.
    pub initial_ms: u64,
    /// Longest wait.
    pub max_ms: u64,
    /// Time of running ready after which the next wait is the first one again.
    pub reset_after_ms: u64,
}

impl Default for Restart {
    fn default() -> Self {
        Self { policy: RestartPolicy::Always, initial_ms: 200, max_ms: 30_000, reset_after_ms: 60_000 }
    }
}

/// After which exits a service is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RestartPolicy {
    /// After each.
    Always,
    /// After a signal or another exit code than 0.
    OnFailure,
    /// After none.
    Never,
}

/// How a process is asked to end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Stop {
    /// Signal number, 15 (SIGTERM) by default.
    pub signal: i32,
    /// Time given after the signal before everything in the cgroup is killed.
    pub grace_ms: u64,
}

impl Default for Stop {
    fn default() -> Self {
        Self { signal: 15, grace_ms: 10_000 }
    }
}
