use super::*;

const OWN: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
const OTHER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 8);

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn heard(priority: u8) -> Event {
    Event::Heard(Advertisement { sender: OTHER, priority, interval: INTERVAL })
}

/// A machine that has held the address since a moment.
fn holder(standing: Standing) -> (Election, Duration) {
    let (mut election, _) = Election::new(OWN, standing, false, ms(0));
    let now = election.deadline().unwrap();
    let own = election.priority();
    assert_eq!(election.step(Event::Tick, now), [Action::Take, Action::Send(own)]);
    (election, now)
}

#[test]
fn priorities_of_neighbours_are_far_apart_and_tell_whether_they_serve() {
    let of = |last, standing| {
        let (election, _) = Election::new(Ipv4Addr::new(192, 0, 2, last), standing, false, ms(0));
        election.priority()
    };
    for last in 0..=254 {
        let (silent, serving) = (of(last, Standing::Silent), of(last, Standing::Serving));
        assert!((1..SERVING).contains(&silent) && (SERVING..255).contains(&serving), "{last}");
        let apart = skew(serving, INTERVAL).abs_diff(skew(of(last + 1, Standing::Serving), INTERVAL));
        assert!(apart > ms(30), "{last}: {apart:?}");
        assert!(down_time(serving, INTERVAL) < ms(900), "{last}");
    }
    assert_eq!(of(1, Standing::Away), GIVEN_UP);
}

#[test]
fn one_that_is_not_heard_in_time_is_replaced() {
    let (mut election, actions) = Election::new(OWN, Standing::Serving, false, ms(0));
    assert_eq!(actions, []);
    let wait = down_time(election.priority(), INTERVAL);
    assert_eq!(election.deadline(), Some(wait));
    assert_eq!(election.step(heard(200), ms(500)), []);
    assert_eq!((election.holder(), election.deadline()), (Some(OTHER), Some(ms(500) + wait)));
    assert_eq!(election.step(Event::Tick, ms(499) + wait), []);
    let own = election.priority();
    assert_eq!(election.step(Event::Tick, ms(500) + wait), [Action::Take, Action::Send(own)]);
    assert_eq!((election.holds(), election.holder()), (true, Some(OWN)));
}

#[test]
fn what_a_waiting_machine_hears() {
    let soon = |election: &Election| ms(100) + skew(election.priority(), INTERVAL);
    let later = |election: &Election| ms(100) + down_time(election.priority(), INTERVAL);
    let wait = |what: &str, standing, priority, expected: &dyn Fn(&Election) -> Duration| {
        let (mut election, _) = Election::new(OWN, standing, false, ms(0));
        assert_eq!(election.step(heard(priority), ms(100)), [], "{what}");
        let State::Backup { until, keeps: false } = election.state else { panic!("{what}: {election:?}") };
        assert_eq!(until, expected(&election), "{what}");
    };
    wait("a holder of higher priority", Standing::Serving, 254, &later);
    wait("a holder of lower priority that serves", Standing::Serving, SERVING, &later);
    wait("one that gives up", Standing::Serving, GIVEN_UP, &soon);
    wait("a holder that is silent", Standing::Serving, 127, &soon);
    wait("one that is as silent", Standing::Silent, 1, &later);
    wait("one that serves", Standing::Silent, SERVING, &later);
}

#[test]
fn what_a_holder_hears() {
    let (election, now) = holder(Standing::Serving);
    let own = election.priority();
    for (what, priority, expected) in [
        ("one that is better", own + 1, vec![Action::Release]),
        ("one that is as good and has the higher address", own, vec![Action::Release]),
        ("one that is not as good", own - 1, vec![Action::Announce]),
        ("one that gives up", GIVEN_UP, vec![]),
    ] {
        let mut election = election.clone();
        assert_eq!(election.step(heard(priority), now + ms(60)), expected, "{what}");
        let released = expected == [Action::Release];
        assert_eq!(election.holds(), !released, "{what}");
        if !released {
            let own = election.priority();
            assert_eq!(election.step(Event::Tick, now + ms(60)), [Action::Send(own)], "{what}: it says so at once");
            election.step(heard(priority), now + ms(61));
            assert_eq!(election.step(Event::Tick, now + ms(61)), [], "{what}: but not as often as it is asked");
        }
    }
    let mut deaf = election;
    let mut own_words = heard(255);
    if let Event::Heard(advertisement) = &mut own_words {
        advertisement.sender = OWN;
    }
    assert_eq!((deaf.step(own_words, now), deaf.holds()), (vec![], true), "itself");
}

#[test]
fn a_holder_that_no_longer_serves_gives_up_at_once() {
    let (mut election, now) = holder(Standing::Serving);
    let actions = election.step(Event::Standing(Standing::Away), now + ms(1));
    assert_eq!(actions, [Action::Send(GIVEN_UP), Action::Release]);
    assert_eq!((election.holds(), election.deadline()), (false, None));
    assert_eq!(election.step(heard(GIVEN_UP), now + ms(2)), [], "it takes no part");
    assert_eq!(election.step(Event::Standing(Standing::Serving), now + ms(500)), []);
    assert!(!election.holds() && election.deadline() > Some(now + ms(1200)), "it listens first");
}

#[test]
fn a_holder_that_falls_silent_says_so_at_once_and_keeps_the_address() {
    let (mut election, now) = holder(Standing::Serving);
    assert_eq!(election.step(Event::Standing(Standing::Silent), now + ms(100)), []);
    assert_eq!(election.deadline(), Some(now + ms(100)));
    let silent = election.priority();
    assert_eq!(election.step(Event::Tick, now + ms(100)), [Action::Send(silent)]);
    assert!(silent < SERVING && election.holds());
    assert_eq!(election.step(heard(SERVING), now + ms(150)), [Action::Release]);
}

#[test]
fn what_a_machine_has_from_before_it_keeps_until_it_hears_another() {
    let begin = |standing| Election::new(OWN, standing, true, ms(0));
    assert_eq!(begin(Standing::Away).1, [Action::Release]);
    let (election, actions) = begin(Standing::Serving);
    assert_eq!((actions, election.holds()), (vec![], false));
    let mut alone = election.clone();
    let now = alone.deadline().unwrap();
    assert!(alone.step(Event::Tick, now).starts_with(&[Action::Take]));
    let mut replaced = election.clone();
    assert_eq!(replaced.step(heard(200), ms(100)), [Action::Release]);
    assert_eq!(replaced.step(heard(200), ms(200)), [], "once");
    let mut ending = election;
    assert_eq!(ending.step(Event::Standing(Standing::Away), ms(100)), [Action::Release]);
}

#[test]
fn a_holder_that_was_asleep_listens_before_it_goes_on() {
    let (mut election, now) = holder(Standing::Serving);
    let late = now + INTERVAL + down_time(election.priority(), INTERVAL);
    assert_eq!((election.step(Event::Tick, late), election.holds()), (vec![], false));
    assert_eq!(election.step(heard(SERVING), late + ms(10)), [Action::Release], "another has it");
}

#[test]
fn a_holder_that_is_not_heard_is_known_no_longer() {
    let (mut election, _) = Election::new(OWN, Standing::Away, false, ms(0));
    election.step(heard(200), ms(0));
    assert_eq!((election.holder(), election.deadline()), (Some(OTHER), Some(ms(1000))));
    election.step(Event::Tick, ms(1000));
    assert_eq!((election.holder(), election.deadline()), (None, None));
    election.step(heard(200), ms(1100));
    election.step(heard(GIVEN_UP), ms(1150));
    assert_eq!(election.holder(), None);
}
