//! Tells how pools are: one of the cluster's duties.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use garboard_api::{Machine, MachinePool};
use garboard_plan::pool as plan;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::runtime::controller::{self, Action, Controller};
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::duty;

/// The name under which the operators own statuses of pools.
const FIELD_MANAGER: &str = "garboard-operators";
/// Changes of machines within this time are counted together.
const DEBOUNCE: Duration = Duration::from_millis(500);
/// How soon a failed look is tried again.
const ERROR_RETRY: Duration = Duration::from_secs(5);

struct Context {
    client: Client,
    machines: Store<Machine>,
}

/// Keeps the statuses of pools until `stop`.
pub async fn run(client: Client, stop: CancellationToken) {
    let (machines, writer) = reflector::store();
    let watch =
        watcher(Api::<Machine>::all(client.clone()), watcher::Config::default()).reflect(writer).touched_objects();
    let changes = garboard_api_client::uninterrupted("machine", watch).map(drop);
    let context = Arc::new(Context { client: client.clone(), machines });
    Controller::new(Api::<MachinePool>::all(client), watcher::Config::default())
        .with_config(controller::Config::default().debounce(DEBOUNCE))
        .reconcile_all_on(changes)
        .graceful_shutdown_on(async move { stop.cancelled().await })
        .run(reconcile, |_, _, _| Action::requeue(ERROR_RETRY), context)
        .for_each(async |result| duty::tell(result, "the status of a pool is not kept"))
        .await;
}

async fn reconcile(pool: Arc<MachinePool>, context: Arc<Context>) -> Result<Action, kube::Error> {
    // The list comes while this waits: nothing is counted before. It fails only when the controller ends.
    if context.machines.wait_until_ready().await.is_err() {
        return Ok(Action::await_change());
    }
    let machines = context.machines.state();
    let status = plan::status(&pool, machines.iter().map(Arc::as_ref), &Time(Timestamp::now()));
    if pool.status.as_ref() == Some(&status) {
        return Ok(Action::await_change());
    }
    let patch = json!({
        "apiVersion": garboard_api::API_VERSION,
        "kind": "MachinePool",
        "metadata": { "name": pool.name_any() },
        "status": status,
    });
    let parameters = PatchParams::apply(FIELD_MANAGER).force();
    Api::<MachinePool>::all(context.client.clone())
        .patch_status(&pool.name_any(), &parameters, &Patch::Apply(&patch))
        .await?;
    Ok(Action::await_change())
}
