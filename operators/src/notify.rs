//! Tells PID 1 that the agent serves, and that it is not hung (sd_notify(3)).

use std::env;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::warn;

/// Says that the agent serves; without a supervisor that asks for it nothing happens.
pub fn ready() {
    send("READY=1");
}

/// Says what the agent is doing.
pub fn status(text: &str) {
    send(&format!("STATUS={text}"));
}

/// Says again and again that the agent's only thread is not hung, twice in the time that PID 1 waits for it.
pub async fn watchdog(stop: CancellationToken) {
    let limit = env::var("WATCHDOG_USEC").ok().and_then(|text| text.parse().ok()).map(Duration::from_micros);
    let Some(limit) = limit else { return stop.cancelled().await };
    while !stop.is_cancelled() {
        send("WATCHDOG=1");
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(limit / 2) => {}
        }
    }
}

fn send(text: &str) {
    let Some(path) = env::var_os("NOTIFY_SOCKET") else { return };
    let sent = UnixDatagram::unbound().and_then(|socket| {
        socket.set_nonblocking(true)?;
        socket.send_to(text.as_bytes(), path)
    });
    match sent {
        Ok(_) => {}
        // PID 1 is busy: it reads what was sent before, and the next message comes soon.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
        Err(error) => warn!(%error, "cannot notify PID 1"),
    }
}
