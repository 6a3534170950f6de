//! All services together.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::spec::{Condition, Reached, ServiceName, ServiceSpec};
use crate::state::{Action, Event, Moment, ProcessEvent, Readiness, Run, Service, ServiceState, Stopping, Then};
use crate::status::{Change, PublicState, ServiceStatus, SetResult};
use crate::step::{deadline, step};
use crate::validate::{InvalidSet, validate_set};

/// What is wanted of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goal {
    /// It is to run.
    Run,
    /// It is to end; its status stays.
    Stop,
    /// It is to end and be forgotten.
    Remove,
}

#[derive(Clone, Debug)]
struct Entry {
    spec: ServiceSpec,
    /// The specification for the next start, while a process of the present one exists.
    next: Option<Box<ServiceSpec>>,
    /// Of the present specification.
    hash: String,
    builtin: bool,
    goal: Goal,
    service: Service,
}

impl Entry {
    fn new(spec: ServiceSpec, builtin: bool, goal: Goal, now: Duration) -> Self {
        let hash = hash(&spec);
        Self { spec, next: None, hash, builtin, goal, service: Service::new(now) }
    }

    fn replace_spec(&mut self, spec: ServiceSpec) {
        self.hash = hash(&spec);
        self.spec = spec;
        self.next = None;
    }

    /// Whether its files can be replaced under it: while it is being set up, the old ones may still be written after the new ones.
    fn takes_files(&self) -> bool {
        !self.service.has_process() || matches!(self.service.state, ServiceState::Running(_))
    }

    fn latest(&self) -> &ServiceSpec {
        self.next.as_deref().unwrap_or(&self.spec)
    }

    /// Whether others must wait for its end. What survives being killed is not waited for.
    fn alive(&self) -> bool {
        self.service.has_process() && !self.service.is_stuck()
    }
}

/// Actions with the services that they are for, in the order in which they are to be carried out.
pub type Actions = Vec<(ServiceName, Action)>;

/// All services of the machine, as values.
#[derive(Clone, Debug, Default)]
pub struct Supervisor {
    entries: BTreeMap<ServiceName, Entry>,
    shutting_down: bool,
    /// What the machine itself still lacks; only built-in services start without it.
    lacking: Option<String>,
}

impl Supervisor {
    /// A supervisor of the built-in services, which no set can touch.
    pub fn new(builtin: Vec<ServiceSpec>, now: Duration) -> Self {
        let entries =
            builtin.into_iter().map(|spec| (spec.name.clone(), Entry::new(spec, true, Goal::Run, now))).collect();
        Self { entries, shutting_down: false, lacking: None }
    }

    /// Replaces all declared services: unknown ones end, changed ones restart, unchanged ones run on.
    ///
    /// # Errors
    /// When a specification is not valid or the requirements go in a circle; then nothing has changed.
    pub fn set(&mut self, specs: Vec<ServiceSpec>, moment: Moment) -> Result<(Vec<SetResult>, Actions), InvalidSet> {
        let builtin = self.entries.iter().filter(|(_, entry)| entry.builtin).map(|(name, _)| name);
        validate_set(&specs, &builtin.cloned().collect::<BTreeSet<_>>())?;
        let mut actions = Vec::new();
        let mut results = Vec::new();
        let declared: BTreeSet<ServiceName> = specs.iter().map(|spec| spec.name.clone()).collect();
        for (name, entry) in &mut self.entries {
            if !entry.builtin && !declared.contains(name) && entry.goal != Goal::Remove {
                entry.goal = Goal::Remove;
                results.push(SetResult { name: name.clone(), change: Change::Removed });
            }
        }
        for spec in specs {
            let name = spec.name.clone();
            let change = self.declare(spec, moment, &mut actions);
            results.push(SetResult { name, change });
        }
        self.settle(moment, &mut actions);
        Ok((results, actions))
    }

    fn declare(&mut self, spec: ServiceSpec, moment: Moment, actions: &mut Actions) -> Change {
        let Some(entry) = self.entries.get_mut(&spec.name) else {
            let goal = if self.shutting_down { Goal::Stop } else { Goal::Run };
            self.entries.insert(spec.name.clone(), Entry::new(spec, false, goal, moment.now));
            return Change::Added;
        };
        let change = compare(entry.latest(), &spec);
        let revived = entry.goal == Goal::Remove;
        if revived {
            entry.goal = if self.shutting_down { Goal::Stop } else { Goal::Run };
        }
        let name = spec.name.clone();
        match change {
            Change::Unchanged if !revived => return change,
            // Only the files differ, so the running process is already described by the new specification.
            Change::Refreshed if !revived && entry.next.is_none() && entry.takes_files() => {
                if entry.service.has_process() {
                    let signal = spec.reload_signal;
                    actions.push((name, Action::Refresh { run: entry.service.history.run, signal }));
                }
                entry.replace_spec(spec);
                return change;
            }
            _ => {}
        }
        if entry.service.has_process() {
            entry.next = Some(Box::new(spec));
        } else {
            entry.replace_spec(spec);
        }
        self.apply(&name, Event::Restart { reason: "its specification changed".to_owned() }, moment, actions);
        if change == Change::Unchanged { Change::Unchanged } else { Change::Restarted }
    }

    /// Says what the machine still lacks (none: nothing) before services that are not built in may start.
    pub fn set_lacking(&mut self, lacking: Option<String>, moment: Moment) -> Actions {
        self.lacking = lacking;
        let mut actions = Vec::new();
        self.settle(moment, &mut actions);
        actions
    }

    /// Brings news of a process.
    pub fn process(&mut self, name: &ServiceName, run: Run, event: ProcessEvent, moment: Moment) -> Actions {
        let mut actions = Vec::new();
        self.apply(name, Event::Process { run, event }, moment, &mut actions);
        self.settle(moment, &mut actions);
        actions
    }

    /// Stops a service and starts it again. False: there is no such service, or the machine is shutting down.
    pub fn restart(&mut self, name: &ServiceName, reason: &str, moment: Moment) -> (bool, Actions) {
        let mut actions = Vec::new();
        let found = !self.shutting_down && self.entries.get(name).is_some_and(|entry| entry.goal == Goal::Run);
        if found {
            self.apply(name, Event::Restart { reason: reason.to_owned() }, moment, &mut actions);
            self.settle(moment, &mut actions);
        }
        (found, actions)
    }

    /// Does what is due by now.
    pub fn tick(&mut self, moment: Moment) -> Actions {
        let mut actions = Vec::new();
        let due: Vec<ServiceName> = self
            .entries
            .iter()
            .filter(|(_, entry)| deadline(&entry.spec, &entry.service).is_some_and(|at| at <= moment.now))
            .map(|(name, _)| name.clone())
            .collect();
        for name in due {
            self.apply(&name, Event::Tick, moment, &mut actions);
        }
        self.settle(moment, &mut actions);
        actions
    }

    /// Ends everything, dependents first and the built-in services last; nothing starts any more.
    pub fn shut_down(&mut self, moment: Moment) -> Actions {
        self.shutting_down = true;
        for entry in self.entries.values_mut() {
            if entry.goal == Goal::Run {
                entry.goal = Goal::Stop;
            }
        }
        let mut actions = Vec::new();
        self.settle(moment, &mut actions);
        actions
    }

    /// Whether [`Self::shut_down`] was called and every process that can be ended has ended.
    pub fn is_down(&self) -> bool {
        self.shutting_down && !self.entries.values().any(Entry::alive)
    }

    /// The next time at which [`Self::tick`] would change something.
    pub fn deadline(&self) -> Option<Duration> {
        self.entries.values().filter_map(|entry| deadline(&entry.spec, &entry.service)).min()
    }

    /// The specification that a service runs with.
    pub fn spec(&self, name: &ServiceName) -> Option<&ServiceSpec> {
        self.entries.get(name).map(|entry| &entry.spec)
    }

    /// The number of a service's last process, for answers that come without one.
    pub fn run(&self, name: &ServiceName) -> Option<Run> {
        self.entries.get(name).map(|entry| entry.service.history.run)
    }

    /// The names of all services.
    pub fn names(&self) -> impl Iterator<Item = &ServiceName> {
        self.entries.keys()
    }

    /// What is known of all services, by name; lines and usage are left for the caller to fill in.
    pub fn statuses(&self) -> Vec<ServiceStatus> {
        self.entries.iter().map(|(name, entry)| self.status(name, entry)).collect()
    }

    fn status(&self, name: &ServiceName, entry: &Entry) -> ServiceStatus {
        let service = &entry.service;
        let missing = match &service.state {
            ServiceState::Waiting => self.missing(&entry.spec),
            _ => Vec::new(),
        };
        let held = matches!(&service.state, ServiceState::Waiting if !entry.builtin).then_some(&self.lacking);
        let waiting_on = held
            .into_iter()
            .flatten()
            .cloned()
            .chain(missing.iter().map(|condition| self.explain(condition)))
            .collect();
        ServiceStatus {
            name: name.clone(),
            state: public(&service.state, missing),
            pid: service.pid(),
            since_ms: milliseconds(service.since),
            restarts: service.history.restarts,
            ready: is_ready(entry),
            crash_looping: service.history.crash_looping(),
            last_exit: service.history.last_exit,
            message: service.history.message.clone(),
            last_lines: Vec::new(),
            waiting_on,
            memory_bytes: None,
            cpu_usec: None,
            spec_hash: entry.hash.clone(),
        }
    }

    fn explain(&self, condition: &Condition) -> String {
        let name = &condition.service;
        match (self.entries.contains_key(name), condition.state) {
            (false, _) => format!("{name}, which is not declared"),
            (true, Reached::Started) => format!("{name} to be started"),
            (true, Reached::Ready) => format!("{name} to be ready"),
        }
    }

    fn missing(&self, spec: &ServiceSpec) -> Vec<Condition> {
        spec.requires.iter().filter(|condition| !self.is_met(condition)).cloned().collect()
    }

    fn is_met(&self, condition: &Condition) -> bool {
        self.entries.get(&condition.service).is_some_and(|entry| match condition.state {
            Reached::Started => matches!(entry.service.state, ServiceState::Running(_)) || is_ready(entry),
            Reached::Ready => is_ready(entry),
        })
    }

    fn apply(&mut self, name: &ServiceName, event: Event, moment: Moment, actions: &mut Actions) {
        let Some(entry) = self.entries.get_mut(name) else { return };
        let (service, more) = step(&entry.spec, entry.service.clone(), event, moment);
        entry.service = service;
        if !entry.service.has_process()
            && let Some(next) = entry.next.take()
        {
            entry.replace_spec(*next);
        }
        actions.extend(more.into_iter().map(|action| (name.clone(), action)));
    }

    /// Starts what can start, ends what must end, forgets what has ended, until nothing changes.
    fn settle(&mut self, moment: Moment, actions: &mut Actions) {
        loop {
            let stop = self.to_stop();
            for name in &stop {
                self.apply(name, Event::Stop { reason: "it is to end".to_owned() }, moment, actions);
            }
            // Only now: what was just stopped no longer meets a requirement.
            let start = self.to_start();
            if stop.is_empty() && start.is_empty() {
                break;
            }
            for name in start {
                self.apply(&name, Event::Start, moment, actions);
            }
        }
        self.entries.retain(|_, entry| entry.goal != Goal::Remove || entry.service.has_process());
    }

    fn to_start(&self) -> Vec<ServiceName> {
        let waits = |entry: &Entry| {
            entry.goal == Goal::Run
                && entry.service.state == ServiceState::Waiting
                && (entry.builtin || self.lacking.is_none())
        };
        self.entries
            .iter()
            .filter(|(_, entry)| waits(entry) && entry.spec.requires.iter().all(|condition| self.is_met(condition)))
            .map(|(name, _)| name.clone())
            .collect()
    }

    fn to_stop(&self) -> Vec<ServiceName> {
        self.entries
            .iter()
            .filter(|(_, entry)| {
                entry.goal != Goal::Run
                    && match &entry.service.state {
                        ServiceState::Waiting | ServiceState::BackOff { .. } => true,
                        ServiceState::Stopping(Stopping { then, .. }) => *then != Then::Rest,
                        ServiceState::Starting(_) | ServiceState::Running(_) => true,
                        ServiceState::Finished | ServiceState::Failed { .. } => false,
                    }
            })
            .filter(|(name, entry)| !entry.alive() || !self.is_needed(name, entry))
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// Whether another service that is to end, but has not, stands on this one.
    fn is_needed(&self, name: &ServiceName, entry: &Entry) -> bool {
        self.entries.iter().any(|(other, dependent)| {
            other != name
                && dependent.goal != Goal::Run
                && dependent.alive()
                && (dependent.spec.requires.iter().any(|condition| condition.service == *name)
                    || (entry.builtin && !dependent.builtin))
        })
    }
}

/// What turning `old` into `new` takes.
fn compare(old: &ServiceSpec, new: &ServiceSpec) -> Change {
    if old == new {
        return Change::Unchanged;
    }
    let takes_files = new.reload_signal.is_some() || new.watches_files;
    let same_but_files = || {
        let mut old = old.clone();
        old.files.clone_from(&new.files);
        old == *new
    };
    if takes_files && same_but_files() { Change::Refreshed } else { Change::Restarted }
}

fn is_ready(entry: &Entry) -> bool {
    match &entry.service.state {
        ServiceState::Running(running) => matches!(running.readiness, Readiness::Ready { .. }),
        ServiceState::Finished => {
            entry.spec.oneshot && entry.service.history.last_exit.is_some_and(crate::exit::Exit::success)
        }
        ServiceState::Waiting
        | ServiceState::Starting(_)
        | ServiceState::Stopping(_)
        | ServiceState::Failed { .. }
        | ServiceState::BackOff { .. } => false,
    }
}

fn public(state: &ServiceState, missing: Vec<Condition>) -> PublicState {
    match state {
        ServiceState::Waiting => PublicState::Waiting { on: missing },
        ServiceState::Starting(_) => PublicState::Starting,
        ServiceState::Running(running) => {
            PublicState::Running { ready: matches!(running.readiness, Readiness::Ready { .. }) }
        }
        ServiceState::Stopping(stopping) => PublicState::Stopping { reason: stopping.reason.clone() },
        ServiceState::Finished => PublicState::Finished,
        ServiceState::Failed { reason } => PublicState::Failed { reason: reason.clone() },
        ServiceState::BackOff { until, reason } => {
            PublicState::BackOff { until_ms: milliseconds(*until), reason: reason.clone() }
        }
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// FNV-1a over the JSON: enough to tell two specifications of one service apart.
fn hash(spec: &ServiceSpec) -> String {
    let text = serde_json::to_vec(spec).unwrap_or_default();
    let hash = text
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{hash:016x}")
}

#[cfg(test)]
#[path = "supervisor_tests.rs"]
pub(crate) mod tests;
