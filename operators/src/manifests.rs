//! Finds what is declared at the machine itself.
//!
//! What the firmware hands over is there at once and counts alone; only without it are media looked at, when every device
//! is known.

use std::path::Path;
use std::time::Duration;

use garboard_api::manifest::Manifests;
use garboard_control::Client;
use garboard_controllers::{firmware, media};
use garboard_runtime::local::{self, LocalError};
use tokio::time::Instant;
use tracing::{info, warn};

/// PID 1's task that makes devices known, and with them what the firmware hands over.
const DEVICES: &str = "devices";
/// Longest time until devices are known; what comes later is found at the next start.
const LIMIT: Duration = Duration::from_secs(20);
/// Time between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// What was found at the machine.
#[derive(Debug, Default)]
pub struct Found {
    /// What is declared; nothing if anything is wrong.
    pub manifests: Manifests,
    /// What is wrong.
    pub errors: Vec<LocalError>,
}

/// Looks until there is something or all devices are known.
pub async fn find(control: &Client) -> Found {
    let limit = Instant::now() + LIMIT;
    loop {
        // In this order: what devices brought before they were all known is seen.
        let known = devices_are_known(control).await || Instant::now() >= limit;
        let (mut raw, mut errors) = firmware::find(Path::new("/"));
        if raw.is_empty() && errors.is_empty() {
            if !known {
                tokio::time::sleep(LOOK).await;
                continue;
            }
            // Reading disks belongs on another thread. The task does not panic, and an agent that ends needs no answer.
            (raw, errors) = tokio::task::spawn_blocking(media::find).await.unwrap_or_default();
        }
        for found in &raw {
            info!(origin = found.origin, bytes = found.bytes.len(), "manifests found");
        }
        let manifests = match local::read(&raw) {
            Ok(manifests) if errors.is_empty() => manifests,
            Ok(_) => Manifests::default(),
            Err(refused) => {
                errors.extend(refused);
                Manifests::default()
            }
        };
        for error in &errors {
            warn!(%error, "manifests refused");
        }
        return Found { manifests, errors };
    }
}

async fn devices_are_known(control: &Client) -> bool {
    let services = control.list_services().await.unwrap_or_default();
    services.iter().any(|service| service.name.to_string() == DEVICES && service.ready)
}
