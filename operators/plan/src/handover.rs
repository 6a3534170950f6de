//! A Machine whose machine waits without manifests: what the cluster is to do so that it becomes one of the cluster's.

use std::time::{Duration, SystemTime};

use garboard_api::condition::{self, Observation};
use garboard_api::machine::{MachineJoin, WaitingMachine};
use garboard_api::types::{MacAddress, PublicKeyPin};
use garboard_api::{API_VERSION, Access, Endpoint, JOIN_SECRET_KEY, JOIN_SECRET_TYPE, Machine};
use serde_json::{Value, json};

/// How long the machine may take to join once it was told, and then it is told again.
pub const LIFETIME: Duration = Duration::from_secs(3600);

/// What is due for a Machine.
#[derive(Clone, Debug, PartialEq)]
pub enum Due {
    /// Nothing: it has joined, is about to, or does not wait.
    Nothing,
    /// This merge patch of the Machine: where the cluster is.
    Complete(Value),
    /// The machine is to be found and told.
    HandOver,
}

/// A cluster, as a machine that joins it is told.
#[derive(Clone, Copy, Debug)]
pub struct Told<'a> {
    /// Where its API is.
    pub endpoint: &'a Endpoint,
    /// By what it is known.
    pub ca_pin: PublicKeyPin,
    /// Who may use the machine API until the machine knows it itself.
    pub access: &'a [Access],
}

/// What is due for a Machine of a cluster.
pub fn due(machine: &Machine, cluster: Told<'_>, now: SystemTime) -> Due {
    let Some(join) = &machine.spec.join else { return Due::Nothing };
    let MachineJoin { endpoints, ca_pin, access, waiting: _ } = join;
    if !waits(machine) || is_told(machine, now) {
        return Due::Nothing;
    }
    if endpoints.is_empty() || ca_pin.is_none() {
        let complete = json!({
            "endpoints": if endpoints.is_empty() { std::slice::from_ref(cluster.endpoint) } else { endpoints },
            "caPin": ca_pin.unwrap_or(cluster.ca_pin),
            "access": if access.is_empty() { cluster.access } else { access },
        });
        return Due::Complete(json!({ "spec": { "join": complete } }));
    }
    Due::HandOver
}

/// Whether the machine is one that waits and has not come yet.
pub fn waits(machine: &Machine) -> bool {
    machine.waiting().is_some() && machine.own_status().is_none() && machine.metadata.deletion_timestamp.is_none()
}

/// Whether the machine was told what is declared now, and its token still counts.
fn is_told(machine: &Machine, now: SystemTime) -> bool {
    let conditions = machine.status.iter().flat_map(|status| &status.conditions);
    let mut told = conditions.filter(|found| found.type_ == condition::HANDED_OVER && found.status == condition::TRUE);
    told.any(|told| {
        let since = u64::try_from(told.last_transition_time.0.as_second()).unwrap_or_default();
        let since = SystemTime::UNIX_EPOCH + Duration::from_secs(since);
        now.duration_since(since).is_ok_and(|age| age < LIFETIME)
    })
}

/// What the machine is told: the Machine, and its token when there is one already.
pub fn manifests(machine: &Machine, token: Option<&str>) -> String {
    let name = machine.node_name();
    let declaration = json!({
        "apiVersion": API_VERSION,
        "kind": "Machine",
        "metadata": { "name": name, "labels": machine.metadata.labels },
        "spec": machine.spec,
    });
    let secret = token.map(|token| {
        json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": { "name": name },
            "type": JOIN_SECRET_TYPE,
            "stringData": { JOIN_SECRET_KEY: token },
        })
    });
    let documents: Vec<_> = [declaration].into_iter().chain(secret).map(|document| document.to_string()).collect();
    documents.join("\n---\n")
}

/// A machine that says on a link that it waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announced {
    /// SHA-256 of its public key.
    pub fingerprint: PublicKeyPin,
    /// SHA-256 of the endorsement key of its TPM.
    pub endorsement_key: Option<PublicKeyPin>,
    /// The hardware addresses of its links.
    pub mac_addresses: Vec<MacAddress>,
    /// The serial number in its firmware.
    pub serial_number: Option<String>,
    /// The UUID in its firmware.
    pub system_uuid: Option<String>,
}

/// Whether the machine that announces itself is the one that waits: everything that is known of that must be so.
pub fn is_meant(waiting: &WaitingMachine, announced: &Announced) -> bool {
    let WaitingMachine { host: _, port: _, fingerprint, endorsement_key, mac_address, serial_number, system_uuid } =
        waiting;
    let known = fingerprint.is_some()
        || endorsement_key.is_some()
        || mac_address.is_some()
        || serial_number.is_some()
        || system_uuid.is_some();
    known
        && fingerprint.is_none_or(|fingerprint| fingerprint == announced.fingerprint)
        && (endorsement_key.is_none() || *endorsement_key == announced.endorsement_key)
        && mac_address.is_none_or(|mac| announced.mac_addresses.contains(&mac))
        && (serial_number.is_none() || *serial_number == announced.serial_number)
        && (system_uuid.is_none() || *system_uuid == announced.system_uuid)
}

/// The condition of a Machine whose machine was told.
pub fn told(fingerprint: &str, at: &str) -> Observation {
    let message = format!("the machine {fingerprint} at {at} has taken it, and joins");
    Observation::new(condition::HANDED_OVER, true, "HandedOver", message)
}

/// The condition of a Machine whose machine could not be told.
pub fn not_told(reason: &str, message: String) -> Observation {
    Observation::new(condition::HANDED_OVER, false, reason, message)
}

#[cfg(test)]
#[path = "handover_tests.rs"]
mod tests;
