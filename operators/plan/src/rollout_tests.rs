use std::collections::BTreeMap;

use garboard_api::MaxUnavailable;
use garboard_api::condition::{Observation, READY};
use garboard_api::machine::{MachineSpec, TrialFailure};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use proptest::prelude::*;

use super::*;
use crate::pool::{may_follow, status};
use crate::trial::{self, Configuration, Due, Now, Record};

const NOW: Now<'static> = Now { boot_id: "first", ms: 0, unix: 0 };
/// The template that every machine follows at first.
const FIRST: u32 = 100;

/// Something that happens.
#[derive(Clone, Debug)]
enum Happening {
    /// The duty looks.
    Duty,
    /// An agent looks at the pool and does what is due.
    Look(usize),
    /// It tells how it is.
    Tell(usize),
    /// Its trial ends.
    End(usize),
    /// It begins to serve, or does no longer.
    Serve(usize, bool),
    /// It is deleted, or leaves the pool.
    Leave(usize),
    /// The template is changed.
    Change(u32),
    /// Something else of the pool is.
    Pause(bool),
}

fn happenings() -> impl Strategy<Value = Vec<Happening>> {
    let who = || 0usize..6;
    let happening = prop_oneof![
        8 => Just(Happening::Duty),
        8 => who().prop_map(Happening::Look),
        8 => who().prop_map(Happening::Tell),
        6 => who().prop_map(Happening::End),
        2 => (who(), any::<bool>()).prop_map(|(who, serves)| Happening::Serve(who, serves)),
        1 => who().prop_map(Happening::Leave),
        1 => (FIRST..FIRST + 5).prop_map(Happening::Change),
        1 => any::<bool>().prop_map(Happening::Pause),
    ];
    prop::collection::vec(happening, 0..150)
}

/// A machine as its agent runs it.
struct Agent {
    machine: Machine,
    followed: MachinePool,
    record: Record,
    serves: bool,
}

impl Agent {
    fn new(name: usize, pool: &MachinePool) -> Self {
        let mut machine = Machine::new(&format!("node-{name}"), MachineSpec::default());
        machine.metadata.labels = Some(BTreeMap::from([("role".into(), "worker".into())]));
        let record = Record::default().adopted(configuration(pool)).proved(["probe".to_owned()].into());
        let mut agent = Self { machine, followed: pool.clone(), record, serves: true };
        agent.tell();
        agent
    }

    fn look(&mut self, pool: &MachinePool) {
        if may_follow(Some(&self.followed), pool, self.machine.node_name()) {
            self.followed = pool.clone();
        }
        let declared = configuration(&self.followed);
        self.record = self.record.traced(&declared);
        self.record = match self.record.due(&declared) {
            Due::Nothing | Due::Prove => return,
            Due::Withdraw => self.record.withdrawn(),
            Due::Begin => self.record.begun(declared, ["probe".to_owned()].into(), NOW),
            due @ (Due::Adopt | Due::Learn) => panic!("{due:?}"),
        };
    }

    fn end(&mut self, fails: impl Fn(u32) -> bool) {
        let Some(trial) = &self.record.trial else { return };
        let failing = TrialFailure { probe: "probe".into(), message: "no answer".into() };
        self.record = match fails(trial.configuration.machine.kubelet.max_pods()) {
            true => self.record.failed("too late", vec![failing], Vec::new(), NOW),
            false => self.record.proved(["probe".to_owned()].into()),
        };
    }

    fn tell(&mut self) {
        let observation = Observation::new(READY, self.serves, "Reason", "message");
        self.machine.status = Some(MachineStatus {
            fingerprint: Some("sha256:0".to_owned()),
            pool: self.record.in_force(&configuration(&self.followed)).pool.clone(),
            trial: trial::status(&self.record, &[]),
            conditions: condition::merge(&[], [observation], None, &Time(Timestamp::UNIX_EPOCH)),
            ..MachineStatus::default()
        });
    }

    fn name(&self) -> String {
        self.machine.node_name().to_owned()
    }
}

fn configuration(pool: &MachinePool) -> Configuration {
    let name = pool.metadata.name.clone().unwrap();
    Configuration {
        machine: pool.spec.template.spec.clone(),
        sources: BTreeMap::new(),
        cluster: None,
        pool: Some(PoolReference { name, observed_generation: pool.metadata.generation }),
    }
}

struct World {
    pool: MachinePool,
    agents: Vec<Agent>,
    limit: usize,
}

impl World {
    fn new(machines: usize, limit: u32, max_failures: u32) -> Self {
        let mut pool = MachinePool::default();
        pool.metadata.name = Some("workers".into());
        pool.metadata.generation = Some(1);
        pool.spec.selector.match_labels = Some(BTreeMap::from([("role".into(), "worker".into())]));
        pool.spec.template.spec.kubelet.max_pods = Some(FIRST);
        pool.spec.rollout = Rollout { max_unavailable: MaxUnavailable::Machines(limit), max_failures, paused: false };
        let agents = (0..machines).map(|name| Agent::new(name, &pool)).collect();
        let mut world = Self { pool, agents, limit: usize::try_from(limit).unwrap() };
        world.duty();
        world
    }

    fn edit(&mut self, edit: impl Fn(&mut MachinePool)) {
        let before = self.pool.spec.clone();
        edit(&mut self.pool);
        if self.pool.spec != before {
            self.pool.metadata.generation = self.pool.metadata.generation.map(|generation| generation + 1);
        }
    }

    fn change(&mut self, template: u32) {
        self.edit(|pool| pool.spec.template.spec.kubelet.max_pods = Some(template));
    }

    /// Writes what the duty would, and says which machines are named that were not before.
    fn duty(&mut self) -> Vec<String> {
        let nodes = self.agents.iter().map(|agent| agent.machine.node_name()).collect();
        let machines = self.agents.iter().map(|agent| &agent.machine);
        let next = status(&self.pool, machines, &nodes, &Time(Timestamp::UNIX_EPOCH));
        let before = self.named();
        self.pool.status = Some(next);
        self.named().into_iter().filter(|name| !before.contains(name)).collect()
    }

    fn named(&self) -> Vec<String> {
        let rollout = self.pool.status.as_ref().and_then(|status| status.rollout.as_ref());
        rollout.map(|rollout| rollout.machines.clone()).unwrap_or_default()
    }

    /// The template that each machine tries.
    fn tried(&self) -> Vec<Option<u32>> {
        let tried = |agent: &Agent| Some(agent.record.trial.as_ref()?.configuration.machine.kubelet.max_pods());
        self.agents.iter().map(tried).collect()
    }

    fn is_away(&self, agent: &Agent) -> bool {
        let member = Member::new(&agent.machine, true);
        !member.is_ready() || member.is_on_trial() || self.named().iter().any(|name| name == member.name())
    }

    fn happen(&mut self, happening: &Happening, fails: impl Fn(usize, u32) -> bool) {
        let count = self.agents.len();
        let agent = |who: &usize| (count > 0).then(|| who % count);
        match happening {
            Happening::Duty => drop(self.duty()),
            Happening::Change(template) => self.change(*template),
            Happening::Pause(paused) => self.edit(|pool| pool.spec.rollout.paused = *paused),
            Happening::Leave(who) => drop(agent(who).map(|who| self.agents.remove(who))),
            Happening::Look(who) | Happening::Tell(who) | Happening::End(who) | Happening::Serve(who, _) => {
                let Some(who) = agent(who) else { return };
                let agent = &mut self.agents[who];
                match happening {
                    Happening::Look(_) => agent.look(&self.pool),
                    Happening::Tell(_) => agent.tell(),
                    Happening::Serve(_, serves) => agent.serves = *serves,
                    _ => agent.end(|template| fails(who, template)),
                }
            }
        }
    }

    /// Everybody does what is due, until nothing changes.
    fn settle(&mut self, fails: impl Fn(usize, u32) -> bool) {
        for _ in 0..100 {
            let before = self.pool.status.clone();
            for (who, agent) in self.agents.iter_mut().enumerate() {
                agent.look(&self.pool);
                agent.end(|template| fails(who, template));
                agent.look(&self.pool);
                agent.tell();
            }
            self.duty();
            if self.pool.status == before {
                return;
            }
        }
        panic!("it does not come to an end: {:?}", self.pool.status);
    }

    fn reason(&self) -> &str {
        let status = self.pool.status.as_ref().unwrap();
        &condition::find(&status.conditions, READY).unwrap().reason
    }
}

proptest! {
    #[test]
    fn never_more_machines_try_than_may(
        limit in 1u32..4, max_failures in 1u32..3, bad in prop::collection::btree_set((0usize..6, FIRST..FIRST + 5), 0..12), happenings in happenings()
    ) {
        let mut world = World::new(6, limit, max_failures);
        let fails = |who: usize, template: u32| bad.contains(&(who, template));
        for happening in &happenings {
            if let Happening::Duty = happening {
                let serve: Vec<_> = world.agents.iter().filter(|agent| !world.is_away(agent)).map(Agent::name).collect();
                let (paused, named) = (world.pool.spec.rollout.paused, world.duty());
                prop_assert!(!paused || named.is_empty(), "paused: {:?}", named);
                let away = world.agents.iter().filter(|agent| world.is_away(agent)).count();
                let one_served = named.iter().any(|name| serve.contains(name));
                prop_assert!(!one_served || away <= world.limit, "{} are away, and {:?} are named", away, named);
            } else {
                let trying = world.tried();
                world.happen(happening, fails);
                let begins = matches!(happening, Happening::Look(_)) && world.tried().iter().zip(&trying).any(|(now, before)| now.is_some() && now != before);
                prop_assert!(!begins || !world.pool.spec.rollout.paused, "one begins while it is paused");
            }
            prop_assert!(world.named().len() <= world.limit, "{:?}", world.named());
            let trying = world.tried().iter().flatten().count();
            prop_assert!(trying <= world.limit, "{} try", trying);
        }
    }

    #[test]
    fn what_works_reaches_every_machine_whatever_was_before(
        limit in 1u32..4, max_failures in 1u32..3, bad in prop::collection::btree_set((0usize..6, FIRST..FIRST + 5), 0..12), happenings in happenings()
    ) {
        let mut world = World::new(6, limit, max_failures);
        for happening in &happenings {
            world.happen(happening, |who, template| bad.contains(&(who, template)));
        }
        world.agents.iter_mut().for_each(|agent| agent.serves = true);
        world.edit(|pool| pool.spec.rollout.paused = false);
        world.change(FIRST + 9);
        world.settle(|_, _| false);
        prop_assert!(world.agents.iter().all(|agent| agent.record.good.as_ref().unwrap().machine.kubelet.max_pods() == FIRST + 9));
        prop_assert_eq!(world.reason(), if world.agents.is_empty() { "NoMachines" } else { "Updated" });
        prop_assert_eq!(world.named(), Vec::<String>::new());
    }

    /// What fails everywhere is tried by as many as may fail, and by those that began beside the last of them.
    #[test]
    fn what_fails_stops_and_is_not_tried_again(limit in 1u32..4, max_failures in 1u32..4, away in prop::collection::btree_set(0usize..6, 0..6)) {
        let mut world = World::new(6, limit, max_failures);
        for who in away {
            world.agents[who].serves = false;
            world.agents[who].tell();
        }
        world.change(FIRST + 1);
        world.settle(|_, _| true);
        let failures = |world: &World| world.agents.iter().filter(|agent| agent.record.failed.is_some()).count();
        let failed = failures(&world);
        prop_assert!(u32::try_from(failed).unwrap() < max_failures + limit, "{} failed", failed);
        // Those that serve are kept back by more that do not.
        prop_assert!(world.reason() == "Stopped" || world.agents.iter().any(|agent| !agent.serves));
        world.edit(|pool| pool.spec.rollout.paused = true);
        world.edit(|pool| pool.spec.rollout.paused = false);
        world.settle(|_, _| true);
        prop_assert_eq!(failures(&world), failed, "another generation is no other template");

        // Back to what it was: nothing is tried, and nothing is left to be told.
        world.agents.iter_mut().for_each(|agent| agent.serves = true);
        world.change(FIRST);
        world.settle(|_, _| true);
        prop_assert_eq!((failures(&world), world.reason()), (0, "Updated"));
    }
}

/// A machine that leaves does not hold up the others, not even when it was the one that tries.
#[test]
fn a_machine_that_leaves_in_the_middle_blocks_nobody() {
    let mut world = World::new(3, 1, 1);
    world.change(FIRST + 1);
    assert_eq!(world.duty(), ["node-0"]);
    world.agents[0].look(&world.pool);
    world.agents[0].tell();
    assert_eq!(world.duty(), Vec::<String>::new());
    world.agents.remove(0);
    assert_eq!(world.duty(), ["node-1"]);
    world.settle(|_, _| false);
    assert_eq!(world.reason(), "Updated");
}

/// The template mends a machine that does not serve, and others that it cannot mend do not keep it from there.
#[test]
fn a_machine_that_the_template_mends_is_reached() {
    let mut world = World::new(4, 1, 1);
    for who in 0..3 {
        world.agents[who].serves = false;
        world.agents[who].tell();
    }
    world.change(FIRST + 1);
    for who in 0..3 {
        assert_eq!(world.duty(), [format!("node-{who}")]);
        world.agents[who].look(&world.pool);
        world.agents[who].end(|_| false);
        world.agents[who].serves = who == 2;
        world.agents[who].tell();
    }
    assert_eq!(world.duty(), Vec::<String>::new(), "the one that serves is kept back");
    for who in 0..2 {
        world.agents[who].serves = true;
        world.agents[who].tell();
    }
    assert_eq!(world.duty(), ["node-3"]);
}
