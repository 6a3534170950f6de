//! The daemon: takes connections, and follows its configuration.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use garboard_sys::files::Files;
use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tracing::{error, info, warn};

use crate::config;
use crate::relay::{Limits, Shared, relay};

/// Connections at the same time: more wait to be taken. A machine's own clients have some dozens.
const CONNECTIONS: usize = 1024;
/// Pause after a connection could not be taken, which is when descriptors or memory are short.
const PAUSE: Duration = Duration::from_millis(100);

/// The daemon cannot run.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct DaemonError {
    what: String,
    #[source]
    source: io::Error,
}

fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> DaemonError {
    let what = what.into();
    move |source| DaemonError { what, source }
}

/// Takes connections at `listen` until SIGTERM or SIGINT. `path` is the configuration file.
///
/// # Errors
/// When the address cannot be had, or signals or files cannot be watched.
pub async fn run(listen: SocketAddr, path: &Path) -> Result<(), DaemonError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(failed("watch signals"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed("watch signals"))?;
    let mut files = Files::watch().map_err(failed("watch files"))?;
    files.follow(path).map_err(failed(format!("watch {}", path.display())))?;
    let shared = Arc::new(Shared::default());
    configure(&shared, path);
    let listener = TcpListener::bind(listen).await.map_err(failed(format!("listen on {listen}")))?;
    let limits = Limits::default();
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    info!(%listen, "ready");
    if let Err(error) = sd_notify::notify(&[NotifyState::Ready]) {
        warn!(%error, "supervisor not notified");
    }
    loop {
        let taken = async {
            // The semaphore is never closed.
            let permit = permits.clone().acquire_owned().await;
            (listener.accept().await, permit)
        };
        // Cancel-safe: a permit that is dropped is given back, a connection that is not taken stays in the queue.
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            changed = files.changed() => {
                changed.map_err(failed("watch files"))?;
                configure(&shared, path);
            }
            (accepted, permit) = taken => match accepted {
                Ok((client, _)) => {
                    let shared = shared.clone();
                    tokio::spawn(async move {
                        relay(client, &shared, &limits).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    warn!(%error, "a connection was not taken");
                    sleep(PAUSE).await;
                }
            },
        }
    }
    info!("stopped");
    Ok(())
}

/// Takes over what the file says; a file that cannot be used changes nothing.
fn configure(shared: &Shared, path: &Path) {
    match config::load(path) {
        Ok(servers) => {
            if shared.set(&servers) {
                info!(?servers, "configured");
            }
        }
        Err(error) => error!(error = &error as &dyn std::error::Error, "configuration refused"),
    }
}
