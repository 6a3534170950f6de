//! What is said of a machine: its conditions, its phase, its services in short.

use std::net::IpAddr;

use garboard_api::condition::{self, Observation};
use garboard_api::machine::ServiceSummary;
use garboard_api::refusal::{self, Refusals};
use garboard_supervisor::status::{PublicState, ServiceStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use crate::time;
use crate::twin::{self, Twin};

/// Phases of a machine.
pub mod phase {
    /// It is to be found and told what it should be.
    pub const WAITING: &str = "Waiting";
    /// It was told, and is to join.
    pub const JOINING: &str = "Joining";
    /// It has not served since it was started.
    pub const STARTING: &str = "Starting";
    /// It serves.
    pub const RUNNING: &str = "Running";
    /// It has served and does not now.
    pub const DEGRADED: &str = "Degraded";
    /// It shuts down.
    pub const STOPPING: &str = "Stopping";
}

/// What is observed of a machine.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// Whether a cluster is declared.
    pub cluster_declared: bool,
    /// Whether the machine joins a cluster, which tells it then what is declared of it.
    pub joins: bool,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// What its network waits for, in words.
    pub network_waiting: Vec<String>,
    /// What failed in its network, in words.
    pub network_problems: Vec<String>,
    /// The time servers that it knows.
    pub time_servers: Vec<String>,
    /// Whose time it follows.
    pub time: time::State,
    /// Kernel parameters and modules that are not as declared, in words.
    pub kernel_problems: Vec<String>,
    /// Credentials of registries that it lacks, in words.
    pub registry_problems: Vec<String>,
    /// What is wrong with its certificates, in words; none while they have not been looked at.
    pub certificate_problems: Option<Vec<String>>,
    /// The certificates that were never there, and that the cluster is asked for, by the services that need them.
    pub certificates_awaited: Vec<&'static str>,
    /// Names of the services that it should run; none while that is not known.
    pub desired_services: Option<Vec<String>>,
    /// Why the services could not be declared.
    pub services_problem: Option<String>,
    /// Its services.
    pub services: Vec<ServiceStatus>,
    /// Declarations that were refused.
    pub refusals: Refusals,
    /// Another machine that runs as this one.
    pub twin: Option<Twin>,
}

/// The conditions of a machine.
pub fn conditions(observed: &Observed) -> Vec<Observation> {
    let parts = [network(observed), kernel(observed), certificates(observed), services(observed)];
    let ready = match parts.iter().find(|part| part.holds != Some(true)) {
        None => Observation::new(condition::READY, true, "Serving", "every service serves"),
        Some(part) => Observation::new(condition::READY, false, part.reason.clone(), part.message.clone()),
    };
    // What is not a part of being ready: without a time server, or with fewer images, a machine serves all the same.
    let time = time::condition(&observed.time_servers, &observed.time);
    let twin = observed.twin.as_ref().map(twin::observation);
    parts.into_iter().chain([time, registries(observed), ready, accepted(&observed.refusals)]).chain(twin).collect()
}

/// The former conditions, without those that are told only while there is something to tell.
pub fn lasting(mut former: Vec<Condition>, observed: &Observed) -> Vec<Condition> {
    former.retain(|condition| condition.type_ != condition::UNIQUE || observed.twin.is_some());
    former
}

/// Whether what is declared was accepted.
pub fn accepted(refusals: &Refusals) -> Observation {
    if refusals.is_empty() {
        return Observation::new(condition::ACCEPTED, true, "Valid", "the declaration is valid");
    }
    let message = refusal::lines(refusals).collect::<Vec<_>>().join("; ");
    let message = format!("{message}; what was accepted before stays in force");
    Observation::new(condition::ACCEPTED, false, "Refused", message)
}

fn network(observed: &Observed) -> Observation {
    let type_ = condition::NETWORK_READY;
    let Observed { addresses, network_waiting, network_problems, .. } = observed;
    if let Some(problem) = network_problems.first() {
        Observation::new(type_, false, "Failed", problem)
    } else if addresses.is_empty() {
        let message = network_waiting.first().map_or("no link has an address yet", String::as_str);
        Observation::new(type_, false, "NoAddress", message)
    } else if network_waiting.is_empty() {
        Observation::new(type_, true, "Configured", "links, addresses and routes are as declared")
    } else {
        Observation::new(type_, false, "Waiting", network_waiting.join("; "))
    }
}

fn kernel(observed: &Observed) -> Observation {
    let type_ = condition::KERNEL_READY;
    match observed.kernel_problems[..] {
        [] => Observation::new(type_, true, "Configured", "parameters and modules are as declared"),
        _ => Observation::new(type_, false, "Failed", observed.kernel_problems.join("; ")),
    }
}

fn registries(observed: &Observed) -> Observation {
    let type_ = condition::REGISTRIES_READY;
    match observed.registry_problems[..] {
        [] => Observation::new(type_, true, "Configured", "the machine has the credentials that are declared"),
        _ => Observation::new(type_, false, "CredentialsMissing", observed.registry_problems.join("; ")),
    }
}

fn certificates(observed: &Observed) -> Observation {
    let type_ = condition::CERTIFICATES_READY;
    match &observed.certificate_problems {
        None => without_cluster(observed, type_).unwrap_or_else(|| {
            Observation::new(type_, None, "NotReached", "they are made when the machine has an address")
        }),
        Some(problems) if !problems.is_empty() => Observation::new(type_, false, "Failed", problems.join("; ")),
        Some(_) if !observed.certificates_awaited.is_empty() => {
            let message = format!("the cluster is asked for those of {}", observed.certificates_awaited.join(", "));
            Observation::new(type_, false, "Requested", message)
        }
        Some(_) => Observation::new(type_, true, "Valid", "all are valid"),
    }
}

/// What is so while the machine knows no cluster.
fn without_cluster(observed: &Observed, type_: &'static str) -> Option<Observation> {
    let (reason, message) = match (observed.cluster_declared, observed.joins) {
        (true, _) => return None,
        (false, true) => ("NotJoined", "the machine has not joined its cluster yet"),
        (false, false) => ("NoCluster", "no Cluster is declared"),
    };
    Some(Observation::new(type_, false, reason, message))
}

fn services(observed: &Observed) -> Observation {
    let type_ = condition::SERVICES_READY;
    if let Some(without) = without_cluster(observed, type_) {
        return without;
    }
    if let Some(problem) = &observed.services_problem {
        return Observation::new(type_, false, "NotDeclared", problem);
    }
    let Some(desired) = &observed.desired_services else {
        return Observation::new(type_, false, "NotReached", "they are started when the machine has an address");
    };
    let status = |name: &str| observed.services.iter().find(|status| status.name.to_string() == name);
    let lacking: Vec<&str> =
        desired.iter().map(String::as_str).filter(|name| !status(name).is_some_and(|status| status.ready)).collect();
    let looping = lacking.iter().filter_map(|name| status(name)).find(|status| status.crash_looping);
    match (looping, lacking.first()) {
        (Some(status), _) => {
            let message = format!("{}: {}", status.name, message(status).unwrap_or_default());
            Observation::new(type_, false, "CrashLooping", message)
        }
        (None, Some(_)) => Observation::new(type_, false, "NotServing", format!("not ready: {}", lacking.join(", "))),
        (None, None) => Observation::new(type_, true, "Serving", "every service serves"),
    }
}

/// The phase of a machine, given its phase before in this run and whether it shuts down.
pub fn phase(conditions: &[Condition], before: Option<&str>, stopping: bool) -> &'static str {
    let ready = condition::find(conditions, condition::READY).is_some_and(|ready| ready.status == condition::TRUE);
    match (stopping, ready, before) {
        (true, ..) => phase::STOPPING,
        (false, true, _) => phase::RUNNING,
        (false, false, Some(phase::RUNNING | phase::DEGRADED)) => phase::DEGRADED,
        (false, false, _) => phase::STARTING,
    }
}

/// A service in short.
pub fn summary(status: &ServiceStatus) -> ServiceSummary {
    ServiceSummary {
        name: status.name.to_string(),
        state: state(&status.state).to_owned(),
        ready: status.ready,
        restarts: status.restarts,
        message: message(status),
    }
}

/// The name of a state.
pub fn state(state: &PublicState) -> &'static str {
    match state {
        PublicState::Waiting { .. } => "Waiting",
        PublicState::Starting => "Starting",
        PublicState::Running { .. } => "Running",
        PublicState::Stopping { .. } => "Stopping",
        PublicState::Finished => "Finished",
        PublicState::Failed { .. } => "Failed",
        PublicState::BackOff { .. } => "BackOff",
    }
}

/// Why a service does not serve.
fn message(status: &ServiceStatus) -> Option<String> {
    if status.ready {
        return None;
    }
    let said = Some(status.message.as_str()).filter(|message| !message.is_empty());
    match &status.state {
        PublicState::Waiting { .. } => Some(format!("waits for {}", status.waiting_on.join(", "))),
        PublicState::Starting | PublicState::Finished => None,
        PublicState::Running { .. } => said.map(str::to_owned),
        PublicState::Stopping { reason } => Some(reason.clone()),
        PublicState::Failed { reason } | PublicState::BackOff { reason, .. } => {
            let last = status.last_lines.last().map(|line| format!("; it said last: {line}"));
            Some(format!("{reason}{}", last.unwrap_or_default()))
        }
    }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
