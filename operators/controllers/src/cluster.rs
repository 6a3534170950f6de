//! Keeps what the cluster as a whole needs in its API: the way to cluster DNS; and tells how the cluster is.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use garboard_api::cluster::ClusterStatus;
use garboard_api::{About, Cluster, condition};
use garboard_catalog::{dns, kube_apiserver};
use garboard_plan::addons::NodeInput;
use garboard_plan::cluster::{self as plan, Observed, VirtualAddress};
use garboard_plan::pki::Authority;
use garboard_plan::virtual_address::Holding;
use garboard_runtime::applier::chain;
use garboard_runtime::status::{ANSWER, StatusError, in_time};
use garboard_supervisor::status::ServiceStatus;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::runtime::controller::Action;
use kube::{Api, Client};

use crate::addons::{self, AddonsError};
use crate::context::Context;
use crate::services::readiness;

/// Everything is looked at again after this time even if nothing seems to have changed.
const RESYNC: Duration = Duration::from_secs(300);
/// What the upstream controllers make at their start is looked for again after this time.
const ACCOUNT_RETRY: Duration = Duration::from_secs(1);
/// Longest time that the API server has for the cluster's own objects.
const OBJECTS: Duration = Duration::from_secs(60);

/// What could not be done for a cluster.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// Its own objects.
    #[error(transparent)]
    Objects(#[from] AddonsError),
    /// The API server did not answer in time.
    #[error("the API server has not taken the cluster's objects within {} seconds", OBJECTS.as_secs())]
    Timeout,
    /// Its status.
    #[error(transparent)]
    Status(#[from] StatusError),
}

/// Keeps the cluster's own objects and publishes its status.
///
/// # Errors
/// [`ClusterError`] of what failed; the status tells it too, and everything is tried again.
pub async fn reconcile(cluster: Arc<Cluster>, context: Arc<Context>) -> Result<Action, ClusterError> {
    let client = context.api.borrow().clone();
    if !context.speaks_for_cluster() {
        return follow(&cluster, &context, client.as_ref()).await;
    }
    let (api, kept, account) = match &client {
        None => (Err("the API server has not answered yet".to_owned()), Ok(()), false),
        Some(client) => match look(client).await {
            Ok((version, account)) => (Ok(version), keep_objects(client, &cluster, &context).await, account),
            Err(reason) => (Err(reason), Ok(()), false),
        },
    };
    let answers = api.is_ok();
    let observed = Observed {
        api,
        objects_problem: kept.as_ref().err().map(|error| chain(error)),
        account,
        refusals: context.refusals_of(&[About::Cluster]),
        virtual_address: virtual_address(&cluster, &context),
    };
    publish(&cluster, &context, &observed).await?;
    kept?;
    Ok(Action::requeue(match (&client, answers) {
        (Some(_), true) if !account => ACCOUNT_RETRY,
        (Some(_), false) => ANSWER,
        _ => RESYNC,
    }))
}

/// Keeps what belongs to the machine's node. The cluster's status is told by another.
async fn follow(cluster: &Cluster, context: &Context, client: Option<&Client>) -> Result<Action, ClusterError> {
    announce(context, cluster.clone());
    if let Some(client) = client {
        keep_objects(client, cluster, context).await?;
    }
    Ok(Action::requeue(RESYNC))
}

/// Tells the machine API and the console how the cluster is.
fn announce(context: &Context, cluster: Cluster) {
    context.published.send_if_modified(|current| {
        let differs = current.cluster.as_ref() != Some(&cluster);
        current.cluster = Some(cluster);
        differs
    });
}

/// The API server's version, and whether the account of pods is there.
async fn look(client: &Client) -> Result<(String, bool), String> {
    let accounts = Api::<ServiceAccount>::default_namespaced(client.clone());
    let answers = async { tokio::try_join!(client.apiserver_version(), accounts.get_opt(plan::ACCOUNT)) };
    match in_time(answers).await {
        Ok(Ok((version, account))) => Ok((version.git_version, account.is_some())),
        Ok(Err(error)) => Err(chain(&error)),
        Err(silence) => Err(silence.to_string()),
    }
}

async fn keep_objects(client: &Client, cluster: &Cluster, context: &Context) -> Result<(), ClusterError> {
    let node = node(context);
    match tokio::time::timeout(OBJECTS, addons::keep_dns(client, &cluster.spec, context.role(), node.as_ref())).await {
        Ok(kept) => Ok(kept.map(|_| ())?),
        Err(_) => Err(ClusterError::Timeout),
    }
}

/// Whether the API server serves on this machine.
pub fn api_is_ready(services: &[ServiceStatus]) -> bool {
    readiness(services, kube_apiserver::NAME) == Some(true)
}

/// Whether cluster DNS serves on this machine.
pub fn dns_is_ready(services: &[ServiceStatus]) -> bool {
    readiness(services, dns::NAME) == Some(true)
}

/// This machine's node, once it is in the API.
fn node(context: &Context) -> Option<NodeInput> {
    let machine = context.machine.current()?;
    let node = context.node.borrow().clone();
    let services = context.services.borrow().clone();
    Some(NodeInput {
        name: machine.node_name().to_owned(),
        uid: node.uid?,
        bridge_addresses: node.pod_cidrs.iter().filter_map(|cidr| cidr.hosts().next()).collect(),
        dns_ready: dns_is_ready(&services),
    })
}

/// Who has the virtual address, as far as this machine knows; none while none is declared.
fn virtual_address(cluster: &Cluster, context: &Context) -> Option<VirtualAddress> {
    let declared = cluster.spec.virtual_address.as_ref()?;
    let Holding { address, holder, own, problem } = context.holding.borrow().clone();
    // What is declared on trial is not in force at once.
    let holder = holder.filter(|_| address == Some(declared.address));
    let machine = context.machine.current().filter(|_| own).map(|machine| machine.node_name().to_owned());
    let peers = context.peers.borrow().clone();
    let peer = || peers.iter().find(|peer| Some(peer.address) == holder.map(IpAddr::V4)).map(|peer| peer.name.clone());
    Some(VirtualAddress { address: declared.address, holder, machine: machine.or_else(peer), problem })
}

async fn publish(cluster: &Cluster, context: &Context, observed: &Observed) -> Result<(), StatusError> {
    let former = context.statuses.former::<Cluster>(garboard_api::cluster::NAME);
    let address = context.network.borrow().primary();
    let observations = plan::conditions(observed);
    // One of a virtual address that is no longer declared goes with it.
    let lasting = former.conditions.iter().filter(|former| {
        former.type_ != condition::VIRTUAL_ADDRESS_HELD || observations.iter().any(|each| each.type_ == former.type_)
    });
    let lasting: Vec<_> = lasting.cloned().collect();
    let generation = cluster.metadata.generation;
    let status = ClusterStatus {
        observed_generation: generation,
        conditions: condition::merge(&lasting, observations, generation, &context.condition_time()),
        kubernetes_version: observed.api.clone().ok().or(former.kubernetes_version),
        endpoint: cluster.endpoint(address).map(|endpoint| endpoint.to_string()),
        ca_pin: context.pki.authority_pin(Authority::Kubernetes).ok().flatten().map(|pin| pin.to_string()),
        // The operators' to write.
        removed_machines: Vec::new(),
    };
    let mut published = cluster.clone();
    published.status = Some(status.clone());
    announce(context, published);
    context.statuses.publish(cluster, &status).await
}
