//! Gets the certificates that a worker has to ask the cluster for.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use futures::future::join_all;
use garboard_catalog::pki::Leaf;
use garboard_plan::pki::Profile;
use garboard_runtime::applier::chain;
use garboard_runtime::backoff::{Backoff, after};
use kube::Client;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::pki::{PkiError, PkiStore};
use crate::request::{self, RequestError};

/// First and longest wait after a request failed.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// A certificate was not got.
#[derive(Debug, thiserror::Error)]
enum CertificateError {
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error(transparent)]
    Pki(#[from] PkiError),
}

/// What is to be asked for, for the machine of a name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Due {
    /// The machine's name.
    pub machine: String,
    /// The certificates.
    pub leaves: BTreeMap<Leaf, Profile>,
}

/// What the latest requests came to, in words; a new value after each of them.
pub type Outcome = BTreeMap<&'static str, String>;

/// The task that asks.
#[derive(Debug)]
pub struct Certificates {
    pki: PkiStore,
    due: watch::Receiver<Due>,
    outcome: watch::Sender<Outcome>,
}

impl Certificates {
    /// Prepares the task, and the channel on which it tells what could not be got.
    pub fn new(pki: PkiStore, due: watch::Receiver<Due>) -> (Self, watch::Receiver<Outcome>) {
        let (outcome, receiver) = watch::channel(Outcome::new());
        (Self { pki, due, outcome }, receiver)
    }

    /// Asks for what is due whenever the API server can be asked, until `stop`.
    pub async fn run(mut self, mut api: watch::Receiver<Option<Client>>, stop: CancellationToken) {
        let work = async {
            let mut backoff = Backoff::new(RETRY.0, RETRY.1);
            loop {
                let due = self.due.borrow_and_update().clone();
                let client = api.borrow_and_update().clone();
                let mut retry = None;
                if let Some(client) = client.filter(|_| !due.leaves.is_empty()) {
                    let asked =
                        due.leaves.iter().map(|(leaf, profile)| self.get(&client, &due.machine, *leaf, profile));
                    let failed: Outcome = join_all(asked).await.into_iter().flatten().collect();
                    retry = (!failed.is_empty()).then(|| backoff.wait());
                    self.outcome.send_replace(failed);
                }
                // Cancel-safe: each arm only waits. Whoever declares what is due looks again at each outcome.
                tokio::select! {
                    () = after(retry) => {}
                    Ok(()) = self.due.changed() => backoff.reset(),
                    Ok(()) = api.changed() => backoff.reset(),
                }
            }
        };
        stop.run_until_cancelled(work).await;
    }

    /// Gets one certificate; says what failed.
    async fn get(
        &self,
        client: &Client,
        machine: &str,
        leaf: Leaf,
        profile: &Profile,
    ) -> Option<(&'static str, String)> {
        let got = async {
            // What was declared due before the last answer came may be there since.
            if self.pki.has(leaf, profile, SystemTime::now())? {
                return Ok(());
            }
            let request = self.pki.request(leaf, profile)?;
            let certificate = request::certificate(client, machine, BTreeMap::new(), &request.pem).await?;
            self.pki.install(leaf, profile, &request, &certificate)?;
            info!(certificate = leaf.name(), "certificate issued by the cluster");
            // The others may take their time.
            self.outcome.send_modify(|failed| drop(failed.remove(leaf.name())));
            Ok::<_, CertificateError>(())
        };
        match got.await {
            Ok(()) => None,
            Err(error) => {
                let error = chain(&error);
                warn!(certificate = leaf.name(), error, "no certificate");
                Some((leaf.name(), error))
            }
        }
    }
}
