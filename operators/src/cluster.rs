//! The cluster operators: what is done once for the whole cluster.

use garboard_controllers::{connect, csr};
use sd_notify::NotifyState;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::notify;

/// Runs until `stop`.
pub async fn run(stop: CancellationToken) -> anyhow::Result<()> {
    info!("cluster operators");
    notify::tell(NotifyState::Ready);
    csr::run(connect::operators(), stop).await;
    Ok(())
}
