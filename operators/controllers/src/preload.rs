//! Brings the image's own container images into containerd whenever that has started.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use garboard_catalog::containerd;
use garboard_catalog::paths::{CONTAINERD_SOCKET, PRELOADED_IMAGES};
use garboard_runtime::applier::chain;
use garboard_runtime::backoff::Backoff;
use garboard_supervisor::status::ServiceStatus;
use kube::Client;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::images;
use crate::problems::Problems;

/// First and longest wait after containerd refused.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// Longest time that the first import waits for the API server. No pod starts before it serves, and until then it has a better use
/// for the processors and the disk.
const FIRST: Duration = Duration::from_secs(60);
/// What problems are about.
const PART: &str = "images of the release";

/// Imports after each start of containerd, until `stop`. What is imported already costs a question.
pub async fn run(
    statuses: watch::Receiver<Arc<Vec<ServiceStatus>>>,
    mut api: watch::Receiver<Option<Client>>,
    problems: Problems,
    stop: CancellationToken,
) {
    let import = async {
        // Whether it serves or the time is over, what follows is the same.
        let _ = timeout(FIRST, api.wait_for(Option::is_some)).await.map(drop);
        follow(statuses, &problems).await;
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = import => {}
    }
}

async fn follow(mut statuses: watch::Receiver<Arc<Vec<ServiceStatus>>>, problems: &Problems) {
    let mut imported = None;
    let mut backoff = Backoff::new(RETRY.0, RETRY.1);
    loop {
        let started = |statuses: &Arc<Vec<ServiceStatus>>| process(statuses).is_some_and(|pid| Some(pid) != imported);
        let Ok(pid) = statuses.wait_for(started).await.map(|statuses| process(&statuses)) else { return };
        match images::import(Path::new(PRELOADED_IMAGES), Path::new(CONTAINERD_SOCKET)).await {
            Ok(_) => {
                imported = pid;
                problems.set(PART, None);
                backoff.reset();
            }
            Err(error) => {
                let error = chain(&error);
                warn!(error, "cannot import the images");
                problems.set(PART, Some(error));
                tokio::time::sleep(backoff.wait()).await;
            }
        }
    }
}

/// The process of containerd, when it serves.
fn process(statuses: &[ServiceStatus]) -> Option<i32> {
    let status = statuses.iter().find(|status| status.name.to_string() == containerd::NAME)?;
    status.pid.filter(|_| status.ready)
}
