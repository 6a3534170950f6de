//! Calls a machine.

mod error;
mod etcd;
mod stream;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use hyper_util::rt::TokioIo;
use rustls::AlertDescription;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint as ChannelSettings};

use crate::proto::machine_client::MachineClient;
use crate::proto::trial_decide_request::Decision;
use crate::proto::{
    AppliedObject, ApplyManifestRequest, ClaimRequest, EndorsementRequest, JoinTokenRequest, JoinTokenResponse,
    KubeconfigRequest, KubeconfigResponse, LogLine, LogsRequest, ProveEndorsementRequest, RebootRequest, Service,
    ServiceRestartRequest, ServicesRequest, ShutdownRequest, StatusRequest, StatusResponse, TrialDecideRequest,
    VersionRequest, VersionResponse,
};
use crate::tls::PinMismatch;
use crate::{Endpoint, Identity, Pin};

pub use error::ClientError;
use stream::{Fault, Observed};

/// Longest time for the TCP connection, and again for the handshake.
const CONNECT: Duration = Duration::from_secs(10);

/// Longest time until the first byte of an answer.
const ANSWER: Duration = Duration::from_secs(60);

/// Time without a sign of life of the machine after which it is asked for one while a request is open.
const KEEPALIVE: Duration = Duration::from_secs(20);

/// A connection to a machine that has proved its key and accepted ours. It does not reconnect.
#[derive(Clone, Debug)]
pub struct Client {
    calls: MachineClient<Channel>,
    endpoint: Endpoint,
    version: VersionResponse,
}

impl Client {
    /// Connects, proves both keys, and asks who answers; so what fails here is the connection, and later only a call.
    ///
    /// # Errors
    /// By what stood in the way; [`ClientError::is_transient`] says whether waiting can help.
    pub async fn connect(endpoint: &Endpoint, machine: Pin, identity: &Identity) -> Result<Self, ClientError> {
        let tcp = tcp(endpoint).await?;
        let fault = Fault::default();
        let tls = Observed::new(tls(tcp, endpoint, machine, identity).await?, fault.clone());
        let mut tls = Some(TokioIo::new(tls));
        // The one connection is handed over; a second is never asked for, because a lost one is an error of the call.
        let connector = tower::service_fn(move |_| {
            let tls = tls.take().ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected));
            async move { tls }
        });
        let channel = ChannelSettings::from_static("http://machine")
            .timeout(ANSWER)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .connect_with_connector(connector)
            .await;
        let refused = |otherwise: ClientError| match fault.alert() {
            Some(AlertDescription::AccessDenied) => {
                ClientError::UnknownKey { endpoint: endpoint.clone(), own: identity.pin() }
            }
            Some(alert) => ClientError::Tls { endpoint: endpoint.clone(), source: rustls::Error::AlertReceived(alert) },
            None => otherwise,
        };
        let channel = channel.map_err(|_| refused(ClientError::Closed { endpoint: endpoint.clone() }))?;
        let mut calls = MachineClient::new(channel);
        let version = calls.version(VersionRequest {}).await.map_err(|status| refused(error::of(status, endpoint)))?;
        Ok(Self { calls, endpoint: endpoint.clone(), version: version.into_inner() })
    }

    /// What runs on the machine, and as whom it knows the caller; asked when the connection was made.
    pub fn version(&self) -> &VersionResponse {
        &self.version
    }

    /// What the machine is, what it waits for, and what is wrong.
    ///
    /// # Errors
    /// When the machine refuses or the connection is lost.
    pub async fn status(&mut self) -> Result<StatusResponse, ClientError> {
        let answer = self.calls.status(StatusRequest {}).await;
        answer.map(tonic::Response::into_inner).map_err(|status| error::of(status, &self.endpoint))
    }

    /// The supervised services.
    ///
    /// # Errors
    /// When the machine refuses or the connection is lost.
    pub async fn services(&mut self) -> Result<Vec<Service>, ClientError> {
        let answer = self.calls.services(ServicesRequest {}).await;
        answer.map(|answer| answer.into_inner().services).map_err(|status| error::of(status, &self.endpoint))
    }

    /// Stops and starts a service.
    ///
    /// # Errors
    /// When there is no such service, the machine refuses or the connection is lost.
    pub async fn restart_service(&mut self, name: &str) -> Result<(), ClientError> {
        let answer = self.calls.service_restart(ServiceRestartRequest { name: name.to_owned() }).await;
        answer.map(drop).map_err(|status| error::of(status, &self.endpoint))
    }

    /// The last `lines` lines of a service's log, or of the kernel's by the name `kernel`; then, with `follow`, those that
    /// come. The lines have no ends.
    ///
    /// # Errors
    /// When there is no such service, the machine refuses or the connection is lost, now or within the stream.
    pub async fn logs(
        &mut self,
        service: &str,
        lines: u32,
        follow: bool,
    ) -> Result<impl Stream<Item = Result<Vec<LogLine>, ClientError>> + Unpin + use<>, ClientError> {
        let request = LogsRequest { service: service.to_owned(), lines, follow };
        let answer = self.calls.logs(request).await.map_err(|status| error::of(status, &self.endpoint))?;
        let endpoint = self.endpoint.clone();
        Ok(answer.into_inner().map(move |batch| match batch {
            Ok(batch) => Ok(batch.lines),
            Err(status) => Err(error::of(status, &endpoint)),
        }))
    }

    /// A certificate for the Kubernetes API for our own key.
    ///
    /// # Errors
    /// When the machine has no cluster yet (transient), refuses, or the connection is lost.
    pub async fn kubeconfig(&mut self) -> Result<KubeconfigResponse, ClientError> {
        let answer = self.calls.kubeconfig(KubeconfigRequest {}).await;
        answer.map(tonic::Response::into_inner).map_err(|status| error::of(status, &self.endpoint))
    }

    /// Decides about the change that is on trial.
    ///
    /// # Errors
    /// When none is, the machine refuses or the connection is lost.
    pub async fn decide_trial(&mut self, decision: Decision) -> Result<(), ClientError> {
        let answer = self.calls.trial_decide(TrialDecideRequest { decision: Some(decision) }).await;
        answer.map(drop).map_err(|status| error::of(status, &self.endpoint))
    }

    /// A one-time token with which the machine of this name joins the cluster within so many seconds, and how it finds the cluster.
    ///
    /// # Errors
    /// When this machine is no control-plane machine, refuses, or the connection is lost.
    pub async fn join_token(
        &mut self,
        machine: &str,
        control_plane: bool,
        valid_seconds: u32,
    ) -> Result<JoinTokenResponse, ClientError> {
        let request = JoinTokenRequest { machine: machine.to_owned(), valid_seconds, control_plane };
        let answer = self.calls.join_token(request).await;
        answer.map(tonic::Response::into_inner).map_err(|status| error::of(status, &self.endpoint))
    }

    /// Starts an orderly reboot; returns when it has begun. `reason` is for the log.
    ///
    /// # Errors
    /// When the machine refuses or the connection is lost.
    pub async fn reboot(&mut self, reason: &str) -> Result<(), ClientError> {
        let answer = self.calls.reboot(RebootRequest { reason: reason.to_owned() }).await;
        answer.map(drop).map_err(|status| error::of(status, &self.endpoint))
    }

    /// Starts an orderly power off; returns when it has begun. `reason` is for the log.
    ///
    /// # Errors
    /// When the machine refuses or the connection is lost.
    pub async fn shutdown(&mut self, reason: &str) -> Result<(), ClientError> {
        let answer = self.calls.shutdown(ShutdownRequest { reason: reason.to_owned() }).await;
        answer.map(drop).map_err(|status| error::of(status, &self.endpoint))
    }

    /// Declares the objects of a manifest (YAML, one or more documents), or with `dry_run` says what that would do.
    ///
    /// # Errors
    /// When the manifest is not valid (then nothing of it is applied), the machine refuses or the connection is lost.
    pub async fn apply_manifest(&mut self, manifest: String, dry_run: bool) -> Result<Vec<AppliedObject>, ClientError> {
        let answer = self.calls.apply_manifest(ApplyManifestRequest { manifest, dry_run }).await;
        answer.map(|answer| answer.into_inner().objects).map_err(|status| error::of(status, &self.endpoint))
    }

    /// Tells a machine that waits what it should be, or with `dry_run` finds out whether it would accept that.
    ///
    /// # Errors
    /// When the manifest is not valid or another was faster (then nothing changes), or the connection is lost.
    pub async fn claim(&mut self, manifest: String, dry_run: bool) -> Result<Vec<AppliedObject>, ClientError> {
        let answer = self.calls.claim(ClaimRequest { manifest, dry_run }).await;
        answer.map(|answer| answer.into_inner().objects).map_err(|status| error::of(status, &self.endpoint))
    }

    /// Which TPM the machine says it has.
    ///
    /// # Errors
    /// When it has none that works, or the connection is lost.
    pub async fn endorsement(&mut self) -> Result<Vec<u8>, ClientError> {
        let answer = self.calls.endorsement(EndorsementRequest {}).await;
        answer.map(|answer| answer.into_inner().endorsement).map_err(|status| error::of(status, &self.endpoint))
    }

    /// The machine's answer to a question that only that TPM can answer.
    ///
    /// # Errors
    /// When its TPM cannot, or the connection is lost.
    pub async fn prove_endorsement(&mut self, question: Vec<u8>) -> Result<Vec<u8>, ClientError> {
        let answer = self.calls.prove_endorsement(ProveEndorsementRequest { question }).await;
        answer.map(|answer| answer.into_inner().answer).map_err(|status| error::of(status, &self.endpoint))
    }
}

async fn tcp(endpoint: &Endpoint) -> Result<TcpStream, ClientError> {
    let connect = async {
        let resolved = tokio::net::lookup_host((endpoint.host(), endpoint.port())).await;
        let addresses = resolved.map_err(|source| ClientError::Resolve { endpoint: endpoint.clone(), source })?;
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in addresses {
            match TcpStream::connect(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(ClientError::Connect { endpoint: endpoint.clone(), source: last })
    };
    let stream = timeout(CONNECT, connect).await.map_err(|_| ClientError::Silent { endpoint: endpoint.clone() })??;
    stream.set_nodelay(true).map_err(|source| ClientError::Connect { endpoint: endpoint.clone(), source })?;
    Ok(stream)
}

async fn tls(
    tcp: TcpStream,
    endpoint: &Endpoint,
    machine: Pin,
    identity: &Identity,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, ClientError> {
    let broken = |source| ClientError::Tls { endpoint: endpoint.clone(), source };
    let config = crate::tls::client_config(identity, machine).map_err(broken)?;
    // The name is neither sent nor checked: the key is the machine's name.
    let name = ServerName::try_from("machine").map_err(|_| broken(rustls::Error::General("server name".into())))?;
    let handshake = TlsConnector::from(Arc::new(config)).connect(name, tcp);
    let handshake =
        timeout(CONNECT, handshake).await.map_err(|_| ClientError::Silent { endpoint: endpoint.clone() })?;
    handshake.map_err(|source| match stream::tls_error(&source) {
        Some(error) => match pin_mismatch(error) {
            Some(PinMismatch { expected, presented }) => {
                ClientError::OtherMachine { endpoint: endpoint.clone(), expected, presented }
            }
            None => broken(error.clone()),
        },
        None => ClientError::Closed { endpoint: endpoint.clone() },
    })
}

fn pin_mismatch(error: &rustls::Error) -> Option<PinMismatch> {
    match error {
        rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other)) => other.0.downcast_ref().copied(),
        _ => None,
    }
}
