//! How the machine's own API server is: by what PID 1 says of its process and of its probes, and by whether it answers in time.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use garboard_catalog::kube_apiserver::PORT;
use garboard_catalog::pki::Leaf;
use garboard_control::MachinePhase;
use garboard_plan::virtual_address::{Declared, Standing};
use garboard_supervisor::status::ServiceStatus;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::question::Questions;
use crate::cluster::api_is_ready;

/// Time from one answer to the next question. With the time that an answer may take, and what the election takes, the address has moved
/// from an API server that hangs within two seconds.
const PERIOD: Duration = Duration::from_millis(500);
/// How long PID 1 may say nothing before that counts as an API server that does not serve: after a start of the agent it answers at once.
const PATIENCE: Duration = Duration::from_secs(2);
/// It tells whether the store is reached too.
const PATH: &str = "/readyz";

/// The task that follows it, while there is a virtual address.
pub struct Watch {
    services: watch::Receiver<Arc<Vec<ServiceStatus>>>,
    phase: watch::Receiver<MachinePhase>,
    declared: watch::Receiver<Option<Declared>>,
    standing: watch::Sender<Option<Standing>>,
    questions: Questions,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").finish_non_exhaustive()
    }
}

impl Watch {
    /// Prepares the task, and the channel on which it publishes: none until PID 1 has said how the services are.
    pub fn new(
        services: watch::Receiver<Arc<Vec<ServiceStatus>>>,
        phase: watch::Receiver<MachinePhase>,
        declared: watch::Receiver<Option<Declared>>,
    ) -> (Self, watch::Receiver<Option<Standing>>) {
        let (standing, receiver) = watch::channel(None);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
        let questions = Questions::new(address, PATH, Path::new(&Leaf::Apiserver.ca_file()));
        (Self { services, phase, declared, standing, questions }, receiver)
    }

    /// Follows it until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        stop.run_until_cancelled(self.follow()).await;
    }

    async fn follow(&mut self) {
        let told = self.services.wait_for(|services| !services.is_empty());
        // Whether it came in time or not is seen in what there is.
        let _ = tokio::time::timeout(PATIENCE, told).await;
        loop {
            let ready = api_is_ready(&self.services.borrow_and_update());
            let goes_on = goes_on(&self.phase.borrow_and_update());
            let asked = self.declared.borrow_and_update().is_some();
            let standing = if ready && goes_on && asked {
                self.question().await
            } else {
                self.questions.pause();
                Standing::Away
            };
            let before = self.standing.send_replace(Some(standing));
            if before != Some(standing) && asked {
                info!(?standing, "API server");
            }
            let again =
                async { if standing == Standing::Away { std::future::pending().await } else { sleep(PERIOD).await } };
            // All arms are cancel-safe: they wait, and what has changed meanwhile is looked at in any case.
            tokio::select! {
                Ok(()) = self.services.changed() => {}
                Ok(()) = self.phase.changed() => {}
                Ok(()) = self.declared.changed() => {}
                () = again => {}
            }
        }
    }

    /// Asks the API server; what PID 1 says meanwhile ends the question.
    async fn question(&mut self) -> Standing {
        let Self { services, phase, questions, .. } = self;
        let away = async {
            while api_is_ready(&services.borrow_and_update()) && goes_on(&phase.borrow_and_update()) {
                tokio::select! {
                    Ok(()) = services.changed() => {}
                    Ok(()) = phase.changed() => {}
                    else => std::future::pending().await,
                }
            }
        };
        tokio::select! {
            answer = questions.ask() => match answer {
                Ok(()) => Standing::Serving,
                Err(error) => {
                    debug!(%error, "the API server does not answer");
                    Standing::Silent
                }
            },
            () = away => Standing::Away,
        }
    }
}

/// Whether the machine is not about to end: it gives the address away before its API server does.
fn goes_on(phase: &MachinePhase) -> bool {
    *phase == MachinePhase::Running
}

#[cfg(test)]
mod tests {
    use garboard_supervisor::status::PublicState;
    use garboard_supervisor::testing::status;
    use tokio::time::{Instant, timeout};

    use super::super::testing::{GOOD, Server};
    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn the_address_is_for_machines_whose_api_server_answers_in_time() {
        let server = Server::start().await;
        let declared = Declared { address: Ipv4Addr::new(192, 0, 2, 5), router_id: 5 };
        let state = |ready| {
            let state = if ready { PublicState::Running { ready } } else { PublicState::Starting };
            Arc::new(vec![status(garboard_catalog::kube_apiserver::NAME, state)])
        };
        let services = watch::Sender::new(Arc::default());
        let phase = watch::Sender::new(MachinePhase::Running);
        let shared = watch::Sender::new(None);
        let (mut task, mut standing) = Watch::new(services.subscribe(), phase.subscribe(), shared.subscribe());
        task.questions = server.questions();
        tokio::spawn(task.run(CancellationToken::new()));
        let mut becomes = async |wanted| {
            let begun = Instant::now();
            let waited = timeout(LIMIT, standing.wait_for(|standing| *standing == Some(wanted))).await;
            waited.unwrap_or_else(|_| panic!("never {wanted:?}")).unwrap();
            begun.elapsed()
        };
        services.send_replace(state(true));
        becomes(Standing::Away).await;
        assert_eq!(server.connections(), 0, "nothing is declared, and nobody is asked");
        shared.send_replace(Some(declared));
        becomes(Standing::Serving).await;
        server.answer(None);
        let noticed = becomes(Standing::Silent).await;
        assert!(noticed < Duration::from_millis(1500), "{noticed:?}");
        services.send_replace(state(false));
        let noticed = becomes(Standing::Away).await;
        assert!(noticed < Duration::from_millis(200), "though it is being asked: {noticed:?}");
        server.answer(Some(GOOD));
        services.send_replace(state(true));
        becomes(Standing::Serving).await;
        phase.send_replace(MachinePhase::Stopping { kind: garboard_control::ShutdownKind::Reboot });
        becomes(Standing::Away).await;
    }
}
