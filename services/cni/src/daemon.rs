//! The daemon: waits for its configuration, keeps the network as it says, serves plugins.
//!
//! Tasks: the main thread waits for signals, changes of the configuration and, with tunnels, of the kernel's network, and makes the
//! network what it should be ([`crate::configurator`]); a fixed number of workers each take a plugin from the socket, do what it asks and answer. The kernel does what it is asked while it is asked, within milliseconds that block the
//! thread, so each worker has a small runtime of its own instead of a share of one, and as many requests run at once.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use garboard_sys::files::Files;
use nix::sys::signal::SigSet;
use rustix::net::{SocketFlags, accept_with};
use sd_notify::NotifyState;
use tokio::runtime::{self, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{debug, info, warn};

use crate::configurator::Configurator;
use crate::network::{Network, NetworkError};
use crate::spec::{CniError, Code};
use crate::wire::{self, Request, Response};

/// Requests served at once. The kernel's own lock serialises most of an attachment; what overlaps is namespaces' teardown.
const WORKERS: usize = 8;
/// A plugin sends its request at once; one that does not is dropped.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);
/// How long requests may finish when the daemon is told to stop.
const STOP_GRACE: Duration = Duration::from_secs(5);
const STOP_POLL: Duration = Duration::from_millis(10);

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
    signals.add(nix::sys::signal::Signal::SIGTERM);
    signals.add(nix::sys::signal::Signal::SIGINT);
    // Before any other thread exists, so that none of them is interrupted by the signal.
    signals.thread_block().map_err(failed("block signals"))?;
    let runtime = start_runtime()?;
    let stop = {
        let _entered = runtime.enter();
        Stop::watch().map_err(failed("watch signals"))?
    };
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
    signals.thread_unblock().map_err(failed("unblock signals"))?;
    runtime.block_on(keep(paths, stop, &network))?;
    finish(paths, &active);
    Ok(())
}

/// The signals that end the daemon.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    fn watch() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for one of them. Cancel-safe.
    async fn asked(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Keeps the network as the configuration says until a signal comes.
async fn keep(paths: &Paths, mut stop: Stop, network: &Network) -> Result<(), DaemonError> {
    let mut files = Files::watch().map_err(failed("watch files"))?;
    files.follow(&paths.config).map_err(failed("watch the configuration's directory"))?;
    let mut configurator = Configurator::new(paths, network);
    loop {
        let retry = configurator.reconcile().await;
        let retry = async {
            match retry {
                Some(wait) => tokio::time::sleep(wait).await,
                None => std::future::pending().await,
            }
        };
        // All arms are cancel-safe: they wait, and what they wait for stays until it is taken.
        tokio::select! {
            () = stop.asked() => return Ok(()),
            changed = files.changed() => {
                changed.map_err(failed("wait for the configuration"))?;
                configurator.file_changed();
            }
            () = configurator.disturbed() => {}
            () = retry => {}
        }
    }
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
