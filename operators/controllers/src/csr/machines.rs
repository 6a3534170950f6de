//! Decides on the requests of machines for their clients' certificates.

use std::collections::BTreeMap;
use std::time::Duration;

use garboard_api::{Machine, PublicKeyPin};
use garboard_machine_api::Pin;
use garboard_plan::csr::Request;
use garboard_plan::join::{self, Asks, Denial, Requester};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Patch, PatchParams};
use kube::runtime::controller::Action;
use kube::{Api, ResourceExt as _};
use serde_json::json;

use crate::removed_machines::Change;

use super::{Approval, Context, CsrError, PATIENCE, RETRY_SOON, age, claim, der, is_decided, record};

/// Age of a request at which the right to look at its token is there, or will not be.
const SETTLED: Duration = Duration::from_secs(4);

/// Decides on a request if it is a machine's.
pub(super) async fn decide(request: &CertificateSigningRequest, context: &Context) -> Result<Action, CsrError> {
    if is_decided(request) {
        return Ok(Action::await_change());
    }
    let der = der(request);
    let claim = claim(request, &der);
    let Some(requester) = Requester::of(&claim) else { return Ok(Action::await_change()) };
    let decision = match requester.check(&claim) {
        Ok(()) => match known(requester, &claim, context).await {
            // The right to look at a token comes and goes a moment after the token.
            Err(CsrError::Token { source: kube::Error::Api(status), .. }) if status.code == 403 => {
                if age(request) < SETTLED {
                    return Ok(Action::requeue(RETRY_SOON));
                }
                Err(Denial::Used)
            }
            known => known?,
        },
        denied => denied,
    };
    if matches!(decision, Err(Denial::Unknown(_))) && age(request) < PATIENCE {
        return Ok(Action::requeue(RETRY_SOON));
    }
    let approval = match requester {
        Requester::Joiner { .. } => Approval { reason: "TokenMatches", message: "the token is this machine's" },
        Requester::Worker(_) => Approval { reason: "MachineAsksForItself", message: "it is the machine's own" },
    };
    record(&context.client, request, decision.map(|()| approval)).await?;
    Ok(Action::await_change())
}

/// Whether the machine may ask at all: with a token that no other key was shown with, or as one that is declared.
async fn known(
    requester: Requester<'_>,
    claim: &Request<'_>,
    context: &Context,
) -> Result<Result<(), Denial>, CsrError> {
    match requester {
        Requester::Joiner { token, machine, role: _ } => match join::public_key(claim) {
            Ok(key) => {
                let pin = PublicKeyPin::new(*Pin::of_public_key(&key).digest());
                take(token, machine, pin, context).await
            }
            Err(denial) => Ok(Err(denial)),
        },
        Requester::Worker(name) => {
            let machines: Api<Machine> = Api::all(context.client.clone());
            let found = machines.get_opt(name).await;
            let found = found.map_err(|source| CsrError::Machine { machine: name.to_owned(), source })?;
            let stays = found.is_some_and(|machine| machine.metadata.deletion_timestamp.is_none());
            Ok(if stays { Ok(()) } else { Err(Denial::Unknown(name.to_owned())) })
        }
    }
}

/// Has a token be a key's, if it is no other's. Of several keys that are shown at once, one is the first for the API server.
async fn take(
    token: &str,
    machine: &str,
    key: PublicKeyPin,
    Context { client, removed }: &Context,
) -> Result<Result<(), Denial>, CsrError> {
    let failed = |source| CsrError::Token { token: token.to_owned(), source };
    let secrets: Api<Secret> = Api::namespaced(client.clone(), "kube-system");
    let name = join::token_secret_name(token);
    // A token that is gone has done its work, or its time is over.
    let Some(found) = secrets.get_metadata_opt(&name).await.map_err(failed)? else { return Ok(Err(Denial::Used)) };
    match join::admit(found.annotations().get(join::KEY).map(String::as_str), key) {
        Ok(Asks::First) => {
            // One of this name was removed before: it is let in again. Whoever asks again is not, so that a token ends with its machine.
            let readmitted = removed.record(machine, Change::Readmitted).await;
            readmitted.map_err(|source| CsrError::Readmit { machine: machine.to_owned(), source })?;
            let annotations = BTreeMap::from([(join::KEY, key.to_string())]);
            // The version has the API server refuse when another key was faster.
            let metadata = json!({ "annotations": annotations, "resourceVersion": found.resource_version() });
            let patch = Patch::Merge(json!({ "metadata": metadata }));
            secrets.patch_metadata(&name, &PatchParams::default(), &patch).await.map_err(failed)?;
            Ok(Ok(()))
        }
        Ok(Asks::Again) => Ok(Ok(())),
        Err(denial) => Ok(Err(denial)),
    }
}
