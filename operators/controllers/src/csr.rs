//! Approves or denies requests for certificates: those of kubelets for serving, and those of machines that join or have joined. One of
//! the cluster's duties.
//!
//! The decisions are [`plan::csr`](garboard_plan::csr) and [`plan::join`](garboard_plan::join); a denial carries its reason, so that
//! `kubectl describe csr` tells it. A request of a node that has not reported its addresses yet is looked at again soon, because the
//! kubelet reports them right after it asks; so is that of a machine whose Machine is not there yet.

mod machines;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt as _;
use garboard_plan::csr::{self, Denial, NOT_ALLOWED, NodeNames, Request};
use garboard_plan::dispute::LetIn;
use garboard_plan::join;
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition, CertificateSigningRequestStatus,
};
use k8s_openapi::api::core::v1::Node;
use kube::api::PostParams;
use kube::runtime::controller::{self, Action, Controller};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt as _};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::duty;
use crate::removed_machines::RemovedMachines;

/// How soon a request is looked at again that lacks what is on its way.
const RETRY_SOON: Duration = Duration::from_secs(2);
/// How long that may be lacking before the request is denied, counted from the request.
const PATIENCE: Duration = Duration::from_secs(60);
/// How soon a failed look is tried again.
const ERROR_RETRY: Duration = Duration::from_secs(5);

/// Why a request could not be decided.
#[derive(Debug, thiserror::Error)]
pub enum CsrError {
    /// The API server did not give the node.
    #[error("get node {node}")]
    Node {
        /// Its name.
        node: String,
        /// Why.
        #[source]
        source: kube::Error,
    },
    /// The API server did not give the machine.
    #[error("get machine {machine}")]
    Machine {
        /// Its name.
        machine: String,
        /// Why.
        #[source]
        source: kube::Error,
    },
    /// The API server did not record that a removed machine is let in again.
    #[error("let machine {machine} in again")]
    Readmit {
        /// Its name.
        machine: String,
        /// Why.
        #[source]
        source: kube::Error,
    },
    /// The API server did not tell or take whose a token is.
    #[error("look whose the token {token} is")]
    Token {
        /// Its identifier.
        token: String,
        /// Why.
        #[source]
        source: kube::Error,
    },
    /// The API server did not take the decision.
    #[error("record the decision on {request}")]
    Record {
        /// Name of the request.
        request: String,
        /// Why.
        #[source]
        source: kube::Error,
    },
}

struct Context {
    client: Client,
    removed: Arc<RemovedMachines>,
    let_in: Mutex<LetIn>,
}

/// Decides on requests until `stop`; machines that are let in again are taken out of `removed`.
pub async fn run(client: Client, removed: Arc<RemovedMachines>, stop: CancellationToken) {
    let requests: Api<CertificateSigningRequest> = Api::all(client.clone());
    Controller::new(requests, watcher::Config::default())
        .with_config(controller::Config::default().concurrency(duty::AT_ONCE))
        .graceful_shutdown_on(async move { stop.cancelled().await })
        .run(reconcile, |_, error, _| retry(error), Arc::new(Context { client, removed, let_in: Mutex::default() }))
        .for_each(async |result| duty::tell(result, "a certificate request was not decided"))
        .await;
}

fn retry(_error: &CsrError) -> Action {
    Action::requeue(ERROR_RETRY)
}

async fn reconcile(request: Arc<CertificateSigningRequest>, context: Arc<Context>) -> Result<Action, CsrError> {
    match request.spec.signer_name.as_str() {
        csr::SIGNER => serving(&request, &context.client).await,
        join::SIGNER => machines::decide(&request, &context).await,
        _ => Ok(Action::await_change()),
    }
}

/// Decides on a kubelet's request for a serving certificate.
async fn serving(request: &CertificateSigningRequest, client: &Client) -> Result<Action, CsrError> {
    if is_decided(request) {
        return Ok(Action::await_change());
    }
    let der = der(request);
    let claim = claim(request, &der);
    let decision = match csr::node(&claim) {
        Ok(name) => csr::check(&claim, &names(client, name).await?),
        Err(denial) => Err(denial),
    };
    if matches!(decision, Err(Denial::Foreign(_))) && age(request) < PATIENCE {
        return Ok(Action::requeue(RETRY_SOON));
    }
    let decision = match decision {
        Ok(()) => Decision::approve("NodeAsksForItself", "every name is one of the node's own"),
        Err(denial) => Decision::deny(NOT_ALLOWED, &denial),
    };
    record(client, request, decision).await?;
    Ok(Action::await_change())
}

/// What becomes of a request, and why in one word and in more.
struct Decision {
    approved: bool,
    reason: &'static str,
    message: String,
}

impl Decision {
    fn approve(reason: &'static str, message: &str) -> Self {
        Self { approved: true, reason, message: message.to_owned() }
    }

    fn deny(reason: &'static str, denial: &impl std::error::Error) -> Self {
        Self { approved: false, reason, message: denial.to_string() }
    }
}

fn has_condition(request: &CertificateSigningRequest, types: &[&str]) -> bool {
    let conditions = request.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| types.contains(&condition.type_.as_str()))
}

fn is_decided(request: &CertificateSigningRequest) -> bool {
    has_condition(request, &["Approved", "Denied", "Failed"])
}

fn claim<'a>(request: &'a CertificateSigningRequest, der: &'a [u8]) -> Request<'a> {
    Request {
        username: request.spec.username.as_deref().unwrap_or_default(),
        groups: request.spec.groups.as_deref().unwrap_or_default(),
        usages: request.spec.usages.as_deref().unwrap_or_default(),
        der,
    }
}

/// What the API server holds is PEM; without a PEM block nothing is left, which is then denied as unreadable.
fn der(request: &CertificateSigningRequest) -> Vec<u8> {
    x509_parser::pem::parse_x509_pem(&request.spec.request.0).map(|(_, pem)| pem.contents).unwrap_or_default()
}

fn age(request: &CertificateSigningRequest) -> Duration {
    let created = request.creation_timestamp().map(|created| created.0.as_second());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
    let created = created.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or(now);
    Duration::from_secs(now.saturating_sub(created))
}

async fn node(client: &Client, name: &str) -> Result<Option<Node>, CsrError> {
    let nodes: Api<Node> = Api::all(client.clone());
    nodes.get_opt(name).await.map_err(|source| CsrError::Node { node: name.to_owned(), source })
}

async fn names(client: &Client, name: &str) -> Result<NodeNames, CsrError> {
    let node = node(client, name).await?;
    let mut known = NodeNames::default();
    for address in node.and_then(|node| node.status).and_then(|status| status.addresses).into_iter().flatten() {
        match address.address.parse() {
            Ok(ip) => known.addresses.insert(ip),
            Err(_) => known.names.insert(address.address),
        };
    }
    Ok(known)
}

async fn record(
    client: &Client,
    request: &CertificateSigningRequest,
    Decision { approved, reason, message }: Decision,
) -> Result<(), CsrError> {
    let name = request.name_any();
    let type_ = if approved { "Approved" } else { "Denied" };
    let mut decided = request.clone();
    decided.status.get_or_insert_with(CertificateSigningRequestStatus::default).conditions =
        Some(vec![CertificateSigningRequestCondition {
            type_: type_.to_owned(),
            status: "True".to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message.clone()),
            ..CertificateSigningRequestCondition::default()
        }]);
    let requests: Api<CertificateSigningRequest> = Api::all(client.clone());
    let recorded = requests.replace_subresource("approval", &name, &PostParams::default(), &decided).await;
    recorded.map_err(|source| CsrError::Record { request: name.clone(), source })?;
    info!(request = %name, user = request.spec.username.as_deref(), decision = type_, message, "certificate request decided");
    Ok(())
}
