//! The cluster operators: what is done once for the whole cluster.

use anyhow::Context;
use kube::{Client, Config};
use sd_notify::NotifyState;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::notify;

/// Runs until `stop`.
pub async fn run(stop: CancellationToken) -> anyhow::Result<()> {
    let config = Config::infer().await.context("read the kubeconfig")?;
    let client = Client::try_from(config).context("use the kubeconfig")?;
    info!("cluster operators");
    notify::tell(NotifyState::Ready);
    garboard_controllers::csr::run(client, stop).await;
    Ok(())
}
