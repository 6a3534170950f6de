//! The daemon: waits for its configuration, keeps the network as it says, serves plugins.
//!
//! Tasks: the main thread waits for signals and changes of the configuration; a fixed number of workers each take a plugin from
//! the socket, do what it asks and answer. The kernel does what it is asked while it is asked, within milliseconds that block the
//! thread, so each worker has a small runtime of its own instead of a share of one, and as many requests run at once.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use garboard_sys::config::ConfigError;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::net::{SocketFlags, accept_with};
use sd_notify::NotifyState;
use tokio::runtime::{self, Runtime};
use tracing::{debug, error, info, warn};

use crate::config::Config;
use crate::conflist;
use crate::network::{Network, NetworkError};
use crate::spec::{CniError, Code, chain};
use crate::wire::{self, Request, Response};

/// Requests served at once. The kernel's own lock serialises most of an attachment; what overlaps is namespaces' teardown.
const WORKERS: usize = 8;
/// A plugin sends its request at once; one that does not is dropped.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);
/// How long requests may finish when the daemon is told to stop.
const STOP_GRACE: Duration = Duration::from_secs(5);
const STOP_POLL: Duration = Duration::from_millis(10);
/// A setup that failed is tried again after this, doubled up to the maximum.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// Where everything is.
#[derive(Clone, Debug)]
pub struct Paths {
    /// The configuration file.
    pub config: PathBuf,
    /// The socket for plugins.
    pub socket: PathBuf,
    /// The directory of reservations.
    pub state: PathBuf,
    /// The directory of the runtime's network configurations.
    pub networks: PathBuf,
}

impl Default for Paths {
    fn default() -> Self {
        Self {
            config: "/run/garboard/services/cni/config.json".into(),
            socket: wire::SOCKET.into(),
            state: "/run/garboard/cni".into(),
            networks: "/run/cni/net.d".into(),
        }
    }
}

/// The daemon cannot run.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The network's state cannot be read.
    #[error("open the pod network")]
    Network(#[from] NetworkError),
    /// A descriptor that the daemon waits on cannot be had.
    #[error("{what}")]
    Io {
        /// What for.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn failed<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> DaemonError {
    move |source| DaemonError::Io { what, source: source.into() }
}

/// Runs until SIGTERM or SIGINT; requests under way are finished first.
///
/// # Errors
/// When it cannot start. Once started it serves, and tells runtimes why when it cannot attach pods.
pub fn run(paths: &Paths) -> Result<(), DaemonError> {
    // Sockets and files are root's alone.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    // Before any other thread exists, so that none of them takes the signal.
    signals.thread_block().map_err(failed("block signals"))?;
    let stop = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC).map_err(failed("watch signals"))?;
    let changes = watch(&paths.config)?;
    let runtime = start_runtime()?;
    let network = Arc::new(runtime.block_on(Network::open(&paths.state))?);
    let listener = Arc::new(wire::serve(&paths.socket).map_err(failed("listen for plugins"))?);
    let active = Arc::new(AtomicUsize::new(0));
    for worker in 0..WORKERS {
        let (network, listener, active) = (network.clone(), listener.clone(), active.clone());
        let runtime = start_runtime()?;
        thread::Builder::new()
            .name(format!("worker-{worker}"))
            .spawn(move || serve(&runtime, &network, &listener, &active))
            .map_err(failed("start a worker"))?;
    }
    let mut configurator =
        Configurator { paths, runtime: &runtime, network: &network, current: None, retry: None, ready: false };
    loop {
        let wait = configurator.reconcile();
        let timeout = wait.map_or(PollTimeout::NONE, |wait| PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX));
        let mut descriptors =
            [PollFd::new(stop.as_fd(), PollFlags::POLLIN), PollFd::new(changes.as_fd(), PollFlags::POLLIN)];
        match poll(&mut descriptors, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(failed("wait for events")(errno)),
        }
        if descriptors[1].any() == Some(true) {
            // Which file it was does not matter: the configuration is read whole.
            let _ = changes.read_events();
        }
        if descriptors[0].any() == Some(true) {
            break;
        }
    }
    finish(paths, &active);
    Ok(())
}

fn start_runtime() -> Result<Runtime, DaemonError> {
    runtime::Builder::new_current_thread().enable_all().build().map_err(failed("start a runtime"))
}

/// Refuses new plugins and lets the running requests end.
fn finish(paths: &Paths, active: &AtomicUsize) {
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    let _ = std::fs::remove_file(&paths.socket);
    let deadline = Instant::now() + STOP_GRACE;
    while active.load(Ordering::Acquire) > 0 && Instant::now() < deadline {
        thread::sleep(STOP_POLL);
    }
    info!(unfinished = active.load(Ordering::Acquire), "stopped");
}

/// Watches the directory of a file: a file that is replaced is another file.
fn watch(file: &std::path::Path) -> Result<Inotify, DaemonError> {
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).map_err(failed("watch files"))?;
    let directory = file.parent().unwrap_or(std::path::Path::new("/"));
    let events = AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_DELETE;
    inotify.add_watch(directory, events).map_err(failed("watch the configuration's directory"))?;
    Ok(inotify)
}

/// Makes the network what the configuration file says.
struct Configurator<'a> {
    paths: &'a Paths,
    runtime: &'a Runtime,
    network: &'a Network,
    /// The configuration in use.
    current: Option<Config>,
    /// How long to wait after the next failure.
    retry: Option<Duration>,
    ready: bool,
}

impl Configurator<'_> {
    /// Applies the file when it changed, and returns when to try again.
    fn reconcile(&mut self) -> Option<Duration> {
        match self.apply() {
            Ok(()) => {
                self.retry = None;
                None
            }
            Err(wait) => wait,
        }
    }

    fn apply(&mut self) -> Result<(), Option<Duration>> {
        let config = match Config::load(&self.paths.config) {
            Ok(Some(config)) => config,
            Ok(None) => {
                info!(path = %self.paths.config.display(), "waiting for a configuration");
                return Err(None);
            }
            Err(error) => {
                report("configuration refused", &error);
                // Only another file can help, except when reading failed.
                return Err(matches!(error, ConfigError::Read { .. }).then(|| self.backoff()));
            }
        };
        if self.current.as_ref() == Some(&config) {
            return Ok(());
        }
        if let Err(error) = self.runtime.block_on(self.network.configure(config.clone())) {
            report("pod network not set up", &error);
            return Err(Some(self.backoff()));
        }
        self.current = Some(config);
        if self.runtime.block_on(self.network.status()).is_err() {
            return Ok(());
        }
        if let Err(source) = conflist::write(&self.paths.networks) {
            report("network configuration of the runtime not written", &source);
            self.current = None;
            return Err(Some(self.backoff()));
        }
        if !self.ready {
            self.ready = true;
            if let Err(error) = sd_notify::notify(&[NotifyState::Ready]) {
                warn!(%error, "supervisor not notified");
            }
        }
        Ok(())
    }

    fn backoff(&mut self) -> Duration {
        let wait = self.retry.unwrap_or(RETRY_FIRST);
        self.retry = Some((wait * 2).min(RETRY_MAX));
        wait
    }
}

fn report(what: &str, error: &dyn std::error::Error) {
    error!(error = chain(error), "{what}");
}

/// A worker: one plugin after the other, for ever.
fn serve(runtime: &Runtime, network: &Network, listener: &OwnedFd, active: &AtomicUsize) {
    loop {
        let plugin = match accept_with(listener, SocketFlags::CLOEXEC) {
            Ok(plugin) => plugin,
            Err(errno) => {
                // Out of descriptors or memory: others may give some back.
                warn!(listener = listener.as_raw_fd(), error = %errno, "cannot accept a plugin");
                thread::sleep(STOP_POLL);
                continue;
            }
        };
        active.fetch_add(1, Ordering::AcqRel);
        if let Err(error) = converse(runtime, network, &plugin) {
            debug!(%error, "plugin gone");
        }
        active.fetch_sub(1, Ordering::AcqRel);
    }
}

fn converse(runtime: &Runtime, network: &Network, plugin: &OwnedFd) -> io::Result<()> {
    wire::set_deadline(plugin, REQUEST_LIMIT)?;
    let (request, netns) = wire::receive::<Request>(plugin)?;
    let response = runtime.block_on(handle(network, request, netns)).unwrap_or_else(|error| {
        warn!(code = error.code as u32, %error, "request failed");
        Response::Failed(error)
    });
    wire::send(plugin, &response, None)
}

async fn handle(network: &Network, request: Request, netns: Option<OwnedFd>) -> Result<Response, CniError> {
    let netns = || netns.ok_or_else(|| CniError::new(Code::InvalidNetns, "the request carries no network namespace"));
    match request {
        Request::Add { id, network: name, pod, ports } => {
            network.add(&id, name, pod, ports, &netns()?).await.map(Response::Attached)
        }
        Request::Del { id } => network.del(&id).await.map(|()| Response::Done),
        Request::Ports { id, ports } => network.set_ports(&id, ports).await.map(|()| Response::Done),
        Request::Check { id } => network.check(&id, &netns()?).await.map(|()| Response::Done),
        Request::Status => network.status().await.map(|()| Response::Done),
        Request::Gc { network: name, valid } => network.gc(&name, &valid).await.map(|()| Response::Done),
    }
}
