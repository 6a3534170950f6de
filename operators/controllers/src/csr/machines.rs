//! Decides on the requests of machines for their clients' certificates.

use std::collections::BTreeMap;
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use garboard_api::{Machine, PublicKeyPin};
use garboard_machine_api::Pin;
use garboard_plan::csr::Request;
use garboard_plan::dispute::{self, Claimant, LetIn};
use garboard_plan::join::{self, Asks, Denial, Requester};
use garboard_plan::removal;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Patch, PatchParams};
use kube::core::PartialObjectMeta;
use kube::runtime::controller::Action;
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;

use crate::removed_machines::Change;

use super::{Context, CsrError, Decision, PATIENCE, RETRY_SOON, age, claim, der, is_decided, node, record};

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
        Ok(()) => match known(requester, request, &claim, context).await {
            // The right to look at a token comes and goes a moment after the token.
            Err(CsrError::Token { source: kube::Error::Api(status), .. }) if status.code == 403 => {
                if age(request) < SETTLED {
                    return Ok(Action::requeue(RETRY_SOON));
                }
                Err(Denial::Spent(requester.machine().to_owned()))
            }
            known => known?,
        },
        denied => denied,
    };
    if matches!(decision, Err(Denial::Unknown(_))) && age(request) < PATIENCE {
        return Ok(Action::requeue(RETRY_SOON));
    }
    let decision = match (decision, requester) {
        (Err(denial), _) => Decision::deny(denial.reason(), &denial),
        (Ok(()), Requester::Joiner { .. }) => Decision::approve("TokenMatches", "the token is this machine's"),
        (Ok(()), Requester::Worker(_)) => Decision::approve("MachineAsksForItself", "it is the machine's own"),
    };
    record(&context.client, request, decision).await?;
    Ok(Action::await_change())
}

/// Whether the machine may ask at all: with a token that no other key was shown with, for a name that no other has; or as one that is
/// declared.
async fn known(
    requester: Requester<'_>,
    request: &CertificateSigningRequest,
    claim: &Request<'_>,
    context: &Context,
) -> Result<Result<(), Denial>, CsrError> {
    let (client, name) = (&context.client, requester.machine());
    let Requester::Joiner { token, .. } = requester else {
        let stays = machine(name, client).await?.is_some_and(|machine| machine.metadata.deletion_timestamp.is_none());
        return Ok(if stays { Ok(()) } else { Err(Denial::Unknown(name.to_owned())) });
    };
    let key = match join::public_key(claim) {
        Ok(key) => PublicKeyPin::new(*Pin::of_public_key(&key).digest()),
        Err(denial) => return Ok(Err(denial)),
    };
    let failed = |source| CsrError::Token { token: token.to_owned(), source };
    // Its time is over.
    let Some(secret) = secrets(client).get_metadata_opt(&join::token_secret_name(token)).await.map_err(failed)? else {
        return Ok(Err(Denial::Spent(name.to_owned())));
    };
    let asks = Asks::of(key, secret.annotations().get(join::KEY).map(String::as_str));
    if asks == Asks::Again {
        return Ok(Ok(()));
    }
    let (machine, node) = (machine(name, client).await?, node(client, name).await?);
    let ready = node.is_some_and(|node| removal::node(&node).ready);
    let claimant = Claimant::of_annotations(request.annotations());
    let status = machine.as_ref().and_then(Machine::own_status);
    let readmit = |source| CsrError::Readmit { machine: name.to_owned(), source };
    let was_let_in = context.let_in().get(name, Instant::now()).is_some();
    if was_let_in && context.removed.has(name).await.map_err(readmit)? {
        context.let_in().forget(name);
    }
    let admitted = {
        // Of several that ask at once, one is the first.
        let (mut let_in, now) = (context.let_in(), Instant::now());
        let admitted = dispute::admit(name, asks == Asks::Late, &claimant, status, ready, let_in.get(name, now));
        if admitted.is_ok() {
            let_in.add(name, claimant, now);
        }
        admitted
    };
    if admitted.is_ok() {
        // One of this name was removed before: it is let in again. Whoever asks again is not, so that a token ends with its machine.
        context.removed.record(name, Change::Readmitted).await.map_err(readmit)?;
        take(&secret, key, client).await.map_err(failed)?;
    }
    Ok(admitted)
}

impl Context {
    fn let_in(&self) -> MutexGuard<'_, LetIn> {
        self.let_in.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn machine(name: &str, client: &Client) -> Result<Option<Machine>, CsrError> {
    let machines: Api<Machine> = Api::all(client.clone());
    machines.get_opt(name).await.map_err(|source| CsrError::Machine { machine: name.to_owned(), source })
}

fn secrets(client: &Client) -> Api<Secret> {
    Api::namespaced(client.clone(), "kube-system")
}

/// Has a token be a key's. Of several keys that are shown at once, one is the first for the API server, which refuses the others by the
/// version.
async fn take(token: &PartialObjectMeta<Secret>, key: PublicKeyPin, client: &Client) -> Result<(), kube::Error> {
    let annotations = BTreeMap::from([(join::KEY, key.to_string())]);
    let metadata = json!({ "annotations": annotations, "resourceVersion": token.resource_version() });
    let patch = Patch::Merge(json!({ "metadata": metadata }));
    secrets(client).patch_metadata(&token.name_any(), &PatchParams::default(), &patch).await.map(drop)
}
