//! The broker: busd on a thread of its own.
//!
//! busd has no policy yet: whoever can connect may take free names and send any signal, and kubelet believes a
//! `PrepareForShutdown` from anybody. So only root and the bus's own user may connect, which is what the mode of the
//! socket says; and the socket appears under its name only when logind's name is taken.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread;

use busd::bus::Bus;
use tokio::sync::oneshot;

/// Read and write for the bus's own user; root needs no permission.
const SOCKET_MODE: u32 = 0o600;

/// What the broker failed at.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// The thread could not be started.
    #[error("cannot start the broker's thread")]
    Thread(#[source] io::Error),
    /// The socket could not be prepared or put in place.
    #[error("cannot make the socket {path}")]
    Socket {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// busd failed.
    #[error("busd ended: {0}")]
    Ended(String),
}

/// A running broker. Its socket is removed when it is dropped.
#[derive(Debug)]
pub struct Broker {
    path: PathBuf,
    private: PathBuf,
    ended: oneshot::Receiver<String>,
}

impl Broker {
    /// Starts a broker under a private name beside `path`, whose D-Bus address is returned.
    ///
    /// # Errors
    /// When the socket or the thread cannot be made.
    pub fn start(path: &Path) -> Result<(Self, String), BrokerError> {
        let private = path.with_extension("new");
        for old in [path, &private] {
            remove(old).map_err(|source| BrokerError::Socket { path: old.to_owned(), source })?;
        }
        let address = format!("unix:path={}", private.display());
        let (bound, is_bound) = std::sync::mpsc::sync_channel(1);
        let (end, ended) = oneshot::channel();
        let bus_address = address.clone();
        let body = move || {
            let reason = zruntime::block_on(async move {
                let mut bus = match Bus::for_address(Some(&bus_address)).await {
                    Ok(bus) => bus,
                    Err(error) => {
                        let reason = format!("{error:#}");
                        let _ = bound.send(Err(reason.clone()));
                        return reason;
                    }
                };
                // Whoever starts the broker waits for this, so it is there to receive it.
                let _ = bound.send(Ok(()));
                match bus.run().await {
                    Ok(()) => "nothing to accept any more".to_owned(),
                    Err(error) => format!("{error:#}"),
                }
            });
            let _ = end.send(reason);
        };
        thread::Builder::new().name("broker".to_owned()).spawn(body).map_err(BrokerError::Thread)?;
        let bound = is_bound.recv().unwrap_or_else(|_| Err("its thread panicked".to_owned()));
        bound.map_err(BrokerError::Ended)?;
        let broker = Self { path: path.to_owned(), private, ended };
        fs::set_permissions(&broker.private, Permissions::from_mode(SOCKET_MODE))
            .map_err(|source| BrokerError::Socket { path: broker.private.clone(), source })?;
        Ok((broker, address))
    }

    /// Puts the socket in place for all clients.
    ///
    /// # Errors
    /// When it cannot be renamed.
    pub fn publish(&mut self) -> Result<(), BrokerError> {
        fs::rename(&self.private, &self.path).map_err(|source| BrokerError::Socket { path: self.path.clone(), source })
    }

    /// Waits for the broker's end, which is always a failure.
    pub async fn ended(&mut self) -> BrokerError {
        BrokerError::Ended((&mut self.ended).await.unwrap_or_else(|_| "its thread panicked".to_owned()))
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        for path in [&self.path, &self.private] {
            if let Err(error) = remove(path) {
                tracing::warn!(path = %path.display(), %error, "cannot remove the socket");
            }
        }
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
