//! The objects that Garboard keeps in the API: read, compared, and applied only where they differ.
//!
//! Roles give rights away, so they need an [`administrator`]; the rest is the agent's own business. Everything is applied by
//! server-side apply under one field manager, so what others add to an object stays.

use std::time::{Duration, SystemTime};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use garboard_api::cluster::ClusterSpec;
use garboard_api::machine::MachineRole;
use garboard_api_client::{Identity, Outage};
use garboard_plan::addons::{self as plan, FIELD_MANAGER, NodeInput, ObjectKey};
use garboard_plan::join;
use garboard_plan::pki::Authority;
use http::Uri;
use kube::Client;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::core::{ApiResource, GroupVersionKind};
use rcgen::{KeyPair, PublicKeyData};
use serde_json::Value;
use tracing::info;

use crate::pki::{PkiError, PkiStore};

/// Objects that are read or applied at the same time: what an API server that is still starting can make use of.
const AT_ONCE: usize = 4;
/// Life of the certificate of an [`administrator`].
const ADMINISTRATOR_LIFETIME: Duration = Duration::from_secs(60 * 60);

/// Why objects could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum AddonsError {
    /// There is no certificate to act with.
    #[error("cannot act as an administrator")]
    Administrator(#[from] PkiError),
    /// The key or certificate to act with could not be used.
    #[error("cannot use the administrator's key")]
    Identity(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// An object could not be read.
    #[error("cannot read {kind} {name}")]
    Read {
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
        /// The API server's answer.
        #[source]
        source: kube::Error,
    },
    /// An object could not be applied.
    #[error("cannot apply {kind} {name}")]
    Apply {
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
        /// The API server's answer.
        #[source]
        source: kube::Error,
    },
}

/// A client that may do everything, for an hour, with a key that never leaves this process.
///
/// It is what makes the roles of all others, first of all in a new cluster, where nobody has any.
///
/// # Errors
/// [`AddonsError::Administrator`] before the cluster's authority exists.
pub fn administrator(pki: &PkiStore, server: Uri, outage: Outage, now: SystemTime) -> Result<Client, AddonsError> {
    let key = KeyPair::generate().map_err(|error| AddonsError::Identity(error.into()))?;
    let certificate = pki.sign_client(
        &key.subject_public_key_info(),
        "garboard:administrator",
        "system:masters",
        ADMINISTRATOR_LIFETIME,
        now,
    )?;
    let authority = pki.authority_certificate(Authority::Kubernetes)?;
    let identity = Identity::from_pem(&authority, &certificate, &key.serialize_pem())
        .map_err(|error| AddonsError::Identity(error.into()))?;
    Ok(garboard_api_client::client(server, identity, outage))
}

/// Keeps the namespaces and the roles; `client` is an [`administrator`]'s. Returns how many objects differed.
///
/// # Errors
/// [`AddonsError`] of the first object that failed. Repeating continues there.
pub async fn keep_roles(client: &Client) -> Result<usize, AddonsError> {
    Ok(keep(client, plan::namespaces()).await? + keep(client, plan::roles()).await?)
}

/// Keeps what tells users before a change what it would disrupt, and what holds workers to what is their own. Returns how many objects
/// differed.
///
/// # Errors
/// [`AddonsError`] of the first object that failed. Repeating continues there.
pub async fn keep_policies(client: &Client) -> Result<usize, AddonsError> {
    keep(client, garboard_plan::disruption::policies().into_iter().chain(join::policies()).collect()).await
}

/// Keeps the roles of workers; `client` is an [`administrator`]'s. [`keep_policies`] comes before. Returns how many objects differed.
///
/// # Errors
/// [`AddonsError`] of the first object that failed. Repeating continues there.
pub async fn keep_worker_roles(client: &Client) -> Result<usize, AddonsError> {
    keep(client, plan::worker_roles()).await
}

/// Keeps what belongs to a node once it exists: its endpoint of cluster DNS and, on a control-plane machine, its label and the way to
/// cluster DNS. Returns how many objects differed.
///
/// # Errors
/// [`AddonsError`] of the first object that failed. Repeating continues there.
pub async fn keep_dns(
    client: &Client,
    cluster: &ClusterSpec,
    role: MachineRole,
    node: Option<&NodeInput>,
) -> Result<usize, AddonsError> {
    let mut desired = Vec::from_iter(node.and_then(plan::dns_endpoint));
    if role == MachineRole::ControlPlane {
        desired.extend(plan::dns_service(cluster));
        desired.extend(node.map(plan::node_labels));
    }
    keep(client, desired).await
}

async fn keep(client: &Client, desired: Vec<Value>) -> Result<usize, AddonsError> {
    let keys: Vec<_> = desired.iter().map(ObjectKey::of).collect();
    let found: Vec<_> = stream::iter(keys).map(|key| read(client, key)).buffer_unordered(AT_ONCE).try_collect().await?;
    let live = found.into_iter().flatten().collect();
    let due = plan::due(desired, &live);
    let applied: Vec<_> =
        stream::iter(due).map(|object| apply(client, object)).buffer_unordered(AT_ONCE).try_collect().await?;
    Ok(applied.len())
}

/// The object as it is in the API, if it is there.
async fn read(client: &Client, key: ObjectKey) -> Result<Option<(ObjectKey, Value)>, AddonsError> {
    match api(client, &key).get_opt(&key.name).await {
        Ok(object) => Ok(object.and_then(|object| serde_json::to_value(object).ok()).map(|found| (key, found))),
        Err(source) => Err(AddonsError::Read { kind: key.kind, name: key.name, source }),
    }
}

async fn apply(client: &Client, object: Value) -> Result<(), AddonsError> {
    let key = ObjectKey::of(&object);
    let parameters = PatchParams::apply(FIELD_MANAGER).force();
    match api(client, &key).patch(&key.name, &parameters, &Patch::Apply(&object)).await {
        Ok(_) => info!(kind = key.kind, name = key.name, "object applied"),
        Err(source) => return Err(AddonsError::Apply { kind: key.kind, name: key.name, source }),
    }
    Ok(())
}

/// Where objects of a kind are, in the namespace of one of them.
pub(crate) fn api(client: &Client, key: &ObjectKey) -> Api<DynamicObject> {
    let (group, version) = key.api_version.split_once('/').unwrap_or(("", &key.api_version));
    // The plural is right for every kind that is applied here.
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &key.kind));
    match &key.namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    }
}
