//! The client's side: a cheap handle on the socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::{Stream, StreamExt};
use garboard_supervisor::spec::{ServiceName, ServiceSpec};
use garboard_supervisor::status::{ServiceStatus, SetResult};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status, Streaming};

use crate::proto;
use crate::proto::control_client::ControlClient;
use crate::types::{
    CONTROL_SOCKET, LogLine, LogSource, MachineInfo, MachinePhase, ProbeKind, ShutdownKind, UnknownValue, Upkeep,
};

/// Time in which PID 1 takes a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Time in which PID 1 answers a call, or sends the first sign of a stream; what a stream brings later comes when it comes.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// A call to PID 1 failed.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The socket's path does not make an endpoint.
    #[error("cannot prepare a connection to {path}")]
    Endpoint {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: tonic::transport::Error,
    },
    /// PID 1 did not answer, or answered with an error.
    #[error("{call} failed: {}", .source.message())]
    Call {
        /// The call.
        call: &'static str,
        /// The answer.
        #[source]
        source: Box<Status>,
    },
    /// A value could not be turned into JSON, or an answer is not the JSON of what was asked for.
    #[error("{call}: JSON does not fit")]
    Json {
        /// The call.
        call: &'static str,
        /// What does not fit.
        #[source]
        source: serde_json::Error,
    },
    /// An answer holds a value that the protocol does not know.
    #[error("{call}: unknown value in the answer")]
    Value {
        /// The call.
        call: &'static str,
        /// The value.
        #[source]
        source: UnknownValue,
    },
    /// A stream ended before it said anything.
    #[error("{call}: PID 1 closed the connection")]
    Closed {
        /// The call.
        call: &'static str,
    },
}

impl ControlError {
    /// Whether the same call can succeed later: PID 1 was not reached, or was busy.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Call { source, .. } => {
                matches!(source.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Unknown | Code::Cancelled)
            }
            Self::Closed { .. } => true,
            Self::Endpoint { .. } | Self::Json { .. } | Self::Value { .. } => false,
        }
    }

    /// Whether PID 1 refused what was asked, with its reason in the message.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Call { source, .. } => {
                matches!(source.code(), Code::InvalidArgument | Code::NotFound | Code::FailedPrecondition)
            }
            Self::Closed { .. } | Self::Endpoint { .. } | Self::Json { .. } | Self::Value { .. } => false,
        }
    }
}

/// Turns the status of a call into the error that names the call.
fn failed(call: &'static str) -> impl Fn(Status) -> ControlError {
    move |source| ControlError::Call { call, source: Box::new(source) }
}

fn json(call: &'static str) -> impl Fn(serde_json::Error) -> ControlError {
    move |source| ControlError::Json { call, source }
}

fn statuses(call: &'static str, services: proto::Services) -> Result<Vec<ServiceStatus>, ControlError> {
    services.statuses_json.iter().map(|bytes| serde_json::from_slice(bytes).map_err(json(call))).collect()
}

/// A handle on PID 1: cheap to clone, connects when first used and again after the connection broke.
#[derive(Clone, Debug)]
pub struct Client {
    inner: ControlClient<Channel>,
}

/// Delays a shutdown while it is held.
#[derive(Debug)]
pub struct Inhibitor {
    stream: Streaming<proto::Inhibited>,
    max_delay_ms: u64,
}

impl Inhibitor {
    /// The longest time that a shutdown waits for this, milliseconds.
    pub fn max_delay_ms(&self) -> u64 {
        self.max_delay_ms
    }

    /// Returns when it no longer holds: PID 1 closed the connection.
    pub async fn lost(&mut self) {
        while let Ok(Some(_)) = self.stream.message().await {}
    }
}

impl Client {
    /// A handle on the machine's own PID 1.
    ///
    /// # Errors
    /// [`ControlError::Endpoint`].
    pub fn new() -> Result<Self, ControlError> {
        Self::at(Path::new(CONTROL_SOCKET))
    }

    /// A handle on the PID 1 that listens at `path`. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`ControlError::Endpoint`].
    pub fn at(path: &Path) -> Result<Self, ControlError> {
        // The URI only fills the request's `:authority`; the connector decides where it goes.
        let endpoint = Endpoint::try_from("http://garboard")
            .map_err(|source| ControlError::Endpoint { path: path.to_owned(), source })?;
        let endpoint = endpoint.connect_timeout(CONNECT_TIMEOUT).timeout(ANSWER_TIMEOUT);
        let path = path.to_owned();
        let channel = endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        }));
        Ok(Self { inner: ControlClient::new(channel) })
    }

    fn inner(&self) -> ControlClient<Channel> {
        self.inner.clone()
    }

    /// Declares every service but the built-in ones: those not in `specs` end, changed ones restart, unchanged ones run on.
    ///
    /// # Errors
    /// A refusal ([`ControlError::is_refusal`]) when a specification is not valid; then nothing has changed.
    pub async fn set_services(&self, specs: &[ServiceSpec]) -> Result<Vec<SetResult>, ControlError> {
        const CALL: &str = "SetServices";
        let specs_json: Result<_, _> = specs.iter().map(serde_json::to_vec).collect();
        let request = proto::SetServicesRequest { specs_json: specs_json.map_err(json(CALL))? };
        let response = self.inner().set_services(request).await.map_err(failed(CALL))?.into_inner();
        response.results_json.iter().map(|bytes| serde_json::from_slice(bytes).map_err(json(CALL))).collect()
    }

    /// All services, the built-in ones included, by name.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn list_services(&self) -> Result<Vec<ServiceStatus>, ControlError> {
        const CALL: &str = "ListServices";
        let response = self.inner().list_services(proto::ListServicesRequest {}).await.map_err(failed(CALL))?;
        statuses(CALL, response.into_inner())
    }

    /// All services now and after each change. Changes that follow each other quickly may come as one.
    ///
    /// # Errors
    /// [`ControlError`]; one inside of the stream ends it.
    pub async fn watch_services(
        &self,
    ) -> Result<impl Stream<Item = Result<Vec<ServiceStatus>, ControlError>> + Send + Unpin + use<>, ControlError> {
        const CALL: &str = "WatchServices";
        let response = self.inner().watch_services(proto::WatchServicesRequest {}).await.map_err(failed(CALL))?;
        Ok(response.into_inner().map(|item| statuses(CALL, item.map_err(failed(CALL))?)))
    }

    /// Stops a service and starts it again, also out of a wait for its next try.
    ///
    /// # Errors
    /// A refusal when there is no such service or the machine is shutting down.
    pub async fn restart_service(&self, name: &ServiceName) -> Result<(), ControlError> {
        let request = proto::RestartServiceRequest { name: name.to_string() };
        self.inner().restart_service(request).await.map_err(failed("RestartService"))?;
        Ok(())
    }

    /// The last `lines` lines of a source and, with `follow`, those written later.
    ///
    /// # Errors
    /// A refusal when there is no such service; one inside of the stream ends it.
    pub async fn logs(
        &self,
        source: &LogSource,
        lines: u32,
        follow: bool,
    ) -> Result<impl Stream<Item = Result<LogLine, ControlError>> + Send + Unpin + use<>, ControlError> {
        const CALL: &str = "Logs";
        let source = match source {
            LogSource::Kernel => "kernel".to_owned(),
            LogSource::Service(name) => name.to_string(),
        };
        let request = proto::LogsRequest { source, lines, follow };
        let response = self.inner().logs(request).await.map_err(failed(CALL))?;
        Ok(response.into_inner().map(|item| match item {
            Ok(proto::LogLine { unix_usec, text }) => Ok(LogLine { unix_usec, text }),
            Err(status) => Err(failed(CALL)(status)),
        }))
    }

    /// Brings the answer to a probe over HTTPS.
    ///
    /// # Errors
    /// A refusal when there is no such service.
    pub async fn report_probe(
        &self,
        service: &ServiceName,
        kind: ProbeKind,
        ok: bool,
        message: &str,
    ) -> Result<(), ControlError> {
        let request = proto::ReportProbeRequest {
            service: service.to_string(),
            kind: proto::ProbeKind::from(kind).into(),
            ok,
            message: message.to_owned(),
        };
        self.inner().report_probe(request).await.map_err(failed("ReportProbe"))?;
        Ok(())
    }

    /// Begins to shut the machine down. Repeated, it changes nothing.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn shutdown(&self, kind: ShutdownKind, reason: &str) -> Result<(), ControlError> {
        let request =
            proto::ShutdownRequest { kind: proto::ShutdownKind::from(kind).into(), reason: reason.to_owned() };
        self.inner().shutdown(request).await.map_err(failed("Shutdown"))?;
        Ok(())
    }

    /// Delays a later shutdown until the result is dropped, or for the machine's longest delay.
    ///
    /// # Errors
    /// A refusal when the machine is stopping already.
    pub async fn inhibit(&self, who: &str, why: &str) -> Result<Inhibitor, ControlError> {
        const CALL: &str = "Inhibit";
        let request = proto::InhibitRequest { who: who.to_owned(), why: why.to_owned() };
        let mut stream = self.inner().inhibit(request).await.map_err(failed(CALL))?.into_inner();
        match stream.message().await.map_err(failed(CALL))? {
            Some(proto::Inhibited { max_delay_ms }) => Ok(Inhibitor { stream, max_delay_ms }),
            None => Err(ControlError::Closed { call: CALL }),
        }
    }

    /// The machine's phase now and after each change.
    ///
    /// # Errors
    /// [`ControlError`]; one inside of the stream ends it.
    pub async fn watch_machine(
        &self,
    ) -> Result<impl Stream<Item = Result<MachinePhase, ControlError>> + Send + Unpin + use<>, ControlError> {
        const CALL: &str = "WatchMachine";
        let response = self.inner().watch_machine(proto::WatchMachineRequest {}).await.map_err(failed(CALL))?;
        Ok(response.into_inner().map(|item| {
            let message = item.map_err(failed(CALL))?;
            MachinePhase::try_from(message).map_err(|source| ControlError::Value { call: CALL, source })
        }))
    }

    /// Replaces the screen on the machine's consoles by `text`: lines, and the SGR sequences of ECMA-48 for colour.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn console(&self, text: &str) -> Result<(), ControlError> {
        self.inner().console(proto::ConsoleRequest { text: text.to_owned() }).await.map_err(failed("Console"))?;
        Ok(())
    }

    /// What PID 1 knows of the machine.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn get_machine(&self) -> Result<MachineInfo, ControlError> {
        const CALL: &str = "GetMachine";
        let response = self.inner().get_machine(proto::GetMachineRequest {}).await.map_err(failed(CALL))?;
        serde_json::from_slice(&response.into_inner().machine_json).map_err(json(CALL))
    }

    /// Sets how the machine is watched over and how much it keeps of logs, until the next call. Returns what of it could not be done, in
    /// words.
    ///
    /// # Errors
    /// A refusal when a value is out of its bounds; then nothing has changed.
    pub async fn configure(&self, upkeep: &Upkeep) -> Result<Vec<String>, ControlError> {
        const CALL: &str = "Configure";
        let request = proto::ConfigureRequest { upkeep_json: serde_json::to_vec(upkeep).map_err(json(CALL))? };
        Ok(self.inner().configure(request).await.map_err(failed(CALL))?.into_inner().problems)
    }
}
