//! The machine API's implementation in the agent: it asks PID 1, the agent's own view, and the cluster's authority.
//!
//! | task | input | output |
//! |---|---|---|
//! | [`identity()`] | the key file, the manifests' key, whether anything is declared | the machine's identity |
//! | [`run`] | the agent's view, who may claim the machine | the API on port 7443, from when it is known who may use it |
//! | [`View`] | | what the agent publishes of itself for `Status` and for the access list |
//! | [`Declare`] | | what the agent is asked to declare |

mod answers;
mod etcd;
mod identity;
mod registered;
mod service;

use garboard_api::manifest::Manifests;
use garboard_api::{Cluster, Machine};
use garboard_machine_api::proto::AppliedObject;
use garboard_machine_api::server::{Limits, ServeError, listen, serve};
use garboard_machine_api::{Access, AccessList, DEFAULT_PORT, Identity, Pin, Role};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::claim::Claimants;

pub use etcd::Restoring;
pub use identity::{KeyError, identity};
pub use service::Service;

/// Where the machine's own key lies.
pub const IDENTITY_FILE: &str = "/state/identity.key";

/// What the agent knows, as far as the machine API shows it.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// The machine with its status, once it is declared.
    pub machine: Option<Machine>,
    /// The cluster with its status, once it is declared.
    pub cluster: Option<Cluster>,
    /// What is wrong beyond conditions, in words: manifests that were refused, an unusable disk, a clock that is off.
    pub problems: Vec<String>,
}

/// A request to declare objects, for the agent.
#[derive(Debug)]
pub struct Declare {
    /// What to declare: valid by itself.
    pub manifests: Manifests,
    /// The key of who claims the machine with it; none when it comes from somebody who may declare at any time.
    pub claimant: Option<Pin>,
    /// Whether only to say what would happen.
    pub dry_run: bool,
    /// What was done with each object, or why nothing was done.
    pub reply: oneshot::Sender<Result<Vec<AppliedObject>, String>>,
}

/// Where requests to declare objects go; the agent takes one after the other.
pub type DeclareSender = mpsc::Sender<Declare>;

/// Serves the machine API until `stop`.
///
/// It listens from when a cluster is declared, because that says who may use it, or where the Machine of one that joins says who may until
/// then, or while the machine can be claimed; then on all addresses that the machine has or gets. A changed access list counts at once,
/// also for open connections.
///
/// # Errors
/// When the port is taken or the identity unusable.
pub async fn run(
    identity: &Identity,
    service: Service,
    admission: Admission,
    stop: CancellationToken,
) -> Result<(), ServeError> {
    run_on(DEFAULT_PORT, identity, service, admission, stop).await
}

async fn run_on(
    port: u16,
    identity: &Identity,
    service: Service,
    mut admission: Admission,
    stop: CancellationToken,
) -> Result<(), ServeError> {
    let first = async {
        loop {
            match admission.access_list() {
                Some(list) => break Some(list),
                None => admission.changed().await?,
            }
        }
    };
    let first = tokio::select! {
        () = stop.cancelled() => return Ok(()),
        first = first => match first {
            Some(first) => first,
            // The agent has ended before anybody could use it.
            None => return Ok(()),
        },
    };
    let (access, watched) = watch::channel(first);
    let listener = listen(port)?;
    info!(port, fingerprint = %identity.pin(), "the machine API listens");
    let follow = async {
        while admission.changed().await.is_some() {
            let list = admission.access_list().unwrap_or_default();
            access.send_if_modified(|current| {
                let changed = *current != list;
                if changed {
                    info!("the machine API's access list has changed");
                    *current = list;
                }
                changed
            });
        }
        std::future::pending().await
    };
    tokio::select! {
        // Cancel-safe: what the access list should be is in the channels.
        () = follow => Ok(()),
        served = serve(listener, identity, watched, Limits::default(), service, stop.cancelled()) => served,
    }
}

/// What says who may use the machine API.
#[derive(Clone, Debug)]
pub struct Admission {
    /// What is declared.
    pub view: watch::Receiver<View>,
    /// Who may claim the machine.
    pub claimants: watch::Receiver<Claimants>,
}

impl Admission {
    /// Who may use it now; none while nobody is known.
    fn access_list(&mut self) -> Option<AccessList> {
        let claimants = *self.claimants.borrow_and_update();
        let view = self.view.borrow_and_update();
        let (declared, role) = match (&view.cluster, &view.machine) {
            // The answer to the claim still has to reach who made it.
            (Some(cluster), _) => (cluster.spec.access.as_slice(), Role::Claimant),
            (None, Some(machine)) => {
                let join = machine.spec.join.as_ref();
                (join.map_or(&[][..], |join| &join.access), Role::Reader)
            }
            (None, None) if claimants == Claimants::Anybody => return Some(AccessList::of_claimants()),
            (None, None) => (&[][..], Role::Claimant),
        };
        let mut known: Vec<_> = declared.iter().map(entry).collect();
        if let Claimants::Only(by) = claimants
            && known.iter().all(|(pin, _)| *pin != by)
        {
            known.push((by, Access { role, ..Access::claimant() }));
        }
        (view.cluster.is_some() || !known.is_empty()).then(|| known.into_iter().collect())
    }

    /// Waits for a change; none when the agent has ended.
    async fn changed(&mut self) -> Option<()> {
        let Self { view, claimants } = self;
        // Cancel-safe: both only wait.
        tokio::select! {
            changed = view.changed() => changed.ok(),
            Ok(()) = claimants.changed() => Some(()),
        }
    }
}

/// Somebody who may use the machine API by what is declared.
fn entry(access: &garboard_api::Access) -> (Pin, Access) {
    let garboard_api::Access { name, role, public_key } = access;
    (Pin::of_digest(*public_key.digest()), Access { name: name.clone(), role: role_of(*role) })
}

fn role_of(role: garboard_api::Role) -> Role {
    match role {
        garboard_api::Role::Admin => Role::Admin,
        garboard_api::Role::Operator => Role::Operator,
        garboard_api::Role::Reader => Role::Reader,
    }
}

#[cfg(test)]
mod tests;
