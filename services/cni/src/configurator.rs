//! Makes the network what the configuration file says, and keeps it so.
//!
//! A change of the file is applied by its differences: of the peers alone, without the pods' part having to stop for it. When the
//! kernel tells that the tunnels or the network that carries them have changed, they are looked at; nothing is looked at
//! otherwise.

use std::sync::Arc;
use std::time::Duration;

use garboard_sys::config::ConfigError;
use sd_notify::NotifyState;
use tracing::{error, info, warn};

use crate::backend::BackendError;
use crate::backend::mtu::pods_mtu;
use crate::backend::vxlan::{self, Tunnels};
use crate::config::{Backend, Config};
use crate::conflist;
use crate::daemon::Paths;
use crate::firewall::tunnel;
use crate::network::{Network, NetworkError};
use crate::spec::chain;

/// What failed is tried again after this, doubled up to the maximum.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// What is set up.
struct Applied {
    config: Arc<Config>,
    mtu_bytes: u32,
}

/// Makes the network what the configuration file says.
pub struct Configurator<'a> {
    paths: &'a Paths,
    network: &'a Network,
    /// Whether the file may be another one than it was.
    file_changed: bool,
    /// What the file says.
    wanted: Option<Arc<Config>>,
    applied: Option<Applied>,
    /// None with a backend without tunnels.
    tunnels: Option<Tunnels>,
    /// How long to wait after the next failure.
    retry: Option<Duration>,
    /// What failed the last time.
    reported: Option<String>,
    /// Whether the runtime knows of what is applied.
    announced: bool,
    /// Whether the supervisor knows.
    ready: bool,
}

impl<'a> Configurator<'a> {
    /// One that has read nothing yet.
    pub fn new(paths: &'a Paths, network: &'a Network) -> Self {
        Self {
            paths,
            network,
            file_changed: true,
            wanted: None,
            applied: None,
            tunnels: None,
            retry: None,
            reported: None,
            announced: false,
            ready: false,
        }
    }

    /// The next [`Self::reconcile`] reads the file.
    pub fn file_changed(&mut self) {
        self.file_changed = true;
    }

    /// Waits until the kernel tells of something that may concern the tunnels; for ever without tunnels. A call that is given up
    /// loses nothing.
    pub async fn disturbed(&mut self) {
        let Some(tunnels) = &mut self.tunnels else { return std::future::pending().await };
        if let Err(error) = tunnels.disturbed().await {
            report("the kernel's network is no longer watched", &error);
            self.tunnels = None;
            self.applied = None;
        }
    }

    /// Compares everything that may have changed, and repairs what differs. Returns when to try again.
    pub async fn reconcile(&mut self) -> Option<Duration> {
        let read = self.read().await;
        let applied = match self.wanted.clone() {
            Some(config) => self.apply(config).await,
            None => Ok(()),
        };
        match &applied {
            // Each failure is told once.
            Err(error) if self.reported.as_ref() != Some(&chain(error)) => {
                report("pod network not set up", error);
                self.reported = Some(chain(error));
            }
            Err(_) => {}
            Ok(()) => self.reported = None,
        }
        let announced = if self.applied.is_some() { self.announce().await } else { Ok(()) };
        if read.is_ok() && applied.is_ok() && announced.is_ok() {
            self.retry = None;
            return None;
        }
        let wait = self.retry.unwrap_or(RETRY_FIRST);
        self.retry = Some((wait * 2).min(RETRY_MAX));
        Some(wait)
    }

    /// Reads the file when it changed. What cannot be used is reported, and what was read before stays wanted.
    async fn read(&mut self) -> Result<(), ()> {
        if !std::mem::take(&mut self.file_changed) {
            return Ok(());
        }
        match Config::load(&self.paths.config) {
            Ok(Some(config)) => match self.network.accepts(&config).await {
                Ok(()) => self.wanted = Some(Arc::new(config)),
                Err(error) => report("configuration refused", &error),
            },
            Ok(None) => info!(path = %self.paths.config.display(), "waiting for a configuration"),
            Err(error) => {
                report("configuration refused", &error);
                // Only another file can help, except when reading failed.
                self.file_changed = matches!(error, ConfigError::Read { .. });
                return if self.file_changed { Err(()) } else { Ok(()) };
            }
        }
        Ok(())
    }

    async fn apply(&mut self, config: Arc<Config>) -> Result<(), NetworkError> {
        let applied = match self.applied.take() {
            Some(applied) if config.is_but_for_peers(&applied.config) => applied,
            _ => return self.configure(config).await,
        };
        let Applied { config: before, mut mtu_bytes } = applied;
        let Backend::Vxlan(own) = &config.backend else {
            self.applied = Some(Applied { config, mtu_bytes });
            return Ok(());
        };
        // Nothing was opened when it could not be; then there is nothing to keep.
        let Some(tunnels) = &mut self.tunnels else { return self.configure(config).await };
        let peers_changed = config.peers != before.peers;
        if tunnels.underlay_changed() {
            match pods_mtu(&config).await {
                Ok(mtu) if mtu != mtu_bytes => {
                    self.network.set_mtu(mtu).await?;
                    mtu_bytes = mtu;
                }
                Ok(_) => {}
                // The address may come back; until then everything stays as it is.
                Err(error) => warn!(error = chain(&error), "MTU of the tunnels not known"),
            }
        }
        if peers_changed {
            tunnel::admit(&config.peers).map_err(NetworkError::Firewall)?;
            tunnels.peers_changed();
            info!(peers = config.peers.len(), "peers changed");
        }
        let connected = tunnels.reconcile(own, &config, mtu_bytes).await;
        self.applied = Some(Applied { config: config.clone(), mtu_bytes });
        all_reached(connected.map_err(NetworkError::Connect)?)
    }

    /// Sets everything up.
    async fn configure(&mut self, config: Arc<Config>) -> Result<(), NetworkError> {
        // Watched from here on, also when something fails: what the kernel tells may be what it waits for.
        self.tunnels = match &config.backend {
            Backend::Bridge => None,
            Backend::Vxlan(own) => Some(Tunnels::open(own)?),
        };
        let mtu_bytes = match pods_mtu(&config).await {
            Ok(mtu_bytes) => mtu_bytes,
            Err(error) => {
                let error = NetworkError::Backend(error);
                self.network.refuse(&error).await;
                return Err(error);
            }
        };
        let mut refused = None;
        let connect = async || {
            match (&config.backend, &mut self.tunnels) {
                (Backend::Vxlan(own), Some(tunnels)) => refused = tunnels.reconcile(own, &config, mtu_bytes).await?,
                _ => vxlan::remove().await?,
            }
            Ok(())
        };
        self.network.configure(config.clone(), mtu_bytes, connect).await?;
        self.applied = Some(Applied { config, mtu_bytes });
        self.announced = false;
        all_reached(refused)
    }

    /// Tells the runtime and the supervisor that pods can be attached.
    async fn announce(&mut self) -> Result<(), ()> {
        if self.announced || self.network.status().await.is_err() {
            return Ok(());
        }
        if let Err(source) = conflist::write(&self.paths.networks) {
            report("network configuration of the runtime not written", &source);
            return Err(());
        }
        self.announced = true;
        if !self.ready {
            self.ready = true;
            if let Err(error) = sd_notify::notify(&[NotifyState::Ready]) {
                warn!(%error, "supervisor not notified");
            }
        }
        Ok(())
    }
}

/// A peer that cannot be reached keeps no pod from being attached.
fn all_reached(refused: Option<BackendError>) -> Result<(), NetworkError> {
    refused.map_or(Ok(()), |error| Err(NetworkError::Connect(error)))
}

fn report(what: &str, error: &dyn std::error::Error) {
    error!(error = chain(error), "{what}");
}
