//! The state machine of one service.

use std::time::Duration;

use crate::exit::Exit;
use crate::spec::{Probe, ProbeAction, RestartPolicy, ServiceSpec};
use crate::state::{
    Action, Effort, Event, Moment, Next, Notification, ProbeKind, ProcessEvent, Readiness, Running, Schedule, Service,
    ServiceState, Starting, Stopping, Then,
};

/// Time between two attempts to kill what does not end.
pub const KILL_AGAIN: Duration = Duration::from_secs(10);

/// Shortest time between two readiness probes of a service that is not ready yet.
const EAGER_PROBE: Duration = Duration::from_millis(50);

/// Time beyond a probe's own timeout after which its answer is given up.
const PROBE_SLACK: Duration = Duration::from_secs(1);

/// A watchdog's end that is noticed this late was missed by the whole machine, as one that its hypervisor paused: not by the service.
const STOOD_STILL: Duration = Duration::from_secs(2);

/// What `event` makes of `service`, and what is to be done. Events that do not fit the state, or concern an earlier process, change
/// nothing.
pub fn step(spec: &ServiceSpec, mut service: Service, event: Event, moment: Moment) -> (Service, Vec<Action>) {
    let before = label(&service.state);
    let mut actions = Vec::new();
    let state = std::mem::replace(&mut service.state, ServiceState::Waiting);
    service.state = Step { spec, service: &mut service, actions: &mut actions, moment }.advance(state, event);
    if label(&service.state) != before {
        service.since = moment.now;
    }
    (service, actions)
}

/// The next time at which [`Event::Tick`] would change something.
pub fn deadline(spec: &ServiceSpec, service: &Service) -> Option<Duration> {
    match &service.state {
        ServiceState::Waiting | ServiceState::Finished | ServiceState::Failed { .. } => None,
        ServiceState::Starting(starting) => Some(starting.ready_by),
        ServiceState::BackOff { until, .. } => Some(*until),
        ServiceState::Stopping(Stopping { effort, .. }) => Some(match *effort {
            Effort::Asked { kill_at } => kill_at,
            Effort::Killed { again_at, .. } => again_at,
        }),
        ServiceState::Running(running) => {
            let readiness = match running.readiness {
                Readiness::Pending { by } => Some(by),
                Readiness::Ready { since } => (service.history.failures > 0).then(|| since + stable_after(spec)),
                Readiness::Lost => None,
            };
            let probes = [running.readiness_probe, running.liveness_probe].map(|s| s.next.map(Next::at));
            [readiness, running.watchdog_by, probes[0], probes[1]].into_iter().flatten().min()
        }
    }
}

/// The wait before the next start, after `failures` (1 or more) unasked ends in a row: doubled each time from the first wait, spread by
/// a quarter to both sides, never above the limit.
pub fn backoff(initial_ms: u64, max_ms: u64, failures: u32, jitter: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(32);
    let base = initial_ms.saturating_mul(1 << doublings).min(max_ms);
    let spread = base - base / 4 + (base / 2).saturating_mul(u64::from(jitter.min(1000))) / 1000;
    Duration::from_millis(spread.min(max_ms))
}

fn stable_after(spec: &ServiceSpec) -> Duration {
    Duration::from_millis(spec.restart.reset_after_ms)
}

/// What a person would call another state.
fn label(state: &ServiceState) -> (u8, Option<bool>) {
    match state {
        ServiceState::Waiting => (0, None),
        ServiceState::Starting(_) => (1, None),
        ServiceState::Running(running) => (2, Some(matches!(running.readiness, Readiness::Ready { .. }))),
        ServiceState::Stopping(_) => (3, None),
        ServiceState::Finished => (4, None),
        ServiceState::Failed { .. } => (5, None),
        ServiceState::BackOff { .. } => (6, None),
    }
}

struct Step<'a> {
    spec: &'a ServiceSpec,
    service: &'a mut Service,
    actions: &'a mut Vec<Action>,
    moment: Moment,
}

impl Step<'_> {
    fn advance(&mut self, state: ServiceState, event: Event) -> ServiceState {
        match event {
            Event::Start => self.start(state),
            Event::Stop { reason } => self.stop(state, reason, Then::Rest),
            Event::Restart { reason } => {
                self.service.history.failures = 0;
                self.stop(state, reason, Then::Start)
            }
            Event::Tick => self.tick(state),
            Event::Process { run, event } if run == self.service.history.run => self.process(state, event),
            Event::Process { .. } => state,
        }
    }

    fn start(&mut self, state: ServiceState) -> ServiceState {
        let ServiceState::Waiting = state else { return state };
        let history = &mut self.service.history;
        history.run += 1;
        history.message.clear();
        self.actions.push(Action::Launch { run: history.run });
        let ready_by = self.moment.now + Duration::from_millis(self.spec.start_timeout_ms);
        ServiceState::Starting(Starting { pid: None, ready_by, error: None })
    }

    fn stop(&mut self, state: ServiceState, reason: String, then: Then) -> ServiceState {
        match state {
            ServiceState::Starting(Starting { pid, .. }) => self.ask_to_end(pid, reason, then),
            ServiceState::Running(Running { pid, .. }) => self.ask_to_end(Some(pid), reason, then),
            // A later order wins over what was to come after: a rest over a start, and a start over a wait.
            ServiceState::Stopping(stopping) => ServiceState::Stopping(Stopping { then, reason, ..stopping }),
            ServiceState::Waiting
            | ServiceState::BackOff { .. }
            | ServiceState::Failed { .. }
            | ServiceState::Finished => match then {
                Then::Start => ServiceState::Waiting,
                Then::Rest | Then::Policy => match state {
                    ServiceState::Failed { .. } => state,
                    _ => ServiceState::Finished,
                },
            },
        }
    }

    fn ask_to_end(&mut self, pid: Option<i32>, reason: String, then: Then) -> ServiceState {
        // Without a process there is nobody to ask: it is killed as soon as it is there.
        if pid.is_some() {
            self.actions.push(Action::Signal { run: self.service.history.run, signal: self.spec.stop.signal });
        }
        let kill_at = self.moment.now + Duration::from_millis(self.spec.stop.grace_ms);
        ServiceState::Stopping(Stopping { pid, reason, effort: Effort::Asked { kill_at }, then })
    }

    fn tick(&mut self, state: ServiceState) -> ServiceState {
        let now = self.moment.now;
        match state {
            ServiceState::Starting(starting) if starting.ready_by <= now => self.overdue(starting.pid),
            ServiceState::BackOff { until, .. } if until <= now => {
                self.service.history.restarts = self.service.history.restarts.saturating_add(1);
                ServiceState::Waiting
            }
            ServiceState::Stopping(stopping) => ServiceState::Stopping(self.press(stopping)),
            ServiceState::Running(running) => self.tick_running(running),
            ServiceState::Waiting
            | ServiceState::Starting(_)
            | ServiceState::Finished
            | ServiceState::Failed { .. }
            | ServiceState::BackOff { .. } => state,
        }
    }

    fn overdue(&mut self, pid: Option<i32>) -> ServiceState {
        let reason = match self.service.history.message.as_str() {
            "" => format!("not ready within {} s", self.spec.start_timeout_ms / 1000),
            message => format!("not ready within {} s: {message}", self.spec.start_timeout_ms / 1000),
        };
        self.ask_to_end(pid, reason, Then::Policy)
    }

    /// Kills what was asked long enough.
    fn press(&mut self, mut stopping: Stopping) -> Stopping {
        let now = self.moment.now;
        let stuck = match stopping.effort {
            Effort::Asked { kill_at } if kill_at <= now => false,
            Effort::Killed { again_at, .. } if again_at <= now => true,
            Effort::Asked { .. } | Effort::Killed { .. } => return stopping,
        };
        self.actions.push(Action::Kill { run: self.service.history.run });
        stopping.effort = Effort::Killed { again_at: now + KILL_AGAIN, stuck };
        stopping
    }

    fn tick_running(&mut self, mut running: Running) -> ServiceState {
        let now = self.moment.now;
        match running.readiness {
            Readiness::Pending { by } if by <= now => return self.overdue(Some(running.pid)),
            Readiness::Ready { since } if since + stable_after(self.spec) <= now => self.service.history.failures = 0,
            Readiness::Pending { .. } | Readiness::Ready { .. } | Readiness::Lost => {}
        }
        match running.watchdog_by {
            Some(by) if by + STOOD_STILL <= now => running.watchdog_by = self.watched_until(),
            Some(by) if by <= now => {
                return self.ask_to_end(Some(running.pid), "no sign of life in time".to_owned(), Then::Policy);
            }
            Some(_) | None => {}
        }
        for kind in [ProbeKind::Readiness, ProbeKind::Liveness] {
            let schedule = match kind {
                ProbeKind::Readiness => &mut running.readiness_probe,
                ProbeKind::Liveness => &mut running.liveness_probe,
            };
            match schedule.next {
                Some(Next::Ask(at)) if at <= now => {
                    schedule.next = Some(Next::GiveUp(now + probe(self.spec, kind).map_or(Duration::ZERO, patience)));
                    self.actions.push(Action::Probe { run: self.service.history.run, kind });
                }
                Some(Next::GiveUp(at)) if at <= now => {
                    return self.probed(running, kind, false, "no answer".to_owned());
                }
                Some(_) | None => {}
            }
        }
        ServiceState::Running(running)
    }

    fn process(&mut self, state: ServiceState, event: ProcessEvent) -> ServiceState {
        match (state, event) {
            (ServiceState::Starting(starting), ProcessEvent::Launched { pid }) => {
                ServiceState::Starting(Starting { pid: Some(pid), ..starting })
            }
            (ServiceState::Stopping(stopping), ProcessEvent::Launched { pid }) if stopping.pid.is_none() => {
                self.actions.push(Action::Kill { run: self.service.history.run });
                let again_at = self.moment.now + KILL_AGAIN;
                let effort = Effort::Killed { again_at, stuck: false };
                ServiceState::Stopping(Stopping { pid: Some(pid), effort, ..stopping })
            }
            (ServiceState::Starting(Starting { pid: None, .. }), ProcessEvent::LaunchFailed { reason }) => {
                self.failed(reason, false)
            }
            (ServiceState::Stopping(stopping), ProcessEvent::LaunchFailed { reason }) if stopping.pid.is_none() => {
                self.stopped(Stopping { reason, ..stopping })
            }
            (ServiceState::Starting(starting), ProcessEvent::SetupFailed { reason }) => {
                ServiceState::Starting(Starting { error: Some(reason), ..starting })
            }
            (ServiceState::Starting(Starting { pid: Some(pid), ready_by, error: None }), ProcessEvent::Executed) => {
                self.executed(pid, ready_by)
            }
            // Only the program itself sends messages: this one overtook the news of its execution.
            (
                ServiceState::Starting(Starting { pid: Some(pid), ready_by, error: None }),
                ProcessEvent::Notified(notification),
            ) => match self.executed(pid, ready_by) {
                ServiceState::Running(running) => self.notified(running, notification),
                other => other,
            },
            (ServiceState::Starting(Starting { pid: Some(_), error, .. }), ProcessEvent::Exited(exit)) => {
                self.service.history.last_exit = Some(exit);
                self.ended(exit, error)
            }
            (ServiceState::Running(running), ProcessEvent::Exited(exit)) => {
                if let Readiness::Ready { since } = running.readiness
                    && since + stable_after(self.spec) <= self.moment.now
                {
                    self.service.history.failures = 0;
                }
                self.service.history.last_exit = Some(exit);
                self.ended(exit, None)
            }
            (ServiceState::Stopping(stopping), ProcessEvent::Exited(exit)) if stopping.pid.is_some() => {
                self.service.history.last_exit = Some(exit);
                self.stopped(stopping)
            }
            (ServiceState::Running(running), ProcessEvent::Notified(notification)) => {
                self.notified(running, notification)
            }
            (ServiceState::Running(running), ProcessEvent::Probed { kind, ok, message }) => {
                self.probed(running, kind, ok, message)
            }
            (state, _) => state,
        }
    }

    fn executed(&mut self, pid: i32, ready_by: Duration) -> ServiceState {
        let now = self.moment.now;
        let asks_for_readiness =
            probe(self.spec, ProbeKind::Readiness).is_some_and(|probe| carried_out_here(&probe.action));
        let mut running = Running {
            pid,
            since: now,
            readiness: Readiness::Pending { by: ready_by },
            readiness_probe: Schedule { next: asks_for_readiness.then_some(Next::Ask(now + EAGER_PROBE)), failures: 0 },
            liveness_probe: Schedule::default(),
            watchdog_by: None,
        };
        if self.spec.readiness.is_none() && !self.spec.oneshot {
            self.ready(&mut running);
        }
        ServiceState::Running(running)
    }

    fn ready(&mut self, running: &mut Running) {
        let now = self.moment.now;
        let first = matches!(running.readiness, Readiness::Pending { .. });
        running.readiness = Readiness::Ready { since: now };
        if first {
            running.watchdog_by = self.watched_until();
            if let Some(probe) = probe(self.spec, ProbeKind::Liveness)
                && carried_out_here(&probe.action)
            {
                running.liveness_probe.next = Some(Next::Ask(now + Duration::from_millis(probe.period_ms)));
            }
        }
    }

    fn watched_until(&self) -> Option<Duration> {
        self.spec.watchdog_ms.map(|ms| self.moment.now + Duration::from_millis(ms))
    }

    fn notified(&mut self, mut running: Running, notification: Notification) -> ServiceState {
        match notification {
            Notification::Ready => {
                let by_message = matches!(&self.spec.readiness, Some(Probe { action: ProbeAction::Notify {}, .. }));
                if by_message && !matches!(running.readiness, Readiness::Ready { .. }) {
                    self.ready(&mut running);
                }
            }
            Notification::Alive => {
                if running.watchdog_by.is_some() {
                    running.watchdog_by = self.watched_until();
                }
            }
            Notification::Hung => {
                return self.ask_to_end(Some(running.pid), "it reported itself hung".to_owned(), Then::Policy);
            }
            Notification::Status(text) => self.service.history.message = text,
        }
        ServiceState::Running(running)
    }

    fn probed(&mut self, mut running: Running, kind: ProbeKind, ok: bool, message: String) -> ServiceState {
        let Some(probe) = probe(self.spec, kind) else { return ServiceState::Running(running) };
        let now = self.moment.now;
        let pending = matches!(running.readiness, Readiness::Pending { .. });
        let schedule = match kind {
            ProbeKind::Readiness => &mut running.readiness_probe,
            // Before it was ready once, a service may be slow without being hung.
            ProbeKind::Liveness if pending => return ServiceState::Running(running),
            ProbeKind::Liveness => &mut running.liveness_probe,
        };
        schedule.failures = if ok { 0 } else { schedule.failures.saturating_add(1) };
        let failed = schedule.failures >= probe.failure_threshold;
        let period = Duration::from_millis(probe.period_ms);
        // A start is on the way of others: ask often at first, then after each eighth of the time it has taken so far.
        let soon = (pending && !ok).then(|| now + period.min(EAGER_PROBE.max((now - running.since) / 8)));
        schedule.next =
            schedule.next.map(|next| Next::Ask(soon.unwrap_or_else(|| now.max(asked(next, probe) + period))));
        match kind {
            ProbeKind::Readiness => {
                self.service.history.message = if ok { String::new() } else { message };
                if ok && !matches!(running.readiness, Readiness::Ready { .. }) {
                    self.ready(&mut running);
                } else if failed && !pending {
                    running.readiness = Readiness::Lost;
                }
            }
            ProbeKind::Liveness if failed => {
                return self.ask_to_end(Some(running.pid), format!("it hangs: {message}"), Then::Policy);
            }
            ProbeKind::Liveness => {}
        }
        ServiceState::Running(running)
    }

    /// Its process ended unasked.
    fn ended(&mut self, exit: Exit, error: Option<String>) -> ServiceState {
        let reason = match (error, self.service.history.message.as_str()) {
            (Some(error), _) => error,
            (None, "") => exit.to_string(),
            (None, message) => format!("{exit} ({message})"),
        };
        self.failed(reason, exit.success())
    }

    fn failed(&mut self, reason: String, success: bool) -> ServiceState {
        let again = match self.spec.restart.policy {
            RestartPolicy::Always => !(self.spec.oneshot && success),
            RestartPolicy::OnFailure => !success,
            RestartPolicy::Never => false,
        };
        if !again {
            return if success { ServiceState::Finished } else { ServiceState::Failed { reason } };
        }
        let history = &mut self.service.history;
        history.failures = history.failures.saturating_add(1);
        let restart = &self.spec.restart;
        let wait = backoff(restart.initial_ms, restart.max_ms, history.failures, self.moment.jitter);
        ServiceState::BackOff { until: self.moment.now + wait, reason }
    }

    fn stopped(&mut self, stopping: Stopping) -> ServiceState {
        match stopping.then {
            Then::Rest => ServiceState::Finished,
            Then::Start => ServiceState::Waiting,
            Then::Policy => self.failed(stopping.reason, false),
        }
    }
}

/// When the question was asked to which there is an answer now, or none.
fn asked(next: Next, probe: &Probe) -> Duration {
    match next {
        Next::GiveUp(at) => at.saturating_sub(patience(probe)),
        // An answer that nobody waits for any more.
        Next::Ask(at) => at.saturating_sub(Duration::from_millis(probe.period_ms)),
    }
}

/// How long an answer is waited for.
fn patience(probe: &Probe) -> Duration {
    Duration::from_millis(probe.timeout_ms) + PROBE_SLACK
}

fn probe(spec: &ServiceSpec, kind: ProbeKind) -> Option<&Probe> {
    match kind {
        ProbeKind::Readiness => spec.readiness.as_ref(),
        ProbeKind::Liveness => spec.liveness.as_ref(),
    }
}

/// Whether the supervisor asks, rather than being told.
fn carried_out_here(action: &ProbeAction) -> bool {
    match action {
        ProbeAction::Http { .. } | ProbeAction::Tcp { .. } | ProbeAction::Unix { .. } | ProbeAction::Exec { .. } => {
            true
        }
        ProbeAction::Notify {} | ProbeAction::Https { .. } => false,
    }
}

#[cfg(test)]
#[path = "step_tests.rs"]
mod tests;
