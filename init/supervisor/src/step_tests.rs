use super::*;
use crate::spec::Restart;
use crate::state::History;
use crate::supervisor::tests::service;
use proptest::prelude::*;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn at(now: u64) -> Moment {
    Moment { now: ms(now), jitter: 500 }
}

/// Drives one service by hand.
struct Driver {
    spec: ServiceSpec,
    service: Service,
}

impl Driver {
    fn new(spec: ServiceSpec) -> Self {
        Self { spec, service: Service::new(Duration::ZERO) }
    }

    fn event(&mut self, now: u64, event: Event) -> Vec<Action> {
        let (service, actions) = step(&self.spec, self.service.clone(), event, at(now));
        self.service = service;
        actions
    }

    fn process(&mut self, now: u64, event: ProcessEvent) -> Vec<Action> {
        self.event(now, Event::Process { run: self.service.history.run, event })
    }

    fn started(mut self, now: u64) -> Self {
        self.event(now, Event::Start);
        self.process(now, ProcessEvent::Launched { pid: 7 });
        self.process(now, ProcessEvent::Executed);
        self
    }

    fn probed(&mut self, now: u64, kind: ProbeKind, ok: bool) -> Vec<Action> {
        self.process(now, ProcessEvent::Probed { kind, ok, message: "said so".to_owned() })
    }

    fn is_ready(&self) -> bool {
        matches!(&self.service.state, ServiceState::Running(Running { readiness: Readiness::Ready { .. }, .. }))
    }

    fn reason(&self) -> &str {
        match &self.service.state {
            ServiceState::Stopping(Stopping { reason, .. })
            | ServiceState::BackOff { reason, .. }
            | ServiceState::Failed { reason } => reason,
            _ => "",
        }
    }
}

fn tcp(period_ms: u64, failure_threshold: u32) -> Probe {
    let action = ProbeAction::Tcp { address: std::net::SocketAddr::from(([127, 0, 0, 1], 1)) };
    Probe { action, period_ms, timeout_ms: 100, failure_threshold }
}

fn notify() -> Probe {
    Probe { action: ProbeAction::Notify {}, ..tcp(1000, 1) }
}

#[test]
fn a_service_without_probe_is_ready_when_its_program_runs() {
    let mut driver = Driver::new(service("a"));
    assert_eq!(driver.event(0, Event::Start), [Action::Launch { run: 1 }]);
    driver.process(1, ProcessEvent::Launched { pid: 7 });
    assert!(!driver.is_ready());
    driver.process(2, ProcessEvent::Executed);
    assert!(driver.is_ready());
    assert_eq!(driver.service.since, ms(2));
}

#[test]
fn start_timeout_asks_then_kills_then_backs_off() {
    let mut driver =
        Driver::new(ServiceSpec { readiness: Some(notify()), start_timeout_ms: 5000, ..service("a") }).started(0);
    assert_eq!(driver.event(4999, Event::Tick), []);
    assert_eq!(driver.event(5000, Event::Tick), [Action::Signal { run: 1, signal: 15 }]);
    assert_eq!(driver.reason(), "not ready within 5 s");
    assert_eq!(driver.event(14_999, Event::Tick), []);
    assert_eq!(driver.event(15_000, Event::Tick), [Action::Kill { run: 1 }]);
    assert!(!driver.service.is_stuck());
    assert_eq!(driver.event(25_000, Event::Tick), [Action::Kill { run: 1 }]);
    assert!(driver.service.is_stuck());
    driver.process(26_000, ProcessEvent::Exited(Exit::Signal { number: 9, core_dumped: false }));
    assert!(matches!(driver.service.state, ServiceState::BackOff { .. }));
    assert_eq!(driver.reason(), "not ready within 5 s");
}

#[test]
fn a_failed_setup_is_the_reason_of_the_back_off() {
    let mut driver = Driver::new(service("a"));
    driver.event(0, Event::Start);
    driver.process(1, ProcessEvent::Launched { pid: 7 });
    driver.process(2, ProcessEvent::SetupFailed { reason: "cannot change user".to_owned() });
    driver.process(3, ProcessEvent::Exited(Exit::Code(70)));
    assert_eq!(driver.reason(), "cannot change user");
}

#[test]
fn readiness_comes_with_one_answer_and_goes_with_the_threshold() {
    let mut driver = Driver::new(ServiceSpec { readiness: Some(tcp(1000, 2)), ..service("a") }).started(0);
    assert_eq!(driver.event(50, Event::Tick), [Action::Probe { run: 1, kind: ProbeKind::Readiness }]);
    driver.probed(51, ProbeKind::Readiness, false);
    assert_eq!(deadline(&driver.spec, &driver.service), Some(ms(101)));
    driver.event(101, Event::Tick);
    driver.probed(102, ProbeKind::Readiness, true);
    assert!(driver.is_ready());
    for (now, ok, ready) in
        [(1102, false, true), (2102, true, true), (3102, false, true), (4102, false, false), (5102, true, true)]
    {
        assert_eq!(driver.event(now, Event::Tick).len(), 1, "{now}");
        driver.probed(now, ProbeKind::Readiness, ok);
        assert_eq!(driver.is_ready(), ready, "{now}");
    }
}

#[test]
fn an_unanswered_probe_counts_as_failed() {
    let mut driver = Driver::new(ServiceSpec { liveness: Some(tcp(1000, 1)), ..service("a") }).started(0);
    assert_eq!(driver.event(1000, Event::Tick), [Action::Probe { run: 1, kind: ProbeKind::Liveness }]);
    assert_eq!(driver.event(2099, Event::Tick), []);
    assert_eq!(driver.event(2100, Event::Tick), [Action::Signal { run: 1, signal: 15 }]);
    assert_eq!(driver.reason(), "it hangs: no answer");
}

#[test]
fn silence_takes_no_longer_than_refusal_until_a_service_counts_as_hung() {
    let Probe { action, .. } = tcp(1000, 3);
    let liveness = Some(Probe { action, period_ms: 1000, timeout_ms: 900, failure_threshold: 3 });
    let mut driver = Driver::new(ServiceSpec { liveness, ..service("a") }).started(0);
    for asked in [1000, 2000, 3000] {
        assert_eq!(driver.event(asked - 1, Event::Tick), [], "{asked}");
        assert_eq!(driver.event(asked, Event::Tick), [Action::Probe { run: 1, kind: ProbeKind::Liveness }], "{asked}");
        driver.probed(asked + 900, ProbeKind::Liveness, false);
    }
    assert!(matches!(driver.service.state, ServiceState::Stopping(_)));
}

#[test]
fn answers_about_liveness_before_readiness_are_ignored() {
    let spec = ServiceSpec { readiness: Some(notify()), liveness: Some(tcp(1000, 1)), ..service("a") };
    let mut driver = Driver::new(spec).started(0);
    driver.probed(1, ProbeKind::Liveness, false);
    assert!(matches!(driver.service.state, ServiceState::Running(_)));
    driver.process(2, ProcessEvent::Notified(Notification::Ready));
    assert!(driver.is_ready());
    driver.probed(3, ProbeKind::Liveness, false);
    assert!(matches!(driver.service.state, ServiceState::Stopping(_)));
}

#[test]
fn a_message_that_overtakes_the_news_of_the_execution_counts() {
    let mut driver = Driver::new(ServiceSpec { readiness: Some(notify()), ..service("a") });
    driver.event(0, Event::Start);
    driver.process(1, ProcessEvent::Launched { pid: 7 });
    driver.process(2, ProcessEvent::Notified(Notification::Ready));
    assert!(driver.is_ready());
    driver.process(3, ProcessEvent::Executed);
    assert!(driver.is_ready());
}

#[test]
fn the_watchdog_is_fed_by_messages() {
    let spec = ServiceSpec { readiness: Some(notify()), watchdog_ms: Some(100), ..service("a") };
    let mut driver = Driver::new(spec).started(0);
    assert_eq!(driver.event(500, Event::Tick), [], "a start is not watched");
    driver.process(600, ProcessEvent::Notified(Notification::Ready));
    driver.process(650, ProcessEvent::Notified(Notification::Alive));
    assert_eq!(driver.event(700, Event::Tick), []);
    assert_eq!(driver.event(750, Event::Tick).len(), 1);
    assert_eq!(driver.reason(), "no sign of life in time");
}

#[test]
fn a_machine_that_stood_still_is_no_service_that_hangs() {
    let spec = ServiceSpec { readiness: Some(notify()), watchdog_ms: Some(100), ..service("a") };
    let mut driver = Driver::new(spec).started(0);
    driver.process(600, ProcessEvent::Notified(Notification::Ready));
    assert_eq!(driver.event(120_000, Event::Tick), [], "the whole machine missed it");
    assert_eq!(driver.event(120_100, Event::Tick).len(), 1, "it is watched again");
    assert_eq!(driver.reason(), "no sign of life in time");
}

#[test]
fn policies_decide_after_an_exit() {
    use RestartPolicy::{Always, Never, OnFailure};
    let good = Exit::Code(0);
    let bad = Exit::Code(1);
    let cases = [
        (Always, false, good, "BackOff"),
        (Always, false, bad, "BackOff"),
        (Always, true, good, "Finished"),
        (Always, true, bad, "BackOff"),
        (OnFailure, false, good, "Finished"),
        (OnFailure, false, bad, "BackOff"),
        (Never, false, good, "Finished"),
        (Never, false, bad, "Failed"),
        (Never, true, bad, "Failed"),
    ];
    for (policy, oneshot, exit, expected) in cases {
        let restart = Restart { policy, ..Restart::default() };
        let mut driver = Driver::new(ServiceSpec { restart, oneshot, ..service("a") }).started(0);
        driver.process(1, ProcessEvent::Exited(exit));
        let state = format!("{:?}", driver.service.state);
        assert!(state.starts_with(expected), "{policy:?} {oneshot} {exit}: {state}");
    }
}

#[test]
fn a_stop_during_the_launch_kills_what_comes_of_it() {
    let mut driver = Driver::new(service("a"));
    driver.event(0, Event::Start);
    assert_eq!(driver.event(1, Event::Stop { reason: String::new() }), []);
    assert_eq!(driver.process(2, ProcessEvent::Launched { pid: 7 }), [Action::Kill { run: 1 }]);
    driver.process(3, ProcessEvent::Exited(Exit::Signal { number: 9, core_dumped: false }));
    assert_eq!(driver.service.state, ServiceState::Finished);
}

#[test]
fn a_restart_on_request_forgives() {
    let mut driver = Driver::new(service("a"));
    driver.service.history = History { failures: 5, run: 9, ..History::default() };
    driver.service.state = ServiceState::BackOff { until: ms(9999), reason: String::new() };
    driver.event(1, Event::Restart { reason: String::new() });
    assert_eq!(driver.service.state, ServiceState::Waiting);
    assert!(!driver.service.history.crash_looping());
}

#[test]
fn stability_resets_the_back_off() {
    let mut driver = Driver::new(service("a"));
    let waits: Vec<Duration> = (1..=4u64)
        .map(|round| {
            let now = round * 1_000_000;
            driver.event(now, Event::Start);
            driver.process(now, ProcessEvent::Launched { pid: 7 });
            driver.process(now, ProcessEvent::Executed);
            // The last run is a stable one.
            let end = if round == 4 { now + driver.spec.restart.reset_after_ms } else { now + 1 };
            driver.process(end, ProcessEvent::Exited(Exit::Code(1)));
            let ServiceState::BackOff { until, .. } = driver.service.state else { panic!("{:?}", driver.service) };
            driver.event(until.as_millis() as u64, Event::Tick);
            assert_eq!(driver.service.state, ServiceState::Waiting);
            until - ms(end)
        })
        .collect();
    assert_eq!(waits, [ms(200), ms(400), ms(800), ms(200)]);
    assert_eq!(driver.service.history.restarts, 4);
}

#[test]
fn running_long_enough_ends_the_crash_loop_report() {
    let mut driver = Driver::new(service("a"));
    driver.service.history.failures = 4;
    let mut driver = driver.started(0);
    assert_eq!(deadline(&driver.spec, &driver.service), Some(ms(60_000)));
    driver.event(60_000, Event::Tick);
    assert!(!driver.service.history.crash_looping());
    assert_eq!(deadline(&driver.spec, &driver.service), None, "a quiet service wakes nobody");
}

fn events() -> impl Strategy<Value = Vec<(u64, Event)>> {
    let process = prop_oneof![
        Just(ProcessEvent::Launched { pid: 7 }),
        Just(ProcessEvent::LaunchFailed { reason: "no".to_owned() }),
        Just(ProcessEvent::SetupFailed { reason: "no".to_owned() }),
        Just(ProcessEvent::Executed),
        (0..3i32).prop_map(|code| ProcessEvent::Exited(Exit::Code(code))),
        Just(ProcessEvent::Notified(Notification::Ready)),
        Just(ProcessEvent::Notified(Notification::Alive)),
        Just(ProcessEvent::Notified(Notification::Hung)),
        (any::<bool>(), any::<bool>()).prop_map(|(readiness, ok)| ProcessEvent::Probed {
            kind: if readiness { ProbeKind::Readiness } else { ProbeKind::Liveness },
            ok,
            message: String::new(),
        }),
    ];
    let event = prop_oneof![
        2 => Just(Event::Start),
        1 => Just(Event::Stop { reason: String::new() }),
        1 => Just(Event::Restart { reason: String::new() }),
        3 => Just(Event::Tick),
        8 => (0..3u64, process).prop_map(|(run, event)| Event::Process { run, event }),
    ];
    proptest::collection::vec((0..20_000u64, event), 0..60)
}

fn specs() -> impl Strategy<Value = ServiceSpec> {
    let policy = prop_oneof![Just(RestartPolicy::Always), Just(RestartPolicy::OnFailure), Just(RestartPolicy::Never)];
    let probe = prop_oneof![Just(None), Just(Some(notify())), Just(Some(tcp(500, 2)))];
    (policy, any::<bool>(), probe, any::<bool>(), any::<bool>()).prop_map(
        |(policy, oneshot, readiness, liveness, watched)| ServiceSpec {
            restart: Restart { policy, ..Restart::default() },
            oneshot,
            readiness,
            liveness: liveness.then(|| tcp(700, 2)),
            watchdog_ms: watched.then_some(3000),
            ..service("a")
        },
    )
}

proptest! {
    #[test]
    fn there_is_never_a_second_process(spec in specs(), events in events()) {
        let mut driver = Driver::new(spec);
        let mut alive = false;
        let mut now = 0;
        for (wait, event) in events {
            now += wait;
            // A process only ends when there is one; news of none would be a lie of the driver, not a case.
            let lie = matches!(&event, Event::Process { event: ProcessEvent::Exited(_), .. }) && driver.service.pid().is_none();
            if lie { continue; }
            let ended = matches!(&event, Event::Process { run, event: ProcessEvent::Exited(_) | ProcessEvent::LaunchFailed { .. } }
                if *run == driver.service.history.run);
            let had = driver.service.has_process();
            for action in driver.event(now, event) {
                if let Action::Launch { run } = action {
                    prop_assert!(!alive, "launched beside a living one");
                    prop_assert_eq!(run, driver.service.history.run);
                    alive = true;
                }
            }
            if had && ended && !driver.service.has_process() { alive = false; }
            prop_assert_eq!(alive, driver.service.has_process());
        }
    }

    #[test]
    fn every_state_with_a_process_that_is_not_ready_has_a_deadline(spec in specs(), events in events()) {
        let mut driver = Driver::new(spec);
        let mut now = 0;
        for (wait, event) in events {
            now += wait;
            driver.event(now, event);
            let waits = driver.service.has_process() && !driver.is_ready()
                && !matches!(&driver.service.state, ServiceState::Running(Running { readiness: Readiness::Lost, .. }));
            if waits || matches!(driver.service.state, ServiceState::BackOff { .. }) {
                prop_assert!(deadline(&driver.spec, &driver.service).is_some(), "{:?}", driver.service);
            }
        }
    }

    #[test]
    fn ticking_at_the_deadline_moves_it(spec in specs(), events in events()) {
        let mut driver = Driver::new(spec);
        let mut now = 0;
        for (wait, event) in events {
            now += wait;
            driver.event(now, event);
            let Some(due) = deadline(&driver.spec, &driver.service) else { continue };
            now = now.max(due.as_millis() as u64);
            // Several things may be due by then, but not endlessly many.
            for _ in 0..4 { driver.event(now, Event::Tick); }
            prop_assert!(deadline(&driver.spec, &driver.service).is_none_or(|next| next > ms(now)), "{:?}", driver.service);
        }
    }

    #[test]
    fn news_of_an_earlier_process_changes_nothing(spec in specs(), events in events(), stale in events()) {
        let mut driver = Driver::new(spec);
        driver.service.history.run = 10;
        for (now, event) in events { driver.event(now, event); }
        for (now, event) in stale {
            if let Event::Process { .. } = event {
                let before = driver.service.clone();
                prop_assert_eq!(driver.event(now, event), []);
                prop_assert_eq!(&driver.service, &before);
            }
        }
    }

    #[test]
    fn waits_grow_but_never_beyond_the_limit(initial in 1..10_000u64, max in 1..100_000u64, failures in 1..200u32, jitter in 0..=1000u32) {
        let max = max.max(initial);
        let wait = backoff(initial, max, failures, jitter);
        prop_assert!(wait <= ms(max));
        prop_assert!(wait.as_millis() as u64 >= initial - initial / 4);
        prop_assert!(backoff(initial, max, failures + 1, jitter) >= wait);
    }
}
