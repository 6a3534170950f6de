//! Finds the API server, brings in what everybody there needs, and hands out a client of the agent's own.
//!
//! Roles come first, because other services wait for theirs; then the custom resource definitions.

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
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::addons::{self, AddonsError};
use crate::pki::PkiStore;

/// First and longest wait between two tries: an API server that starts is waited for closely, one that is away is not.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));

/// The API server was not reached, or not set up.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The roles could not be kept.
    #[error(transparent)]
    Roles(#[from] AddonsError),
    /// The definitions could not be applied.
    #[error(transparent)]
    Definitions(#[from] CrdError),
}

/// The task that finds the API server.
pub struct Connect {
    pki: PkiStore,
    api: watch::Sender<Option<Client>>,
}

impl std::fmt::Debug for Connect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connect").finish_non_exhaustive()
    }
}

impl Connect {
    /// A task that publishes its client on `api`.
    pub fn new(pki: PkiStore, api: watch::Sender<Option<Client>>) -> Self {
        Self { pki, api }
    }

    /// Tries until the API server is set up, publishes the client, and waits for `stop`. An outage later on is the
    /// business of whoever uses the client: connections are made when they are needed.
    pub async fn run(self, stop: CancellationToken) {
        let outage = Outage::default();
        if stop.run_until_cancelled(self.set_up(&outage)).await.is_some() {
            info!("the API server is set up");
            self.api.send_replace(Some(client(Leaf::Agent, outage)));
            stop.cancelled().await;
        }
    }

    async fn set_up(&self, outage: &Outage) {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        let mut reported = String::new();
        while let Err(error) = self.try_set_up(outage).await {
            let error = chain(&error);
            if error != reported {
                debug!(error, "the API server is not set up yet");
                reported = error;
            }
            tokio::time::sleep(backoff.wait()).await;
        }
    }

    async fn try_set_up(&self, outage: &Outage) -> Result<(), ConnectError> {
        let administrator = addons::administrator(&self.pki, local(), outage.clone(), SystemTime::now())?;
        addons::keep_roles(&administrator).await?;
        crds::apply(&administrator).await?;
        Ok(())
    }
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
