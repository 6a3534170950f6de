use super::*;
use crate::console::{self, Size, View};

const OWN: &str = "own";

fn status(boot_id: &str) -> MachineStatus {
    MachineStatus {
        boot_id: Some(boot_id.to_owned()),
        machine_id: Some("00112233445566778899aabbccddeeff".to_owned()),
        addresses: vec![[192, 0, 2, 7].into()],
        ..MachineStatus::default()
    }
}

/// What a machine comes to that sees these starts at these seconds, and is asked at the last of them: who else there is, and whether it
/// is to tell its status again.
fn seen(seconds: &[(u64, Option<&str>)]) -> (Option<String>, bool) {
    let mut watch = Watch::new(OWN, Pace::default());
    let mut again = false;
    for (second, boot_id) in seconds {
        let now = Duration::from_secs(*second);
        watch.see(boot_id.map(status).as_ref(), now);
        again = watch.tell_again(now);
    }
    (watch.twin().map(|twin| twin.boot_id.clone()), again)
}

#[test]
fn only_a_machine_that_answers_again_and_again_is_another() {
    let (own, other, before) = (Some(OWN), Some("other"), Some("before"));
    for (what, seconds, twin) in [
        ("nothing in the API", vec![(0, None)], None),
        ("a reboot", vec![(0, before), (1, own), (500, own)], None),
        (
            "a reboot, and a last word of the start before that came late",
            vec![(0, before), (1, own), (2, before), (12, own)],
            None,
        ),
        ("an agent that was restarted", vec![(0, own), (60, own)], None),
        ("a store from a snapshot", vec![(0, own), (600, before), (610, own)], None),
        (
            "a store from two snapshots, one day after the other",
            vec![(0, own), (9, before), (19, own), (79, own), (90_000, before)],
            None,
        ),
        (
            "a Machine that was deleted and made again",
            vec![(0, own), (9, None), (10, own), (20, None), (21, own)],
            None,
        ),
        ("another machine's first word", vec![(0, own), (9, other)], None),
        ("its second", vec![(0, own), (9, other), (19, own), (29, other)], Some("other")),
        (
            "its second, as the later one sees it",
            vec![(0, other), (1, own), (11, other), (21, own), (31, other)],
            Some("other"),
        ),
        ("it has just been overwritten", vec![(0, own), (9, other), (19, own), (29, other), (39, own)], Some("other")),
        ("it was started again", vec![(0, own), (9, other), (19, own), (29, Some("another"))], Some("another")),
        (
            "its Machine was deleted and made again",
            vec![(0, own), (9, other), (19, own), (29, other), (30, None), (31, other)],
            None,
        ),
        ("it is switched off", vec![(0, own), (9, other), (19, own), (29, other), (39, own), (99, own)], None),
        (
            "it comes back later",
            vec![(0, own), (9, other), (19, own), (29, other), (39, own), (99, own), (200, other)],
            None,
        ),
    ] {
        assert_eq!(seen(&seconds).0.as_deref(), twin, "{what}");
    }
}

#[test]
fn what_was_overwritten_is_told_again_after_a_pause_until_it_is_there() {
    let (own, other) = (Some(OWN), Some("other"));
    for (what, seconds, again) in [
        ("the status of the start before", vec![(0, Some("before")), (100, Some("before"))], false),
        ("at once", vec![(0, own), (9, other)], false),
        ("when the other goes on", vec![(0, own), (9, other), (14, other)], false),
        ("after the pause", vec![(0, own), (9, other), (19, other)], true),
        ("just told", vec![(0, own), (9, other), (19, other), (20, other)], false),
        ("told in vain", vec![(0, own), (9, other), (19, other), (29, other)], true),
        ("told", vec![(0, own), (9, other), (19, other), (20, own), (40, own)], false),
    ] {
        assert_eq!(seen(&seconds).1, again, "{what}");
    }
}

#[test]
fn it_is_looked_at_again_when_something_is_due() {
    let at = Duration::from_secs;
    let Pace { pause, quiet } = Pace::default();
    let mut watch = Watch::new(OWN, Pace::default());
    watch.see(Some(&status(OWN)), at(1));
    assert_eq!(watch.next(), None);
    watch.see(Some(&status("other")), at(2));
    assert_eq!(watch.next(), Some(at(2) + pause));
    watch.see(Some(&status(OWN)), at(13));
    assert_eq!(watch.next(), Some(at(13) + quiet));
    watch.tell_again(at(13) + quiet);
    assert_eq!(watch.next(), None);
}

#[test]
fn a_twin_is_named_once_when_it_comes_and_when_it_goes() {
    let other = "0f4c5d1e-8a3b-4c2d-9e6f-112233445566";
    let twin = Twin { boot_id: other.to_owned(), claimant: Claimant::of_status(&status(other)) };
    let moved = Twin { boot_id: "another".to_owned(), ..twin.clone() };
    let told = |before, after| notable(before, after).map(|notable| (notable.reason, notable.warning));
    assert_eq!(told(None, None), None);
    assert_eq!(told(None, Some(&twin)), Some(("TwoMachines", true)));
    assert_eq!(told(Some(&twin), Some(&moved)), None);
    assert_eq!(told(Some(&twin), None), Some(("OneMachine", false)));
    let message = observation(&twin).message;
    let problems = vec![message.clone()];
    let screen = console::render(&View { problems, ..View::default() }, Size::default());
    assert!(!screen.contains('>'), "cut off:\n{screen}");
    for named in ["00112233445566778899aabbccddeeff", "192.0.2.7", other] {
        assert!(message.contains(named), "{message}");
    }
}
