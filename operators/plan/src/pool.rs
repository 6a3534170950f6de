//! What is said of a pool, and what its machines make of it.

use std::collections::{BTreeMap, BTreeSet};

use garboard_api::condition::{self, Observation};
use garboard_api::field_error::{self, FieldError};
use garboard_api::machine::{MachineStatus, TrialStatus};
use garboard_api::machine_pool::{MachinePoolStatus, RolloutFailure, RolloutStatus};
use garboard_api::{About, Machine, MachinePool, validate};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;

use crate::events::Notable;
use crate::rollout::{self, Member, Plan};

/// The reason of a pool whose rollout goes no further by itself.
const STOPPED: &str = "Stopped";
/// Of many machines so many are named in a message.
const NAMED: usize = 3;

/// Whether the machine of that name may follow a pool as it is now, given what it follows.
///
/// A machine that comes to the pool may, and so may one for which nothing changes; any other waits until the pool names it.
pub fn may_follow(followed: Option<&MachinePool>, pool: &MachinePool, machine: &str) -> bool {
    let identity = |pool: &MachinePool| (pool.metadata.name.clone(), pool.metadata.uid.clone());
    let waits = followed
        .is_some_and(|followed| identity(followed) == identity(pool) && followed.spec.template != pool.spec.template);
    !waits || is_named(pool, machine)
}

/// Whether the pool names a machine and its rollout goes on. What it says is about the generation that it was said of.
fn is_named(pool: &MachinePool, machine: &str) -> bool {
    let status = pool.status.as_ref().filter(|status| status.observed_generation == pool.metadata.generation);
    let rollout = status.and_then(|status| status.rollout.as_ref());
    rollout.is_some_and(|rollout| {
        let goes_on = !pool.spec.rollout.paused && !rollout::is_stopped(&pool.spec.rollout, &rollout.failures);
        goes_on && rollout.machines.iter().any(|name| name == machine)
    })
}

/// Leaves of a machine what [`status`] looks at: nothing else is to be kept of many machines, or to count as their change.
pub fn strip(machine: &mut Machine) {
    let Machine { metadata, spec: _, status } = std::mem::take(machine);
    let ObjectMeta { name, labels, deletion_timestamp, .. } = metadata;
    machine.metadata = ObjectMeta { name, labels, deletion_timestamp, ..ObjectMeta::default() };
    machine.status = status.map(|MachineStatus { fingerprint, pool, trial, conditions, .. }| {
        let ready = conditions.into_iter().filter(|condition| condition.type_ == condition::READY);
        let says = |Condition { type_, status, .. }| Condition {
            type_,
            status,
            reason: String::new(),
            message: String::new(),
            observed_generation: None,
            last_transition_time: Time(Timestamp::UNIX_EPOCH),
        };
        let trial =
            trial.map(|trial| TrialStatus { since: None, until: None, required: Vec::new(), log: Vec::new(), ..trial });
        MachineStatus { fingerprint, pool, trial, conditions: ready.map(says).collect(), ..MachineStatus::default() }
    });
}

/// The status of a pool, given all machines and the names of the nodes that are Ready.
pub fn status<'a>(
    pool: &MachinePool,
    machines: impl IntoIterator<Item = &'a Machine>,
    ready_nodes: &BTreeSet<&str>,
    now: &Time,
) -> MachinePoolStatus {
    let picks = pool.picker();
    let belongs = |machine: &&Machine| {
        machine.metadata.deletion_timestamp.is_none() && picks(machine.metadata.labels.as_ref().unwrap_or(&NONE))
    };
    let mut members: Vec<_> = machines
        .into_iter()
        .filter(belongs)
        .map(|machine| Member::new(machine, ready_nodes.contains(machine.node_name())))
        .collect();
    members.sort_by_key(Member::name);
    let invalid = validate::machine_pool(pool);
    let plan = rollout::plan(pool, &members, pool.spec.rollout.paused || !invalid.is_empty());
    let (reason, message) = told(pool, &members, &plan, &invalid);
    let holds = matches!(reason, "NoMachines" | "Updated");
    let generation = pool.metadata.generation;
    let former = pool.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    let observation = Observation::new(condition::READY, holds, reason, message);
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    MachinePoolStatus {
        observed_generation: generation,
        conditions: condition::merge(former, [observation], generation, now),
        machines: count(members.len()),
        updated_machines: count(plan.following.len()),
        ready_machines: count(members.len() - plan.not_ready.len()),
        rollout: Some(plan.status),
    }
}

/// How the pool is, as a word and in words.
fn told(pool: &MachinePool, members: &[Member<'_>], plan: &Plan<'_>, invalid: &[FieldError]) -> (&'static str, String) {
    let Plan { status, following, trying, behind, not_ready, stopped } = plan;
    let so_far = format!("{} of {} machines follow the template", following.len(), members.len());
    let trying_it = || format!("{} may follow it and did not prove it yet", listed(trying));
    if !invalid.is_empty() {
        return ("Invalid", field_error::join(invalid));
    }
    if members.is_empty() {
        return ("NoMachines", "the selector picks no machine".to_owned());
    }
    if let Some(first) = status.failures.first().filter(|_| *stopped || trying.is_empty() && behind.is_empty()) {
        return (STOPPED, format!("{}; {so_far}: change it, forward or back to what it was", failed(first, status)));
    }
    let mut words = vec![so_far];
    words.extend((!trying.is_empty()).then(trying_it));
    words.extend(status.failures.first().map(|first| failed(first, status)));
    if pool.spec.rollout.paused && !behind.is_empty() {
        words.push(format!("spec.rollout.paused keeps {} from it", listed(behind)));
        return ("Paused", words.join("; "));
    }
    words.extend((!not_ready.is_empty()).then(|| format!("not Ready: {}", listed(not_ready))));
    match (trying.is_empty() && behind.is_empty(), not_ready.is_empty()) {
        (true, true) => ("Updated", "every machine follows the template and is Ready".to_owned()),
        (true, false) => ("NotReady", words.join("; ")),
        (false, _) => ("Updating", words.join("; ")),
    }
}

/// On which machine the template has failed, what did not work, and why.
fn failed(RolloutFailure { machine, probe, message }: &RolloutFailure, status: &RolloutStatus) -> String {
    let why = match probe {
        Some(probe) => format!("{probe} ({message})"),
        None => message.clone(),
    };
    match status.failures.len() - 1 {
        0 => format!("the template has failed on {machine}: {why}"),
        more => format!("the template has failed on {machine}: {why}; and on {more} more"),
    }
}

fn listed(names: &[&str]) -> String {
    match names.len().saturating_sub(NAMED) {
        0 => names.join(", "),
        more => format!("{} and {more} more", names[..NAMED].join(", ")),
    }
}

/// What is worth an Event in the step from one status of a pool to the next.
pub fn notable(former: Option<&MachinePoolStatus>, next: &MachinePoolStatus) -> Option<Notable> {
    let stopped = |status: &MachinePoolStatus| {
        let ready = condition::find(&status.conditions, condition::READY).filter(|ready| ready.reason == STOPPED)?;
        Some((status.rollout.as_ref()?.generation, ready.message.clone()))
    };
    let (generation, note) = stopped(next)?;
    let told = former.and_then(stopped).is_some_and(|(former, _)| former == generation);
    (!told).then_some(Notable { about: About::MachinePool, warning: true, reason: "RolloutStopped", note })
}

static NONE: BTreeMap<String, String> = BTreeMap::new();

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
