//! What PID 1 and the agent know, in the machine API's messages.

use garboard_api::Endpoint;
use garboard_control::{ControlError, MachineInfo, MachinePhase};
use garboard_machine_api::proto::{self, Condition, Service, StatusResponse};
use garboard_supervisor::status::{PublicState, ServiceStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use tonic::Status;

use super::{View, role_of};

/// Somebody who may use the machine API.
pub(super) fn access(access: &garboard_api::Access) -> proto::Access {
    let garboard_api::Access { name, role, public_key } = access;
    proto::Access { name: name.clone(), role: role_of(*role).to_string(), public_key: public_key.to_string() }
}

/// The answer to `Status`.
pub(super) fn status(info: MachineInfo, phase: MachinePhase, view: &View) -> StatusResponse {
    let MachineInfo {
        boot_id,
        machine_id,
        version,
        root_hash,
        slot,
        state_device: _,
        data_device: _,
        problems,
        cmdline: _,
        uptime_ms,
    } = info;
    let phase = match phase {
        MachinePhase::Running => "Running",
        MachinePhase::PreparingShutdown { .. } => "PreparingShutdown",
        MachinePhase::Stopping { .. } => "Stopping",
    };
    let machine = view.machine.as_ref();
    let name = |object: &meta::ObjectMeta| object.name.clone().unwrap_or_default();
    let status = machine.and_then(|machine| machine.status.as_ref());
    let mut conditions = Vec::new();
    if let (Some(machine), Some(status)) = (machine, status) {
        conditions.extend(status.conditions.iter().map(|found| condition("Machine", &name(&machine.metadata), found)));
    }
    if let Some(cluster) = &view.cluster
        && let Some(status) = &cluster.status
    {
        conditions.extend(status.conditions.iter().map(|found| condition("Cluster", &name(&cluster.metadata), found)));
    }
    StatusResponse {
        machine: machine.map(|machine| name(&machine.metadata)).unwrap_or_default(),
        phase: phase.to_owned(),
        machine_id,
        boot_id,
        garboard: version,
        kubernetes: kubernetes_version(view),
        root_hash,
        slot,
        uptime_ms,
        addresses: status.iter().flat_map(|status| &status.addresses).map(ToString::to_string).collect(),
        api_endpoint: api_endpoint(view).unwrap_or_default(),
        conditions,
        problems: problems.into_iter().chain(view.problems.iter().cloned()).collect(),
    }
}

/// The version of Kubernetes in the image; empty before the agent has said it.
pub(super) fn kubernetes_version(view: &View) -> String {
    let status = view.machine.as_ref().and_then(|machine| machine.status.as_ref());
    status.and_then(|status| status.versions.as_ref()?.kubernetes.clone()).unwrap_or_default()
}

/// Where the Kubernetes API is reached, as a URL; none before the machine has an address or a declared endpoint.
pub(super) fn api_endpoint(view: &View) -> Option<String> {
    Some(format!("https://{}", endpoint(view)?))
}

/// The same as host and port.
pub(super) fn endpoint(view: &View) -> Option<Endpoint> {
    let (machine, cluster) = (view.machine.as_ref()?, view.cluster.as_ref()?);
    let address = machine.status.as_ref().and_then(|status| status.addresses.first().copied());
    cluster.endpoint_of(machine, address)
}

fn condition(kind: &str, name: &str, condition: &meta::Condition) -> Condition {
    let meta::Condition { last_transition_time, message, observed_generation: _, reason, status, type_ } = condition;
    Condition {
        kind: kind.to_owned(),
        name: name.to_owned(),
        r#type: type_.clone(),
        status: status.clone(),
        reason: reason.clone(),
        message: message.clone(),
        since_unix_ms: last_transition_time.0.as_millisecond(),
    }
}

/// A service in the answer to `Services`, at an uptime of the machine in milliseconds.
pub(super) fn service(status: ServiceStatus, uptime_ms: u64) -> Service {
    let ServiceStatus {
        name,
        state,
        pid,
        since_ms,
        restarts,
        ready,
        crash_looping,
        last_exit,
        message,
        last_lines,
        waiting_on,
        memory_bytes,
        cpu_usec,
        spec_hash: _,
    } = status;
    let mut retry_in_ms = 0;
    let (state, reason) = match state {
        // What it waits for is in `waiting_on` in words.
        PublicState::Waiting { on: _ } => ("Waiting", String::new()),
        PublicState::Starting => ("Starting", String::new()),
        PublicState::Running { ready: _ } => ("Running", String::new()),
        PublicState::Stopping { reason } => ("Stopping", reason),
        PublicState::Finished => ("Finished", String::new()),
        PublicState::Failed { reason } => ("Failed", reason),
        PublicState::BackOff { until_ms, reason } => {
            retry_in_ms = until_ms.saturating_sub(uptime_ms);
            ("BackOff", reason)
        }
    };
    Service {
        name: name.into(),
        state: state.to_owned(),
        ready,
        pid: pid.and_then(|pid| u32::try_from(pid).ok()).unwrap_or_default(),
        in_state_ms: uptime_ms.saturating_sub(since_ms),
        restarts,
        crash_looping,
        message: if reason.is_empty() { message } else { reason },
        last_exit: last_exit.map(|exit| exit.to_string()).unwrap_or_default(),
        waiting_on,
        last_lines,
        memory_bytes: memory_bytes.unwrap_or_default(),
        cpu_usec: cpu_usec.unwrap_or_default(),
        retry_in_ms,
    }
}

/// What PID 1's refusal or silence means to the caller.
pub(super) fn failed(error: ControlError) -> Status {
    match &error {
        ControlError::Call { source, .. } if error.is_refusal() => Status::new(source.code(), source.message()),
        _ if error.is_retryable() => Status::unavailable(format!("PID 1 does not answer: {error}")),
        _ => Status::internal(error.to_string()),
    }
}
