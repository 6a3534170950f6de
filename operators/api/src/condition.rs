//! Types and reasons of conditions, and how they are set.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// The object is what it declares: for a machine, that its services serve; for a cluster, that its API does.
pub const READY: &str = "Ready";
/// The declaration is valid and was accepted.
pub const ACCEPTED: &str = "Accepted";
/// The links, addresses and routes are as declared.
pub const NETWORK_READY: &str = "NetworkReady";
/// The clock follows a time server.
pub const TIME_SYNCHRONIZED: &str = "TimeSynchronized";
/// Kernel parameters and modules are as declared.
pub const KERNEL_READY: &str = "KernelReady";
/// Keys and certificates are there and valid.
pub const CERTIFICATES_READY: &str = "CertificatesReady";
/// The credentials of registries are there.
pub const REGISTRIES_READY: &str = "RegistriesReady";
/// Every service runs and serves.
pub const SERVICES_READY: &str = "ServicesReady";
/// The latest change of the configuration has proved itself.
pub const CHANGE_PROVED: &str = "ChangeProved";
/// The machine that waits has been told what it should be.
pub const HANDED_OVER: &str = "HandedOver";
/// Its pods have gone, so that a machine whose Machine is deleted can leave.
pub const DRAINED: &str = "Drained";
/// No other machine wants to join as this one; told only while one does and is refused.
pub const UNDISPUTED: &str = "Undisputed";
/// No other machine runs as this one; told only while one does.
pub const UNIQUE: &str = "Unique";
/// The cluster's store has taken the member.
pub const JOINED: &str = "Joined";
/// The member answers, and has no alarm.
pub const HEALTHY: &str = "Healthy";
/// The API server answers.
pub const API_AVAILABLE: &str = "APIAvailable";
/// A machine whose API server serves holds the virtual address.
pub const VIRTUAL_ADDRESS_HELD: &str = "VirtualAddressHeld";

/// `status` of a condition that holds.
pub const TRUE: &str = "True";
/// `status` of a condition that does not hold.
pub const FALSE: &str = "False";
/// `status` of a condition of which nothing is known.
pub const UNKNOWN: &str = "Unknown";

/// A condition before its time of transition is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    /// Its type, one of this module's.
    pub type_: &'static str,
    /// Whether it holds; none when nothing is known.
    pub holds: Option<bool>,
    /// A word in CamelCase for programs.
    pub reason: String,
    /// A sentence for people.
    pub message: String,
}

impl Observation {
    /// A condition that holds, does not, or is unknown.
    pub fn new(
        type_: &'static str,
        holds: impl Into<Option<bool>>,
        reason: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self { type_, holds: holds.into(), reason: reason.into(), message: message.into() }
    }
}

/// The conditions that follow from new observations: those observed replace the former of their type, the time of
/// transition changes only when the status does, and the result is sorted by type.
pub fn merge(
    former: &[Condition],
    observed: impl IntoIterator<Item = Observation>,
    generation: Option<i64>,
    now: &Time,
) -> Vec<Condition> {
    let mut merged = former.to_vec();
    for Observation { type_, holds, reason, message } in observed {
        let status = match holds {
            Some(true) => TRUE,
            Some(false) => FALSE,
            None => UNKNOWN,
        };
        let unchanged_since = merged
            .iter()
            .find(|condition| condition.type_ == type_ && condition.status == status)
            .map(|condition| condition.last_transition_time.clone());
        merged.retain(|condition| condition.type_ != type_);
        merged.push(Condition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason,
            message,
            observed_generation: generation,
            last_transition_time: unchanged_since.unwrap_or_else(|| now.clone()),
        });
    }
    merged.sort_by(|a, b| a.type_.cmp(&b.type_));
    merged
}

/// The condition that follows from an observation, as the only one of those who tell no other; none when it is what is among the `former`.
pub fn news(
    former: &[Condition],
    observed: Observation,
    generation: Option<i64>,
    now: &Time,
) -> Option<Vec<Condition>> {
    let former: Vec<_> = former.iter().filter(|condition| condition.type_ == observed.type_).cloned().collect();
    let conditions = merge(&former, [observed], generation, now);
    (conditions != former).then_some(conditions)
}

/// The condition of a type.
pub fn find<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == type_)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;

    use super::*;

    #[test]
    fn what_was_told_already_is_no_news_and_conditions_of_others_stay_theirs() {
        let now = Time(Timestamp::UNIX_EPOCH);
        let told = || Observation::new(DRAINED, false, "Pods", "one is there");
        let others = merge(&[], [Observation::new(READY, true, "Ready", "")], None, &now);
        let first = news(&others, told(), Some(1), &now).unwrap();
        assert_eq!((first.len(), first[0].type_.as_str()), (1, DRAINED));
        let former = [others, first].concat();
        assert_eq!(news(&former, told(), Some(1), &now), None);
        assert!(news(&former, told(), Some(2), &now).is_some());
    }
}
