//! The D-Bus system bus, and on it the part of logind that lets kubelet delay a shutdown.
//!
//! | task | from | to |
//! |---|---|---|
//! | [`broker`] | connections to the bus socket | messages between them |
//! | [`login`] | calls of `org.freedesktop.login1.Manager` | inhibitors held on PID 1's inhibit socket |
//! | [`run`] | the machine's phases from PID 1 | the signal `PrepareForShutdown` |
//!
//! The broker runs on a thread of its own because busd brings its own runtime.

pub mod broker;
pub mod inhibitors;
pub mod login;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use futures::StreamExt;
use garboard_control::{Client, ControlError, MachinePhase};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use zbus::connection;
use zbus::object_server::InterfaceRef;

use self::broker::{Broker, BrokerError};
use self::inhibitors::Inhibitors;
use self::login::Manager;

/// Time between two attempts to reach PID 1.
const RETRY: Duration = Duration::from_secs(1);

/// Where the sockets are.
#[derive(Clone, Debug)]
pub struct Paths {
    /// The socket of the bus, which is made.
    pub bus: PathBuf,
    /// The socket of PID 1 for inhibitors.
    pub inhibit: PathBuf,
}

impl Default for Paths {
    fn default() -> Self {
        Self { bus: "/run/dbus/system_bus_socket".into(), inhibit: garboard_control::INHIBIT_SOCKET.into() }
    }
}

/// Why the bus ended.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// The broker did not start or ended.
    #[error("the broker does not run")]
    Broker(#[from] BrokerError),
    /// PID 1 does not say how long it waits for inhibitors.
    #[error("PID 1 cannot be asked how long it waits for inhibitors")]
    Control(#[from] ControlError),
    /// The part of logind could not be put on the bus.
    #[error("cannot serve org.freedesktop.login1")]
    Login(#[from] zbus::Error),
    /// The supervisor could not be told that the bus is ready.
    #[error("cannot tell the supervisor that the bus is ready")]
    Notify(#[source] io::Error),
}

/// Runs the bus until `stop`. Clients see its socket only when logind's part is on it; `ready` is called then.
///
/// # Errors
/// When a part could not be started, or the broker ended.
pub async fn run(
    paths: Paths,
    stop: CancellationToken,
    ready: impl FnOnce() -> io::Result<()>,
) -> Result<(), BusError> {
    let control = Client::at(&paths.inhibit)?;
    let delay = longest_delay(&control).await?;
    let (mut broker, private_address) = Broker::start(&paths.bus)?;
    let inhibitors = Inhibitors::new(control.clone());
    let manager = Manager::new(inhibitors, delay);
    let connection = connection::Builder::address(&*private_address)
        .name(login::NAME)
        .allow_name_replacements(false)
        .serve_at(login::PATH, manager)
        .build()
        .await?;
    let manager = connection.object_server().interface::<_, Manager>(login::PATH).await?;
    broker.publish()?;
    info!(socket = %paths.bus.display(), ?delay, "the system bus is ready");
    ready().map_err(BusError::Notify)?;
    tokio::select! {
        () = stop.cancelled() => Ok(()),
        error = broker.ended() => Err(error.into()),
        () = follow_phases(&control, &manager) => Ok(()),
    }
}

/// PID 1 tells it with each inhibitor, so one is held for a moment.
async fn longest_delay(control: &Client) -> Result<Duration, ControlError> {
    let inhibitor = control.inhibit("bus", "asks how long a shutdown waits").await?;
    Ok(Duration::from_millis(inhibitor.max_delay_ms()))
}

/// Turns each change of the machine's phase into what logind's clients see of it; never ends.
async fn follow_phases(control: &Client, manager: &InterfaceRef<Manager>) {
    loop {
        match control.watch_machine().await {
            Ok(mut phases) => {
                while let Some(phase) = phases.next().await {
                    match phase {
                        Ok(phase) => announce(manager, &phase).await,
                        Err(error) => warn!(%error, "the machine's phase is lost"),
                    }
                }
            }
            Err(error) => warn!(%error, "cannot follow the machine's phase"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn announce(manager: &InterfaceRef<Manager>, phase: &MachinePhase) {
    let preparing = match phase {
        MachinePhase::Running => false,
        MachinePhase::PreparingShutdown { .. } | MachinePhase::Stopping { .. } => true,
    };
    let changed = manager.get_mut().await.set_preparing(preparing);
    if !changed {
        return;
    }
    info!(preparing, "shutdown");
    let emitter = manager.signal_emitter();
    if let Err(error) = Manager::prepare_for_shutdown(emitter, preparing).await {
        warn!(%error, "cannot announce the shutdown");
    }
    if let Err(error) = manager.get().await.preparing_for_shutdown_changed(emitter).await {
        warn!(%error, "cannot announce the shutdown's property");
    }
}
