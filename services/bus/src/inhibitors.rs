//! The inhibitors that clients hold: each is a pipe on the client's side and a stream to PID 1 on the other.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use garboard_control::{Client, ControlError};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tracing::{info, warn};

/// Most inhibitors at a time; kubelet holds one.
const MAX_INHIBITORS: usize = 64;

/// Who delays a shutdown, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its name for people.
    pub who: String,
    /// Its reason for people.
    pub why: String,
    /// Its user.
    pub uid: u32,
    /// Its process, as it was when it asked.
    pub pid: u32,
}

/// An inhibitor could not be had.
#[derive(Debug, thiserror::Error)]
pub enum InhibitError {
    /// Too many are held.
    #[error("{MAX_INHIBITORS} inhibitors are held already")]
    TooMany,
    /// PID 1 refused, or could not be reached.
    #[error("PID 1 does not wait")]
    Control(#[from] ControlError),
    /// There is no pipe.
    #[error("cannot make a pipe")]
    Pipe(#[source] io::Error),
}

/// All inhibitors that are held. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Inhibitors {
    control: Client,
    held: Arc<Mutex<Held>>,
}

#[derive(Debug, Default)]
struct Held {
    holders: BTreeMap<u64, Holder>,
    next: u64,
}

impl Inhibitors {
    /// None held, on that PID 1. Must be used within a tokio runtime.
    pub fn new(control: Client) -> Self {
        Self { control, held: Arc::default() }
    }

    /// Delays a shutdown until the last copy of the returned descriptor is closed.
    ///
    /// # Errors
    /// When PID 1 does not wait or there is no pipe.
    pub async fn hold(&self, holder: Holder) -> Result<OwnedFd, InhibitError> {
        if self.lock().holders.len() >= MAX_INHIBITORS {
            return Err(InhibitError::TooMany);
        }
        let mut inhibitor = self.control.inhibit(&holder.who, &holder.why).await?;
        let (reader, writer) = io::pipe().map_err(InhibitError::Pipe)?;
        let mut reader = pipe::Receiver::from_owned_fd(reader.into()).map_err(InhibitError::Pipe)?;
        let number = {
            let mut held = self.lock();
            let number = held.next;
            held.next += 1;
            held.holders.insert(number, holder.clone());
            number
        };
        info!(who = holder.who, why = holder.why, uid = holder.uid, pid = holder.pid, "shutdown inhibited");
        let inhibitors = self.clone();
        tokio::spawn(async move {
            // What is written into the pipe has no meaning; its end has.
            let mut buffer = [0; 64];
            let closed = async { while matches!(reader.read(&mut buffer).await, Ok(1..)) {} };
            tokio::select! {
                () = closed => info!(who = holder.who, "shutdown no longer inhibited"),
                () = inhibitor.lost() => warn!(who = holder.who, "PID 1 no longer waits"),
            }
            inhibitors.lock().holders.remove(&number);
        });
        Ok(writer.into())
    }

    /// Who holds one now.
    pub fn holders(&self) -> Vec<Holder> {
        self.lock().holders.values().cloned().collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Held> {
        // Nothing that is done under the lock can panic halfway.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
