//! Records Events about the Machine and the Cluster: what happened, for whoever looks later with `kubectl describe machine`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use garboard_api::{About, Cluster, Machine, Refusals};
use garboard_plan::events::{self as plan, Notable, Snapshot};
use garboard_runtime::applier::chain;
use garboard_runtime::backoff::Backoff;
use garboard_runtime::kind::Kind;
use garboard_runtime::status::in_time;
use garboard_supervisor::status::ServiceStatus;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource};
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::network::NodeAddresses;

/// Longest note that the API server takes, bytes (Kubernetes: events.k8s.io/v1, `note`).
const NOTE: usize = 1024;
/// Events that wait for an API server that is away; the oldest give way, as the latest say more of what is.
const PENDING: usize = 64;
/// First and longest wait after the API server did not take an event.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Who records events of this machine, and who those of the cluster's duties.
const AGENT: &str = "garboard-agent";
pub(crate) const OPERATORS: &str = "garboard-operators";

/// Room for what is handed over while an event is recorded; what finds none is in the log still.
pub const HANDED: usize = 16;

/// What is looked at.
#[derive(Debug)]
pub struct Watched {
    /// The declared machine.
    pub machine: watch::Receiver<Option<Arc<Machine>>>,
    /// The declared cluster.
    pub cluster: watch::Receiver<Option<Arc<Cluster>>>,
    /// Declarations that were refused.
    pub refusals: watch::Receiver<Refusals>,
    /// What the network has reached.
    pub network: watch::Receiver<NodeAddresses>,
    /// What the services are.
    pub services: watch::Receiver<Arc<Vec<ServiceStatus>>>,
    /// What others hand over.
    pub handed: mpsc::Receiver<Notable>,
}

/// Hands over something to be recorded; what finds no room is left out.
pub fn hand_over(handed: &mpsc::Sender<Notable>, notable: Notable) {
    if let Err(error) = handed.try_send(notable) {
        debug!(%error, "event not recorded");
    }
}

/// Records until `stop`. What happens before there is an API server is in the log and in the status only; what happens
/// while it is away is recorded when it is back.
pub async fn run(watched: Watched, api: watch::Receiver<Option<Client>>, stop: CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = follow(watched, api) => {}
    }
}

async fn follow(mut watched: Watched, mut api: watch::Receiver<Option<Client>>) {
    // A refusal lasts until it is mended, so those from before are told too.
    let mut before = Snapshot { refusals: Refusals::new(), ..watched.snapshot() };
    let mut recorder = None;
    let (mut handed, mut pending) = (Vec::new(), VecDeque::new());
    let mut backoff = Backoff::new(RETRY.0, RETRY.1);
    loop {
        if api.has_changed().unwrap_or(false) || recorder.is_none() {
            recorder = api.borrow_and_update().clone().map(|client| recorder_of(client, AGENT));
        }
        let after = watched.snapshot();
        if let (Some(recorder), Some(machine)) = (&recorder, watched.machine_reference()) {
            pending.extend(plan::changes(&before, &after));
            pending.extend(handed.drain(..));
            pending.drain(..pending.len().saturating_sub(PENDING));
            before = after;
            let cluster = watched.cluster_reference();
            while let Some(notable) = pending.front() {
                let about = match notable.about {
                    // What a pool cannot give a machine is news of the machine.
                    About::Machine | About::MachinePool => &machine,
                    About::Cluster => cluster.as_ref().unwrap_or(&machine),
                };
                if !record(recorder, about, notable).await {
                    break;
                }
                pending.pop_front();
                backoff.reset();
            }
        } else {
            handed.clear();
            before = Snapshot { refusals: before.refusals, ..after };
        }
        let wait = (!pending.is_empty()).then(|| backoff.wait());
        let retry = async { if let Some(wait) = wait { sleep(wait).await } else { std::future::pending().await } };
        // Cancel-safe: each arm only waits, but for the one that takes what it waited for.
        tokio::select! {
            Ok(()) = watched.machine.changed() => {}
            Ok(()) = watched.cluster.changed() => {}
            Ok(()) = watched.refusals.changed() => {}
            Ok(()) = watched.network.changed() => {}
            Ok(()) = watched.services.changed() => {}
            Some(notable) = watched.handed.recv() => handed.push(notable),
            Ok(()) = api.changed() => {}
            () = retry => {}
        }
    }
}

impl Watched {
    fn snapshot(&mut self) -> Snapshot {
        let generation = |meta: Option<&ObjectMeta>| meta.and_then(|meta| meta.generation);
        Snapshot {
            machine: generation(self.machine.borrow_and_update().as_deref().map(Machine::meta)),
            cluster: generation(self.cluster.borrow_and_update().as_deref().map(Cluster::meta)),
            refusals: self.refusals.borrow_and_update().clone(),
            addresses: self.network.borrow_and_update().addresses.clone(),
            services: self.services.borrow_and_update().clone(),
        }
    }

    fn machine_reference(&self) -> Option<ObjectReference> {
        reference(self.machine.borrow().as_deref()?)
    }

    fn cluster_reference(&self) -> Option<ObjectReference> {
        reference(self.cluster.borrow().as_deref()?)
    }
}

/// What an event says of its object; none before the API server has the object.
fn reference<K: Kind>(object: &K) -> Option<ObjectReference> {
    object.meta().uid.as_ref().map(|_| object.object_ref(&()))
}

/// Records events as this controller.
pub(crate) fn recorder_of(client: Client, controller: &str) -> Recorder {
    Recorder::new(client, Reporter { controller: controller.to_owned(), instance: None })
}

/// Records an event; says whether nothing is left to be done about it.
pub(crate) async fn record(recorder: &Recorder, about: &ObjectReference, notable: &Notable) -> bool {
    let Notable { about: _, warning, reason, note } = notable;
    let event = Event {
        type_: if *warning { EventType::Warning } else { EventType::Normal },
        reason: (*reason).to_owned(),
        note: Some(note[..note.floor_char_boundary(NOTE)].to_owned()),
        action: "Supervise".to_owned(),
        secondary: None,
    };
    match in_time(recorder.publish(&event, about)).await {
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            debug!(error = chain(&error), reason, "event not recorded");
            // What it refuses for good is in the log and in the status still.
            matches!(error, kube::Error::Api(status) if plan::is_refused(status.code))
        }
        Err(_) => false,
    }
}
