//! The daemon: serves as the configuration says, and follows the cluster.
//!
//! Tasks: one [`Follower`] fills the index; one server for each configuration answers from it; the main task waits for
//! signals and changes of files. A change of the configuration replaces servers, zone and upstream servers and keeps the
//! index.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use garboard_api_client::{Identity, Outage};
use hickory_server::Server;
use http::Uri;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use sd_notify::NotifyState;
use tokio::io::unix::AsyncFd;
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
        files.follow(self.path);
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
                files.follow(path);
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

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Tells when one of the files that matter changes: their directories are watched, because a file that is replaced is
/// another file.
struct Files {
    inotify: AsyncFd<OwnedFd>,
    directories: BTreeSet<PathBuf>,
}

impl Files {
    fn watch() -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        #[expect(
            deprecated,
            reason = "its unsafe successor asks for what an OwnedFd grants: the descriptor stays open"
        )]
        let inotify = AsyncFd::new(inotify)?;
        Ok(Self { inotify, directories: BTreeSet::new() })
    }

    /// Watches this too. What a path leads to by links is watched where it lies.
    fn follow(&mut self, path: &Path) {
        let real =
            std::fs::canonicalize(path).or_else(|_| std::fs::read_link(path)).unwrap_or_else(|_| path.to_owned());
        for path in [path, real.as_path()] {
            let directory = path.parent().unwrap_or(Path::new("/")).to_owned();
            let events = WatchFlags::CLOSE_WRITE | WatchFlags::MOVED_TO | WatchFlags::DELETE;
            if !self.directories.contains(&directory) {
                match inotify::add_watch(self.inotify.get_ref(), &directory, events) {
                    Ok(_) => drop(self.directories.insert(directory)),
                    Err(error) => warn!(directory = %directory.display(), %error, "cannot watch"),
                }
            }
        }
    }

    /// Waits for a change. Cancel-safe: it waits for readiness and takes events only when it returns.
    async fn changed(&mut self) -> io::Result<()> {
        let mut guard = self.inotify.readable().await?;
        // Which file it was does not matter: they are all read again.
        let mut events = [0; 4096];
        while rustix::io::read(self.inotify.get_ref(), &mut events).is_ok() {}
        guard.clear_ready();
        Ok(())
    }
}
