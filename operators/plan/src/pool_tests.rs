use garboard_api::machine::{MachineStatus, PoolReference, TrialFailure, TrialState, TrialStatus};
use k8s_openapi::jiff::Timestamp;

use super::*;

/// A pool whose third generation has brought its template.
fn pool() -> MachinePool {
    let mut pool = MachinePool::default();
    pool.metadata.name = Some("workers".into());
    pool.metadata.generation = Some(3);
    pool.spec.selector.match_labels = Some(BTreeMap::from([("role".into(), "worker".into())]));
    pool
}

/// The next generation of a pool, with another template if there is one.
fn changed(pool: &MachinePool, max_pods: Option<u32>) -> MachinePool {
    let mut pool = pool.clone();
    pool.metadata.generation = pool.metadata.generation.map(|generation| generation + 1);
    pool.spec.template.spec.kubelet.max_pods = max_pods.or(pool.spec.template.spec.kubelet.max_pods);
    pool
}

fn reference(generation: i64) -> PoolReference {
    PoolReference { name: "workers".into(), observed_generation: Some(generation) }
}

fn machine(name: &str, generation: i64, ready: bool) -> Machine {
    let mut machine = Machine::default();
    machine.metadata.name = Some(name.into());
    machine.metadata.labels = Some(BTreeMap::from([("role".into(), "worker".into())]));
    let observation = Observation::new(condition::READY, ready, "Reason", "message");
    machine.status = Some(MachineStatus {
        fingerprint: Some("sha256:0".to_owned()),
        pool: Some(reference(generation)),
        conditions: condition::merge(&[], [observation], None, &now()),
        ..MachineStatus::default()
    });
    machine
}

/// The same, with a trial of what a generation of the pool brought.
fn on_trial(mut machine: Machine, generation: i64, state: TrialState) -> Machine {
    let failing = TrialFailure { probe: "service kubelet".into(), message: "it ended".into() };
    let trial = TrialStatus {
        state,
        pool: Some(reference(generation)),
        since: None,
        until: None,
        required: Vec::new(),
        failing: Vec::from_iter((state == TrialState::Failed).then_some(failing)),
        reason: None,
        log: Vec::new(),
    };
    machine.status = machine.status.map(|status| MachineStatus { trial: Some(trial), ..status });
    machine
}

fn failed(name: &str, before: i64, generation: i64) -> Machine {
    on_trial(machine(name, before, true), generation, TrialState::Failed)
}

fn now() -> Time {
    Time(Timestamp::UNIX_EPOCH)
}

/// The status of a pool whose machines' nodes are all Ready. It is the same with what is left of the machines.
fn observe(pool: &MachinePool, machines: &[Machine]) -> MachinePoolStatus {
    let nodes = machines.iter().map(Machine::node_name).collect();
    let observed = status(pool, machines, &nodes, &now());
    assert_eq!(status(pool, &machines.iter().map(stripped).collect::<Vec<_>>(), &nodes, &now()), observed);
    observed
}

fn stripped(machine: &Machine) -> Machine {
    let mut machine = machine.clone();
    strip(&mut machine);
    machine
}

fn ready(status: &MachinePoolStatus) -> (&str, &str, &str) {
    let ready = condition::find(&status.conditions, condition::READY).unwrap();
    (&ready.status, &ready.reason, &ready.message)
}

fn named(status: &MachinePoolStatus) -> Vec<&str> {
    status.rollout.as_ref().unwrap().machines.iter().map(String::as_str).collect()
}

/// A pool of which a status was written.
fn told(mut pool: MachinePool, machines: &[Machine]) -> MachinePool {
    pool.status = Some(observe(&pool, machines));
    pool
}

#[test]
fn machines_are_counted_by_whether_they_follow_and_serve() {
    let mut other = machine("d", 3, true);
    other.metadata.labels = None;
    let mut leaving = machine("e", 2, true);
    leaving.metadata.deletion_timestamp = Some(now());
    let machines = [machine("a", 3, true), machine("b", 2, true), machine("c", 3, false), other, leaving];
    let counted = status(&pool(), &machines, &["a", "b", "c"].into(), &now());
    assert_eq!((counted.machines, counted.updated_machines, counted.ready_machines), (3, 2, 2));
    // A machine that is gone does not say so: its node does.
    let counted = status(&pool(), &machines, &["b"].into(), &now());
    assert_eq!(counted.ready_machines, 1);
}

/// What somebody does to a machine.
type Edit<'a> = &'a dyn Fn(&mut Machine);

#[test]
fn what_no_rollout_looks_at_is_no_change_of_a_machine() {
    let before = on_trial(machine("a", 3, true), 3, TrialState::Proved);
    let change = |change: Edit| {
        let mut machine = before.clone();
        change(&mut machine);
        stripped(&machine) != stripped(&before)
    };
    let status = |machine: &mut Machine| machine.status.clone().unwrap();
    let cases: [(&str, Edit, bool); 6] = [
        ("its version", &|machine| machine.metadata.resource_version = Some("2".into()), false),
        (
            "when it was Ready",
            &|machine| {
                let mut status = status(machine);
                status.conditions[0].message = "another".into();
                machine.status = Some(status);
            },
            false,
        ),
        (
            "its services",
            &|machine| {
                let services = vec![garboard_api::machine::ServiceSummary::default()];
                machine.status = Some(MachineStatus { services, ..status(machine) });
            },
            false,
        ),
        ("its labels", &|machine| machine.metadata.labels = None, true),
        (
            "whether it is Ready",
            &|machine| {
                let mut status = status(machine);
                status.conditions[0].status = condition::FALSE.into();
                machine.status = Some(status);
            },
            true,
        ),
        ("its removal", &|machine| machine.metadata.deletion_timestamp = Some(now()), true),
    ];
    for (what, with, counts) in cases {
        assert_eq!(change(with), counts, "{what}");
    }
}

#[test]
fn a_condition_tells_how_the_rollout_is() {
    let before = told(pool(), &[machine("a", 3, true)]);
    let next = changed(&before, Some(50));
    let mut paused = next.clone();
    paused.spec.rollout.paused = true;
    let mut twice = next.clone();
    twice.spec.rollout.max_failures = 2;
    let mut wrong = next.clone();
    wrong.spec.template.spec.kubelet.node_labels = [("a/b/c".to_owned(), String::new())].into();
    let (a, b) = (machine("a", 3, true), machine("b", 3, true));
    let why = "failed on a: service kubelet (it ended)";
    let cases = [
        ("no machine", &next, vec![], "NoMachines", "picks no machine"),
        ("it begins", &next, vec![a.clone(), b.clone()], "Updating", "0 of 2 machines follow the template; a may"),
        ("it waits", &next, vec![machine("a", 4, false), b.clone()], "Updating", "not Ready: a"),
        ("it is paused", &paused, vec![a.clone(), b.clone()], "Paused", "keeps a, b from it"),
        ("it is through", &next, vec![machine("a", 4, true)], "Updated", "every machine follows"),
        ("it is through and paused", &paused, vec![machine("a", 4, true)], "Updated", "every machine follows"),
        ("a machine is away", &next, vec![machine("a", 4, false)], "NotReady", "not Ready: a"),
        ("it fails", &next, vec![failed("a", 3, 4), b.clone()], "Stopped", why),
        ("it fails and may again", &twice, vec![failed("a", 3, 4), b.clone()], "Updating", why),
        ("it fails twice", &twice, vec![failed("a", 3, 4), failed("b", 3, 4)], "Stopped", "; and on 1 more"),
        ("it has failed on the last", &twice, vec![failed("a", 3, 4), machine("b", 4, true)], "Stopped", why),
        ("what failed before was another", &next, vec![failed("a", 3, 3), b.clone()], "Updating", "a may follow it"),
        ("what fails is no change of the pool", &next, vec![failed("a", 4, 4), b], "Updating", "1 of 2"),
        ("machines would refuse it", &wrong, vec![a], "Invalid", "spec.template.spec.kubelet.nodeLabels.a/b/c"),
    ];
    for (what, pool, machines, reason, words) in cases {
        let status = observe(pool, &machines);
        let (holds, found, message) = ready(&status);
        assert_eq!(found, reason, "{what}: {message}");
        assert_eq!(holds == condition::TRUE, matches!(reason, "NoMachines" | "Updated"), "{what}");
        assert!(message.contains(words), "{what}: {message}");
    }
}

#[test]
fn a_machine_follows_when_it_is_named_or_nothing_changes() {
    let before = told(pool(), &[machine("a", 3, true), machine("b", 3, true)]);
    let next = changed(&before, Some(50));
    let named = told(next.clone(), &[machine("a", 3, true), machine("b", 3, true)]);
    let again = MachinePool { status: named.status.clone(), ..changed(&named, Some(60)) };
    let mut paused = named.clone();
    paused.spec.rollout.paused = true;
    let mut stopped = named.clone();
    let failure = RolloutFailure { machine: "c".into(), probe: None, message: "no".into() };
    stopped.status.as_mut().unwrap().rollout.as_mut().unwrap().failures.push(failure);
    let mut recreated = next.clone();
    recreated.metadata.uid = Some("another".into());
    let cases = [
        ("it comes to the pool", None, &next, true, true),
        ("it comes from another", Some(&recreated), &next, true, true),
        ("nothing has changed", Some(&before), &before, true, true),
        ("something else has changed", Some(&before), &changed(&before, None), true, true),
        ("nobody is named yet", Some(&before), &next, false, false),
        ("one is named", Some(&before), &named, true, false),
        ("one was named for another template", Some(&before), &again, false, false),
        ("one was named before it was paused", Some(&before), &paused, false, false),
        ("one was named before it stopped", Some(&before), &stopped, false, false),
    ];
    for (what, followed, pool, a, b) in cases {
        assert_eq!(["a", "b"].map(|machine| may_follow(followed, pool, machine)), [a, b], "{what}");
    }
}

#[test]
fn another_generation_with_the_same_template_is_no_other_rollout() {
    let before = told(pool(), &[machine("a", 3, true)]);
    let next = told(changed(&before, Some(50)), &[machine("a", 3, true)]);
    let machines = [failed("a", 3, 4), machine("b", 3, true)];
    let stopped = told(changed(&next, None), &machines);
    let rollout = |pool: &MachinePool| pool.status.as_ref().unwrap().rollout.clone().unwrap();
    assert_eq!((rollout(&next).generation, rollout(&stopped).generation), (4, 4));
    assert_eq!(rollout(&stopped).failures.len(), 1);
    // The machine that failed is gone, and the template no better; more failures are allowed, or the template is changed.
    let alone = &machines[1..];
    let mut again = told(changed(&stopped, None), alone);
    assert_eq!(ready(again.status.as_ref().unwrap()).1, STOPPED);
    // It is tried on that machine once more, as something of its own is changed: that is no leave for others before it is proved.
    let retried = on_trial(machine("a", 5, true), 5, TrialState::Running);
    let proved = on_trial(machine("a", 5, true), 5, TrialState::Proved);
    for (machine, expected) in [(retried, vec![]), (proved, vec!["b"])] {
        assert_eq!(named(&observe(&stopped, &[machine, machines[1].clone()])), expected);
    }
    again.spec.rollout.max_failures = 2;
    assert_eq!(named(&observe(&again, alone)), ["b"]);
    assert_eq!(named(&observe(&changed(&stopped, Some(60)), &machines)), ["a"]);
}

#[test]
fn those_that_do_not_serve_come_first_and_wait_for_each_other() {
    let before = told(pool(), &[]);
    let mut next = changed(&before, Some(50));
    let (a, b, c) = (machine("a", 3, true), machine("b", 3, false), machine("c", 3, false));
    let named_of = |pool: &MachinePool, machines: &[&Machine]| {
        let machines: Vec<Machine> = machines.iter().map(|machine| (*machine).clone()).collect();
        let status = observe(pool, &machines);
        named(&status).into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let mut new = machine("n", 3, false);
    new.status = None;
    let running = on_trial(machine("d", 4, true), 4, TrialState::Running);
    let mended = machine("b", 4, false);
    let cases: [(&str, u32, Vec<&Machine>, &[&str]); 8] = [
        ("one that does not serve comes before one that does", 1, vec![&a, &b], &["b"]),
        ("of several that do not serve one goes", 1, vec![&a, &b, &c], &["b"]),
        ("one that is not mended keeps back those that serve", 1, vec![&a, &mended], &[]),
        ("and not those that do not", 1, vec![&a, &mended, &c], &["c"]),
        ("one on trial keeps back all", 1, vec![&a, &c, &running], &[]),
        ("what is allowed is allowed", 2, vec![&a, &c, &running], &["c"]),
        ("one that was never there keeps nobody back", 1, vec![&a, &new], &["a"]),
        ("all at once if that is what is wanted", 9, vec![&a, &b, &c], &["a", "b", "c"]),
    ];
    for (what, limit, machines, expected) in cases {
        next.spec.rollout.max_unavailable = garboard_api::MaxUnavailable::Machines(limit);
        assert_eq!(named_of(&next, &machines), expected, "{what}");
    }
    // Of a machine that may be gone only its node tells.
    next.spec.rollout.max_unavailable = garboard_api::MaxUnavailable::Machines(1);
    let gone = status(&next, &[a, c], &["c"].into(), &now());
    assert_eq!(named(&gone), ["c"]);
}

#[test]
fn a_rollout_that_stops_is_told_once() {
    let before = told(pool(), &[machine("a", 3, true)]);
    let next = told(changed(&before, Some(50)), &[machine("a", 3, true), machine("b", 3, true)]);
    let stopped = told(next.clone(), &[failed("a", 3, 4), machine("b", 3, true)]);
    let again = told(stopped.clone(), &[failed("a", 3, 4), machine("b", 3, false)]);
    let another = told(changed(&again, Some(60)), &[failed("a", 3, 5), machine("b", 3, true)]);
    let told = |former: &MachinePool, next: &MachinePool| {
        notable(former.status.as_ref(), next.status.as_ref().unwrap()).map(|notable| notable.note)
    };
    assert_eq!(told(&before, &next), None);
    assert!(told(&next, &stopped).is_some_and(|note| note.contains("a: service kubelet (it ended)")));
    assert_eq!(told(&stopped, &again), None);
    assert!(told(&again, &another).is_some());
}
