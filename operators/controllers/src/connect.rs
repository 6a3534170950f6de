//! Finds the API server, brings in what everybody there needs, and hands out a client of the agent's own.
//!
//! The machine that is the control plane asks its own API server, and brings in; others ask whichever serves, as soon as they have joined,
//! and those that serve too bring in as well: what they bring may be newer. Roles come first, because other services wait for theirs; then
//! the custom resource definitions, once the API server has its own roles and the control plane's other parts start. What is said of
//! changes of such resources nobody waits for, so it comes last, and with it what workers may do, once they are held to what is their own.

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use garboard_api::Machine;
use garboard_api_client::{Identity, Outage};
use garboard_catalog::kubeconfig::{APISERVERS, LOCAL_APISERVER};
use garboard_catalog::pki::Leaf;
use garboard_runtime::applier::chain;
use garboard_runtime::backoff::Backoff;
use garboard_runtime::crds::{self, CrdError};
use garboard_supervisor::status::ServiceStatus;
use http::Uri;
use kube::Client;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::addons::{self, AddonsError};
use crate::cluster::api_is_ready;
use crate::etcd::Membership;
use crate::pki::PkiStore;
use crate::problems::Problems;
use crate::served::first;

/// First and longest wait between two tries: an API server that starts is waited for closely, one that is away is not.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));
/// Time for which the API server may refuse what it needs itself without anybody being told: while it starts it does.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest time for which definitions wait for the API server to be ready.
const READY_FIRST: Duration = Duration::from_secs(60);
/// What problems are about.
const PART: &str = "API server";

/// The API server was not reached, or not set up.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The roles or policies could not be kept.
    #[error(transparent)]
    Objects(#[from] AddonsError),
    /// The definitions could not be applied.
    #[error(transparent)]
    Definitions(#[from] CrdError),
    /// The API server does not take this machine for what it is.
    #[error("the API server has not answered")]
    Version(#[source] Box<kube::Error>),
}

/// The task that finds the API server.
pub struct Connect {
    machine: watch::Receiver<Option<Arc<Machine>>>,
    joined: watch::Receiver<bool>,
    membership: watch::Receiver<Membership>,
    services: watch::Receiver<Arc<Vec<ServiceStatus>>>,
    pki: PkiStore,
    api: watch::Sender<Option<Client>>,
    problems: Problems,
}

impl std::fmt::Debug for Connect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connect").finish_non_exhaustive()
    }
}

impl Connect {
    /// A task that publishes its client on `api`, once the machine has `joined` its cluster.
    pub fn new(
        machine: watch::Receiver<Option<Arc<Machine>>>,
        joined: watch::Receiver<bool>,
        membership: watch::Receiver<Membership>,
        services: watch::Receiver<Arc<Vec<ServiceStatus>>>,
        pki: PkiStore,
        api: watch::Sender<Option<Client>>,
        problems: Problems,
    ) -> Self {
        Self { machine, joined, membership, services, pki, api, problems }
    }

    /// Tries until the API server serves this machine, publishes the client, and waits for `stop`. An outage later on is the business of
    /// whoever uses the client: connections are made when they are needed.
    pub async fn run(mut self, stop: CancellationToken) {
        let connect = async {
            let Some(machine) = first(&mut self.machine).await else { return };
            if self.joined.wait_for(|joined| *joined).await.is_err() {
                return;
            }
            let outage = Outage::default();
            let membership = self.membership.borrow().clone();
            if membership.counts(&machine) {
                self.serve(outage, membership.others).await;
                // From now on another API server is as good, and this machine may leave.
                if !membership.others && self.membership.wait_for(|membership| membership.others).await.is_ok() {
                    self.api.send_replace(Some(client(any(), Leaf::Agent, Outage::default())));
                }
            } else {
                self.follow(outage).await;
            }
        };
        if stop.run_until_cancelled(connect).await.is_some() {
            stop.cancelled().await;
        }
    }

    /// Sets up the API server of this machine, and then what nobody waits for. Where others serve too it is not waited for first.
    async fn serve(&self, outage: Outage, others: bool) {
        if others {
            self.follow(outage.clone()).await;
        }
        self.until_done(|| self.set_up(&outage)).await;
        info!("the API server is set up");
        if !others {
            self.api.send_replace(Some(client(local(), Leaf::Agent, outage.clone())));
        }
        self.until_done(|| self.advise(&outage)).await;
    }

    /// Waits for any API server of the cluster.
    async fn follow(&self, outage: Outage) {
        let client = client(any(), Leaf::Agent, outage);
        self.until_done(async || {
            let version = client.apiserver_version().await;
            version.map(drop).map_err(|error| ConnectError::Version(Box::new(error)))
        })
        .await;
        info!("the API server answers");
        self.api.send_replace(Some(client));
    }

    /// Tries something until the API server has done it.
    async fn until_done<Attempt: Future<Output = Result<(), ConnectError>>>(&self, attempt: impl Fn() -> Attempt) {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        let mut reported = String::new();
        let mut refused = None;
        while let Err(error) = attempt().await {
            let answers = is_answer(&error);
            let error = chain(&error);
            refused = answers.then(|| refused.unwrap_or_else(Instant::now));
            let lasts = refused.is_some_and(|since| since.elapsed() >= PATIENCE);
            self.problems.set(PART, lasts.then(|| error.clone()));
            if error != reported {
                if lasts {
                    warn!(error, "the API server is not set up");
                } else {
                    debug!(error, "the API server is not set up yet");
                }
                reported = error;
            }
            tokio::time::sleep(backoff.wait()).await;
        }
        self.problems.set(PART, None);
    }

    /// What everybody at the API server needs.
    async fn set_up(&self, outage: &Outage) -> Result<(), ConnectError> {
        let administrator = self.administrator(outage)?;
        addons::keep_roles(&administrator).await?;
        let due = crds::due(&administrator).await?;
        if !due.is_empty() {
            // They would take the processors from the node and from the API server's own roles, which get ready at the same time and
            // need none of them.
            let mut services = self.services.clone();
            tokio::time::timeout(READY_FIRST, services.wait_for(|services| api_is_ready(services))).await.ok();
            crds::apply(&administrator, &due).await?;
        }
        Ok(())
    }

    /// What is told to those who change something, and what workers may do.
    async fn advise(&self, outage: &Outage) -> Result<(), ConnectError> {
        let administrator = self.administrator(outage)?;
        addons::keep_policies(&administrator).await?;
        addons::keep_worker_roles(&administrator).await?;
        Ok(())
    }

    fn administrator(&self, outage: &Outage) -> Result<Client, AddonsError> {
        addons::administrator(&self.pki, local(), outage.clone(), SystemTime::now())
    }
}

/// Whether the API server has answered, and not as it should.
fn is_answer(error: &ConnectError) -> bool {
    matches!(error, ConnectError::Definitions(CrdError::NotEstablished { .. })) || has_status(error)
}

/// Whether an answer is among an error's causes.
fn has_status(error: &(dyn Error + 'static)) -> bool {
    matches!(error.downcast_ref(), Some(kube::Error::Api(_))) || error.source().is_some_and(has_status)
}

/// A client of an API server, as the bearer of `leaf`.
fn client(server: Uri, leaf: Leaf, outage: Outage) -> Client {
    garboard_api_client::client(server, Identity::Folder(leaf.folder().into()), outage)
}

/// The client of the cluster operators.
pub fn operators() -> Client {
    client(local(), Leaf::Operators, Outage::default())
}

/// Whichever API servers serve.
pub(crate) fn any() -> Uri {
    Uri::from_static(APISERVERS)
}

/// The API server of this machine.
pub(crate) fn local() -> Uri {
    Uri::from_static(LOCAL_APISERVER)
}
