//! Makes the store anew when its majority is lost, with this machine's member as the only one: from a snapshot, from the machine's own
//! data, or from what the latest restore has set aside.
//!
//! 1. What was asked for is recorded. Then everything that uses the store ends.
//! 2. A one-shot makes the data of a new member beside the old. When it fails, the old serve on.
//! 3. That they are whole is recorded, and which folder they are. The two folders then change places, in one step of the kernel.
//! 4. The old data are kept until the next restore, and what uses the store starts again.
//!
//! After a power cut it begins again with 1 or 3, so at each moment the old data or the new ones are in their place, and never a part.

mod folders;

use std::sync::Arc;
use std::time::Duration;

use garboard_api::Machine;
use garboard_catalog::{
    EtcdRestore, EtcdSource, etcd, etcd_restore, kube_apiserver, kube_controller_manager, kube_scheduler, operators,
};
use garboard_runtime::applier::chain;
use garboard_runtime::ledger::{Ledger, LedgerError};
use garboard_supervisor::spec::ServiceSpec;
use garboard_supervisor::status::{PublicState, ServiceStatus};
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{Etcd, FILE, Membership};
use crate::problems::Problems;
use crate::served::first;
use crate::services::readiness;
pub use folders::Folders;

/// Name of the ledger's file.
const RECORD: &str = "etcd-restore";
/// What problems are about.
const PART: &str = "etcd restore";
/// The service by which PID 1 mounts DATA, where the store lies.
const DATA: &str = "data";
/// Longest time for everything that uses the store to end, and to be told so.
const STOP: Duration = Duration::from_secs(120);
/// How soon what only going on can end is tried again.
const RETRY: Duration = Duration::from_secs(10);
/// What uses the store, and what makes it.
const USERS: [&str; 6] = [
    etcd::NAME,
    etcd_restore::NAME,
    kube_apiserver::NAME,
    kube_controller_manager::NAME,
    kube_scheduler::NAME,
    operators::NAME,
];

/// A restore that somebody asks for.
#[derive(Debug)]
pub struct Ask {
    /// Of what.
    pub source: EtcdSource,
    /// What is done next, in words, and in the end why it was not done. It ends when it is done. Nobody needs to listen.
    pub progress: mpsc::Sender<Result<String, String>>,
}

/// What outlasts a power cut.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
enum Record {
    /// Nothing is being done.
    #[default]
    Nothing,
    /// New data are made.
    Make {
        /// Of what.
        source: EtcdSource,
    },
    /// The new data are whole, and come in the place of the old.
    Exchange {
        /// Number of the folder with the new data.
        inode: u64,
    },
}

/// The store was not made anew.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// What is to outlast a power cut could not be recorded.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// Files could not be brought in their place.
    #[error(transparent)]
    Folders(#[from] folders::FolderError),
    /// What uses the store has not ended.
    #[error("not ended within {} seconds: {}", STOP.as_secs(), .0.join(", "))]
    Busy(Vec<String>),
    /// The new data were not made.
    #[error("the new data could not be made ({0}); `garboardctl logs etcd-restore` tells more")]
    NotMade(String),
    /// The system gave no randomness.
    #[error("there is no randomness")]
    Random,
    /// The agent ends, and goes on when it is started again.
    #[error("the node agent is ending; it goes on when it is started again")]
    Ending,
}

/// The task.
pub struct Restores {
    machine: watch::Receiver<Option<Arc<Machine>>>,
    ledger: Ledger,
    membership: watch::Sender<Membership>,
    services: watch::Receiver<Arc<Vec<ServiceStatus>>>,
    specs: watch::Receiver<Arc<Vec<ServiceSpec>>>,
    stage: watch::Sender<Option<EtcdRestore>>,
    folders: Folders,
    problems: Problems,
}

impl std::fmt::Debug for Restores {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Restores").finish_non_exhaustive()
    }
}

impl Restores {
    /// Prepares the task for the store that `etcd` follows, and the channel that says what is being done: at once when something was
    /// begun before. `specs` are the services that PID 1 was told.
    pub fn new(
        etcd: &Etcd,
        specs: watch::Receiver<Arc<Vec<ServiceSpec>>>,
        folders: Folders,
    ) -> (Self, watch::Receiver<Option<EtcdRestore>>) {
        let begun = record(&etcd.ledger) != Record::Nothing;
        let (stage, seen) = watch::channel(begun.then_some(EtcdRestore::Still));
        let restores = Self {
            machine: etcd.machine.clone(),
            ledger: etcd.ledger.clone(),
            membership: etcd.membership.clone(),
            services: etcd.services.clone(),
            specs,
            stage,
            folders,
            problems: etcd.problems.clone(),
        };
        (restores, seen)
    }

    /// Goes on with what was begun before, and does what is `asked` for, one after the other, until `stop`.
    pub async fn run(mut self, mut asked: mpsc::Receiver<Ask>, stop: CancellationToken) {
        let work = async {
            let Some(machine) = first(&mut self.machine).await else { return };
            let begun = record(&self.ledger);
            if begun != Record::Nothing {
                info!("a restore of etcd goes on");
                let (progress, _) = mpsc::channel(1);
                self.carry_out(begun, &machine, &progress).await;
            }
            while let Some(Ask { source, progress }) = asked.recv().await {
                info!(?source, "etcd's store is made anew");
                let begun = Record::Make { source };
                match self.ledger.write(RECORD, &begun) {
                    Ok(()) => self.carry_out(begun, &machine, &progress).await,
                    Err(error) => drop(progress.send(Err(chain(&error))).await),
                }
            }
        };
        if stop.run_until_cancelled(work).await.is_some() {
            stop.cancelled().await;
        }
    }

    /// Does everything, and lets what uses the store start again, with the new data or the old.
    async fn carry_out(&mut self, begun: Record, machine: &Machine, progress: &mpsc::Sender<Result<String, String>>) {
        let mut begun = begun;
        let failed = loop {
            let failed = match self.restore(begun, machine, progress).await {
                Ok(()) => None,
                // The record stays, and so does the machine as it is.
                Err(RestoreError::Ending) => return,
                Err(error) => Some(chain(&error)),
            };
            if let Some(why) = &failed {
                error!(error = why, "etcd's store was not made anew");
            } else {
                info!("etcd's store was made anew, with this member alone");
            }
            self.problems.set(PART, failed.as_ref().map(|why| format!("the store was not made anew: {why}")));
            begun = record(&self.ledger);
            // Once the folders may have changed places, only going on is safe.
            if failed.is_none() || !matches!(begun, Record::Exchange { .. }) {
                break failed;
            }
            sleep(RETRY).await;
        };
        if failed.is_some()
            && let Err(error) = self.folders.clear()
        {
            warn!(error = chain(&error), "what is left of a restore takes up space");
        }
        if let Err(error) = self.ledger.write(RECORD, &Record::Nothing) {
            // It is done once more when the agent is started again, which changes nothing.
            error!(error = chain(&error), "that etcd's store was made anew is not recorded");
        }
        self.stage.send_replace(None);
        if let Some(why) = failed {
            // Whoever asked may be gone.
            drop(progress.send(Err(why)).await);
        }
    }

    async fn restore(
        &mut self,
        begun: Record,
        machine: &Machine,
        progress: &mpsc::Sender<Result<String, String>>,
    ) -> Result<(), RestoreError> {
        // A listener that is slow or gone holds nothing up.
        let problems = self.problems.clone();
        let tell = |what: &str| {
            problems.set(PART, Some(format!("the store is made anew: {what}")));
            drop(progress.try_send(Ok(what.to_owned())));
        };
        tell("what uses the store ends");
        self.stage.send_replace(Some(EtcdRestore::Still));
        self.still().await?;
        let inode = match begun {
            Record::Exchange { inode } => inode,
            Record::Make { source } => {
                self.folders.prepare()?;
                tell("the data of the new member are made");
                self.stage.send_replace(Some(EtcdRestore::Make { source, token: token()? }));
                self.made().await?;
                let inode = self.folders.keep_new()?;
                self.ledger.write(RECORD, &Record::Exchange { inode })?;
                inode
            }
            Record::Nothing => return Ok(()),
        };
        self.folders.exchange(inode)?;
        tell("the new data are in their place, and the old ones are set aside; the control plane starts");
        let former = self.membership.borrow().clone();
        let alone = Membership { votes: true, left: false, others: false, ..former };
        if alone.facts(machine, false).is_some() {
            self.ledger.write(FILE, &alone)?;
            self.membership.send_replace(alone);
        }
        Ok(())
    }

    /// Waits until PID 1 has been told, and everything that uses the store has ended.
    async fn still(&mut self) -> Result<(), RestoreError> {
        let told = |specs: &Arc<Vec<ServiceSpec>>| {
            !specs.is_empty() && !specs.iter().any(|spec| USERS.contains(&spec.name.as_str()))
        };
        // Empty is what is published before PID 1 has said anything.
        let ended = |services: &Arc<Vec<ServiceStatus>>| {
            readiness(services, DATA) != Some(false) && !services.is_empty() && running(services).is_empty()
        };
        let (mut specs, mut services) = (self.specs.clone(), self.services.clone());
        let waiting = async {
            specs.wait_for(told).await.map_err(|_| RestoreError::Ending)?;
            services.wait_for(ended).await.map_err(|_| RestoreError::Ending)?;
            Ok(())
        };
        match timeout(STOP, waiting).await {
            Ok(outcome) => outcome,
            Err(_) => Err(RestoreError::Busy(running(&self.services.borrow()))),
        }
    }

    /// Waits until the one-shot has made the data.
    async fn made(&mut self) -> Result<(), RestoreError> {
        let outcome = |services: &Arc<Vec<ServiceStatus>>| {
            let status = services.iter().find(|status| status.name.as_str() == etcd_restore::NAME)?;
            match &status.state {
                PublicState::Finished if status.ready => Some(Ok(())),
                PublicState::Failed { reason } => Some(Err(reason.clone())),
                _ => None,
            }
        };
        let mut services = self.services.clone();
        let services = services.wait_for(|services| outcome(services).is_some()).await;
        let services = services.map_err(|_| RestoreError::Ending)?;
        outcome(&services).unwrap_or(Ok(())).map_err(RestoreError::NotMade)
    }
}

/// What was begun and not ended. One whose record is damaged begins with nothing: the data are whole at each moment.
fn record(ledger: &Ledger) -> Record {
    ledger
        .read(RECORD)
        .unwrap_or_else(|error| {
            error!(error = chain(&error), "what was begun with etcd's store is lost");
            None
        })
        .unwrap_or_default()
}

/// Those that use the store and have not ended.
fn running(services: &[ServiceStatus]) -> Vec<String> {
    services.iter().map(|status| status.name.to_string()).filter(|name| USERS.contains(&name.as_str())).collect()
}

/// What tells the new cluster of members from any other: those of the store before would else take it for their own.
fn token() -> Result<String, RestoreError> {
    let mut bytes = [0; 8];
    SystemRandom::new().fill(&mut bytes).map_err(|_| RestoreError::Random)?;
    Ok(format!("garboard-{:016x}", u64::from_be_bytes(bytes)))
}
