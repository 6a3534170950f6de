use std::time::UNIX_EPOCH;

use proptest::prelude::*;

use super::*;

const SECOND: i64 = 1_000_000;

fn sample(server: &str, offset_us: i64, distance_us: u64) -> Sample {
    Sample { server: server.to_owned(), stratum: 2, offset_us, distance_us }
}

fn facts(settled: bool) -> Facts {
    let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
    Facts { now: at(2_000_000_000), made: at(1_900_000_000), settled }
}

fn server(progress: &Progress) -> Option<&str> {
    match &progress.state {
        State::Following(status) => Some(&status.server),
        State::Unasked | State::Lost(_) => None,
    }
}

#[test]
fn the_time_of_more_than_half_counts() {
    let liar = sample("liar", 90 * SECOND, 1_000);
    let a = sample("a", 10_000, 8_000);
    let b = sample("b", 12_000, 4_000);
    let cases: [(&str, Vec<Sample>, Option<&str>); 7] = [
        ("one", vec![a.clone()], Some("a")),
        ("the better of two", vec![a.clone(), b.clone()], Some("b")),
        ("two against one", vec![liar.clone(), a.clone(), b.clone()], Some("b")),
        ("one against one", vec![liar.clone(), a.clone()], None),
        ("two against two", vec![liar.clone(), liar.clone(), a.clone(), b.clone()], None),
        ("none alike", vec![liar, a, sample("c", -SECOND, 10)], None),
        ("nobody", vec![], None),
    ];
    for (name, samples, wanted) in cases {
        let (progress, action) = decide(&Progress::default(), &samples, "silence", facts(false));
        assert_eq!(server(&progress), wanted, "{name}");
        assert_eq!(action == Action::Keep, wanted.is_none(), "{name}");
    }
}

#[test]
fn a_small_offset_is_made_up_for_and_a_large_one_set_at_the_start_only() {
    let cases = [
        ("small", 399_000, false, Action::Slew(399_000)),
        ("small and back", -399_000, true, Action::Slew(-399_000)),
        ("large at the start", 7 * SECOND, false, Action::Step(7 * SECOND)),
        ("large and back at the start", -7 * SECOND, false, Action::Step(-7 * SECOND)),
        ("large later", 7 * SECOND, true, Action::Keep),
    ];
    for (name, offset, settled, wanted) in cases {
        let (_, action) = decide(&Progress::default(), &[sample("a", offset, 10)], "", facts(settled));
        assert_eq!(action, wanted, "{name}");
    }
}

#[test]
fn a_large_offset_of_a_running_machine_is_believed_in_the_third_round() {
    let far = [sample("a", -3600 * SECOND, 10)];
    let (first, action) = decide(&Progress::default(), &far, "", facts(true));
    assert_eq!((action, &first.state), (Action::Keep, &State::Lost(Loss::FarOff(-3600 * SECOND))));
    let (second, action) = decide(&first, &far, "", facts(true));
    assert_eq!((action, second.wait), (Action::Keep, SOON));
    let (third, action) = decide(&second, &far, "", facts(true));
    assert_eq!((action, server(&third)), (Action::Step(-3600 * SECOND), Some("a")));

    // What is seen between ends the row.
    let (between, _) = decide(&second, &[sample("a", 10, 10)], "", facts(true));
    let (again, action) = decide(&between, &far, "", facts(true));
    assert_eq!((action, server(&again)), (Action::Keep, Some("a")), "what was followed is not lost by one round");
}

#[test]
fn a_time_before_the_image_is_not_believed() {
    let samples = [sample("a", -200_000_000 * SECOND, 10)];
    let (progress, action) = decide(&Progress::default(), &samples, "", facts(false));
    assert_eq!((action, progress.state), (Action::Keep, State::Lost(Loss::BeforeImage)));
}

#[test]
fn a_server_is_lost_after_three_rounds_and_asked_less_often_later() {
    let (mut progress, _) = decide(&Progress::default(), &[sample("a", 1, 1)], "", facts(false));
    let mut seen = Vec::new();
    for _ in 0..7 {
        progress = decide(&progress, &[], "a: no answer", facts(true)).0;
        seen.push((server(&progress).is_some(), progress.wait));
    }
    let lost = (false, SOON);
    assert_eq!(seen, [(true, SOON), (true, SOON), lost, lost, lost, (false, MIN_POLL), (false, MIN_POLL)]);
    let told = condition(&["a".to_owned()], &progress.state);
    assert!(told.holds == Some(false) && told.message.contains("a: no answer"), "{told:?}");
}

#[test]
fn who_is_followed_stays_while_another_is_hardly_better() {
    let followed = sample("a", 0, 1_900);
    let (progress, _) = decide(&Progress::default(), std::slice::from_ref(&followed), "", facts(false));
    let (stays, _) = decide(&progress, &[sample("b", 0, 1_000), followed.clone()], "", facts(true));
    assert_eq!(server(&stays), Some("a"));
    let (goes, _) = decide(&progress, &[sample("b", 0, 900), followed], "", facts(true));
    assert_eq!(server(&goes), Some("b"));
}

#[test]
fn nobody_is_asked_without_servers() {
    let told = condition(&[], &State::Unasked);
    assert_eq!((told.holds, told.reason.as_str()), (None, "NoServers"));
}

fn samples() -> impl Strategy<Value = Vec<Sample>> {
    let each = ("[a-c]", any::<i64>(), any::<u64>(), -3 * SECOND..3 * SECOND, 0..SECOND.unsigned_abs(), any::<bool>());
    let each = each.prop_map(|(server, wild, far, offset, distance, tame)| match tame {
        true => sample(&server, offset, distance),
        false => sample(&server, wild, far),
    });
    proptest::collection::vec(each, 0..9)
}

proptest! {
    /// Whatever servers say, the time between rounds has its bounds, the speed of the clock is changed for small offsets only, and a
    /// machine that runs a part of a cluster is set by one round never.
    #[test]
    fn bounds_are_kept(rounds in proptest::collection::vec(samples(), 1..12), settled in any::<bool>()) {
        let mut progress = Progress::default();
        let mut rounds_since_step = 0;
        for samples in rounds {
            let (next, action) = decide(&progress, &samples, "", facts(settled));
            rounds_since_step += 1;
            prop_assert!(next.wait >= SOON && next.wait <= MAX_POLL);
            match action {
                Action::Keep => {}
                Action::Slew(offset) => prop_assert!(offset.unsigned_abs() <= SLEW_LIMIT_US),
                Action::Step(offset) => {
                    prop_assert!(offset.unsigned_abs() > SLEW_LIMIT_US);
                    prop_assert!(moved(facts(settled).now, offset).unwrap() >= facts(settled).made);
                    prop_assert!(!settled || rounds_since_step >= STEP_ROUNDS);
                    rounds_since_step = 0;
                }
            }
            progress = next;
        }
    }

    /// With the clock led as decided, the offset that is left becomes no larger, and the rounds rarer.
    #[test]
    fn a_clock_that_is_led_gets_there(offset in -30 * SECOND..30 * SECOND) {
        let (mut progress, mut offset) = (Progress::default(), offset);
        for _ in 0..6 {
            let (next, action) = decide(&progress, &[sample("a", offset, 100)], "", facts(false));
            match action {
                Action::Keep => prop_assert!(false, "kept"),
                Action::Slew(by) | Action::Step(by) => offset -= by,
            }
            progress = next;
        }
        prop_assert_eq!(offset, 0);
        prop_assert_eq!(progress.wait, MAX_POLL);
    }

    /// The order of the servers is irrelevant to whether they agree.
    #[test]
    fn the_order_decides_nothing(mut samples in samples()) {
        let agrees = |samples: &[Sample]| agreed(samples, None).map(|sample| sample.distance_us);
        let before = agrees(&samples);
        samples.reverse();
        prop_assert_eq!(agrees(&samples).is_some(), before.is_some());
    }
}
