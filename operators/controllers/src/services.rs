//! Follows what PID 1 says of the services and of the machine's phase.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use garboard_control::{Client, ControlError, MachinePhase};
use garboard_runtime::applier::chain;
use garboard_runtime::backoff::Backoff;
use garboard_supervisor::status::ServiceStatus;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// First and longest wait after the connection to PID 1 broke.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Whether the service of a name serves; none where it is not to run.
pub fn readiness(services: &[ServiceStatus], name: &str) -> Option<bool> {
    services.iter().find(|status| status.name.to_string() == name).map(|status| status.ready)
}

/// The task that follows PID 1.
#[derive(Debug)]
pub struct Services {
    control: Client,
    services: watch::Sender<Arc<Vec<ServiceStatus>>>,
    phase: watch::Sender<MachinePhase>,
}

/// What [`Services`] publishes: the services, and the machine's phase.
pub type Followed = (watch::Receiver<Arc<Vec<ServiceStatus>>>, watch::Receiver<MachinePhase>);

impl Services {
    /// Prepares the task and the channels on which it publishes.
    pub fn new(control: Client) -> (Self, Followed) {
        let (services, statuses) = watch::channel(Arc::default());
        let (phase, phases) = watch::channel(MachinePhase::Running);
        (Self { control, services, phase }, (statuses, phases))
    }

    /// Follows until `stop`; what was published last stays while PID 1 does not answer.
    pub async fn run(self, stop: CancellationToken) {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        loop {
            let outcome = tokio::select! {
                () = stop.cancelled() => return,
                outcome = self.follow(&mut backoff) => outcome,
            };
            if let Err(error) = outcome {
                warn!(error = chain(&error), "PID 1 does not answer");
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(backoff.wait()) => {}
            }
        }
    }

    async fn follow(&self, backoff: &mut Backoff) -> Result<(), ControlError> {
        let mut services = self.control.watch_services().await?;
        let mut phases = self.control.watch_machine().await?;
        loop {
            // Both arms are cancel-safe: a message is taken from its stream only when it is returned.
            tokio::select! {
                statuses = services.next() => {
                    let Some(statuses) = statuses.transpose()? else { return Ok(()) };
                    backoff.reset();
                    self.report(&statuses);
                    self.services.send_replace(Arc::new(statuses));
                }
                phase = phases.next() => {
                    let Some(phase) = phase.transpose()? else { return Ok(()) };
                    self.phase.send_replace(phase);
                }
            }
        }
    }

    /// Logs the services that became ready or ceased to be.
    fn report(&self, statuses: &[ServiceStatus]) {
        let before = self.services.borrow();
        for status in statuses {
            let was_ready = before.iter().find(|each| each.name == status.name).is_some_and(|each| each.ready);
            if status.ready != was_ready {
                info!(service = %status.name, ready = status.ready, restarts = status.restarts, "service");
            }
        }
    }
}
