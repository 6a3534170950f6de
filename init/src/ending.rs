//! The machine's end as far as the loop goes: inhibitors are waited for, then services are stopped. What comes after is
//! [`crate::shutdown`].

use std::time::Duration;

use garboard_control::server::Refusal;
use garboard_control::{MachinePhase, ShutdownKind};
use garboard_sys::clock::boot_time;
use tokio::sync::oneshot;
use tracing::{info, warn};

use crate::kmsg::chain;
use crate::logfile;
use crate::pid1::{Background, Pid1, moment};
use crate::shutdown::{MAX_INHIBIT_DELAY, MAX_STOP_TIME};
use crate::watchdog::LAST_TIMEOUT;

/// Time for log files to be closed.
const LOGS_PATIENCE: Duration = Duration::from_secs(2);

/// Who delays a shutdown, and what for.
#[derive(Debug)]
pub(crate) struct Inhibitor {
    who: String,
    why: String,
}

/// What the loop is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The machine's work.
    Running,
    /// Waiting for inhibitors.
    Preparing { kind: ShutdownKind, deadline: Duration },
    /// Stopping services.
    Stopping { kind: ShutdownKind, deadline: Duration },
}

impl Phase {
    /// When it ends at the latest.
    pub(crate) fn deadline(self) -> Option<Duration> {
        match self {
            Self::Running => None,
            Self::Preparing { deadline, .. } | Self::Stopping { deadline, .. } => Some(deadline),
        }
    }
}

impl Pid1 {
    /// Goes on once nobody is to be waited for any more.
    pub(crate) fn tick_ending(&mut self) {
        let Phase::Preparing { kind, deadline } = self.phase else { return };
        if self.inhibitors.is_empty() {
            self.stop(kind);
        } else if deadline <= boot_time() {
            for Inhibitor { who, why } in self.inhibitors.values() {
                warn!(who, why, "no longer waiting before the shutdown");
            }
            self.stop(kind);
        }
    }

    /// Begins the machine's end; a second order while inhibitors are waited for ends that wait.
    pub(crate) fn shut_down(&mut self, kind: ShutdownKind, reason: &str) {
        match self.phase {
            Phase::Running => {
                info!(?kind, reason, "shutting down");
                self.console.line(&format!("shutting down: {reason}"));
                let deadline = boot_time() + MAX_INHIBIT_DELAY;
                self.phase = Phase::Preparing { kind, deadline };
                let deadline_ms = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
                self.phases.send_replace(MachinePhase::PreparingShutdown { kind, deadline_ms });
                for Inhibitor { who, why } in self.inhibitors.values() {
                    info!(who, why, "waiting before the shutdown");
                    self.console.line(&format!("waiting for {who}: {why}"));
                }
                self.tick();
            }
            Phase::Preparing { kind, .. } => self.stop(kind),
            Phase::Stopping { .. } => {}
        }
    }

    fn stop(&mut self, kind: ShutdownKind) {
        self.console.line("stopping all services");
        self.phase = Phase::Stopping { kind, deadline: boot_time() + MAX_STOP_TIME };
        self.phases.send_replace(MachinePhase::Stopping { kind });
        let actions = self.supervisor.shut_down(moment());
        self.act(actions);
        self.publish();
    }

    /// How the machine is to end, once nothing is left to wait for.
    pub(crate) fn ended(&mut self) -> Option<ShutdownKind> {
        let Phase::Stopping { kind, deadline } = self.phase else { return None };
        let late = deadline <= boot_time();
        if late {
            for status in self.supervisor.statuses().iter().filter(|status| status.pid.is_some()) {
                warn!(service = %status.name, "a service has not ended in time");
            }
        }
        if !late && !self.supervisor.is_down() {
            return None;
        }
        // The last steps wait inside of the kernel; if they hang, the machine restarts all the same.
        if let Some(watchdog) = &self.watchdog
            && let Err(error) = watchdog.set_timeout(LAST_TIMEOUT)
        {
            warn!(error = %chain(&error), "the hardware watchdog may cut the shutdown short");
        }
        if let Some(thread) = self.logs.take_files() {
            // Its queue is bounded and the disk may be broken: not waited for longer than a moment.
            logfile::wait(thread, LOGS_PATIENCE);
        }
        Some(kind)
    }

    pub(crate) fn is_running(&self) -> bool {
        self.phase == Phase::Running
    }

    pub(crate) fn inhibit(
        &mut self,
        who: String,
        why: String,
        held: oneshot::Receiver<()>,
    ) -> Result<Duration, Refusal> {
        if let Phase::Stopping { .. } = self.phase {
            return Err(Refusal::ShuttingDown);
        }
        let number = self.next_inhibitor;
        self.next_inhibitor += 1;
        self.inhibitors.insert(number, Inhibitor { who, why });
        let reporter = self.reporter.clone();
        tokio::spawn(async move {
            // Only its end is of interest, and it ends by being dropped.
            let _ = held.await;
            let _ = reporter.send(Background::Released(number)).await;
        });
        Ok(MAX_INHIBIT_DELAY)
    }
}
