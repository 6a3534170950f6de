//! The daemon: serves as the configuration says, and follows the cluster.
//!
//! Tasks: one [`Follower`] fills the index; one server for each configuration answers from it; the main task waits for
//! signals and changes of files. A change of the configuration replaces servers, zone and upstream servers and keeps the
//! index.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use garboard_api_client::{Identity, Outage};
use garboard_sys::files::Files;
use hickory_server::Server;
use http::Uri;
use sd_notify::NotifyState;
use tokio::net::{TcpListener, UdpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::config::{Config, Upstreams};
use crate::forward::{Forwarder, read_resolv_conf};
use crate::handler::Handler;
use crate::index::Index;
use crate::listen;
use crate::watch::Follower;
use crate::zone::Zone;

/// A TCP client that is silent for this long is disconnected.
const TCP_IDLE: Duration = Duration::from_secs(10);
/// Answers that may wait for a slow TCP client.
const TCP_RESPONSES: usize = 16;
/// How long answers under way may take when the server stops.
const STOP_GRACE: Duration = Duration::from_secs(2);
/// A port that cannot be bound is tried again after this.
const RETRY: Duration = Duration::from_secs(1);

/// The daemon cannot run.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct DaemonError {
    what: &'static str,
    #[source]
    source: io::Error,
}

fn failed<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> DaemonError {
    move |source| DaemonError { what, source: source.into() }
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// When signals or files cannot be watched. Once started it waits for what is missing.
pub async fn run(path: &Path) -> Result<(), DaemonError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(failed("watch signals"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed("watch signals"))?;
    let mut files = Files::watch().map_err(failed("watch files"))?;
    let (synced_sender, mut synced) = watch::channel(false);
    let handler = empty();
    let mut daemon =
        Daemon { path, current: None, serving: None, refused: false, follower: None, synced_sender, handler };
    let mut ready = false;
    loop {
        let wait = daemon.reconcile(&mut files).await;
        if !ready && *synced.borrow() && daemon.serving.is_some() {
            ready = true;
            info!("ready");
            if let Err(error) = sd_notify::notify(&[NotifyState::Ready]) {
                warn!(%error, "supervisor not notified");
            }
        }
        tokio::select! {
            // All are cancel-safe: what one loses is read again from the files or the index.
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            changed = files.changed() => changed.map_err(failed("watch files"))?,
            Ok(()) = synced.changed(), if !ready => {}
            () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => {}
        }
    }
    daemon.stop().await;
    Ok(())
}

fn empty() -> Handler {
    let zone = Zone { domain: hickory_proto::rr::Name::root(), networks: Vec::new(), servers: Vec::new() };
    Handler {
        index: Arc::new(RwLock::new(Index::default())),
        zone: Arc::new(RwLock::new(Arc::new(zone))),
        forwarder: Arc::new(RwLock::new(Arc::new(Forwarder::new(&[], &[], &[])))),
    }
}

/// The task that follows the cluster, and whom it asks in whose name.
struct Following {
    server: (Uri, PathBuf),
    stop: CancellationToken,
    task: JoinHandle<()>,
}

struct Daemon<'a> {
    path: &'a Path,
    /// The configuration in use, and the upstream servers.
    current: Option<(Config, Vec<SocketAddr>)>,
    serving: Option<Server<Handler>>,
    /// Whether it was said that the sockets cannot be opened.
    refused: bool,
    follower: Option<Following>,
    synced_sender: watch::Sender<bool>,
    handler: Handler,
}

impl Daemon<'_> {
    /// Makes what runs what the files say, and returns when to try again.
    async fn reconcile(&mut self, files: &mut Files) -> Option<Duration> {
        // A file is watched before it is read: a change in between is then read twice instead of never.
        follow(files, self.path);
        let config = match Config::load(self.path) {
            Ok(Some(config)) => config,
            Ok(None) => {
                info!(path = %self.path.display(), "waiting for a configuration");
                return None;
            }
            Err(error) => {
                error!(error = %chain(&error), "configuration refused");
                return None;
            }
        };
        let servers = match &config.upstreams {
            Upstreams::Servers(servers) => servers.clone(),
            Upstreams::ResolvConf(path) => {
                follow(files, path);
                read_resolv_conf(path)
            }
        };
        if self.current.as_ref().is_some_and(|(current, upstreams)| *current == config && *upstreams == servers) {
            return self.listen();
        }
        self.follow_cluster(&config).await;
        self.set_zone(&config);
        let forwarder = Forwarder::new(&servers, &config.listen, &config.service_cidrs);
        info!(domain = %config.domain, listen = ?config.listen, upstreams = ?forwarder.servers(), "configured");
        *self.handler.forwarder.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(forwarder);
        if self.current.as_ref().is_none_or(|(current, _)| current.listen != config.listen) {
            self.stop_serving().await;
        }
        self.current = Some((config, servers));
        self.listen()
    }

    /// Opens the sockets that the configuration names, unless they are open.
    fn listen(&mut self) -> Option<Duration> {
        let Some((Config { listen, .. }, _)) = &self.current else { return None };
        if self.serving.is_some() {
            return None;
        }
        match self.serve(listen) {
            Ok(serving) => {
                self.serving = serving;
                self.refused = false;
                None
            }
            Err(error) => {
                if !self.refused {
                    error!(%error, ?listen, "cannot listen yet");
                }
                self.refused = true;
                Some(RETRY)
            }
        }
    }

    fn set_zone(&self, config: &Config) {
        let zone = Zone {
            domain: config.domain.clone(),
            networks: config.service_cidrs.iter().chain(&config.pod_cidrs).copied().collect(),
            servers: config.listen.iter().map(SocketAddr::ip).collect(),
        };
        *self.handler.zone.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(zone);
    }

    fn serve(&self, addresses: &[SocketAddr]) -> io::Result<Option<Server<Handler>>> {
        if addresses.is_empty() {
            return Ok(None);
        }
        let mut server = Server::new(self.handler.clone());
        for address in addresses {
            let (udp, tcp) = listen::open(*address)?;
            server.register_socket(UdpSocket::from_std(udp)?);
            server.register_listener(TcpListener::from_std(tcp)?, TCP_IDLE, TCP_RESPONSES);
        }
        Ok(Some(server))
    }

    async fn follow_cluster(&mut self, config: &Config) {
        let server = (config.server.clone(), config.identity.clone());
        if self.follower.as_ref().is_some_and(|following| following.server == server) {
            return;
        }
        self.stop_following().await;
        let identity = Identity::Folder(config.identity.clone());
        let follower = Follower {
            index: self.handler.index.clone(),
            client: garboard_api_client::client(config.server.clone(), identity, Outage::default()),
            synced: self.synced_sender.clone(),
        };
        let stop = CancellationToken::new();
        let task = tokio::spawn(follower.run(stop.clone()));
        self.follower = Some(Following { server, stop, task });
    }

    async fn stop_following(&mut self) {
        if let Some(Following { stop, task, .. }) = self.follower.take() {
            stop.cancel();
            if let Err(error) = task.await {
                error!(%error, "the follower of the cluster ended early");
            }
        }
    }

    async fn stop_serving(&mut self) {
        if let Some(mut server) = self.serving.take() {
            match tokio::time::timeout(STOP_GRACE, server.shutdown_gracefully()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => warn!(%error, "server ended with an error"),
                Err(_) => warn!("answers under way were dropped"),
            }
        }
    }

    async fn stop(&mut self) {
        let _ = sd_notify::notify(&[NotifyState::Stopping]);
        self.stop_serving().await;
        self.stop_following().await;
        info!("stopped");
    }
}

fn follow(files: &mut Files, path: &Path) {
    if let Err(error) = files.follow(path) {
        warn!(path = %path.display(), %error, "changes are not seen");
    }
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
