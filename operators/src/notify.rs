//! Tells PID 1 that the program serves, and that it is not hung (sd_notify(3)).

use sd_notify::NotifyState;
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// Tells PID 1 something about this process; without a supervisor that asks for it nothing happens. PID 1 never waits for
/// a service, so this takes a moment at most.
pub fn tell(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        warn!(%error, "cannot notify PID 1");
    }
}

/// Says again and again that the program's only thread is not hung, twice in the time that PID 1 waits for it.
pub async fn watchdog(stop: CancellationToken) {
    let Some(limit) = sd_notify::watchdog_enabled() else { return stop.cancelled().await };
    while !stop.is_cancelled() {
        tell(NotifyState::Watchdog);
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(limit / 2) => {}
        }
    }
}
