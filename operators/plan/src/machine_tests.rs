use garboard_api::refusal::Origin;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use proptest::prelude::*;

use super::*;
use garboard_supervisor::testing::status;

fn serving() -> Observed {
    Observed {
        cluster_declared: true,
        addresses: vec![IpAddr::from([192, 0, 2, 7])],
        certificate_problems: Some(Vec::new()),
        desired_services: Some(vec!["etcd".into(), "kubelet".into()]),
        services: ["etcd", "kubelet"].map(|name| status(name, PublicState::Running { ready: true })).into(),
        ..Observed::default()
    }
}

fn get(observed: &Observed, type_: &str) -> Observation {
    conditions(observed).into_iter().find(|each| each.type_ == type_).unwrap()
}

/// What is changed, how, and the condition and reason that tell it.
type Case = (&'static str, fn(&mut Observed), &'static str, &'static str);

#[test]
fn a_machine_is_ready_when_every_part_is() {
    assert_eq!(get(&serving(), condition::READY).holds, Some(true));
    let cases: [Case; 12] = [
        ("no address", |o| o.addresses.clear(), condition::NETWORK_READY, "NoAddress"),
        ("a failed link", |o| o.network_problems.push("x".into()), condition::NETWORK_READY, "Failed"),
        ("a refused parameter", |o| o.kernel_problems.push("x".into()), condition::KERNEL_READY, "Failed"),
        ("no certificates", |o| o.certificate_problems = None, condition::CERTIFICATES_READY, "NotReached"),
        (
            "a bad certificate",
            |o| o.certificate_problems = Some(vec!["x".into()]),
            condition::CERTIFICATES_READY,
            "Failed",
        ),
        (
            "a certificate to come",
            |o| o.certificates_awaited.push("kubelet"),
            condition::CERTIFICATES_READY,
            "Requested",
        ),
        ("no cluster", |o| o.cluster_declared = false, condition::SERVICES_READY, "NoCluster"),
        ("a worker outside", |o| (o.cluster_declared, o.joins) = (false, true), condition::SERVICES_READY, "NotJoined"),
        (
            "its certificates",
            |o| (o.cluster_declared, o.joins, o.certificate_problems) = (false, true, None),
            condition::CERTIFICATES_READY,
            "NotJoined",
        ),
        ("refused services", |o| o.services_problem = Some("x".into()), condition::SERVICES_READY, "NotDeclared"),
        ("a missing service", |o| o.services.truncate(1), condition::SERVICES_READY, "NotServing"),
        (
            "a crashing service",
            |o| {
                o.services[1] = status("kubelet", PublicState::BackOff { until_ms: 1, reason: "exit code 1".into() });
                o.services[1].crash_looping = true;
            },
            condition::SERVICES_READY,
            "CrashLooping",
        ),
    ];
    for (what, spoil, type_, reason) in cases {
        let mut observed = serving();
        spoil(&mut observed);
        let part = get(&observed, type_);
        assert!(part.holds != Some(true) && part.reason == reason, "{what}: {part:?}");
        assert_eq!(get(&observed, condition::READY).holds, Some(false), "{what}");
    }
}

#[test]
fn a_refused_declaration_does_not_make_a_machine_unready() {
    let mut observed = serving();
    observed.refusals.insert(Origin::Text("machine.yaml".into()), "spec.podCIDR: no".into());
    let accepted = get(&observed, condition::ACCEPTED);
    assert!(accepted.holds == Some(false) && accepted.message.contains("spec.podCIDR"), "{accepted:?}");
    assert_eq!(get(&observed, condition::READY).holds, Some(true));
}

#[test]
fn a_machine_that_lacks_credentials_of_a_registry_is_ready_all_the_same() {
    let mut observed = serving();
    assert_eq!(get(&observed, condition::REGISTRIES_READY).holds, Some(true));
    observed.registry_problems = vec!["credentials of registry.example: there is none".into()];
    let told = get(&observed, condition::REGISTRIES_READY);
    assert_eq!((told.holds, told.reason.as_str()), (Some(false), "CredentialsMissing"));
    assert!(told.message.contains("registry.example"), "{told:?}");
    assert_eq!(get(&observed, condition::READY).holds, Some(true));
}

#[test]
fn a_machine_whose_time_servers_are_silent_is_ready_all_the_same() {
    let mut observed = serving();
    observed.time_servers = vec!["ntp.example.org".into()];
    observed.time = time::State::Lost(time::Loss::Contradiction);
    let told = get(&observed, condition::TIME_SYNCHRONIZED);
    assert_eq!((told.holds, told.reason.as_str()), (Some(false), "Contradiction"));
    assert_eq!(get(&observed, condition::READY).holds, Some(true));
}

#[test]
fn a_failing_service_is_reported_with_its_last_line() {
    let mut etcd = status("etcd", PublicState::Failed { reason: "exit code 2".into() });
    etcd.last_lines = vec!["one".into(), "disk full".into()];
    let summary = summary(&etcd);
    assert_eq!(summary.message.as_deref(), Some("exit code 2; it said last: disk full"));
    assert_eq!(summary.state, "Failed");
}

#[test]
fn a_machine_that_has_served_is_degraded_and_not_starting() {
    let now = Time(Timestamp::UNIX_EPOCH);
    let ready = condition::merge(&[], conditions(&serving()), None, &now);
    let not = condition::merge(&[], conditions(&Observed::default()), None, &now);
    assert_eq!(phase(&not, None, false), phase::STARTING);
    assert_eq!(phase(&ready, Some(phase::STARTING), false), phase::RUNNING);
    assert_eq!(phase(&not, Some(phase::RUNNING), false), phase::DEGRADED);
    assert_eq!(phase(&not, Some(phase::DEGRADED), false), phase::DEGRADED);
    assert_eq!(phase(&ready, Some(phase::RUNNING), true), phase::STOPPING);
}

proptest! {
    #[test]
    fn the_time_of_transition_changes_with_the_status_only(ready in any::<bool>(), again in any::<bool>()) {
        let observed = |ready: bool| if ready { serving() } else { Observed::default() };
        let (first, second) = (Time(Timestamp::from_second(1).unwrap()), Time(Timestamp::from_second(2).unwrap()));
        let before = condition::merge(&[], conditions(&observed(ready)), Some(1), &first);
        let after = condition::merge(&before, conditions(&observed(again)), Some(1), &second);
        for (before, after) in before.iter().zip(&after) {
            let same = before.status == after.status;
            prop_assert_eq!(&before.type_, &after.type_);
            prop_assert_eq!(after.last_transition_time == first, same);
        }
        let once_more = condition::merge(&after, conditions(&observed(again)), Some(1), &Time(Timestamp::from_second(3).unwrap()));
        prop_assert_eq!(once_more, after);
    }
}
