//! A machine in memory behind the real server, for tests of clients.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::stream::{self, BoxStream, StreamExt};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tonic::{Request, Response, Status, Streaming, async_trait};

use crate::proto::etcd_restore_request::Source;
use crate::proto::machine_server::Machine;
use crate::proto::{
    AppliedObject, ApplyManifestRequest, ApplyManifestResponse, ClaimRequest, ClaimResponse, EndorsementRequest,
    EndorsementResponse, EtcdDefragmentRequest, EtcdDefragmentResponse, EtcdHealth, EtcdMembersRequest,
    EtcdMembersResponse, EtcdRestoreRequest, EtcdRestoreResponse, EtcdSnapshotRequest, EtcdSnapshotResponse,
    JoinTokenRequest, JoinTokenResponse, KubeconfigRequest, KubeconfigResponse, LogLine, LogsRequest, LogsResponse,
    ProveEndorsementRequest, ProveEndorsementResponse, RebootRequest, RebootResponse, Service, ServiceRestartRequest,
    ServiceRestartResponse, ServicesRequest, ServicesResponse, ShutdownRequest, ShutdownResponse, StatusRequest,
    StatusResponse, TrialDecideRequest, TrialDecideResponse, VersionRequest, VersionResponse,
};
use crate::server::{Caller, Limits, ServeError, serve};
use crate::snapshot::PIECE;
use crate::{Access, AccessList, Endpoint, Identity, Role};

/// What the machine in memory answers with, and what it was told.
#[derive(Debug, Default)]
pub struct State {
    /// The answer to `Version`; the caller is filled in.
    pub version: VersionResponse,
    /// The answer to `Status`.
    pub status: StatusResponse,
    /// The answer to `Services`; there are logs and restarts for these only, and logs of the kernel.
    pub services: Vec<Service>,
    /// The lines of every log.
    pub lines: Vec<LogLine>,
    /// The answer to `Kubeconfig`; without one it is "not yet".
    pub kubeconfig: Option<KubeconfigResponse>,
    /// The answer to `ApplyManifest` and `Claim`.
    pub applied: Vec<AppliedObject>,
    /// Why these are refused; empty when they are not.
    pub refusal: String,
    /// The answer to `EtcdMembers`; without one there is no etcd.
    pub etcd: Option<EtcdMembersResponse>,
    /// What `EtcdSnapshot` gives.
    pub snapshot: Vec<u8>,
    /// What `EtcdRestore` was given as a snapshot.
    pub restored: Vec<u8>,
    /// The calls that change something, as `CALLER RPC ARGUMENTS`.
    pub calls: Vec<String>,
}

/// A machine in memory; clones are the same machine.
#[derive(Clone, Debug, Default)]
pub struct Memory(Arc<Mutex<State>>);

impl Memory {
    /// The state, to look at and to change.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn called<T>(&self, request: &Request<T>, what: &str) -> Result<(), Status> {
        let caller = Caller::of(request)?;
        self.state().calls.push(format!("{} {what}", caller.name));
        Ok(())
    }

    fn declared(&self) -> Result<Vec<AppliedObject>, Status> {
        let state = self.state();
        match state.refusal.as_str() {
            "" => Ok(state.applied.clone()),
            refusal => Err(Status::invalid_argument(refusal)),
        }
    }

    fn etcd(&self) -> Result<EtcdMembersResponse, Status> {
        self.state().etcd.clone().ok_or_else(|| Status::failed_precondition("etcd does not run on this machine"))
    }

    fn known(&self, service: &str) -> Result<(), Status> {
        match self.state().services.iter().any(|known| known.name == service) {
            true => Ok(()),
            false => Err(Status::not_found(format!("there is no service {service:?}"))),
        }
    }
}

#[async_trait]
impl Machine for Memory {
    async fn version(&self, request: Request<VersionRequest>) -> Result<Response<VersionResponse>, Status> {
        let Caller { name, role, .. } = Caller::of(&request)?.clone();
        let version = self.state().version.clone();
        Ok(Response::new(VersionResponse { caller_name: name, caller_role: role.to_string(), ..version }))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        Ok(Response::new(self.state().status.clone()))
    }

    async fn services(&self, _: Request<ServicesRequest>) -> Result<Response<ServicesResponse>, Status> {
        Ok(Response::new(ServicesResponse { services: self.state().services.clone() }))
    }

    async fn service_restart(
        &self,
        request: Request<ServiceRestartRequest>,
    ) -> Result<Response<ServiceRestartResponse>, Status> {
        self.known(&request.get_ref().name)?;
        self.called(&request, &format!("ServiceRestart {}", request.get_ref().name))?;
        Ok(Response::new(ServiceRestartResponse {}))
    }

    type LogsStream = BoxStream<'static, Result<LogsResponse, Status>>;

    async fn logs(&self, request: Request<LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        let LogsRequest { service, lines, follow } = request.into_inner();
        if service != "kernel" {
            self.known(&service)?;
        }
        let all = self.state().lines.clone();
        let skipped = all.len().saturating_sub(usize::try_from(lines).unwrap_or(usize::MAX));
        let last = all.into_iter().skip(skipped).collect();
        let batch = stream::iter([Ok(LogsResponse { lines: last })]);
        // What follows never comes: a client that follows waits.
        Ok(Response::new(if follow { batch.chain(stream::pending()).boxed() } else { batch.boxed() }))
    }

    async fn kubeconfig(&self, request: Request<KubeconfigRequest>) -> Result<Response<KubeconfigResponse>, Status> {
        self.called(&request, "Kubeconfig")?;
        let kubeconfig = self.state().kubeconfig.clone();
        kubeconfig.map(Response::new).ok_or_else(|| Status::unavailable("the machine waits for its clock"))
    }

    async fn reboot(&self, request: Request<RebootRequest>) -> Result<Response<RebootResponse>, Status> {
        self.called(&request, &format!("Reboot {}", request.get_ref().reason))?;
        Ok(Response::new(RebootResponse {}))
    }

    async fn shutdown(&self, request: Request<ShutdownRequest>) -> Result<Response<ShutdownResponse>, Status> {
        self.called(&request, &format!("Shutdown {}", request.get_ref().reason))?;
        Ok(Response::new(ShutdownResponse {}))
    }

    async fn trial_decide(
        &self,
        request: Request<TrialDecideRequest>,
    ) -> Result<Response<TrialDecideResponse>, Status> {
        self.called(&request, &format!("TrialDecide {:?}", request.get_ref().decision))?;
        Ok(Response::new(TrialDecideResponse {}))
    }

    async fn join_token(&self, request: Request<JoinTokenRequest>) -> Result<Response<JoinTokenResponse>, Status> {
        let JoinTokenRequest { machine, valid_seconds, control_plane } = request.get_ref();
        let role = if *control_plane { "control-plane" } else { "worker" };
        self.called(&request, &format!("JoinToken {machine} {role} {valid_seconds}"))?;
        Ok(Response::new(JoinTokenResponse {
            access: Vec::new(),
            token: "abcdef.0123456789abcdef".to_owned(),
            endpoint: "192.0.2.10:6443".to_owned(),
            ca_pin: format!("sha256:{}", "7".repeat(64)),
            not_after_unix_ms: 1_800_000_000_000,
            node_ready: machine == "in-use",
        }))
    }

    async fn etcd_members(&self, _: Request<EtcdMembersRequest>) -> Result<Response<EtcdMembersResponse>, Status> {
        self.etcd().map(Response::new)
    }

    type EtcdSnapshotStream = BoxStream<'static, Result<EtcdSnapshotResponse, Status>>;

    async fn etcd_snapshot(
        &self,
        request: Request<EtcdSnapshotRequest>,
    ) -> Result<Response<Self::EtcdSnapshotStream>, Status> {
        self.called(&request, "EtcdSnapshot")?;
        let content = self.state().snapshot.clone();
        let mut remaining_bytes = content.len() as u64;
        let pieces: Vec<_> = content
            .chunks(PIECE)
            .map(|piece| {
                remaining_bytes -= piece.len() as u64;
                Ok(EtcdSnapshotResponse { piece: piece.to_vec(), remaining_bytes })
            })
            .collect();
        Ok(Response::new(stream::iter(pieces).boxed()))
    }

    type EtcdRestoreStream = BoxStream<'static, Result<EtcdRestoreResponse, Status>>;

    async fn etcd_restore(
        &self,
        request: Request<Streaming<EtcdRestoreRequest>>,
    ) -> Result<Response<Self::EtcdRestoreStream>, Status> {
        let caller = Caller::of(&request)?.name.clone();
        let (mut parts, mut from) = (request.into_inner(), String::new());
        while let Some(part) = parts.message().await? {
            match part.source {
                Some(Source::Piece(piece)) => self.state().restored.extend(piece),
                other => from = format!(" {other:?}"),
            }
        }
        self.state().calls.push(format!("{caller} EtcdRestore{from}"));
        let step = EtcdRestoreResponse { progress: "the machine makes a new store".to_owned() };
        Ok(Response::new(stream::iter([Ok(step)]).boxed()))
    }

    type EtcdDefragmentStream = BoxStream<'static, Result<EtcdDefragmentResponse, Status>>;

    async fn etcd_defragment(
        &self,
        request: Request<EtcdDefragmentRequest>,
    ) -> Result<Response<Self::EtcdDefragmentStream>, Status> {
        self.called(&request, "EtcdDefragment")?;
        let before = self.etcd()?.health.unwrap_or_default();
        let after = EtcdHealth { database_bytes: before.used_bytes, alarms: Vec::new(), ..before.clone() };
        let done = EtcdDefragmentResponse { before: Some(before), after: Some(after) };
        Ok(Response::new(stream::iter([Ok(done)]).boxed()))
    }

    async fn apply_manifest(
        &self,
        request: Request<ApplyManifestRequest>,
    ) -> Result<Response<ApplyManifestResponse>, Status> {
        let ApplyManifestRequest { manifest, dry_run } = request.get_ref();
        self.called(&request, &format!("ApplyManifest {} bytes dry_run={dry_run}", manifest.len()))?;
        Ok(Response::new(ApplyManifestResponse { objects: self.declared()? }))
    }

    async fn claim(&self, request: Request<ClaimRequest>) -> Result<Response<ClaimResponse>, Status> {
        let ClaimRequest { manifest, dry_run } = request.get_ref();
        self.called(&request, &format!("Claim {} bytes dry_run={dry_run}", manifest.len()))?;
        Ok(Response::new(ClaimResponse { objects: self.declared()? }))
    }

    async fn endorsement(&self, request: Request<EndorsementRequest>) -> Result<Response<EndorsementResponse>, Status> {
        self.called(&request, "Endorsement")?;
        Err(Status::failed_precondition("the machine has no TPM"))
    }

    async fn prove_endorsement(
        &self,
        request: Request<ProveEndorsementRequest>,
    ) -> Result<Response<ProveEndorsementResponse>, Status> {
        self.called(&request, "ProveEndorsement")?;
        Err(Status::failed_precondition("the machine has no TPM"))
    }
}

/// A served machine; it is stopped when this is dropped.
#[derive(Debug)]
pub struct Served {
    /// Where it is.
    pub endpoint: Endpoint,
    /// Its key.
    pub identity: Identity,
    /// Its access list, which may be replaced.
    pub access: watch::Sender<AccessList>,
    /// What is behind it.
    pub machine: Memory,
    /// The server's task.
    pub task: JoinHandle<Result<(), ServeError>>,
    /// Stops it when dropped.
    pub stop: oneshot::Sender<()>,
}

/// An access list of one key.
pub fn only(identity: &Identity, name: &str, role: Role) -> AccessList {
    [(identity.pin(), Access { name: name.to_owned(), role })].into_iter().collect()
}

/// Serves a machine in memory with a new key, as [`start_as`] does.
///
/// # Errors
/// When the system gives no port or no randomness.
pub async fn start(access: AccessList, limits: Limits) -> io::Result<Served> {
    start_as(Identity::generate().map_err(io::Error::other)?, access, limits).await
}

/// Serves a machine in memory on a free port of the loopback interface, in the current runtime.
///
/// # Errors
/// When the system gives no port.
pub async fn start_as(identity: Identity, access: AccessList, limits: Limits) -> io::Result<Served> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let endpoint = listener.local_addr()?.to_string().parse().map_err(io::Error::other)?;
    let (access, watched) = watch::channel(access);
    let (stop, stopped) = oneshot::channel::<()>();
    let machine = Memory::default();
    let (served, key) = (machine.clone(), Identity::from_pem(&identity.pem()).map_err(io::Error::other)?);
    let task = tokio::spawn(async move {
        let stop = async { drop(stopped.await) };
        serve(listener, &key, watched, limits, served, stop).await
    });
    Ok(Served { endpoint, identity, access, machine, task, stop })
}
