//! Joins a cluster: from a pin and a one-time token to the certificate of the node agent.
//!
//! The machine knows its cluster by the pin of the cluster's authority, which the API servers show in their chain, and shows the token
//! to nobody else. A control-plane machine also fetches the cluster's keys. What it gets is kept on the state partition, and so is, from
//! before it asks, the key that it asks with: joining that was interrupted begins again, with the same token and the same key.

mod discovery;
mod keys;
mod token;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use garboard_api::Machine;
use garboard_api::machine::{MachineJoin, MachineRole};
use garboard_api::manifest::JoinToken;
use garboard_api::types::{PublicKeyPin, Token};
use garboard_api_client::{Identity, IdentityError, Outage};
use garboard_catalog::pki::Leaf;
use garboard_catalog::{balancer, users};
use garboard_plan::dispute::{ASK_AGAIN, Claimant};
use garboard_plan::join as plan;
use garboard_plan::pki::Authority;
use garboard_runtime::applier::chain;
use garboard_runtime::backoff::Backoff;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::connect;
use crate::network::NodeAddresses;
use crate::pki::{FileError, PkiError, PkiStore, files};
use crate::problems::Problems;
use crate::request::{self, RequestError};
use crate::served::first;

pub use discovery::DiscoveryError;
pub use keys::KeysError;
pub use token::{TokenError, is_alive, issue as issue_token};

/// First and longest wait between two tries.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));
/// Time for which the cluster may be out of reach without anybody being told: the network comes up meanwhile.
const PATIENCE: Duration = Duration::from_secs(20);
/// What problems are about.
const PART: &str = "join";

/// The machine has not joined.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// There is no token to show.
    #[error("there is no token: give the machine the manifests that `garboardctl join {0}` makes")]
    NoToken(String),
    /// There is no token, and the machine was in the cluster with a key that it has lost.
    #[error(
        "the key of this machine is in another TPM, or in one that was cleared or is gone: give the machine the manifests that \
         `garboardctl join {0}` makes"
    )]
    LostKey(String),
    /// It is not said by what the cluster is known.
    #[error("spec.join.caPin is not there")]
    NoPin,
    /// The token could not be read.
    #[error(transparent)]
    Token(#[from] FileError),
    /// The cluster was not found.
    #[error("cannot find the cluster at {endpoints}")]
    Discovery {
        /// Where it should be.
        endpoints: String,
        /// Why not.
        #[source]
        source: DiscoveryError,
    },
    /// The cluster does not know the token.
    #[error(
        "the cluster does not know the token: it has expired, or was made for another cluster; `garboardctl join {0}` makes another, and \
         `garboardctl -m {0} apply` gives it to the machine"
    )]
    Unknown(String),
    /// The request failed.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The cluster's keys did not come.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// Keys or certificates could not be made or kept.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The cluster's authority cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

impl JoinError {
    /// Whether the cluster has said no.
    fn is_refusal(&self) -> bool {
        matches!(self, Self::Request(RequestError::Refused { .. }))
    }
}

/// What the machine says of itself to the cluster that it joins.
#[derive(Clone, Debug)]
pub struct Introduction {
    /// Identifies the installation.
    pub machine_id: String,
    /// SHA-256 of its public key.
    pub fingerprint: PublicKeyPin,
    /// Its addresses.
    pub network: watch::Receiver<NodeAddresses>,
}

impl Introduction {
    fn annotations(&self) -> BTreeMap<String, String> {
        let claimant = Claimant {
            machine_id: Some(self.machine_id.clone()),
            fingerprint: Some(self.fingerprint),
            addresses: self.network.borrow().addresses.clone(),
        };
        claimant.annotations()
    }
}

/// The task that joins.
#[derive(Debug)]
pub struct Join {
    machine: watch::Receiver<Option<Arc<Machine>>>,
    introduction: Introduction,
    pki: PkiStore,
    token: Arc<TokenFile>,
    problems: Problems,
    joined: watch::Sender<bool>,
}

/// Where the token is kept, from when it was given until it has done its work.
#[derive(Debug)]
pub struct TokenFile {
    path: PathBuf,
    given: Notify,
}

impl Join {
    /// Prepares the task, and the channel that tells whether the machine belongs to its cluster: one that founds it does from the
    /// beginning. A token that lies with the manifests is kept in `token`.
    pub fn new(
        machine: watch::Receiver<Option<Arc<Machine>>>,
        introduction: Introduction,
        pki: PkiStore,
        token: Arc<TokenFile>,
        given: Option<&JoinToken>,
        problems: Problems,
    ) -> (Self, watch::Receiver<bool>) {
        if let Some(given) = given
            && let Err(error) = token.keep(given)
        {
            problems.set(PART, Some(chain(&error)));
        }
        let (joined, receiver) = watch::channel(false);
        (Self { machine, introduction, pki, token, problems, joined }, receiver)
    }

    /// Joins, and waits for `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let work = async {
            let Some(machine) = first(&mut self.machine).await else { return };
            if machine.joins() {
                self.join(machine).await;
            }
            self.joined.send_replace(true);
        };
        if stop.run_until_cancelled(work).await.is_some() {
            stop.cancelled().await;
        }
    }

    /// Tries until the machine has the certificate of its agent.
    async fn join(&mut self, mut machine: Arc<Machine>) {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        let (began, mut told) = (Instant::now(), String::new());
        while let Err(error) = self.attempt(&machine).await {
            // What is only not there yet while the machine starts is no problem.
            let silent = matches!(&error, JoinError::Discovery { source, .. } if source.is_silence());
            let early = silent && began.elapsed() < PATIENCE;
            let wait = if error.is_refusal() { ASK_AGAIN } else { backoff.wait() };
            let error = chain(&error);
            self.problems.set(PART, Some(error.clone()).filter(|_| !early));
            if error == told || early {
                debug!(error, "not joined yet");
            } else {
                warn!(error, "not joined yet");
                told = error;
            }
            // Cancel-safe: each arm only waits.
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                // Who has claimed the machine claims it again, with what was mistaken.
                Ok(()) = self.machine.changed() => backoff.reset(),
                () = self.token.given.notified() => backoff.reset(),
            }
            if let Some(now) = self.machine.borrow_and_update().clone() {
                machine = now;
            }
        }
        self.problems.set(PART, None);
        self.token.forget();
        if let Err(error) = self.pki.forget_request(Leaf::Agent) {
            warn!(error = chain(&error), "the key of the request is still there");
        }
    }

    async fn attempt(&self, machine: &Machine) -> Result<(), JoinError> {
        let controls = machine.role() == MachineRole::ControlPlane;
        let known = self.pki.deploy_valid(Leaf::Agent, SystemTime::now())?;
        if known && (!controls || self.pki.has_cluster_keys()?) {
            return Ok(());
        }
        let name = machine.node_name();
        let Some(join) = &machine.spec.join else { return Err(JoinError::NoToken(name.to_owned())) };
        let text = self.token.read()?;
        let Some(token) = text.as_deref().and_then(Token::parse) else {
            let lost = self.pki.has_lost(Leaf::Agent)?;
            return Err(if lost { JoinError::LostKey } else { JoinError::NoToken }(name.to_owned()));
        };
        if controls && token.seal.is_none() {
            return Err(KeysError::NotForControlPlane(name.to_owned()).into());
        }
        if !known {
            self.get_certificate(machine, join, token).await?;
        }
        if controls {
            let identity = Identity::Folder(self.pki.deployed(Leaf::Agent));
            let client = garboard_api_client::client(connect::any(), identity, Outage::default());
            keys::fetch(&self.pki, &client, name, token).await?;
        }
        info!(machine = name, "joined the cluster");
        Ok(())
    }

    /// Gets the certificate of the machine's agent for its token.
    async fn get_certificate(&self, machine: &Machine, join: &MachineJoin, token: Token<'_>) -> Result<(), JoinError> {
        let name = machine.node_name();
        let authority = self.authority(join).await?;
        let identity = Identity::of_token(&authority, token.bearer)?;
        let client = garboard_api_client::client(connect::any(), identity, Outage::default());
        let profile = &plan::agent(machine.role(), name);
        // The token is this key's once it was shown with it.
        let request = self.pki.kept_request(Leaf::Agent, profile)?;
        let annotations = self.introduction.annotations();
        let certificate = request::certificate(&client, name, annotations, &request.pem).await.map_err(|error| {
            if error.is_unauthorized() { JoinError::Unknown(name.to_owned()) } else { JoinError::Request(error) }
        })?;
        Ok(self.pki.install(Leaf::Agent, profile, &request, &certificate)?)
    }

    /// The cluster's authority, PEM: the one that was found before, unless another is declared since; or what the API servers show now.
    async fn authority(&self, join: &MachineJoin) -> Result<String, JoinError> {
        let known = self.pki.authority_pin(Authority::Kubernetes)?;
        if known.is_some_and(|known| join.ca_pin.is_none_or(|pin| pin == known)) {
            return Ok(self.pki.authority_certificate(Authority::Kubernetes)?);
        }
        let pin = join.ca_pin.ok_or(JoinError::NoPin)?;
        let found = discovery::authority(balancer::PORT, pin).await.map_err(|source| {
            let endpoints: Vec<_> = join.endpoints.iter().map(ToString::to_string).collect();
            JoinError::Discovery { endpoints: endpoints.join(", "), source }
        })?;
        self.pki.trust(&found)?;
        Ok(found)
    }
}

impl TokenFile {
    /// One at this path.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), given: Notify::new() }
    }

    /// Keeps a token that was given, in a file that only root reads; the machine that joins uses it at once.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep(&self, given: &JoinToken) -> Result<(), FileError> {
        files::replace(&self.path, &given.token, users::ROOT, 0o600)?;
        self.given.notify_one();
        Ok(())
    }

    /// Whether it is this token that is kept.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn holds(&self, given: &JoinToken) -> Result<bool, FileError> {
        Ok(self.read()?.is_some_and(|kept| kept == given.token))
    }

    fn read(&self) -> Result<Option<String>, FileError> {
        files::read(&self.path)
    }

    /// It serves once.
    fn forget(&self) {
        if let Err(error) = files::remove(&self.path) {
            warn!(error = chain(&error), "the token is still there");
        }
    }
}
