//! Rolls the templates of pools out, and tells how that is: one of the cluster's duties. What is due is
//! [`plan::rollout`](garboard_plan::rollout).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt as _, stream};
use garboard_api::{Machine, MachinePool};
use garboard_plan::{pool as plan, removal};
use k8s_openapi::api::core::v1::{Node, NodeCondition, NodeStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::runtime::controller::Action;
use kube::runtime::events::Recorder;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Api, Client, Resource as _, ResourceExt as _};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{duty, events};

/// The name under which the operators own statuses of pools.
const FIELD_MANAGER: &str = "garboard-operators";
/// What changes within this time of pools, machines and nodes is counted together.
const GATHER: Duration = Duration::from_millis(500);

struct Context {
    client: Client,
    recorder: Recorder,
    machines: Store<Machine>,
    nodes: Store<Node>,
}

/// Keeps the statuses of pools, by which their machines go, until `stop`.
pub async fn run(client: Client, stop: CancellationToken) {
    let (pools, pool_changes) = duty::all::<MachinePool>(&client, "machinepool", |_| ());
    let (machines, machine_changes) = duty::all(&client, "machine", plan::strip);
    let (nodes, node_changes) = duty::all(&client, "node", strip);
    let changes = stream::select(pool_changes, stream::select(machine_changes, node_changes));
    let known = pools.clone();
    let due = duty::gathered(changes, GATHER)
        .flat_map(move |()| stream::iter(known.state()))
        .map(|pool| ObjectRef::from_obj(pool.as_ref()));
    let recorder = events::recorder_of(client.clone(), events::OPERATORS);
    let context = Arc::new(Context { client, recorder, machines, nodes });
    duty::run(pools, due, context, reconcile, "the status of a pool is not kept", stop).await;
}

/// Leaves of a node whether it is Ready.
fn strip(node: &mut Node) {
    let Node { metadata, spec: _, status } = std::mem::take(node);
    node.metadata.name = metadata.name;
    let conditions = status.and_then(|status| status.conditions).unwrap_or_default().into_iter();
    let ready = conditions
        .filter(|condition| condition.type_ == "Ready")
        .map(|NodeCondition { type_, status, .. }| NodeCondition { type_, status, ..NodeCondition::default() });
    node.status = Some(NodeStatus { conditions: Some(ready.collect()), ..NodeStatus::default() });
}

async fn reconcile(pool: Arc<MachinePool>, context: Arc<Context>) -> Result<Action, kube::Error> {
    // The lists come while this waits: nothing is decided before. It fails only when the duty ends.
    if context.machines.wait_until_ready().await.is_err() || context.nodes.wait_until_ready().await.is_err() {
        return Ok(Action::await_change());
    }
    let (machines, nodes) = (context.machines.state(), context.nodes.state());
    let ready = nodes.iter().filter(|node| removal::node(node).ready);
    let ready_nodes: BTreeSet<&str> = ready.filter_map(|node| node.metadata.name.as_deref()).collect();
    let status = plan::status(&pool, machines.iter().map(Arc::as_ref), &ready_nodes, &Time(Timestamp::now()));
    if pool.status.as_ref() == Some(&status) {
        return Ok(Action::await_change());
    }
    let patch = json!({
        "apiVersion": garboard_api::API_VERSION,
        "kind": "MachinePool",
        // Whom the pool names next follows from whom it names now: that must be its latest word.
        "metadata": { "name": pool.name_any(), "resourceVersion": pool.metadata.resource_version },
        "status": status,
    });
    let parameters = PatchParams::apply(FIELD_MANAGER).force();
    let pools = Api::<MachinePool>::all(context.client.clone());
    match pools.patch_status(&pool.name_any(), &parameters, &Patch::Apply(&patch)).await {
        Ok(_) => {}
        // What has changed meanwhile is on its way here.
        Err(kube::Error::Api(answer)) if answer.code == 409 => return Ok(Action::await_change()),
        Err(error) => return Err(error),
    }
    if let Some(notable) = plan::notable(pool.status.as_ref(), &status) {
        warn!(pool = pool.name_any(), reason = notable.reason, note = notable.note, "rollout");
        // One that is not taken is in the log and in the status still.
        events::record(&context.recorder, &pool.object_ref(&()), &notable).await;
    }
    Ok(Action::await_change())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_kubelet_repeats_is_no_change_of_a_node() {
        let node = |heartbeat: &str, ready: &str| {
            let mut node = serde_json::from_value(json!({
                "metadata": { "name": "a", "resourceVersion": heartbeat },
                "status": { "conditions": [
                    { "type": "Ready", "status": ready, "lastHeartbeatTime": heartbeat },
                    { "type": "DiskPressure", "status": "False", "lastHeartbeatTime": heartbeat },
                ] },
            }))
            .unwrap();
            strip(&mut node);
            node
        };
        let [first, later] = ["2026-01-01T00:00:00Z", "2026-01-01T00:05:00Z"];
        assert_eq!(node(first, "True"), node(later, "True"));
        assert_ne!(node(first, "True"), node(later, "False"));
        assert!(removal::node(&node(first, "True")).ready);
    }
}
