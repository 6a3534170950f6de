//! What all services have in common: the blank specification, arguments and probes.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use garboard_api::control_plane::ControlPlane;
use garboard_supervisor::spec::{
    Cgroup, ClientFiles, Condition, Directory, InvalidServiceName, Isolation, Probe, ProbeAction, Reached,
    RenderedFile, Restart, ServiceName, ServiceSpec, Slice, Stop, UMASK,
};

use crate::paths::service_dir;
use crate::users::User;

/// Bytes in a mebibyte.
pub(crate) const MIB: u64 = 1 << 20;

/// A service with the strictest isolation and only its own folder, to be completed by its file.
pub(crate) fn blank(
    name: &str,
    user: User,
    cgroup: Cgroup,
    argv: Vec<String>,
) -> Result<ServiceSpec, InvalidServiceName> {
    Ok(ServiceSpec {
        name: ServiceName::try_from(name)?,
        argv,
        argv0: None,
        env: BTreeMap::new(),
        user: user.name.to_owned(),
        supplementary_groups: Vec::new(),
        umask: UMASK,
        working_directory: PathBuf::from("/"),
        directories: vec![Directory { path: service_dir(name), mode: 0o750, owner: None }],
        files: Vec::new(),
        isolation: Isolation::default(),
        cgroup,
        rlimit_nofile: 1_048_576,
        requires: Vec::new(),
        readiness: None,
        liveness: None,
        start_timeout_ms: 300_000,
        watchdog_ms: None,
        restart: Restart::default(),
        stop: Stop::default(),
        reload_signal: None,
        watches_files: false,
        oneshot: false,
    })
}

/// Limits of a service: `pids` processes and threads; memory in MiB that is guaranteed, and preferred when it is scarce.
pub(crate) fn cgroup(slice: Slice, oom_score_adj: i32, pids: u32, memory_min_mib: u64, memory_low_mib: u64) -> Cgroup {
    Cgroup {
        slice,
        memory_min: Some(memory_min_mib * MIB),
        memory_low: Some(memory_low_mib * MIB),
        memory_max: None,
        cpu_weight: None,
        io_weight: None,
        pids_max: Some(pids),
        oom_score_adj,
    }
}

/// A program's path and its flags.
pub(crate) struct Args(Vec<String>);

impl Args {
    pub(crate) fn new(program: &str) -> Self {
        Self(vec![program.to_owned()])
    }

    /// Adds `--name=value`.
    pub(crate) fn flag(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        self.0.push(format!("--{name}={value}"));
        self
    }

    /// Adds what the user declares for a component of the control plane.
    pub(crate) fn declared(mut self, control_plane: &ControlPlane, extra: &BTreeMap<String, String>) -> Self {
        if !control_plane.feature_gates.is_empty() {
            let gates: Vec<_> = control_plane.feature_gates.iter().map(|(name, on)| format!("{name}={on}")).collect();
            self = self.flag("feature-gates", gates.join(","));
        }
        extra.iter().fold(self, |args, (name, value)| args.flag(name, value))
    }

    pub(crate) fn into_vec(self) -> Vec<String> {
        self.0
    }
}

/// Values separated by commas.
pub(crate) fn comma<T: ToString>(values: &[T]) -> String {
    values.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// A file that only the service's user reads.
pub(crate) fn private_file(path: impl Into<PathBuf>, content: String) -> RenderedFile {
    RenderedFile { path: path.into(), mode: 0o400, owner: None, content }
}

/// A directory that only the service's user enters.
pub(crate) fn private_directory(path: impl Into<PathBuf>) -> Directory {
    Directory { path: path.into(), mode: 0o700, owner: None }
}

pub(crate) fn started(service: &str) -> Result<Condition, InvalidServiceName> {
    Ok(Condition { service: ServiceName::try_from(service)?, state: Reached::Started })
}

pub(crate) fn ready(service: &str) -> Result<Condition, InvalidServiceName> {
    Ok(Condition { service: ServiceName::try_from(service)?, state: Reached::Ready })
}

pub(crate) fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

/// Asked once a second until and while it serves.
pub(crate) fn readiness(action: ProbeAction) -> Probe {
    Probe { action, period_ms: 1_000, timeout_ms: 5_000, failure_threshold: 3 }
}

/// Asked seldom and forgiving: eight failures in a row, two minutes, before a process counts as hung. A machine under load
/// answers late, and a restart would only add to its load.
pub(crate) fn liveness(action: ProbeAction) -> Probe {
    Probe { action, period_ms: 15_000, timeout_ms: 15_000, failure_threshold: 8 }
}

pub(crate) fn https(port: u16, path: &str, ca_file: String, client: Option<ClientFiles>) -> ProbeAction {
    ProbeAction::Https { address: loopback(port), path: path.to_owned(), ca_file: ca_file.into(), client }
}

pub(crate) fn http(port: u16, path: &str) -> ProbeAction {
    ProbeAction::Http { address: loopback(port), path: path.to_owned() }
}
