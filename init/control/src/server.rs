//! The server's side: calls become [`Request`]s on a bounded channel, answered by the one task that owns the state.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use futures::{Stream, StreamExt};
use garboard_supervisor::spec::{ServiceName, ServiceSpec};
use garboard_supervisor::status::{ServiceStatus, SetResult};
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::{ReceiverStream, WatchStream};
use tonic::{Response, Status};

use crate::proto;
use crate::proto::control_server::{Control, ControlServer};
use crate::types::{LogLine, LogSource, MachineInfo, MachinePhase, ProbeKind, ShutdownKind, Upkeep};

/// Most streams that one connection may have open; a client that is right needs a handful.
const MAX_STREAMS: u32 = 64;

/// Largest message, bytes: all specifications with their files are a few hundred KiB.
const MAX_MESSAGE_BYTES: usize = 4 << 20;

/// Why a request was refused; becomes the status of the call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no such service.
    #[error("there is no service {0}")]
    NoSuchService(ServiceName),
    /// The set of services is not valid.
    #[error("{0}")]
    InvalidSet(String),
    /// What is to be configured is out of bounds.
    #[error("{0}")]
    InvalidUpkeep(String),
    /// It cannot be done any more.
    #[error("the machine is shutting down")]
    ShuttingDown,
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let text = refusal.to_string();
        match refusal {
            Refusal::NoSuchService(_) => Self::not_found(text),
            Refusal::InvalidSet(_) | Refusal::InvalidUpkeep(_) => Self::invalid_argument(text),
            Refusal::ShuttingDown => Self::failed_precondition(text),
        }
    }
}

/// Where an answer goes. A caller that has gone is no concern of the one who answers.
pub type Reply<T> = oneshot::Sender<T>;

/// A call, for the event loop.
#[derive(Debug)]
pub enum Request {
    /// Declare all services.
    SetServices {
        /// All of them.
        specs: Vec<ServiceSpec>,
        /// What became of each.
        reply: Reply<Result<Vec<SetResult>, Refusal>>,
    },
    /// Report all services.
    ListServices {
        /// By name.
        reply: Reply<Vec<ServiceStatus>>,
    },
    /// Stop and start one again.
    RestartService {
        /// Which.
        name: ServiceName,
        /// Done, or why not.
        reply: Reply<Result<(), Refusal>>,
    },
    /// Send lines.
    Logs {
        /// Whose.
        source: LogSource,
        /// How many of the last ones.
        lines: u32,
        /// Whether later ones too.
        follow: bool,
        /// Where lines go. Whoever reads too slowly loses lines, not the service its output.
        reply: Reply<Result<mpsc::Receiver<LogLine>, Refusal>>,
    },
    /// Take a probe's answer.
    ReportProbe {
        /// Of which service.
        service: ServiceName,
        /// Which of its probes.
        kind: ProbeKind,
        /// The answer.
        ok: bool,
        /// What was said.
        message: String,
        /// Done, or why not.
        reply: Reply<Result<(), Refusal>>,
    },
    /// Shut down.
    Shutdown {
        /// How.
        kind: ShutdownKind,
        /// Why, for the log.
        reason: String,
        /// Begun.
        reply: Reply<()>,
    },
    /// Hold a delay.
    Inhibit {
        /// Who holds it.
        who: String,
        /// What for.
        why: String,
        /// Is closed once it is let go.
        held: oneshot::Receiver<()>,
        /// The longest delay.
        reply: Reply<Result<Duration, Refusal>>,
    },
    /// Replace the screen.
    Console {
        /// Its new content.
        text: String,
        /// Drawn.
        reply: Reply<()>,
    },
    /// Describe the machine.
    GetMachine {
        /// What is known.
        reply: Reply<MachineInfo>,
    },
    /// Set how the machine is watched over and how much it keeps of logs.
    Configure {
        /// From now on.
        upkeep: Upkeep,
        /// What of it could not be done, in words, or why nothing was.
        reply: Reply<Result<Vec<String>, Refusal>>,
    },
}

/// Who may do what on a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everything.
    Full,
    /// Only delay shutdowns and watch the machine's phase.
    Inhibit,
}

/// A socket could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {path}")]
pub struct ListenError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Makes the socket `path`, replacing one of an earlier run, with its permission bits and owners before anybody can connect.
///
/// # Errors
/// [`ListenError`].
pub fn listen(path: &Path, mode: u32, group: u32) -> Result<UnixListener, ListenError> {
    let failed = |source| ListenError { path: path.to_owned(), source };
    // Bound under another name first: the real name only ever shows a socket with its final permissions.
    let fresh = path.with_extension("new");
    for old in [&fresh, path] {
        match fs::remove_file(old) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
    }
    let listener = UnixListener::bind(&fresh).map_err(failed)?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(mode)).map_err(failed)?;
    chown(&fresh, Some(0), Some(group)).map_err(failed)?;
    fs::rename(&fresh, path).map_err(failed)?;
    Ok(listener)
}

/// The service behind a socket. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Server {
    access: Access,
    requests: mpsc::Sender<Request>,
    services: watch::Receiver<Vec<ServiceStatus>>,
    phase: watch::Receiver<MachinePhase>,
}

impl Server {
    /// A server that hands calls to `requests` and serves watches from `services` and `phase`.
    pub fn new(
        access: Access,
        requests: mpsc::Sender<Request>,
        services: watch::Receiver<Vec<ServiceStatus>>,
        phase: watch::Receiver<MachinePhase>,
    ) -> Self {
        Self { access, requests, services, phase }
    }

    /// Serves connections until the listener fails for good; one connection's failure ends only that connection.
    pub async fn run(self, listener: UnixListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    tokio::spawn(self.clone().serve(stream));
                }
                // Out of descriptors or memory: others may give some back, and accept would fail again at once.
                Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
    }

    async fn serve(self, stream: UnixStream) {
        let requests = self.requests.clone();
        let service = ControlServer::new(self).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let connection = http2::Builder::new(TokioExecutor::new())
            .max_concurrent_streams(MAX_STREAMS)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
        tokio::select! {
            // A broken connection is the client's affair: it sees it and connects again.
            _ = connection => {}
            // Nobody answers any more: a client had better look for who listens now.
            () = requests.closed() => {}
        }
    }

    fn full(&self) -> Result<(), Status> {
        match self.access {
            Access::Full => Ok(()),
            Access::Inhibit => Err(Status::permission_denied("this socket only takes Inhibit and WatchMachine")),
        }
    }

    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, Status> {
        let (reply, answer) = oneshot::channel();
        let gone = |_| ();
        self.requests.send(request(reply)).await.map_err(gone).map_err(|()| closing())?;
        answer.await.map_err(|_| closing())
    }
}

fn closing() -> Status {
    Status::unavailable("PID 1 takes no requests any more")
}

fn name(text: String) -> Result<ServiceName, Status> {
    ServiceName::try_from(text).map_err(|error| Status::invalid_argument(error.to_string()))
}

fn internal(error: serde_json::Error) -> Status {
    Status::internal(error.to_string())
}

fn services(statuses: &[ServiceStatus]) -> Result<proto::Services, Status> {
    let statuses_json: Result<_, _> = statuses.iter().map(serde_json::to_vec).collect();
    Ok(proto::Services { statuses_json: statuses_json.map_err(internal)? })
}

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Control for Server {
    type WatchServicesStream = Replies<proto::Services>;
    type LogsStream = Replies<proto::LogLine>;
    type InhibitStream = Replies<proto::Inhibited>;
    type WatchMachineStream = Replies<proto::MachinePhase>;

    async fn set_services(
        &self,
        request: tonic::Request<proto::SetServicesRequest>,
    ) -> Result<Response<proto::SetServicesResponse>, Status> {
        self.full()?;
        let specs: Result<Vec<ServiceSpec>, _> =
            request.into_inner().specs_json.iter().map(|bytes| serde_json::from_slice(bytes)).collect();
        let specs =
            specs.map_err(|error| Status::invalid_argument(format!("a specification is not valid: {error}")))?;
        let results = self.ask(|reply| Request::SetServices { specs, reply }).await??;
        let results_json: Result<_, _> = results.iter().map(serde_json::to_vec).collect();
        Ok(Response::new(proto::SetServicesResponse { results_json: results_json.map_err(internal)? }))
    }

    async fn list_services(
        &self,
        _request: tonic::Request<proto::ListServicesRequest>,
    ) -> Result<Response<proto::Services>, Status> {
        self.full()?;
        Ok(Response::new(services(&self.ask(|reply| Request::ListServices { reply }).await?)?))
    }

    async fn watch_services(
        &self,
        _request: tonic::Request<proto::WatchServicesRequest>,
    ) -> Result<Response<Self::WatchServicesStream>, Status> {
        self.full()?;
        let stream = WatchStream::new(self.services.clone()).map(|statuses| services(&statuses));
        Ok(Response::new(Box::pin(stream)))
    }

    async fn restart_service(
        &self,
        request: tonic::Request<proto::RestartServiceRequest>,
    ) -> Result<Response<proto::RestartServiceResponse>, Status> {
        self.full()?;
        let name = name(request.into_inner().name)?;
        self.ask(|reply| Request::RestartService { name, reply }).await??;
        Ok(Response::new(proto::RestartServiceResponse {}))
    }

    async fn logs(&self, request: tonic::Request<proto::LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        self.full()?;
        let proto::LogsRequest { source, lines, follow } = request.into_inner();
        let source = if source == "kernel" { LogSource::Kernel } else { LogSource::Service(name(source)?) };
        let lines = self.ask(|reply| Request::Logs { source, lines, follow, reply }).await??;
        let stream =
            ReceiverStream::new(lines).map(|LogLine { unix_usec, text }| Ok(proto::LogLine { unix_usec, text }));
        Ok(Response::new(Box::pin(stream)))
    }

    async fn report_probe(
        &self,
        request: tonic::Request<proto::ReportProbeRequest>,
    ) -> Result<Response<proto::ReportProbeResponse>, Status> {
        self.full()?;
        let proto::ReportProbeRequest { service, kind, ok, message } = request.into_inner();
        let service = name(service)?;
        let kind = ProbeKind::try_from(kind).map_err(|error| Status::invalid_argument(error.to_string()))?;
        self.ask(|reply| Request::ReportProbe { service, kind, ok, message, reply }).await??;
        Ok(Response::new(proto::ReportProbeResponse {}))
    }

    async fn shutdown(
        &self,
        request: tonic::Request<proto::ShutdownRequest>,
    ) -> Result<Response<proto::ShutdownResponse>, Status> {
        self.full()?;
        let proto::ShutdownRequest { kind, reason } = request.into_inner();
        let kind = ShutdownKind::try_from(kind).map_err(|error| Status::invalid_argument(error.to_string()))?;
        self.ask(|reply| Request::Shutdown { kind, reason, reply }).await?;
        Ok(Response::new(proto::ShutdownResponse {}))
    }

    async fn inhibit(
        &self,
        request: tonic::Request<proto::InhibitRequest>,
    ) -> Result<Response<Self::InhibitStream>, Status> {
        let proto::InhibitRequest { who, why } = request.into_inner();
        let (holder, held) = oneshot::channel::<()>();
        let max_delay = self.ask(|reply| Request::Inhibit { who, why, held, reply }).await??;
        let max_delay_ms = u64::try_from(max_delay.as_millis()).unwrap_or(u64::MAX);
        let first = futures::stream::iter([Ok(proto::Inhibited { max_delay_ms })]);
        // The second half never ends by itself; dropping the stream drops the holder, which is what lets go.
        let rest = futures::stream::once(async move {
            let _holder = holder;
            std::future::pending::<Result<proto::Inhibited, Status>>().await
        });
        Ok(Response::new(Box::pin(first.chain(rest))))
    }

    async fn watch_machine(
        &self,
        _request: tonic::Request<proto::WatchMachineRequest>,
    ) -> Result<Response<Self::WatchMachineStream>, Status> {
        let stream = WatchStream::new(self.phase.clone()).map(|phase| Ok(proto::MachinePhase::from(phase)));
        Ok(Response::new(Box::pin(stream)))
    }

    async fn console(
        &self,
        request: tonic::Request<proto::ConsoleRequest>,
    ) -> Result<Response<proto::ConsoleResponse>, Status> {
        self.full()?;
        let proto::ConsoleRequest { text } = request.into_inner();
        self.ask(|reply| Request::Console { text, reply }).await?;
        Ok(Response::new(proto::ConsoleResponse {}))
    }

    async fn get_machine(
        &self,
        _request: tonic::Request<proto::GetMachineRequest>,
    ) -> Result<Response<proto::GetMachineResponse>, Status> {
        self.full()?;
        let machine = self.ask(|reply| Request::GetMachine { reply }).await?;
        Ok(Response::new(proto::GetMachineResponse { machine_json: serde_json::to_vec(&machine).map_err(internal)? }))
    }

    async fn configure(
        &self,
        request: tonic::Request<proto::ConfigureRequest>,
    ) -> Result<Response<proto::ConfigureResponse>, Status> {
        self.full()?;
        let upkeep = serde_json::from_slice(&request.into_inner().upkeep_json)
            .map_err(|error| Status::invalid_argument(format!("what is to be configured is not valid: {error}")))?;
        let problems = self.ask(|reply| Request::Configure { upkeep, reply }).await??;
        Ok(Response::new(proto::ConfigureResponse { problems }))
    }
}
