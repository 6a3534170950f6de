//! Rolls the templates of pools out, and tells how that is: one of the cluster's duties. What is due is
//! [`plan::rollout`](garboard_plan::rollout).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt as _, stream};
use garboard_api::{Machine, MachinePool};
use garboard_plan::{pool as plan, removal};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::runtime::controller::{self, Action, Controller};
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, Resource as _, ResourceExt as _};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{duty, events};

/// The name under which the operators own statuses of pools.
const FIELD_MANAGER: &str = "garboard-operators";
/// Changes of machines and nodes within this time are counted together.
const DEBOUNCE: Duration = Duration::from_millis(500);
/// How soon a failed look is tried again.
const ERROR_RETRY: Duration = Duration::from_secs(5);

struct Context {
    client: Client,
    recorder: Recorder,
    machines: Store<Machine>,
    nodes: Store<Node>,
}

/// Keeps the statuses of pools, by which their machines go, until `stop`.
pub async fn run(client: Client, stop: CancellationToken) {
    let (machines, writer) = reflector::store();
    let watch =
        watcher(Api::<Machine>::all(client.clone()), watcher::Config::default()).reflect(writer).touched_objects();
    let machine_changes = garboard_api_client::uninterrupted("machine", watch).map(drop);
    let (nodes, writer) = reflector::store();
    let watch = watcher(Api::<Node>::all(client.clone()), watcher::Config::default())
        .modify(strip)
        .reflect(writer)
        .touched_objects();
    let node_changes = garboard_api_client::uninterrupted("node", watch).map(drop);
    let reporter = Reporter { controller: FIELD_MANAGER.to_owned(), instance: None };
    let recorder = Recorder::new(client.clone(), reporter);
    let context = Arc::new(Context { client: client.clone(), recorder, machines, nodes });
    Controller::new(Api::<MachinePool>::all(client), watcher::Config::default())
        .with_config(controller::Config::default().debounce(DEBOUNCE))
        .reconcile_all_on(stream::select(machine_changes, node_changes))
        .graceful_shutdown_on(async move { stop.cancelled().await })
        .run(reconcile, |_, _, _| Action::requeue(ERROR_RETRY), context)
        .for_each(async |result| duty::tell(result, "the status of a pool is not kept"))
        .await;
}

/// Takes from a node what nobody here looks at, which is most of it.
fn strip(node: &mut Node) {
    node.spec = None;
    node.metadata.managed_fields = None;
    node.metadata.annotations = None;
    if let Some(status) = &mut node.status {
        status.images = None;
    }
}

async fn reconcile(pool: Arc<MachinePool>, context: Arc<Context>) -> Result<Action, kube::Error> {
    // The lists come while this waits: nothing is decided before. It fails only when the controller ends.
    if context.machines.wait_until_ready().await.is_err() || context.nodes.wait_until_ready().await.is_err() {
        return Ok(Action::await_change());
    }
    let machines = context.machines.state();
    let ready_nodes: BTreeSet<String> =
        context.nodes.state().iter().filter(|node| removal::node(node).ready).map(|node| node.name_any()).collect();
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
