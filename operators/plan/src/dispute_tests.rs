use serde_json::{Value, json};

use super::*;
use crate::console::{self, Size, View};

const ONE: &str = "00112233445566778899aabbccddeeff";
const OTHER: &str = "ffeeddccbbaa99887766554433221100";

fn claimant(machine_id: &str) -> Claimant {
    Claimant {
        machine_id: Some(machine_id.to_owned()),
        fingerprint: Some(PublicKeyPin::new([7; 32])),
        addresses: vec![[192, 0, 2, 7].into(), [192, 0, 2, 8].into()],
    }
}

fn status(machine_id: &str) -> MachineStatus {
    MachineStatus {
        machine_id: Some(machine_id.to_owned()),
        // Copied manifests bring the same key along.
        fingerprint: Some(PublicKeyPin::new([7; 32]).to_string()),
        addresses: vec![[192, 0, 2, 1].into()],
        ..MachineStatus::default()
    }
}

#[test]
fn a_name_belongs_to_the_machine_that_has_it_while_its_node_is_ready() {
    let (fresh, spent, ready, unready) = (false, true, true, false);
    let [one, other] = [ONE, OTHER].map(status);
    for (what, token, known, node, expected) in [
        ("a new one", fresh, None, unready, None),
        ("one that comes again after it has not fetched its certificate", spent, None, unready, Some("Spent")),
        ("the same one, with a new token", fresh, Some(&one), ready, None),
        ("the same one, with the former token", spent, Some(&one), ready, Some("Spent")),
        ("another, with the former token", spent, Some(&other), ready, Some("Another")),
        ("another, with the former token, when the first is away", spent, Some(&other), unready, Some("Another")),
        ("another, with a new token", fresh, Some(&other), ready, Some("Another")),
        ("one that replaces one that is away", fresh, Some(&other), unready, None),
    ] {
        let denial = admit("node-2", token, &claimant(ONE), known, node, None).err();
        let denial = denial.map(|denial| format!("{denial:?}"));
        match expected {
            None => assert_eq!(denial, None, "{what}"),
            Some(expected) => {
                assert!(denial.as_ref().is_some_and(|text| text.starts_with(expected)), "{what}: {denial:?}")
            }
        }
    }
    let silent = Claimant::default();
    assert!(admit("node-2", fresh, &silent, Some(&one), ready, None).is_err(), "one that does not say who it is");
}

#[test]
fn a_name_is_kept_for_who_was_let_in_until_its_machine_tells() {
    let [one, other] = [ONE, OTHER].map(claimant);
    let [told_by_one, told_by_other] = [ONE, OTHER].map(status);
    for (what, let_in, known, is_admitted) in [
        ("nobody was let in", None, None, true),
        ("it was itself", Some(&one), None, true),
        ("another was", Some(&other), None, false),
        ("another was, in the place of one that is away", Some(&other), Some(&told_by_one), false),
        ("another was, has told it, and is away again", Some(&other), Some(&told_by_other), true),
    ] {
        assert_eq!(admit("node-2", false, &one, known, false, let_in).is_ok(), is_admitted, "{what}");
    }
    let silent = Claimant::default();
    assert!(admit("node-2", false, &silent, None, false, Some(&silent)).is_err(), "it does not say who it is");
}

#[test]
fn who_was_let_in_is_kept_for_a_while() {
    let (begin, mut let_in) = (Instant::now(), LetIn::default());
    let_in.add("node-2", claimant(ONE), begin);
    let_in.add("node-3", claimant(OTHER), begin + UNTOLD / 2);
    assert_eq!(let_in.get("node-2", begin + UNTOLD / 2), Some(&claimant(ONE)));
    assert_eq!(let_in.get("node-2", begin + UNTOLD), None);
    let_in.forget("node-3");
    assert_eq!(let_in.get("node-3", begin + UNTOLD / 2), None);
    let_in.add("node-4", claimant(OTHER), begin + UNTOLD);
    assert_eq!(let_in.0.len(), 1, "what counts no more is dropped");
}

#[test]
fn who_is_refused_is_told_who_has_the_name_and_the_ways_out() {
    let denial = admit("node-2", false, &claimant(OTHER), Some(&status(ONE)), true, None).unwrap_err().to_string();
    let problems = vec![format!("join: request node-2-abcde: Denied: {denial}")];
    let screen = console::render(&View { problems, ..View::default() }, Size::default());
    assert!(screen.contains("node-2`"), "cut off:\n{screen}");
    for told in [ONE, "192.0.2.1", "garboardctl join", "kubectl delete machine node-2"] {
        assert!(denial.contains(told), "{told}: {denial}");
    }
}

#[test]
fn a_request_says_who_asks_and_what_is_no_such_thing_is_left_out() {
    for whole in [claimant(ONE), Claimant::default()] {
        assert_eq!(Claimant::of_annotations(&whole.annotations()), whole);
    }
    let made_up = [(MACHINE_ID, "node-1; call 555"), (FINGERPRINT, "sha256:"), (ADDRESSES, "192.0.2.7,everywhere")];
    let made_up = made_up.map(|(key, text)| (key.to_owned(), text.to_owned())).into();
    let address_alone = Claimant { addresses: vec![[192, 0, 2, 7].into()], ..Claimant::default() };
    assert_eq!(Claimant::of_annotations(&made_up), address_alone);
    assert_eq!(address_alone.to_string(), "the machine without an id at 192.0.2.7");
    let key = "07".repeat(32);
    let whole = format!("the machine {ONE} with the key sha256:{key} at 192.0.2.7, 192.0.2.8");
    assert_eq!(claimant(ONE).to_string(), whole);
}

fn request(user: &str, group: &str, condition: Value) -> CertificateSigningRequest {
    serde_json::from_value(json!({
        "metadata": {
            "name": "node-2-x",
            "annotations": claimant(ONE).annotations(),
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {
            "request": "", "signerName": "kubernetes.io/kube-apiserver-client",
            "username": user, "groups": ["system:bootstrappers", group],
        },
        "status": { "conditions": [condition] },
    }))
    .unwrap()
}

#[test]
fn only_requests_that_were_denied_for_this_are_told() {
    let denied = |reason: &str| json!({ "type": "Denied", "status": "True", "reason": reason });
    let joiner = "system:bootstrappers:garboard:machine:node-2";
    for (what, user, group, condition, is_told) in [
        ("one for this", "system:bootstrap:abcdef", joiner, denied(REASON), true),
        ("one for something else", "system:bootstrap:abcdef", joiner, denied("NotAllowed"), false),
        (
            "one that is approved",
            "system:bootstrap:abcdef",
            joiner,
            json!({ "type": "Approved", "status": "True" }),
            false,
        ),
        ("somebody else's", "jane", "system:authenticated", denied(REASON), false),
    ] {
        let told = refused(&request(user, group, condition));
        let expected =
            Refused { name: "node-2".to_owned(), claimant: claimant(ONE), at: "2026-01-01T00:00:00Z".parse().unwrap() };
        assert_eq!(told, is_told.then_some(expected), "{what}");
    }
}

#[test]
fn a_dispute_is_told_until_nobody_has_asked_for_a_while() {
    let at = |second| Timestamp::from_second(second).unwrap();
    let by = |name: &str, machine_id, second| Refused {
        name: name.to_owned(),
        claimant: claimant(machine_id),
        at: at(second),
    };
    let asked = [by("node-2", ONE, 0), by("node-2", ONE, 60), by("node-2", OTHER, 30), by("node-3", ONE, 0)];
    let kept = Duration::from_secs(100);
    for (second, expected) in [
        (60, vec![("node-2", 2, 100), ("node-3", 1, 40)]),
        (100, vec![("node-2", 2, 60)]),
        (140, vec![("node-2", 1, 20)]),
        (160, vec![]),
    ] {
        let told = disputes(&asked, at(second), kept);
        let told: Vec<_> =
            told.iter().map(|(name, told)| (*name, told.claimants.len(), told.remaining.as_secs())).collect();
        assert_eq!(told, expected, "after {second} seconds");
    }
    // A clock that is behind makes nothing last longer.
    assert_eq!(disputes(&asked[..1], at(-500), kept)["node-2"].remaining, kept);
}

#[test]
fn the_condition_stays_the_same_as_the_same_machine_asks_again() {
    let told = |remaining| {
        observation(&Dispute { claimants: [claimant(ONE)].into(), remaining: Duration::from_secs(remaining) })
    };
    assert_eq!(told(100), told(7));
    assert!(told(7).message.contains(ONE) && told(7).holds == Some(false));
}
