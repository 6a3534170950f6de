//! Carries out trials: what is declared comes in, what is in force goes out.
//!
//! [`Trials`] asks what works before a change and with it ([`probes`]), and records each step in the ledger before anything follows from
//! it. An agent or a machine that ends at any moment goes on from the record.

pub mod probes;

use std::time::{Duration, SystemTime};

use garboard_api::About;
use garboard_api::condition::Observation;
use garboard_api::machine::{TrialFailure, TrialStatus};
use garboard_catalog::containerd;
use garboard_plan::events::Notable;
use garboard_plan::trial::{self as plan, Configuration, Due, Now, Record, Verdict};
use garboard_runtime::applier::chain;
use garboard_runtime::backoff::after;
use garboard_runtime::ledger::Ledger;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use self::probes::Probes;
use crate::events;
use crate::problems::Problems;

/// Name of the record in the ledger, and of what problems are about.
const RECORD: &str = "trial";
/// Time between two looks in a trial.
const LOOK: Duration = Duration::from_secs(2);
/// Time between two looks at a machine of which it is not known yet what works.
const LEARN: Duration = Duration::from_secs(10);
/// The record could not be written: everything stays as it is until it can.
const RETRY: Duration = Duration::from_secs(5);
/// Most lines of logs that are kept of a change that has failed.
const LINES: usize = 20;

/// What somebody decides about the running trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The change has proved itself.
    Confirm,
    /// It has not.
    Abort,
    /// It has so many seconds more.
    Extend(u32),
}

/// A decision, and where to say what became of it.
#[derive(Debug)]
pub struct Decide {
    /// What is decided.
    pub decision: Decision,
    /// Who decides.
    pub who: String,
    /// Nothing, or why nothing was done.
    pub reply: oneshot::Sender<Result<(), String>>,
}

/// What is in force, and how the latest change is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InForce {
    /// What counts; none before anything is declared.
    pub configuration: Option<Configuration>,
    record: Record,
    failing: Vec<TrialFailure>,
}

impl InForce {
    /// For the status.
    pub fn status(&self) -> Option<TrialStatus> {
        plan::status(&self.record, &self.failing)
    }

    /// For the conditions.
    pub fn condition(&self) -> Observation {
        plan::condition(&self.record, &self.failing)
    }
}

/// The time since the machine was started.
type Clock = Box<dyn Fn() -> Duration + Send + Sync>;

/// The record could not be written down; it is told as a problem.
#[derive(Debug)]
struct NotKept;

/// The task that carries out trials.
pub struct Trials {
    ledger: Ledger,
    record: Record,
    boot_id: String,
    clock: Clock,
    declared: watch::Receiver<Option<Configuration>>,
    in_force: watch::Sender<InForce>,
    notables: mpsc::Sender<Notable>,
    problems: Problems,
    /// What of the running trial does not work.
    failing: Vec<TrialFailure>,
    /// Since when everything does, as [`Now::ms`].
    steady: Option<u64>,
}

impl std::fmt::Debug for Trials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trials").finish_non_exhaustive()
    }
}

impl Trials {
    /// Prepares the task and the channel on which it publishes what is in force: at once, of what is declared already.
    ///
    /// `clock` tells the time since the machine's start of this `boot_id`, suspended time included. A record that cannot be read is as good as
    /// none: what is declared counts then, as on a new machine.
    pub fn new(
        ledger: Ledger,
        boot_id: &str,
        clock: impl Fn() -> Duration + Send + Sync + 'static,
        declared: watch::Receiver<Option<Configuration>>,
        notables: mpsc::Sender<Notable>,
        problems: Problems,
    ) -> (Self, watch::Receiver<InForce>) {
        let kept: Record = ledger
            .read(RECORD)
            .unwrap_or_else(|error| {
                warn!(error = chain(&error), "what was on trial is not known any more");
                None
            })
            .unwrap_or_default();
        let record = kept.resumed(now(boot_id, clock()));
        let configuration = declared.borrow().as_ref().map(|declared| record.in_force(declared).clone());
        let in_force = InForce { configuration, record: record.clone(), failing: Vec::new() };
        let (in_force, receiver) = watch::channel(in_force);
        let differs = record != kept;
        let mut trials = Self {
            ledger,
            record: kept,
            boot_id: boot_id.to_owned(),
            clock: Box::new(clock),
            declared,
            in_force,
            notables,
            problems,
            failing: Vec::new(),
            steady: None,
        };
        if differs {
            // A failure is told as a problem; the next step is written with what this one had changed.
            let _ = trials.keep(record);
        }
        (trials, receiver)
    }

    /// Carries out trials until `stop`.
    #[tracing::instrument(name = "trial", skip_all)]
    pub async fn run(mut self, mut probes: Probes, mut decisions: mpsc::Receiver<Decide>, stop: CancellationToken) {
        let started = async { probes.services.wait_for(|services| !services.is_empty()).await.map(drop) };
        let Some(Ok(())) = stop.run_until_cancelled(started).await else { return };
        // On a machine that has just been started nothing works yet; what must is what did.
        let mut fresh = !probes.services.borrow().iter().any(|status| status.name.as_str() == containerd::NAME);
        loop {
            let declared = self.declared.borrow_and_update().clone();
            let wait = match declared {
                Some(declared) => {
                    // What is written is written before anything follows from it, so a look may be broken off anywhere.
                    let looked = stop.run_until_cancelled(self.look(declared, &probes, fresh)).await;
                    let Some(wait) = looked else { return };
                    fresh = false;
                    wait
                }
                None => None,
            };
            // Cancel-safe: each arm only waits, or takes what it returns.
            tokio::select! {
                () = stop.cancelled() => return,
                Ok(()) = self.declared.changed() => {}
                Some(decide) = decisions.recv() => self.decide(decide),
                () = after(wait) => {}
            }
        }
    }

    /// Does what is due, and returns when to look again.
    async fn look(&mut self, declared: Configuration, probes: &Probes, fresh: bool) -> Option<Duration> {
        let wait = self.step(&declared, probes, fresh).await;
        self.publish(&declared);
        wait.unwrap_or(Some(RETRY))
    }

    async fn step(
        &mut self,
        declared: &Configuration,
        probes: &Probes,
        fresh: bool,
    ) -> Result<Option<Duration>, NotKept> {
        let traced = self.record.traced(declared);
        if traced != self.record {
            self.keep(traced)?;
        }
        match self.record.due(declared) {
            Due::Nothing => Ok(None),
            Due::Learn => self.learn(declared, probes).await,
            Due::Adopt => self.keep(self.record.adopted(declared.clone())).map(|()| Some(LEARN)),
            Due::Withdraw => {
                info!("the change is taken back");
                self.keep(self.record.withdrawn()).map(|()| Some(LEARN))
            }
            Due::Begin => self.begin(declared, probes, fresh).await.map(|()| Some(LOOK)),
            Due::Prove => self.prove(declared, probes).await,
        }
    }

    async fn learn(&mut self, declared: &Configuration, probes: &Probes) -> Result<Option<Duration>, NotKept> {
        let seen = probes.ask(&declared.machine.trial).await;
        if !plan::serves(&seen) {
            return Ok(Some(LEARN));
        }
        self.keep(self.record.proved(plan::passing(&seen))).map(|()| None)
    }

    async fn begin(&mut self, declared: &Configuration, probes: &Probes, fresh: bool) -> Result<(), NotKept> {
        let passing = match fresh {
            true => self.record.proved.clone(),
            false => plan::passing(&probes.ask(&declared.machine.trial).await),
        };
        self.keep(self.record.begun(declared.clone(), passing, self.now()))?;
        (self.failing, self.steady) = (Vec::new(), None);
        let seconds = declared.machine.trial.deadline_seconds();
        self.tell(false, "TrialBegun", format!("the change has {seconds} seconds to prove itself"));
        Ok(())
    }

    async fn prove(&mut self, declared: &Configuration, probes: &Probes) -> Result<Option<Duration>, NotKept> {
        let seen = probes.ask(&declared.machine.trial).await;
        let now = now(&self.boot_id, (self.clock)());
        let Some(trial) = &self.record.trial else { return Ok(Some(LOOK)) };
        self.failing = trial.failing(&seen);
        self.steady = self.failing.is_empty().then(|| self.steady.unwrap_or(now.ms));
        let steady_ms = self.steady.map_or(0, |since| now.ms - since);
        match trial.verdict(&self.failing, steady_ms, now) {
            Verdict::Open => Ok(Some(LOOK)),
            Verdict::Proved => {
                self.keep(self.record.proved(plan::passing(&seen)))?;
                self.tell(false, "TrialProved", "the change has proved itself".to_owned());
                Ok(None)
            }
            Verdict::Failed(reason) => self.fail(&reason, self.failing.clone(), probes.log()).map(|()| None),
        }
    }

    fn fail(&mut self, reason: &str, failing: Vec<TrialFailure>, mut log: Vec<String>) -> Result<(), NotKept> {
        log.drain(..log.len().saturating_sub(LINES));
        self.keep(self.record.failed(reason, failing, log, self.now()))?;
        if let Some(failed) = &self.record.failed {
            self.tell(true, "TrialFailed", plan::told(failed));
        }
        Ok(())
    }

    fn decide(&mut self, Decide { decision, who, reply }: Decide) {
        let outcome = if self.record.trial.is_none() {
            Err("no change is on trial".to_owned())
        } else {
            info!(?decision, who, "decided");
            let done = match decision {
                Decision::Confirm => self.keep(self.record.proved(self.record.proved.clone())),
                Decision::Extend(seconds) => self.keep(self.record.extended(seconds)),
                Decision::Abort => self.fail(&format!("{who} has ended the trial"), Vec::new(), Vec::new()),
            };
            done.map_err(|NotKept| "the ledger cannot be written".to_owned())
        };
        // Whoever asked may be gone. What follows from the decision is done by the next look.
        let _ = reply.send(outcome);
    }

    /// Writes the record down. Nothing follows from one that could not be written.
    fn keep(&mut self, record: Record) -> Result<(), NotKept> {
        let written = self.ledger.write(RECORD, &record);
        self.problems.set(RECORD, written.as_ref().err().map(|error| chain(error)));
        written.map(|()| self.record = record).map_err(|error| {
            error!(error = chain(&error), "the configuration stays as it is");
            NotKept
        })
    }

    fn now(&self) -> Now<'_> {
        now(&self.boot_id, (self.clock)())
    }

    fn publish(&self, declared: &Configuration) {
        let next = InForce {
            configuration: Some(self.record.in_force(declared).clone()),
            record: self.record.clone(),
            failing: self.failing.clone(),
        };
        self.in_force.send_if_modified(|in_force| {
            let differs = *in_force != next;
            *in_force = next;
            differs
        });
    }

    fn tell(&self, warning: bool, reason: &'static str, note: String) {
        match warning {
            true => warn!(reason, note, "trial"),
            false => info!(reason, note, "trial"),
        }
        events::hand_over(&self.notables, Notable { about: About::Machine, warning, reason, note });
    }
}

fn now(boot_id: &str, since_boot: Duration) -> Now<'_> {
    let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let ms = u64::try_from(since_boot.as_millis()).unwrap_or(u64::MAX);
    Now { boot_id, ms, unix: i64::try_from(unix).unwrap_or(i64::MAX) }
}
