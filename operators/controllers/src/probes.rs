//! Asks services over HTTPS whether they serve, and tells PID 1, which speaks no TLS.
//!
//! One task per probe: it asks while the service's process runs, as often as the probe says until it serves, then less
//! often. It reports each change of the answer at once and an unchanged one again after a while (`REPEAT`), so that a restarted
//! PID 1 state or a lost report mends itself.
//! Files are read for each question: certificates change while services run.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use garboard_control::{Client, ProbeKind};
use garboard_supervisor::spec::{ClientFiles, Probe, ProbeAction, ServiceName, ServiceSpec};
use garboard_supervisor::status::{PublicState, ServiceStatus};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// How soon an unchanged answer is reported again.
const REPEAT: Duration = Duration::from_secs(10);
/// Shortest time from a question with a good answer to the next: each costs both sides a handshake, also on an idle machine.
const STEADY: Duration = Duration::from_secs(10);
/// Longest status line that is read, bytes.
const STATUS_LINE_LIMIT: usize = 256;

/// The declared services and what is known of them, as the services controller keeps them.
#[derive(Clone)]
pub struct Watched {
    /// Every declared service.
    pub specs: watch::Receiver<Arc<Vec<ServiceSpec>>>,
    /// The state of each.
    pub states: watch::Receiver<Arc<Vec<ServiceStatus>>>,
}

/// Why a service does not count as serving.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// A file of certificates or keys is not usable.
    #[error("{path}: {message}")]
    File {
        /// Its path.
        path: String,
        /// What is wrong with it.
        message: String,
    },
    /// The connection was refused, broken or not trusted.
    #[error("{address}: {source}")]
    Connection {
        /// Where the service listens.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// There was no answer in time.
    #[error("{0}: no answer in time")]
    Timeout(SocketAddr),
    /// The answer says that it does not serve.
    #[error("{path}: {status}")]
    Status {
        /// The path that was asked for.
        path: String,
        /// The answer's first line.
        status: String,
    },
}

/// Asks until `stop`; begins anew whenever the declared services change.
pub async fn run(control: Client, mut watched: Watched, stop: CancellationToken) {
    loop {
        let mut tasks = JoinSet::new();
        let specs = watched.specs.borrow_and_update().clone();
        for (service, kind, probe) in questions(&specs) {
            tasks.spawn(ask_on(control.clone(), watched.states.clone(), service, kind, probe));
        }
        tokio::select! {
            // Cancel-safe: a change that comes while this is not polled is seen at the next poll.
            changed = watched.specs.changed() => if changed.is_err() { return },
            () = stop.cancelled() => return,
        }
    }
}

/// Every question to ask over HTTPS.
fn questions(specs: &[ServiceSpec]) -> Vec<(ServiceName, ProbeKind, Probe)> {
    let both = |spec: &ServiceSpec| {
        [(ProbeKind::Readiness, spec.readiness.clone()), (ProbeKind::Liveness, spec.liveness.clone())]
    };
    let of = |spec: &ServiceSpec| both(spec).map(|(kind, probe)| (spec.name.clone(), kind, probe));
    specs
        .iter()
        .flat_map(of)
        .filter_map(|(name, kind, probe)| probe.map(|probe| (name, kind, probe)))
        .filter(|(_, _, probe)| matches!(probe.action, ProbeAction::Https { .. }))
        .collect()
}

async fn ask_on(
    control: Client,
    mut states: watch::Receiver<Arc<Vec<ServiceStatus>>>,
    service: ServiceName,
    kind: ProbeKind,
    probe: Probe,
) {
    let mut reported: Option<(bool, Option<i32>, Instant)> = None;
    loop {
        let running = states.wait_for(|states| process(states, &service).is_some()).await;
        let Ok(pid) = running.map(|states| process(&states, &service)) else { return };
        let asked = Instant::now();
        let answer = ask(&probe).await;
        let ok = answer.is_ok();
        let same = reported.is_some_and(|(last, of, at)| last == ok && of == pid && at.elapsed() < REPEAT);
        // Liveness counts failures in a row, so that each is told.
        if !same || (kind == ProbeKind::Liveness && !ok) {
            let message = answer.err().map(|error| error.to_string()).unwrap_or_default();
            match control.report_probe(&service, kind, ok, &message).await {
                Ok(()) => reported = Some((ok, pid, Instant::now())),
                Err(error) => debug!(%service, %error, "an answer was not reported"),
            }
        }
        let pause = if ok { STEADY } else { Duration::ZERO }.max(Duration::from_millis(probe.period_ms));
        // A service that was started again is asked at once. Cancel-safe: both only wait.
        tokio::select! {
            () = sleep_until(asked + pause) => {}
            _ = states.wait_for(|states| process(states, &service) != pid) => {}
        }
    }
}

/// The process of a service whose program runs.
fn process(states: &[ServiceStatus], service: &ServiceName) -> Option<i32> {
    let state = states.iter().find(|state| state.name == *service)?;
    if matches!(state.state, PublicState::Running { .. }) { state.pid } else { None }
}

async fn ask(probe: &Probe) -> Result<(), ProbeError> {
    let ProbeAction::Https { address, path, ca_file, client } = &probe.action else { return Ok(()) };
    let asked = get(*address, path, ca_file, client.as_ref());
    match timeout(Duration::from_millis(probe.timeout_ms), asked).await {
        Ok(answer) => answer,
        Err(_) => Err(ProbeError::Timeout(*address)),
    }
}

/// `GET`s a path.
async fn get(address: SocketAddr, path: &str, ca_file: &Path, client: Option<&ClientFiles>) -> Result<(), ProbeError> {
    let connection = |source| ProbeError::Connection { address, source };
    let mut stream = connect(address, ca_file, client).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.map_err(connection)?;
    let mut line = Vec::with_capacity(STATUS_LINE_LIMIT);
    let mut limited = (&mut stream).take(STATUS_LINE_LIMIT as u64);
    while !line.contains(&b'\n') && limited.read_buf(&mut line).await.map_err(connection)? > 0 {}
    let line = String::from_utf8_lossy(&line);
    let status = line.lines().next().unwrap_or_default().to_owned();
    if is_good(&status) { Ok(()) } else { Err(ProbeError::Status { path: path.to_owned(), status }) }
}

/// Connects; the service's certificate must hold for the address.
pub(crate) async fn connect(
    address: SocketAddr,
    ca_file: &Path,
    client: Option<&ClientFiles>,
) -> Result<TlsStream<TcpStream>, ProbeError> {
    let broken = |source| ProbeError::Connection { address, source };
    let connector = TlsConnector::from(Arc::new(configuration(ca_file, client)?));
    let tcp = TcpStream::connect(address).await.map_err(broken)?;
    connector.connect(ServerName::from(address.ip()), tcp).await.map_err(broken)
}

/// Whether the first line of an answer says that the service serves.
pub(crate) fn is_good(status: &str) -> bool {
    status.split(' ').nth(1).is_some_and(|code| code.len() == 3 && code.starts_with('2'))
}

fn configuration(ca_file: &Path, client: Option<&ClientFiles>) -> Result<ClientConfig, ProbeError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates(ca_file)?);
    let builder = ClientConfig::builder().with_root_certificates(roots);
    match client {
        None => Ok(builder.with_no_client_auth()),
        Some(ClientFiles { cert_file, key_file }) => {
            let key = PrivateKeyDer::from_pem_file(key_file).map_err(|error| unusable(key_file, &error))?;
            builder.with_client_auth_cert(certificates(cert_file)?, key).map_err(|error| unusable(cert_file, &error))
        }
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ProbeError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    read.map_err(|error| unusable(path, &error))
}

fn unusable(path: &Path, error: &dyn std::fmt::Display) -> ProbeError {
    ProbeError::File { path: path.display().to_string(), message: error.to_string() }
}

#[cfg(test)]
#[path = "probes_tests.rs"]
mod tests;
