//! What is said of a pool.

use garboard_api::condition::{self, Observation};
use garboard_api::machine_pool::MachinePoolStatus;
use garboard_api::{Machine, MachinePool};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// The status of a pool, given all machines.
pub fn status<'a>(
    pool: &MachinePool,
    machines: impl IntoIterator<Item = &'a Machine>,
    now: &Time,
) -> MachinePoolStatus {
    let generation = pool.metadata.generation;
    let (mut picked, mut updated, mut ready) = (0, 0, 0);
    let mut behind = Vec::new();
    for machine in machines.into_iter().filter(|machine| pool.picks(machine.metadata.labels.as_ref().unwrap_or(&NONE)))
    {
        let status = machine.status.clone().unwrap_or_default();
        let follows = status.pool.is_some_and(|reference| {
            Some(&reference.name) == pool.metadata.name.as_ref() && reference.observed_generation == generation
        });
        let is_ready =
            condition::find(&status.conditions, condition::READY).is_some_and(|ready| ready.status == condition::TRUE);
        picked += 1;
        updated += u32::from(follows);
        ready += u32::from(is_ready);
        if !follows || !is_ready {
            behind.push(machine.node_name());
        }
    }
    behind.sort_unstable();
    let observation = match behind[..] {
        [] if picked == 0 => Observation::new(condition::READY, true, "NoMachines", "the selector picks no machine"),
        [] => Observation::new(condition::READY, true, "Updated", "every machine follows the template and is Ready"),
        [first, ..] => {
            let others = match behind.len() - 1 {
                0 => String::new(),
                count => format!(" and {count} more"),
            };
            let message = format!("{first}{others} does not follow the newest template yet, or is not Ready");
            Observation::new(condition::READY, false, "Updating", message)
        }
    };
    let former = pool.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    MachinePoolStatus {
        observed_generation: generation,
        conditions: condition::merge(former, [observation], generation, now),
        machines: picked,
        updated_machines: updated,
        ready_machines: ready,
    }
}

static NONE: std::collections::BTreeMap<String, String> = std::collections::BTreeMap::new();

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use garboard_api::machine::{MachineStatus, PoolReference};
    use k8s_openapi::jiff::Timestamp;

    fn pool() -> MachinePool {
        let mut pool = MachinePool::default();
        pool.metadata.name = Some("workers".into());
        pool.metadata.generation = Some(3);
        pool.spec.selector.match_labels = Some(BTreeMap::from([("role".into(), "worker".into())]));
        pool
    }

    fn machine(name: &str, role: &str, generation: i64, ready: bool) -> Machine {
        let mut machine = Machine::default();
        machine.metadata.name = Some(name.into());
        machine.metadata.labels = Some(BTreeMap::from([("role".into(), role.into())]));
        let observation = Observation::new(condition::READY, ready, "Reason", "message");
        machine.status = Some(MachineStatus {
            pool: Some(PoolReference { name: "workers".into(), observed_generation: Some(generation) }),
            conditions: condition::merge(&[], [observation], None, &now()),
            ..MachineStatus::default()
        });
        machine
    }

    fn now() -> Time {
        Time(Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn machines_are_counted_by_whether_they_follow_and_serve() {
        let machines = [
            machine("a", "worker", 3, true),
            machine("b", "worker", 2, true),
            machine("c", "worker", 3, false),
            machine("d", "other", 3, true),
        ];
        let status = status(&pool(), &machines, &now());
        assert_eq!((status.machines, status.updated_machines, status.ready_machines), (3, 2, 2));
        let ready = condition::find(&status.conditions, condition::READY).unwrap();
        assert_eq!((ready.status.as_str(), ready.reason.as_str()), (condition::FALSE, "Updating"));
        assert!(ready.message.starts_with("b and 1 more "), "{}", ready.message);
    }

    #[test]
    fn a_pool_is_ready_when_all_its_machines_are_or_it_has_none() {
        for (machines, reason) in [(vec![], "NoMachines"), (vec![machine("a", "worker", 3, true)], "Updated")] {
            let status = status(&pool(), &machines, &now());
            let ready = condition::find(&status.conditions, condition::READY).unwrap();
            assert_eq!((ready.status.as_str(), ready.reason.as_str()), (condition::TRUE, reason));
        }
    }
}
