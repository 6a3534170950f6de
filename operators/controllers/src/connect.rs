//! Finds the API server, brings in what everybody there needs, and hands out a client of the agent's own.
//!
//! Roles come first, because other services wait for theirs; then the custom resource definitions. What is said of changes of such
//! resources nobody waits for, so it comes last.

use std::error::Error;
use std::time::{Duration, SystemTime};

use garboard_api_client::{Identity, Outage};
use garboard_catalog::kubeconfig::LOCAL_APISERVER;
use garboard_catalog::pki::Leaf;
use garboard_runtime::applier::chain;
use garboard_runtime::backoff::Backoff;
use garboard_runtime::crds::{self, CrdError};
use http::Uri;
use kube::Client;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::addons::{self, AddonsError};
use crate::pki::PkiStore;
use crate::problems::Problems;

/// First and longest wait between two tries: an API server that starts is waited for closely, one that is away is not.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));
/// Time for which the API server may refuse what it needs itself without anybody being told: while it starts it does.
const PATIENCE: Duration = Duration::from_secs(60);
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
}

/// The task that finds the API server.
pub struct Connect {
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
    /// A task that publishes its client on `api`.
    pub fn new(pki: PkiStore, api: watch::Sender<Option<Client>>, problems: Problems) -> Self {
        Self { pki, api, problems }
    }

    /// Tries until the API server is set up, publishes the client, brings in what nobody waits for, and waits for `stop`. An outage
    /// later on is the business of whoever uses the client: connections are made when they are needed.
    pub async fn run(self, stop: CancellationToken) {
        let outage = Outage::default();
        let set_up = async {
            self.until_done(|| self.set_up(&outage)).await;
            info!("the API server is set up");
            self.api.send_replace(Some(client(Leaf::Agent, outage.clone())));
            self.until_done(|| self.advise(&outage)).await;
        };
        if stop.run_until_cancelled(set_up).await.is_some() {
            stop.cancelled().await;
        }
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
        crds::apply(&administrator).await?;
        Ok(())
    }

    /// What is told to those who change something.
    async fn advise(&self, outage: &Outage) -> Result<(), ConnectError> {
        addons::keep_policies(&self.administrator(outage)?).await?;
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

/// A client of this machine's API server, as the bearer of `leaf`.
fn client(leaf: Leaf, outage: Outage) -> Client {
    garboard_api_client::client(local(), Identity::Folder(leaf.folder().into()), outage)
}

/// The client of the cluster operators.
pub fn operators() -> Client {
    client(Leaf::Operators, Outage::default())
}

fn local() -> Uri {
    Uri::from_static(LOCAL_APISERVER)
}
