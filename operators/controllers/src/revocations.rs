//! Machines that were removed: the operators [record](crate::removed_machines) them in the status of the Cluster, and the agent of each
//! control-plane machine keeps its API server's authorizers by it, from the ledger while there is no API server to ask.

use std::path::Path;
use std::pin::pin;
use std::sync::Arc;

use futures::StreamExt;
use garboard_api::cluster::{self, RemovedMachine};
use garboard_api::machine::MachineRole;
use garboard_api::{Cluster, Machine};
use garboard_catalog::kube_apiserver::{ABSENT_AUTHORIZER, AUTHORIZATION};
use garboard_catalog::users;
use garboard_plan::revocation as plan;
use garboard_runtime::applier::chain;
use garboard_runtime::ledger::Ledger;
use kube::runtime::watcher;
use kube::{Api, Client};
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::pki::FileError;
use crate::pki::files::{make_folder, replace};
use crate::served::first;

/// Name of the ledger's file.
const FILE: &str = "removed-machines";

/// The task that keeps the authorizers.
pub struct Revocations {
    machine: watch::Receiver<Option<Arc<Machine>>>,
    api: watch::Receiver<Option<Client>>,
    ledger: Ledger,
    removed: Vec<RemovedMachine>,
}

impl std::fmt::Debug for Revocations {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Revocations").finish_non_exhaustive()
    }
}

impl Revocations {
    /// Prepares the task, and the files: kube-apiserver does not start without them.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn new(
        machine: watch::Receiver<Option<Arc<Machine>>>,
        api: watch::Receiver<Option<Client>>,
        ledger: Ledger,
    ) -> Result<Self, FileError> {
        let removed: Vec<RemovedMachine> = ledger
            .read(FILE)
            .unwrap_or_else(|error| {
                error!(error = chain(&error), "removed machines are not known until the API server answers");
                None
            })
            .unwrap_or_default();
        write(names(&removed))?;
        Ok(Self { machine, api, ledger, removed })
    }

    /// Keeps them until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let work = async {
            let role = first(&mut self.machine).await.map(|machine| machine.role());
            if role != Some(MachineRole::ControlPlane) {
                return std::future::pending().await;
            }
            loop {
                let client = self.api.borrow_and_update().clone();
                let mut api = self.api.clone();
                // Nothing is kept between rounds that the next does not read again.
                tokio::select! {
                    () = self.follow(client) => {}
                    Ok(()) = api.changed() => {}
                }
            }
        };
        stop.run_until_cancelled(work).await;
    }

    async fn follow(&mut self, client: Option<Client>) {
        let Some(client) = client else { return std::future::pending().await };
        let watch = watcher::watch_object(Api::<Cluster>::all(client), cluster::NAME);
        let mut watch = pin!(garboard_api_client::uninterrupted("removed machines", watch));
        while let Some(found) = watch.next().await {
            // A Cluster that is not there says nothing.
            let Some(status) = found.map(|cluster| cluster.status.unwrap_or_default()) else { continue };
            if status.removed_machines != self.removed {
                self.keep(status.removed_machines);
            }
        }
    }

    fn keep(&mut self, removed: Vec<RemovedMachine>) {
        info!(machines = ?names(&removed).collect::<Vec<_>>(), "removed machines");
        if let Err(error) = self.ledger.write(FILE, &removed) {
            warn!(error = chain(&error), "cannot record the removed machines");
        }
        match write(names(&removed)) {
            Ok(()) => self.removed = removed,
            Err(error) => error!(error = chain(&error), "cannot write the authorizers"),
        }
    }
}

/// Writes the files of kube-apiserver's authorizers, given the names of the machines that are removed.
///
/// # Errors
/// When one cannot be written.
pub fn write<'a>(removed: impl Iterator<Item = &'a str>) -> Result<(), FileError> {
    let put =
        |path: &str, content: &Value| replace(Path::new(path), &format!("{content:#}\n"), users::KUBE_APISERVER, 0o400);
    if let Some(folder) = Path::new(AUTHORIZATION).parent() {
        make_folder(folder, users::KUBE_APISERVER, 0o500)?;
    }
    put(ABSENT_AUTHORIZER, &plan::absent_authorizer())?;
    put(AUTHORIZATION, &plan::authorization(removed))
}

fn names(removed: &[RemovedMachine]) -> impl Iterator<Item = &str> {
    removed.iter().map(|one| one.machine.as_str())
}
