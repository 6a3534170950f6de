use super::*;
use crate::exit::Exit;
use crate::spec::{Cgroup, Slice};
use proptest::prelude::*;

pub(crate) fn name(name: &str) -> ServiceName {
    ServiceName::try_from(name).unwrap()
}

/// A small service; what a test does not say is the default.
pub(crate) fn service(text: &str) -> ServiceSpec {
    serde_json::from_value(serde_json::json!({
        "name": text,
        "argv": [format!("/usr/bin/{text}")],
        "cgroup": { "slice": "system" },
    }))
    .unwrap()
}

fn requiring(who: &str, whom: &[&str]) -> ServiceSpec {
    let requires = whom.iter().map(|whom| Condition { service: name(whom), state: Reached::Ready }).collect();
    ServiceSpec { requires, ..service(who) }
}

fn at(ms: u64) -> Moment {
    Moment { now: Duration::from_millis(ms), jitter: 500 }
}

/// A supervisor with a world in which every launch succeeds and every signal ends its process, unless a test says otherwise.
#[derive(Default)]
struct World {
    supervisor: Supervisor,
    now: u64,
    /// Services whose processes exit as soon as they run.
    failing: BTreeSet<ServiceName>,
    /// Services that ignore signals.
    deaf: BTreeSet<ServiceName>,
    alive: BTreeMap<ServiceName, Run>,
    history: Vec<String>,
}

impl World {
    /// At the time of the order, whatever happens until it is carried out.
    fn assert_met(&self, actions: &Actions) {
        for (name, action) in actions {
            if let Action::Launch { .. } = action {
                for condition in &self.supervisor.spec(name).unwrap().requires {
                    assert!(self.supervisor.is_met(condition), "{name} started without {condition:?}");
                }
            }
        }
    }

    fn act(&mut self, actions: Actions) {
        self.assert_met(&actions);
        let mut queue = std::collections::VecDeque::from(actions);
        // A failing service launches again only after a wait, so this ends.
        while let Some((name, action)) = queue.pop_front() {
            let more = match action {
                Action::Launch { run } => {
                    assert!(self.alive.insert(name.clone(), run).is_none(), "{name} runs twice");
                    self.history.push(format!("+{name}"));
                    let mut more = self.tell(&name, run, ProcessEvent::Launched { pid: 7 });
                    more.extend(self.tell(&name, run, ProcessEvent::Executed));
                    if self.failing.contains(&name) {
                        more.extend(self.end(&name, run, 1));
                    }
                    more
                }
                Action::Signal { run, .. } if !self.deaf.contains(&name) => self.end(&name, run, 0),
                Action::Kill { run } => self.end(&name, run, 137),
                Action::Refresh { .. } => {
                    self.history.push(format!("~{name}"));
                    Vec::new()
                }
                Action::Signal { .. } | Action::Probe { .. } => Vec::new(),
            };
            queue.extend(more);
        }
    }

    fn tell(&mut self, name: &ServiceName, run: Run, event: ProcessEvent) -> Actions {
        let actions = self.supervisor.process(name, run, event, at(self.now));
        self.assert_met(&actions);
        actions
    }

    fn end(&mut self, name: &ServiceName, run: Run, code: i32) -> Actions {
        if self.alive.get(name) != Some(&run) {
            return Vec::new();
        }
        self.alive.remove(name);
        self.history.push(format!("-{name}"));
        self.tell(name, run, ProcessEvent::Exited(Exit::Code(code)))
    }

    fn set(&mut self, specs: Vec<ServiceSpec>) -> Vec<(String, Change)> {
        let (results, actions) = self.supervisor.set(specs, at(self.now)).unwrap();
        self.act(actions);
        results.into_iter().map(|result| (result.name.to_string(), result.change)).collect()
    }

    fn wait(&mut self, ms: u64) {
        let end = self.now + ms;
        while let Some(due) = self.supervisor.deadline().map(milliseconds).filter(|due| *due <= end) {
            self.now = self.now.max(due);
            let actions = self.supervisor.tick(at(self.now));
            self.act(actions);
        }
        self.now = end;
    }

    fn shut_down(&mut self) {
        let actions = self.supervisor.shut_down(at(self.now));
        self.act(actions);
    }

    fn take_history(&mut self) -> String {
        std::mem::take(&mut self.history).join(" ")
    }

    fn ready(&self) -> String {
        let ready = self.supervisor.statuses().into_iter().filter(|status| status.ready);
        ready.map(|status| status.name.to_string()).collect::<Vec<_>>().join(" ")
    }
}

#[test]
fn what_can_start_starts_at_once_and_the_rest_when_it_can() {
    let mut world = World::default();
    world.set(vec![requiring("c", &["a", "b"]), service("a"), service("b"), requiring("d", &["x"])]);
    assert_eq!(world.take_history(), "+a +b +c");
    let statuses = world.supervisor.statuses();
    assert_eq!(statuses[3].waiting_on, ["x, which is not declared"]);
    world.set(vec![requiring("c", &["a", "b"]), service("a"), service("b"), requiring("d", &["x"]), service("x")]);
    assert_eq!(world.take_history(), "+x +d");
}

#[test]
fn only_the_built_in_start_while_the_machine_lacks_something() {
    let mut world = World { supervisor: Supervisor::new(vec![service("agent")], Duration::ZERO), ..World::default() };
    let actions = world.supervisor.set_lacking(Some("DATA to be mounted".to_owned()), at(0));
    world.act(actions);
    world.set(vec![service("a")]);
    assert_eq!(world.take_history(), "+agent");
    assert_eq!(world.supervisor.statuses()[0].waiting_on, ["DATA to be mounted"]);
    let actions = world.supervisor.set_lacking(None, at(0));
    world.act(actions);
    assert_eq!(world.take_history(), "+a");
}

#[test]
fn sets_are_compared() {
    let file = |content: &str| crate::spec::RenderedFile {
        path: "/run/garboard/services/f/x".into(),
        mode: 0o400,
        owner: None,
        content: content.to_owned(),
    };
    let with_file = |content: &str| ServiceSpec { watches_files: true, files: vec![file(content)], ..service("f") };
    let mut world = World::default();
    world.set(vec![service("a"), service("b"), with_file("1")]);
    world.take_history();
    let changed = ServiceSpec { rlimit_nofile: 5, ..service("b") };
    let results = world.set(vec![service("a"), changed.clone(), with_file("2"), service("n")]);
    let expected = [("a", Change::Unchanged), ("b", Change::Restarted), ("f", Change::Refreshed), ("n", Change::Added)];
    assert_eq!(results, expected.map(|(name, change)| (name.to_owned(), change)));
    assert_eq!(world.take_history(), "-b ~f +n +b");
    assert_eq!(world.supervisor.spec(&name("b")), Some(&changed));
    assert_eq!(world.supervisor.spec(&name("f")), Some(&with_file("2")));
    assert_eq!(world.set(vec![service("a")]).iter().filter(|(_, change)| *change == Change::Removed).count(), 3);
    assert_eq!(world.supervisor.names().count(), 1);
}

#[test]
fn files_that_change_during_a_start_make_another_start() {
    let spec = |mode| {
        let path = "/run/garboard/services/f/x".into();
        let file = crate::spec::RenderedFile { path, mode, owner: None, content: String::new() };
        ServiceSpec { watches_files: true, files: vec![file], ..service("f") }
    };
    let mut supervisor = Supervisor::default();
    let (_, actions) = supervisor.set(vec![spec(0o400)], at(0)).unwrap();
    assert_eq!(actions, [(name("f"), Action::Launch { run: 1 })]);
    supervisor.process(&name("f"), 1, ProcessEvent::Launched { pid: 7 }, at(0));
    let (results, actions) = supervisor.set(vec![spec(0o440)], at(0)).unwrap();
    assert_eq!(results[0].change, Change::Restarted);
    assert_eq!(actions, [(name("f"), Action::Signal { run: 1, signal: 15 })]);
}

#[test]
fn a_refused_set_changes_nothing() {
    let mut world = World::default();
    world.set(vec![service("a")]);
    let before = world.supervisor.statuses();
    assert!(world.supervisor.set(vec![service("b"), requiring("c", &["c"])], at(5)).is_err());
    assert_eq!(world.supervisor.statuses(), before);
}

#[test]
fn the_old_specification_holds_until_its_process_has_ended() {
    let mut world = World { deaf: BTreeSet::from([name("a")]), ..World::default() };
    world.set(vec![service("a")]);
    let changed = ServiceSpec { argv: vec!["/usr/bin/other".to_owned()], ..service("a") };
    world.set(vec![changed.clone()]);
    assert_eq!(world.supervisor.spec(&name("a")), Some(&service("a")));
    assert_eq!(world.set(vec![changed.clone()]), [("a".to_owned(), Change::Unchanged)]);
    world.wait(10_000);
    assert_eq!(world.supervisor.spec(&name("a")), Some(&changed));
    assert_eq!(world.take_history(), "+a -a +a");
}

#[test]
fn a_service_declared_again_while_it_ends_runs_again() {
    let mut world = World { deaf: BTreeSet::from([name("a")]), ..World::default() };
    world.set(vec![service("a")]);
    world.set(vec![]);
    world.set(vec![service("a")]);
    world.wait(10_000);
    assert_eq!(world.take_history(), "+a -a +a");
}

#[test]
fn dependents_end_first_and_the_built_in_last() {
    let mut world = World { supervisor: Supervisor::new(vec![service("agent")], Duration::ZERO), ..World::default() };
    world.wait(0);
    let actions = world.supervisor.tick(at(0));
    world.act(actions);
    world.set(vec![service("etcd"), requiring("api", &["etcd"]), requiring("kubelet", &["api"]), service("dns")]);
    world.take_history();
    world.deaf.insert(name("kubelet"));
    world.shut_down();
    assert_eq!(world.take_history(), "-dns", "etcd and api wait for what stands on them");
    world.wait(10_000);
    assert_eq!(world.take_history(), "-kubelet -api -etcd -agent");
    assert!(world.supervisor.is_down());
}

#[test]
fn a_process_that_cannot_be_killed_holds_nobody_up() {
    let mut world = World::default();
    world.set(vec![service("etcd"), requiring("api", &["etcd"])]);
    let actions = world.supervisor.shut_down(at(0));
    drop(actions);
    // Nothing that was asked of api has an effect.
    for now in [10_000, 20_000] {
        let actions = world.supervisor.tick(at(now));
        if now == 20_000 {
            assert!(actions.contains(&(name("etcd"), Action::Signal { run: 1, signal: 15 })));
        }
    }
}

#[test]
fn a_crash_loop_is_reported_and_starves_nobody() {
    let mut world = World { failing: BTreeSet::from([name("bad")]), ..World::default() };
    world.set(vec![service("bad"), service("good"), requiring("also-good", &["good"])]);
    world.wait(600_000);
    let statuses = world.supervisor.statuses();
    assert_eq!(world.ready(), "also-good good");
    assert!(statuses[1].crash_looping && !statuses[0].crash_looping);
    // Doubling from 0.2 s to 30 s: about 7 quick tries, then two a minute.
    assert!((20..40).contains(&statuses[1].restarts), "{}", statuses[1].restarts);
    assert!(statuses.iter().all(|status| status.name.as_str() == "bad" || status.restarts == 0));
}

#[test]
fn a_dependent_keeps_running_while_its_requirement_restarts() {
    let mut world = World::default();
    world.set(vec![service("etcd"), requiring("api", &["etcd"])]);
    world.take_history();
    let actions = world.end(&name("etcd"), 1, 137);
    world.act(actions);
    world.wait(1000);
    assert_eq!(world.take_history(), "-etcd +etcd");
}

#[test]
fn one_shots_are_ready_by_success() {
    let mut world = World { failing: BTreeSet::from([name("once")]), ..World::default() };
    let once = ServiceSpec { oneshot: true, ..service("once") };
    world.set(vec![once.clone(), requiring("after", &["once"])]);
    assert_eq!(world.ready(), "");
    world.failing.clear();
    world.wait(1000);
    let run = *world.alive.get(&name("once")).unwrap();
    let actions = world.end(&name("once"), run, 0);
    world.act(actions);
    assert_eq!(world.ready(), "after once");
}

fn sets() -> impl Strategy<Value = Vec<ServiceSpec>> {
    // Requirements only go to smaller letters, so there is no circle.
    let one = |index: u8| {
        (any::<bool>(), proptest::collection::vec(any::<bool>(), usize::from(index)), 0..3u64, any::<bool>()).prop_map(
            move |(declared, edges, variant, ready)| {
                let letter = |index: u8| char::from(b'a' + index).to_string();
                let state = if ready { Reached::Ready } else { Reached::Started };
                let requires = (0u8..)
                    .zip(edges)
                    .filter(|(_, edge)| *edge)
                    .map(|(to, _)| Condition { service: name(&letter(to)), state })
                    .collect();
                let cgroup = Cgroup { memory_max: Some(variant), ..service("a").cgroup };
                declared.then(|| ServiceSpec { requires, cgroup, ..service(&letter(index)) })
            },
        )
    };
    (one(0), one(1), one(2), one(3), one(4)).prop_map(|(a, b, c, d, e)| [a, b, c, d, e].into_iter().flatten().collect())
}

/// Names of services out of `a..=e`.
fn some_names() -> impl Strategy<Value = BTreeSet<ServiceName>> {
    proptest::collection::btree_set((0..5u8).prop_map(|index| name(&char::from(b'a' + index).to_string())), 0..3)
}

proptest! {
    // That nobody starts unmet or twice is asserted by the world in each of these.
    #[test]
    fn an_unchanged_set_causes_nothing(specs in sets(), failing in some_names(), wait in 0..100_000u64) {
        let mut world = World { failing, ..World::default() };
        world.set(specs.clone());
        world.wait(wait);
        let before = world.supervisor.statuses();
        let (results, actions) = world.supervisor.set(specs, at(world.now)).unwrap();
        prop_assert_eq!(actions, []);
        prop_assert!(results.iter().all(|result| result.change == Change::Unchanged));
        prop_assert_eq!(world.supervisor.statuses(), before);
    }

    #[test]
    fn the_order_of_a_set_does_not_matter(specs in sets(), failing in some_names()) {
        let mut forward = World { failing: failing.clone(), ..World::default() };
        let mut backward = World { failing, ..World::default() };
        forward.set(specs.clone());
        backward.set(specs.into_iter().rev().collect());
        prop_assert_eq!(forward.supervisor.statuses(), backward.supervisor.statuses());
    }

    #[test]
    fn only_the_last_set_counts(first in sets(), mut last in sets(), deaf in some_names(), wait in 0..20_000u64) {
        // One that runs is not ended because what it stands on is no longer declared.
        let declared: BTreeSet<ServiceName> = last.iter().map(|spec| spec.name.clone()).collect();
        for spec in &mut last {
            spec.requires.retain(|condition| declared.contains(&condition.service));
        }
        let mut world = World { deaf, ..World::default() };
        world.set(first);
        world.wait(wait);
        world.set(last.clone());
        world.wait(200_000);
        let mut direct = World::default();
        direct.set(last);
        prop_assert_eq!(world.ready(), direct.ready());
        prop_assert_eq!(world.alive.keys().collect::<Vec<_>>(), direct.alive.keys().collect::<Vec<_>>());
    }

    #[test]
    fn a_shutdown_ends(specs in sets(), deaf in some_names(), failing in some_names(), wait in 0..20_000u64) {
        let mut world = World { deaf, failing, ..World::default() };
        world.set(specs);
        world.wait(wait);
        world.shut_down();
        // Five services in a row at most, each with its whole grace.
        world.wait(51_000);
        prop_assert!(world.supervisor.is_down(), "{:?}", world.supervisor.statuses());
        prop_assert!(world.alive.is_empty());
    }

    #[test]
    fn no_stop_overtakes_a_dependent(specs in sets(), deaf in some_names()) {
        let mut world = World { deaf, ..World::default() };
        world.set(specs.clone());
        world.take_history();
        world.shut_down();
        world.wait(60_000);
        let ended = std::mem::take(&mut world.history);
        let place = |name: &str| ended.iter().position(|entry| entry.strip_prefix('-') == Some(name));
        for spec in &specs {
            for condition in &spec.requires {
                if let (Some(dependent), Some(requirement)) = (place(spec.name.as_str()), place(condition.service.as_str())) {
                    prop_assert!(dependent < requirement, "{:?}", ended);
                }
            }
        }
    }

    #[test]
    fn failing_services_starve_nobody(specs in sets(), failing in some_names()) {
        let mut world = World { failing: failing.clone(), ..World::default() };
        world.set(specs.clone());
        world.wait(100_000);
        for spec in &specs {
            let stands_alone = spec.requires.is_empty();
            if stands_alone && !failing.contains(&spec.name) {
                prop_assert!(world.alive.contains_key(&spec.name));
            }
        }
    }

    #[test]
    fn specifications_survive_the_wire(specs in sets()) {
        let text = serde_json::to_string(&specs).unwrap();
        prop_assert_eq!(serde_json::from_str::<Vec<ServiceSpec>>(&text).unwrap(), specs);
    }
}

#[test]
fn slices_have_directories() {
    for slice in [Slice::System, Slice::ControlPlane, Slice::Node] {
        assert!(crate::slices::slices(1 << 30).iter().any(|plan| plan.name == slice.directory()));
    }
}
