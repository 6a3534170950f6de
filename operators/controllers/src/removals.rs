//! Lets machines leave whose Machines are deleted: one of the cluster's duties. What is due is [`plan::removal`](garboard_plan::removal).

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::{StreamExt as _, stream};
use garboard_api::machine::{MachineRole, MachineSpec, MachineStatus};
use garboard_api::{EtcdMember, Machine, REMOVAL_FINALIZER, condition};
use garboard_plan::removal::{self as plan, Observed, Step};
use garboard_runtime::status::{self, there};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, DynamicObject, EvictParams, ListParams, Patch, PatchParams};
use kube::core::ApiResource;
use kube::runtime::controller::Action;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, ResourceExt as _};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::duty;
use crate::removed_machines::{Change, RemovedMachines};

/// The name under which the operators own parts of Machines.
const FIELD_MANAGER: &str = "garboard-operators";
/// How soon a machine that leaves is looked at again: its pods end by and by.
const LOOK: Duration = Duration::from_secs(3);
/// Changes of members of etcd within this time are looked at together.
const GATHER: Duration = Duration::from_millis(500);

struct Context {
    client: Client,
    members: Store<EtcdMember>,
    removed: Arc<RemovedMachines>,
}

/// Sees to machines that leave until `stop`; those that have left are recorded in `removed`.
pub async fn run(client: Client, removed: Arc<RemovedMachines>, stop: CancellationToken) {
    let (machines, writer) = reflector::store();
    let watch = watcher(Api::<Machine>::all(client.clone()), watcher::Config::default().streaming_lists());
    let changed = watch.modify(strip).reflect(writer).applied_objects();
    let changed = garboard_api_client::uninterrupted("machine", changed).map(|machine| ObjectRef::from_obj(&machine));
    let (members, member_changes) = duty::all::<EtcdMember>(&client, "etcdmember", |_| ());
    let known = machines.clone();
    // Whether one of the control plane may leave depends on the others.
    let concerned = duty::gathered(member_changes, GATHER).flat_map(move |()| stream::iter(control_plane(&known)));
    let due = stream::select(changed, concerned);
    let context = Arc::new(Context { client, members, removed });
    duty::run(machines, due, context, reconcile, "a machine does not get away", stop).await;
}

/// Leaves of a Machine what is looked at here: there may be a thousand.
fn strip(machine: &mut Machine) {
    let MachineSpec { role, join, .. } = std::mem::take(&mut machine.spec);
    machine.spec = MachineSpec { role, join, ..MachineSpec::default() };
    machine.metadata.managed_fields = None;
    machine.status = machine.status.take().map(|MachineStatus { mut conditions, .. }| {
        conditions.retain(|condition| condition.type_ == condition::DRAINED);
        MachineStatus { conditions, ..MachineStatus::default() }
    });
}

fn control_plane(machines: &Store<Machine>) -> Vec<ObjectRef<Machine>> {
    let machines = machines.state();
    let found = machines.iter().filter(|machine| machine.role() == MachineRole::ControlPlane);
    found.map(|machine| ObjectRef::from_obj(machine.as_ref())).collect()
}

async fn reconcile(machine: Arc<Machine>, context: Arc<Context>) -> Result<Action, kube::Error> {
    let Some(observed) = observe(&machine, &context).await? else { return Ok(Action::await_change()) };
    let plan = plan::plan(&observed);
    for step in &plan.steps {
        apply(step, &machine, &context).await?;
    }
    if let Some(condition) = plan.condition {
        tell(condition, &machine, &context.client).await?;
        return Ok(Action::requeue(LOOK));
    }
    Ok(Action::await_change())
}

/// What is seen of a machine; nothing when the duty ends before there is anything to see.
async fn observe(
    machine: &Machine,
    Context { client, members, .. }: &Context,
) -> Result<Option<Observed>, kube::Error> {
    let name = machine.node_name();
    let deleted = machine.metadata.deletion_timestamp.as_ref().map(since);
    let members = match (machine.role(), deleted) {
        (MachineRole::Worker, _) => Vec::new(),
        (MachineRole::ControlPlane, None) => {
            if members.wait_until_ready().await.is_err() {
                return Ok(None);
            }
            members.state()
        }
        // Whether others stay is asked when it counts: what is told comes late.
        (MachineRole::ControlPlane, Some(_)) => {
            let members = Api::<EtcdMember>::all(client.clone()).list(&ListParams::default()).await?;
            members.items.into_iter().map(Arc::new).collect()
        }
    };
    let mut observed = Observed {
        joins: machine.joins(),
        member: members.iter().find(|member| member.name_any() == name).map(|member| plan::member(member)),
        others: members.iter().any(|member| member.name_any() != name && plan::stays(member)),
        kept: machine.finalizers().iter().any(|finalizer| finalizer == REMOVAL_FINALIZER),
        deleted,
        forced: machine.annotations().get(plan::FORCE).is_some_and(|value| value == "true"),
        ..Observed::default()
    };
    if observed.deleted.is_none() {
        return Ok(Some(observed));
    }
    observed.node = Api::<Node>::all(client.clone()).get_opt(name).await?.map(|node| plan::node(&node));
    if observed.node.is_some() {
        let there = ListParams::default().fields(&format!("spec.nodeName={name}"));
        // Of pods little is looked at, and their type is the largest that there is.
        let pods = Api::<DynamicObject>::all_with(client.clone(), &ApiResource::erase::<Pod>(&()));
        let pods = pods.list(&there).await?;
        let resident = |pod: &DynamicObject| {
            plan::resident(&pod.metadata, pod.data.pointer("/status/phase").and_then(Value::as_str))
        };
        observed.pods = pods.iter().filter_map(resident).collect();
    }
    Ok(Some(observed))
}

fn since(time: &Time) -> Duration {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    now.saturating_sub(Duration::from_secs(u64::try_from(time.0.as_second()).unwrap_or_default()))
}

async fn apply(step: &Step, machine: &Machine, Context { client, removed, .. }: &Context) -> Result<(), kube::Error> {
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
            removed.record(name, Change::Removed).await?;
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
    let now = Time(Timestamp::now());
    let Some(conditions) = condition::news(machine.conditions(), observation, machine.metadata.generation, &now) else {
        return Ok(());
    };
    let machines = Api::<Machine>::all(client.clone());
    let status = json!({ "conditions": conditions });
    there(status::apply(&machines, machine.node_name(), FIELD_MANAGER, &status).await).map(drop)
}
