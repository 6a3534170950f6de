//! The cluster operators: what is done once for the whole cluster, by the machine that leads.

use std::fs;
use std::sync::Arc;

use anyhow::Context;
use garboard_controllers::leader::{self, Identity, Standing};
use garboard_controllers::removed_machines::RemovedMachines;
use garboard_controllers::{connect, csr, disputes, pools, removals};
use sd_notify::NotifyState;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::notify;

/// Identifies this start of the kernel (random(4)).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Runs until `stop` on the machine of that name. A machine that stands by is as healthy as the one that leads.
pub async fn run(machine: &str, stop: CancellationToken) -> anyhow::Result<()> {
    let boot_id = fs::read_to_string(BOOT_ID).with_context(|| format!("read {BOOT_ID}"))?;
    let identity = Identity::new(machine, boot_id.trim());
    info!(%identity, "cluster operators");
    let tell = |standing: Standing| {
        info!(%standing, "cluster operators");
        notify::tell(NotifyState::Ready);
        notify::tell(NotifyState::Status(&standing.to_string()));
    };
    let client = connect::operators();
    let duties = async |stop: CancellationToken| {
        let removed = Arc::new(RemovedMachines::new(client.clone()));
        tokio::join!(
            csr::run(client.clone(), removed.clone(), stop.clone()),
            disputes::run(client.clone(), disputes::KEPT, stop.clone()),
            pools::run(client.clone(), stop.clone()),
            removals::run(client.clone(), removed, stop),
        );
    };
    leader::lead(client.clone(), leader::OPERATORS, identity, tell, duties, stop).await;
    Ok(())
}
