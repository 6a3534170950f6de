//! What is told of services: to watchers on the control socket, and to the log.

use garboard_supervisor::spec::ServiceName;
use garboard_supervisor::status::{PublicState, ServiceStatus};
use tracing::{error, info, warn};

use crate::pid1::Pid1;

/// Lines of output that are reported with a failing service.
const LAST_LINES: usize = 8;

impl Pid1 {
    /// What is known of all services now.
    pub(crate) fn report(&self, with_usage: bool) -> Vec<ServiceStatus> {
        let mut statuses = self.supervisor.statuses();
        for status in &mut statuses {
            let failing = matches!(status.state, PublicState::BackOff { .. } | PublicState::Failed { .. });
            if failing || status.crash_looping {
                let lines = self.logs.tail(&status.name, LAST_LINES);
                status.last_lines = lines.into_iter().map(|line| line.text).collect();
            }
            if with_usage && let Some(spec) = self.supervisor.spec(&status.name) {
                (status.memory_bytes, status.cpu_usec) = self.runner.usage(spec);
            }
        }
        statuses
    }

    /// Tells watchers and the log what has changed.
    pub(crate) fn publish(&mut self) {
        let statuses = self.report(false);
        let mut reached = Vec::new();
        self.statuses.send_if_modified(|present| {
            if *present == statuses {
                return false;
            }
            log_changes(present, &statuses);
            let was_ready = |name: &ServiceName| present.iter().any(|status| status.name == *name && status.ready);
            let now_ready = statuses.iter().filter(|status| status.ready && !was_ready(&status.name));
            reached.extend(now_ready.map(|status| status.name.clone()));
            *present = statuses;
            true
        });
        for name in reached {
            (self.reached)(self, name.as_str());
        }
    }
}

/// One line in the log for each service whose state is another one.
fn log_changes(before: &[ServiceStatus], after: &[ServiceStatus]) {
    for status in after {
        let old = before.iter().find(|old| old.name == status.name);
        if old.is_some_and(|old| old.state == status.state) {
            continue;
        }
        let service = status.name.as_str();
        match &status.state {
            PublicState::Waiting { .. } => {
                info!(service, "waiting for {}", status.waiting_on.join(", "));
            }
            PublicState::Starting => info!(service, "starting"),
            PublicState::Running { ready: true } => info!(service, "ready"),
            PublicState::Running { ready: false } => info!(service, pid = status.pid, "running, not ready"),
            PublicState::Stopping { reason } => info!(service, reason, "stopping"),
            PublicState::Finished => info!(service, "finished"),
            PublicState::Failed { reason } => error!(service, reason, "failed"),
            PublicState::BackOff { until_ms, reason } => {
                if status.crash_looping {
                    let last = status.last_lines.last().map_or("", String::as_str);
                    error!(service, reason, restarts = status.restarts, last, "it keeps failing");
                } else {
                    warn!(service, reason, until_ms, "ended, to be started again");
                }
            }
        }
    }
}
