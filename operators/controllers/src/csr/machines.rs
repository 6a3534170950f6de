//! Decides on the requests of machines for their clients' certificates.

use garboard_api::Machine;
use garboard_plan::dispute::{self, Claimant};
use garboard_plan::join::{self, Denial, Requester, Rival};
use garboard_plan::removal;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ListParams, Patch, PatchParams};
use kube::runtime::controller::Action;
use kube::{Api, Client, ResourceExt as _};
use tracing::info;

use crate::removed_machines::Change;

use super::{
    Context, CsrError, Decision, PATIENCE, RETRY_SOON, age, claim, der, has_condition, is_decided, node, record,
};

/// Decides on a request if it is a machine's, and marks the token that has let its machine in.
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
        let decision = match (decision, requester) {
            (Err(denial), _) => Decision::deny(denial.reason(), &denial),
            (Ok(()), Requester::Worker(_)) => Decision::approve("MachineAsksForItself", "it is the machine's own"),
            (Ok(()), Requester::Joiner { machine, .. } | Requester::Late(machine)) => {
                // One of this name was removed before: it is let in again.
                let readmitted = removed.record(machine, Change::Readmitted).await;
                readmitted.map_err(|source| CsrError::Readmit { machine: machine.to_owned(), source })?;
                Decision::approve("TokenMatches", "the token is this machine's")
            }
        };
        let approved = decision.approved;
        record(client, request, decision).await?;
        if !approved {
            return Ok(Action::await_change());
        }
    } else if !has_condition(request, &["Approved"]) {
        return Ok(Action::await_change());
    }
    if let Requester::Joiner { token, machine, .. } = requester {
        spend(token, machine, client).await?;
    }
    Ok(Action::await_change())
}

/// Whether the machine may ask at all: with a token that nobody has used before, for a name that no other has; or as one that is declared.
async fn known(
    requester: Requester<'_>,
    request: &CertificateSigningRequest,
    client: &Client,
) -> Result<Result<(), Denial>, CsrError> {
    let name = requester.machine();
    let machine = machine(name, client).await?;
    let spent = match requester {
        Requester::Worker(_) => {
            let stays = machine.is_some_and(|machine| machine.metadata.deletion_timestamp.is_none());
            return Ok(if stays { Ok(()) } else { Err(Denial::Unknown(name.to_owned())) });
        }
        Requester::Joiner { .. } => false,
        Requester::Late(_) => true,
    };
    let ready = node(client, name).await?.is_some_and(|node| removal::node(&node).ready);
    let claimant = Claimant::of_annotations(request.annotations());
    let status = machine.as_ref().and_then(Machine::own_status);
    if let Err(denial) = dispute::admit(name, spent, &claimant, status, ready) {
        return Ok(Err(denial));
    }
    Ok(match first(request, client).await? {
        Some(first) if request.metadata.name.as_ref() != Some(&first) => Err(Denial::Used(first)),
        _ => Ok(()),
    })
}

async fn machine(name: &str, client: &Client) -> Result<Option<Machine>, CsrError> {
    let machines: Api<Machine> = Api::all(client.clone());
    machines.get_opt(name).await.map_err(|source| CsrError::Machine { machine: name.to_owned(), source })
}

/// Of the requests with one token the one that counts.
async fn first(request: &CertificateSigningRequest, client: &Client) -> Result<Option<String>, CsrError> {
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
    Ok(first.map(str::to_owned))
}

/// Marks a token, so that it lets nobody in any more.
async fn spend(token: &str, machine: &str, client: &Client) -> Result<(), CsrError> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), "kube-system");
    let patch = Patch::Merge(join::spent_token(machine));
    match secrets.patch_metadata(&join::token_secret_name(token), &PatchParams::default(), &patch).await {
        Ok(_) => info!(machine, token, "the token has done its work"),
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        Err(source) => return Err(CsrError::Token { token: token.to_owned(), source }),
    }
    Ok(())
}
