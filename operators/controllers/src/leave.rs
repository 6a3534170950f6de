//! Leaves the cluster when somebody has deleted this machine's Machine: forgets its keys, what it had of the cluster's store, and all that
//! it knew of the cluster, and powers off.
//!
//! What pods left on DATA stays, and so does the machine's own key: with new manifests and another token it can join again.

use std::fs;
use std::io;
use std::path::PathBuf;

use garboard_control::{Client, ShutdownKind};
use garboard_runtime::applier::chain;
use garboard_runtime::ledger::Ledger;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::context::Paths;
use crate::problems::Problems;

/// What problems are about.
const PART: &str = "removal";
/// Why, in the log and on the console.
const REASON: &str = "its Machine was deleted: it leaves the cluster";

/// The task that leaves.
#[derive(Debug)]
pub struct Leave {
    /// Whether the Machine is gone.
    pub ended: watch::Receiver<bool>,
    /// PID 1.
    pub control: Client,
    /// What the machine knows.
    pub ledger: Ledger,
    /// Where its keys are.
    pub paths: Paths,
    /// Where it tells why.
    pub problems: Problems,
}

impl Leave {
    /// Waits for the end of the Machine, or for `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let leave = async {
            if self.ended.wait_for(|ended| *ended).await.is_err() {
                return;
            }
            info!("{REASON}");
            self.problems.set(PART, Some(REASON.to_owned()));
            if let Err(error) = self.forget() {
                error!(%error, "cannot forget the cluster");
                self.problems.set(PART, Some(format!("{REASON}, and cannot forget it: {error}")));
                return;
            }
            if let Err(error) = self.control.shutdown(ShutdownKind::PowerOff, REASON).await {
                error!(error = chain(&error), "cannot power off");
            }
        };
        if stop.run_until_cancelled(leave).await.is_some() {
            stop.cancelled().await;
        }
    }

    /// The ledger goes last: an interrupted removal is seen again and finished.
    fn forget(&self) -> io::Result<()> {
        let Paths {
            pki_state,
            pki: _,
            ledger: _,
            status: _,
            identity: _,
            join_token,
            registries,
            wireguard,
            claimant,
            etcd,
            etcd_restore,
        } = &self.paths;
        for path in [pki_state, join_token, registries, wireguard, claimant, etcd, etcd_restore] {
            remove(path)?;
        }
        self.ledger.forget()
    }
}

fn remove(path: &PathBuf) -> io::Result<()> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
