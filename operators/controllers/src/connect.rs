//! Finds the API server, brings in what everybody there needs, and hands out a client of the agent's own.
//!
//! Roles come first, because other services wait for theirs; then the custom resource definitions. The client is made
//! again when the agent's certificate is.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use garboard_catalog::kubeconfig::LOCAL_APISERVER;
use garboard_catalog::pki::Leaf;
use garboard_runtime::applier::chain;
use garboard_runtime::backoff::Backoff;
use garboard_runtime::crds::{self, CrdError};
use kube::config::AuthInfo;
use kube::{Client, Config};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::addons::{self, AddonsError};
use crate::pki::PkiStore;

/// First and longest wait between two tries: an API server that starts is waited for closely, one that is away is not.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));
/// Longest time until a connection is made.
const CONNECT: Duration = Duration::from_secs(5);
/// Time between two looks at the agent's certificate.
const CERTIFICATE: Duration = Duration::from_secs(60);

/// The API server was not reached, or not set up.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The roles could not be kept.
    #[error(transparent)]
    Roles(#[from] AddonsError),
    /// The definitions could not be applied.
    #[error(transparent)]
    Definitions(#[from] CrdError),
    /// The agent's own certificate could not be used.
    #[error("cannot use the agent's certificate")]
    Client(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// The task that finds the API server.
pub struct Connect {
    pki: PkiStore,
    deployed: PathBuf,
    api: watch::Sender<Option<Client>>,
}

impl std::fmt::Debug for Connect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connect").finish_non_exhaustive()
    }
}

impl Connect {
    /// A task that publishes its client on `api`; `deployed` is where services read their keys.
    pub fn new(pki: PkiStore, deployed: impl Into<PathBuf>, api: watch::Sender<Option<Client>>) -> Self {
        Self { pki, deployed: deployed.into(), api }
    }

    /// Tries until it has a client, then keeps that fresh, until `stop`. An outage later on is the business of whoever
    /// uses the client: connections are made for each request.
    pub async fn run(self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.keep() => {}
        }
    }

    async fn keep(&self) {
        let folder = self.deployed.join(Leaf::Agent.name());
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        let mut reported = String::new();
        loop {
            let made = modified(&folder);
            match self.connect(&folder).await {
                Ok(client) => {
                    info!("the API server answers");
                    self.api.send_replace(Some(client));
                    backoff.reset();
                    while modified(&folder) == made {
                        tokio::time::sleep(CERTIFICATE).await;
                    }
                    info!("the agent's certificate is new");
                }
                Err(error) => {
                    let error = chain(&error);
                    if error != reported {
                        debug!(error, "the API server is not set up yet");
                        reported = error;
                    }
                    tokio::time::sleep(backoff.wait()).await;
                }
            }
        }
    }

    async fn connect(&self, folder: &Path) -> Result<Client, ConnectError> {
        let administrator = addons::administrator(&self.pki, LOCAL_APISERVER, SystemTime::now())?;
        addons::keep_roles(&administrator).await?;
        crds::apply(&administrator).await?;
        client(folder)
    }
}

fn client(folder: &Path) -> Result<Client, ConnectError> {
    let url = LOCAL_APISERVER.parse().map_err(|error| ConnectError::Client(Box::new(error)))?;
    let mut config = Config::new(url);
    let file = |name: &str| folder.join(name).to_string_lossy().into_owned();
    config.connect_timeout = Some(CONNECT);
    config.root_cert_file = Some(folder.join("ca.crt"));
    config.auth_info = AuthInfo {
        client_certificate: Some(file("tls.crt")),
        client_key: Some(file("tls.key")),
        ..AuthInfo::default()
    };
    Client::try_from(config).map_err(|error| ConnectError::Client(Box::new(error)))
}

fn modified(folder: &Path) -> Option<SystemTime> {
    folder.join("tls.crt").metadata().and_then(|metadata| metadata.modified()).ok()
}
