//! The calls.

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::stream::{BoxStream, StreamExt};
use garboard_api::machine::MachineRole;
use garboard_api::manifest::{self, Manifests};
use garboard_api::types;
use garboard_control::{Client, LogSource, MachinePhase, ShutdownKind};
use garboard_machine_api::proto::machine_server::Machine;
use garboard_machine_api::proto::{
    AppliedObject, ApplyManifestRequest, ApplyManifestResponse, ClaimRequest, ClaimResponse, EndorsementRequest,
    EndorsementResponse, EtcdDefragmentRequest, EtcdDefragmentResponse, EtcdMembersRequest, EtcdMembersResponse,
    EtcdRestoreRequest, EtcdRestoreResponse, EtcdSnapshotRequest, EtcdSnapshotResponse, JoinTokenRequest,
    JoinTokenResponse, KubeconfigRequest, KubeconfigResponse, LogLine, LogsRequest, LogsResponse,
    ProveEndorsementRequest, ProveEndorsementResponse, RebootRequest, RebootResponse, ServiceRestartRequest,
    ServiceRestartResponse, ServicesRequest, ServicesResponse, ShutdownRequest, ShutdownResponse, StatusRequest,
    StatusResponse, TrialAbort, TrialConfirm, TrialDecideRequest, TrialDecideResponse, TrialExtend, VersionRequest,
    VersionResponse, trial_decide_request,
};
use garboard_machine_api::server::Caller;
use garboard_machine_api::{Identity, Pin, Role};
use garboard_plan::pki::Authority;
use garboard_supervisor::spec::ServiceName;
use garboard_tpm::{Question, Tpm, TpmError};
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tonic::{Request, Response, Status, Streaming, async_trait};
use tracing::info;

use super::answers::{self, failed};
use super::etcd::{self, Restoring};
use super::{Declare, DeclareSender, View};
use crate::join::{TokenError, is_alive, issue_token};
use crate::pki::{IssueError, PkiError, PkiStore};
use crate::trial::{Decide, Decision};

/// How long a certificate for the Kubernetes API is valid. It cannot be withdrawn, so it is not long.
const LIFETIME: Duration = Duration::from_secs(90 * 24 * 3600);

/// Most lines in one message: what is there at once is sent together, and a message stays far below its limit.
const BATCH: usize = 64;

/// Most of the last lines that are given: more than PID 1 keeps in memory.
const MAX_LINES: u32 = 100_000;

/// How much more time a trial may get at once, seconds.
const EXTENSION: std::ops::RangeInclusive<u32> = 1..=86_400;

/// How long a token may be valid, seconds.
const TOKEN_SECONDS: std::ops::RangeInclusive<u32> = 60..=604_800;

/// Longest reason that is passed on, characters.
const MAX_REASON: usize = 200;

/// The implementation of the machine API.
#[derive(Clone, Debug)]
pub struct Service {
    control: Client,
    view: watch::Receiver<View>,
    pki: PkiStore,
    declare: DeclareSender,
    decide: mpsc::Sender<Decide>,
    restoring: Restoring,
    own: Pin,
    /// One caller uses it at a time: whoever asks much keeps none but himself waiting for long.
    tpm: Arc<Mutex<Option<Tpm>>>,
}

impl Service {
    /// A service that asks PID 1 through `control`, shows `view`, signs with `pki`, hands what is to be declared, what is to be decided
    /// about trials, and what etcd's store is to be made of, to the agent, and knows the machine's `own` key.
    pub fn new(
        control: Client,
        view: watch::Receiver<View>,
        pki: PkiStore,
        declare: DeclareSender,
        decide: mpsc::Sender<Decide>,
        restoring: Restoring,
        own: Pin,
    ) -> Self {
        Self { control, view, pki, declare, decide, restoring, own, tpm: Arc::default() }
    }

    /// The same service on a machine with this TPM, if it has one.
    #[must_use]
    pub fn with_tpm(self, tpm: Option<Tpm>) -> Self {
        Self { tpm: Arc::new(Mutex::new(tpm)), ..self }
    }

    /// What the machine's TPM does.
    async fn ask_tpm<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Tpm) -> Result<T, TpmError> + Send + 'static,
    ) -> Result<T, Status> {
        // It is held until the TPM is done, whether or not the caller still waits.
        let tpm = self.tpm.clone().lock_owned().await;
        let done = tokio::task::spawn_blocking(move || tpm.as_ref().map(work)).await;
        match done.map_err(|error| Status::internal(error.to_string()))? {
            Some(done) => done.map_err(|error| Status::failed_precondition(chain(&error))),
            None => Err(Status::failed_precondition("the machine has no TPM")),
        }
    }

    /// Reads manifests, and says what becomes of the machine's key in them.
    fn read(&self, manifest: &str) -> Result<(Manifests, Option<AppliedObject>), Status> {
        let manifests = manifest::parse(manifest).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let own = manifests.identity.as_ref().map(|identity| own_key(identity, self.own)).transpose()?;
        Ok((manifests, own))
    }

    async fn declare(
        &self,
        manifests: Manifests,
        own: Option<AppliedObject>,
        claimant: Option<Pin>,
        dry_run: bool,
    ) -> Result<Vec<AppliedObject>, Status> {
        let outcome = ask_agent(&self.declare, |reply| Declare { manifests, claimant, dry_run, reply }).await?;
        let mut objects = outcome.map_err(Status::invalid_argument)?;
        objects.extend(own);
        Ok(objects)
    }

    fn view(&self) -> View {
        self.view.borrow().clone()
    }

    async fn shut_down(&self, kind: ShutdownKind, caller: &Caller, reason: &str) -> Result<(), Status> {
        let reason: String = reason.chars().filter(|c| !c.is_control()).take(MAX_REASON).collect();
        let separator = if reason.is_empty() { "" } else { ": " };
        let reason = format!("asked for by {} over the machine API{separator}{reason}", caller.name);
        self.control.shutdown(kind, &reason).await.map_err(failed)
    }
}

#[async_trait]
impl Machine for Service {
    async fn version(&self, request: Request<VersionRequest>) -> Result<Response<VersionResponse>, Status> {
        let Caller { name, role, public_key: _, address: _ } = Caller::of(&request)?;
        let info = self.control.get_machine().await.map_err(failed)?;
        let view = self.view();
        let machine = view.machine.as_ref().and_then(|machine| machine.metadata.name.clone());
        Ok(Response::new(VersionResponse {
            garboard: info.version,
            kubernetes: answers::kubernetes_version(&view),
            machine: machine.unwrap_or_default(),
            root_hash: info.root_hash,
            caller_name: name.clone(),
            caller_role: role.to_string(),
        }))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let info = self.control.get_machine().await.map_err(failed)?;
        let mut phases = self.control.watch_machine().await.map_err(failed)?;
        let phase = phases.next().await.transpose().map_err(failed)?.unwrap_or(MachinePhase::Running);
        Ok(Response::new(answers::status(info, phase, &self.view())))
    }

    async fn services(&self, _: Request<ServicesRequest>) -> Result<Response<ServicesResponse>, Status> {
        let services = self.control.list_services().await.map_err(failed)?;
        let uptime_ms = self.control.get_machine().await.map_err(failed)?.uptime_ms;
        let services = services.into_iter().map(|status| answers::service(status, uptime_ms)).collect();
        Ok(Response::new(ServicesResponse { services }))
    }

    async fn service_restart(
        &self,
        request: Request<ServiceRestartRequest>,
    ) -> Result<Response<ServiceRestartResponse>, Status> {
        let caller = Caller::of(&request)?;
        let name = service_name(&request.get_ref().name)?;
        info!(caller = %caller.name, service = %name, "a service is restarted on request");
        self.control.restart_service(&name).await.map_err(failed)?;
        Ok(Response::new(ServiceRestartResponse {}))
    }

    type LogsStream = BoxStream<'static, Result<LogsResponse, Status>>;

    async fn logs(&self, request: Request<LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        let LogsRequest { service, lines, follow } = request.into_inner();
        let source = match service.as_str() {
            "kernel" => LogSource::Kernel,
            name => LogSource::Service(service_name(name)?),
        };
        let lines = self.control.logs(&source, lines.min(MAX_LINES), follow).await.map_err(failed)?;
        let batches = lines.ready_chunks(BATCH).map(|chunk| {
            let line = |line: garboard_control::LogLine| LogLine { unix_usec: line.unix_usec, text: line.text };
            let lines: Result<Vec<_>, _> = chunk.into_iter().map(|item| item.map(line)).collect();
            lines.map(|lines| LogsResponse { lines }).map_err(failed)
        });
        Ok(Response::new(batches.boxed()))
    }

    async fn kubeconfig(&self, request: Request<KubeconfigRequest>) -> Result<Response<KubeconfigResponse>, Status> {
        let caller = Caller::of(&request)?.clone();
        let view = self.view();
        let cluster = view.cluster.as_ref().ok_or_else(|| Status::unavailable("no Cluster is declared yet"))?;
        let group = match caller.role {
            Role::Admin => "garboard:admins",
            Role::Operator | Role::Reader => "garboard:readers",
            Role::Claimant => return Err(Status::permission_denied("who claims a machine is nobody in its cluster")),
        };
        info!(caller = %caller.name, group, "a client certificate is signed on request");
        let pki = self.pki.clone();
        let signed = tokio::task::spawn_blocking(move || {
            let certificate = pki.sign_client(&caller.public_key, &caller.name, group, LIFETIME, SystemTime::now())?;
            Ok::<_, PkiError>((pki.authority_certificate(Authority::Kubernetes)?, certificate))
        });
        let (ca, certificate) = signed.await.map_err(|error| Status::internal(error.to_string()))?.map_err(unsigned)?;
        Ok(Response::new(KubeconfigResponse {
            cluster: cluster.metadata.name.clone().unwrap_or_default(),
            server: answers::api_endpoint(&view).unwrap_or_default(),
            not_after_unix_ms: not_after(&certificate).unwrap_or_default(),
            ca,
            certificate,
        }))
    }

    async fn reboot(&self, request: Request<RebootRequest>) -> Result<Response<RebootResponse>, Status> {
        self.shut_down(ShutdownKind::Reboot, Caller::of(&request)?, &request.get_ref().reason).await?;
        Ok(Response::new(RebootResponse {}))
    }

    async fn shutdown(&self, request: Request<ShutdownRequest>) -> Result<Response<ShutdownResponse>, Status> {
        self.shut_down(ShutdownKind::PowerOff, Caller::of(&request)?, &request.get_ref().reason).await?;
        Ok(Response::new(ShutdownResponse {}))
    }

    async fn trial_decide(
        &self,
        request: Request<TrialDecideRequest>,
    ) -> Result<Response<TrialDecideResponse>, Status> {
        let decision = match request.get_ref().decision {
            Some(trial_decide_request::Decision::Confirm(TrialConfirm {})) => Decision::Confirm,
            Some(trial_decide_request::Decision::Abort(TrialAbort {})) => Decision::Abort,
            Some(trial_decide_request::Decision::Extend(TrialExtend { seconds })) if EXTENSION.contains(&seconds) => {
                Decision::Extend(seconds)
            }
            Some(trial_decide_request::Decision::Extend(TrialExtend { seconds })) => {
                let (least, most) = (EXTENSION.start(), EXTENSION.end());
                return Err(Status::invalid_argument(format!("seconds: {seconds}: {least} to {most}")));
            }
            None => return Err(Status::invalid_argument("decision: give one of confirm, abort and extend")),
        };
        let who = Caller::of(&request)?.name.clone();
        let outcome = ask_agent(&self.decide, |reply| Decide { decision, who, reply }).await?;
        outcome.map_err(Status::failed_precondition)?;
        Ok(Response::new(TrialDecideResponse {}))
    }

    async fn join_token(&self, request: Request<JoinTokenRequest>) -> Result<Response<JoinTokenResponse>, Status> {
        let JoinTokenRequest { machine, valid_seconds, control_plane } = request.get_ref();
        if !types::is_label(machine) {
            return Err(Status::invalid_argument(format!("machine: {machine:?}: {}", types::LABEL_WORDS)));
        }
        if !TOKEN_SECONDS.contains(valid_seconds) {
            let (least, most) = (TOKEN_SECONDS.start(), TOKEN_SECONDS.end());
            return Err(Status::invalid_argument(format!("valid_seconds: {valid_seconds}: {least} to {most}")));
        }
        let view = self.view();
        let own = view.machine.as_ref();
        if own.is_some_and(|own| own.role() == MachineRole::Worker) {
            return Err(Status::failed_precondition("this machine is a worker: control-plane machines make tokens"));
        }
        if own.is_some_and(|own| own.node_name() == machine) {
            return Err(Status::invalid_argument(format!("machine: {machine:?}: it is the name of this machine")));
        }
        let endpoint = answers::endpoint(&view).ok_or_else(|| Status::unavailable("the machine has no address yet"))?;
        let authority = Authority::Kubernetes;
        let pin = self.pki.authority_pin(authority).and_then(|pin| pin.ok_or(PkiError::NoAuthority(authority)));
        let ca_pin = pin.map_err(unsigned)?.to_string();
        let lifetime = Duration::from_secs((*valid_seconds).into());
        let role = if *control_plane { MachineRole::ControlPlane } else { MachineRole::Worker };
        let now = SystemTime::now();
        let unavailable = |error: TokenError| Status::unavailable(chain(&error));
        let node_ready = is_alive(&self.pki, machine, now).await.map_err(unavailable)?;
        let (token, end) = issue_token(&self.pki, machine, role, lifetime, now).await.map_err(unavailable)?;
        Ok(Response::new(JoinTokenResponse {
            token,
            endpoint: endpoint.to_string(),
            ca_pin,
            not_after_unix_ms: end.saturating_mul(1000),
            node_ready,
            access: view.cluster.iter().flat_map(|cluster| &cluster.spec.access).map(answers::access).collect(),
        }))
    }

    async fn etcd_members(&self, _: Request<EtcdMembersRequest>) -> Result<Response<EtcdMembersResponse>, Status> {
        etcd::members().await.map(Response::new)
    }

    type EtcdSnapshotStream = BoxStream<'static, Result<EtcdSnapshotResponse, Status>>;

    async fn etcd_snapshot(
        &self,
        _: Request<EtcdSnapshotRequest>,
    ) -> Result<Response<Self::EtcdSnapshotStream>, Status> {
        etcd::snapshot().await.map(Response::new)
    }

    type EtcdRestoreStream = BoxStream<'static, Result<EtcdRestoreResponse, Status>>;

    async fn etcd_restore(
        &self,
        request: Request<Streaming<EtcdRestoreRequest>>,
    ) -> Result<Response<Self::EtcdRestoreStream>, Status> {
        etcd::restore(&self.restoring, &self.view(), request.into_inner()).map(Response::new)
    }

    type EtcdDefragmentStream = BoxStream<'static, Result<EtcdDefragmentResponse, Status>>;

    async fn etcd_defragment(
        &self,
        _: Request<EtcdDefragmentRequest>,
    ) -> Result<Response<Self::EtcdDefragmentStream>, Status> {
        Ok(Response::new(etcd::defragment()))
    }

    async fn apply_manifest(
        &self,
        request: Request<ApplyManifestRequest>,
    ) -> Result<Response<ApplyManifestResponse>, Status> {
        let caller = Caller::of(&request)?;
        let ApplyManifestRequest { manifest, dry_run } = request.get_ref();
        let (manifests, own) = self.read(manifest)?;
        let names = [
            ("Machine", manifests.machine.is_some()),
            ("Cluster", manifests.cluster.is_some()),
            ("Secret", manifests.join_token.is_some()),
        ];
        let kinds: Vec<_> = names.into_iter().filter(|(_, declared)| *declared).map(|(kind, _)| kind).collect();
        if kinds.is_empty() {
            return match own {
                Some(secret) => Ok(Response::new(ApplyManifestResponse { objects: vec![secret] })),
                None => Err(Status::invalid_argument("the manifest declares nothing")),
            };
        }
        info!(caller = %caller.name, ?kinds, dry_run, "objects are declared on request");
        let objects = self.declare(manifests, own, None, *dry_run).await?;
        Ok(Response::new(ApplyManifestResponse { objects }))
    }

    async fn claim(&self, request: Request<ClaimRequest>) -> Result<Response<ClaimResponse>, Status> {
        let caller = Caller::of(&request)?;
        let ClaimRequest { manifest, dry_run } = request.get_ref();
        let (manifests, own) = self.read(manifest)?;
        let machine = manifests.machine.as_ref();
        let machine = machine.ok_or_else(|| Status::invalid_argument("the manifest has no Machine"))?;
        if manifests.cluster.is_none() && !machine.joins() {
            return Err(Status::invalid_argument(
                "the manifest has neither the Cluster that the machine founds, nor does the Machine join one: add the Cluster, or spec.join",
            ));
        }
        let by = Pin::of_public_key(&caller.public_key);
        info!(address = %caller.address, fingerprint = %by, dry_run, "the machine is claimed");
        let objects = self.declare(manifests, own, Some(by), *dry_run).await?;
        Ok(Response::new(ClaimResponse { objects }))
    }

    async fn endorsement(&self, _: Request<EndorsementRequest>) -> Result<Response<EndorsementResponse>, Status> {
        let endorsement = self.ask_tpm(Tpm::endorsement).await?;
        Ok(Response::new(EndorsementResponse { endorsement: endorsement.to_bytes() }))
    }

    async fn prove_endorsement(
        &self,
        request: Request<ProveEndorsementRequest>,
    ) -> Result<Response<ProveEndorsementResponse>, Status> {
        let question = Question::try_from(request.get_ref().question.as_slice());
        let question = question.map_err(|error| Status::invalid_argument(format!("question: {error}")))?;
        let own = self.own;
        let answer = self.ask_tpm(move |tpm| tpm.answer(&question, own.digest())).await?;
        Ok(Response::new(ProveEndorsementResponse { answer: answer.to_bytes() }))
    }
}

/// The agent's answer to what is handed to one of its tasks.
async fn ask_agent<Question, Answer>(
    task: &mpsc::Sender<Question>,
    question: impl FnOnce(oneshot::Sender<Answer>) -> Question,
) -> Result<Answer, Status> {
    let (reply, answer) = oneshot::channel();
    let ended = || Status::unavailable("the node agent is ending");
    task.send(question(reply)).await.map_err(|_| ended())?;
    answer.await.map_err(|_| ended())
}

/// What happens to a Secret with the machine's key: nothing when it is the one that the machine has.
fn own_key(manifest::Identity { machine, key }: &manifest::Identity, own: Pin) -> Result<AppliedObject, Status> {
    let refused = |why: String| Status::invalid_argument(format!("Secret {machine}: stringData[identity.key]: {why}"));
    let given = Identity::from_pem(key).map_err(|error| refused(error.to_string()))?.pin();
    if given != own {
        return Err(refused(format!(
            "the key {given} is not the machine's, which is {own} and stays: leave the Secret out"
        )));
    }
    Ok(AppliedObject { kind: "Secret".to_owned(), name: machine.clone(), outcome: "unchanged".to_owned() })
}

fn service_name(name: &str) -> Result<ServiceName, Status> {
    ServiceName::try_from(name).map_err(|error| Status::invalid_argument(error.to_string()))
}

fn unsigned(error: PkiError) -> Status {
    match &error {
        PkiError::NoAuthority(_) => Status::unavailable("the cluster's keys are not made yet"),
        PkiError::Issue { source: IssueError::NoKey, .. } => {
            Status::failed_precondition("this machine is a worker: ask a control-plane machine")
        }
        _ => Status::internal(chain(&error)),
    }
}

/// An error with its causes.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

/// When a certificate ends, milliseconds since 1970.
fn not_after(pem: &str) -> Option<i64> {
    let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).ok()?;
    Some(block.parse_x509().ok()?.validity().not_after.timestamp().saturating_mul(1000))
}
