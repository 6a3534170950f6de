//! Lets machines leave whose Machines are deleted: one of the cluster's duties. What is due is [`plan::removal`](garboard_plan::removal).

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::StreamExt as _;
use garboard_api::machine::MachineRole;
use garboard_api::{EtcdMember, Machine, REMOVAL_FINALIZER, condition};
use garboard_plan::removal::{self as plan, Observed, Step};
use garboard_plan::revocation;
use garboard_runtime::status::{self, there};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, EvictParams, ListParams, Patch, PatchParams};
use kube::runtime::controller::{Action, Controller};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::{duty, revocations};

/// The name under which the operators own parts of Machines.
const FIELD_MANAGER: &str = "garboard-operators";
/// How soon a machine that leaves is looked at again: its pods end by and by.
const LOOK: Duration = Duration::from_secs(3);
/// How soon a failed look is tried again.
const ERROR_RETRY: Duration = Duration::from_secs(5);

/// Sees to machines that leave until `stop`.
pub async fn run(client: Client, stop: CancellationToken) {
    Controller::new(Api::<Machine>::all(client.clone()), watcher::Config::default())
        .graceful_shutdown_on(async move { stop.cancelled().await })
        .run(reconcile, |_, _, _| Action::requeue(ERROR_RETRY), Arc::new(client))
        .for_each(async |result| duty::tell(result, "a machine does not get away"))
        .await;
}

async fn reconcile(machine: Arc<Machine>, client: Arc<Client>) -> Result<Action, kube::Error> {
    let observed = observe(&machine, &client).await?;
    let plan = plan::plan(&observed);
    for step in &plan.steps {
        apply(step, &machine, &client).await?;
    }
    if let Some(condition) = plan.condition {
        tell(condition, &machine, &client).await?;
        return Ok(Action::requeue(LOOK));
    }
    Ok(Action::await_change())
}

async fn observe(machine: &Machine, client: &Client) -> Result<Observed, kube::Error> {
    let name = machine.node_name();
    let mut members = Vec::new();
    if machine.role() == MachineRole::ControlPlane {
        members = Api::<EtcdMember>::all(client.clone()).list(&ListParams::default()).await?.items;
    }
    let mut observed = Observed {
        joins: machine.joins(),
        member: members.iter().find(|member| member.name_any() == name).map(plan::member),
        others: members.iter().any(|member| member.name_any() != name && plan::stays(member)),
        kept: machine.finalizers().iter().any(|finalizer| finalizer == REMOVAL_FINALIZER),
        deleted: machine.metadata.deletion_timestamp.as_ref().map(since),
        forced: machine.annotations().get(plan::FORCE).is_some_and(|value| value == "true"),
        ..Observed::default()
    };
    if observed.deleted.is_none() {
        return Ok(observed);
    }
    observed.node = Api::<Node>::all(client.clone()).get_opt(name).await?.map(|node| plan::node(&node));
    if observed.node.is_some() {
        let there = ListParams::default().fields(&format!("spec.nodeName={name}"));
        let pods = Api::<Pod>::all(client.clone()).list(&there).await?;
        observed.pods = pods.iter().filter_map(plan::resident).collect();
    }
    Ok(observed)
}

fn since(time: &Time) -> Duration {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    now.saturating_sub(Duration::from_secs(u64::try_from(time.0.as_second()).unwrap_or_default()))
}

async fn apply(step: &Step, machine: &Machine, client: &Client) -> Result<(), kube::Error> {
    let name = machine.node_name();
    let nodes = || Api::<Node>::all(client.clone());
    match step {
        Step::Keep => {
            let finalizers = machine.finalizers().iter().map(String::as_str).chain([REMOVAL_FINALIZER]);
            finalize(machine, finalizers.collect(), client).await
        }
        Step::Cordon => {
            info!(machine = name, "the machine leaves: no new pods");
            let patch = json!({ "spec": { "unschedulable": true } });
            there(nodes().patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await).map(drop)
        }
        Step::Evict { namespace, name: pod } => {
            let pods = Api::<Pod>::namespaced(client.clone(), namespace);
            match pods.evict(pod, &EvictParams::default()).await {
                Ok(_) => info!(machine = name, namespace, pod, "the pod is asked to go"),
                // A budget does not let it go now.
                Err(kube::Error::Api(status)) if status.code == 429 => {
                    debug!(machine = name, namespace, pod, message = status.message, "the pod does not go yet");
                }
                other => return there(other.map(drop)).map(drop),
            }
            Ok(())
        }
        Step::LeaveEtcd => {
            info!(machine = name, "its member of etcd leaves");
            let members = Api::<EtcdMember>::all(client.clone());
            let patch = json!({ "spec": { "leave": true } });
            there(members.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await).map(drop)
        }
        Step::Revoke => {
            revocations::record(client, |removed, now| revocation::with(removed, name, now)).await?;
            info!(machine = name, "its certificates count no longer");
            Ok(())
        }
        Step::DeleteNode => {
            there(nodes().delete(name, &DeleteParams::default()).await.map(drop)).map(drop)?;
            info!(machine = name, "its node is taken away");
            Ok(())
        }
        Step::Release => {
            let others = machine.finalizers().iter().map(String::as_str).filter(|other| *other != REMOVAL_FINALIZER);
            finalize(machine, others.collect(), client).await?;
            info!(machine = name, "the machine has left");
            Ok(())
        }
    }
}

/// Gives a Machine these finalizers, unless somebody else has changed it meanwhile.
async fn finalize(machine: &Machine, finalizers: Vec<&str>, client: &Client) -> Result<(), kube::Error> {
    let metadata = json!({ "finalizers": finalizers, "resourceVersion": machine.metadata.resource_version });
    let patch = Patch::Merge(json!({ "metadata": metadata }));
    let machines = Api::<Machine>::all(client.clone());
    match machines.patch(machine.node_name(), &PatchParams::default(), &patch).await {
        // What somebody else has changed is looked at again.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        other => there(other.map(drop)).map(drop),
    }
}

/// Tells on the Machine how its leaving is, if that is news.
async fn tell(observation: condition::Observation, machine: &Machine, client: &Client) -> Result<(), kube::Error> {
    let former = machine.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    let now = Time(Timestamp::now());
    let Some(conditions) = condition::news(former, observation, machine.metadata.generation, &now) else {
        return Ok(());
    };
    let machines = Api::<Machine>::all(client.clone());
    let status = json!({ "conditions": conditions });
    there(status::apply(&machines, machine.node_name(), FIELD_MANAGER, &status).await).map(drop)
}
