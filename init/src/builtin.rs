//! The services that no set can touch: the parts of this program that take their time, and the node agent.

use std::collections::BTreeMap;
use std::path::PathBuf;

use garboard_supervisor::spec::{
    Cgroup, Condition, InvalidServiceName, Isolation, Probe, ProbeAction, Reached, Restart, Seccomp, ServiceName,
    ServiceSpec, Slice, Stop, UMASK,
};

/// Mounts STATE and what depends on it.
pub const STATE: &str = "state";

/// Mounts DATA.
pub const DATA: &str = "data";

/// Loads modules for devices.
pub const DEVICES: &str = "devices";

/// The node agent.
pub const AGENT: &str = "agent";

/// This very program, as it lies in the image.
pub const SELF: &str = "/usr/lib/garboard/garboard-init";

const AGENT_PROGRAM: &str = "/usr/lib/garboard/garboard-operators";

/// The built-in services.
///
/// # Errors
/// Never in fact: the names are constants.
pub fn builtin() -> Result<Vec<ServiceSpec>, InvalidServiceName> {
    let ready = |name: &str| ServiceName::try_from(name).map(|service| Condition { service, state: Reached::Ready });
    let own = |name: &str| service(name, vec![SELF.to_owned(), name.to_owned()]);
    let notify = Probe { action: ProbeAction::Notify {}, period_ms: 1000, timeout_ms: 1000, failure_threshold: 1 };
    Ok(vec![
        ServiceSpec { oneshot: true, ..own(STATE)? },
        ServiceSpec { oneshot: true, requires: vec![ready(STATE)?], ..own(DATA)? },
        // Drivers of devices that the start does not need are no reason to hold it up.
        ServiceSpec { readiness: Some(notify.clone()), cgroup: cgroup(25), ..own(DEVICES)? },
        ServiceSpec {
            requires: vec![ready(STATE)?],
            readiness: Some(notify),
            watchdog_ms: Some(60_000),
            ..service(AGENT, vec![AGENT_PROGRAM.to_owned(), "agent".to_owned()])?
        },
    ])
}

fn service(name: &str, argv: Vec<String>) -> Result<ServiceSpec, InvalidServiceName> {
    Ok(ServiceSpec {
        name: ServiceName::try_from(name)?,
        argv,
        argv0: None,
        env: BTreeMap::from([("PATH".to_owned(), "/usr/sbin:/usr/bin:/sbin:/bin".to_owned())]),
        user: "root".to_owned(),
        supplementary_groups: Vec::new(),
        umask: UMASK,
        working_directory: PathBuf::from("/"),
        directories: Vec::new(),
        files: Vec::new(),
        // What they mount, load and set is the machine's.
        isolation: Isolation {
            private_mounts: false,
            private_tmp: false,
            private_devices: false,
            capabilities: None,
            seccomp: Seccomp::Unconfined,
            ..Isolation::default()
        },
        cgroup: cgroup(200),
        rlimit_nofile: 65_536,
        requires: Vec::new(),
        readiness: None,
        liveness: None,
        // A large disk may have to be checked.
        start_timeout_ms: 600_000,
        watchdog_ms: None,
        restart: Restart { max_ms: 10_000, ..Restart::default() },
        stop: Stop::default(),
        reload_signal: None,
        watches_files: false,
        oneshot: false,
    })
}

fn cgroup(cpu_weight: u32) -> Cgroup {
    Cgroup {
        slice: Slice::System,
        memory_min: None,
        memory_low: None,
        memory_max: None,
        cpu_weight: Some(cpu_weight),
        io_weight: None,
        pids_max: Some(512),
        oom_score_adj: -999,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn they_can_be_supervised() {
        let services = builtin().unwrap();
        garboard_supervisor::validate::validate_set(&services, &BTreeSet::new()).unwrap();
    }
}
