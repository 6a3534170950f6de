//! A machine with a disk, of which everything else is new after each start.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use garboard_api::machine::{MachineSpec, MachineTrial, TrialState};
use garboard_controllers::network::NodeAddresses;
use garboard_controllers::problems::Problems;
use garboard_controllers::time::TimeView;
use garboard_controllers::trial::probes::Probes;
use garboard_controllers::trial::{Decide, Decision, InForce, Trials};
use garboard_plan::trial::{Configuration, Record};
use garboard_runtime::ledger::Ledger;
use garboard_supervisor::spec::ServiceSpec;
use garboard_supervisor::status::{PublicState, ServiceStatus};
use garboard_supervisor::testing::status;
use garboard_sys::durable::power::Supply;
use serde_json::json;
use tempfile::TempDir;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::DEADLINE;

/// Longest time between two starts, of the runtime's.
const LIMIT: Duration = Duration::from_secs(3600);
const SERVICE: &str = "etcd";

/// A configuration that differs from those of other numbers.
pub fn configuration(number: u32) -> Configuration {
    let mut machine = MachineSpec { hostname: Some(format!("host-{number}")), ..MachineSpec::default() };
    machine.trial = MachineTrial { deadline_seconds: Some(DEADLINE), probes: Vec::new() };
    Configuration { machine, sources: BTreeMap::new(), cluster: None, pool: None }
}

fn number(of: &Configuration) -> u32 {
    (0..3).find(|number| configuration(*number).is_same(of)).expect("a configuration that was declared, and no mixture")
}

/// What the machine says of itself.
pub struct Seen {
    pub in_force: Option<u32>,
    pub state: Option<TrialState>,
    pub knows_what_works: bool,
}

impl Seen {
    fn of(in_force: &InForce) -> Self {
        let status = in_force.status();
        Self {
            in_force: in_force.configuration.as_ref().map(number),
            state: status.as_ref().map(|status| status.state),
            knows_what_works: status.is_some_and(|status| !status.required.is_empty()),
        }
    }
}

/// What somebody does.
pub enum Action {
    Wait,
    Declare(u32),
    Decide(Decision),
    Restart,
    End,
}

/// How a run of the machine ends.
#[derive(PartialEq)]
enum End {
    Dark,
    Restart,
    Story,
}

pub struct Machine {
    disk: TempDir,
    boots: u32,
    /// What the cluster has declared, one after the other.
    declared: Vec<u32>,
    /// Whether a decision was taken and answered.
    answered: bool,
}

impl Machine {
    pub fn new() -> Self {
        // In memory: what is flushed again and again need not wait for a disk.
        Self { disk: tempfile::tempdir_in("/dev/shm").unwrap(), boots: 0, declared: vec![0], answered: false }
    }

    pub fn boots(&self) -> u32 {
        self.boots
    }

    pub fn has_declared(&self, number: u32) -> bool {
        self.declared.contains(&number)
    }

    pub fn has_declared_again(&self, number: u32) -> bool {
        self.declared[1..].contains(&number)
    }

    pub fn was_answered(&self) -> bool {
        self.answered
    }

    /// What is on the disk.
    pub fn record(&self) -> Option<Record> {
        self.ledger().read("trial").unwrap()
    }

    fn ledger(&self) -> Ledger {
        Ledger::new(self.disk.path())
    }

    /// Runs until the story ends, with a power cut after so many steps; says whether there were so many.
    pub fn live(
        &mut self,
        story: impl Fn(&Seen, &Self) -> Action,
        works_after: impl Fn(u32) -> Option<u32>,
        cut: usize,
    ) -> bool {
        let mut supply = Some(Supply::cut(self.disk.path(), cut));
        let mut gone = false;
        loop {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
            let run = async { timeout(LIMIT, self.run(&story, &works_after)).await };
            match runtime.block_on(run).unwrap_or_else(|_| panic!("cut {cut}: no end of the story")) {
                End::Story => return gone,
                End::Restart => {}
                End::Dark => {
                    assert!(supply.take().is_some_and(|supply| supply.has_gone()), "the ledger cannot be written");
                    gone = true;
                }
            }
            self.boots += 1;
        }
    }

    /// From a start of the machine to its end.
    async fn run(&mut self, story: &impl Fn(&Seen, &Self) -> Action, works_after: &impl Fn(u32) -> Option<u32>) -> End {
        let began = Instant::now();
        let (declared, declared_seen) = watch::channel(Some(configuration(*self.declared.last().unwrap())));
        let (notables, mut told) = mpsc::channel(64);
        let (problems, mut listed) = Problems::new();
        let failed = self.record().and_then(|record| record.failed).map(|failed| failed.configuration);
        let boot_id = format!("boot-{}", self.boots);
        let clock = move || began.elapsed();
        let (trials, mut in_force) = Trials::new(self.ledger(), &boot_id, clock, declared_seen, notables, problems);
        let (services, services_seen) = watch::channel(services(false));
        let (decide, decisions) = mpsc::channel(1);
        let stop = CancellationToken::new();
        let trials = trials.run(probes(services_seen), decisions, stop);
        let mut follow = in_force.clone();
        let serve = async {
            loop {
                let number = follow.borrow_and_update().configuration.as_ref().map(number);
                services.send_replace(self::services(false));
                let ready = async {
                    match number.and_then(works_after) {
                        Some(seconds) => sleep(Duration::from_secs(seconds.into())).await,
                        None => std::future::pending().await,
                    }
                    services.send_replace(self::services(true));
                    std::future::pending::<()>().await;
                };
                tokio::select! {
                    () = ready => {}
                    changed = follow.wait_for(|now| now.configuration.as_ref().map(self::number) != number) => { changed.unwrap(); }
                }
            }
        };
        let act = async {
            loop {
                let seen = Seen::of(&in_force.borrow_and_update());
                if let Some(number) = seen.in_force {
                    self.is_written(number);
                }
                match story(&seen, self) {
                    Action::Wait => {}
                    Action::Declare(number) => {
                        self.declared.push(number);
                        declared.send_replace(Some(configuration(number)));
                    }
                    Action::Decide(decision) => {
                        assert!(!self.answered, "what was answered is forgotten");
                        let (reply, answer) = oneshot::channel();
                        decide.send(Decide { decision, who: "somebody".to_owned(), reply }).await.unwrap();
                        self.answered = answer.await.unwrap().is_ok();
                    }
                    Action::Restart => return End::Restart,
                    Action::End => return End::Story,
                }
                in_force.changed().await.unwrap();
            }
        };
        let end = tokio::select! {
            biased;
            _ = listed.wait_for(|listed| listed.contains_key("trial")) => End::Dark,
            end = act => end,
            () = trials => panic!("the task has ended"),
            () = serve => End::Dark,
        };
        // Of another configuration a trial may have begun, but not of one that had failed before.
        let begun = std::iter::from_fn(|| told.try_recv().ok()).any(|notable| notable.reason == "TrialBegun");
        let again = failed.is_some_and(|failed| failed.is_same(&configuration(*self.declared.last().unwrap())));
        assert!(!(begun && again), "what had failed was tried again");
        end
    }

    /// Nothing is in force that is not on the disk: as what has proved itself, or as what is on trial and can be left for that.
    fn is_written(&self, number: u32) {
        let Some(record) = self.record() else {
            assert_eq!((number, self.declared.as_slice()), (0, &[0][..]), "a new machine is what is declared");
            return;
        };
        let good = record.good.as_ref().map(self::number).expect("a configuration to return to");
        let tried = record.trial.as_ref().map(|trial| self::number(&trial.configuration));
        assert!(number == good || Some(number) == tried, "{number} is in force, and not written: {record:?}");
    }
}

fn services(ready: bool) -> Arc<Vec<ServiceStatus>> {
    Arc::new(vec![status(SERVICE, PublicState::Running { ready })])
}

fn probes(services: watch::Receiver<Arc<Vec<ServiceStatus>>>) -> Probes {
    let spec = json!({ "name": SERVICE, "argv": ["/bin/etcd"], "cgroup": { "slice": "system" } });
    let specs: Vec<ServiceSpec> = vec![serde_json::from_value(spec).unwrap()];
    Probes {
        network: watch::channel(NodeAddresses::default()).1,
        api: watch::channel(None).1,
        specs: watch::channel(Arc::new(specs)).1,
        services,
        peers: watch::channel(Arc::default()).1,
        time: watch::channel(TimeView::default()).1,
    }
}
