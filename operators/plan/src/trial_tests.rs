use garboard_api::machine::MachineTrial;
use proptest::prelude::*;

use super::*;

fn now(ms: u64) -> Now<'static> {
    Now { boot_id: "first", ms, unix: i64::try_from(ms / 1000).unwrap() }
}

/// A configuration that differs from those of other numbers.
fn configuration(number: u32) -> Configuration {
    let mut machine = MachineSpec { hostname: Some(format!("host-{number}")), ..MachineSpec::default() };
    machine.trial = MachineTrial { deadline_seconds: Some(60), probes: Vec::new() };
    Configuration { machine, sources: BTreeMap::new(), cluster: None, pool: None }
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn seen(results: &[(&str, bool)]) -> Seen {
    let result = |passes: bool| if passes { Ok(()) } else { Err("no answer".to_owned()) };
    results.iter().map(|(name, passes)| ((*name).to_owned(), result(*passes))).collect()
}

fn good() -> Record {
    Record::default().adopted(configuration(0)).proved(names(&["default gateway", "service etcd"]))
}

#[test]
fn what_is_due_follows_from_the_record_and_the_declaration() {
    let good = good();
    let trial = good.begun(configuration(1), names(&["default gateway"]), now(0));
    let failed = trial.failed("too late", Vec::new(), Vec::new(), now(60_000));
    let cases = [
        ("a new machine", Record::default(), 0, Due::Adopt, 0),
        ("one of which nothing is known yet", Record::default().adopted(configuration(0)), 0, Due::Learn, 0),
        ("nothing has changed", good.clone(), 0, Due::Nothing, 0),
        ("a change", good.clone(), 1, Due::Begin, 0),
        ("a change on trial", trial.clone(), 1, Due::Prove, 1),
        ("it is taken back", trial.clone(), 0, Due::Withdraw, 0),
        ("it is changed again", trial.clone(), 2, Due::Begin, 0),
        ("it has failed", failed.clone(), 1, Due::Nothing, 0),
        ("it has failed and is taken back", failed.clone(), 0, Due::Withdraw, 0),
        ("it has failed and is another one now", failed.clone(), 2, Due::Begin, 0),
        ("it has proved itself", trial.proved(names(&["default gateway"])), 1, Due::Nothing, 1),
    ];
    for (name, record, declared, due, in_force) in cases {
        let declared = configuration(declared);
        assert_eq!(record.due(&declared), due, "{name}");
        assert!(record.in_force(&declared).is_same(&configuration(in_force)), "{name}");
    }
}

#[test]
fn a_machine_that_joins_counts_from_when_it_knows_its_cluster() {
    let alone = configuration(0);
    let joined = Configuration { cluster: Some(ClusterSpec::default()), ..configuration(0) };
    let record = Record::default().adopted(alone.clone());
    assert_eq!(record.due(&joined), Due::Adopt);
    assert!(record.in_force(&joined).is_same(&joined));
    // What belongs to a cluster is not left by a change.
    let record = record.adopted(joined).proved(names(&["default gateway"]));
    assert_eq!(record.due(&alone), Due::Begin);
}

#[test]
fn where_a_setting_comes_from_is_no_change_and_is_told_as_it_is_now() {
    let mut declared = configuration(0);
    declared.sources.insert("hostname".to_owned(), "Cluster".to_owned());
    let record = good();
    assert_eq!(record.due(&declared), Due::Nothing);
    assert_eq!(record.in_force(&declared).sources, declared.sources);
}

/// The same configuration, with the template of a pool among its layers.
fn pooled(number: u32, generation: i64) -> Configuration {
    let pool = PoolReference { name: "workers".to_owned(), observed_generation: Some(generation) };
    Configuration { pool: Some(pool), ..configuration(number) }
}

#[test]
fn the_pool_of_a_change_is_told_as_it_is_now() {
    let good = Record::default().adopted(pooled(0, 1)).proved(names(&["default gateway"]));
    let trial = good.begun(pooled(1, 2), names(&[]), now(0));
    let failed = trial.failed("too late", Vec::new(), Vec::new(), now(60_000));
    // The Machine itself was changed, and not its pool.
    let own = good.begun(pooled(2, 1), names(&[]), now(0));
    let own_failed = own.failed("too late", Vec::new(), Vec::new(), now(60_000));
    let cases = [
        ("nothing on trial", &good, pooled(0, 3), (3, 3)),
        ("the change on trial", &trial, pooled(1, 3), (3, 3)),
        ("the change that has failed", &failed, pooled(1, 3), (1, 3)),
        ("another change", &failed, pooled(5, 3), (1, 2)),
        ("a change of its own", &own, pooled(2, 3), (3, 3)),
        ("a change of its own that has failed", &own_failed, pooled(2, 3), (3, 3)),
    ];
    for (what, record, declared, expected) in cases {
        let traced = record.traced(&declared);
        let generation = |pool: Option<&PoolReference>| pool.unwrap().observed_generation.unwrap();
        let tried = status(&traced, &[]).unwrap().pool;
        let found = (generation(traced.in_force(&declared).pool.as_ref()), generation(tried.as_ref()));
        assert_eq!(found, expected, "{what}");
        assert_eq!(traced.due(&declared), record.due(&declared), "{what}");
        assert_eq!(traced.traced(&declared), traced, "{what}");
    }
    // What an agent wrote that knew of no pools.
    let mut written = serde_json::to_value(configuration(0)).unwrap();
    assert_eq!(written.as_object_mut().unwrap().remove("pool"), None);
    assert_eq!(serde_json::from_value::<Configuration>(written).unwrap(), configuration(0));
}

#[test]
fn what_passed_before_must_pass_without_a_break_in_time() {
    let required = names(&["default gateway", "service etcd", "service gone"]);
    let trial = good().begun(configuration(1), required, now(1_000)).trial.unwrap();
    let works = seen(&[("default gateway", true), ("service etcd", true), ("name server", false)]);
    let lacks = seen(&[("service etcd", false)]);
    assert_eq!(trial.failing(&works), [], "neither what did not work before nor a service that is gone counts");
    let failing = trial.failing(&lacks);
    assert_eq!(
        failing.iter().map(|failure| (failure.probe.as_str(), failure.message.as_str())).collect::<Vec<_>>(),
        [("default gateway", "there is none any more"), ("service etcd", "no answer")]
    );
    for (failing, steady_ms, ms, verdict) in [
        (&[][..], 9_999, 20_000, Verdict::Open),
        (&[][..], 10_000, 20_000, Verdict::Proved),
        (&failing[..], 0, 60_999, Verdict::Open),
        (&[][..], 1_000, 61_000, Verdict::Open),
        (&[][..], 10_000, 70_000, Verdict::Proved),
    ] {
        assert_eq!(trial.verdict(failing, steady_ms, now(ms)), verdict, "{ms}");
    }
    assert!(
        matches!(trial.verdict(&failing, 0, now(61_000)), Verdict::Failed(reason) if reason.contains("60 seconds"))
    );
}

#[test]
fn a_change_in_the_middle_of_a_trial_must_prove_what_the_first_had_to() {
    let first = good().begun(configuration(1), names(&["default gateway"]), now(0));
    let second = first.begun(configuration(2), names(&[]), now(30_000));
    let trial = second.trial.as_ref().unwrap();
    assert_eq!(trial.required, names(&["default gateway"]));
    assert_eq!(trial.left_ms(now(30_000)), 60_000, "it has its own time");
    assert!(second.good.unwrap().is_same(&configuration(0)));
}

#[test]
fn more_time_is_more_time() {
    let trial = good().begun(configuration(1), names(&[]), now(0)).extended(30).trial.unwrap();
    assert_eq!((trial.left_ms(now(60_000)), trial.until), (30_000, 90));
}

#[test]
fn a_machine_that_restarts_again_and_again_returns() {
    let mut record = good().begun(configuration(1), names(&["service etcd"]), now(0));
    assert_eq!(record.resumed(now(50_000)), record, "the agent alone was started again");
    for boot in ["second", "third", "fourth"] {
        record = record.resumed(Now { boot_id: boot, ms: 5_000, unix: 1_000 });
        let trial = record.trial.as_ref().unwrap();
        assert_eq!(trial.left_ms(Now { boot_id: boot, ms: 5_000, unix: 1_000 }), 60_000);
    }
    let record = record.resumed(Now { boot_id: "fifth", ms: 5_000, unix: 1_000 });
    assert!(record.failed.as_ref().unwrap().reason.contains("restarted"), "{record:?}");
    assert!(record.in_force(&configuration(1)).is_same(&configuration(0)));
}

#[test]
fn status_and_condition_tell_the_same() {
    let trial = good().begun(configuration(1), names(&["default gateway"]), now(0));
    let failing = [TrialFailure { probe: "default gateway".to_owned(), message: "no answer".to_owned() }];
    let failed = trial.failed("too late", failing.to_vec(), vec!["bye".to_owned()], now(60_000));
    let cases = [
        (good(), &[][..], TrialState::Proved, Some(true), "proved itself"),
        (trial.clone(), &[][..], TrialState::Running, None, "everything works so far"),
        (trial, &failing[..], TrialState::Running, None, "default gateway (no answer)"),
        (
            failed,
            &[][..],
            TrialState::Failed,
            Some(false),
            "too late: default gateway (no answer); the configuration before",
        ),
    ];
    for (record, failing, state, holds, words) in cases {
        assert_eq!(status(&record, failing).unwrap().state, state, "{words}");
        let condition = condition(&record, failing);
        assert_eq!(condition.holds, holds, "{words}");
        assert!(condition.message.contains(words), "{}", condition.message);
    }
    assert_eq!(status(&Record::default(), &[]), None);
}

/// Something that happens to a machine.
#[derive(Clone, Debug)]
enum Happening {
    Declare(u32),
    Look { works: bool, after_ms: u64 },
    AgentRestart,
    MachineRestart,
    Extend,
    Confirm,
    Abort,
}

fn happenings() -> impl Strategy<Value = Vec<Happening>> {
    let happening = prop_oneof![
        3 => (0u32..4).prop_map(Happening::Declare),
        6 => (any::<bool>(), 0u64..30_000).prop_map(|(works, after_ms)| Happening::Look { works, after_ms }),
        1 => Just(Happening::AgentRestart),
        1 => Just(Happening::MachineRestart),
        1 => Just(Happening::Extend),
        1 => Just(Happening::Confirm),
        1 => Just(Happening::Abort),
    ];
    prop::collection::vec(happening, 0..40)
}

/// A machine as its agent runs it; only `record` outlasts anything, so a restart between any two steps is an agent that dies there.
struct World {
    record: Record,
    declared: Configuration,
    boots: u32,
    ms: u64,
    steady_since: Option<u64>,
}

impl World {
    fn step(&mut self, works: bool) {
        let boot_id = self.boots.to_string();
        let now = Now { boot_id: &boot_id, ms: self.ms, unix: 0 };
        let seen = seen(&[("service etcd", works)]);
        let declared = self.declared.clone();
        self.record = match self.record.due(&declared) {
            Due::Nothing => return,
            Due::Learn if serves(&seen) => Record { proved: passing(&seen), ..self.record.clone() },
            Due::Learn => return,
            Due::Adopt => self.record.adopted(declared),
            Due::Withdraw => self.record.withdrawn(),
            Due::Begin => {
                self.steady_since = None;
                self.record.begun(declared, names(&["service etcd"]), now)
            }
            Due::Prove => {
                let trial = self.record.trial.as_ref().unwrap();
                let failing = trial.failing(&seen);
                self.steady_since = if failing.is_empty() { self.steady_since.or(Some(self.ms)) } else { None };
                let steady = self.steady_since.map_or(0, |since| self.ms - since);
                match trial.verdict(&failing, steady, now) {
                    Verdict::Open => return,
                    Verdict::Proved => self.record.proved(passing(&seen)),
                    Verdict::Failed(reason) => self.record.failed(&reason, failing, Vec::new(), now),
                }
            }
        };
    }
}

proptest! {
    #[test]
    fn there_is_always_a_configuration_that_has_proved_itself_to_return_to(happenings in happenings()) {
        let mut world =
            World { record: Record::default(), declared: configuration(0), boots: 0, ms: 0, steady_since: None };
        world.step(false);
        for happening in happenings {
            let before = world.record.clone();
            let tried = before.trial.as_ref().map(|trial| trial.configuration.clone());
            let mut confirmed = false;
            match happening {
                Happening::Declare(number) => world.declared = configuration(number),
                Happening::Look { works, after_ms } => {
                    world.ms += after_ms;
                    world.step(works);
                }
                Happening::AgentRestart | Happening::MachineRestart => {
                    if matches!(happening, Happening::MachineRestart) {
                        (world.boots, world.ms) = (world.boots + 1, 0);
                    }
                    world.steady_since = None;
                    let boot_id = world.boots.to_string();
                    world.record = world.record.resumed(Now { boot_id: &boot_id, ms: world.ms, unix: 0 });
                }
                Happening::Extend => world.record = world.record.extended(10),
                Happening::Confirm if before.trial.is_some() => {
                    confirmed = true;
                    world.record = world.record.proved(BTreeSet::new());
                }
                Happening::Abort if before.trial.is_some() => {
                    let boot_id = world.boots.to_string();
                    let now = Now { boot_id: &boot_id, ms: world.ms, unix: 0 };
                    world.record = world.record.failed("aborted", Vec::new(), Vec::new(), now);
                }
                Happening::Confirm | Happening::Abort => {}
            }
            let good = world.record.good.clone().unwrap();
            if !before.good.as_ref().unwrap().is_same(&good) {
                prop_assert!(tried.is_some_and(|tried| tried.is_same(&good)), "only what was tried becomes good");
                prop_assert!(confirmed || world.record.trial.is_none());
            }
            let in_force = world.record.in_force(&world.declared);
            let on_trial = world.record.trial.as_ref().is_some_and(|trial| trial.configuration.is_same(in_force));
            prop_assert!(in_force.is_same(&good) || on_trial);
            if let Some(failed) = &world.record.failed {
                prop_assert!(!failed.configuration.is_same(in_force) || failed.configuration.is_same(&good));
            }
        }
        // Whatever has happened: what does not work is left within its time, and what works is kept.
        world.step(false);
        world.ms += 1_000_000;
        world.step(false);
        world.step(false);
        prop_assert!(world.record.trial.is_none());
        prop_assert!(world.record.in_force(&world.declared).is_same(world.record.good.as_ref().unwrap()));
    }
}
