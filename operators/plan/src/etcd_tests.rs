use proptest::prelude::*;

use super::*;

fn url(name: &str) -> String {
    format!("https://{name}:2380")
}

fn member(id: u64, name: &str, learner: bool) -> Member {
    Member { id, name: name.to_owned(), peer_urls: vec![url(name)], learner }
}

fn declared(name: &str) -> Declared {
    Declared { name: name.to_owned(), peer_url: url(name), ..Declared::default() }
}

fn joined(name: &str) -> Declared {
    Declared { joined: true, ..declared(name) }
}

fn leaving(name: &str) -> Declared {
    Declared { leave: true, ..declared(name) }
}

#[test]
fn each_state_has_its_next_change() {
    let unstarted = Member { name: String::new(), ..member(2, "b", true) };
    let moved = Declared { peer_url: url("a2"), ..declared("a") };
    let gone = Declared { left: true, ..leaving("b") };
    let of = |name: &str, step| Some((name.to_owned(), step));
    let cases = [
        ("one that is alone", vec![declared("a")], vec![member(1, "a", false)], None),
        (
            "a second",
            vec![declared("a"), declared("b")],
            vec![member(1, "a", false)],
            of("b", Step::Add { peer_url: url("b") }),
        ),
        (
            "a third waits for the second",
            vec![declared("a"), declared("b"), declared("c")],
            vec![member(1, "a", false), unstarted.clone()],
            of("b", Step::Promote { id: 2 }),
        ),
        (
            "a learner that nobody declares is let alone",
            vec![declared("a"), declared("c")],
            vec![member(1, "a", false), unstarted.clone()],
            None,
        ),
        (
            "a learner that is to leave",
            vec![declared("a"), leaving("b"), declared("c")],
            vec![member(1, "a", false), unstarted],
            of("b", Step::Remove { id: 2 }),
        ),
        (
            "another address",
            vec![moved],
            vec![member(1, "a", false)],
            of("a", Step::Update { id: 1, peer_url: url("a2") }),
        ),
        ("the last does not leave", vec![leaving("a")], vec![member(1, "a", false)], None),
        (
            "one of two leaves",
            vec![declared("a"), leaving("b")],
            vec![member(1, "a", false), member(2, "b", false)],
            of("b", Step::Remove { id: 2 }),
        ),
        ("one that has left stays away", vec![declared("a"), gone], vec![member(1, "a", false)], None),
        (
            "one of the store before a restore stays away",
            vec![declared("a"), joined("b")],
            vec![member(1, "a", false)],
            None,
        ),
        (
            "others join beside it",
            vec![declared("a"), joined("b"), declared("c")],
            vec![member(1, "a", false)],
            of("c", Step::Add { peer_url: url("c") }),
        ),
        (
            "one with data that is a member is one",
            vec![declared("a"), Declared { peer_url: url("b2"), ..joined("b") }],
            vec![member(1, "a", false), member(2, "b", false)],
            of("b", Step::Update { id: 2, peer_url: url("b2") }),
        ),
        ("what nobody declares stays", vec![declared("a")], vec![member(1, "a", false), member(2, "b", false)], None),
    ];
    for (name, declared, members, expected) in cases {
        assert_eq!(next(&declared, &members), expected, "{name}");
    }
}

#[test]
fn what_is_so_is_told() {
    let members = [member(1, "a", false), Member { name: String::new(), ..member(2, "b", true) }];
    let b = standing(&declared("b"), &members, Some(("b", "it is behind")));
    assert_eq!((b.id, b.role), (Some(2), Some(EtcdRole::Learner)));
    assert_eq!(b.initial_cluster, BTreeMap::from([("a".into(), url("a")), ("b".into(), url("b"))]));
    assert_eq!((b.condition.holds, b.condition.reason.as_str()), (Some(false), "Learns"));
    assert!(b.condition.message.ends_with("it is behind"), "{}", b.condition.message);
    let c = standing(&declared("c"), &members, Some(("b", "it is behind")));
    assert_eq!((c.id, c.role, c.condition.reason.as_str()), (None, None, "Waiting"));
    assert!(c.initial_cluster.is_empty());
    let last = standing(&leaving("a"), &members[..1], None);
    assert_eq!((last.role, last.condition.reason.as_str()), (Some(EtcdRole::Voter), "Last"));
    assert_eq!(standing(&leaving("c"), &members, None).role, Some(EtcdRole::Left));
    let lost = standing(&joined("c"), &members, None);
    assert_eq!((lost.role, lost.condition.reason.as_str()), (Some(EtcdRole::Left), "NotRestored"));
    let moved = Declared { peer_url: url("b2"), id: Some(2), ..joined("b") };
    assert_eq!(standing(&moved, &members, None).role, None, "one that has not started is known by its number");
}

/// What etcd makes of a change.
fn carry_out(step: &Step, members: &mut Vec<Member>, fresh: &mut u64) {
    match step {
        Step::Add { peer_url } => {
            *fresh += 1;
            members.push(Member { id: *fresh, name: String::new(), peer_urls: vec![peer_url.clone()], learner: true });
        }
        Step::Promote { id } => {
            members.iter_mut().filter(|member| member.id == *id).for_each(|member| member.learner = false)
        }
        Step::Update { id, peer_url } => {
            members
                .iter_mut()
                .filter(|member| member.id == *id)
                .for_each(|member| member.peer_urls = vec![peer_url.clone()]);
        }
        Step::Remove { id } => members.retain(|member| member.id != *id),
    }
}

proptest! {
    #[test]
    fn changes_come_to_an_end_with_every_member_and_never_without_one(
        leave in proptest::collection::vec(any::<bool>(), 1..6), started in any::<bool>(),
    ) {
        let all: Vec<_> = leave
            .iter()
            .enumerate()
            .map(|(index, leave)| Declared { leave: *leave, ..declared(&format!("m{index}")) })
            .collect();
        let (mut members, mut fresh) = (vec![member(1, "m0", false)], 1);
        for round in 0.. {
            let Some((name, step)) = next(&all, &members) else { break };
            prop_assert!(round < 30, "{step:?}");
            let before = members.len();
            carry_out(&step, &mut members, &mut fresh);
            if started {
                members.iter_mut().filter(|member| member.peer_urls == [url(&name)]).for_each(|member| member.name.clone_from(&name));
            }
            prop_assert!(members.len().abs_diff(before) <= 1);
            prop_assert!(members.iter().filter(|member| member.learner).count() <= 1);
            prop_assert!(members.iter().any(|member| !member.learner));
        }
        prop_assert!(members.iter().all(|member| !member.learner));
        for declared in all.iter().filter(|declared| !declared.leave) {
            prop_assert!(members.iter().any(|member| is(member, declared)), "{declared:?}");
        }
        let staying = all.iter().filter(|declared| !declared.leave).count();
        prop_assert_eq!(members.len(), staying.max(1));
    }

    #[test]
    fn members_of_another_store_never_come_back_by_themselves(
        kinds in proptest::collection::vec((any::<bool>(), any::<bool>()), 1..6),
    ) {
        let all: Vec<_> = kinds
            .iter()
            .enumerate()
            .map(|(index, (joined, leave))| {
                Declared { joined: *joined, leave: *leave, ..declared(&format!("m{}", index + 1)) }
            })
            .chain([Declared { joined: true, ..declared("m0") }])
            .collect();
        let (mut members, mut fresh) = (vec![member(1, "m0", false)], 1);
        while let Some((name, step)) = next(&all, &members) {
            carry_out(&step, &mut members, &mut fresh);
            let declared = all.iter().find(|declared| declared.name == name).unwrap();
            prop_assert!(!declared.joined || name == "m0", "{step:?} for {name}");
        }
        for declared in all.iter().filter(|declared| declared.joined && declared.name != "m0") {
            prop_assert_eq!(standing(declared, &members, None).role, Some(EtcdRole::Left));
        }
        prop_assert_eq!(standing(all.last().unwrap(), &members, None).role, Some(EtcdRole::Voter));
    }
}
