//! Every change of a machine's configuration is a trial: what worked before must work with it in time, or the machine returns to the
//! configuration before it, which is kept until then.
//!
//! A [`Record`] is what must outlast a power cut. Each function here makes the next record of one, and whoever keeps it writes it down
//! before anything follows from it: so at every moment there is a configuration to return to, and a change that has failed is not tried
//! again until it is another one.

use std::collections::{BTreeMap, BTreeSet};

use garboard_api::ClusterSpec;
use garboard_api::condition::{CHANGE_PROVED, Observation};
use garboard_api::machine::{MachineSpec, PoolReference, TrialFailure, TrialState, TrialStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// How often a machine may be restarted in a trial, by whatever cause.
const MAX_RESTARTS: u32 = 3;
/// For how long everything must work without a break, milliseconds.
const STEADY_MS: u64 = 10_000;

/// Names of services' probes begin with this.
const SERVICE: &str = "service ";

/// The probe of the time servers.
pub const TIME_SERVERS: &str = "time servers";

/// What a machine is configured by.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Configuration {
    /// The machine's settings, of all layers.
    pub machine: MachineSpec,
    /// Where each of them comes from.
    pub sources: BTreeMap<String, String>,
    /// The cluster, once it is declared.
    pub cluster: Option<ClusterSpec>,
    /// The pool whose template is among the layers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolReference>,
}

impl Configuration {
    /// Whether a machine is the same with both.
    pub fn is_same(&self, other: &Self) -> bool {
        self.machine == other.machine && self.cluster == other.cluster
    }
}

/// A change that has yet to prove itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Trial {
    /// What is tried.
    pub configuration: Configuration,
    /// The probes that must pass.
    pub required: BTreeSet<String>,
    /// When it began, seconds since 1970.
    pub began: i64,
    /// The start of the machine that its clock belongs to.
    pub boot_id: String,
    /// That clock when the time began to count, milliseconds.
    pub since_ms: u64,
    /// The time that it has, milliseconds.
    pub limit_ms: u64,
    /// When that ends, seconds since 1970, for people.
    pub until: i64,
    /// How often the machine was restarted meanwhile.
    pub restarts: u32,
}

/// A change that has not proved itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Failed {
    /// What was tried.
    pub configuration: Configuration,
    /// What was required of it.
    pub required: BTreeSet<String>,
    /// When it failed, seconds since 1970.
    pub at: i64,
    /// Why, in words.
    pub reason: String,
    /// The probes that did not pass.
    pub failing: Vec<TrialFailure>,
    /// What the services that did not serve said last.
    pub log: Vec<String>,
}

/// What is kept of the changes of a machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Record {
    /// The configuration that has proved itself last.
    pub good: Option<Configuration>,
    /// The probes that passed with it.
    pub proved: BTreeSet<String>,
    /// The change that has yet to.
    pub trial: Option<Trial>,
    /// The change that has not.
    pub failed: Option<Failed>,
}

/// The moment.
#[derive(Clone, Copy, Debug)]
pub struct Now<'a> {
    /// Identifies this start of the machine.
    pub boot_id: &'a str,
    /// Time since then, milliseconds.
    pub ms: u64,
    /// Seconds since 1970.
    pub unix: i64,
}

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Nothing.
    Nothing,
    /// What is in force has proved itself, and it is not known yet what works with it.
    Learn,
    /// There is nothing to return to: what is declared counts without a trial.
    Adopt,
    /// What is declared is what has proved itself before: the change is taken back.
    Withdraw,
    /// A trial begins.
    Begin,
    /// A trial goes on.
    Prove,
}

/// What is to be thought of a trial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on.
    Open,
    /// The change has proved itself.
    Proved,
    /// It has not, for this reason.
    Failed(String),
}

/// Results of probes by name: what passes, and why another does not.
pub type Seen = BTreeMap<String, Result<(), String>>;

/// The name of a service's probe.
pub fn service_probe(service: &str) -> String {
    format!("{SERVICE}{service}")
}

impl Record {
    /// What is due, given what is declared.
    pub fn due(&self, declared: &Configuration) -> Due {
        let is = |configuration: &Configuration| configuration.is_same(declared);
        // A machine that had no cluster did nothing that a cluster could keep it from.
        let Some(good) = self.good.as_ref().filter(|good| good.cluster.is_some() || declared.cluster.is_none()) else {
            return Due::Adopt;
        };
        match &self.trial {
            Some(trial) if is(&trial.configuration) => Due::Prove,
            Some(_) if is(good) => Due::Withdraw,
            Some(_) => Due::Begin,
            None if is(good) && self.failed.is_some() => Due::Withdraw,
            None if is(good) && self.proved.is_empty() => Due::Learn,
            None if is(good) => Due::Nothing,
            None if self.failed.as_ref().is_some_and(|failed| is(&failed.configuration)) => Due::Nothing,
            None => Due::Begin,
        }
    }

    /// What counts, given what is declared.
    pub fn in_force<'a>(&'a self, declared: &'a Configuration) -> &'a Configuration {
        match (&self.good, &self.trial) {
            (None, _) => declared,
            (Some(good), _) if good.cluster.is_none() && declared.cluster.is_some() => declared,
            (Some(_), Some(trial)) if trial.configuration.is_same(declared) => declared,
            (Some(good), _) if good.is_same(declared) => declared,
            (Some(good), _) => good,
        }
    }

    /// The same, with the origins of what is declared now wherever a machine is the same with it: what is no change is not told as one
    /// later. A change of another layer than the pool's leaves the machine with the pool that it has, whatever becomes of it.
    pub fn traced(&self, declared: &Configuration) -> Self {
        let trace = |configuration: &mut Configuration| {
            if configuration.is_same(declared) {
                configuration.clone_from(declared);
            }
        };
        let mut traced = self.clone();
        let Self { good, proved: _, trial, failed } = &mut traced;
        let tried = trial.as_mut().map(|trial| &mut trial.configuration);
        let failed = failed.as_mut().map(|failed| &mut failed.configuration);
        for tried in tried.into_iter().chain(failed) {
            if let Some(good) = good.as_mut().filter(|good| tried.is_same(declared) && tried.pool == good.pool) {
                good.pool.clone_from(&declared.pool);
            }
            trace(tried);
        }
        good.iter_mut().for_each(trace);
        traced
    }

    /// The declared configuration counts without a trial.
    pub fn adopted(&self, declared: Configuration) -> Self {
        Self { good: Some(declared), ..Self::default() }
    }

    /// The change is taken back.
    pub fn withdrawn(&self) -> Self {
        Self { trial: None, failed: None, ..self.clone() }
    }

    /// A trial of what is declared begins; `passing` passes before it. What a change in the middle of a trial must prove is what was
    /// required of that too: the time before is the time before both.
    pub fn begun(&self, declared: Configuration, passing: BTreeSet<String>, now: Now<'_>) -> Self {
        let required = match &self.trial {
            Some(trial) => trial.required.clone(),
            None => passing,
        };
        let seconds = declared.machine.trial.deadline_seconds();
        let trial = Trial {
            configuration: declared,
            required,
            began: now.unix,
            boot_id: now.boot_id.to_owned(),
            since_ms: now.ms,
            limit_ms: u64::from(seconds) * 1000,
            until: now.unix + i64::from(seconds),
            restarts: 0,
        };
        Self { trial: Some(trial), failed: None, ..self.clone() }
    }

    /// What the agent finds when it starts: in another run of the machine the time of a trial counts from its beginning, but a change
    /// with which a machine restarts again and again has failed.
    pub fn resumed(&self, now: Now<'_>) -> Self {
        let Some(trial) = self.trial.as_ref().filter(|trial| trial.boot_id != now.boot_id) else { return self.clone() };
        let restarts = trial.restarts + 1;
        if restarts > MAX_RESTARTS {
            return self.failed(
                &format!("the machine was restarted {restarts} times in the trial"),
                Vec::new(),
                Vec::new(),
                now,
            );
        }
        let (boot_id, since_ms, unix) = (now.boot_id.to_owned(), now.ms, now.unix);
        let until = unix + i64::try_from(trial.limit_ms / 1000).unwrap_or(i64::MAX / 2);
        Self { trial: Some(Trial { boot_id, since_ms, until, restarts, ..trial.clone() }), ..self.clone() }
    }

    /// The trial has more time.
    pub fn extended(&self, seconds: u32) -> Self {
        let extend = |trial: &Trial| Trial {
            limit_ms: trial.limit_ms + u64::from(seconds) * 1000,
            until: trial.until + i64::from(seconds),
            ..trial.clone()
        };
        Self { trial: self.trial.as_ref().map(extend), ..self.clone() }
    }

    /// The change has proved itself, or somebody says so; `passing` passes with it.
    pub fn proved(&self, passing: BTreeSet<String>) -> Self {
        let good = self.trial.as_ref().map(|trial| trial.configuration.clone()).or_else(|| self.good.clone());
        Self { good, proved: passing, trial: None, failed: None }
    }

    /// The change has not proved itself, or somebody says so.
    pub fn failed(&self, reason: &str, failing: Vec<TrialFailure>, log: Vec<String>, now: Now<'_>) -> Self {
        let failed = self.trial.as_ref().map(|trial| Failed {
            configuration: trial.configuration.clone(),
            required: trial.required.clone(),
            at: now.unix,
            reason: reason.to_owned(),
            failing,
            log,
        });
        Self { trial: None, failed, ..self.clone() }
    }
}

impl Trial {
    /// The time that is left, milliseconds; none of it when it is over.
    pub fn left_ms(&self, now: Now<'_>) -> u64 {
        self.limit_ms.saturating_sub(now.ms.saturating_sub(self.since_ms))
    }

    /// What is to be thought of it when `failing` does not pass, or everything has passed for `steady_ms`.
    pub fn verdict(&self, failing: &[TrialFailure], steady_ms: u64, now: Now<'_>) -> Verdict {
        match failing {
            [] if steady_ms >= STEADY_MS => Verdict::Proved,
            // What works at the last moment has the time to go on.
            [] => Verdict::Open,
            _ if self.left_ms(now) > 0 => Verdict::Open,
            _ => Verdict::Failed(format!(
                "after {} seconds something did not work that had worked before",
                self.limit_ms / 1000
            )),
        }
    }

    /// What is required and does not pass. A service that is not declared any more is none, and neither are time servers.
    pub fn failing(&self, seen: &Seen) -> Vec<TrialFailure> {
        let failure = |name: &String| {
            let message = match seen.get(name) {
                Some(Ok(())) => return None,
                None if name.starts_with(SERVICE) || name == TIME_SERVERS => return None,
                Some(Err(message)) => message.clone(),
                None => "there is none any more".to_owned(),
            };
            Some(TrialFailure { probe: name.clone(), message })
        };
        self.required.iter().filter_map(failure).collect()
    }
}

/// Whether all services serve: what works then is what works with a configuration.
pub fn serves(seen: &Seen) -> bool {
    let mut services = seen.iter().filter(|(name, _)| name.starts_with(SERVICE)).peekable();
    services.peek().is_some() && services.all(|(_, result)| result.is_ok())
}

/// Probes that pass.
pub fn passing(seen: &Seen) -> BTreeSet<String> {
    seen.iter().filter(|(_, result)| result.is_ok()).map(|(name, _)| name.clone()).collect()
}

/// What is said of a machine's changes in its status. `failing` is what of the running trial does not pass now.
pub fn status(record: &Record, failing: &[TrialFailure]) -> Option<TrialStatus> {
    let empty = TrialStatus {
        state: TrialState::Proved,
        pool: None,
        since: None,
        until: None,
        required: Vec::new(),
        failing: Vec::new(),
        reason: None,
        log: Vec::new(),
    };
    let names = |names: &BTreeSet<String>| names.iter().cloned().collect();
    match record {
        Record { trial: Some(trial), .. } => Some(TrialStatus {
            state: TrialState::Running,
            pool: trial.configuration.pool.clone(),
            since: time(trial.began),
            until: time(trial.until),
            required: names(&trial.required),
            failing: failing.to_vec(),
            ..empty
        }),
        Record { failed: Some(failed), .. } => Some(TrialStatus {
            state: TrialState::Failed,
            pool: failed.configuration.pool.clone(),
            since: time(failed.at),
            required: names(&failed.required),
            failing: failed.failing.clone(),
            reason: Some(failed.reason.clone()),
            log: failed.log.clone(),
            ..empty
        }),
        Record { good: Some(good), .. } => {
            Some(TrialStatus { pool: good.pool.clone(), required: names(&record.proved), ..empty })
        }
        Record { good: None, .. } => None,
    }
}

/// Whether the latest change has proved itself.
pub fn condition(record: &Record, failing: &[TrialFailure]) -> Observation {
    let observation =
        |holds: Option<bool>, reason, message: String| Observation::new(CHANGE_PROVED, holds, reason, message);
    match record {
        Record { trial: Some(trial), .. } => {
            let until = time(trial.until).map(|time| time.0.to_string()).unwrap_or_default();
            let lacks = match failing {
                [] => "everything works so far".to_owned(),
                failing => format!("does not work yet: {}", words(failing)),
            };
            observation(None, "Trial", format!("the change has until {until} to prove itself; {lacks}"))
        }
        Record { failed: Some(failed), .. } => observation(Some(false), "Returned", told(failed)),
        _ => observation(Some(true), "Proved", "what is in force has proved itself".to_owned()),
    }
}

/// What is to be told of a change that has failed.
pub fn told(failed: &Failed) -> String {
    let lacked = if failed.failing.is_empty() { String::new() } else { format!(": {}", words(&failed.failing)) };
    format!(
        "{}{lacked}; the configuration before the change is in force again, and the change is not tried again until it is another one",
        failed.reason
    )
}

fn words(failing: &[TrialFailure]) -> String {
    failing.iter().map(|TrialFailure { probe, message }| format!("{probe} ({message})")).collect::<Vec<_>>().join(", ")
}

fn time(unix: i64) -> Option<Time> {
    Timestamp::from_second(unix).ok().map(Time)
}

#[cfg(test)]
#[path = "trial_tests.rs"]
mod tests;
