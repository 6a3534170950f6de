//! One service's state, what can happen to it and what can be done about it.

use std::time::Duration;

use crate::exit::Exit;

/// When something happens, and the chance that goes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Time since the machine started.
    pub now: Duration,
    /// Spreads waits: thousandths, 0..=1000.
    pub jitter: u32,
}

/// Numbers the processes of one service, so that news of an earlier one is told apart.
pub type Run = u64;

/// What a service is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceState {
    /// Nothing; it starts as soon as its requirements are met.
    Waiting,
    /// Being set up.
    Starting(Starting),
    /// Its program runs.
    Running(Running),
    /// Being ended.
    Stopping(Stopping),
    /// Ended, for good.
    Finished,
    /// Ended badly, for good.
    Failed {
        /// Why.
        reason: String,
    },
    /// Ended, for now.
    BackOff {
        /// When it is tried again.
        until: Duration,
        /// Why it ended.
        reason: String,
    },
}

/// From the order to start until the program itself runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Starting {
    /// The process, once there is one.
    pub pid: Option<i32>,
    /// When it must be ready.
    pub ready_by: Duration,
    /// What went wrong while it was set up; its process then ends by itself.
    pub error: Option<String>,
}

/// From the program's start to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// The process.
    pub pid: i32,
    /// When it began.
    pub since: Duration,
    /// Whether it serves.
    pub readiness: Readiness,
    /// Asking whether it serves.
    pub readiness_probe: Schedule,
    /// Asking whether it is hung.
    pub liveness_probe: Schedule,
    /// When the next sign of life must have come.
    pub watchdog_by: Option<Duration>,
}

/// Whether a running service serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Not yet.
    Pending {
        /// When it must.
        by: Duration,
    },
    /// It does.
    Ready {
        /// Since when.
        since: Duration,
    },
    /// No longer.
    Lost,
}

/// When a probe is carried out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Schedule {
    /// What comes next; none: the answers come from elsewhere or there is no probe.
    pub next: Option<Next>,
    /// Failures in a row.
    pub failures: u32,
}

/// The next event of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The question is asked.
    Ask(Duration),
    /// The answer is given up.
    GiveUp(Duration),
}

impl Next {
    /// When that is.
    pub fn at(self) -> Duration {
        match self {
            Self::Ask(at) | Self::GiveUp(at) => at,
        }
    }
}

/// From the order to end until nothing is left of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stopping {
    /// The process; none while the order to make it is still being carried out.
    pub pid: Option<i32>,
    /// Why it is ended.
    pub reason: String,
    /// How hard it was tried.
    pub effort: Effort,
    /// What comes after.
    pub then: Then,
}

/// How hard ending a process was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// It was asked.
    Asked {
        /// When it is killed.
        kill_at: Duration,
    },
    /// It was killed.
    Killed {
        /// When it is killed again.
        again_at: Duration,
        /// Whether it survived that once already (a process in an endless system call does).
        stuck: bool,
    },
}

/// What comes after a stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// Nothing.
    Rest,
    /// A new start, at once.
    Start,
    /// What the restart policy says about a failure.
    Policy,
}

/// What is remembered of a service beyond one process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// The number of its last process.
    pub run: Run,
    /// Starts after unasked ends.
    pub restarts: u32,
    /// Unasked ends since it was last stable.
    pub failures: u32,
    /// How it ended last.
    pub last_exit: Option<Exit>,
    /// What it said of itself, or what its last failed probe said.
    pub message: String,
}

/// Unasked ends without a stable run between, from which on a service is said to be crash looping.
pub const CRASH_LOOP_FAILURES: u32 = 3;

impl History {
    /// Whether it failed several times without a stable run between.
    pub fn crash_looping(&self) -> bool {
        self.failures >= CRASH_LOOP_FAILURES
    }
}

/// A service, without its specification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// What it is doing.
    pub state: ServiceState,
    /// Since when.
    pub since: Duration,
    /// What is remembered.
    pub history: History,
}

impl Service {
    /// A service that was just declared.
    pub fn new(now: Duration) -> Self {
        Self { state: ServiceState::Waiting, since: now, history: History::default() }
    }

    /// Whether a process exists, or is being made.
    pub fn has_process(&self) -> bool {
        match &self.state {
            ServiceState::Starting(_) | ServiceState::Running(_) | ServiceState::Stopping(_) => true,
            ServiceState::Waiting
            | ServiceState::Finished
            | ServiceState::Failed { .. }
            | ServiceState::BackOff { .. } => false,
        }
    }

    /// Whether its process does not even end when it is killed.
    pub fn is_stuck(&self) -> bool {
        matches!(self.state, ServiceState::Stopping(Stopping { effort: Effort::Killed { stuck: true, .. }, .. }))
    }

    /// The number of its process.
    pub fn pid(&self) -> Option<i32> {
        match &self.state {
            ServiceState::Starting(Starting { pid, .. }) | ServiceState::Stopping(Stopping { pid, .. }) => *pid,
            ServiceState::Running(running) => Some(running.pid),
            ServiceState::Waiting
            | ServiceState::Finished
            | ServiceState::Failed { .. }
            | ServiceState::BackOff { .. } => None,
        }
    }
}

/// Something happened to a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Its requirements are met.
    Start,
    /// It is to end, for good.
    Stop {
        /// Why.
        reason: String,
    },
    /// It is to end and start again; what went wrong before is forgiven.
    Restart {
        /// Why.
        reason: String,
    },
    /// Time has passed.
    Tick,
    /// Something happened to a process of it.
    Process {
        /// Which.
        run: Run,
        /// What.
        event: ProcessEvent,
    },
}

/// Something happened to a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProcessEvent {
    /// It exists; its program does not run yet.
    Launched {
        /// Its number.
        pid: i32,
    },
    /// It could not be made.
    LaunchFailed {
        /// Why.
        reason: String,
    },
    /// It could not be set up, and is about to end.
    SetupFailed {
        /// At which step, and why.
        reason: String,
    },
    /// Its program runs.
    Executed,
    /// It ended, and nothing is left in its cgroup.
    Exited(Exit),
    /// It sent a message (sd_notify(3)).
    Notified(Notification),
    /// A probe was answered.
    Probed {
        /// Which one.
        kind: ProbeKind,
        /// The answer.
        ok: bool,
        /// What was said.
        message: String,
    },
}

/// A message of a service about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notification {
    /// `READY=1`
    Ready,
    /// `WATCHDOG=1`
    Alive,
    /// `WATCHDOG=trigger`
    Hung,
    /// `STATUS=...`
    Status(String),
}

/// Which probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeKind {
    /// Whether it serves.
    Readiness,
    /// Whether it is hung.
    Liveness,
}

/// Something to be done. The run says for which process: an action for one that is gone does nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make a process. Answered by [`ProcessEvent::Launched`] or [`ProcessEvent::LaunchFailed`].
    Launch {
        /// Its number from now on.
        run: Run,
    },
    /// Send the main process a signal.
    Signal {
        /// To which.
        run: Run,
        /// Number of the signal.
        signal: i32,
    },
    /// Kill everything in the service's cgroup.
    Kill {
        /// Of which process.
        run: Run,
    },
    /// Ask. Answered by [`ProcessEvent::Probed`].
    Probe {
        /// Which process.
        run: Run,
        /// What.
        kind: ProbeKind,
    },
    /// Write the service's files anew, then send the signal if there is one.
    Refresh {
        /// To which process.
        run: Run,
        /// Number of the signal.
        signal: Option<i32>,
    },
}
