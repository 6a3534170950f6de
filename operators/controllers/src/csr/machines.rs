//! Decides on the requests of machines for their clients' certificates.

use garboard_api::Machine;
use garboard_plan::join::{self, Denial, Requester, Rival};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, ListParams};
use kube::runtime::controller::Action;
use kube::{Api, Client, ResourceExt as _};
use tracing::info;

use crate::removed_machines::Change;

use super::{Approval, Context, CsrError, PATIENCE, RETRY_SOON, age, claim, der, has_condition, is_decided, record};

/// Decides on a request if it is a machine's, and takes away the token that has let its machine in.
pub(super) async fn decide(
    request: &CertificateSigningRequest,
    Context { client, removed }: &Context,
) -> Result<Action, CsrError> {
    let der = der(request);
    let claim = claim(request, &der);
    let Some(requester) = Requester::of(&claim) else { return Ok(Action::await_change()) };
    if !is_decided(request) {
        let decision = match requester.check(&claim) {
            Ok(()) => known(requester, request, client).await?,
            denied => denied,
        };
        if matches!(decision, Err(Denial::Unknown(_))) && age(request) < PATIENCE {
            return Ok(Action::requeue(RETRY_SOON));
        }
        let approval = match requester {
            Requester::Joiner { .. } => Approval { reason: "TokenMatches", message: "the token is this machine's" },
            Requester::Worker(_) => Approval { reason: "MachineAsksForItself", message: "it is the machine's own" },
        };
        let approved = decision.is_ok();
        if let (true, Requester::Joiner { machine, .. }) = (approved, requester) {
            // One of this name was removed before: it is let in again.
            let readmitted = removed.record(machine, Change::Readmitted).await;
            readmitted.map_err(|source| CsrError::Readmit { machine: machine.to_owned(), source })?;
        }
        record(client, request, decision.map(|()| approval)).await?;
        if !approved {
            return Ok(Action::await_change());
        }
    } else if !has_condition(request, &["Approved"]) {
        return Ok(Action::await_change());
    }
    if let Requester::Joiner { token, machine, .. } = requester {
        remove(token, machine, client).await?;
    }
    Ok(Action::await_change())
}

/// Whether the machine may ask at all: with a token that nobody has used before, or as one that is declared.
async fn known(
    requester: Requester<'_>,
    request: &CertificateSigningRequest,
    client: &Client,
) -> Result<Result<(), Denial>, CsrError> {
    match requester {
        Requester::Joiner { .. } => {
            let requests: Api<CertificateSigningRequest> = Api::all(client.clone());
            let ours = ListParams::default().fields(&format!("spec.signerName={}", join::SIGNER));
            let all = requests.list(&ours).await.map_err(CsrError::List)?;
            let same = all.iter().filter(|other| other.spec.username == request.spec.username);
            let open = same.filter(|other| !has_condition(other, &["Denied", "Failed"]));
            let first = join::first(open.filter_map(|other| {
                Some(Rival {
                    name: other.metadata.name.as_deref()?,
                    approved: has_condition(other, &["Approved"]),
                    created: other.creation_timestamp()?.0,
                })
            }));
            let own = request.metadata.name.as_deref();
            Ok(match first.filter(|first| Some(*first) != own) {
                Some(first) => Err(Denial::Used(first.to_owned())),
                None => Ok(()),
            })
        }
        Requester::Worker(name) => {
            let machines: Api<Machine> = Api::all(client.clone());
            let found = machines.get_opt(name).await;
            let found = found.map_err(|source| CsrError::Machine { machine: name.to_owned(), source })?;
            let stays = found.is_some_and(|machine| machine.metadata.deletion_timestamp.is_none());
            Ok(if stays { Ok(()) } else { Err(Denial::Unknown(name.to_owned())) })
        }
    }
}

/// Takes a token away.
async fn remove(token: &str, machine: &str, client: &Client) -> Result<(), CsrError> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), "kube-system");
    match secrets.delete(&join::token_secret_name(token), &DeleteParams::default()).await {
        Ok(_) => info!(machine, token, "the token has done its work"),
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        Err(source) => return Err(CsrError::Token { token: token.to_owned(), source }),
    }
    Ok(())
}
