use super::*;
use proptest::prelude::*;

fn input() -> PkiInput {
    PkiInput {
        role: MachineRole::ControlPlane,
        joins: false,
        node_name: "node-1".to_owned(),
        node_addresses: vec!["192.0.2.10".parse().unwrap()],
        service_addresses: vec!["10.96.0.1".parse().unwrap()],
        dns_domain: "cluster.local".to_owned(),
        apiserver_names: vec!["api.example.com".to_owned(), "192.0.2.100".to_owned()],
    }
}

fn at(days: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_780_000_000) + DAY * u32::try_from(days).unwrap()
}

/// What a machine looks like after `steps`.
fn apply(mut observed: Observed, steps: &[Step]) -> Observed {
    for step in steps {
        match step {
            Step::CreateAuthority { authority, validity } => {
                observed.authorities.insert(*authority, ObservedAuthority { validity: *validity, signs: true });
                for leaf in Leaf::ALL {
                    if let (true, Some(leaf)) = (super::authority(leaf) == *authority, observed.leaves.get_mut(&leaf)) {
                        leaf.signed_by_authority = false;
                    }
                }
                observed.deployed.clear();
            }
            Step::CreateKey(key) => {
                observed.keys.insert(*key);
                observed.deployed.remove(&Deployment::ApiserverKeys);
                observed.deployed.remove(&Deployment::ControllerManagerKeys);
            }
            Step::Issue { leaf, profile, validity, reason: _ } => {
                observed.leaves.insert(
                    *leaf,
                    ObservedLeaf { profile: profile.clone(), validity: *validity, signed_by_authority: true },
                );
                observed.deployed.remove(&Deployment::Leaf(*leaf));
            }
            Step::Request { leaf, profile, reason: _ } => {
                let authority = observed.authorities[&Authority::Kubernetes].validity;
                observed.leaves.insert(
                    *leaf,
                    ObservedLeaf { profile: profile.clone(), validity: authority, signed_by_authority: true },
                );
                observed.deployed.remove(&Deployment::Leaf(*leaf));
            }
            Step::Deploy(deployment) => {
                observed.deployed.insert(*deployment);
            }
        }
    }
    observed
}

fn complete(now: SystemTime) -> Observed {
    apply(Observed::default(), &plan(&desired(&input()), &Observed::default(), now).steps)
}

fn issued(plan: &Plan) -> Vec<(Leaf, Reason)> {
    plan.steps
        .iter()
        .filter_map(|step| match step {
            Step::Issue { leaf, reason, .. } => Some((*leaf, *reason)),
            _ => None,
        })
        .collect()
}

#[test]
fn nothing_is_due_on_a_complete_machine() {
    assert_eq!(plan(&desired(&input()), &complete(at(0)), at(1)), Plan::default());
}

#[test]
fn certificates_are_renewed_when_two_thirds_of_their_life_are_over() {
    let observed = complete(at(0));
    let life = LEAF_LIFETIME + BACKDATE;
    let renewal = at(0) - BACKDATE + life * 2 / 3;
    assert!(issued(&plan(&desired(&input()), &observed, renewal - Duration::from_secs(1))).is_empty());
    let due = issued(&plan(&desired(&input()), &observed, renewal));
    assert_eq!(due.len(), Leaf::ALL.len());
    assert!(due.iter().all(|(_, reason)| *reason == Reason::Renewal));
    assert_eq!(next_renewal(&observed), Some(renewal));
}

#[test]
fn a_new_address_changes_only_the_certificates_that_name_it() {
    let mut changed = input();
    changed.node_addresses.push("192.0.2.11".parse().unwrap());
    let due = issued(&plan(&desired(&changed), &complete(at(0)), at(1)));
    assert_eq!(due, [(Leaf::EtcdPeer, Reason::Changed), (Leaf::Apiserver, Reason::Changed)]);
}

#[test]
fn a_certificate_of_the_future_is_replaced() {
    let due = issued(&plan(&desired(&input()), &complete(at(200)), at(0)));
    assert!(due.is_empty(), "the authority is of the future too, so nothing can be signed");
    let mut observed = complete(at(0));
    let leaf = observed.leaves.get_mut(&Leaf::Kubelet).unwrap();
    leaf.validity.not_before = at(50);
    assert_eq!(issued(&plan(&desired(&input()), &observed, at(10))), [(Leaf::Kubelet, Reason::NotYetValid)]);
}

#[test]
fn an_ended_authority_signs_nothing_and_is_reported() {
    let now = at(0) + AUTHORITY_LIFETIME;
    let plan = plan(&desired(&input()), &complete(at(0)), now);
    assert!(plan.steps.is_empty());
    assert_eq!(plan.problems.len(), Authority::ALL.len());
}

#[test]
fn no_certificate_outlives_its_authority() {
    let now = at(0) + AUTHORITY_LIFETIME - DAY * 20;
    let plan = plan(&desired(&input()), &complete(at(0)), now);
    let ends: Vec<_> = plan
        .steps
        .iter()
        .filter_map(|step| if let Step::Issue { validity, .. } = step { Some(validity.not_after) } else { None })
        .collect();
    assert_eq!(ends.len(), Leaf::ALL.len());
    assert!(ends.iter().all(|end| *end == at(0) + AUTHORITY_LIFETIME));
}

#[test]
fn only_servers_have_names_and_every_server_answers_on_loopback() {
    for (leaf, profile) in desired(&input()).leaves {
        assert_eq!(profile.server, !profile.names.is_empty(), "{leaf:?}");
        let loopback = SubjectName::parse("127.0.0.1");
        assert!(!profile.server || profile.names.contains(&loopback), "{leaf:?}");
        assert!(profile.server || profile.client, "{leaf:?}");
    }
}

#[test]
fn no_client_is_in_an_all_powerful_group() {
    for (leaf, profile) in desired(&input()).leaves {
        assert_ne!(profile.organization.as_deref(), Some("system:masters"), "{leaf:?}");
    }
}

#[test]
fn the_api_server_is_valid_for_every_name_that_leads_to_it() {
    let names = &desired(&input()).leaves[&Leaf::Apiserver].names;
    for name in [
        "node-1",
        "192.0.2.10",
        "10.96.0.1",
        "kubernetes.default.svc.cluster.local",
        "localhost",
        "api.example.com",
        "192.0.2.100",
    ] {
        assert!(names.contains(&SubjectName::parse(name)), "{name}");
    }
}

proptest! {
    #[test]
    fn planning_after_applying_is_empty(start in 0u64..3000, later in 0u64..3000, cut in 0usize..64) {
        let desired = desired(&input());
        let first = plan(&desired, &Observed::default(), at(start));
        // A power cut after any step.
        let cut = cut.min(first.steps.len());
        let observed = apply(Observed::default(), &first.steps[..cut]);
        let second = plan(&desired, &observed, at(start));
        let observed = apply(observed, &second.steps);
        prop_assert!(plan(&desired, &observed, at(start)).steps.is_empty());
        // And at any later time.
        let now = at(start + later);
        let third = plan(&desired, &observed, now);
        let observed = apply(observed, &third.steps);
        prop_assert!(plan(&desired, &observed, now).steps.is_empty());
    }

    #[test]
    fn a_certificate_in_use_is_always_valid(start in 0u64..100, steps in prop::collection::vec(1u64..60, 1..40)) {
        let desired = desired(&input());
        let mut now = start;
        let mut observed = complete(at(now));
        for step in steps {
            now += step;
            // The agent looks at least every two months here; in truth every few hours.
            for leaf in observed.leaves.values() {
                prop_assert!(leaf.validity.contains(at(now)));
            }
            observed = apply(observed.clone(), &plan(&desired, &observed, at(now)).steps);
        }
    }
}

#[test]
fn a_worker_makes_nothing_and_asks_for_what_it_needs() {
    let desired = desired(&PkiInput { role: MachineRole::Worker, joins: true, ..input() });
    // It knows no authority before it has joined.
    assert_eq!(plan(&desired, &Observed::default(), at(0)), Plan::default());
    let validity = Validity { not_before: at(0), not_after: at(30) };
    let mut observed = Observed::default();
    observed.authorities.insert(Authority::Kubernetes, ObservedAuthority { validity, signs: false });
    let due = plan(&desired, &observed, at(1));
    let asked: Vec<_> = due.steps.iter().filter(|step| matches!(step, Step::Request { .. })).collect();
    assert_eq!((asked.len(), due.steps.len()), (Leaf::OF_WORKERS.len(), Leaf::OF_WORKERS.len()));
    // What it was given is deployed, and then nothing is left to do until it is to be renewed.
    let given = apply(observed, &due.steps);
    let deployed = plan(&desired, &given, at(1));
    assert!(deployed.steps.iter().all(|step| matches!(step, Step::Deploy(_))), "{deployed:?}");
    let complete = apply(given, &deployed.steps);
    let steps = |days| plan(&desired, &complete, at(days)).steps;
    assert_eq!(steps(2), []);
    assert_eq!(steps(21).len(), Leaf::OF_WORKERS.len());
}

#[test]
fn a_control_plane_machine_that_joins_makes_no_authority_and_signs_with_what_it_was_given() {
    let joins = desired(&PkiInput { joins: true, ..input() });
    let nothing = plan(&joins, &Observed::default(), at(0));
    assert!(
        !nothing
            .steps
            .iter()
            .any(|step| matches!(step, Step::CreateAuthority { .. } | Step::CreateKey(_) | Step::Issue { .. }))
    );
    assert_eq!(nothing.problems.len(), Authority::ALL.len());
    let founded = complete(at(0));
    let given = Observed { authorities: founded.authorities, keys: founded.keys, ..Observed::default() };
    let due = plan(&joins, &given, at(1));
    assert_eq!(due.steps.iter().filter(|step| matches!(step, Step::Issue { .. })).count(), Leaf::ALL.len());
    assert_eq!(due.problems, []);
}

#[test]
fn no_worker_is_an_agent_of_the_control_plane() {
    for profile in of_worker("node-2").values() {
        let organization = profile.organization.as_deref();
        assert!(![Some(identity::AGENT_GROUP), Some(identity::OPERATORS_GROUP)].contains(&organization), "{profile:?}");
    }
}

#[test]
fn a_control_plane_machine_whose_authority_has_lost_its_key_says_so() {
    let mut observed = complete(at(0));
    observed.authorities.get_mut(&Authority::Etcd).unwrap().signs = false;
    let plan = plan(&desired(&input()), &observed, at(1));
    assert_eq!(plan.problems, [Problem::AuthorityWithoutKey(Authority::Etcd)]);
}
